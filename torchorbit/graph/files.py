"""Open the files of a saved graph: which file may be read, how much of it, and whether it is what it says.

A folder may come from a stranger. Names of files are fixed and never taken from what a file says. A link is followed
only to a regular file in the folder itself or, as the cache of a hub lays its snapshots out, to
``../../blobs/<digest>`` of the repository that the snapshot belongs to. How long a file may be is checked before it
is read, and what the header of the weights says before a tensor is made.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from torchorbit.errors import ArgumentError, CheckpointError
from torchorbit.files import digest

FORMAT = "torchorbit-graph"
VERSION = 2
GRAPH_FILE = "graph.json"
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "README.md"

#: Longest ``graph.json``, and longest header of the weights; the largest model of timm needs 2 MB of the first.
MAX_DOCUMENT_BYTES = MAX_HEADER_BYTES = 16 * 1024**2
#: Most containers and commas of a JSON file; many times what the largest model of timm needs.
MAX_VALUES = 1_000_000
#: Deepest nesting of a JSON file: modules in modules, and in the last one arguments in arguments.
MAX_NESTING = 512
MAX_RANK = 64
_MAX_NUMEL = 2**48  # of a tensor without elements, with its empty dimensions left out

_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2"), 1),
}
_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8",
    torch.bool: "BOOL", torch.complex64: "C64", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip
_TYPES = {**{name: dtype for dtype, name in _NAMES.items()}, "F8_E5M2": torch.float8_e5m2}
_LINE = 64  # bytes; what torch aligns tensors to
_DIGEST = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?\Z")  # how the cache of the hub calls a blob
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_NO_MARKS = bytes(sorted(set(range(256)) - set(b'"[]{},')))
_QUOTED = re.compile(rb'"[^"]*"?')
_STEPS = {**dict.fromkeys(b"[{", 1), **dict.fromkeys(b"]}", -1), ord(","): 0}


@dataclass(frozen=True, slots=True)
class OpenFiles:
    """The files of a saved graph, opened once, so that what is compared with a hash is what is loaded.

    Attributes:
        folder: where they are.
        document: what ``graph.json`` held when it was read, once.
        weights: ``model.safetensors``. Its hash is of the open file, and that is what is mapped into memory: who puts
            another file in its place in the meantime changes nothing. Who writes into it while it is loaded is found
            out by its size and time, as exact as the file system keeps these; who does so later, or sets the time
            back, changes the weights, which are read when they are used.
    """

    folder: Path
    document: bytes
    weights: BinaryIO

    def file(self, name: str) -> tuple[int, str]:
        """The size of a file, and its SHA-256 in hexadecimal digits; ``name`` is `GRAPH_FILE` or `WEIGHTS_FILE`."""
        if name == GRAPH_FILE:
            return len(self.document), digest(self.document)
        self.weights.seek(0)
        return os.fstat(self.weights.fileno()).st_size, digest(self.weights)

    def graph(self) -> Any:
        """The content of ``graph.json``.

        Raises:
            CheckpointError: it is no JSON that a graph may be.
        """
        return parsed(self.document, str(self.folder / GRAPH_FILE))

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of ``model.safetensors``, mapped into memory and not read before they are used.

        Those that are not aligned there as torch aligns its own are copied; of a file that `write_weights` wrote they
        are those that do not fill whole lines of memory.

        Raises:
            CheckpointError: its header does not describe what is in it.
        """
        return _mapped(self.weights, str(self.folder / WEIGHTS_FILE))


