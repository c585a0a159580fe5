"""Open the files of a saved graph: which file may be read, how much of it, and whether it is what it says.

A folder may come from a stranger. Names of files are fixed and never taken from what a file says. A link is followed
only to a regular file in the folder itself or, as the cache of a hub lays its snapshots out, to
``../../blobs/<digest>`` of the repository that the snapshot belongs to. How long a file may be is checked before it
is read, and what the header of the weights says before a tensor is made.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from torchorbit.errors import ArgumentError, CheckpointError

FORMAT = "torchorbit-graph"
VERSION = 2
GRAPH_FILE = "graph.json"
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "README.md"

#: Longest ``graph.json``, and longest header of the weights; the largest model of timm needs 2 MB of the first.
MAX_DOCUMENT_BYTES = MAX_HEADER_BYTES = 16 * 1024**2
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
_LINE = 64  # bytes; what torch aligns tensors to
_DIGEST = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?\Z")  # how the cache of the hub calls a blob
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_document(folder: Path) -> Any:
    """The content of ``graph.json``.

    Raises:
        CheckpointError: there is none that may be read, or it is no JSON, or it is longer than `MAX_DOCUMENT_BYTES`.
    """
    path = permitted(folder, GRAPH_FILE)
    with opened(path) as file:
        data = file.read(MAX_DOCUMENT_BYTES + 1)
    if len(data) > MAX_DOCUMENT_BYTES:
        raise CheckpointError(f"'{path}' is longer than the {MAX_DOCUMENT_BYTES} bytes that a graph may have")
    return parsed(data, str(path))


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


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of ``model.safetensors``, mapped into memory and not read before they are used.

    Those that are not aligned there as torch aligns its own are copied; of a file that `write_weights` wrote they are
    those that do not fill whole lines of memory.

    Raises:
        CheckpointError: there is no such file that may be read, or its header does not describe what is in it.
    """
    path = permitted(folder, WEIGHTS_FILE)
    with opened(path) as file:
        _check_weights(file, str(path))
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"'{path}' is damaged: {error}") from error
    for name, tensor in tensors.items():
        # Code that counts the elements of a mask, and code that picks them, need not agree on a byte of 2.
        if tensor.dtype == torch.bool and tensor.numel() and int(tensor.view(torch.uint8).max()) > 1:
            raise CheckpointError(f"'{path}' is damaged: tensor '{name}' holds bytes that are neither true nor false")
    return {name: tensor.clone() if tensor.data_ptr() % _LINE else tensor for name, tensor in tensors.items()}


def parsed(data: bytes, name: str) -> Any:
    """Parse JSON: no entry twice, no numbers that JSON does not have, no text that cannot be written again.

    Raises:
        CheckpointError: it is something else; ``name`` says what.
    """
    try:
        text = data.decode("utf-8")
        document = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
        if _ESCAPED_SURROGATE.search(text):  # one half of a character, perhaps
            json.dumps(document, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"'{name}' is no JSON: {error}") from error
    return document


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        raise ArgumentError(f"an object has two entries '{next(name for name in names if names.count(name) > 1)}'")
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


def _check_weights(file: BinaryIO, name: str) -> None:
    """Refuse a header that promises what is not in the file, before anything is made by it."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
        raise CheckpointError(f"'{name}' is damaged: {size} bytes, of which the header is said to be {length}")
    header = parsed(file.read(length), f"{name}, header")
    if not isinstance(header, dict):
        raise CheckpointError(f"'{name}' is damaged: its header is no JSON object")
    header.pop("__metadata__", None)
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
