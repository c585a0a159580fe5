"""Small models and comparisons that several tests use."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import torchorbit
from torchorbit.graph.loading import unpack
from torchorbit.graph.saving import pack
from torchorbit.graph.vertices import ModuleVertex, OperatorVertex

#: What outputs may differ by where both ways to them run the same operators in the same order, relative to the largest
#: one. They agree to the last bit, unless tensors are laid out in memory in another way, which may choose other kernels:
#: in float32 this allows for the rounding of models with few layers, in float64 for that of all.
TOLERANCE = 1e-5
TOLERANCE_IN_FLOAT64 = 1e-12


class Computes(nn.Module):
    """A model whose forward is a function of its inputs.

    Args:
        function: what the forward computes. It is given the module first where ``members`` are.
        members: submodules, parameters (as `nn.Parameter`) and buffers (as tensors) by name.
    """

    def __init__(self, function: Callable[..., Any], **members: Any):
        super().__init__()
        self._function = (function, bool(members))
        for name, member in members.items():
            if isinstance(member, Tensor) and not isinstance(member, nn.Parameter):
                self.register_buffer(name, member)
            else:
                setattr(self, name, member)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        function, with_self = self._function
        return function(self, *args, **kwargs) if with_self else function(*args, **kwargs)


def _plain(value: Any) -> Any:
    """Only what is in a container matters, and how a named tuple is called: after a file its class is another one."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        items = tuple([_plain(item) for item in value])
        fields = getattr(value, "_fields", None) or getattr(value, "__match_args__", None)
        return (type(value).__name__, fields, items) if fields else items
    if dataclasses.is_dataclass(value) or type(value).__name__ == "FieldRecord":
        return {key: _plain(item) for key, item in vars(value).items() if not key.startswith("_")}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def assert_same(ours: Any, theirs: Any, tolerance: float | None = None) -> None:
    """Outputs of the same structure whose tensors have equal dtypes and shapes, and values within the tolerance."""
    ours_flat, ours_structure = pytree.tree_flatten(_plain(ours))
    theirs_flat, theirs_structure = pytree.tree_flatten(_plain(theirs))
    assert ours_structure == theirs_structure
    for a, b in zip(ours_flat, theirs_flat, strict=True):
        if not isinstance(b, Tensor):
            assert type(a) is type(b)
            assert a == b
            continue
        assert (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)
        if not b.numel():
            continue
        if not (b.is_floating_point() or b.is_complex()):
            assert torch.equal(a, b)
            continue
        a, b = torch.nan_to_num(a.detach()), torch.nan_to_num(b.detach())
        difference, largest = (a - b).abs().max().item(), b.abs().max().item()
        allowed = tolerance
        if allowed is None:
            allowed = TOLERANCE_IN_FLOAT64 if b.dtype in (torch.float64, torch.complex128) else TOLERANCE
        assert difference <= allowed * largest, f"differs by {difference:.3g}, the largest output is {largest:.3g}"


def assert_equal(ours: Any, theirs: Any) -> None:
    """Outputs that are the same to the last bit."""
    assert_same(ours, theirs, tolerance=0.0)


def reloaded(dag: torchorbit.DagModule) -> torchorbit.DagModule:
    """A graph after a trip through text, as in a file."""
    document, tensors = pack(dag)
    return unpack(json.loads(json.dumps(document)), tensors)


def outcome(model: nn.Module, inputs: Any, seed: int = 0) -> Any:
    """What a model returns, from a random state of its own; it may write into its inputs."""
    inputs = pytree.tree_map_only(torch.Tensor, torch.clone, inputs)
    torch.manual_seed(seed)
    with torch.no_grad():
        if isinstance(inputs, Mapping):
            return model(**inputs)
        return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def assert_converts(
    model: nn.Module | Callable[..., Any], example: Any, *others: Any, atomic: Any = (), saved: bool = True
) -> torchorbit.DagModule:
    """Convert a model in evaluation mode; compare it on the example, on other inputs, flat, and saved and loaded.

    Where no other inputs are given, the example's tensors are repeated to a batch of five.
    """
    model = model if isinstance(model, nn.Module) else Computes(model)
    model.eval()
    dag = torchorbit.convert(model, example, atomic=atomic)
    every = [example, *others] if others else [example, wider(example)]
    for inputs in every:
        expected = outcome(model, inputs)
        assert_same(outcome(dag, inputs), expected)
    flat = dag.flatten()
    assert not any(isinstance(flat.get_submodule(v.target), torchorbit.DagModule) for v in module_vertices(flat))
    assert_same(outcome(flat, every[-1]), outcome(model, every[-1]))
    if saved:
        assert_equal(outcome(reloaded(dag), every[-1]), outcome(dag, every[-1]))
    return dag


