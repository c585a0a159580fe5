"""How far torchorbit comes with models that are not timm's classifiers: other libraries' and hand-written ones.

Every model is converted, compared with its graph at two batch sizes and in training mode, pruned, proved, saved and
loaded, in a process of its own with a limit of time. What was found out is appended to `runs/generality.jsonl`, a
record per line, and a model that has a record is passed over; `results/generality.md` is made of the records.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import importlib
import json
import logging
import multiprocessing
import os
import random
import re
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "runs" / "generality.jsonl"
PAGE = ROOT / "results" / "generality.md"
COMMAND = "nox -s bench -- generality"
TOLERANCE = 1e-4
"""Largest difference, over the largest number, at which two outputs count as equal."""
BATCHES = (2, 3)

CLASSES = {
    "proved": "everything below holds",
    "whole": "converts and is equal, but every channel is frozen, as where all stages are outputs",
    "evaluation only": "as proved, but convert said that its training mode is not held",
    "refused": "an error of torchorbit, on purpose",
    "crashed": "another error, or the limit of time",
    "wrong": "a difference without an error",
}


@dataclasses.dataclass
class Record:
    """What was found out about a model; None is what was not reached."""

    source: str
    model: str
    verdict: str = "crashed"
    stage: str = "build"
    reason: str = ""
    converts: bool = False
    equal: bool | None = None
    training_equal: bool | None = None
    loaded_equal: bool | None = None
    orbits: int | None = None
    units: int | None = None
    proved: bool | None = None
    removable: float | None = None
    unruled: list[str] = dataclasses.field(default_factory=list)
    seconds: float = 0.0

    @property
    def key(self) -> str:
        return f"{self.source}/{self.model}"


class DifferenceError(Exception):
    """Two outputs that should be equal are not."""


# -- one model


class Inquiry:
    """Finds out about one model, stage by stage."""

    def __init__(self, case: Any, record: Record):
        self.case = case
        self.record = record

    def run(self) -> None:
        import torch

        import torchorbit

        record = self.record
        started = time.perf_counter()
        try:
            with torch.no_grad():
                self.find_out()
        except torchorbit.TorchorbitError as error:
            record.verdict, record.reason = "refused", one_line(error)
        except DifferenceError as error:
            record.verdict, record.reason = "wrong", str(error)
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(place.filename).name}:{place.lineno}"
            record.verdict, record.reason = "crashed", f"{type(error).__name__}: {one_line(error)} ({where})"
        record.seconds = round(time.perf_counter() - started, 1)

    def find_out(self) -> None:
        import torch

        import torchorbit

        record = self.record
        torch.manual_seed(crc32(self.case.key.encode()))
        self.model = settled(self.case.build())
        self.source = copy.deepcopy(self.model)
        self.batches = BATCHES

        record.stage = "source"
        self.inputs = {batch: self.case.example(batch) for batch in BATCHES}
        for inputs in self.inputs.values():
            called(self.source.eval(), inputs)

        record.stage = "convert"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.graph = torchorbit.convert(self.model.eval(), self.inputs[BATCHES[0]])
        record.converts = True

        record.stage = "compare"
        record.equal = False
        for batch in BATCHES:
            self.same(f"at batch size {batch}", self.source.eval(), self.graph.eval(), batch)
        record.equal = True

        record.stage = "save and load"
        record.loaded_equal = False
        with tempfile.TemporaryDirectory() as folder:
            self.graph.save(folder)
            loaded = torchorbit.load(folder)
        self.same("after saving and loading", self.source, loaded.eval(), BATCHES[1])
        record.loaded_equal = True

        record.stage = "prune"
        self.prune()

        record.stage = "train"
        assert self.graph.provenance is not None
        if self.graph.provenance.mode == "evaluation":
            parts = ", ".join(self.graph.provenance.training_differs[:3])
            record.verdict, record.reason = "evaluation only", f"training takes another path in {parts}"
            return
        record.training_equal = False
        self.compare_training()
        record.training_equal = True
        record.verdict = "proved" if record.orbits else "whole"
        record.stage = ""

    def same(self, when: str, source: Any, graph: Any, batch: int) -> None:
        """Compare what two models compute, the same numbers being drawn at random by both."""
        import torch

        inputs = self.inputs[batch]
        torch.manual_seed(batch)
        expected = called(source, copy.deepcopy(inputs))
        torch.manual_seed(batch)
        actual = called(graph, copy.deepcopy(inputs))
        compare(when, tensors_of(expected), tensors_of(actual))

    def compare_training(self) -> None:
        self.same("in training mode", self.source.train(), self.graph.train(), BATCHES[0])
        given = dict(self.graph.named_buffers())
        kept = {name: buffer for name, buffer in self.source.named_buffers() if name in given}
        compare("after a pass in training mode", list(kept.values()), [given[name] for name in kept], list(kept))

    def prune(self) -> None:
        """Prove that half of every orbit can be removed, and all of it but one unit."""
        import torchorbit

        record, graph = self.record, self.graph
        orbits = torchorbit.find_orbits(graph)
        record.orbits, record.units = len(orbits), sum(orbit.width for orbit in orbits)
        record.unruled = sorted(getattr(orbits, "unruled", ()))
        if not len(orbits):
            record.removable = 0.0
            return
        record.proved = False
        smallest = {orbit: list(range(1, orbit.width)) for orbit in orbits}
        generator = random.Random(crc32(self.case.key.encode()))
        half = {orbit: sorted(generator.sample(range(orbit.width), orbit.width // 2)) for orbit in orbits}
        for what, removed in (("half", half), ("all but one unit", smallest)):
            pruned = torchorbit.remove_channels(graph, removed)
            for batch in BATCHES:
                difference = torchorbit.verify_removal(graph, pruned, removed, copy.deepcopy(self.inputs[batch]))
                if not difference <= TOLERANCE:
                    raise DifferenceError(
                        f"with {what} of every orbit removed the output differs by {difference:.2g} of the largest"
                    )
        whole = torchorbit.flops(graph).total
        record.removable = round(1 - torchorbit.flops(pruned).total / whole, 4) if whole else 0.0
        record.proved = True


def settled(model: Any) -> Any:
    """Let a model drop nothing at random, and give it numbers that hide nothing: none are all zero."""
    import torch
    from torch import nn

    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and any(word in name for word in ("drop", "stochastic")):
                setattr(module, name, 0.0)
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
        if type(module).__name__ == "StochasticDepth":
            module.p = 0.0
    with torch.no_grad():
        for parameter in model.parameters():
            # What was never set may hold anything.
            if parameter.is_floating_point() and not 0 < parameter.abs().max() < 1e3:
                parameter.normal_(0, 0.1)
    return model


def called(model: Any, inputs: Any) -> Any:
    return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


def tensors_of(output: Any) -> list[Any]:
    """The tensors of an output, whatever holds them: what kind of container it is, is not compared here."""
    from torch import Tensor

    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, dict):
        output = output.values()
    elif dataclasses.is_dataclass(output):
        output = [getattr(output, field.name) for field in dataclasses.fields(output)]
    elif not isinstance(output, (tuple, list)):
        return []
    return [tensor for part in output for tensor in tensors_of(part)]


def compare(when: str, expected: list[Any], actual: list[Any], names: list[str] | None = None) -> None:
    """Two lists of tensors have to be equal."""
    import torch

    shapes, given = [tuple(t.shape) for t in expected], [tuple(t.shape) for t in actual]
    if shapes != given:
        raise DifferenceError(f"{when} the shapes of the outputs are {given}, the source's are {shapes}")
    names = names or [f"output #{position}" for position in range(len(expected))]
    for name, wanted, found in zip(names, expected, actual, strict=True):
        if wanted.dtype != found.dtype:
            raise DifferenceError(f"{when} {name} is {found.dtype}, the source's is {wanted.dtype}")
        if torch.equal(torch.nan_to_num(wanted), torch.nan_to_num(found)):
            continue
        if not torch.equal(torch.isfinite(wanted), torch.isfinite(found)):
            raise DifferenceError(f"{when} {name} is not finite in other places than the source's")
        wanted, found = (torch.nan_to_num(t, 0, 0, 0).to(torch.complex128) for t in (wanted, found))
        difference = (wanted - found).abs().max().item() / (wanted.abs().max().item() or 1.0)
        if not difference <= TOLERANCE:
            raise DifferenceError(f"{when} {name} differs by {difference:.2g} of the largest")


def one_line(error: BaseException) -> str:
    text = re.sub(r"0x[0-9a-f]{6,}", "0x...", " ".join(str(error).split()))
    for folder in (str(ROOT) + "/", sys.prefix + "/", *(f"{path}/" for path in sys.path if path)):
        text = text.replace(folder, "")
    return text if len(text) <= 400 else f"{text[:300]} ... {text[-80:]}"


# -- all of them


def cases() -> list[Any]:
    import foreign
    import handwritten

    return [*foreign.cases(), *handwritten.CASES]


def import_library(source: str) -> str | None:
    """Import what the models of a source are built with; says what is missing."""
    import foreign

    try:
        importlib.import_module(foreign.MODULES.get(source, "handwritten"))
    except ImportError as error:
        return f"{error.name} is not installed"
    return None


def work(case: Any, path: Path) -> None:
    """What a process does: append the record of one model."""
    sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - for the rest of the process
    record = Record(case.source, case.name)
    Inquiry(case, record).run()
    append(record, path)


def append(record: Record, path: Path) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(dataclasses.asdict(record)) + "\n")


def read(path: Path) -> dict[str, Record]:
    """The last record of every model."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    records = [Record(**json.loads(line)) for line in lines]
    return {record.key: record for record in records}


