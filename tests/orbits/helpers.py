"""What several tests of orbits need."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import timm
import torch

import torchorbit
from torchorbit import DagModule, Orbit, Orbits
from torchorbit.operators import Operands


def owned(orbit: Orbit, unit: int | None = None) -> dict[tuple[str, int], tuple[int, ...]]:
    """What an orbit, or one of its units, owns: (tensor, dimension) -> positions."""
    slices = orbit.slices if unit is None else torchorbit.inspect.unit_slices(orbit, unit)
    return {(piece.tensor, piece.dim): piece.indices for piece in slices}


def targets(orbits: Orbits, names: tuple[str, ...]) -> set[str]:
    """Paths of the modules that vertices call."""
    by_name = {vertex.name: getattr(vertex, "target", vertex.name) for vertex in orbits.model.graph.vertices}
    return {by_name[name] for name in names}


def kinds(orbits: Orbits) -> list[tuple[int, int]]:
    """Width and reading of every orbit, sorted."""
    return sorted((orbit.width, orbit.reading) for orbit in orbits)


def the(orbits: Orbits, path: str, dim: int = 0, *, width: int | None = None, groups: bool = False) -> Orbit:
    """The one orbit of a tensor's dimension that is of whole groups, or of what is in them."""
    found = [orbit for orbit in orbits.of_tensor(path, dim) if bool(orbit.reading) == groups]
    if width is not None:
        found = [orbit for orbit in found if orbit.width == width]
    assert len(found) == 1, found
    return found[0]


@functools.cache
def of_timm(name: str, **options: Any) -> Orbits:
    """The orbits of a timm model, without weights."""
    with torch.device("meta"):
        model = timm.create_model(name, scriptable=False, **options).eval()
    dag = torchorbit.convert(model, torch.empty(2, *model.pretrained_cfg["input_size"], device="meta"))
    return torchorbit.find_orbits(dag)


def assert_as_at_another_size(orbits: Orbits, dag: DagModule) -> None:
    """Where the recorded sizes alone seem to show what becomes of labels, another size shows the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Operands, "_is_plain", lambda operands, x: False)
        others = torchorbit.find_orbits(dag)
    assert [(o.kind, o.reading, owned(o)) for o in orbits] == [(o.kind, o.reading, owned(o)) for o in others]
