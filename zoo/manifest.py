"""What a checkpoint says about itself: where it comes from, what was done to it, what it costs, what it is good for.

It is the file ``checkpoint.json`` beside the graph and the weights. Like these it may come from a stranger: nothing in
it is believed before it has the types and bounds that are declared here, and nothing in it is a path elsewhere.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator, model_validator
from typing_extensions import Self

from torchorbit.errors import ArgumentError, CheckpointError
from torchorbit.graph.files import check_extent, opened, parsed, permitted
from torchorbit.removal.history import Description
from zoo.texts import one_line

MANIFEST_FILE = "checkpoint.json"
MOST_BYTES = 16 * 2**20
_MOST_ENTRIES = 100_000
_DEEPEST = 32  # levels of the options of a criterion, a selector or a constraint

_Text = Annotated[str, Field(max_length=2000)]
_Count = Annotated[int, Field(ge=0, le=2**62)]
_Size = Annotated[int, Field(ge=1, le=2**20)]
_Figure = Annotated[float, Field(ge=0)]
_Repository = Annotated[str, Field(pattern=r"^([A-Za-z0-9_][A-Za-z0-9_.-]{0,95}/)?[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Preprocessing(_Part):
    """How an image becomes an input, in the terms of `timm.data.resolve_data_config`.

    Attributes:
        input_size: channels, height and width.
        interpolation: of the resize; ``"random"`` is bilinear.
        mean: of each channel, subtracted from values from 0 to 1.
        std: of each channel.
        crop_pct: side of the crop over the side of the resized image.
        crop_mode: ``"center"`` resizes the shorter side and crops, ``"border"`` the longer one and pads, ``"squash"``
            both.
    """

    input_size: tuple[_Size, _Size, _Size]
    interpolation: Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos", "random"] = "bicubic"
    mean: tuple[float, ...] = Field(max_length=64)
    std: tuple[Annotated[float, Field(gt=0)], ...] = Field(max_length=64)
    crop_pct: Annotated[float, Field(ge=0.01, le=10)] = 0.875
    crop_mode: Literal["center", "border", "squash"] = "center"

    @model_validator(mode="after")
    def _check_channels(self) -> Self:
        if not len(self.mean) == len(self.std) == self.input_size[0]:
            raise ArgumentError(
                f"mean and std have to have as many numbers as the input has channels, {self.input_size[0]}"
            )
        return self


class Source(_Part):
    """The model that was pruned.

    Attributes:
        model: its name in timm, with the tag of its weights; or the class that was converted.
        weights: where its weights come from.
        base_model: the hub's repository of those weights.
        license: of those weights, as the hub abbreviates it.
    """

    model: _Text
    weights: _Text
    base_model: _Repository | None = None
    license: _Text | None = None


class Versions(_Part):
    """What a step was done with."""

    torchorbit: _Text
    torch: _Text
    timm: _Text | None = None


class Method(_Part):
    """A criterion, a selector or a constraint, with its options.

    Attributes:
        name: what it is called.
        options: those that were not as by default, as `torchorbit.removal.history.Description` has them; `versions` of
            the step say of which release the defaults are.
        known: whether it is one of torchorbit's, and can be read back.
    """

    name: _Text
    options: dict[_Text, JsonValue] = Field(default={}, max_length=1000)
    known: bool = True

    @field_validator("options")
    @classmethod
    def _check_options(cls, options: dict[str, JsonValue]) -> dict[str, JsonValue]:
        _check_depth(options, _DEEPEST)
        return options

    @classmethod
    def of(cls, description: Description) -> Self:
        """The same as a part of a manifest."""
        return cls.model_validate(description.data())

    def description(self) -> Description:
        """The same for `torchorbit.selectors.from_description`, which makes the object that it tells of."""
        return Description(self.name, self.options, self.known)

    def __str__(self) -> str:
        return str(self.description())


def _check_depth(value: JsonValue, levels: int) -> None:
    """Refuse what is nested so deeply that nobody can have meant it, and numbers that JSON has no word for."""
    if not levels:
        raise ArgumentError(f"options are nested more than {_DEEPEST} levels deep")
    if isinstance(value, float) and not math.isfinite(value):
        raise ArgumentError("options hold a number that is not finite")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_depth(inner, levels - 1)


class Layer(_Part):
    """How far a layer is from what it is in the whole model, as `torchorbit.removal.history.LayerError` has it."""

    layer: _Text
    before: _Figure
    after: _Figure


class Reconstructed(_Part):
    """New weights that consumers of removed channels got, as `torchorbit.removal.history.Reconstruction` has it.

    Attributes:
        method: how.
        samples: how many samples were looked at.
        proof: how far the pruned model was from the whole one with zeros before that.
        layers: in the order of the model.
    """

    method: _Text
    samples: _Count
    proof: _Figure
    layers: tuple[Layer, ...] = Field(default=(), max_length=_MOST_ENTRIES)


class Step(_Part):
    """One pruning.

    Attributes:
        criterion: what the units were scored by.
        selector: what chose how many of which orbits go.
        constraint: which widths orbits might have; None where that is not known.
        target: what the result was to cost, as ``"flops=0.5"``; empty where the selector says how much goes.
        steps: in how many pruning steps it was come down to.
        finetune_bn: whether the running statistics of batch norms were re-estimated.
        data: what was looked at, by the criterion or the selector, for batch norms or for new weights; None where
            weights told all.
        seed: of whatever was drawn.
        command: what was typed.
        versions: what it was done with.
        reconstruction: what made up for the channels that are gone; None where nothing did.
    """

    criterion: Method
    selector: Method
    constraint: Method | None = None
    target: _Text = ""
    steps: Annotated[int, Field(ge=1, le=2**31)] = 1
    finetune_bn: bool = False
    data: _Text | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    command: _Text | None = None
    versions: Versions
    reconstruction: Reconstructed | None = None


class Cost(_Part):
    """What a model costs, for one input of the recorded size.

    Attributes:
        gflops: 10^9 FLOPs, two per multiply-accumulate.
        kmapp: thousands of FLOPs per pixel; None where the input is no image.
        parameters: how many numbers are trained.
    """

    gflops: _Figure
    kmapp: _Figure | None = None
    parameters: _Count


class Accuracy(_Part):
    """Top-1 accuracy, from 0 to 1.

    Attributes:
        dataset: what it was measured on.
        split: which part of it.
        input_size: channels, height and width.
        before: of the source; None where that was not measured.
        after: of this model.
    """

    dataset: _Text
    split: _Text
    input_size: tuple[_Size, _Size, _Size]
    before: Annotated[float, Field(ge=0, le=1)] | None = None
    after: Annotated[float, Field(ge=0, le=1)]


class Width(_Part):
    """Output channels of a layer in the source and here."""

    layer: _Text
    before: _Count
    after: _Count


class File(_Part):
    """A file of the checkpoint."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size: _Count


