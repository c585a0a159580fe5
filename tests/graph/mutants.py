"""Random changes of saved graphs, and a process that loads what comes of them.

``python -m tests.graph.mutants CORPUS SCRATCH COUNT SEED`` loads COUNT mutants of the saved graphs in CORPUS, one after
the other, in SCRATCH. What a mutant may do is enforced here: an error that is no `CheckpointError`, a graph that
is loaded and is not valid, and a file that is opened anywhere else end the process with code 1; a load of more than 5
seconds ends it by a signal, and the seed of the mutant is the last that stands in ``SCRATCH/seed``. The last line
of the output says how many mutants there were, and what became of them.
"""

from __future__ import annotations

import collections
import copy
import gc
import json
import math
import os
import random
import resource
import shutil
import signal
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

import torchorbit
from torchorbit.containers import leaves
from torchorbit.graph.loading import unpack
from torchorbit.graph.saving import pack
from torchorbit.graph.vertices import InputVertex

SECONDS = 5
#: What a load may add to the memory of the process; the largest file of the corpus has 2 MB.
LOAD_BYTES = 256 * 1024**2
#: Address space that the process may have beyond what it has when it starts: a forward may ask for anything.
SPACE_BYTES = 3 * 1024**3
#: Elements of all results together, up to which a mutant is run for real.
RUN_ELEMENTS = 20_000_000

STRINGS = [
    "", " ", "x", "x y", "x.y", ".", "..", "../../../etc/passwd", "/etc/passwd", "/dev/zero", "~", "file:///etc/passwd",
    "__class__", "__import__('this')", "os.system('touch touched')", "self", "None", "return", "lambda: 0", "{0}", "%s",
    "x); __import__('this'); (x", "'", '"', "\n", "\\", "\x00", "é", "\ud800", "\U0001d4b3", "x" * 100_000, "_type_0_Pair",
    "forward", "training", "_modules", "weight", "torch.nn.Linear", "Sequential", "cuda:0", "meta", "hpu:0", "nan",
    "float32", "int4", "same", "graph", "leaf", "antigravity", "this",
]  # fmt: skip
NUMBERS = [
    0, 1, -1, 2, 3, 7, 64, 1000, 65_536, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 10**30, -(2**31), -(2**63),
    0.0, -0.0, 0.5, -1.5, 1e-45, 1e38, 1e308, float("nan"), float("inf"), float("-inf"), True, False, 10**5000,
]  # fmt: skip
OTHERS = [
    None, [], {}, [[]], [None], {"a": 1}, {"$ref": []}, {"$ref": ["x"]}, {"$attr": "x"}, {"$float": "nan"},
    {"$expr": ["**", 10, {"$expr": ["**", 10, 10]}]}, {"$expr": ["<<", 1, 2**40]}, {"$expr": ["//", 1, 0]},
    {"$mode": [1, 2, ""]}, {"$namedtuple": ["open", ["file", "mode"], ["touched", "w"]]}, {"$slice": [None, None, 0]},
    {"$record": ["A", [["a", 1]], [["b", 2]], ["b"]]},
    {"$dtype": "float64"}, {"$dtype": "quint8"}, {"$device": "meta"}, {"$ellipsis": True}, {"$list": [1, 2]},
    {"$complex": [1.0, 2.0]}, {"$dict": [[1, 2]]}, {"$memory_format": "channels_last"}, {"kind": "same", "path": ""},
]  # fmt: skip


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in a document."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from places(value[key])


