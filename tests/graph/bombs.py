"""Saved graphs made by hand to take long, to take much memory, or to load and not to run: all have to be refused.

Each is a function that gives the document and the tensors. None is longer than 16 MiB, the most that is read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Saved = tuple[dict[str, Any], dict[str, Tensor]]
#: Name -> what makes it.
BOMBS: dict[str, Callable[[], Saved]] = {}
#: Those of them that only a run for real would find out.
NOT_RUNNING: set[str] = set()
#: Those that load, in little time: what they ask for again and again is tried once.
HARMLESS = {"softmaxes"}


def ref(name: str, *index: Any) -> dict[str, Any]:
    return {"$ref": [name, *index]}


def operator(name: str, operator: str, **args: Any) -> dict[str, Any]:
    return {"name": name, "operator": operator, "args": args}


def saved(
    vertices: list[dict[str, Any]], shape: Any = (2, 4), dtype: str = "float32", output: Any = None, **root: Any
) -> Saved:
    """A graph of one input ``x`` and some vertices; a tensor among what the root has is one of the weights."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in root.get("buffers", {}).items():
        tensors[name] = tensor
    root["buffers"] = {name: [name, True] for name in tensors}
    last = vertices[-1]["name"] if vertices else "x"
    document = {
        "format": "torchorbit-graph",
        "version": 2,
        "provenance": {"input_shapes": [list(shape)], "input_dtypes": [dtype]},
        "root": {
            "kind": "graph",
            "vertices": [{"input": "x", "shape": list(shape)}, *vertices],
            "output": ref(last) if output is None else output,
            **root,
        },
    }
    return document, tensors


def bomb(make: Callable[[], Saved]) -> Callable[[], Saved]:
    BOMBS[make.__name__] = make
    return make


def bombs(**cases: Callable[[], Saved]) -> None:
    BOMBS.update(cases)


def not_running(**cases: Callable[[], Saved]) -> None:
    BOMBS.update(cases)
    NOT_RUNNING.update(cases)


def many(count: int, name: str, **args: Any) -> list[dict[str, Any]]:
    """One operator on the input, again and again."""
    return [operator(f"v{n}", name, **{"input": ref("x"), **args}) for n in range(count)]


def chain(count: int, name: str, key: str = "input", **args: Any) -> list[dict[str, Any]]:
    """One operator on what it gave before, again and again."""
    return [operator(f"v{n}", name, **{key: ref(f"v{n - 1}" if n else "x")}, **args) for n in range(count)]


def different(count: int, name: str, key: str, values: Callable[[int], Any], **args: Any) -> list[dict[str, Any]]:
    """One operator on the input with another argument every time."""
    return [operator(f"v{n}", name, input=ref("x"), **{key: values(n)}, **args) for n in range(count)]


# -- what a few vertices return

bombs(
    unbinds=lambda: saved(many(30, "unbind"), (65_536,)),
    unbinds_of_one=lambda: saved(many(50_000, "unbind"), (64,)),
    splits=lambda: saved(many(30, "split", split_size_or_sections=1), (60_000,)),
    chunks=lambda: saved(many(40, "chunk", chunks=60_000), (60_000,)),
    tensor_splits=lambda: saved(many(30, "tensor_split", indices_or_sections=60_000), (60_000,)),
    sections=lambda: saved(many(4, "split", split_size_or_sections=[1] * 50_000), (50_000,)),
    meshgrids=lambda: saved([operator(f"v{n}", "meshgrid", tensors=[ref("x")] * 60) for n in range(2000)], (1,)),
    broadcasts=lambda: saved([operator(f"v{n}", "broadcast_tensors", tensors=[ref("x")] * 240) for n in range(1000)]),
)

# -- calls that are slow on meta, each of them with another argument

