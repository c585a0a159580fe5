"""What a sweep logs: a line per model, and nothing that should not leave the machine."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness.logs import redacted, write_to
from harness.records import Record
from tests.harness.examples import RESNET18, VERSIONS

GOOD = replace(RESNET18, verified="shape", seconds=1.26)
BAD = Record(
    model="vgg11", **VERSIONS, stage="build", error=f"no file {Path.home()}/weights.pth, token hf_abcdEFGH1234"
)


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    logger = logging.getLogger("harness")
    before = (logger.handlers[:], logger.level, logger.propagate)
    last_resort = logging.lastResort
    with warnings.catch_warnings():
        yield io.StringIO()
    logging.lastResort = last_resort
    logger.handlers[:], logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


def log(stream: io.StringIO, *, verbose: bool = False, as_json: bool = False) -> list[str]:
    write_to(stream, verbose=verbose, as_json=as_json)
    logger = logging.getLogger("harness.sweep")
    for record in (GOOD, BAD):
        logger.info("%s", record.model, extra={"record": record})
    logger.warning("the cache in %s cannot be written", Path.home() / ".cache")
    return stream.getvalue().splitlines()


def test_a_folder_with_letters_that_json_escapes_is_left_out_too(
    stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/jürgen")
    write_to(stream, verbose=True, as_json=True)
    bad = Record(model="vgg11", **VERSIONS, stage="build", error="no file '/home/jürgen/a', nor /home/jürgensen/b")

    logging.getLogger("harness.sweep").info("", extra={"record": bad})
    logging.getLogger("harness.sweep").warning(r"no b'/home/j\xc3\xbcrgen/c' nor \"/home/j\u00fcrgen/d\"")

    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert first["error"] == "no file '~/a', nor /home/jürgensen/b"
    assert second["message"] == r"no b'~/c' nor \"~/d\""


def test_warnings_and_the_logs_of_others_are_lines_of_json_too(
    stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = logging.getLogger("of_somebody_else")
    # As where no test runner has set up a log for everybody.
    monkeypatch.setattr(others, "propagate", False)
    warnings.simplefilter("always")
    write_to(stream, verbose=False, as_json=True)
    warnings.warn(f"two\nlines of {Path.home()}/x", stacklevel=1)
    others.warning("%s", "of others")

    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (first["level"], first["message"]) == ("warning", "UserWarning: two\nlines of ~/x")
    assert (second["level"], second["message"]) == ("warning", "of others")


def test_only_what_is_wrong_unless_asked(stream: io.StringIO) -> None:
    assert log(stream) == ["warning: the cache in ~/.cache cannot be written"]


def test_a_line_per_model(stream: io.StringIO) -> None:
    assert log(stream, verbose=True)[:2] == [
        "resnet18: verified by shape, 12 orbits, 99.89% of the FLOPs removable, 1.3 s",
        "vgg11: failed (build): no file ~/weights.pth, token ***",
    ]


def test_json_has_the_keys_of_a_record(stream: io.StringIO) -> None:
    good, bad, warning = map(json.loads, log(stream, as_json=True))

    assert (good["event"], good["level"], good["model"], good["orbits"]) == ("model", "info", "resnet18", 12)
    assert good.keys() == bad.keys() == {"time", "level", "event", *vars(GOOD)}
    assert bad["error"] == "no file ~/weights.pth, token ***"
    assert warning["message"] == "the cache in ~/.cache cannot be written"
    assert (warning["event"], warning["level"]) == ("message", "warning")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Bearer hf_AbCdEfGhIjKlMn, denied", "Bearer ***, denied"),
        ("github_pat_11ABCDEFG0123456789", "***"),
        ("https://user:secret@proxy.local/simple", "https://***@proxy.local/simple"),
        ("https://s3cret@proxy.local/simple", "https://***@proxy.local/simple"),
        ("https://user:pass@word@proxy.local/", "https://***@proxy.local/"),
        ("see https://proxy.local/timm@v1", "see https://proxy.local/timm@v1"),
        ("Authorization: Bearer 0123456789abcdef", "Authorization: Bearer ***"),
        ("{'authorization': 'Basic dXNlcjpwYXNz'}", "{'authorization': 'Basic ***'}"),
        ("authorization=bearer 0123456789abcdef", "authorization=bearer ***"),
        ("bearer of news", "bearer of news"),
        ("pypi-AgEIcHlwaS5vcmcCJDU", "***"),
        ("glpat-ABCdef-123_456789ab", "***"),
        ("id AKIAIOSFODNN7EXAMPLE.", "id ***."),
        ("gho_0123456789abcdef xoxb-1234567890-abc", "*** ***"),
        ("GET /a?size=3&api_token=secret1&b=2", "GET /a?size=3&api_token=***&b=2"),
        ("half_precision hf_hub", "half_precision hf_hub"),
    ],
)
def test_tokens_are_left_out(text: str, shown: str) -> None:
    assert redacted(text) == shown
