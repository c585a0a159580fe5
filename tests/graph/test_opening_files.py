"""Which files of a folder are opened, how much of them is read, and how their weights lie in memory."""

import json
import os
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import torchorbit
from tests.models import assert_equal, outcome
from torchorbit.graph import files
from torchorbit.graph.loading import load_opened

X = torch.randn(2, 8)
DIGEST = "0123456789abcdef" * 4


@pytest.fixture
def folder(tmp_path):
    torchorbit.convert(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)), X).save(tmp_path / "saved")
    return tmp_path / "saved"


def refused(folder, match):
    with pytest.raises(torchorbit.CheckpointError, match=match):
        torchorbit.load(folder)


# -- links


def as_snapshot(folder, tmp_path, name="snapshots"):
    """The folder as the cache of a hub keeps it: links to files that are called by their digests."""
    repository = tmp_path / "hub" / "models--somebody--something"
    snapshot = repository / name / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for path, digest in ((folder / "graph.json", DIGEST[:40]), (folder / "model.safetensors", DIGEST)):
        path.rename(repository / "blobs" / digest)
        (snapshot / path.name).symlink_to(f"../../blobs/{digest}")
    return snapshot


def test_a_snapshot_in_the_cache_of_a_hub_is_loaded(folder, tmp_path):
    expected = outcome(torchorbit.load(folder), X)
    assert_equal(outcome(torchorbit.load(as_snapshot(folder, tmp_path)), X), expected)


def test_a_folder_that_is_itself_a_link_is_loaded(folder, tmp_path):
    (tmp_path / "link").symlink_to(as_snapshot(folder, tmp_path), target_is_directory=True)
    assert torchorbit.load(tmp_path / "link")(X).shape == (2, 3)


def test_a_link_to_a_file_next_to_it_is_followed(folder):
    (folder / "graph.json").rename(folder / "other.json")
    (folder / "graph.json").symlink_to("other.json")
    assert torchorbit.load(folder)(X).shape == (2, 3)


@pytest.mark.parametrize("name", ["graph.json", "model.safetensors"])
def test_a_link_that_leads_out_of_the_folder_is_not_followed(folder, tmp_path, name):
    outside = tmp_path / "outside"
    (folder / name).rename(outside)
    for target in (outside, "../outside", "../saved/../outside"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)
        refused(folder, "outside of the folder")


def test_only_blobs_of_the_same_repository_are_followed(folder, tmp_path):
    refused(as_snapshot(folder, tmp_path, "elsewhere"), "outside of the folder")
    snapshot = tmp_path / "hub" / "models--somebody--something" / "snapshots" / "b"
    snapshot.mkdir(parents=True)
    for path in (tmp_path / "hub" / "models--somebody--something" / "blobs").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
        (snapshot / ("model.safetensors" if len(path.name) == 64 else "graph.json")).symlink_to(tmp_path / path.name)
    refused(snapshot, "outside of the folder")


def test_a_blob_that_is_a_link_leads_nowhere_else(folder, tmp_path):
    snapshot = as_snapshot(folder, tmp_path)
    blob = snapshot.parent.parent / "blobs" / DIGEST
    blob.rename(tmp_path / DIGEST)
    blob.symlink_to(tmp_path / DIGEST)
    refused(snapshot, "outside of the folder")


@pytest.mark.parametrize("target", ["graph.json", "nothing", "..", "/dev/zero", "/dev/null", "/proc/self/mem"])
def test_links_to_what_is_no_file_are_refused(folder, target):
    (folder / "graph.json").unlink()
    (folder / "graph.json").symlink_to(target)
    refused(folder, r"graph\.json")


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo], ids=["folder", "pipe"])
@pytest.mark.parametrize("name", ["graph.json", "model.safetensors"])
def test_what_is_no_regular_file_is_refused(folder, name, make):
    (folder / name).unlink()
    make(folder / name)
    refused(folder, name.replace(".", r"\."))


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "..", "a/b"])
def test_no_path_in_a_document_is_a_path_of_a_file(folder, path):
    document = json.loads((folder / "graph.json").read_text())
    document["root"]["children"]["0"]["parameters"]["weight"][0] = path
    (folder / "graph.json").write_text(json.dumps(document))
    refused(folder, "which the weights do not hold")


# -- the document


def test_a_document_that_is_too_long_is_not_read(folder, monkeypatch):
    monkeypatch.setattr(files, "MAX_DOCUMENT_BYTES", 500)
    refused(folder, "longer than the 500 bytes")


def test_a_document_that_is_a_hole_on_the_disk_is_not_read(folder):
    with (folder / "graph.json").open("wb") as file:
        file.truncate(2**40)
    refused(folder, "longer than")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"version": 2', '"version": 2, "version": 2'),
        ('"version": 2', '"version": NaN'),
        ('"version": 2', '"version": 1e999'),
        ('"version": 2', '"version": true'),
        ('"source": "', '"source": "\\ud800'),
        ('"format"', '"more": 1, "format"'),
    ],
)
def test_text_that_is_not_what_json_promises_is_refused(folder, old, new):
    text = (folder / "graph.json").read_text()
    assert old in text
    (folder / "graph.json").write_text(text.replace(old, new, 1))
    refused(folder, "no JSON|version|unknown entries")


