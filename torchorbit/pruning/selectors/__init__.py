"""Selectors: how many units of which orbits go."""

from torchorbit.pruning.selectors.base import Removed, Selector, Task, WidthSelector
from torchorbit.pruning.selectors.global_ import Global
from torchorbit.pruning.selectors.knapsack import Knapsack
from torchorbit.pruning.selectors.optimal import Optimal
from torchorbit.pruning.selectors.ratios import Ratios
from torchorbit.pruning.selectors.uniform import Uniform

#: What is known by name. Whoever adds a selector adds it here.
SELECTORS: dict[str, type[Selector]] = {
    selector.name: selector for selector in (Uniform, Global, Ratios, Knapsack, Optimal)
}

__all__ = [
    "SELECTORS",
    "Global",
    "Knapsack",
    "Optimal",
    "Ratios",
    "Removed",
    "Selector",
    "Task",
    "Uniform",
    "WidthSelector",
]
