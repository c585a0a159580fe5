"""The closed tables, put together from what the families declare (`torchorbit.operators.registry`).

Every way of writing an operation (``x + y``, ``torch.add(x, y)``, ``x.add_(y)``) becomes one operator with one
signature. A saved graph names operators and classes of leaf modules by their names in these tables and nothing else, so
loading one imports nothing and calls nothing that is not listed here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from torchorbit.operators.declaring import Leaf, Operator
    from torchorbit.operators.labelling import Rule

#: Default of a parameter that has none.
REQUIRED = inspect.Parameter.empty

#: Name of an operator -> what is known of it. A graph may hold these.
OPERATORS: dict[str, Operator] = {}
#: Class of modules that is no operator -> what is known of it.
MODULE_OPERATORS: dict[str, Operator] = {}
#: Both.
KNOWN: dict[str, Operator] = {}
#: Name of a class of modules in a saved graph -> what is known of it. These are never looked into.
LEAVES: dict[str, Leaf] = {}
#: Operator, or qualified name of a class of modules -> its label rule.
RULES: dict[str, Rule] = {}
#: Qualified name of a class of modules -> what sets the numbers that it keeps beside its tensors, after these were cut.
RESIZES: dict[str, Callable[[nn.Module], None]] = {}