def refusal(model: nn.Module | Callable[..., Any], example: Any) -> str | None:
    """Why a model is not converted, or None where it is."""
    try:
        torchorbit.convert(model if isinstance(model, nn.Module) else Computes(model), example)
    except torchorbit.ConversionError as error:
        return str(error)
    return None


def by_source(*functions: Callable[..., Any]) -> list[Any]:
    """Parameters for pytest that are named by their source; every function stands on a line of its own."""
    found = []
    for function in functions:
        source = inspect.getsource(function).strip().removesuffix(",")
        found.append(
            pytest.param(function, id=function.__name__ if source.startswith("def") else source.partition(": ")[2])
        )
    return found


def wider(example: Any, batch: int = 5) -> Any:
    """Inputs like the example with another batch size: tensors as long as the first one in their first dimension."""
    length = next(t for t in pytree.tree_leaves(example) if isinstance(t, Tensor)).shape[0]

    def widen(tensor: Tensor) -> Tensor:
        if not tensor.dim() or tensor.shape[0] != length:
            return tensor
        if tensor.is_floating_point():
            return torch.randn(batch, *tensor.shape[1:], dtype=tensor.dtype)
        return tensor[torch.arange(batch) % length]

    return pytree.tree_map_only(torch.Tensor, widen, example)


def operators(dag: torchorbit.DagModule) -> list[str]:
    """Names of all operators, blocks included."""
    return [vertex.operator for _, vertex in dag.all_vertices() if isinstance(vertex, OperatorVertex)]


def module_vertices(dag: torchorbit.DagModule) -> list[ModuleVertex]:
    """The module vertices of the outermost level."""
    return [vertex for vertex in dag.vertices if isinstance(vertex, ModuleVertex)]


def train_together(first: nn.Module, second: nn.Module, inputs: tuple[Any, ...]) -> None:
    """One training step's forward and backward on both, from the same random state."""
    for model in (first, second):
        model.train()
        torch.manual_seed(0)
        model.zero_grad()
        out = model(*inputs)
        sum(t.square().mean() for t in pytree.tree_leaves(out) if isinstance(t, Tensor)).backward()


def copies(model: nn.Module, example: Any) -> tuple[nn.Module, torchorbit.DagModule]:
    """A model and the graph of a copy of it: they share nothing, so that training one does not change the other."""
    return model, torchorbit.convert(copy.deepcopy(model), example)


def stir(model: nn.Module) -> nn.Module:
    """Give every parameter and statistic a value that matters.

    Fresh models hide mistakes: layer scales of 1e-6 and branches that start at zero switch blocks off, norms that
    start at one and statistics at zero are the identity, and in deep convnets the signal dies on its way.
    """
    generator = torch.Generator().manual_seed(1)

    def normal(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator)

    def around_one(tensor: Tensor) -> Tensor:
        return 0.7 + 0.6 * torch.rand(tensor.shape, generator=generator)

    matrices = {id(m.weight) for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))}
    with torch.no_grad():
        for tensor in model.parameters():
            largest = tensor.abs().max()
            if id(tensor) in matrices:
                tensor.copy_(normal(tensor) * 1.4 / tensor[0].numel() ** 0.5)
            elif largest == 0:
                tensor.copy_(0.1 * normal(tensor))
            elif largest < 1e-2 and tensor.dim() == 1:  # a layer scale
                tensor.copy_(0.3 * around_one(tensor))
            else:
                tensor.mul_(around_one(tensor))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.1 * normal(buffer))
            elif name.endswith("running_var"):
                buffer.copy_(around_one(buffer))
    return model
