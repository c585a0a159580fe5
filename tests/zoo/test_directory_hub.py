"""A plain directory as a hub: what is published is pulled, whoever else writes, and whatever stops them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from huggingface_hub import snapshot_download
from torch import nn

import torchorbit
from harness.publishing import publish_tables
from harness.records import Record, write_records
from tests.models import stir
from torchorbit.errors import HubError
from zoo.checkpoint import load_checkpoint, save_checkpoint
from zoo.directory import DirectoryHub
from zoo.manifest import Accuracy, Preprocessing, Source
from zoo.publishing import publish, publish_index
from zoo.pulling import fetch, search

ROOT = Path(torchorbit.__file__).parents[1]
REPO = "lab/net"
X = torch.randn(2, 3, 16, 16)


def graph(width: int = 8, seed: int = 0) -> torchorbit.DagModule:
    model = nn.Sequential(
        nn.Conv2d(3, width, 3),
        nn.ReLU(),
        nn.Conv2d(width, 6, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    )
    with torch.no_grad():
        for parameter in stir(model).parameters():
            parameter += seed
    return torchorbit.convert(model.eval(), X)


def outputs(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(X)


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    return tmp_path / "hub"


@pytest.fixture
def first(tmp_path: Path) -> Path:
    save_checkpoint(graph(), tmp_path / "first", name="first", source=Source(model="net", weights="drawn"))
    return tmp_path / "first"


@pytest.fixture
def second(tmp_path: Path) -> Path:
    """Another version: everything but the name of the source is different."""
    save_checkpoint(graph(6, seed=1), tmp_path / "second", name="second", source=Source(model="net", weights="drawn"))
    return tmp_path / "second"


def everything(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def history(hub: Path, repo: str = REPO, revision: str = "main") -> list[str]:
    """Messages of the commits of a branch, the last one first."""
    place = hub / f"models--{repo.replace('/', '--')}"
    commit = (place / "refs" / revision).read_text()
    messages = []
    while commit:
        details = json.loads((place / "commits" / f"{commit}.json").read_text())
        messages.append(details["message"].partition(":")[0])
        commit = details["parent"]
    return messages


def pulls(hub: Path, revision: str | None = None) -> torch.Tensor:
    return outputs(torchorbit.from_pretrained(REPO, hub=hub, revision=revision))


# -- publishing and pulling


def test_what_is_pulled_is_what_was_published_to_the_last_bit(hub: Path, first: Path) -> None:
    publication = publish(first, REPO, hub=hub)

    assert set(publication.changed) == {"README.md", "checkpoint.json", "graph.json", "model.safetensors", "widths.png"}
    assert publication.commit in str(publication)
    pulled = torchorbit.from_pretrained(REPO, hub=hub)
    assert torch.equal(outputs(pulled), outputs(load_checkpoint(first)))
    assert pulled.manifest == load_checkpoint(first).manifest
    there = Path(publication.url)
    for name in ("checkpoint.json", "graph.json", "model.safetensors", "widths.png"):
        assert (there / name).read_bytes() == (first / name).read_bytes()
    assert f"from_pretrained('lab/net', hub='{hub}')" in (there / "README.md").read_text()


def test_publishing_again_changes_nothing_and_says_so(hub: Path, first: Path) -> None:
    before = publish(first, REPO, hub=hub)
    on_disk = everything(hub)
    again = publish(first, REPO, hub=hub)

    assert (again.commit, again.changed) == (before.commit, ())
    assert "nothing to publish, all is there already" in str(again)
    assert everything(hub) == on_disk


def test_every_version_is_pulled_by_tag_by_commit_and_by_branch(hub: Path, first: Path, second: Path) -> None:
    one = publish(first, REPO, hub=hub, tag="v1")
    two = publish(second, REPO, hub=hub, tag="v2")
    try_out = publish(first, REPO, hub=hub, revision="trial")

    assert two.commit not in (one.commit, None)
    for revision, folder in (
        (None, second),
        ("main", second),
        ("v1", first),
        ("v2", second),
        (one.commit, first),
        (two.commit, second),
        ("trial", first),
        (try_out.commit, first),
    ):
        assert torch.equal(pulls(hub, revision), outputs(load_checkpoint(folder))), revision
    assert history(hub) == ["second", "first"]
    assert history(hub, revision="trial") == ["first", "second", "first"]


def test_a_file_that_two_versions_have_is_kept_once(hub: Path, first: Path, tmp_path: Path) -> None:
    publish(first, REPO, hub=hub)
    blobs = hub / "models--lab--net" / "blobs"
    before = {path.name for path in blobs.iterdir()}
    save_checkpoint(load_checkpoint(first), tmp_path / "renamed", name="renamed")
    publication = publish(tmp_path / "renamed", REPO, hub=hub)

    assert set(publication.changed) == {"README.md", "checkpoint.json", "widths.png"}
    assert len({path.name for path in blobs.iterdir()} - before) == 3


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(hub: Path, first: Path, second: Path) -> None:
    assert "would publish" in str(publish(first, REPO, hub=hub, dry_run=True))
    assert not hub.exists()
    publish(first, REPO, hub=hub)
    before = everything(hub)
    assert "model.safetensors" in publish(second, REPO, hub=hub, dry_run=True, tag="v2", revision="new").changed
    assert "nothing to publish" in str(publish(first, REPO, hub=hub, dry_run=True))
    assert everything(hub) == before


def test_a_tag_does_not_move(hub: Path, first: Path, second: Path) -> None:
    one = publish(first, REPO, hub=hub, tag="v1")
    before = everything(hub)
    assert publish(first, REPO, hub=hub, tag="v1").commit == one.commit
    for what in ({"tag": "v1"}, {"tag": "main"}, {"revision": "v1"}, {"revision": "new", "tag": "new"}):
        with pytest.raises(HubError, match=r"v1|main|new"):
            publish(second, REPO, hub=hub, **what)
    assert everything(hub) == before
    publish(second, REPO, hub=hub)
    with pytest.raises(HubError, match="has a revision 'v1' already"):
        publish(second, REPO, hub=hub, tag="v1")
    assert torch.equal(pulls(hub, "v1"), outputs(load_checkpoint(first)))


def test_a_first_publication_may_not_call_its_tag_as_its_branch(hub: Path, first: Path) -> None:
    with pytest.raises(HubError, match="main"):
        publish(first, REPO, hub=hub, tag="main")
    assert not hub.exists()


def test_a_private_repository_is_its_owners_alone(hub: Path, first: Path) -> None:
    publish(first, REPO, hub=hub, private=True)
    publish(first, "lab/public", hub=hub)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in hub.iterdir()}
    assert modes["models--lab--net"] == 0o700
    assert modes["models--lab--public"] & 0o055
    assert torch.equal(pulls(hub), outputs(load_checkpoint(first)))


def test_a_graph_publishes_itself(hub: Path) -> None:
    dag = graph()
    preprocessing = Preprocessing(input_size=(3, 16, 16), mean=(0.0,) * 3, std=(1.0,) * 3)
    publication = dag.push_to_hub(REPO, hub=hub, tag="v1", name="pushed", preprocessing=preprocessing)

    pulled = torchorbit.from_pretrained(REPO, hub=hub, revision="v1")
    assert torch.equal(outputs(pulled), outputs(dag))
    assert (pulled.manifest.name, pulled.manifest.preprocessing) == ("pushed", preprocessing)
    assert dag.push_to_hub(REPO, hub=hub, name="pushed", preprocessing=preprocessing).commit == publication.commit


def test_what_is_no_checkpoint_is_not_published(hub: Path, first: Path, tmp_path: Path) -> None:
    graph().save(tmp_path / "graph")
    os.truncate(first / "model.safetensors", 1000)
    for folder in (tmp_path / "graph", first, tmp_path / "missing"):
        with pytest.raises(torchorbit.CheckpointError):
            publish(folder, REPO, hub=hub)
    assert not hub.exists()


def test_a_copy_of_what_was_pulled_is_a_checkpoint_of_its_own(
    hub: Path, first: Path, second: Path, tmp_path: Path
) -> None:
    publish(first, REPO, hub=hub)
    folder, _ = fetch(REPO, hub=hub, out=tmp_path / "copy")
    assert folder == tmp_path / "copy"
    assert not any(path.is_symlink() for path in folder.iterdir())
    assert torch.equal(outputs(load_checkpoint(folder)), outputs(load_checkpoint(first)))
    publish(second, REPO, hub=hub)
    fetch(REPO, hub=hub, out=tmp_path / "copy")
    assert torch.equal(outputs(load_checkpoint(folder)), outputs(load_checkpoint(second)))
    with pytest.raises(torchorbit.CheckpointError, match="holds something that is no checkpoint"):
        fetch(REPO, hub=hub, out=hub)


def test_the_hubs_own_client_reads_it_as_its_cache(hub: Path, first: Path) -> None:
    publication = publish(first, REPO, hub=hub, tag="v1")
    for revision in ("main", "v1", publication.commit):
        folder = snapshot_download(REPO, cache_dir=hub, local_files_only=True, revision=revision)
        assert torch.equal(outputs(load_checkpoint(folder)), outputs(load_checkpoint(first)))
    assert torch.equal(outputs(torchorbit.from_pretrained(folder)), outputs(load_checkpoint(first)))


def test_the_directory_may_be_moved(hub: Path, first: Path, tmp_path: Path) -> None:
    publish(first, REPO, hub=hub)
    hub.rename(tmp_path / "moved")
    assert torch.equal(pulls(tmp_path / "moved"), outputs(load_checkpoint(first)))


# -- what is not there, and names that are none


def test_what_is_not_there_is_one_clear_error(hub: Path, first: Path) -> None:
    with pytest.raises(HubError, match="has no repository lab/net"):
        pulls(hub)
    publish(first, REPO, hub=hub, tag="v1")
    with pytest.raises(HubError, match="has no repository lab/other"):
        torchorbit.from_pretrained("lab/other", hub=hub)
    with pytest.raises(HubError, match="has no revision 'v9'; it has main, v1, and commits"):
        pulls(hub, "v9")
    assert not (hub / "models--lab--other").exists()


NAMES = ["../x", "a/b/c", "-x", "a--b", "a/b--c", "x", "", "/", "a/", "/a", "a/..", "./a", "a/b-", "a-/b", "a/b.", "a/.b", "a/b c", "a\\b", "a/b\n", "a/ü", "a/" + "b" * 97, "a/-b", "a/b/", "~/a"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_none_is_refused(hub: Path, first: Path, name: str) -> None:
    for ask in (
        lambda: publish(first, name, hub=hub),
        lambda: torchorbit.from_pretrained(name, hub=hub),
        lambda: publish_index(name, hub=hub),
        lambda: graph().push_to_hub(name, hub=hub),
    ):
        with pytest.raises(HubError, match="is no name of a repository; expected 'organization/name'"):
            ask()
    assert not hub.exists()


@pytest.mark.parametrize("name", ["../main", "..", "", "-x", "a/b", "a b", "main\n", ".hidden", "a..b"])
def test_a_revision_that_is_none_is_refused(hub: Path, first: Path, second: Path, name: str) -> None:
    publish(first, REPO, hub=hub)
    before = everything(hub)
    for what in ({"revision": name or " "}, {"tag": name}):
        with pytest.raises(HubError, match="is no name of a revision"):
            publish(second, REPO, hub=hub, **what)
    with pytest.raises(HubError, match="is no name of a revision"):
        pulls(hub, name or " ")
    assert everything(hub) == before


# -- a hub that is not as it should be


def blob_of(hub: Path, name: str) -> Path:
    (commit,) = (hub / "models--lab--net" / "snapshots").iterdir()
    return (commit / name).resolve()


@pytest.mark.parametrize("name", ["model.safetensors", "graph.json", "checkpoint.json"])
@pytest.mark.parametrize("damage", ["a bit", "cut off", "gone"])
def test_a_damaged_file_is_not_loaded_and_publishing_again_repairs_it(
    hub: Path, first: Path, name: str, damage: str
) -> None:
    publish(first, REPO, hub=hub)
    blob = blob_of(hub, name)
    content = bytearray(blob.read_bytes())
    blob.unlink()
    if damage != "gone":
        content[len(content) // 2] ^= 0x80
        blob.write_bytes(content if damage == "a bit" else content[:100])
    with pytest.raises(torchorbit.CheckpointError):
        pulls(hub)

    publish(first, REPO, hub=hub)
    assert torch.equal(pulls(hub), outputs(load_checkpoint(first)))


def written(place: Path, branch: str = "main", **changes: object) -> str:
    """Put a commit into a repository as somebody may who can write there, and move a branch to it."""
    head = (place / "refs" / "main").read_text()
    details = json.loads((place / "commits" / f"{head}.json").read_text()) | changes
    commit = hashlib.sha1(json.dumps(details, sort_keys=True).encode()).hexdigest()
    (place / "commits" / f"{commit}.json").write_text(json.dumps(details))
    shutil.copytree(place / "snapshots" / head, place / "snapshots" / commit, symlinks=True)
    (place / "refs" / branch).write_text(commit)
    return commit


def with_file(name: str = "checkpoint.json", sha256: object = "0" * 64, size: object = 1) -> Callable[[Path], object]:
    return lambda place: written(place, files={name: {"sha256": sha256, "size": size}})


def in_place_of(kind: str, put: Callable[[Path], object]) -> Callable[[Path], object]:
    """Something else where a branch is, or where its commit is."""

    def replace_(place: Path) -> None:
        ref = place / "refs" / "main"
        path = ref if kind == "ref" else place / "commits" / f"{ref.read_text()}.json"
        path.unlink()
        put(path)

    return replace_


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a path upwards": with_file("../../../../stolen"),
    "an absolute path": with_file("/proc/stolen"),
    "a path of Windows": with_file("C:\\stolen"),
    "a path with an escape": with_file("\x1b[31mred"),
    "a path without a name": with_file("data//x"),
    "a hash that is a path": with_file(sha256="../../../stolen"),
    "a hash that is a number": with_file(sha256=1),
    "a size below zero": with_file(size=-1),
    "a size that is text": with_file(size="1"),
    "no files": lambda place: written(place, files=None),
    "a list of files": lambda place: written(place, files=[]),
    "more than there is": lambda place: written(place, more=1),
    "a parent that is a path": lambda place: written(place, parent="../../x"),
    "no JSON": in_place_of("commit", lambda path: path.write_text("{")),
    "JSON of another kind": in_place_of("commit", lambda path: path.write_text("[1]")),
    "deep JSON": in_place_of("commit", lambda path: path.write_text("[" * 100_000)),
    "a commit in no encoding": in_place_of("commit", lambda path: path.write_bytes(b"\xff{}")),
    "a commit without end": in_place_of("commit", lambda path: os.truncate(path.open("w").name, 2**33)),
    "a commit that is a folder": in_place_of("commit", lambda path: path.mkdir()),
    "a commit that is a pipe": in_place_of("commit", lambda path: os.mkfifo(path)),
    "a commit that is gone": in_place_of("commit", lambda path: None),
    "a commit under another's id": lambda place: in_place_of(
        "commit", lambda path: path.write_text(json.dumps({"parent": None, "message": "", "time": "", "files": {}}))
    )(place),
    "a branch that is a path": in_place_of("ref", lambda path: path.write_text("../../../stolen")),
    "a branch that is nothing": in_place_of("ref", lambda path: path.write_text("")),
    "a branch in no encoding": in_place_of("ref", lambda path: path.write_bytes(b"\xff" * 40)),
    "a branch without end": in_place_of("ref", lambda path: os.truncate(path.open("w").name, 2**33)),
    "a branch that is a folder": in_place_of("ref", lambda path: path.mkdir()),
    "a branch that is a pipe": in_place_of("ref", lambda path: os.mkfifo(path)),
    "a branch that is a link": in_place_of("ref", lambda path: path.symlink_to("/etc/hostname")),
}


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such files")
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_what_others_wrote_into_a_repository_is_looked_at_before_it_is_used(
    hub: Path, first: Path, second: Path, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is loaded, and nothing written where it says; the repositories beside it are there all the same."""
    publish(first, "lab/sound", hub=hub)
    publish(first, REPO, hub=hub)
    damage(hub / "models--lab--net")
    before = {path for path in hub.parent.rglob("*") if path.name != ".lock"}
    for ask in (lambda: pulls(hub), lambda: publish(second, REPO, hub=hub), lambda: fetch(REPO, hub=hub)):
        with pytest.raises(HubError, match=r"is damaged|cannot read") as found:
            ask()
        assert str(found.value).isprintable()
    assert {path for path in hub.parent.rglob("*") if path.name != ".lock"} == before
    assert [entry.repo for entry in search(DirectoryHub(hub))] == ["lab/sound"]
    assert "lab/net is passed over" in caplog.text
    assert "lab/sound" in Path(publish_index("lab/zoo", hub=hub).url, "README.md").read_text()


