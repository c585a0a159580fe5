"""Check a rule: remove channels of a small model that uses it, and compare with what the whole model computes.

Writing a rule
==============

A rule says what a module or operator does to the labels of its operands. It is called once per reading of the graph
with a `torchorbit.operators.Operands`, and does three things:

- it **ties** what must be removed together: ``operands.labels.meet(first, second, ...)`` for dimensions of equal length
  whose positions correspond. ``meet`` gives back the labels to go on with, and it freezes what meets a dimension that
  has none;
- it **freezes** what may not be removed: ``operands.freeze(tensor)``, or ``operands.freeze(dim)`` for one dimension of
  one. When in doubt, freeze: that costs channels, never a wrong result;
- it **returns** the labels of its result, one entry per dimension: a list for a tensor, a tuple of `Labelled` for
  several. ``None`` stands for a dimension that is no matter of channels.

``operands.source(dim)`` and ``operands.sink(dim)`` say that the vertex makes or consumes channels; they only name
orbits. A rule never looks at the rest of the graph, and never at values.

A scale per channel, kept whole by ``atomic``, takes this much::

    class Scale(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.width = width
            self.weight = nn.Parameter(torch.randn(width))

        def forward(self, x):
            assert x.shape[1] == self.width
            return x * self.weight[:, None, None]

    def scale(operands):
        x, weight = operands.tensor("0"), operands.tensor("weight")
        return [x.dims[0], operands.labels.meet(x.dims[1], weight.dims[0]), *x.dims[2:]]

    def resize(module):
        module.width = module.weight.shape[0]

    torchorbit.rules.register_rule(Scale, scale, resize=resize)

    model = nn.Sequential(nn.Conv2d(3, 8, 3), Scale(8), nn.Conv2d(8, 4, 1))
    torchorbit.rules.check_rule(model, torch.randn(1, 3, 9, 9), atomic=[Scale])  # how many removals were checked

Positional arguments of the module's call are named ``"0"``, ``"1"``, ...; its parameters and buffers go by their own
names. Where the module keeps numbers beside its tensors, ``resize`` sets them anew after these were cut.

What is left must compute what the whole module computes when zeros stand in for the removed channels of its inputs and
parameters, up to zeros in the removed channels of its result. A module that averages or normalizes over channels does
not: write it with operators of torch and leave it out of ``atomic``, or freeze the dimension that it averages over.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from torchorbit.conversion import convert
from torchorbit.orbits.discovery import find_orbits
from torchorbit.orbits.orbit import Orbit

_TOLERANCE = 1e-4
_NARROW = 8  # of wider orbits so many units are tried, of narrow ones all

_BatchNorm = nn.modules.batchnorm._NormBase


def check_rule(model: nn.Module, example_inputs: Any, *, atomic: Sequence[type[nn.Module]] = (), seed: int = 0) -> int:
    """Check the rules that a model needs: remove channels, and compare with the whole model in which they are zero.

    Removed are one unit at a time from every orbit (all units where there are at most eight, eight at random
    otherwise), then half of every orbit at once. The model itself is left alone: a copy of it is used, with weights and
    inputs of random numbers, so that no two channels are alike.

    Args:
        model: a small model that uses what is to be checked, with channels that can be removed before and after it.
        example_inputs: a tensor, a tuple of positional arguments or a dict of keyword arguments.
        atomic: classes of modules that are kept whole, as for `torchorbit.convert`.
        seed: of weights, inputs, and of the choice of units.

    Returns:
        How many removals were checked. Where this is 0 nothing can be removed, and nothing was proved.

    Raises:
        AssertionError: what is left does not run, or its output differs from that of the whole model by more than
            1e-4 of the largest output. The message names the orbit and the unit.
        ConversionError: the model cannot be converted.
    """
    from torchorbit.removal.cutting import remove_channels
    from torchorbit.removal.proof import verify_removal

    generator = torch.Generator().manual_seed(seed)
    model = copy.deepcopy(model).eval()
    _randomize(model, generator)
    inputs = pytree.tree_map_only(Tensor, lambda tensor: _alike(tensor, generator), example_inputs)
    dag = convert(model, inputs, atomic=atomic)
    orbits = find_orbits(dag)

    def check(removed: dict[Orbit, list[int]], what: str) -> None:
        try:
            difference = verify_removal(dag, remove_channels(dag, removed), removed, inputs)
        except Exception as error:
            raise AssertionError(f"after removing {what} the model does not run: {error}") from error
        if not difference <= _TOLERANCE:
            raise AssertionError(
                f"after removing {what} the output differs by {difference:.3g} of the largest output, more than "
                f"{_TOLERANCE:g}"
            )

    choice = random.Random(seed)
    checked = 0
    for orbit in orbits:
        units: Sequence[int] = range(orbit.width)
        if orbit.width > _NARROW:
            units = sorted(choice.sample(units, _NARROW))
        for unit in units:
            check({orbit: [unit]}, f"unit {unit} of {orbit}")
            checked += 1
    if len(orbits):
        halves = {orbit: choice.sample(range(orbit.width), orbit.width // 2) for orbit in orbits}
        check(halves, f"half of every orbit {_listed(halves)}")
        checked += 1
    return checked


def _listed(removed: dict[Orbit, list[int]]) -> str:
    shown = [f"{sorted(units)} of {orbit!r}" for orbit, units in removed.items()]
    return f"({', '.join(shown[:6])}{', ...' if len(shown) > 6 else ''})"


@torch.no_grad()
def _randomize(model: nn.Module, generator: torch.Generator) -> None:
    """Give every channel weights of its own: fresh scales of one and shifts of zero would hide a mistake."""

    def around_one(tensor: Tensor) -> Tensor:
        return 0.7 + 0.6 * torch.rand(tensor.shape, generator=generator).to(tensor)

    for parameter in model.parameters():
        if parameter.is_floating_point():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            parameter.mul_(around_one(parameter)).add_(0.05 * noise)
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.add_(0.1 * torch.randn(module.running_mean.shape, generator=generator))
            module.running_var.mul_(around_one(module.running_var))


def _alike(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Random numbers of the same shape; what is no floating-point tensor is taken as it is."""
    if not tensor.is_floating_point():
        return tensor
    return torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype, device="cpu").to(tensor.device)
