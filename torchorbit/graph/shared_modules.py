"""Let two graphs have the same parameters, buffers and layers."""

from __future__ import annotations

from torch import nn

from torchorbit.graph.dag import Container, DagModule


def share_modules(target: nn.Module, source: nn.Module, made: dict[int, nn.Module]) -> None:
    """Give a graph the parameters, buffers and leaf modules of another one, under the same paths.

    Args:
        target: a blank graph.
        source: the graph that has them.
        made: id of a module of ``source`` -> what takes its place; is added to. Blocks become containers.
    """
    target._parameters.update(source._parameters)
    target._buffers.update(source._buffers)
    target._non_persistent_buffers_set = set(source._non_persistent_buffers_set)
    target.training = source.training
    for name, child in source._modules.items():
        if child is None:
            continue
        if id(child) not in made:
            holds_children = isinstance(child, (DagModule, Container))
            made[id(child)] = Container() if holds_children else child
            if holds_children:
                share_modules(made[id(child)], child, made)
        target._modules[name] = made[id(child)]
