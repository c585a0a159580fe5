"""Selectors: how many units of which orbits go."""

from torchorbit.pruning.selectors.base import Removed, Selector, Task, WidthSelector
from torchorbit.pruning.selectors.uniform import Uniform

#: What is known by name. Whoever adds a selector adds it here.
SELECTORS: dict[str, type[Selector]] = {selector.name: selector for selector in (Uniform,)}

__all__ = ["SELECTORS", "Removed", "Selector", "Task", "Uniform", "WidthSelector"]