BOMBS = {
    "many names": lambda: b"{" + b",".join(b'"%d":0' % n for n in range(40_000)) + b',"39999":0}',
    "many lists": lambda: b"[" + b"[]," * 5_000_000 + b"[]]",
    "many lists after what looks like a string": lambda: b'["\\\\", "\\"", ' + b"[]," * 5_000_000 + b"[]]",
    "a long list": lambda: b"[" + b"0," * 8_000_000 + b"0]",
    "deep lists": lambda: b"[" * 8_000_000,
    "deep lists after brackets in strings": lambda: b'["]]]]", "' + b"]" * 2000 + b'", ' + b"[" * 600 + b"]" * 601,
    "deep objects": lambda: b'{"":' * 600 + b"0" + b"}" * 600,
}


@pytest.mark.parametrize("name", BOMBS)
def test_json_that_would_take_long_is_refused_before_it_is_parsed(name):
    data = BOMBS[name]()
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)  # with which Python would go on until its stack is full
    try:
        started = time.process_time()
        with pytest.raises(torchorbit.CheckpointError, match=r"two entries|containers and commas|deep"):
            files.parsed(data, "graph.json")
        assert time.process_time() - started < 2
    finally:
        sys.setrecursionlimit(limit)


def test_marks_in_strings_are_none():
    value = {"a": "[" * 2000, 'b"]': ["\\", '"[', "," * 10, "\\\\", {"c": [[], {}]}]}
    for text in (json.dumps(value), json.dumps(value, indent=1)):
        assert files.parsed(text.encode(), "x") == value
    nested = b"[" * files.MAX_NESTING + b"]" * files.MAX_NESTING
    files.parsed(nested, "x")
    refused_json(b"[" + nested + b"]", "nested")


def refused_json(data, match):
    with pytest.raises(torchorbit.CheckpointError, match=match):
        files.parsed(data, "x")


# -- files that change


def test_what_is_put_in_the_place_of_a_file_that_is_open_is_not_loaded(folder, tmp_path):
    expected = outcome(torchorbit.load(folder), X)
    other = tmp_path / "other"
    torchorbit.convert(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)), X).save(other)
    with files.open_files(folder) as opened:
        before = {name: opened.file(name) for name in ("graph.json", "model.safetensors")}
        for name in before:
            (other / name).replace(folder / name)
        assert {name: opened.file(name) for name in before} == before
        dag = load_opened(opened)
    assert_equal(outcome(dag, X), expected)


def test_weights_that_are_written_to_while_they_are_loaded_are_refused(folder):
    def written():
        with files.open_files(folder) as opened:
            load_opened(opened)
            with (folder / "model.safetensors").open("r+b") as file:
                file.seek(-1, os.SEEK_END)
                file.write(b"x")

    with pytest.raises(torchorbit.CheckpointError, match="was written to while it was loaded"):
        written()


def test_a_character_outside_of_the_basic_plane_is_none_of_these(folder):
    document = json.loads((folder / "graph.json").read_text())
    document["provenance"]["source"] = "my.\U0001f980"
    (folder / "graph.json").write_text(json.dumps(document))
    dag = torchorbit.load(folder)
    assert dag.provenance.source == "my.\U0001f980"
    dag.save(folder)


# -- the weights


def with_header(folder, change):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    text = change(header)
    text = json.dumps(header) if text is None else text
    text += " " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text.encode() + data[8 + length :])


