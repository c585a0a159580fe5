"""`explain`: which blocks of a model convert by themselves, and which don't."""

from __future__ import annotations

import contextvars
import dataclasses
from typing import Any

import torch
from tabulate import tabulate
from torch import nn

from torchorbit.conversion import patching, recorder
from torchorbit.conversion.converting import convert
from torchorbit.conversion.preserving import Snapshot, contents_kept, preserved
from torchorbit.conversion.wrappers import packages_of, without_caches
from torchorbit.errors import ConversionError
from torchorbit.interrupts import InterruptsHeldBack, interruptible
from torchorbit.operators.modules import leaf_name


@dataclasses.dataclass(frozen=True, slots=True)
class BlockReport:
    """What became of one block.

    Attributes:
        path: path of the block in the model; ``""`` is the model itself.
        cls: name of its class.
        converts: whether it converts by itself, with all that it holds.
        error: why not, or None.
    """

    path: str
    cls: str
    converts: bool
    error: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class Explanation:
    """The blocks of a model from the outside in; what is inside a block that converts is not listed.

    Prints as a table.
    """

    blocks: tuple[BlockReport, ...]

    @property
    def converts(self) -> bool:
        """Whether the whole model converts."""
        return self.blocks[0].converts

    @property
    def convertible(self) -> tuple[str, ...]:
        """Paths of the outermost blocks that convert."""
        return tuple([block.path for block in self.blocks if block.converts])

    def __str__(self) -> str:
        rows = [(b.path or "(model)", b.cls, "yes" if b.converts else "no", b.error or "") for b in self.blocks]
        return tabulate(rows, headers=("block", "class", "converts", "why not"))


def explain(model: nn.Module, example_inputs: Any) -> Explanation:
    """Say which blocks of a model convert by themselves (torch-dag: ``look_for_dagable_modules``).

    The model is converted; if that fails, each of its blocks is, with the inputs it gets when the model runs, and so
    on inwards. Where the model does not run on meta tensors it is run with its own weights.

    Args:
        model: any module.
        example_inputs: as for `torchorbit.convert`.

    Returns:
        A report per block.

    Raises:
        ConversionError: the model's forward fails before it reaches any block.
    """
    with patching.lock, InterruptsHeldBack():
        return _explain(model, example_inputs)


def _explain(model: nn.Module, example_inputs: Any) -> Explanation:
    whole = _attempt(model, "", example_inputs)
    if whole.converts:
        return Explanation((whole,))
    calls = _observe(model, example_inputs)
    reports = [whole]

    def descend(module: nn.Module, path: str) -> None:
        for name, child in module.named_children():
            inner = f"{path}.{name}" if path else name
            if leaf_name(child) is not None:
                continue
            if id(child) not in calls:
                descend(child, inner)
                continue
            report = _attempt(child, inner, calls[id(child)])
            reports.append(report)
            if not report.converts:
                descend(child, inner)

    descend(model, "")
    return Explanation(tuple(reports))


def _attempt(module: nn.Module, path: str, inputs: Any) -> BlockReport:
    name = type(module).__name__
    try:
        convert(module, inputs)
    except (ConversionError, TypeError) as error:
        return BlockReport(path, name, False, str(error))
    return BlockReport(path, name, True, None)


def _observe(model: nn.Module, example: Any) -> dict[int, Any]:
    """The inputs of the first call of every submodule, by its id."""
    calls: dict[int, Any] = {}
    snapshot = Snapshot(model)
    with without_caches(packages_of(model), snapshot.caches):
        contextvars.copy_context().run(_run_observed, model, example, snapshot, calls)
    return calls


def _run_observed(model: nn.Module, example: Any, snapshot: Snapshot, calls: dict[int, Any]) -> None:
    """Run a model, and put down the inputs of the first call of every submodule."""

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        names = [name for name, _ in zip(type(module).forward.__code__.co_varnames[1:], args, strict=False)]
        calls.setdefault(id(module), {**dict(zip(names, args, strict=False)), **kwargs} if kwargs else args)

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(example, dict):
        kwargs = example
    else:
        args = tuple(example) if isinstance(example, (tuple, list)) else (example,)
    try:
        with preserved(snapshot), contents_kept(snapshot.outside), torch.no_grad():
            for module in snapshot.modules[1:]:
                module.register_forward_pre_hook(note, with_kwargs=True)
            try:
                with recorder.on_meta(model):
                    meta = torch.utils._pytree.tree_map_only(torch.Tensor, lambda t: t.to("meta"), (args, kwargs))
                    with interruptible():
                        model(*meta[0], **meta[1])
            except Exception:
                calls.clear()
                snapshot.copy_tensors()
                with interruptible():
                    model(*args, **kwargs)
    except Exception as error:
        # What was reached before the forward failed can be tried all the same.
        if not calls:
            raise ConversionError("run", "", None, f"{type(error).__name__}: {error}") from error
