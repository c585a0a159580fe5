"""Checkpoints published to and pulled from a server that speaks the Hub's API, with the Hub's own client."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas
import pytest
import torch
from huggingface_hub import ModelCard, constants
from torch import nn

import torchorbit
from harness.cli import main
from harness.publishing import publish_tables
from torchorbit import CheckpointError
from torchorbit.errors import HubError
from zoo.manifest import Accuracy, Preprocessing, Source
from zoo.publishing import publish, publish_index
from zoo.pulling import fetch

REPO = "alice/small"
MIB = 2**20
COMMIT = re.compile(r"[0-9a-f]{40}")


def network(seed=0, width=64):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 700, 3), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(700, 700), nn.ReLU(), nn.Linear(700, 10),
    ).eval()  # fmt: skip


X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pruned model, of which the weights are a large file."""
    folder = tmp_path_factory.mktemp("made") / "small"
    save(network(), folder)
    return folder


def save(model, folder, ratio=0.25):
    dag = torchorbit.prune(torchorbit.convert(model, X), ratio=ratio)
    dag.save_pretrained(
        folder,
        name="small",
        source=Source(model="small.tag", weights="made here", base_model="timm/small.tag", license="mit"),
        accuracy=[Accuracy(dataset="Digits", split="test", input_size=(3, 16, 16), before=0.9, after=0.875)],
        preprocessing=Preprocessing(input_size=(3, 16, 16), mean=(0.5,) * 3, std=(0.25,) * 3),
    )
    return dag


def sent(hub):
    return hub.requests(method="PUT") + hub.requests(method="POST", path="/commit/")


def test_published_and_pulled(hub, folder, tmp_path):
    done = publish(folder, REPO, hub=hub.endpoint, token=hub.token)
    assert set(done.changed) == {"checkpoint.json", "graph.json", "model.safetensors", "widths.png", "README.md"}
    assert COMMIT.fullmatch(done.commit)
    assert len(hub.requests(method="POST", path="/commit/")) == 1
    assert [request.status for request in hub.requests(method="PUT")] == [200, 200]  # the weights and the plot

    pulled = torchorbit.from_pretrained(REPO, hub=hub.endpoint)
    assert torch.equal(pulled(X), torchorbit.load(folder)(X))
    assert pulled.manifest.accuracy[0].after == 0.875
    assert torchorbit.transforms(pulled).transforms[-1].mean == (0.5, 0.5, 0.5)
    assert hub.api().repo_info(REPO).sha == done.commit


def test_publishing_the_same_again_does_nothing_and_says_so(hub, folder):
    first = publish(folder, REPO, hub=hub.endpoint, token=hub.token)
    hub.forget()
    second = publish(folder, REPO, hub=hub.endpoint, token=hub.token)
    assert (second.commit, second.changed) == (first.commit, ())
    assert "nothing to publish, all is there already" in str(second)
    assert not sent(hub)
    assert not hub.requests(path="preupload")
    assert len(hub.api().list_repo_commits(REPO)) == 2  # the repository's own first one


def test_a_new_version_and_pulling_by_tag_branch_and_commit(hub, folder, tmp_path):
    hub_ = {"hub": hub.endpoint, "token": hub.token}
    first = publish(folder, REPO, tag="v1", **hub_)
    other = save(network(seed=1), tmp_path / "other", ratio=0.5)
    second = publish(tmp_path / "other", REPO, tag="v2", **hub_)
    assert second.commit != first.commit
    assert publish(folder, REPO, revision="trial", **hub_).changed

    expected = {"v1": torchorbit.load(folder), "v2": other, "main": other, "trial": torchorbit.load(folder)}
    expected |= {first.commit: expected["v1"], second.commit: expected["v2"]}
    for revision, dag in expected.items():
        pulled = torchorbit.from_pretrained(REPO, revision=revision, **hub_)
        assert torch.equal(pulled(X), dag(X)), revision
    with pytest.raises(HubError, match="has no revision 'v3'"):
        torchorbit.from_pretrained(REPO, revision="v3", **hub_)


