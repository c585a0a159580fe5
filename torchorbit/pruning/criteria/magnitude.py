"""The magnitude of a unit's weights."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from torchorbit.orbits.orbit import Orbit, Orbits
from torchorbit.pruning.criteria.base import WeightCriterion
from torchorbit.pruning.scores import Scores


class Magnitude(WeightCriterion):
    """The root mean square of a unit's weights, each tensor first divided by its own root mean square.

    So a bias does not count less than a kernel ("Pruning Filters for Efficient ConvNets", Li et al., 2017, on whole
    orbits).
    """

    name: ClassVar[str] = "magnitude"

    def scores(self, orbits: Orbits) -> Scores:
        """Score all units."""
        require_weights(orbits)
        return Scores(orbits, {orbit: magnitude(orbit) for orbit in orbits}, criterion=str(self))


def require_weights(orbits: Orbits) -> None:
    """Refuse a graph without weights.

    Raises:
        ValueError: the graph is on the meta device.
    """
    if any(parameter.is_meta for parameter in orbits.model.dag.parameters()):
        raise ValueError(
            "the graph is on the meta device, where weights have no magnitude: give it weights, or choose what goes by "
            "find_orbits and remove_channels"
        )


@torch.no_grad()
def magnitude(orbit: Orbit) -> NDArray[np.float64]:
    """The magnitude of every unit of an orbit.

    Returns:
        An array as long as the orbit is wide: the root mean square of a unit's weights, over those of the tensors that
        they belong to.
    """
    orbits = orbit._orbits
    positions = orbits.positions[orbit.reading]
    place = np.full(orbits.counts[orbit.reading], -1)
    place[orbit.components] = np.arange(orbit.width)
    squares, counts = np.zeros(orbit.width), np.zeros(orbit.width)
    for part in orbits.parts:
        units = place[positions[part.start : part.start + part.length]]
        if part.path not in orbits.trainable or (units < 0).all():
            continue
        per_position, others = _mean_squares(orbits, part.path, part.axis)
        owned = units >= 0
        np.add.at(squares, units[owned], per_position[owned] * others)
        np.add.at(counts, units[owned], others)
    return np.sqrt(squares / np.maximum(counts, 1))


def _mean_squares(orbits: Orbits, path: str, axis: int) -> tuple[Any, int]:
    """Mean squares of the slices of a tensor, over the mean square of all of it, and how many numbers a slice has."""
    tensor = orbits.model.tensor_at(path).detach()
    others = tensor.numel() // tensor.shape[axis]
    square = tensor.double().square()
    whole = square.mean().item()
    per_position = square.mean([n for n in range(tensor.dim()) if n != axis]) if tensor.dim() > 1 else square
    return (per_position / whole if whole else per_position).cpu().numpy(), others