@contextmanager
def open_files(folder: Path) -> Iterator[OpenFiles]:
    """Open the files of a saved graph.

    Raises:
        CheckpointError: one is missing or may not be read, ``graph.json`` is longer than `MAX_DOCUMENT_BYTES`, or the
            weights were written to in the meantime.
    """
    path = permitted(folder, GRAPH_FILE)
    with opened(path) as file:
        document = file.read(MAX_DOCUMENT_BYTES + 1)
    if len(document) > MAX_DOCUMENT_BYTES:
        raise CheckpointError(f"'{path}' is longer than the {MAX_DOCUMENT_BYTES} bytes that a graph may have")
    with opened(permitted(folder, WEIGHTS_FILE)) as weights:
        before = os.fstat(weights.fileno())
        yield OpenFiles(folder, document, weights)
        after = os.fstat(weights.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise CheckpointError(
            f"'{folder / WEIGHTS_FILE}' was written to while it was loaded; load it again when nobody writes to it"
        )


def write_weights(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors to a safetensors file, one after the other.

    Those that fill whole lines of memory come first, and the first begins at one: mapped into memory they are aligned
    as torch's own tensors are. Kernels choose their way by that, and some round differently on another.

    Raises:
        CheckpointError: a tensor is of a dtype that the format does not have.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            raise CheckpointError(f"tensor '{name}' is of dtype {tensor.dtype}, which the file format does not have")
    order = sorted(tensors, key=lambda name: (tensors[name].nbytes % _LINE != 0, -tensors[name].itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        tensor = tensors[name]
        offsets = [end, end + tensor.nbytes]
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        end += tensor.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-(8 + len(text)) % _LINE)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            # Copy tensor by tensor, so that at most one copy is alive: those on another device, or parts of others.
            plain = tensors[name].detach().cpu().contiguous().reshape(-1)
            if plain.numel():
                file.write(plain.view(torch.uint8).numpy().data)


def _mapped(file: BinaryIO, name: str) -> dict[str, Tensor]:
    """The tensors of an open file of weights, of a mapping of which each keeps what it is in."""
    file.seek(0)
    header, start = _checked_header(file, name)
    tensors = {}
    try:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        for key, entry in header.items():
            dtype, (begin, end) = _TYPES[entry["dtype"]], entry["data_offsets"]
            if begin == end:
                tensors[key] = torch.empty(entry["shape"], dtype=dtype)
                continue
            held = torch.frombuffer(mapping, dtype=torch.uint8, offset=start + begin, count=end - begin)
            # Code that counts the elements of a mask, and code that picks them, need not agree on a byte of 2.
            if dtype == torch.bool and int(held.max()) > 1:
                raise CheckpointError(f"'{name}' is damaged: tensor '{key}' has bytes that are neither true nor false")
            tensor = held.view(dtype).view(entry["shape"])
            tensors[key] = tensor.clone() if tensor.data_ptr() % _LINE else tensor
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"'{name}' cannot be mapped into memory: {error}") from error
    return tensors


def parsed(data: bytes, name: str) -> Any:
    """Parse JSON: no entry twice, no numbers that JSON does not have, no text that cannot be written again.

    How many values it holds and how deep they are nested is counted before anything is made of them.

    Raises:
        CheckpointError: it is something else, holds more than `MAX_VALUES` containers and commas, or is nested deeper
            than `MAX_NESTING`; ``name`` says what.
    """
    check_extent(data, name)
    try:
        text = data.decode("utf-8")
        document = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
        if _ESCAPED_SURROGATE.search(text):  # one half of a character, perhaps
            json.dumps(document, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"'{name}' is no JSON: {error}") from error
    return document


def check_extent(data: bytes, name: str) -> None:
    """Look at the marks in JSON that do not stand in strings, which takes little time and memory whatever it holds.

    Raises:
        CheckpointError: it holds more than `MAX_VALUES` containers and commas, or is nested deeper than `MAX_NESTING`;
            ``name`` says what.
    """
    plain = data.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in data else data
    # Of most strings only the quotes are left. Two strings become one where only these stand between them.
    marks = _QUOTED.sub(b"", plain.translate(None, _NO_MARKS).replace(b'""', b""))
    values = len(marks) - marks.count(b"]") - marks.count(b"}")
    if values > MAX_VALUES:
        raise CheckpointError(f"'{name}' holds {values} containers and commas; expected at most {MAX_VALUES}")
    depth = max(accumulate(map(_STEPS.__getitem__, marks)), default=0)
    if depth > MAX_NESTING:
        raise CheckpointError(f"'{name}' is nested {depth} deep; expected at most {MAX_NESTING}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ArgumentError(f"an object has two entries '{twice:.200}'")
    return result


def _refuse_constant(constant: str) -> Any:
    raise ArgumentError(f"{constant} is no number")


def permitted(folder: Path, name: str) -> Path:
    """Where a file of a saved graph is, if it may be read.

    Raises:
        CheckpointError: there is none, or it is a link to somewhere else.
    """
    path = folder / name
    try:
        is_link = stat.S_ISLNK(path.lstat().st_mode)
        home = folder.resolve(strict=True)
        real = path.resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"'{folder}' holds no {name} that can be opened; expected a folder that DagModule.save wrote ({error})"
        ) from error
    if is_link and real.parent != home and not _is_blob(home, real):
        raise CheckpointError(f"'{path}' is a link to '{real}', outside of the folder; it is not followed")
    return real


def _is_blob(snapshot: Path, path: Path) -> bool:
    """Whether a path is where the cache of a hub keeps the files of ``<repository>/snapshots/<revision>/...``."""
    if not _DIGEST.match(path.name):
        return False
    return any(
        parent.name == "snapshots" and path.parent == parent.parent / "blobs" for parent in list(snapshot.parents)[:4]
    )


def opened(path: Path) -> BinaryIO:
    """Open what `permitted` found.

    Raises:
        CheckpointError: it cannot be opened, or is no regular file.
    """
    # A pipe is not waited for, and what has become a link in the meantime is not followed.
    flags = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))
    try:
        handle = os.open(path, flags)
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be opened: {error}") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise CheckpointError(f"'{path}' is no regular file")
    return os.fdopen(handle, "rb")


