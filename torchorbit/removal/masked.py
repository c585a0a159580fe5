"""Masked runs: the whole graph with zeros where channels are removed, which is what a removal is proved by.

The whole graph is run with its own weights, vertex by vertex. After every vertex zeros are put where the labels say
removed, and operators that normalize or average over channels do so over those that are kept. This shares no code with
`torchorbit.removal.cutting`: nothing is cut, no size is recomputed. What both start from are the labels, the masks of
what is kept that a `torchorbit.orbits.selection.Selection` makes of them, and the graph with packed projections apart
(`torchorbit.graph.packed`): where that is another graph, it is run without zeros as well, and compared with the model
itself.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from torchorbit.arguments import Attr, Interpreter, Ref
from torchorbit.containers import map_leaves, map_together
from torchorbit.errors import ArgumentError
from torchorbit.graph.calls import Call
from torchorbit.graph.dag import DagModule
from torchorbit.graph.one_level import one_level
from torchorbit.graph.shapes import called, pick
from torchorbit.graph.vertices import InputVertex, ModuleVertex, OperatorVertex, Vertex, last_uses
from torchorbit.operators import Labelled
from torchorbit.operators.normalizations import channel_axis
from torchorbit.operators.sums import reduced_axes
from torchorbit.operators.table import OPERATORS
from torchorbit.orbits.orbit import Orbits
from torchorbit.orbits.selection import Selection

_Masks = list[Tensor | None]


def random_inputs(dag: DagModule, seed: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Random numbers of the recorded sizes and kinds, one sample where the batch size is free."""
    provenance = dag.provenance
    assert provenance is not None
    like = next((p for p in dag.parameters() if p.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(seed)
    dtypes = iter(provenance.input_dtypes)

    def random(shape: torch.Size | None) -> Tensor | None:
        if shape is None:
            return None
        size = (1, *shape[1:]) if provenance.free_batch and shape else tuple(shape)
        dtype = getattr(torch, next(dtypes, "float32"))
        if dtype.is_floating_point:
            return torch.randn(size, generator=generator).to(like.device, like.dtype)
        if dtype.is_complex:
            return torch.randn(size, generator=generator, dtype=dtype).to(like.device)
        return torch.randint(0, 2, size, generator=generator).to(like.device, dtype)

    graph = one_level(dag, separate=False)
    values = {
        given: given.fixed[0] if given.fixed else map_leaves(random, graph.shapes[given.name]) for given in graph.inputs
    }
    return (
        tuple([value for given, value in values.items() if not given.keyword]),
        {given.name: value for given, value in values.items() if given.keyword},
    )


def masked_run(dag: DagModule, selection: Selection, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The output of the whole graph with the removed channels at zero.

    Args:
        dag: the whole graph, in evaluation mode.
        selection: what is removed.
        args: positional inputs.
        kwargs: keyword inputs.
    """
    assert selection.orbits is not None
    return MaskedInterpreter(selection.orbits, selection).run(args, kwargs)


class MaskedInterpreter(Interpreter):
    """Runs the whole graph vertex by vertex, with zeros where channels are removed.

    Args:
        orbits: those of the graph, whose flat form is run.
        selection: what is removed.
    """

    def __init__(self, orbits: Orbits, selection: Selection):
        self.orbits = orbits
        self.model = orbits.model
        self.selection = selection
        self.values: dict[str, Any] = {}
        self.known: dict[int, Tensor] = {}

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The output of the whole graph for some inputs."""
        given = inspect.signature(self.model.dag.forward).bind(*args, **kwargs)
        given.apply_defaults()
        self.values.update(given.arguments)
        last = last_uses(self.model.graph.vertices, self.model.graph.output)
        for position, vertex in enumerate(self.model.graph.vertices):
            if isinstance(vertex, InputVertex):
                continue
            if isinstance(vertex, OperatorVertex) and (vertex.training_only or OPERATORS[vertex.operator].effect):
                continue
            result = self.vertex(vertex)
            self.values[vertex.name] = self.zeroed(result, self.selection.of(vertex.name))
            for name in last.get(position, ()):
                self.values.pop(name, None)
        return self.value(self.model.graph.output)

    def vertex(self, vertex: Vertex) -> Any:
        """The result of a vertex, with the means and norms over channels taken over those that are kept."""
        call = self.model.calls[vertex.name]
        masked = _MASKED.get(call.operator)
        if masked is not None:
            result = masked(_Context(self, call, vertex))
            if result is not None:
                return result
        if isinstance(vertex, ModuleVertex):
            module = self.model.dag.get_submodule(vertex.target)
            args = tuple([self.value(arg) for arg in vertex.args])
            kwargs = {key: self.value(arg) for key, arg in vertex.kwargs.items()}
            if vertex.leaf and call.operator in OPERATORS:
                if getattr(module, "inplace", False):
                    args = tuple([arg.clone() if isinstance(arg, Tensor) else arg for arg in args])
                return module(*args, **kwargs)
            names = [name for name, _ in (*module.named_parameters(), *module.named_buffers())]
            state = {name: self.value(Attr(f"{vertex.target}.{name}")) for name in names}
            return torch.func.functional_call(module, state, args, kwargs)
        return called(OPERATORS[call.operator], {key: self.value(arg) for key, arg in call.args.items()})

    # -- values

    def ref(self, arg: Ref) -> Any:
        """The result of a vertex that ran, with its zeros."""
        return pick(self.values[arg.vertex], arg.index)

    def attr(self, arg: Attr) -> Any:
        """The parameter or buffer, with zeros."""
        tensor = self.model.tensor_at(arg.path).detach()
        values = self.selection.of_tensor(arg.path)
        return tensor if values is None else self.zeroed(tensor, values)

    def masks(self, arg: Any) -> _Masks:
        """For every dimension of an argument that is a tensor, which positions are kept; None where all are."""
        values = self.selection.known(arg)
        return self.of(values) if values and isinstance(values[0], Labelled) else []

    def of(self, values: list[Labelled]) -> _Masks:
        """`masks` of what every reading knows of a tensor."""
        return [None if mask is None else self.tensor(mask) for mask in self.selection.masks(values)]

    def tensor(self, mask: Any) -> Tensor:
        """A mask as a tensor."""
        found = self.known.get(id(mask))
        if found is None:
            found = self.known[id(mask)] = torch.from_numpy(mask)
        return found

    def zeroed(self, value: Any, values: list[Any]) -> Any:
        """A value, or each in a container, with zeros where channels are removed.

        Args:
            value: a result or an attribute.
            values: what every reading knows of it.
        """
        return map_together(self._zeroed, [value, *values])

    def _zeroed(self, found: list[Any]) -> Any:
        value, *values = found
        if isinstance(value, Tensor) and isinstance(values[0], Labelled):
            for axis, mask in enumerate(self.of(values)):
                if mask is not None:
                    value = filled(value, mask, axis, 0)
        return value


def filled(value: Tensor, mask: Tensor, axis: int, number: float) -> Tensor:
    """A tensor with a number wherever a mask along one dimension does not hold."""
    mask = _along(value, mask, axis)
    return torch.where(mask, value, torch.full((), number, dtype=value.dtype, device=value.device))


def _along(value: Tensor, mask: Tensor, axis: int) -> Tensor:
    """A mask shaped to meet a tensor along one dimension.

    Where samples are folded into a dimension of channels there is a copy of the channels for each of them, and the
    number of samples may be another one than when the graph was recorded.
    """
    length, recorded = value.shape[axis], len(mask)
    if length != recorded:
        period = math.gcd(length, recorded)
        if not torch.equal(mask, mask[:period].repeat(recorded // period)):
            raise ArgumentError(f"a dimension of {length} was recorded as {recorded}; run it at the recorded size")
        mask = mask[:period].repeat(length // period)
    shape = [1] * value.dim()
    shape[axis] = length
    return mask.to(value.device).reshape(shape)


class _Context:
    """A call in the masked run."""

    def __init__(self, interpreter: MaskedInterpreter, call: Call | OperatorVertex, vertex: Vertex):
        self.interpreter = interpreter
        self.call = call
        self.vertex = vertex

    @property
    def module(self) -> nn.Module | None:
        """The module that is called, where it is one."""
        if not isinstance(self.vertex, ModuleVertex):
            return None
        return self.interpreter.model.dag.get_submodule(self.vertex.target)

    def __getitem__(self, name: str) -> Any:
        return self.interpreter.value(self.arg(name))

    def arg(self, name: str) -> Any:
        """An argument as it stands in the graph, or its default."""
        if name in self.call.args:
            return self.call.args[name]
        return OPERATORS[self.call.operator].parameters.get(name)

    def masks(self, name: str = "input") -> _Masks:
        return self.interpreter.masks(self.call.args[name])


_Rule = Callable[[_Context], Any]
_MASKED: dict[str, _Rule] = {}


def masked_operators() -> frozenset[str]:
    """The operators that have a meaning of their own in a masked run."""
    return frozenset(_MASKED)


def _masked(*operators: str) -> Callable[[_Rule], _Rule]:
    def register(function: _Rule) -> _Rule:
        for operator in operators:
            _MASKED[operator] = function
        return function

    return register


def _over(context: _Context, name: str = "input") -> tuple[set[int], dict[int, Tensor]]:
    """The dimensions that a reduction goes over, and the masks of those that lose channels."""
    masks = context.masks(name)
    axes = reduced_axes(context["dim"], len(masks))
    return axes, {axis: mask for axis in axes if (mask := masks[axis]) is not None}


def _with_neutral(number: float, name: str = "input") -> _Rule:
    """A reduction in which what is removed has no part once it holds a certain number."""

    def reduce(context: _Context) -> Any:
        masks = context.masks(name)
        axes = reduced_axes(context["dim"], len(masks)) if context.arg("dim") is not None else set(range(len(masks)))
        touched = {axis: mask for axis in axes if (mask := masks[axis]) is not None}
        if not touched:
            return None
        value = context[name]
        number_here = bool(number) if value.dtype == torch.bool else number
        for axis, mask in touched.items():
            value = filled(value, mask, axis, number_here)
        arguments = {key: context[key] for key in context.call.args}
        return called(OPERATORS[context.call.operator], {**arguments, name: value})

    return reduce


_MASKED["softmax"] = _MASKED["log_softmax"] = _MASKED["logsumexp"] = _with_neutral(float("-inf"))
_MASKED["amax"] = _with_neutral(float("-inf"))
_MASKED["amin"] = _with_neutral(float("inf"))
_MASKED["prod"] = _MASKED["all"] = _with_neutral(1.0)


@_masked("norm", "vector_norm")
def _norm(context: _Context) -> Any:
    """Zeros have no part in a norm, unless the smallest number counts most in it."""
    power, name = ("p", "input") if context.call.operator == "norm" else ("ord", "x")
    order = context[power]
    if isinstance(order, (int, float)) and order < 0:
        return _with_neutral(float("inf"), name)(context)
    return None


def _weights(value: Tensor, touched: dict[int, Tensor]) -> Tensor:
    weights = torch.ones((), dtype=value.dtype, device=value.device)
    for axis, mask in touched.items():
        weights = weights * _along(value, mask, axis).to(value.dtype)
    return weights.expand(value.shape)


@_masked("mean")
def _mean(context: _Context) -> Any:
    axes, touched = _over(context)
    if not touched:
        return None
    value = context["input"]
    weights = _weights(value, touched)
    dims, keep = sorted(axes), bool(context["keepdim"])
    return (value * weights).sum(dims, keep) / weights.sum(dims, keep)


def _moments(value: Tensor, touched: dict[int, Tensor], dims: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, sum of squared deviations and count over dimensions, of what is kept."""
    weights = _weights(value, touched)
    count = weights.sum(dims, True)
    mean = (value * weights).sum(dims, True) / count
    return mean, ((value - mean).square() * weights).sum(dims, True), count


@_masked("var", "std")
def _variance(context: _Context) -> Any:
    axes, touched = _over(context)
    if not touched:
        return None
    dims = sorted(axes)
    _, squares, count = _moments(context["input"], touched, dims)
    result = squares / (count - context["correction"])
    result = result.sqrt() if context.call.operator == "std" else result
    return result if context["keepdim"] else result.squeeze(dims)


@_masked("var_mean", "std_mean")
def _variance_and_mean(context: _Context) -> Any:
    axes, touched = _over(context)
    if not touched:
        return None
    dims = sorted(axes)
    mean, squares, count = _moments(context["input"], touched, dims)
    result = squares / (count - context["correction"])
    result = result.sqrt() if context.call.operator == "std_mean" else result
    return (result, mean) if context["keepdim"] else (result.squeeze(dims), mean.squeeze(dims))


@_masked("scaled_dot_product_attention")
def _attention(context: _Context) -> Any:
    """Tokens that are removed have no weight."""
    kept = context.masks("key")[-2]
    if kept is None:
        return None
    query, mask = context["query"], context["attn_mask"] if "attn_mask" in context.call.args else None
    seen = kept.to(query.device)
    if mask is None or mask.dtype == torch.bool:
        mask = seen.expand(query.shape[-2], -1) if mask is None else mask & seen
    else:
        mask = filled(mask.expand(*mask.shape[:-1], len(seen)), seen, mask.dim() - 1, float("-inf"))
    given = {name: context[name] for name in context.call.args if name not in ("query", "key", "value", "attn_mask")}
    function = OPERATORS[context.call.operator].function
    return function(query, context["key"], context["value"], attn_mask=mask, **given)


@_masked("layer_norm", "rms_norm")
def _layer_norm(context: _Context) -> Any:
    masks = context.masks()
    shape = context["normalized_shape"]
    count = 1 if isinstance(shape, int) else len(shape)
    touched = {axis: m for axis, m in enumerate(masks) if m is not None and axis >= len(masks) - count}
    if not touched:
        return None
    value = context["input"]
    dims = list(range(value.dim() - count, value.dim()))
    eps = context["eps"]
    if context.call.operator == "rms_norm":
        eps = torch.finfo(value.dtype).eps if eps is None else eps
        weights = _weights(value, touched)
        squares = (value.square() * weights).sum(dims, True) / weights.sum(dims, True)
        result = value * (squares + eps).rsqrt()
    else:
        mean, squares, number = _moments(value, touched, dims)
        result = (value - mean) * (squares / number + eps).rsqrt()
    return _scaled(context, result, lambda tensor: tensor)


def _scaled(context: _Context, result: Tensor, fit: Callable[[Tensor], Tensor]) -> Tensor:
    weight = context["weight"] if "weight" in context.call.args else None
    bias = context["bias"] if "bias" in context.call.args else None
    if isinstance(weight, Tensor):
        result = result * fit(weight)
    return result + fit(bias) if isinstance(bias, Tensor) else result


@_masked("group_norm")
def _group_norm(context: _Context) -> Any:
    mask = context.masks()[1]
    if mask is None:
        return None
    value, groups = context["input"], context["num_groups"]
    batch, channels, *space = value.shape
    grouped = value.reshape(batch, groups, channels // groups, *space)
    weights = mask.to(value).reshape(1, groups, channels // groups, *[1] * len(space)).expand(grouped.shape)
    dims = list(range(2, grouped.dim()))
    count = weights.sum(dims, True).clamp(min=1)
    mean = (grouped * weights).sum(dims, True) / count
    variance = ((grouped - mean).square() * weights).sum(dims, True) / count
    result = ((grouped - mean) * (variance + context["eps"]).rsqrt()).reshape(value.shape)
    return _scaled(context, result, lambda tensor: tensor.reshape(-1, *[1] * len(space)))


@_masked("batch_norm", "instance_norm")
def _batch_norm(context: _Context) -> Any:
    """Statistics of the batch, over dimensions that lose channels: standardized weights."""
    masks = context.masks()
    channels = channel_axis(len(masks), context.module)
    first = channels + 1 if context.call.operator == "instance_norm" else 0
    dims = [axis for axis in range(first, len(masks)) if axis != channels]
    touched = {axis: mask for axis in dims if (mask := masks[axis]) is not None}
    if not touched or isinstance(context.call.args.get("running_mean"), (Ref, Attr)):
        return None
    value = context["input"]
    mean, squares, count = _moments(value, touched, dims)
    result = (value - mean) * (squares / count + context["eps"]).rsqrt()
    return _scaled(context, result, lambda tensor: tensor.reshape(-1, *[1] * (value.dim() - channels - 1)))
