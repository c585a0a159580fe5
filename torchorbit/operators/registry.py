"""Puts the tables together from what the families declare, and takes the rules of classes that users bring."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import nn

from torchorbit.errors import ArgumentTypeError
from torchorbit.operators import (
    activations,
    contractions,
    convolutions,
    copying,
    creation,
    dropout,
    elementwise,
    fourier,
    in_graph,
    indexing,
    joining,
    linear_algebra,
    losses,
    normalizations,
    opaque,
    ordering,
    pooling,
    recurrent,
    reductions,
    resampling,
    views,
)
from torchorbit.operators.declaring import Operator
from torchorbit.operators.labelling import Rule
from torchorbit.operators.table import KNOWN, LEAVES, MODULE_OPERATORS, OPERATORS, RESIZES, RULES

#: The files that declare operators, by their names.
FAMILIES = {
    module.__name__.rpartition(".")[2]: module
    for module in (
        convolutions, contractions, recurrent, normalizations, activations, dropout, pooling, resampling, elementwise,
        reductions, ordering, views, indexing, joining, creation, copying, fourier, linear_algebra,
        losses, in_graph, opaque,
    )
}  # fmt: skip


def _declared() -> Iterator[Operator]:
    """All operators, each with what its family says of all of its operators."""
    for family, module in FAMILIES.items():
        for row in module.OPERATORS:
            object.__setattr__(row, "family", family)
            object.__setattr__(row, "needless", {**module.NEEDLESS, **row.needless})
            yield row


def _fill() -> None:
    for row in _declared():
        assert row.name not in KNOWN, f"operator '{row.name}' is declared twice"
        KNOWN[row.name] = row
        (MODULE_OPERATORS if row.style == "module" else OPERATORS)[row.name] = row
        if row.rule is not None:
            RULES[row.name] = row.rule
        for leaf in row.modules:
            assert leaf.name not in LEAVES, f"class '{leaf.name}' is declared twice"
            LEAVES[leaf.name] = leaf


_fill()


def register_rule(
    module_class: type[nn.Module], rule: Rule, *, resize: Callable[[nn.Module], None] | None = None
) -> None:
    """Make a class of modules prunable that conversion keeps whole (``atomic``).

    Args:
        module_class: the class; subclasses need rules of their own.
        rule: what the module does to labels. Positional arguments of its call are named ``"0"``, ``"1"``, ...; its
            parameters and buffers are arguments under their own names.
        resize: called with the module after its parameters and buffers were cut, to set the numbers that it keeps
            beside them (``module.width = module.weight.shape[0]``).

    Raises:
        ArgumentTypeError: ``module_class`` is no class of modules.
    """
    if not (isinstance(module_class, type) and issubclass(module_class, nn.Module)):
        raise ArgumentTypeError(f"module_class is {module_class!r}, expected a class of modules")
    name = f"{module_class.__module__}.{module_class.__qualname__}"
    RULES[name] = rule
    if resize is not None:
        RESIZES[name] = resize