def _checked_header(file: BinaryIO, name: str) -> tuple[dict[str, Any], int]:
    """The entries of a file of weights, and where its data begins.

    A header that promises what is not in the file is refused, before anything is made by it.
    """
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
        raise CheckpointError(f"'{name}' is damaged: {size} bytes, of which the header is said to be {length}")
    header = parsed(file.read(length), f"{name}, header")
    if not isinstance(header, dict):
        raise CheckpointError(f"'{name}' is damaged: its header is no JSON object")
    notes = header.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
        raise CheckpointError(f"'{name}' is damaged: its metadata is no JSON object of texts")
    spans: list[tuple[int, int]] = []
    for key, entry in header.items():
        try:
            spans.append(_span(entry, 8 + length))
        except (TypeError, ValueError, KeyError) as error:
            raise CheckpointError(f"'{name}' is damaged: tensor '{key[:200]}': {error}") from error
    end = 0
    for start, stop in sorted(spans):
        if start != end:
            raise CheckpointError(f"'{name}' is damaged: its tensors overlap, or have something between them")
        end = stop
    if end != size - 8 - length:
        raise CheckpointError(
            f"'{name}' is damaged: its tensors take {end} bytes, and {size - 8 - length} are in the file"
        )
    return header, 8 + length


def _span(entry: Any, data_start: int) -> tuple[int, int]:
    """Where a tensor begins and ends, counted from the end of the header."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ArgumentError("dtype, shape and data_offsets are expected")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BYTES:
        raise ArgumentError(f"{dtype!r:.100} is no dtype; expected one of {', '.join(_BYTES)}")
    for numbers, at_most in ((shape, MAX_RANK), (offsets, 2)):
        if not isinstance(numbers, list) or len(numbers) > at_most:
            raise ArgumentError("its shape and offsets are lists of numbers")
        if any(type(number) is not int or number < 0 for number in numbers):
            raise ArgumentError("its shape and offsets are numbers from 0 on")
    if math.prod(length or 1 for length in shape) > _MAX_NUMEL:
        raise ArgumentError(f"its shape {shape!r:.100} is too large")
    start, stop = offsets
    if stop - start != math.prod(shape) * _BYTES[dtype]:
        raise ArgumentError(f"{stop - start} bytes do not make a {dtype} of shape {shape!r:.100}")
    if (data_start + start) % _BYTES[dtype]:
        raise ArgumentError(f"it begins at byte {data_start + start}, where no {dtype} may begin")
    return start, stop
