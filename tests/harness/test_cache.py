from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from harness import cache as caching
from harness.cache import Cache, fingerprint_of, sources_digest
from harness.models import VERSIONS, build_on_meta
from harness.records import Record, read_records
from harness.sweep import sweep

NAMES = ["test_vit", "test_resnet", "test_convnext"]


def values(records: list[Record]) -> list[dict[str, Any]]:
    """Records without what a clock or the memory says."""
    return [{**vars(record), "seconds": None, "peak_rss_mb": None} for record in records]


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def test_the_second_sweep_starts_no_worker(tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    first = sweep(NAMES, tmp_path / "first.jsonl", jobs=2, cache=cache)
    monkeypatch.setattr("joblib.Parallel", None)

    second = sweep(NAMES, tmp_path / "second.jsonl", jobs=2, cache=cache)

    assert (first.cached, second.cached) == (0, 3)
    assert (tmp_path / "second.jsonl").read_text() == (tmp_path / "first.jsonl").read_text()


def test_without_a_cache_everything_is_found_out_anew(tmp_path: Path, cache: Cache) -> None:
    sweep(["test_vit"], tmp_path / "first.jsonl", jobs=1, cache=cache)
    again = sweep(["test_vit"], tmp_path / "second.jsonl", jobs=1)

    assert again.cached == 0
    assert again.cpu_seconds > 0


def test_numbers_are_not_taken_from_a_record_of_shapes(tmp_path: Path, cache: Cache) -> None:
    sweep(["test_vit"], tmp_path / "first.jsonl", jobs=1, cache=cache)
    numeric = sweep(["test_vit"], tmp_path / "second.jsonl", jobs=1, cache=cache, verify="numeric")

    assert (numeric.cached, numeric.records[0].verified) == (0, "numeric")


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace('"converted": true', '"converted": false'),
        lambda text: text.replace('"sha256": "', '"sha256": "0'),
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: '{"sha256": 3, "content": 4}',
        lambda text: "\0" * 100,
    ],
)
def test_a_damaged_entry_is_not_trusted(cache: Cache, damage: Any) -> None:
    record = Record(model="test_vit", **VERSIONS, converted=True, verified="shape")
    cache.put(record, "f" * 64, "shape")
    assert cache.known("test_vit", "shape") == record

    for path in cache.folder.rglob("*.json"):
        path.write_text(damage(path.read_text()))

    assert cache.known("test_vit", "shape") is None


def test_an_entry_of_another_version_of_records_is_passed_over(cache: Cache) -> None:
    record = Record(model="test_vit", **VERSIONS, converted=True, verified="shape")
    cache.put(record, "f" * 64, "shape")
    for path in cache.folder.rglob("*.json"):
        content = json.loads(path.read_text())["content"]
        if "model" in content:
            cache._write(path, {**content, "a_column_of_tomorrow": 1})

    assert cache.known("test_vit", "shape") is None


def test_failures_and_what_was_verified_less_are_not_kept(cache: Cache) -> None:
    cache.put(Record(model="test_vit", **VERSIONS, stage="prune", verified="shape"), "f" * 64, "shape")
    cache.put(Record(model="test_vit", **VERSIONS, verified="shape"), "f" * 64, "numeric")

    assert not cache.folder.exists()


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")

    Cache(tmp_path / "cache").put(Record(model="test_vit", **VERSIONS, verified="shape"), "f" * 64, "shape")

    assert "cannot be written" in caplog.text


def test_one_architecture_under_two_names_is_analysed_once(tmp_path: Path, cache: Cache) -> None:
    names = ["odd_twin", "odd_other_twin"]
    summary = sweep(names, tmp_path / "out.jsonl", jobs=1, cache=cache, imports=("tests.harness.odd_models",))

    assert summary.cached == 1
    first, second = read_records(tmp_path / "out.jsonl")
    assert first.model != second.model
    assert values([first])[0] | {"model": ""} == values([second])[0] | {"model": ""}


# -- what is the same


def test_a_fingerprint_is_of_what_is_computed() -> None:
    first, second = build_on_meta("test_vit"), build_on_meta("test_vit")
    assert fingerprint_of(first) == fingerprint_of(second)
    for name in ("test_vit", "sequencer2d_s"):  # the latter has recurrent layers, which hold weak references
        assert fingerprint_of(build_on_meta(name)) is not None

    second.blocks[0].attn.scale = 0.5
    assert fingerprint_of(first) != fingerprint_of(second)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("resnet18", {"num_classes": 10}),
        ("resnet18", {"act_layer": nn.SiLU}),
        ("resnet18", {"output_stride": 16}),
        ("vit_tiny_patch16_224", {"qkv_bias": False}),
        ("vit_tiny_patch16_224", {"norm_layer": nn.LayerNorm}),
        ("vit_tiny_patch16_224", {"global_pool": "avg"}),
    ],
)
def test_another_configuration_is_another_fingerprint(name: str, changes: dict[str, Any]) -> None:
    with torch.device("meta"):
        plain, changed = timm.create_model(name), timm.create_model(name, **changes)

    assert fingerprint_of(plain) != fingerprint_of(changed)


