"""What every operator does to the labels of its operands: a file per family, found through `registry`."""

from torchorbit.orbits.rules import (
    contractions,
    convolutions,
    creation,
    elementwise,
    indexing,
    joining,
    normalisations,
    recurrent,
    reductions,
    resampling,
    views,
)
from torchorbit.orbits.rules.registry import (
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
    "normalisations",
    "recurrent",
    "reductions",
    "register_rule",
    "resampling",
    "rule",
    "views",
]
