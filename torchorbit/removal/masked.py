"""Masked runs: the whole graph with zeros where channels are removed, which is what a removal is proved by.

The whole graph is run with its own weights, vertex by vertex. After every vertex zeros are put where the labels say
removed, and operators that normalize or average over channels do so over those that are kept. This shares no code with
`torchorbit.removal.cutting`: nothing is cut, no size is recomputed. At other sizes than those recorded the labels are
read anew, at these sizes, so that no mask is guessed from another. What both start from are the labels, the masks of
what is kept that a `torchorbit.orbits.selection.Selection` makes of them, and the graph with packed projections apart
(`torchorbit.graph.packed`): where that is another graph, it is run without zeros as well, and compared with the model
itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchorbit.arguments import Attr
from torchorbit.containers import map_leaves, map_together
from torchorbit.errors import GraphRunError
from torchorbit.graph.dag import DagModule
from torchorbit.graph.one_level import one_level
from torchorbit.graph.shapes import shapes_in
from torchorbit.graph.vertices import ModuleVertex, Vertex, last_uses
from torchorbit.operators import Labelled
from torchorbit.operators.table import OPERATORS
from torchorbit.orbits.discovery import orbits_at
from torchorbit.orbits.orbit import Orbits
from torchorbit.orbits.running import Running
from torchorbit.orbits.selection import Selection
from torchorbit.removal.masked_operators import MASKED, Context, Masks, RecordedSizeError, filled


def random_inputs(
    dag: DagModule, seed: int, *, batch: int = 1, lengths: Callable[[list[int]], list[int]] = list
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Random numbers of the recorded sizes and kinds.

    Args:
        dag: the graph.
        seed: of the numbers.
        batch: how many samples, where the batch size is free.
        lengths: gives other lengths for those of the dimensions after the first.
    """
    provenance = dag.provenance
    assert provenance is not None
    like = next((p for p in dag.parameters() if p.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(seed)
    dtypes = iter(provenance.input_dtypes)

    def random(shape: torch.Size | None) -> Tensor | None:
        if shape is None:
            return None
        first = [batch] if provenance.free_batch else list(shape[:1])
        size = (*first, *lengths(list(shape[1:]))) if shape else ()
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

    Raises:
        RecordedSizeError: which channels stand where is not known at the sizes of these inputs.
    """
    assert selection.orbits is not None
    selection = _at_sizes_of(dag, selection, args, kwargs)
    assert selection.orbits is not None
    return MaskedInterpreter(selection.orbits, selection).run(args, kwargs)


def _at_sizes_of(dag: DagModule, selection: Selection, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Selection:
    """A selection with the labels that a graph has at the sizes of some inputs.

    Raises:
        RecordedSizeError: these sizes are not those that it was recorded with, and labels are not known at them.
    """
    orbits = selection.orbits
    assert orbits is not None
    given = inspect.signature(dag.forward).bind(*args, **kwargs)
    given.apply_defaults()
    shapes = {vertex.name: shapes_in(given.arguments[vertex.name]) for vertex in orbits.model.graph.inputs}
    recorded = orbits.model.graph.shapes
    if not selection.removed or all(recorded.get(name) == shape for name, shape in shapes.items()):
        return selection
    try:
        return selection.at(orbits_at(orbits, shapes))
    except (GraphRunError, ValueError) as error:
        raise RecordedSizeError(
            f"the labels of channels are not known at inputs of {list(shapes.values())} ({error}); give inputs of the "
            "recorded sizes"
        ) from None


class MaskedInterpreter(Running):
    """Runs the whole graph vertex by vertex, with zeros where channels are removed.

    Args:
        orbits: those of the graph, whose flat form is run.
        selection: what is removed.
    """

    def __init__(self, orbits: Orbits, selection: Selection):
        super().__init__(orbits.model)
        self.orbits = orbits
        self.selection = selection
        self.known: dict[int, Tensor] = {}

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The output of the whole graph for some inputs."""
        self.values.update(self.given(args, kwargs))
        last = last_uses(self.model.graph.vertices, self.model.graph.output)
        for position, vertex in self.running():
            result = self.vertex(vertex)
            self.values[vertex.name] = self.zeroed(result, self.selection.of(vertex.name))
            for name in last.get(position, ()):
                self.values.pop(name, None)
        return self.value(self.model.graph.output)

    def vertex(self, vertex: Vertex) -> Any:
        """The result of a vertex, with the means and norms over channels taken over those that are kept."""
        call = self.model.calls[vertex.name]
        masked = MASKED.get(call.operator)
        if masked is not None:
            result = masked(Context(self, call, vertex))
            if result is not None:
                return result
        if isinstance(vertex, ModuleVertex) and not (vertex.leaf and call.operator in OPERATORS):
            module = self.model.module_at(vertex.target)
            args = tuple([self.value(arg) for arg in vertex.args])
            kwargs = {key: self.value(arg) for key, arg in vertex.kwargs.items()}
            names = [name for name, _ in (*module.named_parameters(), *module.named_buffers())]
            state = {name: self.value(Attr(f"{vertex.target}.{name}")) for name in names}
            return torch.func.functional_call(module, state, args, kwargs)
        return super().vertex(vertex)

    # -- values

    def attr(self, arg: Attr) -> Any:
        """The parameter or buffer, with zeros."""
        tensor = self.model.tensor_at(arg.path).detach()
        values = self.selection.of_tensor(arg.path)
        return tensor if values is None else self.zeroed(tensor, values)

    def masks(self, arg: Any) -> Masks:
        """For every dimension of an argument that is a tensor, which positions are kept; None where all are."""
        values = self.selection.known(arg)
        return self.of(values) if values and isinstance(values[0], Labelled) else []

    def of(self, values: list[Labelled]) -> Masks:
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
