"""Read a graph once more, and note why channels are frozen and where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from torchorbit.graph.shapes import pick
from torchorbit.graph.vertices import Attr, ByMode, InputVertex, Ref, walk_args
from torchorbit.orbits.flat import FlatModel
from torchorbit.orbits.labels import OTHER, Array, Dim, Labels, arrays_of
from torchorbit.orbits.rules import Labelled, Reading


@dataclass(frozen=True, slots=True)
class Reason:
    """Why channels are frozen.

    Attributes:
        kind: ``"input"`` or ``"output"`` of the model; ``"named"`` by the caller in ``frozen=``; an operator with
            ``"no rule"``; ``"constant"``: they meet a constant, or only constants make them; ``"unlabelled"``: they
            meet a dimension that holds no channels; ``"operator"``: one that needs all of them; ``"shape"``: a reshape
            that has no place for their removal; ``"alone"``: nothing would be left without them.
        vertex: the vertex at which it happens (a path, where a parameter or buffer is named); may be empty.
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
    """

    def __init__(self, model: FlatModel, reading: Reading):
        self.model = model
        self.reading = reading
        self._vertices = {vertex.name: vertex for vertex in model.graph.vertices}
        self._origins: dict[str, Reason | None] = {}

    def reasons(self, freeze: Freeze) -> list[Reason]:
        """Why labels were frozen."""
        kind, name = freeze.at
        if kind == "output":
            return [Reason("output", "", "channels of the model's output")]
        if kind == "frozen":
            return [Reason("named", name, f"'{name}' is named in frozen=")]
        call = self.model.calls[name]
        if kind == "unruled":
            return [Reason("no rule", name, f"the operator {call.operator} of '{name}' has no rule")]
        if freeze.here:
            return [Reason("shape", name, f"'{name}' ({call.operator}) splits or joins dimensions another way")]
        if freeze.bare:
            return self.met(name, freeze.length)
        if freeze.length == 1:
            return [Reason("alone", name, f"'{name}' ({call.operator}) takes one channel alone")]
        return [Reason("operator", name, f"'{name}' ({call.operator}) needs all of them")]

    def met(self, name: str, length: int) -> list[Reason]:
        """What the operands of a vertex are that have a dimension of some length without labels."""
        tensors = [arg for arg in walk_args(tuple(self.model.calls[name].args.values())) if type(arg) in (Ref, Attr)]
        bare = [arg for arg in tensors if _has_bare(self._value(arg), length)] or tensors
        found = [reason for arg in bare if (reason := self._origin(arg)) is not None]
        return list(dict.fromkeys(found)) or [Reason("unlabelled", name, f"they meet no channels in '{name}'")]

    def origin(self, vertex: str) -> Reason | None:
        """Where a result without labels comes from."""
        return self._origin(Ref(vertex))

    def _value(self, arg: Any) -> Any:
        if type(arg) is Ref:
            return pick(self.reading.values[arg.vertex], arg.index)
        return self.reading.attributes.get(arg.path)

    def _origin(self, arg: Any) -> Reason | None:
        """Where a tensor without labels comes from."""
        if type(arg) is ByMode:
            return self._origin(arg.evaluation)
        if type(arg) is Attr:
            return Reason("constant", arg.path, f"they meet '{arg.path}', which holds no channels")
        if type(arg) is not Ref:
            return None
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
        operands = [arg for arg in walk_args(tuple(call.args.values())) if type(arg) in (Ref, Attr)]
        values = [arg for arg in operands if type(arg) is Ref]
        if any(_has_labels(self._value(arg)) for arg in values) or _has_labels(self.reading.values[name]):
            return Reason("unlabelled", name, f"they meet a dimension of what '{name}' gives that holds no channels")
        origins = [origin for arg in values if (origin := self._origin(arg)) is not None]
        if origins:
            return next((origin for origin in origins if origin.kind != "constant"), origins[0])
        return Reason("constant", name, f"they meet the constant '{name}' ({call.operator}), which holds no channels")


def _has_bare(value: Any, length: int) -> bool:
    if isinstance(value, (tuple, list)):
        return any(_has_bare(item, length) for item in value)
    return isinstance(value, Labelled) and any(
        dim is None and size == length for dim, size in zip(value.dims, value.shape, strict=True)
    )


def _has_labels(value: Any) -> bool:
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        return any(map(_has_labels, value))
    return isinstance(value, Labelled) and any(dim is not None for dim in value.dims)
