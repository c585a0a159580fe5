"""Rules: what a class of modules that is kept whole does to channels, and the check of such a rule."""

from torchorbit.labels import Dim
from torchorbit.operators import Labelled, Operands, Reading, register_rule
from torchorbit.removal.checking import check_rule

__all__ = ["Dim", "Labelled", "Operands", "Reading", "check_rule", "register_rule"]
