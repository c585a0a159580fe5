"""Selectors: how many units of which orbits go; and constraints, which say what widths orbits may have."""

from torchorbit.pruning.constraints import CONSTRAINTS, Bounds, Constraint, EnotBounds, Overrides
from torchorbit.pruning.describing import describe, from_description
from torchorbit.pruning.selectors import (
    SELECTORS,
    Global,
    Knapsack,
    Optimal,
    Ratios,
    Removed,
    Selector,
    Task,
    Uniform,
    WidthSelector,
)
from torchorbit.pruning.selectors.trust_region import ScboOptions
from torchorbit.removal.history import Description

__all__ = [
    "CONSTRAINTS",
    "SELECTORS",
    "Bounds",
    "Constraint",
    "Description",
    "EnotBounds",
    "Global",
    "Knapsack",
    "Optimal",
    "Overrides",
    "Ratios",
    "Removed",
    "ScboOptions",
    "Selector",
    "Task",
    "Uniform",
    "WidthSelector",
    "describe",
    "from_description",
]
