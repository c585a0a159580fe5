"""Cards: metadata that hubs understand, a snippet that runs, and text from strangers that stays text."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

import torchorbit
from harness.making import Recipe, make_checkpoint
from zoo.cards import card, figures_table, index_card
from zoo.manifest import Accuracy, Cost, File, Manifest, Method, Preprocessing, Source, Step, Versions
from zoo.plots import PLOT_FILE

ROOT = Path(torchorbit.__file__).parents[1]
SOURCE = Source(model="resnet18.a1_in1k", weights="timm/r18", base_model="timm/resnet18.a1_in1k", license="apache-2.0")
STEP = Step(
    criterion=Method(name="magnitude"),
    selector=Method(name="uniform"),
    constraint=Method(name="bounds", options={"round_to": 8}),
    target="flops=0.5",
    seed=3,
    command="torchorbit prune resnet18 --flops 0.5",
    versions=Versions(torchorbit="0.1.0", torch="2.6.0", timm="1.0.9"),
)
MANIFEST = Manifest(
    name="resnet18.pruned-0.50",
    source=SOURCE,
    steps=(STEP,),
    before=Cost(gflops=3.629, kmapp=72.32, parameters=11_689_512),
    after=Cost(gflops=1.8145, kmapp=36.16, parameters=5_844_756),
    accuracy=(
        Accuracy(dataset="ImageNet-1k", split="validation", input_size=(3, 224, 224), before=0.7125, after=0.6904),
        Accuracy(dataset="ImageNet-1k", split="validation", input_size=(3, 288, 288), after=0.7),
        Accuracy(dataset="Imagenette", split="test", input_size=(3, 224, 224), before=0.9, after=0.925),
    ),
    preprocessing=Preprocessing(input_size=(3, 224, 224), mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)),
    files={PLOT_FILE: File(sha256="0" * 64, size=10)},
)


def metadata(text: str) -> dict[str, object]:
    """What is between the two lines of dashes, as a parser of YAML sees it."""
    _, block, _ = re.split(r"^---\n", text, maxsplit=2, flags=re.MULTILINE)
    return yaml.safe_load(block)


def body(text: str) -> str:
    return re.split(r"^---\n", text, maxsplit=2, flags=re.MULTILINE)[2]


def test_the_hubs_own_client_reads_the_metadata() -> None:
    data = ModelCard(card(MANIFEST, "org/name")).data

    assert (data.library_name, data.license, data.pipeline_tag) == ("torchorbit", "apache-2.0", "image-classification")
    assert data.base_model == "timm/resnet18.a1_in1k"
    assert {"torchorbit", "pruning", "timm"} <= set(data.tags)
    assert data.model_name == MANIFEST.name


def test_every_accuracy_is_a_result_that_survives_the_round_trip() -> None:
    data = ModelCard(card(MANIFEST, "org/name")).data

    assert [(r.dataset_name, r.dataset_split, r.metric_type, r.metric_value) for r in data.eval_results] == [
        ("ImageNet-1k", "validation", "accuracy", 0.6904),
        ("ImageNet-1k", "validation", "accuracy", 0.7),
        ("Imagenette", "test", "accuracy", 0.925),
    ]
    assert all(
        isinstance(result, EvalResult) and result.task_type == "image-classification" for result in data.eval_results
    )
    assert [result.dataset_type for result in data.eval_results] == ["imagenet-1k", "imagenet-1k", "imagenette"]
    again = ModelCardData(**metadata(f"---\n{data.to_yaml()}\n---\n") | {"ignore_metadata_errors": False})
    assert again.eval_results == data.eval_results
    assert again.to_dict() == data.to_dict()


def test_what_is_not_known_is_left_out() -> None:
    manifest = Manifest(
        name="Net",
        source=Source(model="package.Net", weights="not recorded"),
        before=Cost(gflops=0, parameters=0),
        after=Cost(gflops=0, parameters=0),
    )
    text = card(manifest, "org/name")

    assert set(metadata(text)) == {"library_name", "tags"}
    assert "timm" not in str(metadata(text))
    assert "None" not in text
    assert "kFLOPs" not in text
    assert "transforms" not in text
    assert "nothing was removed" not in text  # nobody knows


def test_the_page_says_what_was_done_and_what_came_of_it() -> None:
    text = body(card(MANIFEST, "org/name"))

    assert f"# {MANIFEST.name}\n" in text
    assert "pruned to 50.0% of its FLOPs and 50.0% of its parameters" in text
    assert "[`resnet18.a1_in1k`](https://huggingface.co/timm/resnet18.a1_in1k)" in text
    assert f"]({PLOT_FILE})" in text
    assert re.search(r"\| GFLOPs +\| +3\.629 \| +1\.81[45] \| +0\.500 \|", text)
    assert re.search(r"\| top-1, ImageNet-1k validation, 224x224 \| +71\.25% \| +69\.04% \| +-2\.21 \|", text)
    assert re.search(r"\| top-1, ImageNet-1k validation, 288x288 \| +not measured \| +70\.00% \| +\|", text)
    assert "criterion magnitude, selector uniform, target flops=0.5, constraint bounds(round_to=8), seed 3" in text
    assert "`torchorbit prune resnet18 --flops 0.5`" in text


def test_the_same_manifest_gives_the_same_card_in_every_process() -> None:
    code = (
        "import sys; from zoo.cards import card; from zoo.manifest import Manifest; "
        "sys.stdout.write(card(Manifest.model_validate_json(sys.stdin.read()), 'org/name', 'https://hub.example'))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        input=MANIFEST.text(),
        env=os.environ | {"PYTHONHASHSEED": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == card(MANIFEST, "org/name", "https://hub.example")


# -- the snippet


WITHOUT_TIMM = """
import sys


