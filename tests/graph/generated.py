"""Graphs that are drawn from the table of operators, with arguments of every kind and none, and what becomes of them.

``python -m tests.graph.generated COUNT SEED`` loads COUNT graphs one after the other. Whatever is raised and is no
`TorchorbitError`, by loading, `find_orbits`, `flops` or a run, ends the process with code 1, and a step of more than
`SECONDS` ends it by a signal; the seed of the graph is the last line of the output then. Otherwise that line says how
many graphs there were and what became of them.
"""

from __future__ import annotations

import collections
import json
import random
import signal
import sys
import time
import traceback
from typing import Any

import torch

import torchorbit
from tests.graph.bombs import ref, saved
from tests.graph.mutants import looked_at
from torchorbit.graph.loading import unpack
from torchorbit.operators.schema import kind_of
from torchorbit.operators.table import OPERATORS, REQUIRED

SECONDS = 10
#: Elements of all results together, up to which a graph is run.
RUN_ELEMENTS = 200_000

INTS = [0, 1, 2, 3, 4, 5, 7, 8, -1, -2, -3, 64, 1000, 65_536, 2**31 - 1, -(2**31) + 1, 2**40]
NUMBERS = [*INTS, 0.0, 0.5, 1.0, 2.5, -1.5, 1e-45, 1e38, 1e308, {"$float": "nan"}, {"$float": "inf"}, {"$float": "-inf"}, True, False]  # fmt: skip
TEXTS = [
    "none", "mean", "sum", "tanh", "ij", "xy", "constant", "reflect", "replicate", "circular", "zeros", "border",
    "same", "valid", "nearest", "bilinear", "bicubic", "area", "linear", "trilinear", "floor", "trunc", "fro", "nuc",
    "backward", "ortho", "prod", "amax", "amin", "L", "U", "gesvd", "reduced", "complete", "left", "right", "higher",
    "midpoint", "ab,bc->ac", "ab,cb", "ii->i", "...a->a...", "aa", ",", "->", "a" * 60, "", "x", "ab->", "a,b,c->abc",
]  # fmt: skip
DTYPES = ["float32", "int64", "bool", "complex64", "float64", "int8", "uint8", "quint8", "float16"]
SHAPES = [(2, 4), (2, 3, 8, 8), (4,), (), (0, 3), (1, 1), (6, 4, 4), (1, 2, 3, 4, 5), (3, 3), (65_536,), (2, 512, 512), (1, 0)]  # fmt: skip
BUFFERS = {
    "at": torch.tensor([0, 1]),
    "far": torch.tensor([[0, 70_000], [-9, 2]]),
    "mask": torch.tensor([True, False, True, True]),
    "square": torch.rand(4, 4),
    "kernel": torch.rand(3, 3, 3, 3),
    "row": torch.rand(4),
    "none": torch.rand(0, 3),
    "turns": torch.complex(torch.rand(2, 4), torch.rand(2, 4)),
}


class Drawn:
    """One graph."""

    def __init__(self, chance: random.Random):
        self.chance = chance
        self.results: list[Any] = [ref("x"), ref("x")]

    def graph(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        choice = self.chance.choice
        vertices = []
        for number in range(choice([1, 1, 2, 3])):
            name = choice(list(OPERATORS))
            vertices.append({"name": f"v{number}", "operator": name, "args": self.arguments(name)})
            if not OPERATORS[name].effect:
                self.results.append(choice([ref(f"v{number}")] * 4 + [ref(f"v{number}", 0)]))
        return saved(
            vertices,
            choice(SHAPES),
            choice(["float32"] * 4 + ["int64", "bool", "complex64"]),
            output=self.results[-1],
            buffers=BUFFERS,
        )

    def arguments(self, operator: str) -> dict[str, Any]:
        args = {}
        for name, default in OPERATORS[operator].parameters.items():
            if default is REQUIRED or self.chance.random() < 0.3:
                kinds = kind_of(operator, name).split("|")
                args[name] = self.of_kind(self.chance.choice(kinds))
        if self.chance.random() < 0.03 and args:
            args[self.chance.choice(list(args))] = self.of_kind(self.chance.choice(["int", "str", "tensor", "index"]))
        return args

    def tensor(self) -> Any:
        return self.chance.choice([*self.results * 2, *[{"$attr": name} for name in BUFFERS]])

    def small(self) -> Any:
        return self.chance.choice([0, 1, 1, 2, 2, 3, -1, 4] if self.chance.random() < 0.7 else INTS)

    def of_kind(self, kind: str) -> Any:
        choice = self.chance.choice
        length = choice([0, 1, 1, 2, 2, 3, 4])
        if kind in ("ints", "lengths", "sections", "pairs"):
            return [self.small() for _ in range(length)]
        if kind == "tensors":
            return [self.tensor() for _ in range(length)]
        if kind == "numbers":
            return [choice(NUMBERS) for _ in range(length)]
        if kind == "index":
            return choice([self.small(), self.tensor(), [{"$ellipsis": True}, self.small()], {"$list": [self.small(), self.small()]}, {"$slice": [self.small(), None, self.small()]}, [{"$slice": [None, None, None]}, self.tensor()], [None, self.tensor(), self.small()]])  # fmt: skip
        return {
            "none": lambda: None,
            "tensor": self.tensor,
            "number": lambda: choice(NUMBERS),
            "bool": lambda: choice([True, False]),
            "int": self.small,
            "str": lambda: choice(TEXTS),
            "dtype": lambda: {"$dtype": choice(DTYPES)},
            "device": lambda: {"$device": choice(["cpu", "cpu", "cuda:0", "meta"])},
            "memory_format": lambda: {"$memory_format": choice(["contiguous_format", "channels_last", "preserve_format"])},
        }[kind]()  # fmt: skip


class Run:
    """Graphs, one after the other.

    Attributes:
        outcomes: how many were refused, did not run, ran, or were too large to be run.
        longest: seconds of the longest load.
    """

    def __init__(self) -> None:
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.longest = 0.0

    def one(self, seed: int) -> None:
        document, tensors = Drawn(random.Random(seed)).graph()
        started = time.thread_time()
        try:
            dag = unpack(document, tensors)
        except torchorbit.CheckpointError:
            self.outcomes["refused"] += 1
            return
        finally:
            self.longest = max(self.longest, time.thread_time() - started)
        self.outcomes[looked_at(dag, RUN_ELEMENTS)] += 1


def main(count: str, first: str) -> None:
    """Load so many graphs."""
    torch.set_num_threads(1)
    run = Run()
    for seed in range(int(first), int(first) + int(count)):
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        sys.stdout.write(f"{seed}\n")
        sys.stdout.flush()
        try:
            run.one(seed)
        except BaseException:
            traceback.print_exc()
            raise SystemExit(1) from None
    sys.stdout.write(json.dumps({**run.outcomes, "seconds": round(run.longest, 2)}) + "\n")


if __name__ == "__main__":
    import warnings

    warnings.simplefilter("ignore")
    main(*sys.argv[1:])
