"""Selectors: how many units of which orbits go."""

from torchorbit.pruning.selectors.base import Removed, Selector, Task, WidthSelector
from torchorbit.pruning.selectors.optimal import Optimal
from torchorbit.pruning.selectors.uniform import Uniform

#: What is known by name. Whoever adds a selector adds it here.
SELECTORS: dict[str, type[Selector]] = {selector.name: selector for selector in (Uniform, Optimal)}

__all__ = ["SELECTORS", "Optimal", "Removed", "Selector", "Task", "Uniform", "WidthSelector"]
