"""Remove units from a graph: every tensor is cut, every stored size recomputed."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torchorbit.arguments import Attr, Ref, Size, Transformer, map_args, walk_args
from torchorbit.errors import ArgumentTypeError
from torchorbit.graph.dag import Container, DagModule, Graph, blank
from torchorbit.graph.one_level import keep_shapes
from torchorbit.graph.shapes import complete
from torchorbit.graph.vertices import InputVertex, ModuleVertex, OperatorVertex, Vertex, refs_in, vertex_args
from torchorbit.graph.writing import Writer
from torchorbit.labels import Mask
from torchorbit.operators import KNOWN, LEAVES, RESIZES, Mixing
from torchorbit.operators.resizing import Resized, restored, smaller_shape
from torchorbit.orbits.orbit import Orbit, Orbits
from torchorbit.orbits.selection import Selection
from torchorbit.removal.emptying import Emptied
from torchorbit.removal.history import by_hand, continued
from torchorbit.removal.optimizers import cut_state

# What makes a module this graph and no other; the rest, hooks say, stays when a graph is changed in place.
_OF_A_GRAPH = (
    "graph", "provenance", "training", "_levels", "_parameters", "_buffers", "_non_persistent_buffers_set", "_modules",
)  # fmt: skip


def remove_channels(
    dag: DagModule,
    removed: Mapping[Orbit, Iterable[int]],
    *,
    inplace: bool = False,
    optimizer: Optimizer | None = None,
    allow_empty: bool = False,
    adjust_dropout: bool = False,
) -> DagModule:
    """Remove units of orbits.

    Parameters and buffers are cut along every dimension that loses channels, and every size that the graph stores is
    recomputed. What is left computes what the whole graph would compute with the removed channels at zero, where
    operators that normalize or average over channels do so over those that are kept.

    Args:
        dag: the graph that `torchorbit.find_orbits` was given.
        removed: orbit -> positions of the units to remove.
        inplace: change ``dag`` itself; its parameters stay the same objects, smaller. The model that it was converted
            from has these parameters, too, and no longer runs. Hooks of the graph stay, those of its blocks go with
            the blocks. Otherwise ``dag`` is left as it was and shares nothing with the result.
        optimizer: has the graph's parameters; its state (momenta, averages) is cut along with them, so that training
            goes on without a jump. Where the graph is a new one, it has the new one's parameters from then on.
        allow_empty: let an orbit lose all of its units, and with them the branch that they stood in: its layers go, and
            what is left of it, the biases that it still adds or multiplies with in evaluation, becomes a parameter
            (in the optimizer's first group, where one is given).
        adjust_dropout: let every dropout be as much less probable as there are fewer channels that it drops (of one
            with 0.5 on half of its channels 0.25 is left), since a smaller network needs less of it (TorchPruner).

    Returns:
        The smaller graph: one level of vertices, a `DagModule` like any other. Its ``state_dict()`` has the same keys,
        unless branches went.

    Raises:
        ArgumentError: an orbit is not one of this graph's, a position is out of range, or an orbit would lose all of
            its
            units and may not, or cannot because the rest of the model needs more than a constant of it. The graph is
            then untouched.
        ArgumentTypeError: ``removed`` holds something else than orbits and integers, or ``optimizer`` is none.
    """
    selection = Selection(removed, dag, allow_empty=allow_empty)
    if selection.orbits is None:
        from torchorbit.orbits.discovery import find_orbits

        selection.adopt(find_orbits(dag))
    if optimizer is not None and not (hasattr(optimizer, "state") and hasattr(optimizer, "param_groups")):
        raise ArgumentTypeError(f"optimizer is a {type(optimizer).__name__}, expected a torch.optim.Optimizer")
    parameters = list(dag.parameters())
    cut = _Cut(selection, dag, adjust_dropout)
    units = sum(len(positions) for positions in selection.removed.values())
    history = continued(cut.model, by_hand(units)) if units else dag.history
    smaller = cut.build(share=inplace)
    if inplace:
        cut.replace(dag, smaller)
        smaller = dag
    smaller.history = history
    if optimizer is not None:
        replaced = {old: old if inplace else new for old, new in cut.made_parameters.items()}
        gone = [parameter for parameter in parameters if parameter not in replaced]
        cut_state(optimizer, cut.cuts, replaced, gone=gone, new=cut.constants)
    return smaller


class _Cut:
    def __init__(self, selection: Selection, dag: DagModule, adjust_dropout: bool):
        assert selection.orbits is not None
        self.adjust_dropout = adjust_dropout
        self.selection = selection
        self.orbits: Orbits = selection.orbits
        self.model = self.orbits.model
        self.dag = dag
        self.settled: dict[int, list[_Leaf]] = {}  # id of a leaf -> it, and those that take its place in other calls
        self.cuts: dict[nn.Parameter, tuple[torch.Size, list[Tensor | None]]] = {}
        self.made: dict[int, Tensor] = {}  # id of an old tensor -> new one
        self.made_parameters: dict[nn.Parameter, nn.Parameter] = {}
        self.indices: dict[int, Tensor] = {}
        self.sized = _Restoring(self.masks_of).value
        self.emptied: Emptied | None = None
        if selection.emptied:
            self.emptied = Emptied(selection.emptied, self.model.calls, self.masks_of, self.cut_at)
        self.constants: list[nn.Parameter] = []  # what is left of branches that are gone

    # -- the graph

    def graph(self) -> Graph:
        old = self.model.graph
        writer = Writer(vertex.name for vertex in old.vertices)
        vertices, shapes, add = writer.vertices, writer.shapes, writer.add
        renamed: dict[str, str] = {}
        emptied = self.emptied

        def change(value: Any) -> Any:
            if type(value) is Ref and value.vertex in renamed:
                return Ref(renamed[value.vertex], value.index)
            return value

        for vertex in old.vertices:
            if isinstance(vertex, InputVertex):
                vertices.append(vertex)
                shapes[vertex.name] = old.shapes.get(vertex.name)
                continue
            name = vertex.name
            result = self.selection.kept(self.selection.of(name))
            if emptied is not None and not emptied.runs(vertex, result, partial(self.resized, vertex, result)):
                continue
            call = self.resized(vertex, result)
            spreads, keeps = self.mixing(vertex, result)
            shape = smaller_shape(old.shapes.get(name), result)
            swapped: dict[Any, Any] = {}
            for value, constant, sizes in [] if emptied is None else emptied.expanded(self.model.calls[name]):
                sizes = tuple([map_args(size, change) for size in sizes])
                lengths = smaller_shape(self.model.shape_of(value), self.masks_of(value))
                swapped[value] = Ref(add(f"{name}_expand", "expand", {"input": constant, "size": sizes}, lengths))
            for value, axis, mask in spreads:
                lengths = list(smaller_shape(self.model.shape_of(value), self.masks_of(value)))
                lengths[axis] = len(mask)
                args = {"input": map_args(self.sized(value), change), "dim": axis, "index": _positions(mask)}
                args["length"] = len(mask)
                swapped[value] = Ref(add(f"{name}_spread", "spread", args, torch.Size(lengths)))

            def changed(value: Any, swapped: dict[Any, Any] = swapped) -> Any:
                return swapped[value] if value in swapped else change(value)

            given = call.args
            if emptied is not None:
                given = {key: emptied.left(arg, besides=swapped) for key, arg in given.items()}
            args = {key: map_args(self.sized(arg), changed) for key, arg in given.items()}
            after = [*call.after, *[("keep", {"dim": axis, "index": _positions(mask)}) for axis, mask in keeps]]
            written: Vertex
            if isinstance(vertex, OperatorVertex):
                written = dataclasses.replace(vertex, operator=call.operator, args=args)
            else:
                positional = map_args(self.sized(vertex.args), changed)
                named = map_args(self.sized(vertex.kwargs), changed)
                target = self.settle(vertex, call) if vertex.leaf else vertex.target
                written = dataclasses.replace(vertex, target=target, args=positional, kwargs=named)
            vertices.append(written)
            full = list(shape) if after else shape
            for axis, mask in keeps:
                full[axis] = len(mask)
            shapes[name] = torch.Size(full) if after else shape
            for operator, more in after:
                source = renamed.get(name, name)
                renamed[name] = add(f"{name}_{operator}", operator, {"input": Ref(source), **more}, shape)
        output = map_args(self.sized(old.output), change)
        if emptied is not None:
            emptied.check_output(old.output)
            vertices = _needed(vertices, output)
            shapes = {vertex.name: shapes[vertex.name] for vertex in vertices if vertex.name in shapes}
        return Graph(tuple(vertices), output, shapes)

    def resized(self, vertex: ModuleVertex | OperatorVertex, result: Any) -> Resized:
        """The call of a vertex with its numbers recomputed."""
        call = self.model.calls[vertex.name]
        restored_axes: dict[str, set[int]] = {}
        for mixing in self.all_mixing(vertex.name):
            restored_axes.setdefault(mixing.argument, set()).add(mixing.axis)
            if isinstance(result, list):
                result = [None if axis == mixing.result_axis else mask for axis, mask in enumerate(result)]

        def masks(name: str) -> Any:
            found = self.masks_of(call.args.get(name))
            gone = restored_axes.get(name, ())
            return [None if axis in gone else mask for axis, mask in enumerate(found)] if gone else found

        def shape(name: str) -> Any:
            return self.model.shape_of(call.args[name])

        answer = Resized(call.operator, call.args, self.model.graph.shapes.get(vertex.name), result, masks, shape)
        row = KNOWN.get(call.operator)
        if row is not None and row.resize is not None:
            row.resize(answer)
        if self.adjust_dropout and isinstance(vertex, OperatorVertex) and row is not None and row.probability:
            probability = call.args.get(row.probability, row.parameters[row.probability])
            answer.args[row.probability] = probability * _share(answer.masks())
        return answer

    def settle(self, vertex: ModuleVertex, call: Resized) -> str:
        """Note the numbers that the leaf of a vertex keeps; returns the path of the leaf that has them.

        Nothing ties the calls of a leaf without weights. Where they need other numbers each has a leaf of its own.
        """
        known = LEAVES[vertex.leaf]
        numbers = {} if known.numbers is None else known.numbers(call)
        if self.adjust_dropout and known.probability:
            probability = getattr(self.dag.get_submodule(vertex.target), known.probability)
            numbers[known.probability] = probability * _share(call.masks())
        leaves = self.settled.setdefault(id(self.dag.get_submodule(vertex.target)), [])
        for leaf in leaves:
            if leaf.numbers == numbers:
                return leaf.path if leaf is not leaves[0] else vertex.target
        path, count = vertex.target, 0
        if leaves:
            owner, _, name = path.rpartition(".")
            taken = {*self.dag.get_submodule(owner)._modules, *[leaf.path.rpartition(".")[2] for leaf in self.twins()]}
            while name in taken:
                count += 1
                name = f"{path.rpartition('.')[2]}_{count}"
            path = f"{owner}.{name}" if owner else name
        leaves.append(_Leaf(path, vertex.target, vertex.leaf, numbers))
        return path

    def twins(self) -> list[_Leaf]:
        """Leaves that take the place of others in some of their calls."""
        return [leaf for leaves in self.settled.values() for leaf in leaves[1:]]

    def all_mixing(self, name: str) -> list[Mixing]:
        found: dict[Mixing, None] = {}
        for reading in self.orbits.readings:
            found.update(dict.fromkeys(reading.mixing.get(name, ())))
        return list(found)

    def mixing(
        self, vertex: ModuleVertex | OperatorVertex, result: Any
    ) -> tuple[list[tuple[Any, int, Mask]], list[tuple[int, Mask]]]:
        """Which operands have to be put back to their full length, and what to pick from the result."""
        spreads, keeps = [], []
        args = self.model.calls[vertex.name].args
        for mixing in self.all_mixing(vertex.name):
            mask = self.masks_of(args[mixing.argument])[mixing.axis]
            if mask is not None:
                spreads.append((args[mixing.argument], mixing.axis, mask))
            if result[mixing.result_axis] is not None:
                keeps.append((mixing.result_axis, result[mixing.result_axis]))
        return spreads, keeps

    def masks_of(self, arg: Any) -> Any:
        """What is kept of the dimensions of an argument that is a tensor."""
        return self.selection.kept(self.selection.known(arg))

    # -- modules and tensors

    def build(self, share: bool) -> DagModule:
        graph = self.graph()
        self.share = share
        smaller = blank(graph, self.dag.provenance)
        smaller.manifest = self.dag.manifest
        self.modules: dict[int, nn.Module] = {id(self.dag): smaller}
        self.gone = self.no_longer_used(graph)
        self.fill(smaller, self.dag, "")
        for leaf in self.twins():
            owner, _, name = leaf.path.rpartition(".")
            made = self.leaf(self.dag.get_submodule(leaf.source), leaf.source, leaf)
            smaller.get_submodule(owner)._modules[name] = made
        if self.emptied is not None:
            self.add_constants(smaller)
        keep_shapes(smaller)
        return smaller

    def no_longer_used(self, graph: Graph) -> frozenset[str]:
        """Paths of modules, parameters and buffers that a vertex used, and none does any more."""
        if self.emptied is None:
            return frozenset()
        return frozenset(_used(self.model.graph.vertices) - _used(graph.vertices))

    def add_constants(self, smaller: DagModule) -> None:
        """Give the smaller graph what is left of branches that are gone, and see that it still fits together."""
        assert self.emptied is not None
        used = _used(smaller.graph.vertices)
        for name, value in self.emptied.constants.items():
            path = self.emptied.path(name)
            if path in used:
                constant = nn.Parameter(value.detach().clone())
                smaller.register_parameter(path, constant)
                self.constants.append(constant)
        graph = smaller.graph
        inputs = {vertex.name: graph.shapes[vertex.name] for vertex in graph.inputs if vertex.name in graph.shapes}
        self.emptied.check_shapes(graph, lambda: complete(graph.vertices, inputs, smaller))

    def fill(self, target: nn.Module, source: nn.Module, path: str) -> None:
        prefix = f"{path}." if path else ""
        target.training = source.training
        target._non_persistent_buffers_set = set(source._non_persistent_buffers_set)
        for members, ours in ((source._parameters, target._parameters), (source._buffers, target._buffers)):
            for name, tensor in members.items():
                if prefix + name not in self.gone:
                    ours[name] = None if tensor is None else self.tensor(tensor, prefix + name)  # type: ignore[assignment]
        for name, child in source._modules.items():
            inner = prefix + name
            if child is None or inner in self.gone:
                continue
            made = self.modules.get(id(child))
            if made is None:
                holds_children = isinstance(child, (DagModule, Container))
                made = Container() if holds_children else self.leaf(child, inner)
                self.modules[id(child)] = made
                if holds_children:
                    self.fill(made, child, inner)
            target._modules[name] = made

    def tensor(self, tensor: Tensor, path: str) -> Tensor:
        made = self.made.get(id(tensor))
        if made is not None:
            return made
        kept = self.kept_of_tensor(tensor, path)
        with torch.no_grad():
            made = cut_tensor(tensor.detach(), kept)
            if made is tensor or made.data_ptr() == tensor.data_ptr():
                made = made if self.share or tensor.device.type == "meta" else made.clone()
        if isinstance(tensor, nn.Parameter):
            parameter = nn.Parameter(made, requires_grad=tensor.requires_grad)
            if tensor.grad is not None:
                grad = cut_tensor(tensor.grad, kept)
                parameter.grad = grad.clone() if grad is tensor.grad and not self.share else grad
            if any(index is not None for index in kept):
                self.cuts[tensor] = (tensor.shape, kept)
            self.made_parameters[tensor] = parameter
            made = parameter
        self.made[id(tensor)] = made
        return made

    def kept_of_tensor(self, tensor: Tensor, path: str) -> list[Tensor | None]:
        """The positions that are kept along every dimension of a parameter or buffer; None where all are."""
        values = self.selection.of_tensor(path)
        masks = [None] * tensor.dim() if values is None else self.selection.masks(values)
        return [None if mask is None else self.positions(mask, tensor.device) for mask in masks]

    def cut_at(self, path: str) -> Tensor:
        """What is kept of a parameter or buffer."""
        tensor = self.model.tensor_at(path).detach()
        return cut_tensor(tensor, self.kept_of_tensor(self.model.tensor_at(path), path))

    def positions(self, mask: Mask, device: torch.device) -> Tensor:
        found = self.indices.get(id(mask))
        if found is None:
            found = self.indices[id(mask)] = torch.from_numpy(np.flatnonzero(mask)).to(device)
        return found

    def leaf(self, module: nn.Module, path: str, leaf: _Leaf | None = None) -> nn.Module:
        if leaf is None:
            leaf = next(iter(self.settled.get(id(module), ())), None)
        if leaf is None:
            return self.whole(module, path)
        made = copy.copy(module)
        # Its hooks and lists are its own, so that a change of one module is none of the other.
        own = {
            key: copy.copy(value) if isinstance(value, (dict, list, set)) else value
            for key, value in vars(module).items()
        }
        made.__dict__ = {**own, "_parameters": {}, "_buffers": {}, "_modules": {}}
        self.fill(made, module, path)
        for name, number in leaf.numbers.items():
            setattr(made, name, number)
        settle = LEAVES[leaf.kind].settle
        if settle is not None:
            settle(made)
        return made

    def whole(self, module: nn.Module, path: str) -> nn.Module:
        """A module whose inside the graph does not know."""
        made = copy.deepcopy(module)
        for name, inner in module.named_modules():
            prefix = f"{path}.{name}." if name else f"{path}."
            twin = made.get_submodule(name)
            for members, ours in ((inner._parameters, twin._parameters), (inner._buffers, twin._buffers)):
                for key, tensor in members.items():
                    if tensor is not None:
                        ours[key] = self.tensor(tensor, prefix + key)  # type: ignore[assignment]
        kind = type(module)
        resize = RESIZES.get(f"{kind.__module__}.{kind.__qualname__}")
        if resize is not None:
            resize(made)
        return made

    def replace(self, dag: DagModule, smaller: DagModule) -> None:
        """Make ``dag`` the smaller graph, with its own parameters cut instead of new ones."""
        for old, new in self.made_parameters.items():
            grad = new.grad
            old.grad = None
            old.data = new.data
            old.grad = grad
        back = {id(new): old for old, new in self.made_parameters.items()}
        for module in smaller.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    if isinstance(module, nn.RNNBase):
                        setattr(module, name, back.get(id(parameter), parameter))
                    else:
                        module._parameters[name] = back.get(id(parameter), parameter)
        dag.__class__ = type(smaller)
        dag.__dict__.update({key: smaller.__dict__[key] for key in _OF_A_GRAPH})


class _Restoring(Transformer):
    """Gives arguments in which sizes of dimensions that lose channels are what they were."""

    def __init__(self, masks_of: Callable[[Any], Any]):
        self.masks_of = masks_of

    def size(self, arg: Size) -> Any:
        mask = self.masks_of(arg.value)[arg.dim]
        return arg if mask is None else restored(arg, mask)


def _share(masks: list[Mask | None]) -> float:
    """The share of a value that is kept."""
    return float(np.prod([mask.mean() for mask in masks if mask is not None]))


@dataclasses.dataclass(frozen=True, slots=True)
class _Leaf:
    """A leaf of the smaller graph.

    Attributes:
        path: where it is.
        source: path of the leaf of the whole graph that it was.
        kind: its name in the table of leaf modules.
        numbers: those that follow from what it is called with, by the attributes that keep them.
    """

    path: str
    source: str
    kind: str
    numbers: dict[str, Any]


def cut_tensor(tensor: Tensor, kept: list[Tensor | None]) -> Tensor:
    """A tensor with the given positions along each dimension; None where all are kept."""
    for axis, index in enumerate(kept):
        if index is not None:
            tensor = tensor.index_select(axis, index.to(tensor.device))
    return tensor


def _positions(mask: Mask) -> tuple[int, ...]:
    return tuple(np.flatnonzero(mask).tolist())


def _needed(vertices: list[Vertex], output: Any) -> list[Vertex]:
    """The vertices that something is made of that is returned, checked or kept; and the inputs."""
    wanted = set(refs_in(output))
    kept: list[Vertex] = []
    for vertex in reversed(vertices):
        effects = isinstance(vertex, OperatorVertex) and KNOWN[vertex.operator].effect
        if vertex.name in wanted or effects or isinstance(vertex, InputVertex):
            kept.append(vertex)
            wanted.update(refs_in(vertex_args(vertex)))
    return kept[::-1]


def _used(vertices: Iterable[Vertex]) -> set[str]:
    """Paths of the modules that vertices call, and of the parameters and buffers that they name."""
    used = {vertex.target for vertex in vertices if isinstance(vertex, ModuleVertex)}
    return used | {arg.path for vertex in vertices for arg in walk_args(vertex_args(vertex)) if type(arg) is Attr}
