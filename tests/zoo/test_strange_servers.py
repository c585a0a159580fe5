"""Servers that answer as no hub does: what they say is no path, gets no token, and comes to an end."""

from __future__ import annotations

import gzip
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from torch import nn

import torchorbit
from harness.cli import main
from harness.cli.pruned_models import _command
from harness.publishing import publish_tables
from tests.zoo.hub import Hub, running_hub
from torchorbit.errors import CheckpointError, HubError
from zoo import answers
from zoo.choosing import choose
from zoo.hugging_face import HuggingFaceHub
from zoo.manifest import Accuracy, Source
from zoo.publishing import publish, publish_index
from zoo.pulling import fetch, search

ROOT = Path(torchorbit.__file__).parents[1]
REPO = "alice/small"
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
NASTY = "\x1b[31mred\x07\u202etxt\r\n| [x](http://x) `<b>` ---"


def save(folder: Path, width: int = 8, **details: Any) -> Path:
    torch.manual_seed(width)
    model = nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))
    torchorbit.convert(model.eval(), X).save_pretrained(folder, **details)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("made") / "small", source=Source(model="net", weights="drawn"))


@pytest.fixture
def published(hub: Hub, folder: Path) -> Hub:
    publish(folder, REPO, hub=hub.endpoint, token=hub.token)
    hub.forget()
    return hub


@pytest.fixture
def other(client: None, tmp_path: Path) -> Iterator[Hub]:
    """Another server."""
    with running_hub(tmp_path / "other hub") as hub:
        yield hub


def operations(hub: Hub | str, folder: Path, **how: Any) -> dict[str, Callable[[], object]]:
    """Everything that is ever asked of a hub."""
    at = {"hub": hub if isinstance(hub, str) else hub.endpoint, **how}
    place = choose(at["hub"], how.get("token"))
    return {
        "pull": lambda: torchorbit.from_pretrained(REPO, **at),
        "pull a commit": lambda: fetch(REPO, revision="0" * 40, **at),
        "search": lambda: search(place),
        "publish": lambda: publish(folder, REPO, revision="trial", tag="v2", **at),
        "dry run": lambda: publish(folder, REPO, dry_run=True, **at),
        "tag": lambda: place.tag(REPO, "v3", "0" * 40),
        "index": lambda: publish_index("alice/zoo", **at),
        "tables": lambda: publish_tables(ROOT / "results" / "coverage.jsonl", "alice/tables", **at),
    }


def refused(ask: Callable[[], object]) -> str:
    """What is said where something is asked that may be refused, and then has to be in one plain line."""
    said = ""
    try:
        ask()
    except (HubError, CheckpointError) as error:
        said = str(error)
    assert said.isprintable()
    return said


# -- names that a server gives

PATHS = [
    "../../../../stolen",
    "/proc/stolen",
    'W/"../../../../stolen"',
    '"' + "0" * 39 + '"',
    "..",
    "x" * 64,
    '"' + "A" * 40 + '"',
]


@pytest.mark.parametrize("told", PATHS)
@pytest.mark.parametrize("header", ["ETag", "X-Linked-Etag", "X-Repo-Commit"])
def test_a_server_chooses_no_path(published: Hub, tmp_path: Path, header: str, told: str) -> None:
    published.replace_headers({header: told}, path="/resolve/.*graph.json", method="HEAD", times=None)
    with pytest.raises(HubError, match=r"answered with .* where the (hash of a file|id of a commit) is expected"):
        torchorbit.from_pretrained(REPO, hub=published.endpoint, cache_dir=tmp_path / "a" / "b" / "cache")
    assert [path.name for path in tmp_path.iterdir() if "hub" not in path.name] == ["a"]
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["cache"]
    assert not list(tmp_path.rglob("*stolen*"))
    assert not Path("/proc/stolen").exists()


def test_another_commit_is_not_put_in_the_place_of_one(published: Hub) -> None:
    published.replace_headers({"X-Repo-Commit": "0" * 40}, path="/resolve/", method="HEAD", times=None)
    with pytest.raises(HubError, match="where the id of a commit is expected"):
        torchorbit.from_pretrained(REPO, hub=published.endpoint)


def test_hashes_in_all_forms_that_there_are(published: Hub, folder: Path) -> None:
    (entry,) = published.api().get_paths_info(REPO, ["graph.json"])
    for form in ('W/"{}"', '"{}"', "{}"):
        header = {"ETag": form.format(entry.blob_id)}  # type: ignore[union-attr]
        published.replace_headers(header, path="/resolve/.*graph.json", method="HEAD", times=None)
        pulled = torchorbit.from_pretrained(REPO, hub=published.endpoint)
        assert torch.equal(pulled(X), torchorbit.load(folder)(X))
        published.mend()


