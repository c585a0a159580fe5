"""The pages of the documentation do what they say."""

import ast
import re
import shlex
import sys

import pytest

import torchorbit
from tests.documents import DOCS, ROOT, blocks, name, pages, run, run_python

#: Pages with examples. Those of the page on migrating are run by `test_migrating`.
EXAMPLES = [page for page in pages() if DOCS in page.parents and blocks(page, "python") and page.name != "migrating.md"]


@pytest.mark.parametrize("page", EXAMPLES, ids=name)
def test_the_examples_of_a_page_run_as_written_one_after_the_other(page, tmp_path):
    said = run_python(tmp_path, "\n".join(blocks(page, "python")))
    for shown in blocks(page, "text"):
        assert shown in said


def test_there_are_examples_in_every_guide_but_that_on_sweeps():
    guides = {page.name for page in (DOCS / "guides").glob("*.md")}
    assert guides - {page.name for page in EXAMPLES} == {"sweeps.md"}


def test_the_reference_has_every_public_name():
    listed = {line for page in (DOCS / "reference").glob("*.md") for line in page.read_text().splitlines()}
    for public in torchorbit.__all__:
        thing = getattr(torchorbit, public)
        in_errors = isinstance(thing, type) and issubclass(thing, torchorbit.TorchorbitError)
        if public != "__version__" and not in_errors:
            assert f"::: torchorbit.{public}" in listed, public


def commands():
    """Commands of torchorbit -> the options that some page gives them."""
    found = {}
    for page in pages():
        for line in "".join(blocks(page, "bash")).splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0] == "torchorbit":
                command = tuple(words[1 : 3 if words[1] == "zoo" else 2])
                found.setdefault(command, set()).update(word for word in words if word.startswith("--"))
    return found


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_commands_in_pages_take_the_options_that_these_give(command):
    said = run(ROOT, sys.executable, "-m", "harness.cli", *command, "--help")
    for option in commands()[command]:
        assert re.search(rf"{option}\b", said), option


def test_chores_that_pages_name_are_there():
    noxfile = ast.parse((ROOT / "noxfile.py").read_text())
    chores = {node.name for node in noxfile.body if isinstance(node, ast.FunctionDef) and node.decorator_list}
    for page in pages():
        assert set(re.findall(r"nox -s (\w+)", page.read_text())) <= chores, page


@pytest.mark.parametrize("page", pages(), ids=name)
def test_links_of_a_page_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in target:
            assert (page.parent / target.partition("#")[0]).exists(), target
