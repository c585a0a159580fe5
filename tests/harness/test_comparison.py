from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness.comparison import Comparison, Loss, changes_page, compare, compare_files
from harness.errors import HarnessError
from harness.models import VERSIONS, model_names
from harness.records import Record, write_records

OLDER = {"timm": "1", "torch": "2", "torchorbit": "3"}


def pruned(model: str, **values: object) -> Record:
    """A record of a model with which everything went well."""
    found = {
        "converted": True,
        "verified": "shape",
        "orbits": 12,
        "units": 100,
        "prunable": True,
        "removable_flops": 0.9,
    }
    return Record(model=model, **(OLDER | found | values))  # type: ignore[arg-type]


def not_looked_at_for_pruning(model: str, **values: object) -> Record:
    """A record of an earlier version, in which the columns about pruning are null."""
    return pruned(model, **{"orbits": None, "units": None, "prunable": False, "removable_flops": None} | values)


def failed(model: str, stage: str, **values: object) -> Record:
    """A record of a model that came as far as a stage."""
    found = {"converted": stage not in ("build", "convert"), "verified": None, "orbits": None, "prunable": False}
    return pruned(model, **found | {"removable_flops": None, "stage": stage, "error": "why"} | values)


def nothing_but_losses(comparison: Comparison) -> bool:
    return not any(
        (
            comparison.newly_convertible,
            comparison.newly_verified,
            comparison.newly_prunable,
            comparison.removable_changed,
            comparison.new_models,
            comparison.removed_models,
        )
    )


@pytest.mark.parametrize(
    ("old", "new", "no_longer"),
    [
        (pruned("a"), failed("a", "build"), ("converted", "verified", "prunable")),
        (not_looked_at_for_pruning("a"), failed("a", "convert"), ("converted", "verified")),
        (failed("a", "verify"), failed("a", "worker", converted=False), ("converted",)),
        (pruned("a"), failed("a", "verify"), ("verified", "prunable")),
        (pruned("a"), failed("a", "prove", verified="shape"), ("prunable",)),
        (not_looked_at_for_pruning("a"), failed("a", "prove", verified="shape"), ("without a failure",)),
        (pruned("a", prunable=False), failed("a", "orbits", verified="shape"), ("without a failure",)),
    ],
)
def test_what_a_model_can_no_longer_do_is_lost(old: Record, new: Record, no_longer: tuple[str, ...]) -> None:
    comparison = compare([old], [new])

    assert comparison.lost == [Loss("a", no_longer, new.stage, "why")]
    assert nothing_but_losses(comparison)


def test_channels_that_are_all_frozen_now_are_lost_with_the_note_as_the_reason() -> None:
    frozen = pruned("a", prunable=False, orbits=0, removable_flops=None, note="nothing can be removed")

    assert compare([pruned("a")], [frozen]).lost == [Loss("a", ("prunable",), None, "nothing can be removed")]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (pruned("a"), pruned("a", timm="2", seconds=4.0)),
        (failed("a", "prove", verified="shape"), failed("a", "orbits", verified="shape", error="another reason")),
        (pruned("a", verified="numeric"), pruned("a")),
        (not_looked_at_for_pruning("a"), pruned("a")),
        (pruned("a"), not_looked_at_for_pruning("a")),
        (pruned("a", removable_flops=0.51), pruned("a", removable_flops=0.5)),
    ],
)
def test_what_is_no_change_is_not_reported(old: Record, new: Record) -> None:
    comparison = compare([old], [new])

    assert not comparison.lost
    assert nothing_but_losses(comparison)
    assert "Nothing changed (1 model compared).\n" in changes_page(comparison)


def test_gains_are_told_apart_by_how_far_the_model_had_come() -> None:
    old = [failed("a", "convert"), failed("b", "verify"), failed("c", "prove", verified="shape")]
    new = [pruned("a"), pruned("b"), pruned("c")]

    comparison = compare(old, new)

    assert not comparison.lost
    assert [record.model for record in comparison.newly_convertible] == ["a"]
    assert [record.model for record in comparison.newly_verified] == ["b"]
    assert [record.model for record in comparison.newly_prunable] == ["a", "b", "c"]


def test_a_change_of_the_removable_flops_is_reported_either_way_with_both_values() -> None:
    old = [pruned("up", removable_flops=0.5), pruned("down", removable_flops=0.5)]
    new = [pruned("up", removable_flops=0.510001), pruned("down", removable_flops=0.25)]

    page = changes_page(compare(old, new))

    assert "Nothing lost, 2 with other removable FLOPs (2 models compared)." in page
    assert "| down    | 50.00% | 25.00% |" in page
    assert "| up      | 50.00% | 51.00% |" in page


def test_what_is_in_one_file_only_is_new_or_removed_and_no_loss() -> None:
    old = [pruned("resnet101"), pruned("resnet18")]
    new = [pruned("resnet18"), failed("resnet19", "convert")]

    comparison = compare(old, new)
    page = changes_page(comparison)

    assert not comparison.lost
    assert comparison.compared == 1
    assert [record.model for record in comparison.new_models] == ["resnet19"]
    assert [record.model for record in comparison.removed_models] == ["resnet101"]
    # A new model that fails says why.
    assert page.index("## New models") < page.index("| resnet19 | no          | no ") < page.index("| convert | why ")
    assert page.endswith("## Removed models\n\n| model     |\n|:----------|\n| resnet101 |\n")