@pytest.mark.parametrize("told", ["../../stolen", "", 1, None, "0" * 39, ["0" * 40]])
def test_what_is_no_commit_is_none(published: Hub, folder: Path, told: object) -> None:
    published.answer(json.dumps({"id": REPO, "sha": told}).encode(), path="/revision/")
    with pytest.raises(HubError, match="where the id of a commit is expected"):
        torchorbit.from_pretrained(REPO, hub=published.endpoint)


@pytest.mark.parametrize("entry", [
    {"oid": "../../stolen"}, {"oid": 1}, {"size": -1}, {"size": "1"}, {"lfs": {"oid": "../x", "size": 1, "pointerSize": 1}},
])  # fmt: skip
def test_a_list_of_files_is_looked_at(published: Hub, entry: dict[str, object]) -> None:
    listed = {"type": "file", "path": "checkpoint.json", "size": 1, "oid": "0" * 40, **entry}
    published.answer(json.dumps([listed]).encode(), path="/tree/")
    with pytest.raises(HubError, match="does not tell size and hash of checkpoint"):
        torchorbit.from_pretrained(REPO, hub=published.endpoint)


# -- what opens a hub


def test_a_token_goes_to_no_other_server_than_its_own(
    hub: Hub, other: Hub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record of what came says so, for everything that is ever asked."""
    (tmp_path / "token").write_text(hub.token)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    publish(folder, REPO, hub=hub.endpoint, token=hub.token)
    hub.forget()
    for ask in operations(hub, folder).values():
        refused(ask)
    assert len(hub.requests()) > 8
    assert all(request.anonymous for request in hub.requests())

    for ask in operations(hub, folder, token=hub.token).values():
        refused(ask)
    api = hub.requests(path="^/api/")
    assert len([request for request in api if not request.anonymous]) > 8

    # As HF_ENDPOINT sets them: it is the user's own.
    template = f"{other.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", other.endpoint)
    assert publish(folder, REPO, private=True).changed
    assert torchorbit.from_pretrained(REPO) is not None


@pytest.mark.parametrize("status", [302, 307, 308])
def test_nor_to_where_a_server_sends_us(published: Hub, other: Hub, folder: Path, status: int) -> None:
    publish(folder, REPO, hub=other.endpoint, token=other.token)
    other.forget()
    for path in ("/api/models/alice/small/revision/main", "/api/models/alice/small/tree/main", "/api/models"):
        published.answer(b"", status=status, headers={"Location": other.endpoint + path}, path=f"{path}([?]|$)")
    for ask in operations(published, folder, token=published.token).values():
        refused(ask)
    assert len(other.requests()) > 2
    assert all(request.anonymous for request in other.requests())


def test_nothing_that_opens_a_hub_is_sent_where_others_can_read_it(
    client: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for address, token in (("http://example.org", "hf_secret"), ("http://me:hf_secret@example.org", None)):
        with pytest.raises(HubError, match=r"over plain HTTP.*use https") as found:
            choose(address, token)
        assert "hf_secret" not in str(found.value)
    for address in ("http://127.0.0.1:9", "http://localhost:9", "http://[::1]:9", "https://example.org"):
        assert choose(address, "hf_secret").address == address
    assert main(["pull", REPO, "--hub", "http://example.org", "--token", "hf_secret"]) == 1
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(constants, "ENDPOINT", "http://example.org")
    assert HuggingFaceHub()._token is None


def test_a_password_in_an_address_opens_it_and_is_seen_nowhere(
    hub: Hub, folder: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    address = hub.endpoint.replace("://", f"://alice:{hub.token}@")
    done = publish(folder, REPO, hub=address, private=True)
    pulled, _ = fetch(REPO, hub=address, cache_dir=tmp_path / "cache")
    assert main(["zoo", "list", "--hub", address]) == 0
    assert main(["pull", "alice/none", "--hub", address]) == 1
    with pytest.raises(HubError, match="with a password and with a token"):
        choose(address, hub.token)
    said = capsys.readouterr()
    seen = [
        str(done),
        done.url,
        caplog.text,
        said.out,
        said.err,
        *[path.read_text("latin-1") for path in pulled.iterdir()],
    ]
    assert REPO in said.out
    assert not [text for text in seen if hub.token in text]
    assert f"hub='{hub.endpoint}'" in (pulled / "README.md").read_text()


def test_a_command_that_is_recorded_has_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [
        "torchorbit",
        "prune",
        "net",
        "--data-dir=https://me:secret@example.org",
        "https://me:secret@example.org/x",
    ]
    monkeypatch.setattr(sys, "argv", words)
    assert "secret" not in _command()


@pytest.mark.parametrize("address", [
    "https://", "http://:80", "https://host:port", "https://host:99999999", "ftp://me:secret@host/x", "https://[::1", "HTTPS://me:secret@",
])  # fmt: skip
def test_an_address_that_is_none_is_refused_and_no_folder(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HubError, match="expected https://") as found:
        choose(address)
    assert "secret" not in str(found.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("token", ["", "hf a", "hf_a\n", "hf_ä", "hf_a\x00"])
def test_a_token_that_is_none_is_refused(token: str) -> None:
    with pytest.raises(HubError, match="the token is none"):
        choose("https://example.org", token)


# -- answers without end, and answers that are none


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "PATIENCE", 1.0)


ENDLESS: dict[str, tuple[Callable[[Hub], object], str]] = {
    "an answer": (lambda hub: hub.go_on(b" " * 2**20, path="/api/"), "more than the .* bytes that are read"),
    "a file": (lambda hub: hub.go_on(b" " * 2**20, path="/resolve/.*graph.json"), "more than the .* bytes"),
    "a large file": (lambda hub: hub.go_on(b" " * 2**20, path="filename="), "more than the .* bytes"),
    "an error": (
        lambda hub: hub.answer(b"x" * (answers.LONGEST_ANSWER + 1), status=404, path="/api/"),
        "bytes, and .* are the most that is read",
    ),
    "a list": (
        lambda hub: hub.answer(b"[]", headers={"Link": f'<{hub.endpoint}/api/models/x/y/tree/z>; rel="next"'}, path="/tree/"),
        "without coming to an end",
    ),
    "drops of an answer": (lambda hub: hub.go_on(b" ", 0.05, path="/api/"), "which is too slow"),
    "drops of a file": (lambda hub: hub.go_on(b" ", 0.05, path="/resolve/.*graph.json"), "which is too slow"),
    "drops of a header": (lambda hub: hub.drip(0.05, path="/api/"), "did not begin to answer within"),
    "a bomb": (
        lambda hub: hub.answer(gzip.compress(b" " * 10**8), headers={"Content-Encoding": "gzip"}, path="/api/"),
        "answered with compressed data",
    ),
    "a file that is a bomb": (
        lambda hub: hub.answer(gzip.compress(b" " * 10**8), headers={"Content-Encoding": "gzip"}, path="filename="),
        "answered with compressed data",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("begin", "said"), ENDLESS.values(), ids=ENDLESS.keys())
def test_every_answer_comes_to_an_end(
    published: Hub,
    hasty: None,
    begin: Callable[[Hub], object],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("zoo.hugging_face._LONGEST_QUESTION", 3.0)
    begin(published)
    with pytest.raises(HubError, match=said):
        fetch(REPO, hub=published.endpoint, cache_dir=tmp_path / "cache")
    assert sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file()) < 2**20
    published.mend()
    assert torchorbit.from_pretrained(REPO, hub=published.endpoint) is not None


@pytest.mark.parametrize("content", [
    b"", b"{}", b"[]", b"null", b"1", b'"x"', b"[1]", b"[[]]", b"[null]", b"{", b"\xff\xfe", b"[" * 100_000, b'{"sha": {}}',
    b'[{"type": "file"}]', b'[{"type": "file", "path": 1, "size": 1, "oid": 1}]', b'[{"id": "../../x"}, {"id": 1}, {"id": "a/b"}]',
    b'{"tags": 1, "branches": [{}]}', b'{"files": 1}', b'{"error": {"a": 1}}', b"<html>",
], ids=lambda content: repr(content[:20]))  # fmt: skip
@pytest.mark.parametrize("status", [200, 404])
def test_what_no_hub_answers_is_one_clear_error(
    published: Hub, folder: Path, waits: list[float], content: bytes, status: int
) -> None:
    published.answer(content, status=status, path="^/api/|/resolve/|/info/lfs")
    said = [refused(ask) for ask in operations(published, folder, token=published.token).values()]
    assert all(said[:2])


RETRY_AFTER = ["7", "0", "-5", "99999999999999999999", "Wed, 21 Oct 2099 07:28:00 GMT", "Wed, 21 Oct 2015 07:28:00 GMT", "21 Oct",
               "soon", "1e9", "nan", "", "7, 8", "0x10", "3.5"]  # fmt: skip


@pytest.mark.parametrize("asked", RETRY_AFTER)
def test_no_server_is_waited_for_as_long_as_it_likes(hub: Hub, folder: Path, waits: list[float], asked: str) -> None:
    for path in ("/repos/create", "/preupload/", "/tree/main"):
        hub.fail(429, path=path, retry_after=asked)
    publish(folder, REPO, hub=hub.endpoint, token=hub.token)
    assert waits
    assert all(0 <= seconds <= answers.LONGEST_WAIT + 1 for seconds in waits)
    if asked == "7":
        assert all(7 <= seconds <= 8 for seconds in waits)


# -- texts


def test_what_strangers_wrote_is_shown_as_plain_text(
    hub: Hub, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    accuracy = [Accuracy(dataset=NASTY, split=NASTY, input_size=(3, 8, 8), after=0.5)]
    save(tmp_path / "nasty", name=NASTY, source=Source(model=NASTY, weights=NASTY, license=NASTY), accuracy=accuracy)
    here = ["--hub", hub.endpoint]
    publish(tmp_path / "nasty", REPO, hub=hub.endpoint, token=hub.token)
    for arguments in (["zoo", "list"], ["zoo", "search", "--min-accuracy", "0.1"], ["pull", REPO]):
        assert main([*arguments, *here]) == 0
        out = capsys.readouterr().out
        assert out.replace("\n", "").isprintable()
    assert main(["zoo", "list", *here]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3  # headers, a rule, and the one row
    hub.answer(
        json.dumps({"error": NASTY}).encode(), status=400, headers={"X-HF-Warning": "a; \x1b[31mb"}, path="/api/"
    )
    assert main(["pull", REPO, *here]) == 1
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert err.rstrip("\n").isprintable()
    assert all(record.getMessage().isprintable() for record in caplog.records if record.name.startswith("zoo"))


# -- those who pull and are stopped

# Pulls in processes that are killed at the n-th time that something is put in place, for every n until one finishes; what
# is there after each is looked at by the name that it has.
KILLED = """
import hashlib, os, re, shutil, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import torchorbit
from tests.zoo.kills import killed_at
from zoo.pulling import fetch

hub, repo, folder, image = sys.argv[1:]
out, cache = Path(folder) / "out", Path(folder) / "cache"

PLACES = {
    os: ("replace", "rename", "symlink", "mkdir", "chmod", "unlink", "remove", "write"),
    shutil: ("move", "copyfile", "copyfileobj"),
    Path: ("replace", "open", "write_text", "write_bytes"),
}

def pulled_in_another(point):
    return killed_at(point, lambda: fetch(repo, hub=hub, cache_dir=cache, out=out), PLACES)

def check(whole):
    for blob in cache.rglob("blobs/*"):
        if re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", blob.name):
            content = blob.read_bytes()
            prefix, kind = (b"", "sha256") if len(blob.name) == 64 else (b"blob %d\\0" % len(content), "sha1")
            assert hashlib.new(kind, prefix + content).hexdigest() == blob.name, blob
    for find in (
        lambda: torchorbit.from_pretrained(repo, hub=hub, cache_dir=cache, local_files_only=True),
        lambda: torchorbit.from_pretrained(out),
    ):
        try:
            found = find()
        except torchorbit.TorchorbitError:
            assert not whole
        else:
            with torch.no_grad():
                assert torch.equal(found(x), expected)

x, expected = torch.load(image)
point, code = 0, -signal.SIGKILL
while code == -signal.SIGKILL:
    point += 1
    shutil.rmtree(folder, ignore_errors=True)
    code = pulled_in_another(point)
    check(code == 0)
    assert pulled_in_another(0) == 0
    check(True)
    print(point, code, flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_whoever_pulls_and_is_killed_leaves_no_wrong_file_and_pulls_again(
    published: Hub, folder: Path, tmp_path: Path
) -> None:
    with torch.no_grad():
        torch.save((X, torchorbit.load(folder)(X)), tmp_path / "image.pt")
    environment = os.environ | published.environment(tmp_path / "home") | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, published.endpoint, REPO, str(tmp_path / "pulled"), str(tmp_path / "image.pt")],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    codes = [line.split()[1] for line in done.stdout.splitlines()]
    assert codes == [str(-signal.SIGKILL)] * (len(codes) - 1) + ["0"]
    assert len(codes) > 10
