"""Remove units from a graph: every tensor is cut, every stored size recomputed."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import nn
from torch.optim import Optimizer

from torchorbit.arguments import Attr, walk_args
from torchorbit.graph.dag import Container, DagModule, Graph, blank
from torchorbit.graph.one_level import keep_shapes
from torchorbit.graph.shapes import complete
from torchorbit.graph.vertices import ModuleVertex, Vertex, vertex_args
from torchorbit.operators import RESIZES
from torchorbit.orbits.orbit import Orbit
from torchorbit.orbits.selection import Selection
from torchorbit.removal.emptying import Emptied
from torchorbit.removal.history import by_hand, continued
from torchorbit.removal.leaves import Leaf, Leaves, settle
from torchorbit.removal.optimizers import check, cut_state
from torchorbit.removal.outcome import require_same_output
from torchorbit.removal.rewriting import Rewriting
from torchorbit.removal.tensors import CutTensors

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
            its units and may not, or cannot because the rest of the model needs more than a constant of it. The
            graph is then untouched. So it is where ``optimizer`` has none of the graph's parameters.
        ArgumentTypeError: ``removed`` holds something else than orbits and integers, or ``optimizer`` is none.
        InternalError: what is left does not run, or its output has other shapes, which is a mistake in torchorbit. The
            graph is then untouched.
    """
    selection = Selection(removed, dag, allow_empty=allow_empty)
    if selection.orbits is None:
        from torchorbit.orbits.discovery import find_orbits

        selection.adopt(find_orbits(dag))
    parameters = list(dag.parameters())
    if optimizer is not None:
        check(optimizer, parameters)
    with torch.inference_mode(False):  # what is left is to be trained
        return _remove(selection, dag, inplace, optimizer, parameters, adjust_dropout=adjust_dropout)


def _remove(
    selection: Selection,
    dag: DagModule,
    inplace: bool,
    optimizer: Optimizer | None,
    parameters: list[nn.Parameter],
    *,
    adjust_dropout: bool,
) -> DagModule:
    """Remove what was selected."""
    cut = _Cut(selection, dag, share=inplace, adjust_dropout=adjust_dropout)
    units = sum(len(positions) for positions in selection.removed.values())
    history = continued(cut.model, by_hand(units)) if units else dag.history
    smaller = cut.build()
    require_same_output(cut.model, smaller)
    if inplace:
        cut.replace(dag, smaller)
        smaller = dag
    smaller.history = history
    if optimizer is not None:
        replaced = {old: old if inplace else new for old, new in cut.tensors.parameters.items()}
        gone = [parameter for parameter in parameters if parameter not in replaced]
        cut_state(optimizer, cut.tensors.cuts, replaced, gone=gone, new=cut.constants)
    return smaller


class _Cut:
    """Makes the smaller graph: its vertices, and the modules and tensors that it needs."""

    def __init__(self, selection: Selection, dag: DagModule, *, share: bool, adjust_dropout: bool):
        assert selection.orbits is not None
        self.selection = selection
        self.model = selection.orbits.model
        self.dag = dag
        self.adjust_dropout = adjust_dropout
        self.leaves = Leaves(dag, adjust_dropout)
        self.tensors = CutTensors(selection, share)
        self.emptied: Emptied | None = None
        if selection.emptied:
            self.emptied = Emptied(selection.emptied, self.model.calls, selection.masks_of, self.tensors.at)
        self.constants: list[nn.Parameter] = []  # what is left of branches that are gone

    def build(self) -> DagModule:
        """The smaller graph, with layers and tensors of its own."""
        graph = Rewriting(self.selection, self.leaves, self.emptied, self.adjust_dropout).graph()
        smaller = blank(graph, self.dag.provenance)
        smaller.manifest = self.dag.manifest
        self.modules: dict[int, nn.Module] = {id(self.dag): smaller}
        self.gone = self.no_longer_used(graph)
        self.fill(smaller, self.dag, "")
        for leaf in self.leaves.twins():
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
        """Give a module what is left of the tensors and children of another one."""
        prefix = f"{path}." if path else ""
        target.training = source.training
        target._non_persistent_buffers_set = set(source._non_persistent_buffers_set)
        for members, ours in ((source._parameters, target._parameters), (source._buffers, target._buffers)):
            for name, tensor in members.items():
                if prefix + name not in self.gone:
                    ours[name] = None if tensor is None else self.tensors.of(tensor, prefix + name)  # type: ignore[assignment]
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

    def leaf(self, module: nn.Module, path: str, leaf: Leaf | None = None) -> nn.Module:
        """A leaf of the smaller graph."""
        if leaf is None:
            leaf = self.leaves.of(module)
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
        settle(made, leaf)
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
                        ours[key] = self.tensors.of(tensor, prefix + key)  # type: ignore[assignment]
        kind = type(module)
        resize = RESIZES.get(f"{kind.__module__}.{kind.__qualname__}")
        if resize is not None:
            resize(made)
        return made

    def replace(self, dag: DagModule, smaller: DagModule) -> None:
        """Make ``dag`` the smaller graph, with its own parameters cut instead of new ones."""
        for old, new in self.tensors.parameters.items():
            grad = new.grad
            old.grad = None
            old.data = new.data
            old.grad = grad
        back = {id(new): old for old, new in self.tensors.parameters.items()}
        for module in smaller.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    if isinstance(module, nn.RNNBase):
                        setattr(module, name, back.get(id(parameter), parameter))
                    else:
                        module._parameters[name] = back.get(id(parameter), parameter)
        dag.__class__ = type(smaller)
        dag.__dict__.update({key: smaller.__dict__[key] for key in _OF_A_GRAPH})


def _used(vertices: Iterable[Vertex]) -> set[str]:
    """Paths of the modules that vertices call, and of the parameters and buffers that they name."""
    used = {vertex.target for vertex in vertices if isinstance(vertex, ModuleVertex)}
    return used | {arg.path for vertex in vertices for arg in walk_args(vertex_args(vertex)) if type(arg) is Attr}