def attend(case: Any, path: Path, limit: float) -> Iterator[None]:
    """Run one model in a process of its own; yields until it has a record."""
    process = multiprocessing.get_context("fork").Process(target=work, args=(case, path))
    started = time.perf_counter()
    process.start()
    while process.is_alive() and time.perf_counter() - started < limit:
        yield
    if process.is_alive():
        process.kill()
    process.join()
    if process.exitcode != 0:
        late = process.exitcode == -9
        reason = f"took more than {limit:.0f} s" if late else f"the process ended with exit code {process.exitcode}"
        seconds = round(time.perf_counter() - started, 1)
        append(Record(case.source, case.name, stage="unknown", reason=reason, seconds=seconds), path)


def run_all(wanted: list[Any], path: Path, limit: float, jobs: int) -> None:
    """Run models, some at a time; those of one source follow each other, so that its library is imported once."""
    waiting, running, missing = list(wanted), [], {}
    while waiting or running:
        while waiting and len(running) < jobs:
            case = waiting.pop(0)
            if case.source not in missing:
                missing[case.source] = import_library(case.source)
                if missing[case.source]:
                    print(f"{case.source} is left out: {missing[case.source]}", file=sys.stderr)
            if not missing[case.source]:
                running.append((case, attend(case, path, limit)))
        for entry in list(running):
            try:
                next(entry[1])
            except StopIteration:
                running.remove(entry)
                record = read(path)[entry[0].key]
                print(f"{record.key}: {record.verdict} in {record.seconds} s {record.reason[:160]}", flush=True)
        time.sleep(0.02)


