"""A graph as orbits are read from it: one level of vertices, what they call, and the shapes of their results."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from torch import Tensor, nn

from torchorbit.arguments import Attr, Ref, walk_args
from torchorbit.errors import ArgumentError, ArgumentTypeError
from torchorbit.graph.calls import Call, call_of, tensor_of
from torchorbit.graph.dag import DagModule, Graph
from torchorbit.graph.one_level import one_level
from torchorbit.graph.shapes import ArgumentShapes
from torchorbit.graph.vertices import OperatorVertex, vertex_args
from torchorbit.operators.labelling import SAME_LABELS
from torchorbit.operators.sums import reduced_axes
from torchorbit.operators.table import KNOWN, RULES
from torchorbit.orbits.constants import Constants
from torchorbit.orbits.elsewhere import shapes_elsewhere

_CONVOLUTIONS = frozenset(["conv1d", "conv2d", "conv3d"])
_NORMS = frozenset(["batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm"])
#: Poolings to a length that is given, and over how many of the last dimensions they go.
_POOLED = {f"adaptive_{kind}_pool{n}d": n for kind in ("avg", "max") for n in (1, 2, 3)}


@dataclass(slots=True)
class FlatModel:
    """A graph without nested blocks, and what belongs to it.

    Attributes:
        dag: the graph that it was made from; parameters, buffers and modules are there.
        source: what ``dag.graph`` was then.
        graph: the vertices, with the shapes of all their results.
        calls: vertex name -> what it calls.
        tables: dimensions of parameters that are products of several, with the factors.
        buffers: paths of the buffers that vertices read.
    """

    dag: DagModule
    source: Graph
    graph: Graph
    calls: dict[str, Call | OperatorVertex] = field(default_factory=dict)
    buffers: set[str] = field(default_factory=set)
    tables: dict[tuple[str, int], tuple[int, ...]] = field(default_factory=dict)
    _modules: dict[str, nn.Module] = field(default_factory=dict)
    _constants: Constants | None = None
    _reads: dict[str, frozenset[Any]] | None = None
    _elsewhere: Mapping[str, Any] | None = None

    @classmethod
    def of(
        cls,
        dag: DagModule,
        *,
        input_shapes: Sequence[Sequence[int]] | Mapping[str, Any] = (),
        separate: bool = True,
    ) -> FlatModel:
        """Prepare a graph.

        Args:
            dag: an outermost graph.
            input_shapes: shapes of its inputs, in their order or by their names, where they are not those that it was
                recorded with.
            separate: take apart what is packed in one factor of a projection.

        Raises:
            ArgumentTypeError: ``dag`` is no graph.
            ArgumentError: ``dag`` is a block of a graph.
        """
        if not isinstance(dag, DagModule):
            raise ArgumentTypeError(
                f"this is a {type(dag).__name__}, expected a DagModule; torchorbit.convert makes one"
            )
        if dag.provenance is None:
            raise ArgumentError("this is a block of a graph; give the outermost DagModule")
        model = cls(dag, dag.graph, one_level(dag, separate=separate, input_shapes=input_shapes))
        for vertex in model.graph.vertices:
            call = call_of(vertex, model.module_at)
            if call is not None:
                model.calls[vertex.name] = call
        model.tables = _tables(model.graph)
        return model

    @property
    def constants(self) -> Constants:
        """The tensors that it makes of numbers alone."""
        if self._constants is None:
            self._constants = Constants(self)
        return self._constants

    def compare_with(self, shapes: Mapping[str, Any]) -> None:
        """Take the shapes of all results at another size of the inputs, by which lengths that inputs decide are known.

        Args:
            shapes: vertex name -> the shape of its result; by default they are found when they are asked for.
        """
        self._elsewhere = shapes

    def elsewhere(self, vertex: str, argument: str | None) -> Any:
        """A shape at another size of the inputs than that of the graph; None where no other is known.

        Args:
            vertex: a vertex.
            argument: which argument of it; None for its result.
        """
        if self._elsewhere is None:
            self._elsewhere = shapes_elsewhere(self.dag, self.graph)
        if argument is None:
            return self._elsewhere.get(vertex)
        return ArgumentShapes(self._elsewhere, lambda path: self.tensor_at(path).shape).value(
            self.calls[vertex].args[argument]
        )

    def fixed_lengths(self, vertex: str, argument: str) -> frozenset[int]:
        """The dimensions of an argument that have the same length at every size of the inputs.

        That is looked for where they are made, and no farther than poolings, stacks and what keeps dimensions.
        """
        return self._fixed_lengths(self.calls[vertex].args[argument])

    def _fixed_lengths(self, arg: Any) -> frozenset[int]:
        if type(arg) is not Ref or arg.index or arg.vertex not in self.calls:
            return frozenset()
        call, rank = self.calls[arg.vertex], len(self.graph.shapes[arg.vertex])
        args, pooled = call.args, _POOLED.get(call.operator)
        if pooled is not None:
            lengths = args["output_size"]
            lengths = (lengths,) * pooled if type(lengths) is int else lengths
            return frozenset([rank - pooled + n for n, length in enumerate(lengths) if type(length) is int])
        if call.operator == "reshape":
            return frozenset([axis for axis, size in enumerate(args["shape"]) if type(size) is int and size > 0])
        if call.operator == "stack":
            return frozenset([args.get("dim", 0) % rank])
        if args.get("keepdim") is True and KNOWN[call.operator].reduces:
            return frozenset(reduced_axes(args.get("dim"), rank))
        if call.operator in _CONVOLUTIONS and self._is_of_points(call):
            return self._fixed_lengths(args["input"]) - {0, 1}
        if call.operator == "permute":
            inside = self._fixed_lengths(args["input"])
            return frozenset([axis for axis, source in enumerate(args["dims"]) if source % rank in inside])
        one = sum(type(operand) is Ref for operand in args.values()) == 1
        if one and (call.operator in _NORMS or RULES.get(call.operator) in SAME_LABELS):
            return self._fixed_lengths(args.get("input"))
        return frozenset()

    def _is_of_points(self, call: Call | OperatorVertex) -> bool:
        """Whether a convolution looks at one place at a time, and adds none around them."""
        weight, padding = call.args.get("weight"), call.args.get("padding", 0)
        if type(weight) is not Attr or set(self.tensor_at(weight.path).shape[2:]) != {1}:
            return False
        return padding in (0, "same", "valid") or not any(padding)

    def reads(self, name: str) -> frozenset[Any]:
        """Which of several results of a vertex anything reads; None is among them where all are read at once."""
        if self._reads is None:
            found: dict[str, set[Any]] = {}
            for arg in [
                *walk_args(self.graph.output),
                *chain(*[walk_args(vertex_args(v)) for v in self.graph.vertices]),
            ]:
                if type(arg) is Ref:
                    found.setdefault(arg.vertex, set()).add(arg.index[0] if arg.index else None)
            self._reads = {vertex: frozenset(items) for vertex, items in found.items()}
        return self._reads.get(name, frozenset())

    def look_again(self) -> None:
        """Forget which modules were found: some may have been replaced since."""
        self._modules.clear()

    def module_at(self, path: str) -> nn.Module:
        """The submodule at a path."""
        module = self._modules.get(path)
        if module is None:
            owner, _, name = path.rpartition(".")
            module = self.module_at(owner)._modules.get(name) if path else self.dag
            if module is None:
                raise AttributeError(f"there is no submodule '{path}'")
            self._modules[path] = module
        return module

    def tensor_at(self, path: str) -> Tensor:
        """The parameter or buffer at a path."""
        owner, _, name = path.rpartition(".")
        tensor = tensor_of(self.module_at(owner), name)
        if tensor is None:
            raise AttributeError(f"there is no tensor '{path}'")
        return tensor

    def shape_of(self, arg: Any) -> Any:
        """The shape of an argument that is a tensor, of a container those of what it holds; None for anything else."""
        return ArgumentShapes(self.graph.shapes, lambda path: self.tensor_at(path).shape).value(arg)


def _tables(graph: Graph) -> dict[tuple[str, int], tuple[int, ...]]:
    """Tables of weights: a matrix product picks from the rows, and what it gives is then reshaped to weights."""
    found: dict[tuple[str, int], tuple[int, ...]] = {}
    products: dict[str, str] = {}
    for vertex in graph.vertices:
        if not isinstance(vertex, OperatorVertex):
            continue
        source = vertex.args.get("input")
        if vertex.operator == "matmul" and type(vertex.args["other"]) is Attr:
            products[vertex.name] = vertex.args["other"].path
        elif vertex.operator == "reshape" and type(source) is Ref and source.vertex in products:
            before, after = graph.shapes[source.vertex], graph.shapes[vertex.name]
            if len(before) == 2 and len(after) > 2 and math.prod(after[1:]) and after[0] % before[0] == 0:
                factors = (after[0] // before[0], *after[1:])
                if sum(factor > 1 for factor in factors) > 1 and math.prod(factors) == before[1]:
                    found[products[source.vertex], 1] = factors
    return found