class Manifest(_Part):
    """What a checkpoint says about itself.

    Attributes:
        format: that it is a checkpoint.
        version: of the format.
        name: of the model, to call it by.
        source: what was pruned.
        steps: what was done to it, the last one last; none where it was only converted.
        before: what the source costs.
        after: what this model costs.
        accuracy: what was measured.
        preprocessing: how an image becomes an input; None where it takes none.
        dtype: of the weights.
        widths: of the source's layers and of this model's, in the order of the source.
        files: name -> its hash and size; never one in another folder.
    """

    format: Literal["torchorbit-checkpoint"] = "torchorbit-checkpoint"
    version: Annotated[int, Field(ge=2, le=2)] = 2
    name: _Text
    source: Source
    steps: tuple[Step, ...] = Field(default=(), max_length=1000)
    before: Cost
    after: Cost
    accuracy: tuple[Accuracy, ...] = Field(default=(), max_length=1000)
    preprocessing: Preprocessing | None = None
    dtype: Literal["float32", "float16", "bfloat16", "float64"] = "float32"
    widths: tuple[Width, ...] = Field(default=(), max_length=_MOST_ENTRIES)
    files: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$")], File] = Field(
        default={}, max_length=100
    )

    def text(self) -> str:
        """The manifest as JSON."""
        return self.model_dump_json(indent=1) + "\n"


class _FirstStep(_Part):
    """A pruning as manifests of version 1 tell of it, where criteria and selectors are names that people understand."""

    criterion: _Text
    selector: _Text
    target: _Text
    round_to: _Count = 1
    data: _Text | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    command: _Text | None = None
    versions: Versions

    def upgraded(self) -> Step:
        """The same as a step of today. What else the constraint said was not written down, so none of it is known."""
        told = self.model_dump(exclude={"criterion", "selector", "round_to", "versions"})
        bounds = Method(name="bounds", options={"round_to": self.round_to}, known=False)
        return Step(
            criterion=Method(name=self.criterion, known=False),
            selector=Method(name=self.selector, known=False),
            constraint=bounds if self.round_to > 1 else None,
            versions=self.versions,
            **told,
        )


class _FirstManifest(Manifest):
    """A manifest of version 1."""

    version: Annotated[int, Field(ge=1, le=1)] = 1
    steps: tuple[_FirstStep, ...] = Field(default=(), max_length=1000)  # type: ignore[assignment]

    def upgraded(self) -> Manifest:
        """The same as a manifest of today."""
        told = {name: getattr(self, name) for name in type(self).model_fields}
        return Manifest(**{**told, "version": 2, "steps": tuple(step.upgraded() for step in self.steps)})


class _Version(BaseModel):
    """What says how to read the rest."""

    version: Any = None


def _parsed(content: bytes) -> Manifest:
    try:
        version = _Version.model_validate_json(content).version
    except ValidationError:
        version = None  # it is no manifest at all, which is told as it is of any other
    if type(version) is int and version == 1:
        return _FirstManifest.model_validate_json(content).upgraded()
    return Manifest.model_validate_json(content)


def read_manifest(folder: Path) -> Manifest:
    """Read what a checkpoint says about itself.

    Args:
        folder: the checkpoint.

    Returns:
        The manifest. Whether the files are those that it names is for `zoo.checkpoint.check_files` to find out.

    Raises:
        CheckpointError: there is none, or it is no manifest that this version can read.
    """
    if not (folder / MANIFEST_FILE).exists():
        raise CheckpointError(f"'{folder}' holds no {MANIFEST_FILE}; expected the folder of a checkpoint")
    path = permitted(folder, MANIFEST_FILE)
    with opened(path) as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise CheckpointError(f"'{path}' is longer than the {MOST_BYTES} bytes that a manifest may have")
    check_extent(content, str(path))
    try:
        manifest = _parsed(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = one_line(".".join(map(str, first["loc"])) or "all of it", longest=200)
        more = f", and {error.error_count() - 1} more" if error.error_count() > 1 else ""
        reason = f"{place}: {one_line(first['msg'], longest=200)}{more}"
        raise CheckpointError(f"'{path}' is no manifest of a checkpoint: {reason}") from None
    parsed(content, str(path))  # refuses two entries of one name, of which the last was taken
    return manifest