def test_only_what_changed_is_sent(hub, folder, tmp_path):
    publish(folder, REPO, hub=hub.endpoint, token=hub.token)
    hub.forget()
    dag = torchorbit.from_pretrained(folder)
    accuracy = [Accuracy(dataset="More digits", split="test", input_size=(3, 16, 16), after=0.8)]
    dag.save_pretrained(tmp_path / "measured", accuracy=accuracy)
    done = publish(tmp_path / "measured", REPO, hub=hub.endpoint, token=hub.token)
    assert set(done.changed) == {"checkpoint.json", "README.md"}
    assert not hub.requests(method="PUT")


def test_a_tag_does_not_move(hub, folder, tmp_path):
    publish(folder, REPO, hub=hub.endpoint, token=hub.token, tag="v1")
    publish(folder, REPO, hub=hub.endpoint, token=hub.token, tag="v1")
    save(network(seed=1), tmp_path / "other")
    with pytest.raises(HubError, match="choose another tag"):
        publish(tmp_path / "other", REPO, hub=hub.endpoint, token=hub.token, tag="v1")
    assert len(hub.api().list_repo_commits(REPO)) == 2


def test_a_dry_run_sends_nothing(hub, folder):
    done = publish(folder, REPO, hub=hub.endpoint, token=hub.token, dry_run=True)
    assert len(done.changed) == 5
    assert "would publish" in str(done)
    assert not hub.api().repo_exists(REPO)
    assert not sent(hub)


def test_a_private_repository_without_a_token(hub, folder):
    publish(folder, REPO, hub=hub.endpoint, token=hub.token, private=True)
    with pytest.raises(
        HubError, match=r"does not exist, or is private and no token was given \(hf auth login"
    ) as found:
        torchorbit.from_pretrained(REPO, hub=hub.endpoint)
    with pytest.raises(HubError, match="the token that was given does not open it"):
        torchorbit.from_pretrained(REPO, hub=hub.endpoint, token=hub.other_token)
    assert hub.other_token not in str(found.value)
    assert torchorbit.from_pretrained(REPO, hub=hub.endpoint, token=hub.read_token) is not None
    with pytest.raises(HubError, match="not allowed"):
        publish(folder, "alice/another", hub=hub.endpoint, token=hub.read_token)


def test_what_is_no_repository(hub):
    with pytest.raises(HubError, match=r"nobody/nothing on .* does not exist"):
        torchorbit.from_pretrained("nobody/nothing", hub=hub.endpoint)
    for name in ("small", "../small/x", "a/b/c", "a/../b", "/a", "a/"):
        with pytest.raises(HubError, match="is no name of a repository"):
            torchorbit.from_pretrained(name, hub=hub.endpoint)


