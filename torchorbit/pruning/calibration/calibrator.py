"""Scores from a loop of one's own: what runs through the graph while a `Calibrator` is active is looked at."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from types import TracebackType
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from torchorbit.errors import ArgumentError, ArgumentTypeError, CalibrationError
from torchorbit.graph.dag import DagModule
from torchorbit.orbits.discovery import find_orbits
from torchorbit.orbits.orbit import Orbits
from torchorbit.pruning.calibration.batches import checked_count
from torchorbit.pruning.calibration.gated import GatedModel
from torchorbit.pruning.calibration.recording import GateRecorder
from torchorbit.pruning.criteria import CRITERIA
from torchorbit.pruning.criteria.base import Criterion, LossCriterion, Place, WeightCriterion
from torchorbit.pruning.criteria.slices import require_weights
from torchorbit.pruning.naming import made_by_name
from torchorbit.pruning.scores import Scores

LossReduction = Literal["mean", "sum"]
#: A criterion, by its name or itself; or several.
Criteria = str | Criterion | Iterable[str | Criterion]


class Calibrator:
    """Scores units from the data that runs through a graph in a loop of one's own.

    While it is active, calling the graph runs the same model with a look at every place where channels are consumed,
    in the modes that its modules are in::

        with torchorbit.criteria.Calibrator(dag, ["taylor", "apoz"]) as calibrator:
            for images, labels in loader:
                torch.nn.functional.cross_entropy(dag(images), labels).backward()
        scores = calibrator.scores["taylor"]

    Several backwards of one forward add up; they have to be run before the next forward. Gradients of parameters and
    buffers are those that the loop makes: zero them, restore them or train with them as without a calibrator. Hooks of
    blocks do not run meanwhile, those of the graph and of leaf modules do. On leaving, the graph is as it was.

    Args:
        dag: an outermost graph.
        criteria: names in `torchorbit.criteria.CRITERIA`, or criteria; all are served by the same runs.
            Criteria that ask for losses (``shapley``) need `calibrate`.
        orbits: what `torchorbit.find_orbits` found; by default it is asked.
        frozen: as `torchorbit.find_orbits` takes it, where no ``orbits`` are given.
        place: where activations are looked at; ``"consumed"`` is where layers take them in, after normalization and
            activation, ``"produced"`` the results of the layers that make them.
        loss_reduction: whether the loss is the ``"mean"`` over the samples of a batch, or their ``"sum"``. Scores are
            of each sample's own loss.
        inputs_to_n_samples: gives the number of samples of a call, from its positional and keyword inputs; by default
            the length of the first tensor.

    Raises:
        ArgumentTypeError: ``dag`` is no graph, or something is no criterion.
        ArgumentError: there is no criterion, place or reduction of that name; both ``orbits`` and ``frozen`` are given;
            the orbits are of another graph; a criterion needs `calibrate`; or the graph has no weights.
    """

    def __init__(
        self,
        dag: DagModule,
        criteria: Criteria,
        *,
        orbits: Orbits | None = None,
        frozen: Iterable[nn.Module | str] | nn.Module | str = (),
        place: Place = "consumed",
        loss_reduction: LossReduction = "mean",
        inputs_to_n_samples: Callable[[tuple[Any, ...], dict[str, Any]], int] | None = None,
    ):
        self.dag = dag
        self.orbits = resolved_orbits(dag, orbits, frozen)
        self.criteria = resolved(criteria)
        for criterion in self.criteria.values():
            if isinstance(criterion, LossCriterion):
                raise ArgumentError(
                    f"{criterion} evaluates the loss without some units; use torchorbit.calibrate for it"
                )
        if loss_reduction not in ("mean", "sum"):
            raise ArgumentError(f"loss_reduction={loss_reduction!r}, expected 'mean' or 'sum'")
        self.loss_reduction = loss_reduction
        self._n_samples = inputs_to_n_samples or _length_of_first
        looking = {key: c for key, c in self.criteria.items() if not isinstance(c, WeightCriterion)}
        self._recorder = GateRecorder(GatedModel(self.orbits, place), looking)

    def __enter__(self) -> Calibrator:
        if "forward" in self.dag.__dict__:
            raise CalibrationError("this graph is being calibrated already, or has a forward of its own")
        self.dag.__dict__["forward"] = self._forward
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self.dag.__dict__["forward"]
        if kind is None:
            self._recorder.settle()

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        samples = checked_count(self._n_samples(args, kwargs))
        scale = 1.0 if self.loss_reduction == "mean" else 1 / samples
        return self._recorder.forward(args, kwargs, samples, scale)[0]

    @property
    def scores(self) -> dict[Any, Scores]:
        """The scores until now, by name or criterion as they were asked for.

        Raises:
            CalibrationError: a criterion has seen no data, or needs gradients and no backward was run; or something
                is not finite.
        """
        self._recorder.settle(finished=False)
        return {
            key: c.scores(self.orbits) if isinstance(c, WeightCriterion) else self._recorder.scores(key)
            for key, c in self.criteria.items()
        }


def resolved_orbits(dag: DagModule, orbits: Orbits | None, frozen: Any) -> Orbits:
    """The orbits of a graph that has weights.

    Raises:
        ArgumentError: they are of another graph, or both ``orbits`` and ``frozen`` are given; or there are no weights.
    """
    if orbits is None:
        orbits = find_orbits(dag, frozen=frozen)
    elif not isinstance(frozen, (nn.Module, str)) and not tuple(frozen):
        if orbits.model.dag is not dag:
            raise ArgumentError("the orbits are of another graph; call find_orbits on this one")
    else:
        raise ArgumentError("both orbits and frozen are given; give frozen to find_orbits")
    require_weights(orbits)
    return orbits


def resolved(criteria: Criteria) -> dict[Hashable, Criterion]:
    """Criteria by what they were given as: a name, or the criterion itself.

    Raises:
        ArgumentTypeError: something is no criterion.
        ArgumentError: there is none of that name, or none is given.
    """
    given = [criteria] if isinstance(criteria, (str, Criterion)) else list(criteria)
    found: dict[Hashable, Criterion] = {}
    for item in given:
        if isinstance(item, str):
            found[item] = made_by_name("criterion", item, CRITERIA)
        elif isinstance(item, Criterion):
            found[item] = item
        else:
            raise ArgumentTypeError(f"{item!r} is no criterion; give names ({', '.join(sorted(CRITERIA))}) or criteria")
    if not found:
        raise ArgumentError("no criterion is given")
    return found


def _length_of_first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    return len(tensors[0]) if tensors and tensors[0].dim() else 1