def test_the_id_of_a_commit_is_no_name_and_means_that_commit_alone(hub: Path, first: Path, second: Path) -> None:
    commit = str(publish(first, REPO, hub=hub).commit)
    other = str(publish(second, REPO, hub=hub).commit)
    for name in (commit, other, "0" * 40, "ABCDEF" * 6 + "ABCD"):
        for what in ({"revision": name}, {"tag": name}):
            with pytest.raises(HubError, match="is the id of a commit; choose another name"):
                publish(first, REPO, hub=hub, **what)
    (hub / "models--lab--net" / "refs" / commit).write_text(other)
    assert torch.equal(pulls(hub, commit), outputs(load_checkpoint(first)))


def test_what_a_commit_consists_of_is_not_exchanged(hub: Path, first: Path, second: Path, tmp_path: Path) -> None:
    """By whoever can write to the folder; the manifest is what the commit says, and has the hashes of the rest."""
    commit = str(publish(first, REPO, hub=hub).commit)
    publish(second, REPO, hub=hub)
    snapshots = hub / "models--lab--net" / "snapshots"
    theirs = snapshots / str(DirectoryHub(hub).resolve(REPO, "main"))
    kept = {path.name: path.readlink() for path in (snapshots / commit).iterdir()}

    def refused() -> None:
        with pytest.raises((HubError, torchorbit.CheckpointError)):
            pulls(hub, commit)

    for name in ("checkpoint.json", "graph.json", "model.safetensors", "README.md"):
        for target in (
            theirs.joinpath(name).readlink(),
            second / name,
            Path("../checkpoint.json"),
            Path("/etc/hostname"),
        ):
            (snapshots / commit / name).unlink()
            (snapshots / commit / name).symlink_to(target)
            refused()
        (snapshots / commit / name).unlink()
        (snapshots / commit / name).write_bytes((second / name).read_bytes())
        refused()
        (snapshots / commit / name).unlink()
        (snapshots / commit / name).symlink_to(kept[name])
    assert torch.equal(pulls(hub, commit), outputs(load_checkpoint(first)))

    (snapshots / commit).rename(tmp_path / "aside")
    (snapshots / commit).symlink_to(theirs)
    refused()


