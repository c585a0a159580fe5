"""Recurrent layers: a unit of the hidden state has a row in every gate, and a column."""

from __future__ import annotations

import numpy as np

from torchorbit.labels import Array, Dim
from torchorbit.operators.registry import Labelled, Operands, rule

_GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}


@rule("RNN", "LSTM", "GRU")
def _recurrent(operands: Operands) -> tuple[object, ...]:
    module, labels = operands.module, operands.labels
    gates, hidden = _GATES[operands.operator], int(module.hidden_size)  # type: ignore[union-attr, arg-type]
    x = operands.tensor("0")
    below: Dim = x.dims[-1]
    directions = 2 if module.bidirectional else 1  # type: ignore[union-attr]
    if getattr(module, "proj_size", 0):
        for tensor in operands.tensors():
            operands.freeze(tensor)
        return _results(operands, x, None, None)
    unit: Array | None = None
    shared: Array | None = None  # cuDNN and its like keep one width for all layers and directions
    for layer in range(int(module.num_layers)):  # type: ignore[union-attr, arg-type]
        for direction in range(directions):
            suffix = f"l{layer}" + "_reverse" * direction
            from_below = operands.tensor(f"weight_ih_{suffix}")
            from_before = operands.tensor(f"weight_hh_{suffix}")
            labels.meet(below, from_below.dims[1])
            operands.sink(from_below.dims[1])
            operands.source(from_below.dims[0])
            unit = from_before.dims[1] if isinstance(from_before.dims[1], np.ndarray) else None
            beside = [operands.maybe(f"bias_{side}_{suffix}") for side in ("ih", "hh")]
            rows = [from_below.dims[0], from_before.dims[0], *[bias.dims[0] for bias in beside if bias is not None]]
            if unit is None:  # one unit
                for dim in rows:
                    operands.freeze(dim)
                continue
            labels.meet(np.tile(unit, gates), *rows)
            if shared is None:
                shared = unit
            else:
                labels.tie(shared, unit)
        below = None if unit is None else np.tile(unit, directions)
    for name, state in operands.args.items():
        if not name.startswith(("weight", "bias")) and name != "0":
            for tensor in [state] if isinstance(state, Labelled) else state or ():
                labels.meet(tensor.dims[-1], unit)
    assert hidden > 0
    return _results(operands, x, below, unit)


def _results(operands: Operands, x: Labelled, output: Dim, state: Dim) -> tuple[object, ...]:
    def states(shapes: object) -> object:
        assert isinstance(shapes, tuple)
        if shapes and isinstance(shapes[0], tuple):
            return tuple([states(shape) for shape in shapes])
        return Labelled(tuple(shapes), [*[None] * (len(shapes) - 1), state])

    first, second = operands.shape
    return Labelled(tuple(first), [*x.dims[:-1], output]), states(second)