def test_an_upload_that_is_cut_goes_on_where_it_was(hub, folder, waits):
    """Files that came whole are not sent again."""
    weights = json.loads((folder / "checkpoint.json").read_text())["files"]["model.safetensors"]
    hub.cut_upload(after=weights["size"] // 2, path=weights["sha256"], times=None)
    with pytest.raises(HubError, match=f"{REPO} on "):
        publish(folder, REPO, hub=hub.endpoint, token=hub.token)
    assert not hub.requests(method="POST", path="/commit/")
    plot = json.loads((folder / "checkpoint.json").read_text())["files"]["widths.png"]
    assert [r.status for r in hub.requests(method="PUT", path=plot["sha256"])] == [200]

    hub.forget()
    publish(folder, REPO, hub=hub.endpoint, token=hub.token)
    assert len(hub.requests(method="PUT")) == 1
    assert torch.equal(torchorbit.from_pretrained(REPO, hub=hub.endpoint)(X), torchorbit.load(folder)(X))


@pytest.mark.parametrize("status", [500, 503, 429])
@pytest.mark.parametrize("place", ["/repos/create", "/preupload/", "/info/lfs/", "/commit/main", "/tree/main", "/tag/"])
def test_a_server_that_is_busy_is_asked_again(hub, folder, waits, status, place):
    hub.fail(status, path=place, times=2, retry_after=7 if status == 429 else None)
    publish(folder, REPO, hub=hub.endpoint, token=hub.token, tag="v1")
    assert len(waits) == 2
    assert waits[0] < waits[1] or status == 429
    assert status != 429 or all(7 <= seconds <= 8 for seconds in waits)
    assert torch.equal(torchorbit.from_pretrained(REPO, hub=hub.endpoint)(X), torchorbit.load(folder)(X))


@pytest.mark.parametrize("status", [500, 503, 429])
@pytest.mark.parametrize("place", ["/revision/", "/resolve/", "filename="])
def test_a_server_that_is_busy_while_pulling(hub, folder, waits, status, place):
    publish(folder, REPO, hub=hub.endpoint, token=hub.token)
    hub.fail(status, path=place, times=2)
    assert torch.equal(torchorbit.from_pretrained(REPO, hub=hub.endpoint)(X), torchorbit.load(folder)(X))
    assert [request.status for request in hub.requests(path=place)].count(status) == 2


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_server_that_stays_busy_is_given_up_with_one_clear_error(hub, folder, waits, status, caplog):
    hub.fail(status, times=None)
    with pytest.raises(HubError, match=rf"{REPO} on {hub.endpoint} answered HTTP {status}.*again and again") as found:
        publish(folder, REPO, hub=hub.endpoint, token=hub.token)
    assert "\n" not in str(found.value)
    assert waits
    with pytest.raises(HubError, match=f"answered HTTP {status}"):
        torchorbit.from_pretrained(REPO, hub=hub.endpoint, token=hub.token)
    assert hub.token not in caplog.text + str(found.value)


def test_a_commit_whose_answer_was_lost_is_not_made_twice(hub, folder, waits):
    hub.lose_answer(path="/commit/main")
    done = publish(folder, REPO, hub=hub.endpoint, token=hub.token)
    assert len(hub.api().list_repo_commits(REPO)) == 2
    assert hub.api().repo_info(REPO).sha == done.commit


@pytest.mark.parametrize("reset", [False, True])
def test_a_download_that_is_cut_is_resumed_or_begun_again(hub, folder, waits, reset):
    publish(folder, REPO, hub=hub.endpoint, token=hub.token)
    hub.cut_download(after=100_000, path="filename=model.safetensors", times=2, reset=reset)
    assert torch.equal(torchorbit.from_pretrained(REPO, hub=hub.endpoint)(X), torchorbit.load(folder)(X))


@pytest.mark.parametrize("name", ["filename=model.safetensors", "graph.json", "checkpoint.json"])
def test_wrong_bytes_from_the_server_are_refused_and_not_kept(hub, folder, name):
    publish(folder, REPO, hub=hub.endpoint, token=hub.token)
    hub.corrupt(path=name)
    with pytest.raises((HubError, CheckpointError), match="hash is another one"):
        torchorbit.from_pretrained(REPO, hub=hub.endpoint)
    assert torch.equal(torchorbit.from_pretrained(REPO, hub=hub.endpoint)(X), torchorbit.load(folder)(X))


def test_a_wrong_hash_from_the_server_is_refused(hub, folder):
    publish(folder, REPO, hub=hub.endpoint, token=hub.token)
    hub.replace_headers({"X-Linked-Etag": f'"{"0" * 64}"'}, path="model.safetensors", method="HEAD", times=None)
    with pytest.raises(HubError, match="hash is another one"):
        torchorbit.from_pretrained(REPO, hub=hub.endpoint)


def test_weights_that_somebody_replaced_are_refused(hub, folder, tmp_path):
    """The server has them in good order; they are not those that the manifest was written for."""
    publish(folder, REPO, hub=hub.endpoint, token=hub.token)
    save(network(seed=5), tmp_path / "other")
    hub.api().upload_file(
        path_or_fileobj=(tmp_path / "other" / "model.safetensors").read_bytes(),
        path_in_repo="model.safetensors",
        repo_id=REPO,
    )
    with pytest.raises(CheckpointError, match=r"model\.safetensors' is not the file that was saved"):
        torchorbit.from_pretrained(REPO, hub=hub.endpoint)


def test_offline_from_the_cache(hub, folder, monkeypatch, waits):
    publish(folder, REPO, hub=hub.endpoint, token=hub.token)
    with pytest.raises(HubError, match="is not in the cache"):
        torchorbit.from_pretrained(REPO, hub=hub.endpoint, local_files_only=True)
    expected = torchorbit.from_pretrained(REPO, hub=hub.endpoint)(X)
    hub.forget()
    assert torch.equal(torchorbit.from_pretrained(REPO, hub=hub.endpoint, local_files_only=True)(X), expected)
    assert not hub.requests()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert torch.equal(torchorbit.from_pretrained(REPO, hub=hub.endpoint)(X), expected)
    assert not hub.requests()


def test_what_is_in_the_cache_is_not_downloaded_again(hub, folder):
    publish(folder, REPO, hub=hub.endpoint, token=hub.token)
    torchorbit.from_pretrained(REPO, hub=hub.endpoint)
    hub.forget()
    torchorbit.from_pretrained(REPO, hub=hub.endpoint)
    assert not hub.requests(method="GET", path="/resolve/|filename=")


def test_a_server_that_hesitates_does_not_bring_back_an_old_version(hub, folder, tmp_path, waits):
    """The client returns what is in its cache when it cannot learn which commit is the newest."""
    publish(folder, REPO, hub=hub.endpoint, token=hub.token)
    torchorbit.from_pretrained(REPO, hub=hub.endpoint)
    newer = save(network(seed=1), tmp_path / "newer")
    publish(tmp_path / "newer", REPO, hub=hub.endpoint, token=hub.token)
    hub.fail(503, path="/revision/main", times=3)
    assert torch.equal(torchorbit.from_pretrained(REPO, hub=hub.endpoint)(X), newer(X))


def test_from_python(hub, folder):
    dag = torchorbit.from_pretrained(folder)
    done = dag.push_to_hub(REPO, hub=hub.endpoint, token=hub.token, private=True, tag="v1")
    assert hub.api().repo_info(REPO, revision="v1").sha == done.commit
    assert hub.api().repo_info(REPO).private
    pulled = torchorbit.from_pretrained(REPO, hub=hub.endpoint, token=hub.token, device="meta")
    assert {parameter.device.type for parameter in pulled.parameters()} == {"meta"}


def test_the_card_is_one_that_the_hub_reads(hub, folder):
    publish(folder, REPO, hub=hub.endpoint, token=hub.token)
    (listed,) = hub.api().list_models(filter="torchorbit", cardData=True)
    assert listed.id == REPO
    data = ModelCard.load(REPO, token=hub.token).data if hub.endpoint == constants.ENDPOINT else listed.card_data
    assert (data.library_name, data.base_model, data.license) == ("torchorbit", "timm/small.tag", "mit")
    assert (data.pipeline_tag, data.tags[0]) == ("image-classification", "torchorbit")
    (result,) = data.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("Digits", "accuracy", 0.875)


def test_listing_searching_and_the_page_of_a_zoo(hub, folder, tmp_path, capsys):
    save(network(width=16), tmp_path / "tiny", ratio=0.5)
    for repo, source in ((REPO, folder), ("alice/tiny", tmp_path / "tiny")):
        publish(source, repo, hub=hub.endpoint, token=hub.token)
    hub.api().create_repo("alice/other")
    here = ["--hub", hub.endpoint]
    assert main(["zoo", "list", *here]) == 0
    assert re.findall(r"alice/\w+", capsys.readouterr().out) == ["alice/tiny", REPO]
    largest = torchorbit.from_pretrained(folder).manifest.after.gflops
    for options, expected in (
        (["smal*"], ["alice/tiny", REPO]),
        (["resnet*"], []),
        (["--max-gflops", str(largest * 0.99)], ["alice/tiny"]),
        (["--min-accuracy", "0.9"], []),
        (["--dataset", "Digits", "--min-accuracy", "0.8"], ["alice/tiny", REPO]),
        (["--owner", "bob"], []),
    ):
        assert main(["zoo", "search", *options, *here]) == 0
        assert re.findall(r"alice/\w+", capsys.readouterr().out) == expected
    done = publish_index("alice/zoo", hub=hub.endpoint, token=hub.token)
    page = Path(hub.api().hf_hub_download("alice/zoo", "README.md")).read_text()
    assert "87.50% (Digits)" in page
    assert page.count("| small.tag |") == 2
    assert publish_index("alice/zoo", hub=hub.endpoint, token=hub.token).commit == done.commit


def test_tables_are_a_data_set(hub, tmp_path):
    records = Path(__file__).parents[2] / "results" / "coverage.jsonl"
    done = publish_tables(records, "alice/coverage", hub=hub.endpoint, token=hub.token)
    assert "data/coverage.parquet" in done.changed
    api = hub.api()
    path = api.hf_hub_download("alice/coverage", "data/coverage.parquet", repo_type="dataset")
    frame = pandas.read_parquet(path)
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    assert sorted(frame.model) == sorted(line["model"] for line in lines)
    assert frame.set_index("model").removable_flops.to_dict() == {
        line["model"]: line["removable_flops"] for line in lines
    }
    files = api.list_repo_files("alice/coverage", repo_type="dataset")
    assert {"README.md", "coverage.md", "supported_models.md", "channel_pruning_supported_models.md"} <= set(files)
    assert not publish_tables(records, "alice/coverage", hub=hub.endpoint, token=hub.token).changed


def test_pulled_in_a_process_without_timm_and_trained(hub, folder, tmp_path):
    """What a user does with it: run it, take a step, prune it further, save it."""
    publish(folder, REPO, hub=hub.endpoint, token=hub.token, private=True)
    expected = torchorbit.load(folder)(X)
    torch.save((X, expected), tmp_path / "expected.pt")
    program = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "timm":
            raise ImportError("timm is not installed")

sys.meta_path.insert(0, Blocked())
import torch, torchorbit

x, expected = torch.load({str(tmp_path / "expected.pt")!r})
model = torchorbit.from_pretrained({REPO!r}).eval()
assert torch.equal(model(x), expected)
torchorbit.transforms(model)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loss = torch.nn.functional.cross_entropy(model.train()(x), torch.tensor([1, 2]))
loss.backward()
optimizer.step()
assert torch.nn.functional.cross_entropy(model(x), torch.tensor([1, 2])) < loss
smaller = torchorbit.prune(model, flops=0.8)
smaller.save_pretrained({str(tmp_path / "smaller")!r})
assert not [name for name in sys.modules if name.startswith("timm")]
"""
    environment = os.environ | hub.environment(tmp_path / "home") | {"HF_TOKEN": hub.read_token}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    again = torchorbit.from_pretrained(tmp_path / "smaller")
    steps = [(step.target, str(step.selector)) for step in again.manifest.steps]
    assert steps == [("", "uniform(ratio=0.25)"), ("flops=0.8", "knapsack")]


def test_on_the_command_line(hub, folder, tmp_path, capsys, monkeypatch):
    here = ["--hub", hub.endpoint, "--token", hub.token]
    assert main(["publish", str(folder), REPO, "--private", "--tag", "v1", *here]) == 0
    assert "published" in capsys.readouterr().out
    assert main(["pull", REPO, "--revision", "v1", "--out", str(tmp_path / "mine"), *here]) == 0
    assert "87.50%" in capsys.readouterr().out
    assert torch.equal(torchorbit.from_pretrained(tmp_path / "mine")(X), torchorbit.load(folder)(X))
    assert main(["pull", REPO, "--hub", hub.endpoint, "--token", "hf_wrongwrong"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("torchorbit: alice/small on http")
    assert len(error.splitlines()) == 1
    assert "hf_wrongwrong" not in error
    assert main(["pull", REPO, "--revision", "v1", "--hub", hub.endpoint, "--local-files-only"]) == 0
    assert main(["pull", REPO, "--revision", "v1", "--hub", "http://127.0.0.1:9", "--local-files-only"]) == 1
    assert "is not in the cache" in capsys.readouterr().err  # what one hub gave is not what another one has


def test_nothing_listens(tmp_path, client, waits):
    with pytest.raises(HubError, match=r"a/b on http://127\.0\.0\.1:9: ") as found:
        fetch("a/b", hub="http://127.0.0.1:9", cache_dir=tmp_path)
    assert "\n" not in str(found.value)
    assert len(waits) >= 3