# -- the page


def page(records: Iterable[Record], versions: str) -> str:
    """The page in markdown."""
    from tabulate import tabulate

    records = list(records)
    sources = list(dict.fromkeys(record.source for record in records))
    rows = [row(source, [r for r in records if r.source == source]) for source in sources]
    rows.append(row("**all**", records))
    headers = [
        "source",
        "models",
        "converts",
        "equal",
        "training equal",
        "loaded equal",
        "proved",
        "removable FLOPs, median",
        *list(CLASSES)[1:],
    ]
    parts = [
        "# Models that are not timm's classifiers",
        f"Made by `{COMMAND}` with {versions}. All have random weights and are as small as their libraries let "
        "them be; `benchmarks/foreign.py` and `benchmarks/handwritten.py` say how each is built.",
        tabulate(rows, headers, tablefmt="github", disable_numparse=True),
        summary(records),
        explanation(),
        "## Not proved",
        others([r for r in records if r.verdict != "proved"]),
        "## All models",
        details(records),
    ]
    return "\n\n".join(parts) + "\n"


def summary(records: list[Record]) -> str:
    """Of the models in which there is anything to prove, how many are proved."""
    able = [record for record in records if record.verdict != "whole"]
    proved = sum(record.verdict == "proved" for record in able)
    return (
        f"In all but {len(records) - len(able)} of the {len(records)} models there may be a channel to remove. "
        f"Of these {proved} are proved ({proved / max(len(able), 1):.1%})."
    )


def explanation() -> str:
    meanings = "\n".join(f"- {name}: {meaning}" for name, meaning in CLASSES.items())
    return (
        f"- equal: at batch sizes {BATCHES[0]} and {BATCHES[1]}, to {TOLERANCE:g} of the largest number\n"
        "- training equal: outputs and the buffers after one pass, nothing being dropped at random\n"
        "- proved: what is left when half of every orbit, and all of it but one unit, are removed computes what the "
        "whole graph computes with zeros, at both batch sizes\n\n"
        f"Each model is of one class:\n\n{meanings}"
    )


