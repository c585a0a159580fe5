"""Look at what was found: what a module or a unit depends on, what is frozen and why, how far two models differ."""

from torchorbit.comparing import compare_module_outputs
from torchorbit.orbits.causes import Reason
from torchorbit.orbits.dependencies import ModuleDependencies, OrbitDependencies, module_dependencies
from torchorbit.orbits.frozen import FrozenGroup, FrozenGroups, frozen_groups
from torchorbit.orbits.lookups import module_of_vertex, vertices_of_module
from torchorbit.orbits.orbit import Slice
from torchorbit.orbits.passing import Member
from torchorbit.orbits.units import UnitDependencies, UnitSlices, unit_dependencies, unit_slices

__all__ = [
    "FrozenGroup",
    "FrozenGroups",
    "Member",
    "ModuleDependencies",
    "OrbitDependencies",
    "Reason",
    "Slice",
    "UnitDependencies",
    "UnitSlices",
    "compare_module_outputs",
    "frozen_groups",
    "module_dependencies",
    "module_of_vertex",
    "unit_dependencies",
    "unit_slices",
    "vertices_of_module",
]
