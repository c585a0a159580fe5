"""Recurrent layers: a unit of the hidden state has a row in every gate, and a column."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor, nn

from torchorbit.labels import Array, Dim
from torchorbit.operators.aten import aten_operator
from torchorbit.operators.declaring import Arguments, Leaf, Shapes, module_operator
from torchorbit.operators.labelling import Labelled, Operands
from torchorbit.operators.shapes import misfit
from torchorbit.operators.sums import last_dimensions

NEEDLESS = {
    "resize": "its numbers follow from its weights",
    "oracle": "zeros have no part in a sum of products",
}

_GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}


# -- labels


def _rule(operands: Operands) -> tuple[object, ...]:
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


def _cell_rule(operands: Operands) -> Any:
    """One step: the states are given and returned."""
    labels, x = operands.labels, operands.tensor()
    from_below, from_before = operands.tensor("w_ih"), operands.tensor("w_hh")
    labels.meet(x.dims[-1], from_below.dims[1])
    operands.sink(from_below.dims[1])
    operands.source(from_below.dims[0])
    unit = from_before.dims[1] if isinstance(from_before.dims[1], np.ndarray) else None
    biases = [bias for bias in map(operands.maybe, ("b_ih", "b_hh")) if bias is not None]
    rows = [from_below.dims[0], from_before.dims[0], *[bias.dims[0] for bias in biases]]
    if unit is None:  # one unit
        for dim in rows:
            operands.freeze(dim)
    else:
        labels.meet(np.tile(unit, from_before.shape[0] // from_before.shape[1]), *rows)
    given = operands.args["hx"]
    states = [given] if isinstance(given, Labelled) else list(given)
    for state in states:
        labels.meet(state.dims[-1], unit)
    after = [Labelled(state.shape, [*x.dims[:-1], unit]) for state in states]
    return after[0].dims if isinstance(given, Labelled) else tuple(after)


def _results(operands: Operands, x: Labelled, output: Dim, state: Dim) -> tuple[object, ...]:
    def states(shapes: object) -> object:
        assert isinstance(shapes, tuple)
        if shapes and isinstance(shapes[0], tuple):
            return tuple([states(shape) for shape in shapes])
        return Labelled(tuple(shapes), [*[None] * (len(shapes) - 1), state])

    first, second = operands.shape
    return Labelled(tuple(first), [*x.dims[:-1], output]), states(second)


# -- shapes


def _shape(args: Arguments) -> Any:
    """The shapes of the output and the states, which torch finds on meta by walking through every step."""
    module, x, given = args["module"], args["0"], args.get("1")
    if x.dim() not in (2, 3) or x.shape[-1] != module.input_size or not x.is_floating_point():
        raise misfit(f"the input is of shape {tuple(x.shape)} and {x.dtype}", f"{module.input_size} features")
    batch = () if x.dim() == 2 else (int(x.shape[0 if module.batch_first else 1]),)
    directions = 2 if module.bidirectional else 1
    width = module.proj_size or module.hidden_size
    states = [(directions * module.num_layers, *batch, width)]
    if module.mode == "LSTM":
        states.append((directions * module.num_layers, *batch, module.hidden_size))
    if given is not None:
        found = [tuple(state.shape) for state in (given if isinstance(given, tuple) else (given,))]
        if found != states:
            raise misfit(f"the states have the shapes {found}", states)
    out = (*x.shape[:-1], directions * width)
    return out, tuple(states) if module.mode == "LSTM" else states[0]


def _laid_out(module: Any, x: Tensor, shapes: Any) -> Any:
    """The results on meta: steps come first in memory, whatever comes first in shape."""
    if x.dim() != 3 or not x.numel() or x.dtype != module.weight_ih_l0.dtype:
        return None
    (first, second, width), states = shapes
    out = x.new_empty((second, first, width)).transpose(0, 1) if module.batch_first else x.new_empty(shapes[0])
    if module.mode == "LSTM":
        return out, tuple([x.new_empty(state) for state in states])
    return out, x.new_empty(states)


# -- multiply-accumulates


def _cost(shapes: Shapes, result: Any, args: dict[str, Any]) -> float:
    steps = math.prod(shapes("0")[:-1])
    return float(steps * sum(math.prod(shapes(name)) for name in args if name.startswith("weight")))


def _cell_cost(shapes: Shapes, result: Any, args: dict[str, Any]) -> float:
    return float(math.prod(shapes("input")[:-1]) * (math.prod(shapes("w_ih")) + math.prod(shapes("w_hh"))))


# -- numbers that a module keeps


def _settle(module: Any) -> None:
    module.input_size = module.weight_ih_l0.shape[1]
    module.hidden_size = module.weight_hh_l0.shape[0] // _GATES.get(module.mode, 1)
    module._init_flat_weights()  # it keeps a list of its weights, which a copy of it shares


_ARGUMENTS = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")

OPERATORS = [
    module_operator(
        Leaf(cls, constructor=constructor, nested=True, settle=_settle, layout=_laid_out),
        rule=_rule,
        shape=_shape,
        cost=_cost,
        contraction=last_dimensions("0"),
        sinks=True,
    )
    for cls, constructor in (
        (nn.RNN, (*_ARGUMENTS, "nonlinearity")),
        (nn.LSTM, (*_ARGUMENTS, "proj_size")),
        (nn.GRU, _ARGUMENTS),
    )
] + [
    aten_operator(f"{name}_cell", rule=_cell_rule, cost=_cell_cost, contraction=last_dimensions("input"), sinks=True)
    for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")
]