BAD_HEADERS = {
    "a list": lambda h: "[]",
    "one tensor twice": lambda h: json.dumps(h)[:-1] + ', "0.weight": ' + json.dumps(h["0.weight"]) + "}",
    "another dtype": lambda h: h["0.weight"].update(dtype="F16"),
    "a dtype of four bits": lambda h: h["0.weight"].update(dtype="F4", shape=[8, 16]),
    "a dtype that is a list": lambda h: h["0.weight"].update(dtype=["F32"]),
    "another shape": lambda h: h["0.weight"].update(shape=[8, 9]),
    "an immense shape": lambda h: h["0.weight"].update(shape=[2**62, 2**62]),
    "an immense empty shape": lambda h: h["0.weight"].update(shape=[0, 2**62], data_offsets=[0, 0]),
    "a negative shape": lambda h: h["0.weight"].update(shape=[-8, -8]),
    "a shape of fractions": lambda h: h["0.weight"].update(shape=[8.0, 8]),
    "a shape of many dimensions": lambda h: h["0.weight"].update(shape=[8, 8] + [1] * 100),
    "offsets the wrong way round": lambda h: h["0.weight"].update(data_offsets=h["0.weight"]["data_offsets"][::-1]),
    "offsets past the end": lambda h: h["0.weight"].update(data_offsets=[2**62, 2**62 + 256]),
    "three offsets": lambda h: h["0.weight"].update(data_offsets=[0, 1, 2]),
    "tensors that overlap": lambda h: h["0.bias"].update(data_offsets=h["2.bias"]["data_offsets"], shape=[3]),
    "a hole": lambda h: h.pop("0.bias") and None,
    "metadata that is a list": lambda h: h.update(__metadata__=[]),
    "metadata of numbers": lambda h: h.update(__metadata__={"a": 1}),
    "an unknown entry": lambda h: h["0.weight"].update(more=1),
    "no dtype": lambda h: h["0.weight"].pop("dtype") and None,
    "a number": lambda h: h.update({"0.weight": 5}),
    "too short to be aligned": lambda h: json.dumps(h) + " " * (-len(json.dumps(h)) % 8) + " ",
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_a_header_that_does_not_describe_the_file_is_refused(folder, name):
    with_header(folder, lambda header: None)
    torchorbit.load(folder)
    if "aligned" in name:
        path = folder / "model.safetensors"
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        path.write_bytes((length + 1).to_bytes(8, "little") + data[8 : 8 + length] + b" " + data[8 + length :])
    else:
        with_header(folder, BAD_HEADERS[name])
    refused(folder, "damaged|no JSON")


@pytest.mark.parametrize("length", [0, 1, 2**20, 2**31, 2**63, 2**64 - 1])
def test_a_header_of_another_length_is_refused(folder, length):
    path = folder / "model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    refused(folder, "damaged|no JSON")


def test_a_flag_that_is_neither_true_nor_false_is_refused(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4))
    model.register_buffer("mask", torch.tensor([True, False, True]))
    torchorbit.convert(model, torch.randn(1, 4)).save(tmp_path)
    path = tmp_path / "model.safetensors"
    data = bytearray(path.read_bytes())
    assert bytes(data[-3:]) == b"\x01\x00\x01"
    data[-3] = 2
    path.write_bytes(data)
    refused(tmp_path, "neither true nor false")


# -- dtypes and memory


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_keep_their_dtype_and_every_bit(tmp_path, dtype):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5)).eval().to(dtype)
    dag = torchorbit.convert(model, torch.randn(1, 3, 4, 4, dtype=dtype))
    dag.save(tmp_path)
    again = torchorbit.load(tmp_path)
    assert {p.dtype for p in again.parameters()} == {dtype}
    assert_equal(dict(again.state_dict()), dict(dag.state_dict()))
    x = torch.randn(2, 3, 4, 4, dtype=dtype)
    assert_equal(outcome(again, x), outcome(dag, x))


def test_weights_can_be_written_to_without_touching_the_file(folder):
    before = (folder / "model.safetensors").read_bytes()
    dag = torchorbit.load(folder)
    with torch.no_grad():
        for parameter in dag.parameters():
            parameter.zero_()
    assert (folder / "model.safetensors").read_bytes() == before
    assert any(parameter.abs().max() > 0 for parameter in torchorbit.load(folder).parameters())
    dag.save(folder)  # over the file that is mapped
    assert all(parameter.abs().max() == 0 for parameter in torchorbit.load(folder).parameters())


def test_loading_leaves_the_random_state_alone(folder):
    before = torch.get_rng_state()
    torchorbit.load(folder)
    assert torch.equal(torch.get_rng_state(), before)


MEMORY = """
    import sys
    import torch
    import torchorbit

    def anonymous():
        return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) * 1024

    torchorbit.load(sys.argv[2])
    before = anonymous()
    dag = torchorbit.load(sys.argv[1])
    loaded = anonymous()
    with torch.no_grad():
        dag(torch.ones(1, 1024))
    print(loaded - before, anonymous() - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is measured as Linux tells it")  # noqa: PTH110
def test_loading_makes_no_second_copy_of_the_weights(tmp_path):
    """300 MB of weights, loaded and run: what is mapped from the file is no memory of the process's own."""
    with torch.device("meta"):
        model = nn.Sequential(*[nn.Linear(1024, 1024) for _ in range(75)])
    torchorbit.convert(model.to_empty(device="cpu"), torch.ones(1, 1024)).save(tmp_path / "large")
    torchorbit.convert(nn.Sequential(nn.Linear(8, 8)), X).save(tmp_path / "small")
    assert (tmp_path / "large" / "model.safetensors").stat().st_size > 300_000_000
    command = [sys.executable, "-c", textwrap.dedent(MEMORY), str(tmp_path / "large"), str(tmp_path / "small")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded, run = map(int, done.stdout.split())
    assert loaded < 20_000_000
    assert run < 60_000_000
    (tmp_path / "large" / "model.safetensors").unlink()


def test_tensors_of_other_programs_are_loaded(folder):
    """A file of weights need not be the one that was saved, if it fits."""
    dag = torchorbit.load(folder)
    save_file(
        {name: torch.ones_like(tensor) for name, tensor in dag.state_dict().items()}, folder / "model.safetensors"
    )
    assert all((parameter == 1).all() for parameter in torchorbit.load(folder).parameters())
