"""Which channels of a model live and die together, what they cost, and what is frozen and why."""

from torchorbit.orbits.discovery import find_orbits
from torchorbit.orbits.orbit import Orbit, Orbits, Slice

__all__ = ["Orbit", "Orbits", "Slice", "find_orbits"]
