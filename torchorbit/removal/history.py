"""What was removed from a graph since it was converted or loaded, for those who are told about it later."""

from __future__ import annotations

from dataclasses import dataclass

from torchorbit.cost.counting import flops
from torchorbit.graph.dag import DagModule


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


@dataclass(frozen=True, slots=True)
class Pruning:
    """One removal: what the units were scored by, how their number was chosen, and what was asked for."""

    criterion: str
    selector: str
    target: str
    round_to: int = 1


@dataclass(frozen=True, slots=True)
class History:
    """What was done to a graph.

    Attributes:
        original: what it was like before.
        prunings: what was removed, the last one last.
    """

    original: Figures
    prunings: tuple[Pruning, ...] = ()

    def as_last(self, pruning: Pruning) -> History:
        """The same, where more is known of what was done last."""
        return History(self.original, (*self.prunings[:-1], pruning))


def figures(dag: DagModule) -> Figures:
    """What a graph is like."""
    count = flops(dag)
    widths = {}
    for path, module in dag.named_modules():
        width = getattr(module, "out_channels", None) or getattr(module, "out_features", None)
        if isinstance(width, int):
            widths[path] = width
    return Figures(count.total, count.kmapp, sum(parameter.numel() for parameter in dag.parameters()), widths)


def continued(dag: DagModule, pruning: Pruning) -> History:
    """The history of what comes of a graph by a removal that is still to be done."""
    history: History = dag.history or History(figures(dag))
    return History(history.original, (*history.prunings, pruning))