@pytest.mark.parametrize("name", ["blobs", "snapshots", "commits", "refs", "tags", ".lock"])
def test_nothing_is_written_behind_a_link(hub: Path, first: Path, tmp_path: Path, name: str) -> None:
    place = hub / "models--lab--net"
    place.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / ".keep").write_text("mine")
    (place / name).symlink_to(tmp_path / "elsewhere" / (".keep" if name == ".lock" else ""))
    with pytest.raises(HubError, match="is a link, which is not followed"):
        publish(first, REPO, hub=hub)
    assert [path.read_text() for path in (tmp_path / "elsewhere").iterdir()] == ["mine"]


@pytest.fixture
def as_nobody() -> Iterator[Callable[[], None]]:
    """Go on as a user who may not do everything; gives a function that is to be called for that."""
    if sys.platform == "win32":
        pytest.skip("there are no such permissions")
    yield lambda: os.seteuid(65534) if os.geteuid() == 0 else None
    if os.getuid() == 0:
        os.seteuid(0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user reaches."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_a_directory_that_is_read_only_can_be_pulled_from_and_not_published_to(
    open_folder: Path, first: Path, second: Path, as_nobody: Callable[[], None]
) -> None:
    save_checkpoint(load_checkpoint(second), open_folder / "second")
    expected = outputs(load_checkpoint(first))
    publish(first, REPO, hub=open_folder / "hub", tag="v1")
    for path in (open_folder / "hub", *(open_folder / "hub").rglob("*")):
        if path.is_dir():
            path.chmod(0o555)
    as_nobody()

    assert torch.equal(pulls(open_folder / "hub"), expected)
    assert [entry.repo for entry in search(DirectoryHub(open_folder / "hub"))] == [REPO]
    for repo in (REPO, "lab/new"):
        with pytest.raises(HubError, match=r"cannot write to .*: Permission denied"):
            publish(open_folder / "second", repo, hub=open_folder / "hub")


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="takes two users")
def test_somebody_elses_private_repository_is_a_clear_error_and_not_listed(
    open_folder: Path, first: Path, as_nobody: Callable[[], None]
) -> None:
    publish(first, REPO, hub=open_folder / "hub", private=True)
    publish(first, "lab/public", hub=open_folder / "hub")
    as_nobody()

    with pytest.raises(HubError, match=r"cannot read .*: Permission denied"):
        pulls(open_folder / "hub")
    assert [entry.repo for entry in search(DirectoryHub(open_folder / "hub"))] == ["lab/public"]


