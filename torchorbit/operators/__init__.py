"""What every operator does to the labels of its operands: a file per family, found through `registry`."""

from torchorbit.operators import (
    contractions,
    convolutions,
    creation,
    elementwise,
    indexing,
    joining,
    recurrent,
    reductions,
    resampling,
    views,
)
from torchorbit.operators import normalizations as normalizations
from torchorbit.operators.registry import (
    RESIZES,
    RULES,
    Labelled,
    Mixing,
    Operands,
    Reading,
    Result,
    register_rule,
    rule,
)

__all__ = [
    "RESIZES",
    "RULES",
    "Labelled",
    "Mixing",
    "Operands",
    "Reading",
    "Result",
    "contractions",
    "convolutions",
    "creation",
    "elementwise",
    "indexing",
    "joining",
    "normalizations",
    "recurrent",
    "reductions",
    "register_rule",
    "resampling",
    "rule",
    "views",
]
