"""How units are removed: the cut, plans of it, and the proof that it was done right."""

from torchorbit.removal.cuts import Cut
from torchorbit.removal.cutting import remove_channels
from torchorbit.removal.planning import Plan, plan
from torchorbit.removal.proof import verify_removal

__all__ = ["Cut", "Plan", "plan", "remove_channels", "verify_removal"]