def test_a_file_in_the_place_of_the_directory_is_a_clear_error(first: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for hub in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(HubError):
            publish(first, REPO, hub=hub)
        with pytest.raises(HubError):
            pulls(hub)


# -- others who write at the same time, and publishers that are stopped

PUBLISH = """
import sys
from pathlib import Path
from zoo.publishing import publish
sys.stdin.readline()
for _ in range(int(sys.argv[3])):
    for folder in sys.argv[4:]:
        print(publish(folder, sys.argv[2], hub=sys.argv[1]).commit, flush=True)
"""


def publisher(hub: Path, times: int, *folders: Path, code: str = PUBLISH) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, str(hub), REPO, str(times), *map(str, folders)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        text=True,
    )


def test_two_who_publish_at_the_same_time_are_both_in_the_history(hub: Path, first: Path, second: Path) -> None:
    publishers = [publisher(hub, 5, first, second), publisher(hub, 5, second, first)]
    for process in publishers:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    made = []
    for process in publishers:
        out, err = process.communicate()
        assert process.returncode == 0, err
        made += out.split()

    place = hub / "models--lab--net"
    commits = {path.stem for path in (place / "commits").iterdir()}
    assert commits == set(made)
    assert len(history(hub)) == len(commits)  # in one line, with nothing lost beside it
    for commit in commits:
        assert torch.equal(pulls(hub, commit), outputs(load_checkpoint(first))) or torch.equal(
            pulls(hub, commit), outputs(load_checkpoint(second))
        )
    assert {path.name for path in (place / "snapshots").iterdir()} == commits


