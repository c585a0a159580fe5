"""Cut the state of an optimizer along with the parameters that it belongs to."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from torchorbit.errors import ArgumentError, ArgumentTypeError
from torchorbit.removal.tensors import cut_tensor


def check(optimizer: object, parameters: Collection[nn.Parameter]) -> None:
    """Make sure that an optimizer is one, and of a graph.

    Args:
        optimizer: what was given as one.
        parameters: of the graph that is to be pruned.

    Raises:
        ArgumentTypeError: it is none.
        ArgumentError: it has none of the parameters.
    """
    if not (hasattr(optimizer, "state") and hasattr(optimizer, "param_groups")):
        raise ArgumentTypeError(f"optimizer is a {type(optimizer).__name__}, expected a torch.optim.Optimizer")
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if parameters and not any(id(parameter) in held for parameter in parameters):
        raise ArgumentError(
            f"the {type(optimizer).__name__} has none of the graph's parameters: it is of another model or a copy, or "
            "went along with an earlier pruning of this graph, whose result has its parameters now; make it of the "
            "parameters of the graph that is pruned"
        )


@torch.no_grad()
def cut_state(
    optimizer: Optimizer,
    cuts: Mapping[nn.Parameter, tuple[torch.Size, list[Tensor | None]]],
    replaced: Mapping[nn.Parameter, nn.Parameter],
    *,
    gone: Collection[nn.Parameter] = (),
    new: Iterable[nn.Parameter] = (),
) -> None:
    """Slice momenta and averages as their parameters were sliced.

    Works for any optimizer that keeps tensors shaped like the parameter, or like it with dimensions left out or of
    length one (Adafactor's row and column statistics). A tensor of any other shape cannot be cut; the state of that
    parameter is dropped, with a warning, and the optimizer makes it anew.

    Args:
        optimizer: any optimizer of torch, or one built like them.
        cuts: parameter -> the shape it had, and the positions kept along each dimension, None where all are.
        replaced: parameter -> the one that takes its place, or itself.
        gone: parameters that the model no longer has.
        new: parameters that it did not have; they join the first group.
    """
    new = list(new)
    if isinstance(optimizer, LBFGS):
        # Its history is of all parameters as one vector, and belongs to the first of them.
        if (cuts or gone or new) and optimizer.state:
            warnings.warn("the history of LBFGS is of all parameters at once; it is made anew", stacklevel=3)
            optimizer.state.clear()
        optimizer._numel_cache = None
    else:
        _cut_each(optimizer, cuts)
    without = {id(parameter) for parameter in gone}
    for group in optimizer.param_groups:
        # In place, for some optimizers keep the list.
        group["params"][:] = [replaced.get(old, old) for old in group["params"] if id(old) not in without]
    for old, successor in replaced.items():
        if successor is not old and old in optimizer.state:
            optimizer.state[successor] = optimizer.state.pop(old)
    for parameter in gone:
        optimizer.state.pop(parameter, None)
    optimizer.param_groups[0]["params"] += new


def _cut_each(optimizer: Optimizer, cuts: Mapping[nn.Parameter, tuple[torch.Size, list[Tensor | None]]]) -> None:
    for parameter, (shape, kept) in cuts.items():
        state = optimizer.state.get(parameter)
        if not state:
            continue
        for key, value in list(state.items()):
            if not isinstance(value, Tensor) or value.numel() == 1:
                continue
            cut = _cut(key, value, shape, kept)
            if cut is None:
                warnings.warn(
                    f"the optimizer's state '{key}' of shape {tuple(value.shape)} does not follow the shape of its "
                    f"parameter, {tuple(shape)}; the state of that parameter is made anew",
                    stacklevel=4,
                )
                del optimizer.state[parameter]
                break
            state[key] = cut


def _cut(key: str, value: Tensor, shape: torch.Size, kept: list[Tensor | None]) -> Tensor | None:
    """A tensor of an optimizer's state, cut; None where it does not follow the parameter's shape."""
    axes: list[int] | None = None
    if value.dim() == len(shape):
        axes = list(range(len(shape)))
    elif value.dim() == len(shape) - 1 >= 1:
        # Statistics over one of the last two dimensions.
        over_last = [*range(len(shape) - 1)]
        over_last_but_one = [*range(len(shape) - 2), len(shape) - 1]
        choices = [over_last_but_one, over_last] if "col" in key else [over_last, over_last_but_one]
        axes = next((c for c in choices if tuple(value.shape) == tuple([shape[axis] for axis in c])), None)
    if axes is None:
        return None
    if any(length not in (1, shape[axis]) for length, axis in zip(value.shape, axes, strict=True)):
        return None
    return cut_tensor(
        value, [kept[axis] if n == shape[axis] else None for n, axis in zip(value.shape, axes, strict=True)]
    )
