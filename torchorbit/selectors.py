"""Selectors: how many units of which orbits go; and constraints, which say what widths orbits may have."""

from torchorbit.pruning.constraints import Bounds, Constraint, EnotBounds, Overrides
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

__all__ = [
    "SELECTORS",
    "Bounds",
    "Constraint",
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
]