class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("timm", "tests"):
            raise ImportError(f"{name} must not be needed")


sys.meta_path.insert(0, Blocked())
"""


def run_snippet(text: str, cwd: Path, more: str = "") -> subprocess.CompletedProcess[str]:
    (snippet,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_TIMM + snippet + more + "\nassert 'timm' not in sys.modules\n"],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_snippet_of_a_checkpoint_runs_without_timm(tmp_path: Path, dtype: torch.dtype | None) -> None:
    make_checkpoint("test_resnet", tmp_path / "folder of it", Recipe(ratio=0.5), dtype=dtype)
    more = (
        "from PIL import Image\n"
        "assert preprocess(Image.new('L', (300, 200))).shape == (3, 160, 160)\n"
        f"assert next(model.parameters()).dtype == {dtype or torch.float32}\n"
    )
    run = run_snippet((tmp_path / "folder of it" / "README.md").read_text(), tmp_path, more)

    assert run.returncode == 0, run.stderr
    assert "values=" in run.stdout


def test_the_snippet_of_a_publication_runs_too_and_whatever_comes_out_of_the_model(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(24, 2)).eval()
    dag = torchorbit.convert(model, torch.zeros(1, 1, 4, 5))
    hub = tmp_path / 'it\'s a "hub"'
    preprocessing = Preprocessing(input_size=(1, 4, 5), mean=(0.5,), std=(0.2,))
    publication = dag.push_to_hub("org/two", hub=hub, preprocessing=preprocessing)

    run = run_snippet((Path(publication.url) / "README.md").read_text(), tmp_path)

    assert run.returncode == 0, run.stderr


def test_the_snippet_names_the_hub_unless_it_is_the_hub() -> None:
    assert "from_pretrained('org/name')" in card(MANIFEST, "org/name")
    assert "from_pretrained('org/name', hub='https://hub.example')" in card(MANIFEST, "org/name", "https://hub.example")
    assert "from_pretrained('name')" in card(MANIFEST, "name", published=False)


# -- text from strangers

HOSTILE = [
    "\n---\nevil: true\n---\n",
    "\nlicense: evil\n",
    "---\n",
    "x\r\n---\r\nevil: true",
    "a: b",
    "!!python/object/apply:os.system ['true']",
    "&a *a",
    "null",
    "{evil: true}",
    "# comment",
    "'\n\"\n",
    "a | b | c",
    "a |\n|---|---|\n| b | c |",
    "\\|",
    "\\",
    "[click](https://evil.example)",
    "](https://evil.example) [x",
    "![x](https://evil.example/x.png)",
    "<https://evil.example>",
    "see https://evil.example now",
    "see HTTPS://evil.example and WWW.evil.example",
    "www.evil.example",
    "me@evil.example",
    "[x]: https://evil.example",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<!-- ",
    "`",
    "```\n<script>alert(1)</script>\n```",
    "``` ",
    "` <b>x</b> `",
    "\n# evil\n",
    "\n\n> evil",
    "\n1. evil",
    "\t\v\f\x85\u2028\u2029evil",
    "\x00\x1b[31m",
    "\u202eevil",
    "",
    "   ",
    "x" * 2000,
]


def with_text(text: str) -> Manifest:
    """A manifest with a stranger's text wherever text may be."""
    accuracy = Accuracy(dataset=text, split=text, input_size=(3, 224, 224), before=0.7, after=0.6)
    method = Method(name=text, options={text: text, "more": {"items": [[text, {"constraint": {"name": text, "options": {text: [text]}}}]]}})  # fmt: skip
    step = Step(criterion=method, selector=method, constraint=method, target=text, data=text, seed=3, command=text or "none", versions=Versions(torchorbit=text, torch=text, timm=text))  # fmt: skip
    return Manifest(
        name=text,
        source=Source(model=text, weights=text, base_model="org/model", license=text),
        steps=(step,),
        before=MANIFEST.before,
        after=MANIFEST.after,
        accuracy=(accuracy,),
        preprocessing=MANIFEST.preprocessing,
        files=MANIFEST.files,
    )


