"""Orbits that lose all of their units: the branches in which they stood are gone, and leave constants behind.

A layer that is given no channels gives its bias, wherever it stands. What follows is as constant as far as only its
own parameters come in: a batch norm in evaluation, an activation, a dropout. Where the constant meets the rest of the
model, in a residual connection or a gate, it is added or multiplied as a parameter of length one along every dimension
in which it does not vary. Whatever only the branch needed goes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable
from typing import Any

import torch
from torch import Tensor

from torchorbit.arguments import Attr, ByMode, Interpreter, Ref, Size, Transformer, measured_in, operands_of, walk_args
from torchorbit.errors import ArgumentError
from torchorbit.graph.calls import Call
from torchorbit.graph.dag import Graph
from torchorbit.graph.shapes import called, pick
from torchorbit.graph.vertices import ModuleVertex, OperatorVertex, Vertex, vertex_args
from torchorbit.operators.resizing import Resized, smaller_shape
from torchorbit.operators.table import KNOWN, OPERATORS
from torchorbit.orbits.orbit import Orbit


def is_empty(masks: Any) -> bool:
    """Whether nothing is kept of a tensor, or of all tensors in a container, given what is kept of its dimensions."""
    if isinstance(masks, list):
        return any(mask is not None and not mask.any() for mask in masks)
    if isinstance(masks, dict):
        masks = tuple(masks.values())
    return isinstance(masks, tuple) and len(masks) > 0 and all(map(is_empty, masks))


class Emptied:
    """What becomes of vertices, one after the other, when whole orbits go.

    Args:
        orbits: those that lose all units.
        calls: vertex name -> what it calls.
        masks_of: gives what is kept of the dimensions of an argument that is a tensor.
        cut_at: gives what is kept of the parameter or buffer at a path.

    Attributes:
        constants: vertex name -> the result that it always has in evaluation.
    """

    def __init__(
        self,
        orbits: list[Orbit],
        calls: dict[str, Call | OperatorVertex],
        masks_of: Callable[[Any], Any],
        cut_at: Callable[[str], Tensor],
    ):
        self.orbits = orbits
        self.constants: dict[str, Tensor] = {}
        self._calls = calls
        self._masks_of = masks_of
        self.cut_at = cut_at
        self._gone: set[str] = set()
        self._made_of_parameters: dict[str, Callable[[], Resized]] = {}
        self._value = _Constants(self).value

    def runs(self, vertex: ModuleVertex | OperatorVertex, result: Any, resized: Callable[[], Resized]) -> bool:
        """Whether a vertex is still part of the graph.

        Args:
            vertex: the vertex; all before it were asked for.
            result: what is kept of its result's dimensions.
            resized: gives its call with the numbers recomputed.

        Raises:
            ArgumentError: it needs what is gone.
        """
        if is_empty(result):
            self._gone.add(vertex.name)
            return False
        call = self._calls[vertex.name]
        args = {"input": call.args["input"]} if call.operator == "reshape_as" else call.args
        states = {self.state(operand) for operand in operands_of(args, training=False)}
        read = {self.state(value) for value in measured_in(vertex_args(vertex))}
        if not (states | read) & {"gone", "constant"}:
            if "live" not in states | read:
                self._made_of_parameters[vertex.name] = resized
            return True
        if vertex.mode == "training" or (isinstance(vertex, OperatorVertex) and OPERATORS[vertex.operator].effect):
            self._gone.add(vertex.name)
            return False
        if "live" not in states:
            self.constants[vertex.name] = self._constant(vertex, resized(), result)
            return False
        row = KNOWN.get(call.operator)
        meets = call.operator == "cat" or (row is not None and row.elementwise and "gone" not in states)
        if meets and not read & {"gone", "constant"}:
            return True
        raise self._refusal(vertex, call.operator)

    def state(self, arg: Any) -> str:
        """What became of a tensor.

        Returns:
            ``"live"``, ``"constant"`` or ``"gone"``; ``"parameter"`` for what is made of parameters alone; nothing for
            what is no tensor.
        """
        if type(arg) is ByMode:
            return self.state(arg.evaluation)
        if type(arg) is Ref:
            if arg.vertex in self.constants:
                return "constant"
            if arg.vertex in self._gone or is_empty(self._masks_of(arg)):
                return "gone"
            return "parameter" if arg.vertex in self._made_of_parameters else "live"
        if type(arg) is Attr:
            return "gone" if is_empty(self._masks_of(arg)) else "parameter"
        return ""

    def expanded(self, call: Call | OperatorVertex) -> list[tuple[Ref, Attr, tuple[Any, ...]]]:
        """Constants that are concatenated with other tensors have to be as long as they are.

        Returns:
            For each the value that it stands for, the parameter, and the lengths to expand it to.
        """
        if call.operator != "cat":
            return []
        tensors = call.args["tensors"]
        live = next(value for value in tensors if self.state(value) == "live")
        found = []
        for value in tensors:
            if self.state(value) == "constant":
                shape = self.constants[value.vertex].shape
                axis = call.args.get("dim", 0) % len(shape)
                lengths = [-1 if n == axis or length > 1 else Size(live, n) for n, length in enumerate(shape)]
                found.append((value, Attr(self.path(value.vertex)), tuple(lengths)))
        return found

    def left(self, arg: Any, besides: Container[Any]) -> Any:
        """An argument of a vertex that runs: constants are parameters, ``besides`` some; what is gone is left out."""
        return _Left(self, besides).value(arg)

    def check_output(self, output: Any) -> None:
        """Refuse when what the model returns is gone or constant.

        Raises:
            ArgumentError: it is.
        """
        if {self.state(value) for value in walk_args(output)} & {"gone", "constant"}:
            raise self._refused("the model's output would be a constant")

    def check_shapes(self, graph: Graph, run: Callable[[], dict[str, Any]]) -> None:
        """Refuse when the rest no longer fits together.

        Args:
            graph: the smaller graph, with the shapes that its results should have.
            run: gives those that they have.

        Raises:
            ArgumentError: some differ, or it does not run.
        """
        try:
            found = run()
        except RuntimeError as error:
            raise self._refused(f"the rest would not run, {' '.join(str(error).split())}") from None
        for vertex in graph.vertices:
            expected, is_now = graph.shapes.get(vertex.name), found.get(vertex.name)
            if expected != is_now:
                raise self._refused(f"the result of '{vertex.name}' would be of shape {is_now}, not {expected}")

    def path(self, name: str) -> str:
        """Where the parameter is that stands for a constant."""
        return f"{name}_constant"

    def _constant(self, vertex: Vertex, call: Resized, result: Any) -> Tensor:
        value: Tensor | None
        row = KNOWN.get(call.operator)
        becomes = "" if row is None else row.constant
        if any(self.state(operand) == "gone" for operand in operands_of(call.args, training=False)):
            value = self._of_nothing(call)
        elif becomes == "same":
            value = self._value(call.args["input"])
        elif becomes == "viewed":
            value = self._viewed(call, result)
        elif becomes == "moved":
            value = self._moved(call)
        else:
            value = self._computed(call) if becomes == "computed" else None
        shape = smaller_shape(call.shape, result)
        if (
            value is None
            or len(shape) != value.dim()
            or any(length not in (1, whole) for length, whole in zip(value.shape, shape, strict=True))
        ):
            raise self._refusal(vertex, call.operator)
        return value

    def _of_nothing(self, call: Resized) -> Tensor | None:
        """What a layer gives that is given no channels."""
        row = KNOWN.get(call.operator)
        if row is None or not row.bias_of_nothing or row.channels is None:
            return None
        if self.state(call.args["input"]) != "gone" or type(call.args["weight"]) is not Attr:
            return None
        axis = row.channels(len(call.shape), len(call.shape_of("weight")), None)
        bias = call.args.get("bias")
        weight = self.cut_at(call.args["weight"].path)
        if bias is None:
            bias = weight.new_zeros(weight.shape[0])
        elif type(bias) is Attr:
            bias = self.cut_at(bias.path)
        else:
            return None
        shape = [1] * len(call.shape)
        shape[axis] = len(bias)
        return bias.reshape(shape)

    def _viewed(self, call: Resized, result: Any) -> Tensor | None:
        """A constant in other dimensions, where that in which it varies is one of them."""
        value: Tensor = self._value(call.args["input"])
        old = smaller_shape(call.shape_of("input"), call.masks())
        new = smaller_shape(call.shape, result)
        lengths = [1] * len(new)
        varying = [axis for axis, length in enumerate(value.shape) if length > 1]
        if len(varying) > 1:
            return None
        for axis in varying:
            after = math.prod(old[axis + 1 :])
            places = [n for n, length in enumerate(new) if length == old[axis] and math.prod(new[n + 1 :]) == after]
            if not places:
                return None
            lengths[places[0]] = old[axis]
        return value.reshape(lengths)

    def _moved(self, call: Resized) -> Tensor | None:
        """A part of a constant, or all of it in another order, along dimensions in which it does not vary."""
        value: Tensor = self._value(call.args["input"])
        varying = {axis for axis, length in enumerate(value.shape) if length > 1}
        if call.operator == "roll":
            dims = call.args.get("dims", ())
            moved = {dim % value.dim() for dim in ((dims,) if isinstance(dims, int) else dims)}
            return None if varying & moved or not moved else value
        index = call.args["index"]
        entries = list(index) if isinstance(index, tuple) else [index]
        if Ellipsis in entries:
            place = entries.index(Ellipsis)
            entries[place : place + 1] = [slice(None)] * (value.dim() - len(entries) + 1)
        if not all(isinstance(entry, slice) for entry in entries):
            return None
        cut = {axis for axis, entry in enumerate(entries) if entry != slice(None)}
        return None if varying & cut else value

    @torch.no_grad()
    def _computed(self, call: Resized) -> Tensor | None:
        args = dict(call.args)
        if call.operator.startswith("conv"):
            # Without edges, what a kernel of one element sees is the same everywhere.
            if any(n != 1 for n in call.shape_of("weight")[2:]):
                return None
            args.update(stride=1, padding=0)
        elif self._of_the_batch(call):
            return None
        args = {name: self._value(arg) for name, arg in args.items()}
        in_full = OPERATORS[call.operator].in_full
        if in_full is not None:
            full = in_full(call)
            whole = smaller_shape(call.shape_of("input"), call.masks())
            args["input"] = args["input"].expand([whole[n] if n in full else -1 for n in range(len(whole))])
        value = called(OPERATORS[call.operator], args)
        return value if isinstance(value, Tensor) else None

    def _of_the_batch(self, call: Resized) -> bool:
        """Whether it normalizes by statistics of what it is given."""
        args = call.args
        return call.operator == "batch_norm" and (
            args.get("running_mean") is None or self._value(args.get("training")) is True
        )

    def result(self, ref: Ref) -> Any:
        """The result of a vertex, which is constant or made of parameters alone."""
        value = self.constants.get(ref.vertex)
        if value is None:
            call = self._made_of_parameters[ref.vertex]()
            args = {name: self._value(arg) for name, arg in call.args.items()}
            return pick(called(OPERATORS[call.operator], args), ref.index)
        return value

    def _refusal(self, vertex: Vertex, operator: str) -> ArgumentError:
        return self._refused(f"'{vertex.name}' ({operator}) cannot go on with what would be left of its operands")

    def _refused(self, why: str) -> ArgumentError:
        shown = "; ".join([f"{orbit!r} ({', '.join(orbit.sources[:3])})" for orbit in self.orbits[:3]])
        more = f" and {len(self.orbits) - 3} more" if len(self.orbits) > 3 else ""
        return ArgumentError(f"{shown}{more} cannot lose all units: {why}; keep one unit")


class _Constants(Interpreter):
    """Gives what arguments stand for that are constant, or made of parameters alone."""

    def __init__(self, emptied: Emptied):
        self.emptied = emptied

    def ref(self, arg: Ref) -> Any:
        return self.emptied.result(arg)

    def attr(self, arg: Attr) -> Tensor:
        return self.emptied.cut_at(arg.path)


class _Left(Transformer):
    """Gives arguments of a vertex that runs, see `Emptied.left`."""

    def __init__(self, emptied: Emptied, besides: Container[Any]):
        self.emptied = emptied
        self.besides = besides

    def ref(self, arg: Ref) -> Ref | Attr:
        constant = arg.vertex in self.emptied.constants and arg not in self.besides
        return Attr(self.emptied.path(arg.vertex)) if constant else arg

    def by_mode(self, arg: ByMode) -> Any:
        state = self.emptied.state
        if state(arg.evaluation) == "constant" or state(arg.training) == "gone":
            return self.value(arg.evaluation)
        return super().by_mode(arg)

    def tuple_(self, arg: tuple[Any, ...]) -> Any:
        return super().tuple_(tuple(self.there(arg)))

    def list_(self, arg: list[Any]) -> Any:
        return super().list_(self.there(arg))

    def there(self, items: Iterable[Any]) -> list[Any]:
        """What is not gone."""
        return [item for item in items if self.emptied.state(item) != "gone"]