bombs(
    softmaxes=lambda: saved(chain(20_000, "softmax", dim=-1)),
    normalizes=lambda: saved(different(45_000, "normalize", "p", lambda n: 2.5 + n)),
    bicubic=lambda: saved(
        different(20_000, "interpolate", "size", lambda n: [n + 1, n + 2], mode="bicubic"), (1, 1, 4, 4)
    ),
    lp_pools=lambda: saved(
        different(20_000, "lp_pool2d", "norm_type", lambda n: n + 1.5, kernel_size=2), (1, 1, 40, 40)
    ),
    einsums=lambda: saved(
        [
            operator(f"v{n}", "einsum", equation=",".join([chr(97 + n % 26) + chr(65 + n // 26 % 26)] * 40), operands=[ref("x")] * 40)
            for n in range(5000)
        ]
    ),
    vars=lambda: saved(different(40_000, "var", "correction", lambda n: n / 2)),
    norms=lambda: saved([operator(f"v{n}", "vector_norm", x=ref("x"), ord=n + 0.5) for n in range(40_000)]),
    windows=lambda: saved([operator(f"v{n}", "kaiser_window", window_length=n + 1) for n in range(30_000)]),
    unfolds=lambda: saved(different(20_000, "im2col", "kernel_size", lambda n: [1 + n % 50, 1 + n // 50]), (1, 1, 500, 500)),
    ffts=lambda: saved(different(30_000, "rfft2", "s", lambda n: [n + 1, n + 1]), (4, 4)),
    bilinear=lambda: saved(different(20_000, "interpolate", "scale_factor", lambda n: 1 + n / 1000, mode="bilinear"), (1, 1, 4, 4)),
)  # fmt: skip


# -- containers, names and blocks


@bomb
def lists_in_lists() -> Saved:
    """Forty blocks, each of which returns what it is given twice."""
    return nested_blocks(40, [ref("x"), ref("x")], through=True)


@bomb
def blocks_in_blocks() -> Saved:
    return nested_blocks(40, ref("z"), through=False)


def nested_blocks(levels: int, output: Any, *, through: bool) -> Saved:
    block: dict[str, Any] = {"kind": "graph", "vertices": [{"input": "x"}], "output": ref("x")}
    for _ in range(levels):
        calls = [{"name": "y", "module": "a", "leaf": "", "args": [ref("x")]}]
        if through:
            given: Any = [ref("y"), ref("y")]
        else:
            calls.append({"name": "z", "module": "a", "leaf": "", "args": [ref("y")]})
            given = output
        block = {"kind": "graph", "vertices": [{"input": "x"}, *calls], "output": given, "children": {"a": block}}
    return saved([{"name": "b", "module": "b", "leaf": "", "args": [ref("x")]}], children={"b": block})


@bomb
def long_paths() -> Saved:
    module: dict[str, Any] = {"kind": "container", "children": {f"c{n}": {"kind": "container"} for n in range(50_000)}}
    for _ in range(50):
        module = {"kind": "container", "children": {"n" * 1000: module}}
    return saved([], children={"a": module})


@bomb
def long_names_in_blocks() -> Saved:
    block: dict[str, Any] = {
        "kind": "graph",
        "vertices": [{"input": "x"}, *chain(900, "relu")],
        "output": ref("v899"),
    }
    for level in range(40):
        call = {"name": f"b{level}" + "n" * 900, "module": "a", "leaf": "", "args": [ref("x")]}
        block = {
            "kind": "graph",
            "vertices": [{"input": "x"}, call],
            "output": ref(call["name"]),
            "children": {"a": block},
        }
    return saved([{"name": "b", "module": "b", "leaf": "", "args": [ref("x")]}], children={"b": block})  # fmt: skip


def shared(levels: int, deep: int) -> Saved:
    """Containers that hold the one before them twice, below each other."""
    children: dict[str, Any] = {"m0": {"kind": "container"}}
    for level in range(1, levels):
        same: dict[str, Any] = {"kind": "container"}
        same["children"] = {name: {"kind": "same", "path": f"m{level - 1}"} for name in ("a", "b")[: 2 - deep]}
        children[f"m{level}"] = same
    return saved([], children=children)


bombs(
    modules_that_are_the_same=lambda: shared(60, 0),
    modules_that_are_the_same_and_deep=lambda: shared(3000, 1),
    fields=lambda: saved([], output={"$namedtuple": ["A", [f"f{n}" for n in range(20_000)], [1] * 20_000]}),
    many_values=lambda: saved([], output=[[1] * 10] * 100_000),
    many_vertices=lambda: saved(chain(50_001, "relu")),
    constants_in_blocks=lambda: saved(
        [{"name": f"b{n}", "module": "b", "leaf": "", "args": [ref("x")]} for n in range(20_000)],
        children={"b": {"kind": "graph", "vertices": [{"input": "x"}], "output": [1] * 1000}},
    ),
    products=lambda: saved([], output=product(12, "*")),
    quotients=lambda: saved([], output={"$expr": ["//", product(12, "*"), product(11, "*")]}),
    deep_arguments=lambda: saved([], output=nested(5000)),
)  # fmt: skip


def product(levels: int, sign: str) -> Any:
    return 2**62 if not levels else {"$expr": [sign, product(levels - 1, sign), product(levels - 1, sign)]}


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


# -- sizes

bombs(
    overflowing_input=lambda: saved([], (2**63 - 1, 2)),
    overflowing_empty_input=lambda: saved([], (2**63 - 1, 0, 2**62)),
    large_input=lambda: saved([], (65_536, 65_536)),
    overflowing_expand=lambda: saved([operator("v", "expand", input=ref("x"), size=[2**31 - 1] * 9)], (1,)),
    overflowing_repeat=lambda: saved([operator("v", "repeat", input=ref("x"), repeats=[2**31 - 1] * 60)], (1,)),
    large_pad=lambda: saved([operator("v", "pad", input=ref("x"), pad=[2**31 - 1] * 4)]),
    large_outer=lambda: saved([operator("v", "outer", input=ref("x"), vec2=ref("x"))], (100_000,)),
    large_window=lambda: saved([operator("v", "hann_window", window_length=2**31 - 1), operator("w", "outer", input=ref("v"), vec2=ref("v"))]),
    large_kron=lambda: saved([operator("v", "kron", input=ref("x"), other=ref("x"))], (100_000,)),
    layers=lambda: saved([operator("v", "lstm", input=ref("x"), hx=[ref("x"), ref("x")], params=[ref("x")], has_biases=True, num_layers=2**31 - 1, dropout=0.0, train=False, bidirectional=True, batch_first=False)], (1, 1, 1)),
    a_number_for_few=lambda: saved([operator("v", "mvlgamma", input=ref("x"), p=2**31 - 1)]),
    power_of_a_matrix=lambda: saved([operator("v", "matrix_power", input=ref("x"), n=2**31 - 1)], (2, 2, 2, 3)),
)  # fmt: skip


bombs(
    gammas=lambda: saved([operator(f"v{n}", "mvlgamma", input=ref("x"), p=16_384 - n) for n in range(5000)]),
)

# -- what runs on meta tensors alone

POSITIONS = torch.tensor([0, 7])

not_running(
    floats_and_bits=lambda: saved([operator("v", "bitwise_and", input=ref("x"), other=ref("x"))]),
    many_floats_and_bits=lambda: saved([operator("v", "bitwise_and", input=ref("x"), other=ref("x"))], (512, 512)),
    shifted_floats=lambda: saved([operator("v", "gcd", input=ref("x"), other=ref("x"))], (512, 512)),
    probability=lambda: saved([operator("v", "dropout", input=ref("x"), p=7, training=False)]),
    probability_in_training=lambda: saved([operator("v", "dropout2d", input=ref("x"), p={"$mode": [-1.0, 0.5, ""]}, training=False)], (1, 2, 3, 3)),
    condition=lambda: saved([operator("v", "check", condition=ref("x"), message="")], output=1),
    condition_that_never_holds=lambda: saved([operator("v", "check", condition=0.0, message="")], output=1),
    device=lambda: saved([operator("v", "zeros", size=[2], device={"$device": "cuda:0"})]),
    device_of_a_copy=lambda: saved([operator("v", "to", input=ref("x"), device={"$device": "meta"})]),
    positions=lambda: saved([operator("v", "getitem", input=ref("x"), index={"$attr": "at"})], buffers={"at": POSITIONS}),
    positions_of_many=lambda: saved([operator("v", "getitem", input=ref("x"), index=[{"$slice": [None, None, None]}, {"$attr": "at"}])], (60_000, 4), buffers={"at": POSITIONS}),
    positions_in_a_list=lambda: saved([operator("v", "getitem", input=ref("x"), index=[{"$slice": [None, None, None]}, {"$list": [0, 9]}])], (60_000, 4)),
    positions_that_are_computed=lambda: saved([operator("a", "arange", start=0, end=9), operator("b", "add", input=ref("a"), other=60_000), operator("v", "index_select", input=ref("x"), dim=0, index=ref("b"))], (60_000, 4)),
    words=lambda: saved([operator("v", "embedding", input={"$attr": "at"}, weight=ref("x"))], (5, 60_000), buffers={"at": POSITIONS}),
    gathered=lambda: saved([operator("v", "gather", input=ref("x"), dim=1, index={"$attr": "at"})], (2, 4), buffers={"at": torch.full((2, 2), 4)}),
    negative_positions=lambda: saved([operator("v", "index_select", input=ref("x"), dim=1, index={"$attr": "at"})], buffers={"at": torch.tensor([-1])}),
    whole_numbers_and_convolution=lambda: saved([operator("w", "to", input={"$attr": "w"}, dtype={"$dtype": "int64"}), operator("v", "softmax", input=ref("x"), dim=1)], (512, 512), "int64", buffers={"w": torch.ones(2)}),
)  # fmt: skip
