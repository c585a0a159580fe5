"""The columns of a record: each is declared here, once, with all that there is to say of it.

Another column is another field of `Columns`. Its declaration says from when on a worker knows the value and how it is
worked out from what the worker found (`harness.findings`), in which tables it stands under which header, and what it is
called where one record is shown. Nothing else names it, unless something is to be made of it.

Importing this imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import Field, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic

if TYPE_CHECKING:
    from harness.findings import Findings

Moment = Literal["build", "convert", "verify", "orbits", "prune", "prove", "done"]
"""What a worker has just done: built the model, converted and verified it, found its orbits, run the smallest graph,
shown that what is left after a removal is right; or come to an end, wherever that was."""

Table = Literal["supported_models", "channel_pruning_supported_models"]
"""The pages that list models in a table, by the names of their files."""

Stage = Literal["build", "convert", "verify", "orbits", "prune", "prove", "worker"]
_Text = Annotated[str, pydantic.Field(min_length=1)]
_Count = Annotated[int, pydantic.Field(ge=0)]
_Length = Annotated[int, pydantic.Field(ge=1)]
_Amount = Annotated[float, pydantic.Field(ge=0)]
_Share = Annotated[float, pydantic.Field(ge=0, le=1)]

_ABOUT_PRUNING = ("orbits", "prune", "prove")


@dataclass(frozen=True)
class Cell:
    """How a column stands in the table of a page. There, columns are in the order of their declarations.

    Attributes:
        table: Which page.
        header: Of the column.
        written: A format for numbers, as `".2f"`, which stand to the right, with nothing for one that is not known; or
            a function of the value, known or not.
        legend: What the header means, where the page has to say it: a part of a sentence.
    """

    table: Table
    header: str
    written: str | Callable[[Any], str]
    legend: str = ""

    def text(self, value: Any) -> str:
        """What the cell of a value holds."""
        if isinstance(self.written, str):
            return "" if value is None else format(value, self.written)
        return self.written(value)

    @property
    def alignment(self) -> str:
        """`"right"` or `"left"`."""
        return "right" if isinstance(self.written, str) else "left"


@dataclass(frozen=True)
class Column:
    """What there is to say of a column.

    Attributes:
        cells: How it stands in tables.
        fill: Works the value out from what the worker found; None for what is written while a job runs.
        after: When it does: as soon as the worker has done this.
        words: What it is called where one record is shown; by default its name.
        written: Writes a value that is known, with its unit.
        unknown: Stands there for null.
        below: It is a text, which is shown below the other columns, and by itself.
        name: Of the field.
    """

    cells: tuple[Cell, ...] = ()
    fill: Callable[[Findings], Any] | None = None
    after: Moment | None = None
    words: str = ""
    written: Callable[[Any], str] = str
    unknown: str = "not known"
    below: bool = False
    name: str = ""

    @property
    def about_pruning(self) -> bool:
        """Whether it says something of pruning, of which records of earlier versions say nothing."""
        return self.after in _ABOUT_PRUNING


def column(*cells: Cell, default: Any = None, **about: Any) -> Any:
    """Declare a column, as the field of a data class.

    Args:
        cells: How it stands in tables.
        default: What a record has as long as nothing is known.
        about: The other attributes of `Column`.
    """
    return field(default=default, metadata={"column": Column(cells, **about)})


def _yes_or_no(value: bool) -> str:
    return "yes" if value else "no"


def _of_all_flops(share: float) -> str:
    return f"{share:.2%} of all FLOPs"


def _of_the_largest_output(difference: float) -> str:
    return f"{difference:.1e} of the largest output"


def _sizes(size: list[int] | None) -> str:
    return "x".join(map(str, size or ()))


@dataclass(kw_only=True)
class Columns:
    """What one sweep found out about one model. A field per column; what each is stands below it."""

    model: _Text
    """Name in timm, without a tag."""

    timm: str
    """Version of timm."""

    torch: str
    """Version of torch."""

    torchorbit: str
    """Version of this project."""

    params_m: _Amount | None = column(
        Cell("supported_models", "params", ".2f", legend="`params` in millions"),
        fill=lambda found: round(sum(parameter.numel() for parameter in found.model.parameters()) / 1e6, 3),
        after="build",
        words="parameters",
        written=lambda millions: f"{millions:.3f} M",
    )
    """Parameters in millions; null if the model could not be built."""

    input_size: list[_Length] | None = column(
        Cell("supported_models", "input size", _sizes),
        fill=lambda found: list(found.input_size),
        after="build",
        written=lambda size: f"{_sizes(size)} (channels, height, width)",
    )
    """`[channels, height, width]`; null if the model could not be built."""

    gflops: _Amount | None = column(
        Cell("channel_pruning_supported_models", "GFLOPs", ".3f"),
        fill=lambda found: round(found.orbits.costs.total() / 1e9, 4),
        after="orbits",
        words="FLOPs of one sample",
        written=lambda billions: f"{billions:.3f} G, two per multiply-accumulate",
    )
    """FLOPs of one sample in 10^9, two per multiply-accumulate; null if orbits could not be looked for."""

    converted: bool = column(
        Cell("supported_models", "converted", _yes_or_no),
        fill=lambda found: True,
        after="convert",
        written=_yes_or_no,
        default=False,
    )
    """Whether it became a `DagModule`."""

    verified: Literal["numeric", "shape"] | None = column(
        Cell("supported_models", "verified", lambda how: how or "no"),
        fill=lambda found: "numeric" if found.numeric else "shape",
        after="verify",
        written=lambda how: {"numeric": "by numbers", "shape": "by shape"}.get(how, how),
        unknown="no",
    )
    """How the graph was shown to be the model: `"numeric"` by outputs of real weights, `"shape"` by the shapes and
    types of the outputs; null if it was not."""

    max_diff: _Amount | None = column(
        Cell(
            "supported_models",
            "max diff",
            ".1e",
            legend="`max diff` is the largest difference between the outputs of the model and its graph, over the "
            "largest output",
        ),
        fill=lambda found: found.difference,
        after="verify",
        words="difference of the graph",
        written=_of_the_largest_output,
    )
    """Largest difference between the outputs of model and graph, over the largest output."""

    prunable: bool = column(
        Cell("supported_models", "prunable", _yes_or_no),
        Cell("channel_pruning_supported_models", "prunable", _yes_or_no),
        fill=lambda found: True,
        after="prove",
        written=_yes_or_no,
        default=False,
    )
    """Whether channels were removed, the smaller graph ran, and, where there were weights, was proved right."""

    removable_flops: _Share | None = column(
        Cell(
            "channel_pruning_supported_models",
            "removable",
            ".2%",
            legend="`removable` is the share of the FLOPs that go when every orbit is shrunk to one unit, of a model "
            "that was built and run",
        ),
        fill=lambda found: round(1 - found.smallest_flops / found.orbits.costs.total(), 6),
        after="prune",
        words="removable",
        written=_of_all_flops,
    )
    """1 - FLOPs of the smallest graph that was built and run, over the FLOPs of the whole one."""

    prunable_proportion: _Share | None = column(
        Cell(
            "channel_pruning_supported_models",
            "proportion",
            ".2%",
            legend="`proportion` the share of the FLOPs in vertices that an orbit touches (torch-dag's figure)",
        ),
        fill=lambda found: round(found.orbits.prunable_proportion, 6),
        after="orbits",
        words="touched by orbits",
        written=_of_all_flops,
    )
    """FLOPs of the vertices that an orbit touches, over all FLOPs (torch-dag's figure)."""

    orbits: _Count | None = column(
        Cell("channel_pruning_supported_models", "orbits", "d"),
        fill=lambda found: len(found.orbits),
        after="orbits",
    )
    """How many orbits there are."""

    units: _Count | None = column(
        Cell("channel_pruning_supported_models", "units", "d"),
        fill=lambda found: found.orbits.units,
        after="orbits",
    )
    """How many units are in them."""

    removal_max_diff: _Amount | None = column(
        Cell(
            "channel_pruning_supported_models",
            "max diff",
            ".1e",
            legend="`max diff` the largest difference, over the largest output, between the model with a random half "
            "of every orbit removed and the whole one with zeros there",
        ),
        fill=lambda found: found.removal_difference,
        after="prove",
        words="difference after removal",
        written=_of_the_largest_output,
    )
    """Half of every orbit removed at random: largest difference between the pruned graph and the whole one in which
    those channels are zero, over the largest output."""

    unruled_operators: list[str] | None = column(
        fill=lambda found: list(found.orbits.unruled),
        after="orbits",
        words="operators without a rule",
        written=lambda names: ", ".join(names) or "none",
    )
    """Operators that freeze what they touch because there is no rule for them."""

    stage: Stage | None = column(below=True)
    """The first stage that failed (`"build"`, `"convert"`, `"verify"`, `"orbits"`, `"prune"`, `"prove"`, or `"worker"`
    where its process was killed or did not start); null if none did."""

    error: str | None = column(below=True)
    """Why it failed, in one line."""

    note: str | None = column(below=True)
    """What a reader of the record should know though nothing failed, in one line."""

    seconds: _Amount | None = column(
        fill=lambda found: round(found.seconds, 3),
        after="done",
        words="time of the job",
        written=lambda seconds: f"{seconds:.1f} s",
    )
    """How long the model took."""

    peak_rss_mb: _Amount | None = column(
        fill=lambda found: round(found.peak_rss_mb, 1),
        after="done",
        words="peak memory of the job",
        written=lambda mebibytes: f"{mebibytes:.0f} MiB",
    )
    """Peak resident memory of the worker while it had this model, in MiB."""


def _named(each: Field[Any]) -> Column:
    about: Column = each.metadata.get("column", Column())
    return replace(about, name=each.name, words=about.words or each.name.replace("_", " "))


COLUMNS = tuple([_named(each) for each in fields(Columns)])
"""Every column, in the order of their declarations."""


def fill(record: Columns, found: Findings, moment: Moment) -> None:
    """Write into a record what is known after something was done.

    Args:
        record: Of the model.
        found: What the worker has found out about it.
        moment: What it has just done.
    """
    for each in COLUMNS:
        if each.after == moment and each.fill is not None:
            setattr(record, each.name, each.fill(found))
