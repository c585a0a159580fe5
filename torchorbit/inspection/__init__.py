"""Look at what was found: what a module or a unit depends on, what is frozen and why."""

from torchorbit.inspection.frozen import FrozenGroup, FrozenGroups, frozen_groups

__all__ = ["FrozenGroup", "FrozenGroups", "frozen_groups"]