def test_after_a_sweep_of_some_models_the_others_are_left_alone() -> None:
    comparison = compare([pruned("a"), pruned("b")], [failed("b", "verify")], only_swept=True, in_timm=["a"])

    assert comparison.compared == 1
    assert not comparison.removed_models
    assert [loss.model for loss in comparison.lost] == ["b"]


def test_a_model_that_timm_still_has_was_not_removed_but_not_swept() -> None:
    comparison = compare([pruned("a"), pruned("b"), pruned("c")], [pruned("c")], in_timm=["b", "c"])

    assert comparison.lost == [Loss("b", ("swept",), None, "it has no new record, but timm still has it")]
    assert [record.model for record in comparison.removed_models] == ["a"]


def test_a_model_that_never_converted_is_not_lost_where_it_was_not_swept() -> None:
    comparison = compare([failed("a", "convert"), pruned("b")], [pruned("b")], in_timm=["a", "b"])

    assert not comparison.lost
    assert nothing_but_losses(comparison)
    assert "\nWithout a new record, though timm still has them, are models that never converted: a.\n" in changes_page(
        comparison
    )


def test_a_sweep_that_was_not_finished_is_found_out_by_asking_the_timm_that_it_was_made_with(tmp_path: Path) -> None:
    kept, missing = model_names(["resnet18", "resnet34"])
    write_records(tmp_path / "old.jsonl", [pruned(name) for name in (kept, missing, "resnet_that_was")])
    lost = {}
    for version in (VERSIONS["timm"], "0.1"):
        write_records(tmp_path / "new.jsonl", [pruned(kept, timm=version)])
        comparison = compare_files(tmp_path / "old.jsonl", tmp_path / "new.jsonl")
        assert "resnet_that_was" in [record.model for record in comparison.removed_models]
        lost[version] = [loss.model for loss in comparison.lost]

    # Of another version nobody can tell.
    assert lost == {VERSIONS["timm"]: [missing], "0.1": []}
    write_records(tmp_path / "new.jsonl", [pruned(kept, **VERSIONS)])
    assert not compare_files(tmp_path / "old.jsonl", tmp_path / "new.jsonl", only_swept=True).lost


def test_old_records_without_figures_on_pruning_are_told_of_once() -> None:
    names = [f"model{number}" for number in range(50)]

    page = changes_page(compare(map(not_looked_at_for_pruning, names), map(pruned, names)))

    assert page == (
        "# Changes: the same timm 1, torch 2, torchorbit 3\n\n"
        "Nothing changed (50 models compared).\n\n"
        "The old records have no figures on pruning: nothing is compared there.\n"
    )


def test_where_only_some_records_have_no_figures_on_pruning_the_others_are_compared() -> None:
    old = [not_looked_at_for_pruning("a"), failed("b", "orbits", verified="shape")]

    comparison = compare(old, [pruned("a"), pruned("b")])

    assert [record.model for record in comparison.newly_prunable] == ["b"]
    assert "The old records have no figures on pruning of 1 model: " in changes_page(comparison)


def test_that_models_are_verified_by_less_is_said_in_one_line() -> None:
    old = [pruned("a", verified="numeric"), pruned("b", verified="numeric"), pruned("c")]

    page = changes_page(compare(old, [replace(record, verified="shape") for record in old]))

    assert "\n2 models, verified by numbers in the old records, are verified by shape in the new ones.\n" in page


def test_the_heading_says_which_versions_changed() -> None:
    old = [pruned("a"), pruned("b", timm="1.0.9")]
    new = [pruned("a", timm="1.0.10"), pruned("b", timm="1.0.10", torchorbit="4")]

    page = changes_page(compare(old, new))

    assert page.splitlines()[0] == "# Changes: timm 1 and 1.0.9 -> 1.0.10, torchorbit 3 -> 3 and 4"


def test_the_page_of_a_loss_shows_stage_and_error_in_a_table_that_markdown_can_read() -> None:
    error = "TypeError: int | None is no size"

    page = changes_page(compare([pruned("a"), pruned("b")], [pruned("a"), failed("b", "convert", error=error)]))

    assert page.splitlines()[2:] == [
        "1 lost (2 models compared).",
        "",
        "## Lost",
        "",
        "| model   | no longer                     | stage   | error                             |",
        "|:--------|:------------------------------|:--------|:----------------------------------|",
        "| b       | converted, verified, prunable | convert | TypeError: int \\| None is no size |",
    ]


def test_the_order_of_the_records_makes_no_difference() -> None:
    old = [pruned(f"model{number}") for number in (10, 9, 1)]
    new = [failed(record.model, "convert") for record in old]

    comparison = compare(old, new)

    assert [loss.model for loss in comparison.lost] == ["model1", "model9", "model10"]
    assert comparison == compare(old[::-1], new[1:] + new[:1])


@pytest.mark.parametrize("empty", ["old.jsonl", "new.jsonl"])
def test_a_file_without_records_cannot_be_compared(tmp_path: Path, empty: str) -> None:
    for name in ("old.jsonl", "new.jsonl"):
        write_records(tmp_path / name, [] if name == empty else [pruned("a")])

    with pytest.raises(HarnessError, match=rf"{empty} has no records in it"):
        compare_files(tmp_path / "old.jsonl", tmp_path / "new.jsonl")
