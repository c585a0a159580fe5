"""Model cards: what a hub shows of a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterable

from huggingface_hub import EvalResult, ModelCardData
from tabulate import tabulate

from zoo.manifest import Manifest, Method, Step
from zoo.plots import PLOT_FILE
from zoo.texts import one_line

LIBRARY = "torchorbit"
_LONGEST_METHOD = 300
_LONGEST_TEXT = 10_000


def card(manifest: Manifest, repo: str, hub: str | None = None, *, published: bool = True) -> str:
    """The card of a checkpoint: metadata that hubs read, and a page.

    Args:
        manifest: of the checkpoint.
        repo: where it is, as `torchorbit.from_pretrained` takes it.
        hub: the hub, where it is not the Hugging Face Hub.
        published: whether ``repo`` is a repository of a hub, and not a folder.

    Returns:
        Markdown. The same arguments give the same text.
    """
    image = manifest.preprocessing is not None
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=_slug(accuracy.dataset),
            dataset_name=accuracy.dataset,
            dataset_split=accuracy.split,
            metric_type="accuracy",
            metric_name="top-1 accuracy",
            metric_value=accuracy.after,
        )
        for accuracy in manifest.accuracy
    ]
    data = ModelCardData(
        library_name=LIBRARY,
        license=manifest.source.license,
        base_model=manifest.source.base_model,
        pipeline_tag="image-classification" if image else None,
        tags=[LIBRARY, "pruning", "structured-pruning", *(["timm"] if manifest.source.base_model else [])],
        model_name=manifest.name if results else None,
        eval_results=results or None,
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {_plain(manifest.name)}",
        _summary(manifest),
        f"![Width of every layer before and after]({PLOT_FILE})" if PLOT_FILE in manifest.files else "",
        figures_table(manifest),
        "## Use",
        _snippet(manifest, repo, hub, published),
        "The checkpoint is a graph as data and its weights: it holds no code, loads without timm and without the code "
        "of the source, and is an ordinary `nn.Module` that trains, compiles, exports, and can be pruned further.",
        "## How it was made",
        _recipe(manifest),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def figures_table(manifest: Manifest) -> str:
    """A model beside its source, as a table in Markdown."""
    rows: list[tuple[str, str, str, str]] = [
        ("GFLOPs", *_pair(manifest.before.gflops, manifest.after.gflops, ".3f")),
        ("parameters, M", *_pair(manifest.before.parameters / 1e6, manifest.after.parameters / 1e6, ".3f")),
    ]
    if manifest.before.kmapp is not None and manifest.after.kmapp is not None:
        rows.insert(1, ("kFLOPs per pixel", *_pair(manifest.before.kmapp, manifest.after.kmapp, ".2f")))
    for accuracy in manifest.accuracy:
        size = "x".join(map(str, accuracy.input_size[1:]))
        label = f"top-1, {_plain(accuracy.dataset)} {_plain(accuracy.split)}, {size}"
        before = "not measured" if accuracy.before is None else f"{accuracy.before:.2%}"
        change = "" if accuracy.before is None else f"{100 * (accuracy.after - accuracy.before):+.2f}"
        rows.append((label, before, f"{accuracy.after:.2%}", change))
    headers = ("", _plain(manifest.source.model), _plain(manifest.name), "ratio or change")
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True, colalign=("left", *["right"] * 3))


def index_card(entries: Iterable[tuple[str, Manifest]], title: str, hub: str | None = None) -> str:
    """The page that lists the checkpoints of a zoo.

    Args:
        entries: repository and manifest of each.
        title: of the page.
        hub: the hub, where it is not the Hugging Face Hub.
    """
    rows = []
    for repo, manifest in sorted(entries, key=lambda entry: (entry[1].source.model, entry[1].after.gflops, entry[0])):
        best = manifest.accuracy[0] if manifest.accuracy else None
        rows.append(
            (
                f"[{repo}]({_address(repo, hub)})",
                _plain(manifest.source.model),
                f"{manifest.after.gflops:.3f}",
                f"{_ratio(manifest.before.gflops, manifest.after.gflops):.0%}",
                f"{manifest.after.parameters / 1e6:.2f}",
                "" if best is None else f"{best.after:.2%} ({_plain(best.dataset)})",
            )
        )
    headers = ("checkpoint", "source", "GFLOPs", "of source", "parameters, M", "top-1")
    table = tabulate(rows, headers, tablefmt="github", disable_numparse=True)
    use = _python(["import torchorbit", "", f"model = torchorbit.from_pretrained({_arguments('org/name', hub)})"])
    return f"---\ntags:\n- torchorbit-zoo\n---\n\n# {_plain(title)}\n\n{table}\n\n{use}\n"


def _address(repo: str, hub: str | None) -> str:
    if hub is None or "://" in hub:
        return f"{(hub or 'https://huggingface.co').rstrip('/')}/{repo}"
    # From the folder of the page's commit, in a directory that may be somewhere else tomorrow.
    return f"../../../models--{repo.replace('/', '--')}"


def _summary(manifest: Manifest) -> str:
    source = manifest.source
    name = _code(source.model)
    if source.base_model:
        name = f"[{name}](https://huggingface.co/{source.base_model})"
    kept = _ratio(manifest.before.gflops, manifest.after.gflops)
    if not manifest.steps:
        return f"{name} as a graph. Weights: {_code(source.weights)}."
    return (
        f"{name}, pruned to {kept:.1%} of its FLOPs and "
        f"{_ratio(manifest.before.parameters, manifest.after.parameters):.1%} of its parameters. "
        f"Weights of the source: {_code(source.weights)}."
    )


def _snippet(manifest: Manifest, repo: str, hub: str | None, published: bool) -> str:
    load = f"model = torchorbit.from_pretrained({_arguments(repo, hub if published else None)}).eval()"
    lines = ["import torch", "import torchorbit", "", load]
    if manifest.preprocessing is not None:
        size = ", ".join(map(str, manifest.preprocessing.input_size))
        size += "" if manifest.dtype == "float32" else f", dtype=torch.{manifest.dtype}"
        lines += [
            "preprocess = torchorbit.transforms(model)  # from a PIL image to a tensor",
            "with torch.no_grad():",
            f"    print(model(torch.randn(1, {size})).softmax(-1).max(-1))",
        ]
    return _python(lines)


def _python(lines: list[str]) -> str:
    return "```python\n" + "\n".join(lines) + "\n```"


def _arguments(repo: str, hub: str | None) -> str:
    return repr(repo) if hub is None else f"{repo!r}, hub={hub!r}"


def _recipe(manifest: Manifest) -> str:
    if not manifest.steps:
        return "What was done to it, if anything, is not recorded."
    return "\n".join(f"{number}. {_step(step)}" for number, step in enumerate(manifest.steps, 1))


def _step(step: Step) -> str:
    parts = [f"criterion {_short(step.criterion)}", f"selector {_short(step.selector)}"]
    parts += [f"target {step.target}"] if step.target else []
    parts += [f"in {step.steps} steps"] if step.steps > 1 else []
    if step.constraint is not None and step.constraint.options:
        parts.append(f"constraint {_short(step.constraint)}")
    new = step.reconstruction
    parts += [f"reconstructed ({new.method}) from {new.samples} samples"] if new is not None else []
    parts += ["batch norms re-estimated"] if step.finetune_bn else []
    parts += [f"data {step.data}"] if step.data else []
    parts += [f"seed {step.seed}"] if step.seed is not None else []
    made = f"torchorbit {step.versions.torchorbit}, torch {step.versions.torch}"
    made += f", timm {step.versions.timm}" if step.versions.timm else ""
    text = _plain(", ".join(parts)) + f" ({_plain(made)})"
    return f"{text}: {_code(step.command)}" if step.command else text


def _short(method: Method) -> str:
    """What a method is, and its options as far as there is room."""
    text = str(method)
    return text if len(text) <= _LONGEST_METHOD else f"{text[:_LONGEST_METHOD]} ... (checkpoint.json has all of it)"


def _pair(before: float, after: float, form: str) -> tuple[str, str, str]:
    return format(before, form), format(after, form), f"{_ratio(before, after):.3f}"


def _ratio(before: float, after: float) -> float:
    return after / before if before else 1.0


def _plain(text: str) -> str:
    """Text from a manifest on one line, with nothing in it that Markdown or HTML would take for its own."""
    # Addresses become links by themselves.
    text = re.sub(r"(?i)(:/|www)(?=[/.])", r"\1 ", text)
    return one_line(text, "`|<>[]@", _LONGEST_TEXT)


def _code(text: str) -> str:
    """Text from a manifest, letter by letter."""
    return f"`{one_line(text, '`|', _LONGEST_TEXT) or '?'}`"


def _slug(text: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in text.lower()).split()) or "unknown"
