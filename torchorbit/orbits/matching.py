"""Which orbits a user means: by the orbit, by a module, or by a pattern of paths."""

from __future__ import annotations

import fnmatch

from torch import nn

from torchorbit.errors import ArgumentError, ArgumentTypeError
from torchorbit.graph.vertices import ModuleVertex
from torchorbit.orbits.orbit import Orbit, Orbits

#: An orbit; a module of the graph; or a path, or a pattern of paths, of modules, parameters or vertices.
Key = Orbit | nn.Module | str


def orbits_of(orbits: Orbits, key: Key) -> list[Orbit]:
    """The orbits whose channels something produces.

    A module stands for all layers in it, a path for what is at it and in it. An orbit belongs to every layer that
    produces channels of it, so that a residual stream belongs to many; one that no layer produces belongs to the
    parameters that it is made of.

    Args:
        orbits: those of a graph.
        key: an orbit of it, a module of it, or a path or pattern (``"layer1.*"``; ``*`` stands for dots, too).

    Raises:
        ArgumentError: no orbit is meant.
        ArgumentTypeError: ``key`` is something else.
    """
    if isinstance(key, Orbit):
        if key not in orbits:
            raise ArgumentError(f"{key!r} is an orbit of another graph, or of another call of find_orbits")
        return [key]
    if isinstance(key, nn.Module):
        paths = [path for path, module in orbits.model.dag.named_modules(remove_duplicate=False) if module is key]
        if not paths:
            raise ArgumentError(
                f"a {type(key).__name__} is no module of the graph; give its path, or dag.get_submodule()"
            )
        what = f"the module at '{paths[0]}'"
    elif isinstance(key, str):
        paths, what = [key], f"'{key}'"
    else:
        raise ArgumentTypeError(f"{key!r} is a {type(key).__name__}, expected an Orbit, a module, or a path or pattern")
    targets = {vertex.name: vertex.target for vertex in orbits.model.graph.vertices if isinstance(vertex, ModuleVertex)}
    found = [orbit for orbit in orbits if any(_is_at(name, path) for name in _names(orbit, targets) for path in paths)]
    if not found:
        raise ArgumentError(
            f"{what} produces no channels that can be removed; orbits are named by the layers that produce them, "
            "which print(torchorbit.find_orbits(dag)) lists"
        )
    return found


def _names(orbit: Orbit, targets: dict[str, str]) -> list[str]:
    if not orbit.sources:
        return [piece.tensor for piece in orbit.slices]
    return [name for source in orbit.sources for name in {source, targets.get(source, source)}]


def _is_at(name: str, path: str) -> bool:
    return not path or name == path or name.startswith(f"{path}.") or fnmatch.fnmatchcase(name, path)
