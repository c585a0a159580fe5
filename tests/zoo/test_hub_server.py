"""The hub of the tests is as good as what it is asked by the real client."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    DatasetInfo,
    HfApi,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    BadRequestError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile, RepoFolder

from tests.zoo.hub import Hub, running_hub

MIB = 1024 * 1024
REPO = "alice/pruned"


def noise(size: int, seed: int = 0) -> bytes:
    return hashlib.shake_128(str(seed).encode()).digest(size)


def add(path: str, content: bytes) -> CommitOperationAdd:
    return CommitOperationAdd(path, content)


def commit(api: HfApi, *operations: CommitOperationAdd | CommitOperationDelete, **more: str) -> str:
    message = more.pop("message", "a commit")
    return api.create_commit(REPO, list(operations), commit_message=message, **more).oid


def read(hub: Hub, path: str, revision: str | None = None, **more: object) -> bytes:
    token = more.pop("token", hub.token)
    return Path(hf_hub_download(REPO, path, revision=revision, endpoint=hub.endpoint, token=token, **more)).read_bytes()


@pytest.fixture
def api(hub: Hub) -> HfApi:
    """The owner of an empty repository."""
    api = hub.api()
    api.create_repo(REPO)
    hub.forget()
    return api


# Files


@pytest.mark.parametrize(
    ("path", "size", "lfs"),
    [
        ("recipe.json", 300, False),
        ("nothing.txt", 0, False),
        ("with a space/and ünïcode?.txt", 10, False),
        ("model.safetensors", 1000, True),
        ("model.safetensors", 6 * MIB, True),
        ("model.safetensors", 12 * MIB, True),
        ("large.txt", 11 * MIB, True),
    ],
)
def test_a_file_comes_back_as_it_was_sent(hub: Hub, api: HfApi, path: str, size: int, lfs: bool) -> None:
    content = noise(size) if path.endswith(".safetensors") else b"x" * size
    commit(api, add(path, content))

    assert read(hub, path) == content
    (file,) = [file for file in api.list_repo_tree(REPO, recursive=True) if file.path == path]
    assert isinstance(file, RepoFile)
    assert file.size == size
    assert (file.lfs is not None) == lfs
    if file.lfs is not None:
        assert (file.lfs.sha256, file.lfs.size) == (hashlib.sha256(content).hexdigest(), size)


def test_what_is_binary_goes_through_lfs_whatever_its_name(api: HfApi) -> None:
    commit(api, add("weights", b"\0" * 100), add("notes", b"a" * 100))
    lfs = {file.path: file.lfs is not None for file in api.list_repo_tree(REPO) if isinstance(file, RepoFile)}
    assert lfs == {".gitattributes": False, "notes": False, "weights": True}


def test_more_than_ten_megabytes_are_sent_in_parts(hub: Hub, api: HfApi) -> None:
    commit(api, add("small.safetensors", noise(10 * MIB)), add("large.safetensors", noise(10 * MIB + 1)))
    sizes = sorted(request.received for request in hub.requests(method="PUT"))
    assert sizes == [1, 5 * MIB, 5 * MIB, 10 * MIB]


def test_a_folder_goes_there_and_back(hub: Hub, api: HfApi, tmp_path: Path) -> None:
    content = {
        "README.md": b"---\ntags: [torchorbit]\n---\n# A model\n",
        "graph/graph.json": b"{}",
        "graph/model.safetensors": noise(6 * MIB),
    }
    for path, data in content.items():
        (tmp_path / "up" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "up" / path).write_bytes(data)

    made = api.upload_folder(repo_id=REPO, folder_path=tmp_path / "up", commit_message="First\n\nand more")
    folder = Path(snapshot_download(REPO, endpoint=hub.endpoint, token=hub.token))

    assert folder.name == made.oid
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert {**found, ".gitattributes": b""} == {**content, ".gitattributes": b""}
    assert api.list_repo_files(REPO) == [".gitattributes", *content]
    with pytest.raises(ValueError, match="Invalid metadata"):
        api.upload_file(path_or_fileobj=b"---\n[\n---\n", path_in_repo="README.md", repo_id=REPO)


def test_publishing_the_same_again_sends_nothing_and_commits_nothing(hub: Hub, api: HfApi) -> None:
    files = {"recipe.json": b"{}", "model.safetensors": noise(1000), "large.safetensors": noise(11 * MIB)}
    first = commit(api, *(add(path, content) for path, content in files.items()))
    assert hub.uploaded() > sum(map(len, files.values()))
    hub.forget()

    assert commit(api, *(add(path, content) for path, content in files.items())) == first

    assert hub.uploaded() == 0
    assert hub.requests(path="/commit/") == []


def test_a_new_version_sends_only_what_is_new(hub: Hub, api: HfApi) -> None:
    kept = noise(MIB)
    first = commit(api, add("model.safetensors", kept), add("recipe.json", b"{}"))
    hub.forget()

    # What is large is known by its hash, under whatever name.
    second = commit(api, add("old.safetensors", kept), add("model.safetensors", b"new"))

    assert [request.received for request in hub.requests(method="PUT")] == [3]
    assert read(hub, "model.safetensors", first) == kept
    assert read(hub, "model.safetensors", second) == b"new"
    assert read(hub, "old.safetensors", second) == kept


def test_files_and_folders_are_deleted(api: HfApi) -> None:
    commit(api, *(add(path, b"x") for path in ("a.txt", "b.txt", "folder/c.txt", "folder/deep/d.txt")))
    commit(api, CommitOperationDelete("a.txt"), CommitOperationDelete("folder/"))
    assert api.list_repo_files(REPO) == [".gitattributes", "b.txt"]

    with pytest.raises(RemoteEntryNotFoundError, match="doesn't exist"):
        commit(api, CommitOperationDelete("a.txt"), add("e.txt", b"x"))
    assert not api.file_exists(REPO, "e.txt")


def test_a_tree_is_listed_by_folders(api: HfApi) -> None:
    commit(api, add("a.txt", b"x"), add("folder/b.txt", b"x"), add("folder/deep/c.txt", b"x"))

    def paths(*arguments: str, **more: bool) -> list[tuple[str, bool]]:
        return [(entry.path, isinstance(entry, RepoFolder)) for entry in api.list_repo_tree(REPO, *arguments, **more)]

    assert paths() == [(".gitattributes", False), ("a.txt", False), ("folder", True)]
    assert paths("folder") == [("folder/b.txt", False), ("folder/deep", True)]
    assert paths("folder/deep", recursive=True) == [("folder/deep/c.txt", False)]
    with pytest.raises(RemoteEntryNotFoundError):
        paths("nowhere")
    found = api.get_paths_info(REPO, ["folder", "a.txt", "nowhere"])
    assert [entry.path for entry in found] == ["folder", "a.txt"]


def test_long_lists_come_in_pages(hub: Hub, api: HfApi) -> None:
    commit(api, *(add(f"{number:03}.txt", b"x") for number in range(120)))
    assert len(api.list_repo_files(REPO)) == 121
    assert len(hub.requests(path="/tree/")) == 3


def test_a_model_is_described_with_its_files(api: HfApi) -> None:
    head = commit(api, add("model.safetensors", noise(1000)), add("README.md", b"---\nlibrary_name: torchorbit\n---\n"))
    found = api.model_info(REPO, files_metadata=True)
    assert (found.id, found.author, found.sha, found.private) == (REPO, "alice", head, False)
    assert found.siblings is not None
    lfs = {sibling.rfilename: sibling.lfs for sibling in found.siblings}
    weights = lfs["model.safetensors"]
    assert weights is not None
    assert weights.sha256 == hashlib.sha256(noise(1000)).hexdigest()
    assert lfs["README.md"] is None
    assert found.library_name == "torchorbit"
    assert api.model_info(REPO, expand=["sha", "tags"]).tags == ["torchorbit", "region:us"]


# Revisions


def test_tags_branches_and_commits_all_name_a_revision(hub: Hub, api: HfApi) -> None:
    first = commit(api, add("recipe.json", b"1"), message="One\n\nin more words")
    api.create_tag(REPO, tag="v1")
    second = commit(api, add("recipe.json", b"2"))
    api.create_branch(REPO, branch="try/this", revision="v1")
    third = commit(api, add("recipe.json", b"3"), revision="try/this")

    for revision, content in {"v1": b"1", first: b"1", "main": b"2", second: b"2", "try/this": b"3"}.items():
        assert read(hub, "recipe.json", revision) == content
    refs = api.list_repo_refs(REPO)
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": second, "try/this": third}
    assert {ref.ref: ref.target_commit for ref in refs.tags} == {"refs/tags/v1": first}
    commits = api.list_repo_commits(REPO, revision="try/this")
    assert [one.commit_id for one in commits[:2]] == [third, first]
    assert (commits[1].title, commits[1].message, commits[1].authors) == ("One", "in more words", ["alice"])
    assert commits[2].title == "initial commit"


def test_names_are_given_once_and_can_be_taken_back(api: HfApi) -> None:
    api.create_tag(REPO, tag="v1")
    api.create_tag(REPO, tag="v1", exist_ok=True)
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_tag(REPO, tag="v1")
    api.delete_tag(REPO, tag="v1")
    assert not api.revision_exists(REPO, "v1")
    with pytest.raises(RevisionNotFoundError):
        api.delete_tag(REPO, tag="v1")

    api.create_branch(REPO, branch="next")
    api.create_branch(REPO, branch="next", exist_ok=True)
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_branch(REPO, branch="next")
    api.delete_branch(REPO, branch="next")
    with pytest.raises(HfHubHTTPError, match="403"):
        api.delete_branch(REPO, branch="main")

    api.create_repo(REPO, exist_ok=True)
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo(REPO)
    api.delete_repo(REPO)
    assert not api.repo_exists(REPO)


def test_a_commit_that_insists_on_its_parent_is_refused_after_another(api: HfApi) -> None:
    head = api.model_info(REPO).sha
    assert head is not None
    commit(api, add("theirs.txt", b"x"))

    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as refused:
        commit(api, add("ours.txt", b"x"), parent_commit=head)

    assert refused.value.response.status_code == 412
    assert not api.file_exists(REPO, "ours.txt")


def test_what_is_missing_is_said_to_be_missing(hub: Hub, api: HfApi) -> None:
    with pytest.raises(RemoteEntryNotFoundError):
        read(hub, "nowhere.json")
    with pytest.raises(RevisionNotFoundError):
        read(hub, ".gitattributes", "v9")
    with pytest.raises(RevisionNotFoundError):
        commit(api, add("a.txt", b"x"), revision="nowhere")
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("alice/nowhere", "a.txt", endpoint=hub.endpoint)
    assert not api.file_exists("alice/nowhere", "a.txt")
    assert not api.repo_exists("alice/nowhere")


# Who may do what


def test_a_private_repository_is_there_for_its_owner_alone(hub: Hub) -> None:
    hub.api().create_repo(REPO, private=True)
    commit(hub.api(), add("model.safetensors", b"secret"), add("recipe.json", b"{}"))

    for api, status in ((hub.anonymous(), 401), (hub.api(hub.other_token), 404)):
        with pytest.raises(RepositoryNotFoundError) as refused:
            api.model_info(REPO)
        assert refused.value.response.status_code == status
        for path in ("model.safetensors", "recipe.json"):
            with pytest.raises(RepositoryNotFoundError):
                read(hub, path, token=api.token)
        with pytest.raises(RepositoryNotFoundError):
            snapshot_download(REPO, endpoint=hub.endpoint, token=api.token)
        assert list(api.list_models()) == []

    assert [model.id for model in hub.api(hub.read_token).list_models()] == [REPO]
    assert read(hub, "model.safetensors", token=hub.read_token) == b"secret"

    hub.api().update_repo_settings(REPO, private=False)
    assert hub.anonymous().repo_exists(REPO)


def test_large_files_come_from_another_host_that_is_shown_no_token(hub: Hub, api: HfApi) -> None:
    commit(api, add("model.safetensors", noise(1000)))
    (up,) = hub.requests(method="PUT")
    hub.forget()
    read(hub, "model.safetensors")
    (down,) = hub.requests(method="GET", path="filename=model.safetensors$")
    assert up.anonymous
    assert down.anonymous
    host = down.headers["host"]
    assert host not in hub.endpoint

    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"http://{host}{down.path.replace('signature=', 'signature=0')}")


def test_only_the_owner_writes(hub: Hub, api: HfApi) -> None:
    for token in (hub.read_token, hub.other_token):
        with pytest.raises(HfHubHTTPError, match="403"):
            commit(hub.api(token), add("a.txt", b"x"))
        with pytest.raises(HfHubHTTPError, match="403"):
            hub.api(token).create_tag(REPO, tag="v1")
        with pytest.raises(HfHubHTTPError, match="403"):
            hub.api(token).create_repo("alice/another")
    with pytest.raises(HfHubHTTPError, match="401"):
        hub.anonymous().create_tag(REPO, tag="v1")
    with pytest.raises(HfHubHTTPError, match="401"):
        hub.api("hf_made_up").model_info(REPO)
    assert api.list_repo_files(REPO) == [".gitattributes"]
    assert api.whoami()["name"] == hub.user
    assert hub.api(hub.other_token).whoami()["name"] == hub.other_user


# Finding models


def test_models_are_found_by_what_their_cards_say(hub: Hub) -> None:
    cards = {
        "alice/resnet-pruned": "tags: [torchorbit, pruned]\nlibrary_name: timm\nlicense: mit\nbase_model: timm/resnet",
        "alice/vit-pruned": "tags:\n- torchorbit\npipeline_tag: image-classification",
        "bob/other": "tags: [pruned]",
    }
    for identifier, card in cards.items():
        api = hub.api(hub.token if identifier.startswith("alice") else hub.other_token)
        api.create_repo(identifier)
        readme = f"---\n{card}\n---\n# A model\n".encode()
        api.upload_file(path_or_fileobj=readme, path_in_repo="README.md", repo_id=identifier)
    hub.api().create_repo("alice/without-a-card")

    def found(**asked: object) -> set[str]:
        return {model.id for model in hub.anonymous().list_models(**asked)}

    assert found() == {*cards, "alice/without-a-card"}
    assert found(filter="torchorbit") == {"alice/resnet-pruned", "alice/vit-pruned"}
    assert found(filter=["torchorbit", "pruned"]) == {"alice/resnet-pruned"}
    assert found(filter="timm") == {"alice/resnet-pruned"}
    assert found(filter="license:mit") == {"alice/resnet-pruned"}
    assert found(filter="base_model:timm/resnet") == {"alice/resnet-pruned"}
    assert found(pipeline_tag="image-classification") == {"alice/vit-pruned"}
    assert found(author="bob") == {"bob/other"}
    assert found(search="VIT", filter="torchorbit") == {"alice/vit-pruned"}
    (model,) = hub.anonymous().list_models(filter="timm", cardData=True)
    assert model.card_data is not None
    assert (model.card_data.license, model.tags[:3]) == ("mit", ["timm", "torchorbit", "pruned"])
    (newest,) = hub.anonymous().list_models(sort="last_modified", limit=1)
    assert newest.id == "alice/without-a-card"


# Datasets

TABLE = b"PAR1 rows of a table PAR1"
CARD = b"---\ntags: [torchorbit]\nlicense: mit\ntask_categories: [image-classification]\n---\n# Records\n"


def dataset(api: HfApi, identifier: str = REPO, card: bytes = CARD, private: bool = False) -> str:
    """Make a dataset with a table and a card, and say what its commit is."""
    api.create_repo(identifier, repo_type="dataset", private=private)
    operations = [add("data/train.parquet", TABLE), add("README.md", card)]
    return api.create_commit(identifier, operations, commit_message="a table", repo_type="dataset").oid


def test_a_dataset_is_published_and_comes_back(hub: Hub) -> None:
    api = hub.api()
    url = api.create_repo(REPO, repo_type="dataset")
    assert (url, url.repo_type, url.repo_id) == (f"{hub.endpoint}/datasets/{REPO}", "dataset", REPO)
    large = noise(11 * MIB)
    operations = [add("data/train.parquet", TABLE), add("data/large.parquet", large), add("README.md", CARD)]
    made = api.create_commit(REPO, operations, commit_message="a table", repo_type="dataset")
    api.create_tag(REPO, tag="v1", repo_type="dataset")
    assert (made.repo_url.repo_type, made.repo_url.repo_id) == ("dataset", REPO)

    about = api.repo_info(REPO, repo_type="dataset", files_metadata=True)
    assert isinstance(about, DatasetInfo)
    assert (about.id, about.author, about.sha, about.private) == (REPO, "alice", made.oid, False)
    assert about.card_data is not None
    assert about.card_data.license == "mit"
    assert about.tags == ["torchorbit", "task_categories:image-classification", "license:mit", "region:us"]
    tree = list(api.list_repo_tree(REPO, recursive=True, repo_type="dataset"))
    assert [entry.path for entry in tree if isinstance(entry, RepoFolder)] == ["data"]
    assert {file.path: file.lfs and file.lfs.sha256 for file in tree if isinstance(file, RepoFile)} == {
        ".gitattributes": None,
        "README.md": None,
        "data/large.parquet": hashlib.sha256(large).hexdigest(),
        "data/train.parquet": hashlib.sha256(TABLE).hexdigest(),
    }
    refs = api.list_repo_refs(REPO, repo_type="dataset")
    assert {ref.ref: ref.target_commit for ref in refs.branches + refs.tags} == {
        "refs/heads/main": made.oid,
        "refs/tags/v1": made.oid,
    }
    assert read(hub, "data/train.parquet", "v1", repo_type="dataset") == TABLE
    assert read(hub, "data/large.parquet", repo_type="dataset") == large
    assert read(hub, "README.md", repo_type="dataset") == CARD
    folder = Path(snapshot_download(REPO, repo_type="dataset", endpoint=hub.endpoint))
    assert (folder / "data/large.parquet").read_bytes() == large


def test_a_model_and_a_dataset_may_have_the_same_name(hub: Hub, api: HfApi) -> None:
    card = b"---\nlicense: mit\n---\n# A model\n"
    commit(api, add("README.md", card))
    assert not api.repo_exists(REPO, repo_type="dataset")
    head = dataset(api)
    api.create_tag(REPO, tag="v1", repo_type="dataset")

    assert read(hub, "README.md") == card
    assert read(hub, "README.md", repo_type="dataset") == CARD
    assert not api.file_exists(REPO, "data/train.parquet")
    assert not api.revision_exists(REPO, "v1")
    with pytest.raises(RevisionNotFoundError):
        api.model_info(REPO, revision=head)
    api.create_repo(REPO, repo_type="dataset", exist_ok=True)
    with pytest.raises(HfHubHTTPError, match="already created this dataset"):
        api.create_repo(REPO, repo_type="dataset")
    with pytest.raises(BadRequestError, match="no repositories of the type 'space'"):
        api.create_repo(REPO, repo_type="space", space_sdk="static")

    api.delete_repo(REPO)
    assert not api.repo_exists(REPO)
    assert api.dataset_info(REPO).sha == head


def test_a_private_dataset_is_there_for_its_owner_alone(hub: Hub) -> None:
    dataset(hub.api(), private=True)

    for api, status in ((hub.anonymous(), 401), (hub.api(hub.other_token), 404)):
        with pytest.raises(RepositoryNotFoundError) as refused:
            api.dataset_info(REPO)
        assert refused.value.response.status_code == status
        for path in ("data/train.parquet", "README.md"):
            with pytest.raises(RepositoryNotFoundError):
                read(hub, path, repo_type="dataset", token=api.token)
        assert list(api.list_datasets()) == []

    assert [found.id for found in hub.api(hub.read_token).list_datasets()] == [REPO]
    assert read(hub, "data/train.parquet", repo_type="dataset", token=hub.read_token) == TABLE
    with pytest.raises(HfHubHTTPError, match="403"):
        hub.api(hub.read_token).create_tag(REPO, tag="v1", repo_type="dataset")

    hub.api().update_repo_settings(REPO, private=False, repo_type="dataset")
    assert hub.anonymous().repo_exists(REPO, repo_type="dataset")


def test_datasets_are_found_by_what_their_cards_say(hub: Hub, api: HfApi) -> None:
    dataset(api, "alice/coverage-records")
    dataset(api, "alice/latency-records", b"---\ntags: [torchorbit, latency]\nlanguage: en\n---\n# Records\n")
    dataset(hub.api(hub.other_token), "bob/records")

    def found(**asked: object) -> set[str]:
        return {dataset.id for dataset in hub.anonymous().list_datasets(**asked)}

    assert found() == {"alice/coverage-records", "alice/latency-records", "bob/records"}
    assert found(filter="torchorbit", author="alice") == {"alice/coverage-records", "alice/latency-records"}
    assert found(filter=["torchorbit", "latency"]) == {"alice/latency-records"}
    assert found(filter="license:mit") == {"alice/coverage-records", "bob/records"}
    assert found(task_categories="image-classification", author="bob") == {"bob/records"}
    assert found(language="en") == {"alice/latency-records"}
    assert found(search="LATENCY") == {"alice/latency-records"}
    assert found(dataset_name="records", search="coverage") == {"alice/coverage-records"}
    assert {model.id for model in api.list_models()} == {REPO}
    (short,) = api.list_datasets(author="bob")
    (full,) = api.list_datasets(author="bob", full=True)
    assert (short.siblings, short.card_data) == (None, None)
    assert full.card_data is not None
    assert full.card_data.license == "mit"
    assert [sibling.rfilename for sibling in full.siblings or []] == [
        ".gitattributes",
        "README.md",
        "data/train.parquet",
    ]
    (newest,) = api.list_datasets(sort="created_at", limit=1)
    assert newest.id == "bob/records"


# What goes wrong


def test_the_client_waits_and_tries_again_where_it_does(hub: Hub, api: HfApi, waits: list[float]) -> None:
    hub.fail(503, path="/preupload/", times=2)
    hub.fail(500, method="PUT", times=1)
    hub.fail(429, path="/objects/batch", retry_after=7)

    commit(api, add("model.safetensors", noise(1000)))

    assert waits == [1, 2, 8, 1]  # what is asked for and one second more; twice as long each time
    assert read(hub, "model.safetensors") == noise(1000)


def test_the_client_gives_up_in_the_end(hub: Hub, api: HfApi, waits: list[float]) -> None:
    hub.fail(503, path="/preupload/", times=None)
    with pytest.raises(HfHubHTTPError, match="503"):
        commit(api, add("a.txt", b"x"))
    assert waits == [1, 2, 4, 8, 8]
    assert len(hub.requests(path="/preupload/")) == 6
    hub.mend()
    commit(api, add("a.txt", b"x"))


@pytest.mark.parametrize("status", [429, 500, 503])
def test_much_of_the_client_does_not_try_again(hub: Hub, api: HfApi, waits: list[float], status: int) -> None:
    asks = {
        "/api/repos/create": lambda: api.create_repo("alice/another"),
        "/api/models/alice/pruned$": lambda: api.model_info(REPO),
        "/commit/": lambda: commit(api, add("a.txt", b"x")),
        "/tag/": lambda: api.create_tag(REPO, tag="v1"),
        "/refs": lambda: api.list_repo_refs(REPO),
    }
    for path, ask in asks.items():
        hub.fail(status, path=path)
        with pytest.raises(HfHubHTTPError, match=str(status)):
            ask()
        hub.mend()
    assert waits == []


def test_a_download_outlasts_a_hub_that_is_away_for_a_while(hub: Hub, api: HfApi, waits: list[float]) -> None:
    commit(api, add("model.safetensors", noise(1000)))
    hub.fail(503, method="HEAD", times=3)
    assert read(hub, "model.safetensors") == noise(1000)
    assert waits == [1, 2]  # the first of the three is one for which it looks into its cache
    hub.fail(503, method="HEAD", times=None)
    with pytest.raises(LocalEntryNotFoundError):
        read(hub, "recipe.json")


def test_an_upload_that_was_cut_goes_on_with_what_is_missing(hub: Hub, api: HfApi, waits: list[float]) -> None:
    files = {f"{number}.safetensors": noise(2 * MIB, number) for number in range(3)}
    cut = hashlib.sha256(files["1.safetensors"]).hexdigest()
    hub.cut_upload(after=MIB, path=cut, times=None)

    with pytest.raises(RuntimeError, match=r"uploading '1\.safetensors'"):
        commit(api, *(add(path, content) for path, content in files.items()))

    tries = hub.requests(method="PUT", path=cut)
    assert [(request.received, request.status) for request in tries] == [(MIB, None)] * 6
    assert api.list_repo_files(REPO) == [".gitattributes"]
    hub.forget()
    commit(api, *(add(path, content) for path, content in files.items()))
    assert [(request.received, request.status) for request in hub.requests(method="PUT")] == [(2 * MIB, 200)]
    assert {path: read(hub, path) for path in files} == files


@pytest.mark.parametrize("reset", [False, True])
def test_one_cut_is_mended_by_the_client(hub: Hub, api: HfApi, waits: list[float], reset: bool) -> None:
    hub.cut_upload(after=MIB, reset=reset)
    commit(api, add("model.safetensors", noise(2 * MIB)))
    assert waits == [1]
    assert [request.received for request in hub.requests(method="PUT")] == [MIB, 2 * MIB]


def test_a_part_that_was_cut_is_sent_again_without_the_others(hub: Hub, api: HfApi, waits: list[float]) -> None:
    hub.cut_upload(after=MIB, path="/2[?]")
    commit(api, add("model.safetensors", noise(12 * MIB)))
    sizes = [request.received for request in hub.requests(method="PUT")]
    assert sizes == [5 * MIB, MIB, 5 * MIB, 2 * MIB]
    assert read(hub, "model.safetensors") == noise(12 * MIB)


def test_what_is_not_what_was_promised_is_not_taken(
    hub: Hub, api: HfApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    for size, others in ((2 * MIB, 2 * MIB), (2 * MIB, MIB), (12 * MIB, 12 * MIB)):
        path.write_bytes(noise(size))
        operation = CommitOperationAdd("model.safetensors", path)
        assert operation.upload_info.sha256
        path.write_bytes(noise(others, seed=1))
        with pytest.raises((RuntimeError, ValueError)) as refused:
            commit(api, operation)
        assert isinstance(refused.value.__cause__, BadRequestError)
    # And a commit does not speak of what is not there.
    monkeypatch.setattr("huggingface_hub._commit_api._upload_lfs_files", lambda **_: None)
    with pytest.raises(BadRequestError, match="not uploaded"):
        commit(api, CommitOperationAdd("model.safetensors", path))
    assert api.list_repo_files(REPO) == [".gitattributes"]


def test_a_download_that_was_cut_goes_on_where_it_was(hub: Hub, api: HfApi, waits: list[float]) -> None:
    content = noise(21 * MIB)
    commit(api, add("model.safetensors", content))
    hub.forget()
    hub.cut_download(after=15 * MIB, path="filename=")

    assert read(hub, "model.safetensors") == content

    # The client takes ten megabytes at a time, and forgets what it has of the next ten.
    ranges = [(r.headers.get("range"), r.status, r.sent) for r in hub.requests(method="GET", path="filename=")]
    assert ranges == [(None, 200, 15 * MIB), (f"bytes={10 * MIB}-", 206, 11 * MIB)]
    assert waits == [1]


def test_a_download_ends_with_a_server_error_or_a_reset(hub: Hub, api: HfApi, waits: list[float]) -> None:
    commit(api, add("model.safetensors", noise(2 * MIB)))
    for status in (500, 503):
        hub.fail(status, method="GET", path="filename=")
        with pytest.raises(HfHubHTTPError, match=str(status)):
            read(hub, "model.safetensors")
    hub.cut_download(after=MIB, path="filename=", reset=True)
    with pytest.raises(Exception, match="reset"):
        read(hub, "model.safetensors")
    assert waits == []
    hub.fail(429, method="GET", path="filename=", retry_after=3)
    assert read(hub, "model.safetensors") == noise(2 * MIB)
    assert waits == [4]


def test_a_snapshot_may_be_an_old_one_when_the_hub_is_away(hub: Hub, api: HfApi, waits: list[float]) -> None:
    old = commit(api, add("recipe.json", b"1"))
    hub.fail(503, path="/api/models/")
    with pytest.raises(LocalEntryNotFoundError, match="503"):
        snapshot_download(REPO, endpoint=hub.endpoint)
    snapshot_download(REPO, endpoint=hub.endpoint)
    commit(api, add("recipe.json", b"2"))

    hub.fail(503, path="/api/models/")

    assert Path(snapshot_download(REPO, endpoint=hub.endpoint)).name == old
    assert waits == []


@pytest.mark.parametrize("path", ["recipe.json", "model.safetensors"])
def test_the_client_takes_bytes_that_are_not_those_of_the_hash(hub: Hub, api: HfApi, path: str) -> None:
    commit(api, add(path, b"right"))
    hub.corrupt(path=path)
    assert read(hub, path) == bytes([ord("r") ^ 0xFF]) + b"ight"
    # And has them from now on.
    assert read(hub, path) != b"right"
    assert read(hub, path, force_download=True) == b"right"


def test_a_hub_may_give_the_wrong_hash(hub: Hub, api: HfApi) -> None:
    commit(api, add("model.safetensors", b"right"))
    wrong = "0" * 64
    hub.replace_headers({"X-Linked-Etag": f'"{wrong}"'}, method="HEAD")
    path = Path(hf_hub_download(REPO, "model.safetensors", endpoint=hub.endpoint))
    assert path.resolve().name == wrong


def test_a_commit_is_there_when_only_its_answer_was_lost(hub: Hub, api: HfApi, waits: list[float]) -> None:
    hub.lose_answer(path="/commit/")
    with pytest.raises(Exception, match="disconnected"):
        commit(api, add("a.txt", b"x"))
    assert api.list_repo_files(REPO) == [".gitattributes", "a.txt"]
    assert waits == []


def test_a_slow_hub_is_waited_for(hub: Hub, api: HfApi, waits: list[float]) -> None:
    hub.slow(3, method="HEAD")
    assert hf_hub_download(REPO, ".gitattributes", endpoint=hub.endpoint, etag_timeout=1)
    assert len(hub.requests(method="HEAD")) == 2


def test_everything_is_there_after_a_restart(client: None, tmp_path: Path) -> None:
    with running_hub(tmp_path / "root") as hub:
        hub.api().create_repo(REPO, private=True)
        head = commit(hub.api(), add("model.safetensors", noise(MIB)), add("recipe.json", b"{}"))
        hub.api().create_tag(REPO, tag="v1")
        port = int(hub.endpoint.rsplit(":", 1)[1])
    # As it is left by a server that stopped in the middle of a commit: without the branch that has it.
    (tmp_path / "root/repos/model/alice/pruned/commits" / f"{'0' * 40}.json").write_text("{}")

    with running_hub(tmp_path / "root", port) as hub:
        assert hub.api().list_repo_refs(REPO).tags[0].target_commit == head
        assert read(hub, "model.safetensors", "v1") == noise(MIB)
        assert hub.api().list_repo_commits(REPO)[0].commit_id == head
        with pytest.raises(RepositoryNotFoundError):
            hub.anonymous().model_info(REPO)


def test_a_process_of_its_own_needs_only_its_environment(hub: Hub, api: HfApi, tmp_path: Path) -> None:
    commit(api, add("model.safetensors", noise(MIB)))
    code = "import huggingface_hub as h; print(h.hf_hub_download('alice/pruned', 'model.safetensors'))"
    environment = {**os.environ, **hub.environment(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    path = Path(done.stdout.strip())
    assert path.is_relative_to(tmp_path / "home")
    assert path.read_bytes() == noise(MIB)
