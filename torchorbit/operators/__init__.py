"""What is known of every operator: a file per family declares it, and the tables are put together from these."""

from torchorbit.operators.labelling import Labelled, Mixing, Operands, Reading, Result
from torchorbit.operators.registry import FAMILIES, register_rule
from torchorbit.operators.table import (
    KNOWN,
    LEAVES,
    MODULE_OPERATORS,
    OPERATORS,
    REQUIRED,
    RESIZES,
    RULES,
)

__all__ = [
    "FAMILIES",
    "KNOWN",
    "LEAVES",
    "MODULE_OPERATORS",
    "OPERATORS",
    "REQUIRED",
    "RESIZES",
    "RULES",
    "Labelled",
    "Mixing",
    "Operands",
    "Reading",
    "Result",
    "register_rule",
]
