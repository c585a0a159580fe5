"""Which channels of a model live and die together."""

from torchorbit.orbits.checking import check_rule
from torchorbit.orbits.discovery import find_orbits
from torchorbit.orbits.orbit import Orbit, Orbits, Slice
from torchorbit.orbits.rules import register_rule

__all__ = ["Orbit", "Orbits", "Slice", "check_rule", "find_orbits", "register_rule"]
