"""What was removed from a graph since it was converted or loaded, for those who are told about it later."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torchorbit.arguments import Attr, walk_args
from torchorbit.graph.counting import flops_by_vertex, flops_per_pixel
from torchorbit.graph.dag import DagModule
from torchorbit.orbits.flat import FlatModel


@dataclass(frozen=True, slots=True)
class Figures:
    """What a graph is like, for one input of the recorded size.

    Attributes:
        flops: two per multiply-accumulate.
        kmapp: thousands of FLOPs per pixel; NaN where the input is no image.
        parameters: how many numbers are trained.
        widths: path of every convolution and linear layer -> its output channels, in the order of the model.
    """

    flops: float
    kmapp: float
    parameters: int
    widths: dict[str, int]


class Original:
    """What a graph was like before anything was removed from it.

    A cut must not take longer because somebody may ask later what the whole model cost. So only what the figures follow
    from is noted when a graph is cut for the first time: its vertices, which are data and hold no tensors, the shapes
    of its parameters and buffers, and the widths. FLOPs are counted when they are asked for, when the tensors may be
    smaller or gone.

    Args:
        model: the graph in one level.
    """

    def __init__(self, model: FlatModel):
        self._graph, self._calls = model.graph, model.calls
        dag = model.dag
        used = {arg.path for call in self._calls.values() for arg in walk_args(call.args) if type(arg) is Attr}
        self._shapes = {path: tuple(model.tensor_at(path).shape) for path in used}
        self._parameters = sum(parameter.numel() for parameter in dag.parameters())
        self._widths: dict[str, int] = {}
        for path, module in dag.named_modules():
            width = getattr(module, "out_channels", None) or getattr(module, "out_features", None)
            if isinstance(width, int):
                self._widths[path] = width

    @cached_property
    def figures(self) -> Figures:
        """What it was like."""
        flops = math.fsum(flops_by_vertex(self._graph, self._calls, self._shapes.__getitem__).values())
        return Figures(flops, flops_per_pixel(self._graph, flops), self._parameters, self._widths)

    def __deepcopy__(self, memo: dict[int, Any]) -> Original:
        return self  # nothing of it ever changes


@dataclass(frozen=True, slots=True)
class Description:
    """An object by its name and its options, as JSON data: a criterion, a selector, a constraint.

    `torchorbit.pruning.describing` makes them of objects and objects of them.

    Attributes:
        name: what it is called.
        options: name of a constructor's option -> its value, for those that are not as by default. What JSON has no
            word for is a dictionary of one key that says what it is: ``{"float": "inf"}``, ``{"dtype": "float64"}``,
            ``{"device": "cuda"}``, ``{"items": [[key, value], ...]}`` for a dictionary, ``{"constraint": {"name": ...,
            "options": ...}}`` for a further object, ``{"text": ...}`` for what can only be told about.
        known: whether the name is one of torchorbit's; what is not cannot be read back.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    known: bool = True

    def data(self) -> dict[str, Any]:
        """The same as a dictionary that JSON can hold."""
        found = {"name": self.name, "options": dict(self.options)}
        return found if self.known else {**found, "known": False}

    def __str__(self) -> str:
        """As it would be written in Python, nearly: ``knapsack(tolerance=0.01, exhaustive=0)``."""
        given = ", ".join([f"{name}={_shown(value)}" for name, value in self.options.items()])
        return f"{self.name}({given})" if given else self.name


def _shown(value: Any) -> str:
    """An option of a description, for people; whatever is in it."""
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    if not isinstance(value, dict) or len(value) != 1:
        return repr(value)
    ((kind, inner),) = value.items()
    if kind == "items" and isinstance(inner, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in inner):
        return f"{{{', '.join([f'{_shown(key)}: {_shown(item)}' for key, item in inner])}}}"
    if isinstance(inner, dict) and isinstance(inner.get("options"), dict):
        return str(Description(str(inner.get("name")), inner["options"]))
    return str(inner)


@dataclass(frozen=True, slots=True)
class LayerError:
    """How far a layer was from what it is in the whole model, and how far it is.

    Attributes:
        layer: path of its weights; behind it, where queries were mixed, the product.
        before: the sum of squares that its outputs were off by with the weights that the removal left, but after all
            layers before it got new ones, over the sum of squares of the outputs about their mean.
        after: the same with its new weights; where it was left as it was, it is ``before``.
    """

    layer: str
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """New weights that what consumed removed channels got, in closed form.

    Attributes:
        method: how, as `torchorbit.reconstruct` takes it.
        samples: how many samples were looked at.
        proof: the largest difference between the pruned model before that and the whole one with zeros, over the
            largest output (`torchorbit.verify_removal`).
        layers: in the order of the graph.
    """

    method: str
    samples: int
    proof: float
    layers: tuple[LayerError, ...] = ()


@dataclass(frozen=True, slots=True)
class Pruning:
    """One removal: what the units were scored by, how their number was chosen, and what was asked for.

    Attributes:
        criterion: what the units were scored by.
        selector: what chose how many units of which orbits go.
        constraint: which widths orbits might have; None where it was not asked.
        target: what the result was to cost, as ``"flops=0.5"``; empty where the selector says how much goes.
        steps: in how many steps it was come down to.
        finetune_bn: whether the running statistics of batch norms were re-estimated.
        seed: of whatever was drawn; None where nothing could be.
        data: whether data was looked at.
        reconstruction: what was made up for after it; None where nothing was.
    """

    criterion: Description
    selector: Description
    constraint: Description | None = None
    target: str = ""
    steps: int = 1
    finetune_bn: bool = False
    seed: int | None = None
    data: bool = False
    reconstruction: Reconstruction | None = None


@dataclass(frozen=True, slots=True)
class History:
    """What was done to a graph.

    Attributes:
        original: what it was like before.
        prunings: what was removed, the last one last.
    """

    original: Original
    prunings: tuple[Pruning, ...] = ()


def figures(dag: DagModule) -> Figures:
    """What a graph is like."""
    return Original(FlatModel.of(dag, separate=False)).figures


def continued(model: FlatModel, pruning: Pruning) -> History:
    """The history of what comes of a graph by a removal that is still to be done.

    Args:
        model: the graph, as orbits were found in it.
        pruning: the removal.
    """
    history: History = model.dag.history or History(Original(model))
    return History(history.original, (*history.prunings, pruning))


def by_hand(units: int) -> Pruning:
    """The removal of units that the caller chose."""
    chosen = Description("chosen by hand", known=False)
    return Pruning(chosen, chosen, target=f"{units} unit{'s' * (units != 1)}")
