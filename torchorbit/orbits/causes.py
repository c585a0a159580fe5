"""Read a graph once more, and note why channels are frozen and where."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import numpy as np

from torchorbit.arguments import Attr, Ref, operands_of
from torchorbit.graph.shapes import pick
from torchorbit.graph.vertices import InputVertex
from torchorbit.labels import OTHER, Array, Dim, Labels, arrays_of
from torchorbit.operators import Reading
from torchorbit.orbits.flat import FlatModel
from torchorbit.orbits.operands import labelled_in


@dataclass(frozen=True, slots=True)
class Reason:
    """Why channels are frozen.

    Attributes:
        kind: ``"input"`` or ``"output"`` of the model; ``"named"`` by the caller in ``frozen=``; an operator with
            ``"no rule"``; ``"constant"``: they meet a constant, or only constants make them; ``"unlabelled"``: they
            meet a dimension that holds no channels; ``"operator"``: one that needs all of them; ``"shape"``: a
            dimension is split, joined or met such that only other channels along it can be removed; ``"alone"``:
            nothing would be left without them.
        vertex: the vertex at which it happens; of what is named, the path of the layer, parameter or buffer; may be
            empty.
        text: the same in words.
    """

    kind: str
    vertex: str
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True, eq=False)
class Freeze:
    """That labels were frozen.

    Attributes:
        labels: which.
        here: whether in this reading only.
        at: what was being read, see `Labels.at`.
        bare: whether they met a dimension without labels.
        length: of that dimension.
    """

    labels: Array
    here: bool
    at: tuple[str, str]
    bare: bool
    length: int


class RecordedLabels(Labels):
    """Labels that note what would freeze them instead of being frozen: components are of what is tied alone."""

    def __init__(self, reading: int, known: Labels | None = None):
        super().__init__(reading, known)
        self.freezes: list[Freeze] = []
        self._bare = False

    def freeze(self, dim: Dim, *, here: bool = False) -> None:
        """Note it."""
        self.freezes += [Freeze(array, here, self.at, self._bare, len(array)) for array in arrays_of(dim)]

    def meet(self, *dims: Dim) -> Dim:
        """As ever; whether what meets has labels is noted with what it freezes."""
        self._bare = any(dim is None for dim in dims)
        try:
            return super().meet(*dims)
        finally:
            self._bare = False

    def concatenate(self, dims: list[Dim], lengths: list[int]) -> Dim:
        """As ever, but what has no labels gets one that is noted as frozen here, so that it is known later."""
        result = super().concatenate(dims, lengths)
        if isinstance(result, np.ndarray):
            start = 0
            for dim, length in zip(dims, lengths, strict=True):
                if not isinstance(dim, np.ndarray):
                    label = self.fresh(1)
                    result[start : start + length] = label
                    self.freezes.append(Freeze(label, dim is OTHER, self.at, True, length))
                start += length
        return result


class Causes:
    """Turns what was noted into reasons.

    Args:
        model: the graph.
        reading: a recorded reading of it.
        frozen: names of the vertices that the caller wants frozen.
    """

    def __init__(self, model: FlatModel, reading: Reading, frozen: AbstractSet[str] = frozenset()):
        self.model = model
        self.reading = reading
        self._frozen = {vertex.name: getattr(vertex, "target", "") for vertex in model.graph.vertices}
        self._frozen = {name: target for name, target in self._frozen.items() if name in frozen}
        self._vertices = {vertex.name: vertex for vertex in model.graph.vertices}
        self._origins: dict[str, Reason | None] = {}

    def reasons(self, freeze: Freeze) -> list[Reason]:
        """Why labels were frozen."""
        kind, name = freeze.at
        if kind == "output":
            return [Reason("output", "", "channels of the model's output")]
        if kind == "frozen":
            owner = name.rpartition(".")[0]
            # Freezing a layer also freezes its tensors; report one reason.
            name = self._frozen.get(name) or (owner if owner and owner in self._frozen.values() else name)
            return [Reason("named", name, f"'{name}' is named in frozen=")]
        call = self.model.calls[name]
        if kind == "unruled":
            return [Reason("no rule", name, f"the operator {call.operator} of '{name}' has no rule")]
        if freeze.here:
            return [Reason("shape", name, f"'{name}' ({call.operator}) has no place for them beside other channels")]
        if freeze.bare:
            return self.met(name, freeze.length)
        if freeze.length == 1:
            return [Reason("alone", name, f"'{name}' ({call.operator}) takes one channel alone")]
        return [Reason("operator", name, f"'{name}' ({call.operator}) needs all of them")]

    def met(self, name: str, length: int) -> list[Reason]:
        """What the operands of a vertex are that have a dimension of some length without labels."""
        tensors = operands_of(self.model.calls[name].args)
        bare = [arg for arg in tensors if _has_bare(self._value(arg), length)] or tensors
        found = [reason for arg in bare if (reason := self._origin(arg)) is not None]
        return list(dict.fromkeys(found)) or [Reason("unlabelled", name, f"they meet no channels in '{name}'")]

    def origin(self, vertex: str) -> Reason | None:
        """Where a result without labels comes from."""
        return self._origin(Ref(vertex))

    def _value(self, arg: Ref | Attr) -> Any:
        if isinstance(arg, Ref):
            return pick(self.reading.values[arg.vertex], arg.index)
        return self.reading.attributes.get(arg.path)

    def _origin(self, arg: Ref | Attr) -> Reason | None:
        """Where a tensor without labels comes from."""
        if isinstance(arg, Attr):
            return Reason("constant", arg.path, f"they meet '{arg.path}', which holds no channels")
        if arg.vertex not in self._origins:
            self._origins[arg.vertex] = None  # nothing runs in circles, but the same way is not gone twice
            self._origins[arg.vertex] = self._origin_of_vertex(arg.vertex)
        return self._origins[arg.vertex]

    def _origin_of_vertex(self, name: str) -> Reason | None:
        if isinstance(self._vertices[name], InputVertex):
            return Reason("input", name, f"channels of the model's input '{name}'")
        call = self.model.calls[name]
        if call.operator in self.reading.unruled:
            return Reason("no rule", name, f"the operator {call.operator} of '{name}' has no rule")
        values = [arg for arg in operands_of(call.args) if isinstance(arg, Ref)]
        if any(_has_labels(self._value(arg)) for arg in values) or _has_labels(self.reading.values[name]):
            return Reason("unlabelled", name, f"they meet a dimension of what '{name}' gives that holds no channels")
        origins = [origin for arg in values if (origin := self._origin(arg)) is not None]
        if origins:
            return next((origin for origin in origins if origin.kind != "constant"), origins[0])
        return Reason("constant", name, f"they meet the constant '{name}' ({call.operator}), which holds no channels")


def _has_bare(value: Any, length: int) -> bool:
    return any(
        dim is None and size == length
        for tensor in labelled_in(value)
        for dim, size in zip(tensor.dims, tensor.shape, strict=True)
    )


def _has_labels(value: Any) -> bool:
    return any(dim is not None for tensor in labelled_in(value) for dim in tensor.dims)
