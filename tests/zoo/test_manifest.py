"""A manifest may come from a stranger: it is what it declares to be, or it is refused in one line."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import torchorbit
from zoo.cards import card
from zoo.manifest import (
    MANIFEST_FILE,
    Accuracy,
    Cost,
    File,
    Layer,
    Manifest,
    Method,
    Preprocessing,
    Reconstructed,
    Source,
    Step,
    Versions,
    Width,
    read_manifest,
)
from zoo.plots import write_plot
from zoo.preprocessing import transforms_of

MANIFEST = Manifest(
    name="resnet18.pruned-0.50",
    source=Source(
        model="resnet18.a1_in1k", weights="timm/resnet18.a1_in1k", base_model="timm/resnet18.a1_in1k", license="mit"
    ),
    steps=(
        Step(
            criterion=Method(name="magnitude"),
            selector=Method(name="knapsack", options={"tolerance": 0.01}),
            constraint=Method(name="bounds", options={"round_to": 8}),
            target="flops=0.5",
            data="none",
            seed=3,
            command="torchorbit prune resnet18.a1_in1k --flops 0.5",
            versions=Versions(torchorbit="0.1.0", torch="2.6.0", timm="1.0.9"),
            reconstruction=Reconstructed(
                method="layerwise", samples=128, proof=1e-7, layers=(Layer(layer="fc.weight", before=0.5, after=0.1),)
            ),
        ),
    ),
    before=Cost(gflops=3.629, kmapp=72.3, parameters=11_689_512),
    after=Cost(gflops=1.81, kmapp=36.1, parameters=5_900_000),
    accuracy=(Accuracy(dataset="imagenet-1k", split="validation", input_size=(3, 224, 224), before=0.71, after=0.69),),
    preprocessing=Preprocessing(input_size=(3, 224, 224), mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)),
    widths=(Width(layer="conv1", before=64, after=41), Width(layer="fc", before=1000, after=1000)),
    files={"graph.json": File(sha256="0" * 64, size=10), "model.safetensors": File(sha256="a" * 64, size=20)},
)
DOCUMENT: dict[str, Any] = json.loads(MANIFEST.text())


def read(content: Any, folder: Path) -> Manifest:
    if not isinstance(content, (str, bytes)):
        content = json.dumps(content)
    (folder / MANIFEST_FILE).write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_manifest(folder)


def refusal(content: Any, folder: Path) -> str:
    """Why a manifest is refused: in one line, of a length that a terminal takes."""
    with pytest.raises(torchorbit.CheckpointError) as caught:
        read(content, folder)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 1000 + len(str(folder))
    return message


def changed(path: str, value: Any) -> dict[str, Any]:
    """The document with another value in one place, which need not be there yet."""
    document = copy.deepcopy(DOCUMENT)
    *way, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    owner: Any = document
    for part in way:
        owner = owner[part]
    owner[last] = value
    return document


def places(node: Any, path: str = "") -> list[str]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    found = []
    for key, value in items:
        found.append(f"{path}{key}")
        found += places(value, f"{path}{key}/")
    return found


def test_a_manifest_that_was_written_is_read_as_it_was(tmp_path: Path) -> None:
    assert read(MANIFEST.text(), tmp_path) == MANIFEST


def test_what_has_a_default_may_be_missing(tmp_path: Path) -> None:
    cost = {"gflops": 1, "parameters": 2}
    document = {"name": "a", "source": {"model": "b", "weights": "c"}, "before": cost, "after": cost}
    manifest = read(document, tmp_path)
    assert (manifest.steps, manifest.accuracy, manifest.preprocessing, manifest.files) == ((), (), None, {})


@pytest.mark.parametrize("path", ["name", "source", "source/model", "source/weights", "before", "after/gflops"])
def test_what_has_no_default_may_not(tmp_path: Path, path: str) -> None:
    document = copy.deepcopy(DOCUMENT)
    owner = document
    *way, last = path.split("/")
    for part in way:
        owner = owner[part]
    del owner[last]
    assert path.replace("/", ".") in refusal(document, tmp_path)


OF_NO_FIELD = {"a": {"b": 1}}


# Options may be anything that JSON has a word for.
@pytest.mark.parametrize(
    "path", [path for path in places(DOCUMENT) if not path.startswith("files/") and "/options/" not in path]
)
def test_every_field_refuses_another_type(tmp_path: Path, path: str) -> None:
    given: Any = DOCUMENT
    for part in path.split("/"):
        given = given[int(part) if part.isdigit() else part]
    for value in (OF_NO_FIELD, [[1]], True):
        if not (isinstance(given, bool) and value is True) and not (path.endswith("/options") and value is OF_NO_FIELD):
            assert path.split("/")[0] in refusal(changed(path, value), tmp_path)
    refusal(changed(path, "1" if isinstance(given, (int, float)) else 1), tmp_path)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("format", "torchorbit-graph"),
        ("version", 3),
        ("version", 2.0),
        ("version", "2"),
        ("name", "x" * 2001),
        ("name", "\ud800"),
        ("source/license", ["mit"]),
        ("source/base_model", "../other"),
        ("source/base_model", "timm/a) [b](https://example.com"),
        ("source/base_model", "timm/a/b"),
        ("source/base_model", "timm/a\n"),
        ("steps/0/steps", 0),
        ("steps/0/steps", 1.5),
        ("steps/0/criterion", "magnitude"),
        ("steps/0/selector/options", {"tolerance": float("nan")}),
        ("steps/0/selector/options", {str(number): 1 for number in range(1001)}),
        ("steps/0/selector/options", {"ratios": json.loads("[" * 40 + "]" * 40)}),
        ("steps/0/seed", 10**400),
        ("steps/0/seed", "3"),
        ("steps/0/versions", {}),
        ("before/gflops", -0.1),
        ("before/gflops", float("nan")),
        ("before/gflops", float("inf")),
        ("before/gflops", 10**400),
        ("before/parameters", -1),
        ("before/parameters", 2**63),
        ("before/parameters", 1.5),
        ("before/kmapp", float("-inf")),
        ("accuracy/0/after", 1.001),
        ("accuracy/0/after", -0.001),
        ("accuracy/0/before", float("nan")),
        ("accuracy/0/input_size", [3, 224]),
        ("accuracy/0/input_size", [3, 224, 0]),
        ("preprocessing/input_size", [3, 2**21, 2**21]),
        ("preprocessing/input_size", [3, 224, 224, 224]),
        ("preprocessing/interpolation", "area"),
        ("preprocessing/crop_mode", "random"),
        ("preprocessing/crop_pct", 0),
        ("preprocessing/crop_pct", 1e-320),
        ("preprocessing/crop_pct", float("nan")),
        ("preprocessing/mean", [0.5]),
        ("preprocessing/mean", []),
        ("preprocessing/mean", [0.5, float("nan"), 0.5]),
        ("preprocessing/mean", [0.1] * 65),
        ("preprocessing/std", [0.2, 0.2, 0]),
        ("preprocessing/std", [0.2, 0.2]),
        ("dtype", "int8"),
        ("widths/0/before", -1),
        ("widths/0/layer", None),
        ("steps", [DOCUMENT["steps"][0]] * 1001),
        ("accuracy", [DOCUMENT["accuracy"][0]] * 1001),
        ("widths", [DOCUMENT["widths"][0]] * 100_001),
        ("files", {f"file{number}": DOCUMENT["files"]["graph.json"] for number in range(101)}),
        ("files/graph.json/sha256", "0" * 63),
        ("files/graph.json/sha256", "0" * 64 + "\n"),
        ("files/graph.json/sha256", "A" * 64),
        ("files/graph.json/size", -1),
        ("files/graph.json", "0" * 64),
    ],
)
def test_what_is_out_of_bounds_is_refused(tmp_path: Path, path: str, value: Any) -> None:
    message = refusal(changed(path, value), tmp_path)
    assert f"no manifest of a checkpoint: {path.split('/')[0]}" in message or value == "\ud800"


@pytest.mark.parametrize(
    "name",
    [
        "../model.safetensors",
        "..",
        ".",
        ".hidden",
        "",
        "/etc/passwd",
        "folder/file",
        "folder\\file",
        "C:file",
        "model.safetensors\n",
        "model\0",
        "-file",
        "~",
        "mödel",
        "x" * 101,
    ],
)
def test_a_file_is_never_one_in_another_folder(tmp_path: Path, name: str) -> None:
    document = copy.deepcopy(DOCUMENT)
    document["files"][name] = document["files"]["graph.json"]
    assert "files" in refusal(document, tmp_path)


@pytest.mark.parametrize(
    "path", ["", "source/", "steps/0/", "steps/0/versions/", "before/", "preprocessing/", "widths/1/"]
)
@pytest.mark.parametrize("key", ["more", "", "__class__", "two\nlines\x1b[31m", "x" * 5000])
def test_what_is_not_declared_is_refused(tmp_path: Path, path: str, key: str) -> None:
    assert "Extra inputs" in refusal(changed(path + key, 1) if "/" not in key else None, tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"1",
        b"not JSON",
        b"\x89PNG\r\n\x1a\n\0\0",
        b"\xff\xfe{\0}\0",
        b'{"name": "\xff"}',
        b"PK\x03\x04",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"steps": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"version": ' + b"1" * 100_000 + b"}",
        MANIFEST.text().encode() + b"{}",
        MANIFEST.text().encode("utf-16"),
        MANIFEST.text().encode()[:-10],
    ],
    ids=lambda content: repr(content[:16]),
)
def test_what_is_no_json_object_is_refused(tmp_path: Path, content: bytes) -> None:
    refusal(content, tmp_path)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / MANIFEST_FILE).open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(torchorbit.CheckpointError, match="is longer than the 16777216 bytes"):
        read_manifest(tmp_path)


def test_a_file_as_large_as_is_read_takes_no_time_and_is_refused_in_one_line(tmp_path: Path) -> None:
    refusal({"x" * (2**23): "y" * (2**22)}, tmp_path)
    refusal(changed("widths", [0] * 2**20), tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        (b'"name"', b'"name": "other", "name"', "two entries 'name'"),
        (b'"options": {', b'"options": {"a": 1, "a": 2', "two entries 'a'"),
        (b'"options": {', b'"options": {"a": ' + b"[" * 600 + b"]" * 600, "nested 60. deep"),
        (b'"options": {', b'"options": {"a": [' + b"0," * 1_000_000 + b"0]", "containers and commas"),
    ],
    ids=["two names", "two options", "deep", "many"],
)
def test_what_json_does_not_promise_is_refused(tmp_path: Path, old: bytes, new: bytes, match: str) -> None:
    """Whoever reads the first of two entries, or has no limit, would read another manifest."""
    content = json.dumps(changed("steps/0/selector/options", {})).encode()
    assert old in content
    assert re.search(match, refusal(content.replace(old, new, 1), tmp_path))


def test_a_folder_without_a_manifest_says_so(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(torchorbit.CheckpointError, match=r"holds no checkpoint\.json; expected the folder"):
            read_manifest(folder)
    (tmp_path / MANIFEST_FILE).mkdir()
    with pytest.raises(torchorbit.CheckpointError, match="is no regular file"):
        read_manifest(tmp_path)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["|", "\n---\n", "$^$", "`"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_mutated_manifest_is_refused_in_one_line_or_is_valid(tmp_path: Path, data: st.DataObject) -> None:
    document = copy.deepcopy(DOCUMENT)
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(places(document)))
        *way, last = path.split("/")
        owner: Any = document
        for part in way:
            owner = owner[int(part) if isinstance(owner, list) else part]
        what = data.draw(st.sampled_from(["replace", "delete", "add", "repeat"]))
        if isinstance(owner, list):
            if what == "repeat":
                owner.append(owner[int(last)])
            elif what == "delete":
                del owner[int(last)]
            else:
                owner[int(last)] = data.draw(_JSON)
        elif what == "delete":
            del owner[last]
        else:
            owner[last if what == "replace" else data.draw(st.text())] = data.draw(_JSON)
        if not places(document) or any("/" in key for key in _keys(document)):
            break
    try:
        manifest = read(json.dumps(document).encode("utf-8", "surrogatepass"), tmp_path)
    except torchorbit.CheckpointError:
        refusal(json.dumps(document).encode("utf-8", "surrogatepass"), tmp_path)
        return
    assert read(manifest.text(), tmp_path) == manifest
    if manifest.preprocessing is not None:
        transforms_of(manifest.preprocessing)
    assert ModelCard(card(manifest, "org/name")).data.library_name == "torchorbit"


def _keys(node: Any) -> list[str]:
    inner = list(node.values()) if isinstance(node, dict) else node if isinstance(node, list) else []
    return [*(node if isinstance(node, dict) else ()), *[key for value in inner for key in _keys(value)]]


@pytest.mark.parametrize("text", ["$\\frac{$", "$a$ $b", "_hidden", "\n\n", "", "x" * 2000, "模型", "\x00\x1b[31m"])
@pytest.mark.filterwarnings("error")
def test_any_text_and_any_width_is_drawn(tmp_path: Path, text: str) -> None:
    widths = [Width(layer=text, before=2**62, after=1), Width(layer=text, before=0, after=2**62)]
    manifest = MANIFEST.model_copy(
        update={"name": text, "source": Source(model=text, weights=text), "widths": tuple(widths)}
    )
    write_plot(manifest, tmp_path / "plot.png")
    write_plot(manifest.model_copy(update={"widths": ()}), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


FIRST_VERSION: dict[str, Any] = {
    "format": "torchorbit-checkpoint",
    "version": 1,
    "name": "resnet18.pruned-0.50",
    "source": {"model": "resnet18.a1_in1k", "weights": "timm/resnet18.a1_in1k", "base_model": None, "license": "mit"},
    "steps": [
        {
            "criterion": "taylor(signed=True)",
            "selector": "global(n_channels_or_ratio=0.5, per_cost)",
            "target": "flops=0.5 in 2 steps",
            "round_to": 8,
            "data": "100 images of imagenette (validation)",
            "seed": 3,
            "command": "torchorbit prune resnet18 --flops 0.5",
            "versions": {"torchorbit": "0.1.0", "torch": "2.6.0", "timm": "1.0.9"},
        },
        {
            "criterion": "magnitude",
            "selector": "uniform",
            "target": "ratio=0.2",
            "round_to": 1,
            "data": None,
            "seed": None,
            "command": None,
            "versions": {"torchorbit": "0.1.0", "torch": "2.6.0", "timm": None},
        },
    ],
    "before": {"gflops": 3.629, "kmapp": 72.3, "parameters": 11689512},
    "after": {"gflops": 1.81, "kmapp": 36.1, "parameters": 5900000},
    "accuracy": [],
    "preprocessing": None,
    "dtype": "float32",
    "widths": [{"layer": "conv1", "before": 64, "after": 41}],
    "files": {},
}


def test_a_manifest_of_the_first_version_is_read(tmp_path: Path) -> None:
    manifest = read(FIRST_VERSION, tmp_path)
    first, second = manifest.steps
    assert (str(first.criterion), first.criterion.known) == ("taylor(signed=True)", False)
    assert str(first.selector) == "global(n_channels_or_ratio=0.5, per_cost)"
    assert (str(first.constraint), second.constraint) == ("bounds(round_to=8)", None)
    assert (first.target, first.data, first.seed, first.command, first.versions.timm) == (
        "flops=0.5 in 2 steps", "100 images of imagenette (validation)", 3, "torchorbit prune resnet18 --flops 0.5", "1.0.9",
    )  # fmt: skip
    assert (manifest.version, manifest.widths[0].after, manifest.name) == (2, 41, "resnet18.pruned-0.50")
    assert read(manifest.text(), tmp_path) == manifest
    assert "criterion taylor(signed=True), selector global(n_channels_or_ratio=0.5, per_cost)" in card(manifest, "a/b")


@pytest.mark.parametrize(
    ("path", "value"), [("steps/0/round_to", -1), ("steps/0/steps", 2), ("steps/0/criterion", {"name": "a"})]
)
def test_a_manifest_of_the_first_version_is_held_to_what_that_was(tmp_path: Path, path: str, value: Any) -> None:
    document = copy.deepcopy(FIRST_VERSION)
    document["steps"][0][path.rpartition("/")[2]] = value
    assert "no manifest of a checkpoint: steps" in refusal(document, tmp_path)