class Mutator:
    """Changes a document in place, at random places."""

    def __init__(self, document: Any, chance: random.Random):
        self.document = document
        self.chance = chance
        self.places = list(places(document))

    def place(self) -> tuple[Any, Any]:
        if not self.places:
            return {"": None}, ""
        if self.chance.random() < 0.5:
            return self.chance.choice(self.places)
        # Level by level: rare parts are as likely as those that there are hundreds of.
        container: Any = self.document
        while True:
            keys = list(container) if isinstance(container, dict) else range(len(container))
            if not keys:
                return self.chance.choice(self.places)
            key = self.chance.choice(keys)
            inner = container[key]
            if not isinstance(inner, (dict, list)) or not inner or self.chance.random() < 0.15:
                return container, key
            container = inner

    def change(self) -> None:
        container, key = self.place()
        try:
            value = container[key]
        except (KeyError, IndexError):
            return  # an earlier change took it away
        action = self.chance.choice(ACTIONS)
        action(self, container, key, value)

    def replace(self, container: Any, key: Any, value: Any) -> None:
        container[key] = copy.deepcopy(self.chance.choice([*STRINGS, *NUMBERS, *OTHERS]))

    def alike(self, container: Any, key: Any, value: Any) -> None:
        """Another value of the same type."""
        if isinstance(value, bool):
            container[key] = not value
        elif isinstance(value, (int, float)):
            near = [value + 1, value - 1, value * 2, -value, value // 2 if value == value else 0]
            container[key] = self.chance.choice([*near, *NUMBERS])
        elif isinstance(value, str):
            container[key] = self.chance.choice([value[:-1], value + "x", value.upper(), *STRINGS, self.other(str)])
        else:
            container[key] = copy.deepcopy(self.other(type(value)))

    def other(self, kind: type) -> Any:
        found = [
            c[k] for c, k in self.places if (isinstance(c, dict) and k in c) or (isinstance(c, list) and k < len(c))
        ]
        found = [value for value in found if type(value) is kind]
        return self.chance.choice(found) if found else None

    def drop(self, container: Any, key: Any, value: Any) -> None:
        del container[key]

    def double(self, container: Any, key: Any, value: Any) -> None:
        if isinstance(container, list):
            container.insert(self.chance.randrange(len(container) + 1), copy.deepcopy(value))
        else:
            container[self.chance.choice([f"{key}2", self.other(str) or "x", *STRINGS])] = copy.deepcopy(value)

    def rename(self, container: Any, key: Any, value: Any) -> None:
        if isinstance(container, dict):
            container[self.chance.choice([f"{key}_", self.other(str) or "x", *STRINGS])] = container.pop(key)

    def swap(self, container: Any, key: Any, value: Any) -> None:
        other, place = self.place()
        try:
            container[key], other[place] = copy.deepcopy(other[place]), copy.deepcopy(value)
        except (KeyError, IndexError):
            return

    def shuffle(self, container: Any, key: Any, value: Any) -> None:
        if isinstance(value, list):
            self.chance.shuffle(value)
        elif isinstance(value, dict):
            items = list(value.items())
            self.chance.shuffle(items)
            value.clear()
            value.update(items)

    def nest(self, container: Any, key: Any, value: Any) -> None:
        for _ in range(self.chance.choice([1, 2, 10, 70, 400, 3000])):
            value = self.chance.choice([[value], {"$list": [value]}, {"$mode": [value, 1, ""]}, {"kind": value}])
        container[key] = value

    def repeat(self, container: Any, key: Any, value: Any) -> None:
        if isinstance(value, list) and value:
            container[key] = value * self.chance.choice([2, 3, 50])
        elif isinstance(value, str) and value:
            container[key] = value * self.chance.choice([2, 3, 5000])


ACTIONS = [
    Mutator.replace, Mutator.replace, Mutator.alike, Mutator.alike, Mutator.alike, Mutator.alike, Mutator.drop, Mutator.double,
    Mutator.rename, Mutator.swap, Mutator.shuffle, Mutator.nest, Mutator.repeat,
]  # fmt: skip


def changed_document(data: bytes, chance: random.Random) -> bytes:
    limit, digits = sys.getrecursionlimit(), sys.get_int_max_str_digits()
    sys.setrecursionlimit(20_000)  # so that what is nested deeply can be written, and numbers of many digits
    sys.set_int_max_str_digits(0)
    try:
        mutator = Mutator(json.loads(data), chance)
        for _ in range(chance.choice([1, 1, 1, 2, 3])):
            mutator.change()
        return json.dumps(mutator.document).encode()
    finally:
        sys.setrecursionlimit(limit)
        sys.set_int_max_str_digits(digits)


def changed_bytes(data: bytes, chance: random.Random) -> bytes:
    """Bytes flipped, cut out, put in, repeated, cut off, added."""
    changed = bytearray(data)
    # In the first bytes of a file of weights stands how to read the others.
    end = chance.choice([16, 512, len(changed) + 1])
    for _ in range(chance.choice([1, 1, 2, 8])):
        place = chance.randrange(max(1, min(end, len(changed))))
        length = chance.choice([1, 2, 8, 100, 5000])
        action = chance.randrange(6)
        if action == 0 and changed:
            changed[place] ^= 1 << chance.randrange(8)
        elif action == 1:
            changed[place : place + length] = chance.randbytes(length)
        elif action == 2:
            del changed[place : place + length]
        elif action == 3:
            changed[place:place] = changed[place : place + length]
        elif action == 4:
            del changed[place:]
        else:
            changed += chance.choice([b"\x00", b"}", b"]", chance.randbytes(length)])
    return bytes(changed)


def changed_header(data: bytes, chance: random.Random) -> bytes:
    """A file of weights whose header says something else."""
    length = int.from_bytes(data[:8], "little")
    header = changed_document(data[8 : 8 + length], chance)
    header += b" " * (-len(header) % 8)
    length = len(header)
    if chance.random() < 0.1:
        length = chance.choice([0, 1, length - 8, length + 8, 2**20, 2**31, 2**63, 2**64 - 1])
    return length.to_bytes(8, "little") + header + data[8 + int.from_bytes(data[:8], "little") :]


def changed_folder(folder: Path, chance: random.Random) -> None:
    """Something in place of one of the files that is none, or not where it should be."""
    name = chance.choice(["graph.json", "model.safetensors"])
    path = folder / name
    action = chance.randrange(8)
    kept = path.read_bytes()
    path.unlink()
    if action == 0:
        path.symlink_to(chance.choice(["/etc/passwd", "/dev/zero", "..", "/proc/self/mem", name, "nothing"]))
    elif action == 1:
        path.mkdir()
    elif action == 2:
        os.mkfifo(path)
    elif action == 3:
        (folder.parent / "outside").write_bytes(kept)
        path.symlink_to(folder.parent / "outside")
    elif action == 4:
        (folder / "inside").write_bytes(kept)
        path.symlink_to("inside")
    elif action == 5:
        path.write_bytes(b"")
    elif action == 6:
        with path.open("wb") as file:
            file.truncate(2**40)  # a hole: it takes no space on the disk


def write_mutant(folder: Path, original: Path, chance: random.Random) -> None:
    """A changed copy of a saved graph."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    changes: dict[str, Callable[[bytes, random.Random], bytes]] = {}
    kind = chance.random()
    if kind < 0.75:
        changes["graph.json"] = changed_document
    elif kind < 0.83:
        changes["graph.json"] = changed_bytes
    elif kind < 0.93:
        changes["model.safetensors"] = changed_header
    elif kind < 0.98:
        changes["model.safetensors"] = changed_bytes
    for name in ("graph.json", "model.safetensors"):
        change = changes.get(name)
        if change is None:
            os.link(original / name, folder / name)
        else:
            (folder / name).write_bytes(change((original / name).read_bytes(), chance))
    if kind >= 0.98:
        changed_folder(folder, chance)


# -- what a mutant may do


class Watch:
    """Notes what is opened, imported or started while it is on, beyond the files of one folder."""

    WATCHED = (
        "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.spawn", "os.startfile", "socket.", "ctypes.",
        "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate", "shutil.",
        "pickle.find_class", "urllib.", "webbrowser.",
    )  # fmt: skip

    def __init__(self, folder: Path):
        self.folder = str(folder) + os.sep
        self.on = False
        self.found: list[str] = []
        paths = {sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
        # Python and torch import parts of themselves when they are first needed.
        self.libraries = tuple(
            {os.path.realpath(path) + os.sep for path in (*paths, Path(torch.__file__).parent.parent)}
        )
        self.known = {name.partition(".")[0] for name in sys.modules} | set(sys.stdlib_module_names)
        self.known -= {"this", "antigravity"}
        sys.addaudithook(self.hear)

    def hear(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            path, mode, flags = args
            if isinstance(path, int):
                return
            real = os.path.realpath(os.fsdecode(path))
            reads = not (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if not (reads and (real.startswith((self.folder, *self.libraries)) or real == self.folder[:-1])):
                self.found.append(f"opens {path!r} ({mode!r})")
        elif event == "import":
            if args[0].partition(".")[0] not in self.known:
                self.found.append(f"imports {args[0]}")
        elif event.startswith(self.WATCHED):
            self.found.append(f"{event} {args!r:.200}")


def check_valid(dag: torchorbit.DagModule, seed: int) -> str:
    """What a graph that was loaded can do: be looked at, saved again, and run or raise an ordinary error."""
    assert isinstance(dag, torchorbit.DagModule)
    dag.table()
    compile(dag.code, "code", "exec")
    state = dag.state_dict()
    document, tensors = pack(dag)
    again = unpack(json.loads(json.dumps(document, allow_nan=False)), tensors)
    assert list(again.state_dict()) == list(state)
    assert pack(again)[0] == document
    assert dag.graph == again.graph or "nan" in dag.code
    return looked_at(dag, RUN_ELEMENTS, analyses=seed % 20 == 0)


def looked_at(dag: torchorbit.DagModule, most: int, *, analyses: bool = True) -> str:
    """What a graph that was loaded can do: its orbits and FLOPs are found or refused, and it runs or raises."""
    shapes = [shape for m in dag.modules() if isinstance(m, torchorbit.DagModule) for shape in m.graph.shapes.values()]
    # Without elements a dimension may still be long, and labels are given to what is in each dimension.
    sizes = [math.prod([length or 1 for length in size]) for size in leaves(shapes) if isinstance(size, torch.Size)]
    if sum(sizes) > most:
        return "large"
    for look in (torchorbit.find_orbits, torchorbit.flops) if analyses else ():
        try:
            look(dag)
        except torchorbit.TorchorbitError:
            continue
    args, kwargs = inputs(dag)
    try:
        with torch.no_grad():
            dag(*args, **kwargs)
    except Exception:
        return "raises"
    return "runs"


def inputs(dag: torchorbit.DagModule) -> tuple[list[Any], dict[str, Any]]:
    """Inputs of the recorded shapes."""
    assert dag.provenance is not None
    floating = next((p.dtype for p in dag.parameters() if p.is_floating_point()), torch.float32)
    dtypes = iter(dag.provenance.input_dtypes)

    def make(shape: Any) -> Any:
        if isinstance(shape, torch.Size):
            dtype = getattr(torch, next(dtypes, "float32"))
            return torch.zeros(shape, dtype=floating if dtype.is_floating_point else dtype)
        if isinstance(shape, dict):
            return {key: make(item) for key, item in shape.items()}
        return None if shape is None else tuple(make(item) for item in shape)

    args, kwargs = [], {}
    for vertex in dag.vertices:
        if isinstance(vertex, InputVertex):
            value = vertex.fixed[0] if vertex.fixed else make(dag.graph.shapes[vertex.name])
            if vertex.keyword:
                kwargs[vertex.name] = value
            else:
                args.append(value)
    return args, kwargs


def memory(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


class Run:
    """Mutants, one after the other."""

    def __init__(self, corpus: Path, scratch: Path):
        self.originals = sorted(path for path in corpus.iterdir() if path.is_dir())
        self.folder = scratch / "mutant"
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.largest = 0
        self.seed_file = os.open(scratch / "seed", os.O_WRONLY | os.O_CREAT, 0o644)
        # What is imported, compiled and cached at the first use is none of a mutant's doing.
        for original in self.originals:
            check_valid(torchorbit.load(original), 0)
        self.watch = Watch(self.folder)

    def one(self, seed: int) -> None:
        """Make one mutant, and load it."""
        os.pwrite(self.seed_file, f"{seed:20d}\n".encode(), 0)
        chance = random.Random(seed)
        write_mutant(self.folder, chance.choice(self.originals), chance)
        Path("/proc/self/clear_refs").write_text("5")
        before = memory("VmRSS")
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.setitimer(signal.ITIMER_REAL, 10 * SECONDS)  # waiting takes no CPU time, and a busy machine much
        self.watch.on = True
        try:
            dag, message = torchorbit.load(self.folder), "loaded"
        except torchorbit.CheckpointError as error:
            dag, message = None, str(error)
        finally:
            self.watch.on = False
        assert 0 < len(message) < 5000
        self.largest = max(self.largest, memory("VmHWM") - before)
        assert memory("VmHWM") - before < LOAD_BYTES, f"loading takes {memory('VmHWM') - before} bytes"
        outcome = "refused"
        if dag is not None:
            self.watch.on = True
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            outcome = check_valid(dag, seed)
            self.watch.on = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert not self.watch.found, self.watch.found
        self.outcomes[outcome] += 1


def main(corpus: str, scratch: str, count: str, first: str) -> None:
    """Load so many mutants."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    run = Run(Path(corpus), Path(scratch))
    os.chdir(scratch)
    space = memory("VmSize") + SPACE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    gc.freeze()

    @seed(int(first))
    @settings(
        max_examples=int(count),
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, 2**63 - 1))
    def loads_or_refuses(number: int) -> None:
        try:
            run.one(number)
        except BaseException:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            run.watch.on = False
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)

    loads_or_refuses()
    sys.stdout.write(json.dumps({**run.outcomes, "megabytes": run.largest // 1024**2}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