def row(name: str, records: list[Record]) -> list[str]:
    def share(holds: Callable[[Record], Any]) -> str:
        count = sum(map(bool, map(holds, records)))
        return f"{count} ({count / len(records):.0%})"

    counts = Counter(record.verdict for record in records)
    removable = sorted(r.removable for r in records if r.verdict == "proved" and r.removable is not None)
    return [
        name,
        str(len(records)),
        share(lambda r: r.converts),
        share(lambda r: r.equal),
        share(lambda r: r.training_equal),
        share(lambda r: r.loaded_equal),
        share(lambda r: r.verdict == "proved"),
        f"{removable[len(removable) // 2]:.0%}" if removable else "",
        *[str(counts[verdict]) for verdict in list(CLASSES)[1:]],
    ]


def others(records: list[Record]) -> str:
    from tabulate import tabulate

    def cell(text: str) -> str:
        return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")

    def told(record: Record) -> str:
        if record.verdict != "refused":
            return ""
        return "yes" if re.search(r"\.py[:\",]+ ?(line )?\d+", record.reason) else "no"

    rows = [[r.source, r.model, r.verdict, r.stage, told(r), cell(r.reason)] for r in records]
    headers = ["source", "model", "class", "stage", "says file and line", "reason"]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True) if rows else "None."


def details(records: list[Record]) -> str:
    from tabulate import tabulate

    def mark(value: bool | None) -> str:
        return "" if value is None else "yes" if value else "no"

    def number(value: int | None) -> str:
        return "" if value is None else str(value)

    rows = [
        [
            r.source, r.model, r.verdict, number(r.orbits), number(r.units),
            mark(r.equal), mark(r.training_equal), mark(r.loaded_equal), mark(r.proved),
            "" if r.removable is None else f"{r.removable:.0%}", f"{r.seconds:.1f}",
        ]
        for r in records
    ]  # fmt: skip
    headers = [
        "source",
        "model",
        "class",
        "orbits",
        "units",
        "equal",
        "training",
        "loaded",
        "proved",
        "removable",
        "seconds",
    ]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def versions() -> str:
    from importlib.metadata import PackageNotFoundError, version

    import torchorbit

    names = (
        "torch torchvision timm transformers segmentation_models_pytorch ultralytics diffusers monai open_clip_torch"
    )
    found = [f"torchorbit {torchorbit.__version__}"]
    for name in names.split():
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def prepare() -> None:
    """Settings that libraries read when they are imported, and no others' messages."""
    from torchorbit.torchvision_parts import declare_missing_operators

    os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.mkdtemp())
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", DIFFUSERS_VERBOSITY="error")
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    declare_missing_operators()
    import torch

    torch.set_num_threads(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", action="append", metavar="PART", help="only models with this in 'source/name'; may be repeated"
    )
    parser.add_argument("--models", type=int, help="only so many")
    parser.add_argument("--limit", type=float, default=180.0, help="seconds that a model may take")
    parser.add_argument("--jobs", type=int, default=1, help="models at a time")
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--fresh", action="store_true", help="forget earlier records")
    parser.add_argument(
        "--again", action="append", metavar="CLASS", choices=list(CLASSES), help="run those of this class again"
    )
    arguments = parser.parse_args()

    prepare()
    path = arguments.records
    path.parent.mkdir(parents=True, exist_ok=True)
    if arguments.fresh:
        path.unlink(missing_ok=True)
    known = {key for key, r in read(path).items() if r.verdict not in (arguments.again or ())}
    every = cases()
    chosen = [case for case in every if any(part in case.key for part in arguments.only or [""])][: arguments.models]
    run_all([case for case in chosen if case.key not in known], path, arguments.limit, arguments.jobs)

    found = read(path)
    if missing := [case.key for case in every if case.key not in found]:
        print(f"no page: {len(missing)} models have no record")
    else:
        arguments.page.write_text(page([found[case.key] for case in every], versions()), encoding="utf-8")
    counts = Counter(record.verdict for record in found.values())
    print(", ".join(f"{counts[verdict]} {verdict}" for verdict in CLASSES))


if __name__ == "__main__":
    main()
