"""What is left of a model's accuracy at half of its FLOPs, with no training after pruning.

Models of timm, trained here on handwritten digits or on emoji (`trained.py`), are pruned by every criterion and every
selector of torchorbit, and by every criterion of Torch-Pruning in many ways (`torch_pruning_options.py`). FLOPs are
counted the same way (`torchorbit.flops`), the training images to look at and the test images are the same. Of the ways
to use Torch-Pruning the best on the test images is shown, which is in its favour.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import inspect
import json
import platform
import shlex
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor, nn

import torchorbit
from torch_pruning_options import IMPORTANCES, Option, Pruned, Pruner, first_options, in_steps, more_options
from torchorbit import Scores
from torchorbit.criteria import CRITERIA, Criterion, LossCriterion, WeightCriterion
from torchorbit.selectors import SELECTORS, Selector
from trained import CACHE, DATA, MODELS, RECIPES, Images, images, trained
from training import BATCH, top1

PACKAGES = ("torchorbit", "torch-pruning", "torch", "timm", "mlxtend")
#: Selectors that search for minutes go with the best criteria alone.
SEARCHES = ("optimal",)
#: What asks for the loss without some units, thousands of times, gets so many batches, and draws so often.
LOSS_BATCHES = 1
LOSS_SAMPLES = 1
LEADERS = 3


@dataclass(frozen=True)
class Outcome:
    """What one way to prune came to.

    Attributes:
        accuracy: on the test images, the mean over seeds.
        flops: the share that is left.
        seconds: from the whole model to the pruned one.
        option: how it was done.
        error: why it could not be done.
    """

    accuracy: float
    flops: float
    seconds: float
    option: str = ""
    error: str = ""


@dataclass(frozen=True)
class Case:
    """A trained model, and what it is measured with.

    Attributes:
        name: what it is called.
        model: in evaluation mode.
        data: its images.
        accuracy: of the whole model on the test images.
        flops: which share of the FLOPs is to be left.
        seeds: of what is drawn.
        steps: in how many the best are pruned as well.
        measured: what is known already.
    """

    name: str
    model: nn.Module
    data: Images
    accuracy: float
    flops: float
    seeds: range
    steps: Sequence[int]
    measured: Measured

    @property
    def example(self) -> Tensor:
        """One sample."""
        return self.data.test[0][:1]


def say(text: str) -> None:
    """Tell how far it is."""
    print(text, file=sys.stderr, flush=True)


# -- torchorbit


class Ours:
    """torchorbit on a model.

    Args:
        case: the model.
    """

    def __init__(self, case: Case):
        self.case = case
        self.dag = torchorbit.convert(case.model, case.example)
        self.orbits = torchorbit.find_orbits(self.dag)
        self.whole = torchorbit.flops(self.dag).total
        self.batches = list(zip(*(part.split(BATCH) for part in case.data.calibration), strict=True))
        self._scores: dict[tuple[str, int], tuple[Scores, float]] = {}

    def scores(self, name: str, seed: int) -> tuple[Scores, float]:
        """The scores of a criterion, and how many seconds they took."""
        key = name, seed
        if key not in self._scores:
            started = time.perf_counter()
            criterion = _made(CRITERIA[name], seed)
            if isinstance(criterion, WeightCriterion):
                scores = criterion.scores(self.orbits)
            else:
                batches = self.batches[:LOSS_BATCHES] if isinstance(criterion, LossCriterion) else self.batches
                scores = torchorbit.calibrate(self.dag, batches, loss, [criterion], orbits=self.orbits)[criterion]
            self._scores[key] = scores, time.perf_counter() - started
        return self._scores[key]

    def outcome(self, criterion: str, selector: Selector, steps: int = 1) -> Outcome:
        """Prune, and test; the mean over seeds where something is drawn."""
        drawn = any("seed" in _options(kind) for kind in (CRITERIA[criterion], type(selector)))
        found = []
        for seed in self.case.seeds if drawn else self.case.seeds[:1]:
            by: Any = criterion
            spent = 0.0
            if steps == 1:
                by, spent = self.scores(criterion, seed)
            started = time.perf_counter()
            smaller = torchorbit.prune(
                self.dag,
                loader=self.batches,
                loss=loss,
                flops=self.case.flops,
                criterion=by,
                selector=_seeded(selector, seed),
                steps=steps,
                seed=seed,
            )
            spent += time.perf_counter() - started
            accuracy = top1(smaller, *self.case.data.test)
            found.append((accuracy, torchorbit.flops(smaller).total / self.whole, spent))
        option = f"{criterion}, {selector}" + (f", {steps} steps" if steps > 1 else "")
        return Outcome(*(statistics.mean(column) for column in zip(*found, strict=True)), option)


def loss(output: Tensor, sample: tuple[Tensor, Tensor]) -> Tensor:
    """Cross entropy, the mean over a batch."""
    return F.cross_entropy(output, sample[1])


def _options(kind: type[Criterion] | type[Selector]) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(kind).parameters)


def _seeded(selector: Selector, seed: int) -> Any:
    return replace(selector, seed=seed) if "seed" in _options(type(selector)) else selector  # type: ignore[type-var]


def _made(kind: Callable[..., Any], seed: int) -> Any:
    wanted = {"seed": seed, "verbose": False, "sv_samples": LOSS_SAMPLES}
    return kind(**{name: value for name, value in wanted.items() if name in _options(kind)})  # type: ignore[arg-type]


def ways(name: str) -> list[Any]:
    """A selector as it is by default, and, where it can be told so, with scores as they are and for what units cost."""
    selector: Any = _made(SELECTORS[name], 0)
    options = _options(SELECTORS[name])
    found = [selector]
    if "normalization" in options:
        found.append(replace(selector, normalization=None))
        if "per_cost" in options:
            found.append(replace(selector, normalization=None, per_cost=True))
    return found


def selectors_for_a_target() -> list[str]:
    """Those that come down to a number of FLOPs with no more said."""
    found = []
    for name, kind in SELECTORS.items():
        asked = [
            option
            for option in _options(kind).values()
            if option.default is option.empty and option.kind not in (option.VAR_POSITIONAL, option.VAR_KEYWORD)
        ]
        if not asked and kind().needs_target:
            found.append(name)
    return found


def measure_ours(
    case: Case, criteria: Sequence[str], selectors: Sequence[str]
) -> tuple[dict[tuple[str, str], Outcome], list[Outcome]]:
    """Every criterion with every selector; and what more steps make of the best of them."""
    ours = Ours(case)
    found: dict[tuple[str, str], Outcome] = {}

    def take(criterion: str, selector: Selector, steps: int = 1) -> Outcome:
        what = f"{case.name}, torchorbit, {criterion}, {selector}, {steps} steps"
        return case.measured.outcome(what, partial(ours.outcome, criterion, selector, steps))

    chosen = {str(way): way for name in selectors if name not in SEARCHES for way in ways(name)}
    for criterion in criteria:
        for label, selector in chosen.items():
            found[criterion, label] = take(criterion, selector)
    leaders = _leaders(found)
    for criterion in dict.fromkeys([criterion for criterion, _ in leaders] or criteria):
        for name in [name for name in selectors if name in SEARCHES]:
            found[criterion, name] = take(criterion, ways(name)[0])
    return found, [take(criterion, chosen[label], steps) for criterion, label in leaders for steps in case.steps]


# -- Torch-Pruning


def measure_torch_pruning(case: Case) -> dict[str, list[Outcome]]:
    """Criterion -> what came of it, for every option that was tried."""
    pruner = Pruner(case.model, case.example, case.data.calibration, case.flops)
    found: dict[str, list[Outcome]] = {}
    tried: dict[Option, Outcome] = {}

    def take(options: Iterator[Option]) -> None:
        for option in options:
            if option not in tried:
                what = f"{case.name}, Torch-Pruning, {option.importance}, {option}"
                outcome = tried[option] = case.measured.outcome(what, partial(_theirs, pruner, case, option))
                found.setdefault(option.importance, []).append(outcome)

    take(first_options(case.model))
    for importance in list(found):
        for option in _leaders({key: value for key, value in tried.items() if key.importance == importance})[:1]:
            take(more_options(option))
    for option in _leaders(tried):
        take(in_steps(option, case.steps))
    return found


def _theirs(pruner: Pruner, case: Case, option: Option) -> Outcome:
    found = []
    for seed in case.seeds if IMPORTANCES[option.importance].draws else case.seeds[:1]:
        pruned = pruner.prune(option, seed)
        found.append((_better_of_two(pruned, case), pruned.flops, pruned.seconds))
    return Outcome(*(statistics.mean(column) for column in zip(*found, strict=True)), str(option))


def _better_of_two(pruned: Pruned, case: Case) -> float:
    """The accuracy with queries divided by the root of the whole heads' width, or of what is left of it.

    timm's fused attention takes the latter, its other one the former; Torch-Pruning's example has the fused one.
    """
    accuracy = top1(pruned.model, *case.data.test)
    attentions: list[Any] = [module for module in pruned.model.modules() if hasattr(module, "fused_attn")]
    for attention in attentions:
        attention.fused_attn = True
    return max(accuracy, top1(pruned.model, *case.data.test)) if attentions else accuracy


# -- tables


class Measured:
    """What was measured already, kept in a file so that a run that was stopped goes on where it was.

    Args:
        path: a JSON object per line; made where there is none.
        settings: that the outcomes depend on; those of others are left alone.
    """

    def __init__(self, path: Path, settings: str):
        self.path = path
        self.settings = settings
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        entries = [json.loads(line) for line in lines]
        self.known = {e["what"]: Outcome(**e["outcome"]) for e in entries if e["settings"] == settings}

    def outcome(self, what: str, measure: Callable[[], Outcome]) -> Outcome:
        """What came of something, measured where it is not known; an error is an outcome, too."""
        if what not in self.known:
            self.known[what] = _tried(measure)
            entry = {"settings": self.settings, "what": what, "outcome": asdict(self.known[what])}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        outcome = self.known[what]
        say(f"{what}: {_cell(outcome)} {outcome.error}")
        return outcome


def _tried(action: Callable[[], Outcome]) -> Outcome:
    try:
        return action()
    except Exception as error:
        return Outcome(0.0, 0.0, 0.0, error=" ".join(f"{type(error).__name__}: {error}".split())[:200])


def _leaders(found: dict[Any, Outcome]) -> list[Any]:
    """The keys of the best."""
    able = [key for key, outcome in found.items() if not outcome.error]
    return sorted(able, key=lambda key: found[key].accuracy, reverse=True)[:LEADERS]


def _best(outcomes: Sequence[Outcome]) -> Outcome:
    return max(outcomes, key=lambda outcome: (not outcome.error, outcome.accuracy))


def _cell(outcome: Outcome | None) -> str:
    if outcome is None:
        return ""
    return "fails" if outcome.error else f"{outcome.accuracy:.1%}"


def _table(rows: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def our_tables(found: dict[tuple[str, str], Outcome], steps: Sequence[Outcome]) -> Iterator[str]:
    """Accuracies and times, criteria by selectors."""
    criteria = list(dict.fromkeys([criterion for criterion, _ in found]))
    selectors = list(dict.fromkeys([selector for _, selector in found]))
    rows = []
    for criterion in criteria:
        outcomes = [found.get((criterion, selector)) for selector in selectors]
        able = [outcome.seconds for outcome in outcomes if outcome is not None and not outcome.error]
        rows.append([criterion, *map(_cell, outcomes), f"{statistics.median(able):.1f}" if able else ""])
    times = []
    for selector in selectors:
        able = [outcome.seconds for (_, name), outcome in found.items() if name == selector and not outcome.error]
        times.append(f"{statistics.median(able):.1f}" if able else "")
    rows.append(["*seconds*", *times, ""])
    yield _table(rows, ["torchorbit", *selectors, "seconds"])
    if steps:
        rows = [[outcome.option, _cell(outcome), f"{outcome.seconds:.1f}"] for outcome in steps if not outcome.error]
        yield _table(rows, ["scored anew in steps", "accuracy", "seconds"])
    yield from _errors({f"{criterion}, {selector}": outcome for (criterion, selector), outcome in found.items()})


def their_tables(found: dict[str, list[Outcome]]) -> Iterator[str]:
    """For each criterion the best that it came to."""
    rows = []
    for importance, outcomes in found.items():
        best = _best(outcomes)
        details = ["fails", "", "", ""] if best.error else [_cell(best), best.option, f"{best.flops:.3f}", ""]
        details[-1] = f"{best.seconds:.1f}" if not best.error else ""
        rows.append([importance, *details, str(len(outcomes))])
    yield _table(rows, ["Torch-Pruning", "best accuracy", "by", "FLOPs left", "seconds", "options tried"])
    worst = {importance: _best(outcomes) for importance, outcomes in found.items()}
    yield from _errors({importance: best for importance, best in worst.items() if best.error})


def _errors(outcomes: dict[str, Outcome]) -> Iterator[str]:
    rows = [[what, outcome.error.replace("|", "\\|")] for what, outcome in outcomes.items() if outcome.error]
    if rows:
        yield _table(rows, ["fails", "error"])


def section(case: Case, criteria: Sequence[str], selectors: Sequence[str], alone: bool) -> str:
    """What came of one model."""
    parts = [f"## {case.name}", f"The whole model: {case.accuracy:.1%}."]
    found, steps = measure_ours(case, criteria, selectors)
    parts += our_tables(found, steps)
    ours = _best([*found.values(), *steps])
    said = f"Best of torchorbit: {_cell(ours)} ({ours.option})."
    if not alone:
        theirs = measure_torch_pruning(case)
        parts += their_tables(theirs)
        best = {importance: _best(outcomes) for importance, outcomes in theirs.items()}
        name = max(best, key=lambda importance: best[importance].accuracy)
        said += f" Best of Torch-Pruning: {_cell(best[name])} ({name}, {best[name].option})."
    return "\n\n".join([*parts, said])


def main() -> None:
    """Train, prune, test and print."""
    offered = selectors_for_a_target()
    names = list(MODELS)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=list(DATA), default="digits", help="what they are trained and tested on")
    parser.add_argument("--models", type=int, default=len(names), help="only the first so many models")
    parser.add_argument("--only", action="append", choices=names, help="only this model; can be repeated")
    parser.add_argument("--criteria", nargs="+", choices=list(CRITERIA), default=list(CRITERIA), metavar="NAME")
    parser.add_argument("--selectors", nargs="+", choices=offered, default=offered, metavar="NAME")
    parser.add_argument("--epochs", type=int, help="of training; by default as many as each model needs")
    parser.add_argument("--flops", type=float, default=0.5, help="share that is to be left")
    parser.add_argument("--calibration", type=int, default=512, help="training images to look at while pruning")
    parser.add_argument("--seeds", type=int, default=3, help="for what is drawn")
    parser.add_argument(
        "--steps", nargs="*", type=int, default=[3, 10], metavar="N", help="prune the best in so many steps, too"
    )
    parser.add_argument("--alone", action="store_true", help="without Torch-Pruning")
    parser.add_argument("--out", type=Path, help="write the tables to this file as well, say results/criteria.md")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in PACKAGES)
    parts = [
        "# Criteria and selectors",
        f"Top-1 accuracy on the test images of the {options.data} of models pruned to {options.flops:.0%} of their "
        f"FLOPs, with no training after pruning. {options.calibration} training images to calibrate on; means over "
        f"{options.seeds} seeds where something is drawn; Shapley values from {LOSS_SAMPLES} permutation on one batch. "
        "Seconds are those from a model to the pruned one; for Torch-Pruning at a ratio that is known, without the "
        f"search for it. Made by `nox -s bench -- criteria {shlex.join(sys.argv[1:])}`.",
        f"{platform.machine()}, {torch.get_num_threads()} threads, {versions}",
    ]
    for name in options.only or names[: options.models]:
        model = trained(name, options.data, options.epochs)
        data = images(options.data, RECIPES[name, options.data].size, options.calibration)
        settings = f"{options.data} {options.flops} {options.calibration} {options.seeds} {options.epochs} {versions}"
        case = Case(
            name,
            model,
            data,
            top1(model, *data.test),
            options.flops,
            range(options.seeds),
            options.steps,
            Measured(CACHE / "outcomes.jsonl", settings),
        )
        parts.append(section(case, options.criteria, options.selectors, options.alone))
    text = "\n\n".join(parts)
    print(text)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