def test_a_version_that_shares_files_with_the_last_one_is_whole_though_another_came_between(
    hub: Path, first: Path, second: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(first, REPO, hub=hub)
    save_checkpoint(load_checkpoint(first), tmp_path / "renamed", name="renamed")
    commit = DirectoryHub.commit

    def overtaken(*arguments: object, **more: object) -> str:
        monkeypatch.setattr(DirectoryHub, "commit", commit)
        publish(second, REPO, hub=hub)
        return commit(*arguments, **more)

    monkeypatch.setattr(DirectoryHub, "commit", overtaken)
    publish(tmp_path / "renamed", REPO, hub=hub)

    assert history(hub) == ["renamed", "second", "first"]
    assert torch.equal(pulls(hub), outputs(load_checkpoint(first)))


# Publishes in processes that are killed at the n-th time that something is put in place, for every n until one finishes,
# and after each says what is there.
KILLED = """
import signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import torchorbit
from tests.zoo.kills import killed_at
from zoo.publishing import publish

hub, repo, _, folder, image = sys.argv[1:]

PLACES = {Path: ("replace", "symlink_to", "mkdir", "write_text", "write_bytes", "chmod")}

x = torch.load(image)
point, code = 0, -signal.SIGKILL
while code == -signal.SIGKILL:
    point += 1
    code = killed_at(point, lambda: publish(folder, repo, hub=hub, tag="v2"), PLACES)
    with torch.no_grad():
        dag = torchorbit.from_pretrained(repo, hub=hub)
        print(point, code, dag.manifest.name, dag(x).double().sum().item(), flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_publisher_that_is_killed_leaves_the_earlier_version_and_the_next_one_publishes(
    hub: Path, first: Path, second: Path, tmp_path: Path
) -> None:
    publish(first, REPO, hub=hub)
    torch.save(X, tmp_path / "image.pt")
    expected = {path.name: outputs(load_checkpoint(path)).double().sum().item() for path in (first, second)}

    process = publisher(hub, 0, second, tmp_path / "image.pt", code=KILLED)
    out, err = process.communicate()

    assert process.returncode == 0, err
    rows = [line.split() for line in out.splitlines()]
    assert [code for _, code, _, _ in rows] == [str(-signal.SIGKILL)] * (len(rows) - 1) + ["0"]
    assert len(rows) > 20
    names = [name for _, _, name, _ in rows]
    assert names == sorted(names)  # the first version, and from some moment on the second
    assert set(names) == {"first", "second"}
    assert all(float(total) == expected[name] for _, _, name, total in rows)
    assert publish(second, REPO, hub=hub, tag="v2").changed == ()
    for revision in ("main", "v2"):
        assert torch.equal(pulls(hub, revision), outputs(load_checkpoint(second)))
    assert history(hub)[-1] == "first"
    for folder in (hub / "models--lab--net").iterdir():
        assert not folder.is_dir() or not [path for path in folder.iterdir() if path.name.startswith(".")], "litter"


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_lock_of_a_publisher_that_was_killed_is_none(hub: Path, first: Path) -> None:
    code = "import sys; from zoo.directory import DirectoryHub; from pathlib import Path\nhub = DirectoryHub(Path(sys.argv[1]))\nwith hub._writing(hub._place(sys.argv[2], 'model'), False):\n    print('in', flush=True)\n    sys.stdin.read()\n"
    process = publisher(hub, 0, code=code)
    assert process.stdout is not None
    assert process.stdout.readline() == "in\n"
    waiting = publisher(hub, 1, first)
    assert waiting.stdin is not None
    waiting.stdin.write("\n")
    waiting.stdin.flush()
    time.sleep(0.1)
    assert waiting.poll() is None
    process.kill()
    process.communicate()
    assert waiting.communicate()[1] == ""
    assert torch.equal(pulls(hub), outputs(load_checkpoint(first)))


# -- finding


@pytest.fixture
def zoo(hub: Path) -> DirectoryHub:
    for repo, model, width, accuracy in (
        ("lab/a", "resnet18.a1_in1k", 4, 0.7),
        ("lab/b", "resnet50.a1_in1k", 8, 0.8),
        ("lab/c", "vit_tiny.in21k", 16, None),
        ("other/d", "resnet18.fb", 2, 0.6),
    ):
        measured = [
            Accuracy(dataset=dataset, split="test", input_size=(3, 16, 16), after=value)
            for dataset, value in (("imagenet-1k", accuracy), ("digits", 0.99))
            if value is not None and accuracy is not None
        ]
        graph(width).push_to_hub(
            repo, hub=hub, name=f"pruned {model}", source=Source(model=model, weights="w"), accuracy=measured
        )
    return DirectoryHub(hub)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({}, ["other/d", "lab/a", "lab/b", "lab/c"]),
        ({"owner": "lab"}, ["lab/a", "lab/b", "lab/c"]),
        ({"owner": "nobody"}, []),
        ({"source": "resnet18*"}, ["other/d", "lab/a"]),
        ({"source": "resnet18"}, ["other/d", "lab/a"]),
        ({"source": "resnet18.fb"}, ["other/d"]),
        ({"source": "resnet"}, []),
        ({"max_parameters": 500}, ["other/d", "lab/a"]),
        ({"max_gflops": 0}, []),
        ({"max_gflops": 1e9}, ["other/d", "lab/a", "lab/b", "lab/c"]),
        ({"min_accuracy": 0.75}, ["other/d", "lab/a", "lab/b"]),
        ({"min_accuracy": 0.75, "dataset": "imagenet*"}, ["lab/b"]),
        ({"dataset": "imagenet-1k"}, ["other/d", "lab/a", "lab/b"]),
        ({"dataset": "cifar*"}, []),
        ({"dataset": "digits", "min_accuracy": 0.995}, []),
        ({"source": "resnet*", "owner": "lab", "min_accuracy": 0.5, "dataset": "imagenet-1k"}, ["lab/a", "lab/b"]),
    ],
    ids=str,
)
def test_checkpoints_are_found_by_what_they_say_of_themselves(
    zoo: DirectoryHub, wanted: dict[str, object], found: list[str]
) -> None:
    assert [entry.repo for entry in search(zoo, **wanted)] == found


def test_what_is_no_checkpoint_is_passed_over(zoo: DirectoryHub, caplog: pytest.LogCaptureFixture) -> None:
    publish_index("lab/zoo", hub=zoo.folder)
    publish_tables(ROOT / "results" / "coverage.jsonl", "lab/tables", hub=zoo.folder)
    for stray in (
        "models--lab--with space",
        "models--lab-",
        "models--a--b--c",
        "models--lab---x",
        "models--lab--empty",
    ):
        (zoo.folder / stray / "refs").mkdir(parents=True)
    (zoo.folder / "models--lab--file").write_text("")
    (zoo.folder / "notes.txt").write_text("")
    (zoo.folder / "models--lab--a" / "commits" / zoo.resolve("lab/a", "main")).with_suffix(".json").write_text("{")
    commit = zoo.resolve("lab/b", "main")
    (zoo.folder / "models--lab--b" / "snapshots" / commit / "checkpoint.json").unlink()

    assert [entry.repo for entry in search(zoo)] == ["other/d", "lab/c"]
    assert "lab/b" in caplog.text
    assert "lab/a" in caplog.text
    assert search(DirectoryHub(zoo.folder / "nowhere")) == []


def test_the_page_of_a_zoo_lists_its_checkpoints_and_links_to_them(zoo: DirectoryHub) -> None:
    publication = publish_index("lab/zoo", hub=zoo.folder)
    page = Path(publication.url, "README.md")
    text = page.read_text()

    assert "# Pruned models of lab\n" in text
    for name in "abc":
        assert (page.parent / f"../../../models--lab--{name}").is_dir()
        assert f"[lab/{name}](../../../models--lab--{name})" in text
    assert "other/d" not in text
    assert publish_index("lab/zoo", hub=zoo.folder).changed == ()
    graph(3).push_to_hub("lab/e", hub=zoo.folder)
    assert publish_index("lab/zoo", hub=zoo.folder, dry_run=True).changed == ("README.md",)
    assert publish_index("lab/zoo", hub=zoo.folder).changed == ("README.md",)
    assert "other/d" in Path(publish_index("lab/all", hub=zoo.folder, owner="other").url, "README.md").read_text()


# -- tables


def test_the_records_of_a_sweep_are_published_as_rows_that_pandas_reads(hub: Path, tmp_path: Path) -> None:
    record = Record(model="a", timm="1", torch="2", torchorbit="3", converted=True, params_m=1.5)
    records = [record, replace(record, model="b", converted=False, stage="convert", error="it did not | \n")]
    write_records(tmp_path / "records.jsonl", records)
    publication = publish_tables(tmp_path / "records.jsonl", "lab/coverage", hub=hub, tag="v1")

    folder = Path(publication.url)
    assert folder.parents[1].name == "datasets--lab--coverage"
    rows = pandas.read_parquet(folder / "data" / "coverage.parquet").replace({np.nan: None}).to_dict("records")
    expected = pandas.DataFrame([asdict(record) for record in records]).replace({np.nan: None}).to_dict("records")
    assert rows == expected
    assert [row["model"] for row in rows] == ["a", "b"]
    assert {path.name for path in folder.glob("*.md")} >= {"README.md", "supported_models.md", "coverage.md"}
    card = (folder / "README.md").read_text()
    assert "data/coverage.parquet" in card.split("---")[1]
    assert "timm 1" in card
    assert publish_tables(tmp_path / "records.jsonl", "lab/coverage", hub=hub).changed == ()
    assert DirectoryHub(hub).repositories() == []
    again = snapshot_download("lab/coverage", repo_type="dataset", cache_dir=hub, local_files_only=True, revision="v1")
    assert Path(again) == folder


def test_the_committed_records_are_published_row_by_row(hub: Path) -> None:
    publication = publish_tables(ROOT / "results" / "coverage.jsonl", "lab/coverage", hub=hub)
    table = pandas.read_parquet(Path(publication.url, "data", "coverage.parquet"))
    lines = [json.loads(line) for line in (ROOT / "results" / "coverage.jsonl").read_text().splitlines()]
    assert list(table["model"]) == [line["model"] for line in lines]
    for column in ("converted", "verified", "params_m"):
        theirs = pandas.Series([line.get(column) for line in lines])
        assert [None if value != value else value for value in table[column]] == [
            None if value != value else value for value in theirs
        ]
