"""Look at what was found: what a module or a unit depends on, what is frozen and why."""

from torchorbit.inspection.causes import Reason
from torchorbit.inspection.frozen import FrozenGroup, FrozenGroups, frozen_groups
from torchorbit.inspection.lookups import module_of_vertex, vertices_of_module
from torchorbit.inspection.modules import ModuleDependencies, OrbitDependencies, module_dependencies
from torchorbit.inspection.passing import Member
from torchorbit.inspection.units import OwnedSlices, UnitDependencies, UnitSlice, unit_dependencies, unit_slices

__all__ = [
    "FrozenGroup",
    "FrozenGroups",
    "Member",
    "ModuleDependencies",
    "OrbitDependencies",
    "OwnedSlices",
    "Reason",
    "UnitDependencies",
    "UnitSlice",
    "frozen_groups",
    "module_dependencies",
    "module_of_vertex",
    "unit_dependencies",
    "unit_slices",
    "vertices_of_module",
]