def outside_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "`", body(text))


def links(text: str) -> list[str]:
    return re.findall(r"\]\(([^)]*)\)", outside_code(text))


def skeleton(text: str) -> list[str]:
    """What of a page is not text: for every line, the marks that Markdown and HTML give a meaning."""
    marks = re.compile(r"(?i)[|`<>\[\]@]|\]\(|://|www\.|^#+|^\d\.|^ *-+$")
    return ["".join(marks.findall(line)) for line in outside_code(text).split("\n")]


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_what_a_stranger_wrote_stays_text(text: str) -> None:
    plain = card(with_text("plain"), "org/name")
    page = card(with_text(text), "org/name")

    data = ModelCard(page).data
    assert metadata(page) == data.to_dict()
    expected = metadata(plain)
    assert list(metadata(page)) == list(expected)
    assert data.license == text
    assert data.eval_results[0].dataset_name == text
    assert data.tags == expected["tags"]
    assert skeleton(page) == skeleton(plain)
    assert links(page) == ["https://huggingface.co/org/model", PLOT_FILE]
    assert all(character.isprintable() or character == "\n" for character in body(page))


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_nor_does_it_get_into_the_tables(text: str) -> None:
    table = figures_table(with_text(text))
    assert {line.count("|") for line in table.splitlines()} == {5}
    assert len(table.splitlines()) == 6
    page = index_card([("org/name", with_text(text))], f"Pruned models of {text}")
    assert list(metadata(page)) == ["tags"]
    assert skeleton(page) == skeleton(index_card([("org/name", with_text("plain"))], "Pruned models of plain"))


def test_the_index_lists_the_cheapest_of_a_source_first_and_links_to_each() -> None:
    small = MANIFEST.model_copy(update={"after": Cost(gflops=0.5, parameters=10**6), "accuracy": ()})
    other = MANIFEST.model_copy(update={"source": Source(model="convnext", weights="w")})
    entries = [("org/large", MANIFEST), ("org/small", small), ("org/other", other)]

    page = index_card(entries, "Pruned models of org")

    assert page.index("org/other") < page.index("org/small") < page.index("org/large")
    assert "[org/small](https://huggingface.co/org/small)" in page
    assert "69.04% (ImageNet-1k)" in page
    assert page == index_card(reversed(entries), "Pruned models of org")
    assert "(https://hub.example/org/small)" in index_card(entries, "x", "https://hub.example/")
    assert "(../../../models--org--small)" in index_card(entries, "x", "/somewhere")
    assert index_card([], "Pruned models of org").startswith(
        "---\ntags:\n- torchorbit-zoo\n---\n\n# Pruned models of org\n"
    )
