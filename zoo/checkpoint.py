"""A checkpoint: a folder that holds a graph, its weights, and what there is to know about them."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from torchorbit._version import __version__
from torchorbit.errors import CheckpointError
from torchorbit.files import digest
from torchorbit.graph.dag import DagModule
from torchorbit.graph.files import CARD_FILE, GRAPH_FILE, WEIGHTS_FILE, open_files, opened, permitted
from torchorbit.graph.loading import load_opened
from torchorbit.removal.history import Figures, Pruning, figures
from zoo.cards import card
from zoo.manifest import (
    MANIFEST_FILE,
    Accuracy,
    Cost,
    File,
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
from zoo.plots import PLOT_FILE, write_plot

CHECKPOINT_FILES = (MANIFEST_FILE, GRAPH_FILE, WEIGHTS_FILE, PLOT_FILE)
"""What a checkpoint consists of, apart from its card, which depends on where it is."""

_DTYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float64: "float64"}


def versions(timm: str | None = None) -> Versions:
    """Of what runs here."""
    return Versions(torchorbit=__version__, torch=torch.__version__, timm=timm)


def step_of(
    pruning: Pruning,
    *,
    data: str | None = None,
    command: str | None = None,
    timm: str | None = None,
) -> Step:
    """What a manifest tells of a removal.

    Args:
        pruning: of the history of a graph.
        data: what was looked at; by default only that something was.
        command: what was typed.
        timm: the version of timm that gave the model.
    """
    made = pruning.reconstruction
    return Step(
        criterion=Method.of(pruning.criterion),
        selector=Method.of(pruning.selector),
        constraint=None if pruning.constraint is None else Method.of(pruning.constraint),
        target=pruning.target,
        steps=pruning.steps,
        finetune_bn=pruning.finetune_bn,
        data=data or ("the caller's" if pruning.data else None),
        seed=pruning.seed,
        command=command,
        versions=versions(timm),
        reconstruction=None if made is None else Reconstructed.model_validate(dataclasses.asdict(made)),
    )


def manifest_of(dag: DagModule) -> Manifest:
    """What is known of a graph: that of the checkpoint that it comes from, or else what it says of itself.

    Args:
        dag: an outermost graph.

    Raises:
        CheckpointError: it is a block of a graph.
    """
    if dag.provenance is None:
        raise CheckpointError(
            "this is a block of a graph; save the outermost DagModule, or convert the block by itself"
        )
    if dag.manifest is not None:
        return dag.manifest
    source = dag.provenance.source
    original = figures(dag) if dag.history is None else dag.history.original.figures
    return Manifest(
        name=source.rpartition(".")[2],
        source=Source(model=source, weights="not recorded"),
        before=_cost(original),
        after=_cost(original),
        widths=tuple(Width(layer=path, before=width, after=width) for path, width in original.widths.items()),
    )


def _cost(of: Figures) -> Cost:
    return Cost(
        gflops=round(of.flops / 1e9, 6),
        kmapp=None if math.isnan(of.kmapp) else round(of.kmapp, 3),
        parameters=of.parameters,
    )


def save_checkpoint(
    dag: DagModule,
    folder: str | Path,
    *,
    name: str | None = None,
    source: Source | None = None,
    step: Step | None = None,
    accuracy: Iterable[Accuracy] = (),
    preprocessing: Preprocessing | None = None,
    dtype: torch.dtype | None = None,
) -> Manifest:
    """Save a graph as a checkpoint: ``checkpoint.json``, ``graph.json``, ``model.safetensors``, a card and, where
    matplotlib is installed, a plot.

    What the graph's manifest says is kept where nothing else is given.

    Args:
        dag: an outermost graph with weights.
        folder: where to; made if absent, and put in place as a whole. An earlier checkpoint there is replaced.
        name: what to call the model.
        source: what was pruned.
        step: what was done to it since its manifest was written; by default what its history tells.
        accuracy: what was measured of it. Figures that the manifest has are dropped when the weights are not those
            that they are of, which is to say when there is a new step.
        preprocessing: how an image becomes an input.
        dtype: floating point weights are saved as this; as they are by default.

    Returns:
        What was written about it.

    Raises:
        CheckpointError: the graph holds what the format has no name for; the folder holds something else; or
            weights of that dtype cannot be described.
    """
    folder = Path(folder).resolve()  # which has a name and a parent even where it is "."
    _check_free(folder)
    if dtype is not None and dtype not in _DTYPES:
        raise CheckpointError(f"dtype={dtype}, expected one of {', '.join(map(str, _DTYPES))}")
    known = manifest_of(dag)
    now = figures(dag)
    after = _cost(now)
    steps: tuple[Step, ...] = ()
    if step is not None:
        steps = (step,)
    elif dag.history is not None:
        steps = tuple(step_of(pruning) for pruning in dag.history.prunings)
    elif after != known.after:
        unknown = Method(name="not recorded", known=False)
        steps = (Step(criterion=unknown, selector=unknown, versions=versions()),)
    if dtype is not None:
        dag = copy.deepcopy(dag).to(dtype)
    found = {_DTYPES[p.dtype] for p in dag.parameters() if p.dtype in _DTYPES}
    manifest = known.model_copy(
        update={
            "name": name or known.name,
            "source": source or known.source,
            "steps": (*known.steps, *steps),
            "after": after,
            "accuracy": (*(() if steps else known.accuracy), *accuracy),
            "preprocessing": preprocessing or known.preprocessing,
            # Where norms are kept in another type, the type of the layers says how exact the model is.
            "dtype": min(found, key=lambda kind: int(kind[-2:]), default="float32"),
            "widths": tuple(w.model_copy(update={"after": now.widths.get(w.layer, 0)}) for w in known.widths),
        }
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as aside:
        made = Path(aside) / "checkpoint"
        dag.save(made)
        write_plot(manifest, made / PLOT_FILE)
        there = [name for name in (GRAPH_FILE, WEIGHTS_FILE, PLOT_FILE) if (made / name).exists()]
        files = {name: _file(made / name) for name in there}
        manifest = manifest.model_copy(update={"files": files})
        (made / MANIFEST_FILE).write_text(manifest.text(), encoding="utf-8")
        (made / CARD_FILE).write_text(card(manifest, folder.name, published=False), encoding="utf-8")
        if folder.exists():
            # The manifest last: before it is there, the checkpoint is one whose files are not those that it names.
            for file in (*there, CARD_FILE, MANIFEST_FILE):
                (made / file).replace(folder / file)
            if PLOT_FILE not in there:  # an earlier one is of another model
                (folder / PLOT_FILE).unlink(missing_ok=True)
        else:
            made.replace(folder)
    return manifest


def load_checkpoint(folder: str | Path, *, device: torch.device | str | None = None) -> DagModule:
    """Load a checkpoint, after its files were compared with the hashes in its manifest.

    Args:
        folder: of the checkpoint.
        device: where the weights go.

    Returns:
        The graph, which carries the manifest.

    Raises:
        CheckpointError: a file is missing, or not the one that was saved; or the graph is not valid.
    """
    return load_files(Path(folder), read_manifest(Path(folder)), device)


def load_files(
    folder: Path,
    manifest: Manifest,
    device: torch.device | str | None = None,
    spoiled: Callable[[Path], object] = lambda path: None,
) -> DagModule:
    """Load a checkpoint that has a certain manifest. What is compared with the hashes is what is loaded.

    Args:
        folder: of the checkpoint.
        manifest: of the checkpoint.
        device: where the weights go.
        spoiled: called with a file that is another one, before the error is raised.

    Returns:
        The graph, which carries the manifest.

    Raises:
        CheckpointError: a file is missing, or not the one that was saved; or the graph is not valid.
    """
    with open_files(folder) as files:
        _compare(folder, manifest, spoiled, files.file)
        dag = load_opened(files)
    dag.manifest = manifest
    return dag if device is None else dag.to(device)


def check_files(folder: Path, manifest: Manifest, spoiled: Callable[[Path], object] = lambda path: None) -> None:
    """Compare the files of a checkpoint with the hashes in its manifest.

    That says what they were then. What is to be loaded is compared by `load_files`.

    Args:
        folder: of the checkpoint.
        manifest: of the checkpoint.
        spoiled: called with a file that is another one, before the error is raised.

    Raises:
        CheckpointError: one is missing, or not the one that was saved.
    """
    _compare(folder, manifest, spoiled)


def _compare(
    folder: Path,
    manifest: Manifest,
    spoiled: Callable[[Path], object],
    opened_file: Callable[[str], tuple[int, str]] | None = None,
) -> None:
    for name in (GRAPH_FILE, WEIGHTS_FILE):
        if name not in manifest.files:
            raise CheckpointError(f"the manifest in '{folder}' names no {name}")
    for name, expected in manifest.files.items():
        if name not in CHECKPOINT_FILES or (name == PLOT_FILE and not (folder / name).exists()):
            continue
        if opened_file is not None and name in (GRAPH_FILE, WEIGHTS_FILE):
            found = opened_file(name)
        else:
            path = permitted(folder, name)
            found = path.stat().st_size, sha256(path)
        if found != (expected.size, expected.sha256):
            spoiled(folder / name)
            raise CheckpointError(
                f"'{folder / name}' is not the file that was saved: its SHA-256 differs from the one in {MANIFEST_FILE}"
            )


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with opened(path) as file:
        return digest(file)


def copy_checkpoint(source: Path, folder: Path) -> None:
    """Copy the files of a checkpoint into a folder of their own, in one step.

    Raises:
        CheckpointError: the folder holds something else.
    """
    folder = folder.resolve()
    _check_free(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as aside:
        made = Path(aside) / "checkpoint"
        made.mkdir()
        for name in (*CHECKPOINT_FILES, CARD_FILE):
            if (source / name).exists():
                shutil.copyfile(permitted(source, name), made / name)
        if folder.exists():
            for file in sorted(made.iterdir(), key=lambda path: path.name == MANIFEST_FILE):
                file.replace(folder / file.name)
        else:
            made.replace(folder)


def _check_free(folder: Path) -> None:
    """A folder with something else in it is not written to."""
    if folder.is_dir():
        if not (folder / MANIFEST_FILE).exists() and not (folder / GRAPH_FILE).exists() and any(os.scandir(folder)):
            raise CheckpointError(f"'{folder}' holds something that is no checkpoint; choose another folder")
    elif folder.exists():
        raise CheckpointError(f"'{folder}' is a file; choose a folder")


def _file(path: Path) -> File:
    return File(sha256=sha256(path), size=path.stat().st_size)