def test_the_values_of_weights_and_where_they_come_from_make_no_difference() -> None:
    with torch.device("meta"):
        one, other = (
            timm.create_model(f"vit_tiny_patch16_224.augreg_in21k{tag}", num_classes=7) for tag in ("", "_ft_in1k")
        )

    assert one.pretrained_cfg["hf_hub_id"] != other.pretrained_cfg["hf_hub_id"]
    assert fingerprint_of(one) == fingerprint_of(other)


def test_what_cannot_be_described_has_no_fingerprint() -> None:
    model = build_on_meta("test_vit")
    model.anything = iter(())

    assert fingerprint_of(model) is None


# -- what a model is made of


def test_sources_are_those_that_a_module_imports() -> None:
    reached = {line.split()[0] for line in sources_digest({"timm.models.convnext"})}

    assert {"timm.models.convnext", "timm.layers.drop", "timm.layers.grn", "timm.models._builder"} <= reached
    assert not {name for name in reached if name.startswith(("torch.", "timm.models.resnet"))}
    assert "timm.layers.halo_attn" not in {line.split()[0] for line in sources_digest({"timm.layers.drop"})}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of three modules, of which one passes names on."""
    folder = tmp_path / "made_of_parts"
    folder.mkdir()
    (folder / "__init__.py").write_text("from .inner import used\nfrom .other import unused\n")
    (folder / "inner.py").write_text("def used(): ...\n")
    (folder / "other.py").write_text("def unused(): ...\n")
    (folder / "outer.py").write_text("import torch\nfrom . import used\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import made_of_parts.outer  # noqa: F401

    yield folder
    for name in [name for name in sys.modules if name.startswith("made_of_parts")]:
        del sys.modules[name]
    shutil.rmtree(folder)


CACHED = (
    "_reached",
    "_imports",
    "_origin",
    "_import_statements",
    "_file_digest",
    "_path_of",
    "_folders",
    "_version",
    "_distributions",
)


@pytest.mark.parametrize(
    ("changed", "matters"), [("inner.py", True), ("outer.py", True), ("other.py", False), ("__init__.py", True)]
)
def test_a_change_touches_what_is_made_of_it(package: Path, changed: str, matters: bool) -> None:
    def digest() -> list[str]:
        for name in CACHED:
            getattr(caching, name).cache_clear()
        return sources_digest({"made_of_parts.outer"})

    before = digest()
    with (package / changed).open("a") as file:
        file.write("\nx = 1\n")

    assert (digest() != before) == matters


def files(folder: Path, **texts: str) -> None:
    for name, text in texts.items():
        path = folder / (name.replace("__in__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


MY_MODELS = """
from torch import nn
from timm.models import register_model
from my_blocks import Block


@register_model
def my_net(**kwargs):
    return nn.Sequential(nn.Conv2d(3, 8, 3), Block(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
"""
MY_BLOCKS = """
from torch import nn


class Block(nn.Module):
    def forward(self, x):
        return x.relu()
"""


def test_a_change_in_another_package_that_a_model_is_made_of_is_noticed(tmp_path: Path) -> None:
    files(tmp_path, my_models=MY_MODELS, my_blocks=MY_BLOCKS)
    root = str(Path(caching.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "TORCHORBIT_CACHE": str(tmp_path / "cache")}
    command = [
        sys.executable,
        "-m",
        "harness.cli",
        "sweep",
        "my_net",
        "--import",
        "my_models",
        "--jobs",
        "1",
        "--fresh",
    ]

    def swept() -> tuple[int, str]:
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
        return done.returncode, done.stdout

    code, _ = swept()
    again, out = swept()
    assert (code, again) == (0, 0)
    assert "1 from the cache" in out

    files(tmp_path, my_blocks=MY_BLOCKS.replace("return x.relu()", "raise RuntimeError('no longer')"))
    code, out = swept()
    assert code == 1
    assert "0 from the cache" in out
    assert "no longer" in out


def test_every_package_that_somebody_works_on_is_followed_however_it_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files(
        tmp_path,
        mine__in__start="import numpy\nimport ways_a.inner\nfrom ways_b import *\nfrom timm.layers import DropPath\n",
        ways_a__in____init__="import ways_of_a\n",
        ways_a__in__inner="",
        ways_of_a="def late():\n    from ways_spaced.deep import inner\n",
        ways_b__in____init__="from .one import *\nfrom .two import *\n",
        ways_b__in__one="",
        ways_b__in__two="import scipy.linalg, sys, torch.nn, not_there_at_all\n",
        ways_spaced__in__deep__in__inner="",
        ways_unused="",
    )
    monkeypatch.syspath_prepend(str(tmp_path))

    lines = dict(line.split(" ", 1) for line in sources_digest({"mine.start"}))

    assert {name for name in lines if not name.startswith("timm.")} == {
        *("mine", "mine.start", "ways_a", "ways_a.inner", "ways_of_a", "ways_b", "ways_b.one", "ways_b.two"),
        *("ways_spaced", "ways_spaced.deep", "ways_spaced.deep.inner", "not_there_at_all", "numpy", "scipy"),
    }
    assert "timm.layers.drop" in lines
    assert "timm.models.resnet" not in lines
    assert lines["numpy"].startswith("numpy ")
    assert all(len(lines[name]) == 64 for name in ("mine.start", "ways_of_a", "ways_spaced.deep.inner"))


def test_a_model_of_timm_depends_on_sources_of_timm_alone() -> None:
    assert all(line.startswith("timm.") for line in sources_digest({"timm.models.vision_transformer"}))
