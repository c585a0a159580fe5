"""The model-based part of a constrained Bayesian search: Gaussian processes, a trust region, Thompson sampling."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchorbit.cost.measured import limited_threads
from torchorbit.errors import ArgumentError
from torchorbit.extras import require

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ScboOptions:
    """How the trust region of a search moves. The defaults are for a few hundred samples of 10 to 300 orbits.

    Attributes:
        length: its first side, of a unit cube of widths.
        length_max: the longest side.
        length_min: where it is shorter, the search has converged.
        successes: so many batches in a row that find something better double its sides.
        failures: so many batches in a row that do not halve them; None is ``max(4, dims / 10) / batch_size``, rounded
            up.
        candidates: how many points are compared for every sample.
        perturbed: how many orbits a candidate changes at most, on average; half of the candidates change few.
        fit_iterations: of L-BFGS, for the parameters of a Gaussian process.

    Raises:
        ArgumentError: a number is out of range.
    """

    length: float = 0.4
    length_max: float = 1.6
    length_min: float = 0.5**7
    successes: int = 3
    failures: int | None = None
    candidates: int = 1000
    perturbed: int = 20
    fit_iterations: int = 50

    name: ClassVar[str] = "scbo"

    def __post_init__(self) -> None:
        if not 0 < self.length_min <= self.length <= self.length_max:
            raise ArgumentError(
                f"length_min={self.length_min}, length={self.length}, length_max={self.length_max}, expected positive "
                "numbers in ascending order"
            )
        for name in ("successes", "failures", "candidates", "perturbed", "fit_iterations"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ArgumentError(f"{name}={value!r}, expected a positive whole number")


class TrustRegion:
    """A box around the best point that grows with success and shrinks with failure (TuRBO, Eriksson et al. 2019)."""

    def __init__(self, options: ScboOptions, dims: int, batch_size: int):
        self.options = options
        self.length = options.length
        self.failures = options.failures or math.ceil(max(4.0, dims / 10) / batch_size)
        self._good = 0
        self._bad = 0

    def update(self, better: bool) -> None:
        """Take note of a batch."""
        self._good, self._bad = (self._good + 1, 0) if better else (0, self._bad + 1)
        if self._good >= self.options.successes:
            self.length, self._good = min(2 * self.length, self.options.length_max), 0
        elif self._bad >= self.failures:
            self.length, self._bad = self.length / 2, 0

    @property
    def converged(self) -> bool:
        """Whether it has shrunk as far as it goes."""
        return self.length < self.options.length_min

    def restart(self) -> None:
        """Give it its first size again."""
        self.length, self._good, self._bad = self.options.length, 0, 0


class Sampler:
    """Chooses what to try next from what is known (SCBO, Eriksson and Poloczek 2021).

    Args:
        options: of the search.
        device: where the Gaussian processes are.
        dtype: of their numbers.
        seed: of whatever is drawn.

    Raises:
        MissingExtraError: BoTorch is missing.
    """

    def __init__(self, options: ScboOptions, device: torch.device, dtype: torch.dtype, seed: int):
        require_botorch()
        self.options = options
        self.device = device
        self.dtype = dtype
        self.rng = np.random.default_rng(seed)
        self._last: dict[str, dict[str, Any]] = {}

    def choose(
        self,
        points: Array,
        losses: Array,
        excess: Array | None,
        best: int,
        length: float,
        count: int,
        admit: Callable[[Array], Array],
    ) -> Array:
        """Choose points by Thompson sampling.

        Args:
            points: what was tried, of shape (samples, dims).
            losses: what came out, of shape (samples,); lower is better.
            excess: by how much each is over the constraint, negative where it is within; None where all candidates are.
            best: the sample around which to search.
            length: of the trust region.
            count: how many points to choose.
            admit: makes of candidates those that may be tried, fewer or others.

        Returns:
            An array of shape (at most ``count``, dims), the most promising ones first, none of them twice.
        """
        from botorch.generation.sampling import ConstrainedMaxPosteriorSampling, MaxPosteriorSampling
        from botorch.models.model_list_gp_regression import ModelListGP

        # Small matrices: several threads wait for each other more than they compute.
        with _quietly(), self._drawing(), limited_threads(1):
            objective = self._fitted("loss", points, -copula(losses))
            scales = self._scales(objective)
            candidates = admit(self._candidates(points[best], length, scales))
            if not len(candidates):
                return candidates
            sampling: Any
            if excess is None:
                sampling = MaxPosteriorSampling(objective, replacement=False)
            else:
                constraint = ModelListGP(self._fitted("excess", points, excess))
                sampling = ConstrainedMaxPosteriorSampling(objective, constraint, replacement=False)
            with torch.no_grad():
                chosen = sampling(self._tensor(candidates), num_samples=min(count, len(candidates)))
        return np.unique(chosen.double().cpu().numpy(), axis=0)

    def _candidates(self, centre: Array, length: float, scales: Array) -> Array:
        """Points in the trust region, of which every one differs from its centre in some variables."""
        dims, count = len(centre), self.options.candidates
        sides = np.clip(length * scales, 0, 1)
        low, high = np.clip(centre - sides / 2, 0, 1), np.clip(centre + sides / 2, 0, 1)
        engine = torch.quasirandom.SobolEngine(dims, scramble=True, seed=int(self.rng.integers(2**31)))
        drawn = low + (high - low) * engine.draw(count).double().numpy()
        # TuRBO changes up to 20 variables of each candidate; half of ours change a few only, as exchanges do.
        changes = np.full(count, min(self.options.perturbed, dims), np.float64)
        changes[::2] = np.exp(self.rng.uniform(math.log(min(2, dims)), np.log(changes[::2])))
        changed = self.rng.random((count, dims)) < (changes / dims)[:, None]
        nothing = ~changed.any(1)
        changed[nothing, self.rng.integers(dims, size=int(nothing.sum()))] = True
        return np.where(changed, drawn, centre)

    def _fitted(self, name: str, points: Array, values: Array) -> Any:
        """A Gaussian process with the dimension-scaled priors of Hvarfner et al. (2024), fitted from the last one."""
        from botorch import fit_gpytorch_mll
        from botorch.exceptions.errors import ModelFittingError
        from botorch.models import SingleTaskGP
        from gpytorch.mlls import ExactMarginalLogLikelihood

        # The sign of the excess matters, so only its scale is made one.
        mean = values.mean() if name == "loss" else 0.0
        standard = self._tensor((values - mean) / (values.std() or 1.0))[:, None]
        model = SingleTaskGP(self._tensor(points), standard, outcome_transform=None)
        if name in self._last:
            model.load_state_dict(self._last[name])
        likelihood = ExactMarginalLogLikelihood(model.likelihood, model)
        # Where it fails, the parameters from its priors or from the last fit are good enough to go on with.
        with suppress(ModelFittingError):
            fit_gpytorch_mll(
                likelihood, optimizer_kwargs={"options": {"maxiter": self.options.fit_iterations}}, max_attempts=1
            )
        self._last[name] = {key: value for key, value in model.state_dict().items() if "train_" not in key}
        return model.eval()

    def _scales(self, model: Any) -> Array:
        """Sides of the trust region: variables that matter less may change more, at the same volume."""
        lengths = model.covar_module.lengthscale.detach().double().cpu().numpy().reshape(-1)
        weights = lengths / lengths.mean()
        return np.asarray(weights / np.exp(np.log(weights).mean()))

    def _tensor(self, array: Array) -> Tensor:
        return torch.as_tensor(array, dtype=self.dtype, device=self.device)

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        """A random state of its own: the caller's is left as it was."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(int(self.rng.integers(2**31)))
            yield


def copula(losses: Array) -> Array:
    """Losses as quantiles of the normal distribution, which their ranks decide: outliers do not count as such."""
    from scipy.stats import norm, rankdata  # takes long to import

    return np.asarray(norm.ppf((rankdata(losses) - 0.5) / len(losses)))


@contextmanager
def _quietly() -> Iterator[None]:
    """BoTorch warns of data that are not scaled as it likes, and of fits that took all the iterations they may."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def require_botorch() -> None:
    """Refuse to go on without BoTorch.

    Raises:
        MissingExtraError: it is missing; the message says how to get it.
    """
    require("optimal", "the optimal selector")
