"""Criteria, selectors and constraints are written down with all of their options, and read back."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import torchorbit
from torchorbit.criteria import (
    L1,
    L2,
    ActivationNorm,
    BatchNormScale,
    Criterion,
    GeometricMedian,
    Lamp,
    Magnitude,
    Random,
    Shapley,
    Taylor,
    WeightNorm,
)
from torchorbit.selectors import (
    Bounds,
    Constraint,
    Description,
    EnotBounds,
    Global,
    Knapsack,
    Optimal,
    Overrides,
    Ratios,
    ScboOptions,
    Selector,
    Uniform,
    describe,
    from_description,
)

SHARES = st.floats(0, 1, exclude_max=True)
COUNTS = st.integers(1, 2**40)
NORMALIZATIONS = st.sampled_from(["auto", "sum", "mean", "max", "l2", "standard", None])
OVER, REDUCE = st.sampled_from(["all", "sources"]), st.sampled_from(["mean", "sum", "max"])

BOUNDS = st.builds(Bounds, COUNTS, SHARES, COUNTS) | st.builds(EnotBounds, COUNTS, SHARES, st.none() | COUNTS)
CONSTRAINTS = st.recursive(
    BOUNDS, lambda inner: st.builds(Overrides, st.dictionaries(st.text(), inner, max_size=3), inner), max_leaves=4
)
NORM_OPTIONS = {
    "over": OVER,
    "reduce": REDUCE,
    "normalize": st.sampled_from(["sum", "l2", "standard", None]),
    "per": st.sampled_from(["tensor", "orbit", "all"]),
}
CRITERIA = st.one_of(
    st.builds(Magnitude).map(lambda _: WeightNorm()),  # a magnitude has no options, and equals nothing but itself
    st.builds(WeightNorm, p=st.floats(0, exclude_min=True, allow_nan=False), **NORM_OPTIONS),
    st.builds(L1, **NORM_OPTIONS),
    st.builds(L2, **NORM_OPTIONS),
    st.builds(Lamp, OVER),
    st.builds(BatchNormScale, st.sampled_from(["batch", "all"]), REDUCE),
    st.builds(GeometricMedian, OVER, REDUCE),
    st.builds(Random, st.integers(0, 2**80)),
    st.builds(ActivationNorm, st.sampled_from([1, 2])),
    st.builds(Taylor, st.booleans()),
    st.builds(Shapley, st.none() | COUNTS, st.integers(0)),
)
SEARCHES = st.builds(
    ScboOptions,
    length=st.floats(0.1, 1),
    length_max=st.floats(1, 9),
    length_min=st.floats(0.001, 0.1),
    successes=COUNTS,
    failures=st.none() | COUNTS,
)
SELECTORS = st.one_of(
    st.builds(Uniform, st.none() | SHARES),
    st.builds(Global, st.none() | SHARES | COUNTS, NORMALIZATIONS, st.booleans()),
    st.builds(Ratios, st.dictionaries(st.text(), SHARES, max_size=4), SHARES),
    st.builds(
        Knapsack,
        strict_order=st.booleans(),
        max_iterations=COUNTS,
        solver_time_limit=st.none() | st.floats(1, math.inf),
        normalization=NORMALIZATIONS,
        tolerance=SHARES,
        exhaustive=st.integers(0),
        measurements=COUNTS,
    ),
    st.builds(
        Optimal,
        n_search_steps=st.none() | COUNTS,
        n_starting_points=st.none() | COUNTS,
        batch_size=COUNTS,
        device=st.none() | st.sampled_from(["cpu", torch.device("cuda", 1)]),
        dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
        handle_ctrl_c=st.booleans(),
        seed=st.none() | st.integers(),
        options=SEARCHES,
    ),
)


def through_json(description: Description) -> Description:
    data = json.loads(json.dumps(description.data(), allow_nan=False))
    assert isinstance(str(description), str)
    return Description(data["name"], data["options"], data.get("known", True))


@settings(max_examples=100, deadline=None)
@given(CRITERIA)
def test_criteria_come_back_as_they_were(criterion: Criterion) -> None:
    assert from_description(through_json(describe(criterion)), Criterion) == criterion


@settings(max_examples=100, deadline=None)
@given(SELECTORS)
def test_selectors_come_back_as_they_were(selector: Selector) -> None:
    assert from_description(through_json(describe(selector)), Selector) == selector


@settings(max_examples=100, deadline=None)
@given(CONSTRAINTS)
def test_constraints_come_back_as_they_were_and_in_their_order(constraint: Constraint) -> None:
    back = from_description(through_json(describe(constraint)), Constraint)
    assert back == constraint
    if isinstance(back, Overrides):
        assert list(back.constraints) == list(constraint.constraints)  # type: ignore[attr-defined]


def test_what_has_no_options_comes_back_too() -> None:
    for name, kind in torchorbit.criteria.CRITERIA.items():
        made = from_description(through_json(describe(kind())), Criterion)
        assert (type(made), made.name, str(made)) == (kind, name, name)


@pytest.mark.parametrize(
    ("thing", "text"),
    [
        (Knapsack(tolerance=0.01, exhaustive=0), "knapsack(tolerance=0.01, exhaustive=0)"),
        (Knapsack(verbose=True), "knapsack"),
        (Optimal(seed=3, verbose=False), "optimal(seed=3)"),
        (Optimal(dtype=torch.float32, options=ScboOptions(successes=5)), "optimal(dtype=float32, options=scbo(successes=5))"),
        (WeightNorm(p=math.inf), "weight_norm(p=inf)"),
        (Bounds(), "bounds"),
        (EnotBounds(fixed_step=8), "enot_bounds(fixed_step=8)"),
        (
            Overrides({"layer1.*": Bounds(round_to=8)}, EnotBounds()),
            "overrides(constraints={'layer1.*': bounds(round_to=8)}, default=enot_bounds)",
        ),
        (Random(np.int64(4)), "random(seed=4)"),
    ],
)  # fmt: skip
def test_it_prints_as_it_would_be_made(thing: Any, text: str) -> None:
    assert str(describe(thing)) == str(through_json(describe(thing))) == text
    if not isinstance(thing, ScboOptions):
        assert str(thing) == text


class Mine(torchorbit.criteria.WeightCriterion):
    """A criterion that somebody wrote."""

    name = "magnitude"

    def __init__(self, power: float, secret: float = 1.0):
        self.power = power
        self._secret = secret

    def scores(self, orbits: torchorbit.Orbits) -> torchorbit.Scores:
        """Those of magnitudes."""
        return Magnitude().scores(orbits)


def early_stop(cost: float, limit: float) -> bool:
    return False


def test_what_cannot_be_written_is_told_in_words_and_not_read_back() -> None:
    layer = nn.Conv2d(3, 4, 1)
    dag = torchorbit.convert(nn.Sequential(layer, nn.Conv2d(4, 2, 1)), torch.randn(2, 3, 4, 4))
    (orbit,) = torchorbit.find_orbits(dag)
    for thing, kind, text, message in [
        (Global(selector_cb=early_stop), Selector, f"global(selector_cb={__name__}.early_stop)", "selector_cb: .* told in"),
        (Ratios({layer: 0.5}), Selector, "ratios(ratios={a Conv2d: 0.5})", "ratios: 'a Conv2d' is told in words"),
        (Overrides({orbit: Bounds()}), Constraint, "overrides(constraints={Orbit(0, width=4) of _0: bounds})", "in words"),
        (Mine(2.0), Criterion, "magnitude(power=2.0, secret=not kept)", "none of torchorbit's and cannot be read back"),
    ]:  # fmt: skip
        description = through_json(describe(thing))
        assert str(description) == text
        with pytest.raises(torchorbit.TorchorbitError, match=message):
            from_description(description, kind)


@pytest.mark.parametrize(
    ("description", "kind", "message"),
    [
        (Description("knapsak"), Selector, "there is no selector 'knapsak'; close to it: knapsack"),
        (Description("knapsack"), Criterion, "there is no criterion 'knapsack'"),
        (Description("os.system", {"command": "true"}), Selector, "there is no selector 'os.system'"),
        (Description("knapsack", {"tolerence": 1}), Selector, "has no option 'tolerence'; close to it: tolerance"),
        (Description("knapsack", {"tolerance": 2}), Selector, "tolerance=2, expected a share"),
        (Description("knapsack", {"tolerance": "much"}), Selector, "cannot have these options"),
        (Description("knapsack", {"tolerance": {"a": 1, "b": 2}}), Selector, "is no value that an option can have"),
        (Description("knapsack", {"__class__": 1}), Selector, "has no option '__class__'"),
        (Description("ratios"), Selector, "cannot have these options: .*ratios"),
        (Description("ratios", {"ratios": {"items": [[["a"], 1]]}}), Selector, "cannot be the key of a dictionary"),
        (Description("optimal", {"dtype": {"dtype": "load"}}), Selector, "is no value that an option can have"),
        (Description("optimal", {"device": {"device": "moon"}}), Selector, "there is no device 'moon'"),
        (Description("optimal", {"options": {"search": {"name": "other"}}}), Selector, "there is no search 'other'"),
        (Description("overrides", {"constraints": {"items": [["a", {"selector": {"name": "uniform"}}]]}}), Constraint,
         "is no Constraint"),
        (Description("uniform", {}, known=False), Selector, "cannot be read back"),
    ],
)  # fmt: skip
def test_what_makes_no_object_is_refused(description: Description, kind: type, message: str) -> None:
    with pytest.raises(torchorbit.TorchorbitError, match=message):
        from_description(description, kind)


def test_only_descriptions_are_read_and_only_what_there_are_tables_of() -> None:
    with pytest.raises(TypeError, match="this is a str, expected a Description"):
        from_description("uniform", Selector)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected Criterion, Selector or Constraint"):
        from_description(Description("uniform"), nn.Module)


def test_names_are_those_of_the_tables() -> None:
    for table in (torchorbit.criteria.CRITERIA, torchorbit.selectors.SELECTORS, torchorbit.selectors.CONSTRAINTS):
        assert all(kind.name == name for name, kind in table.items())
    with pytest.raises(ValueError, match="there is no criterion 'tailor'; close to it: taylor"):
        torchorbit.criteria.Calibrator(chain(), "tailor")


def chain() -> torchorbit.DagModule:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU(), nn.Conv2d(24, 4, 3))
    return torchorbit.convert(model.eval(), torch.randn(2, 3, 12, 12))


@pytest.mark.parametrize(
    "options",
    [
        {"flops": 0.5, "selector": Knapsack(tolerance=0.3), "constraint": Bounds(min_width=3, round_to=4)},
        {"flops": 0.4, "criterion": WeightNorm(p=math.inf, over="sources"), "selector": Global(per_cost=True, normalization="mean"), "steps": 2},
        {"selector": Ratios({"0": 0.5, "*": 0.25}), "round_to": 4},
        {"flops": 0.6, "criterion": "random", "seed": 5, "constraint": Overrides({"2": Bounds(round_to=8)}, EnotBounds(4))},
    ],
)  # fmt: skip
def test_the_history_read_back_prunes_to_the_same_widths(options: dict[str, Any]) -> None:
    dag = chain()
    first = torchorbit.prune(dag, **options)
    (pruning,) = first.history.prunings
    assert (pruning.steps, pruning.seed, pruning.data) == (options.get("steps", 1), options.get("seed", 0), False)
    again = torchorbit.prune(
        dag,
        flops=options.get("flops"),
        steps=pruning.steps,
        seed=pruning.seed,
        criterion=from_description(through_json(pruning.criterion), Criterion),
        selector=from_description(through_json(pruning.selector), Selector),
        constraint=from_description(through_json(pruning.constraint), Constraint),
    )
    assert {path: tensor.shape for path, tensor in again.state_dict().items()} == {
        path: tensor.shape for path, tensor in first.state_dict().items()
    }
    assert all(torch.equal(tensor, first.state_dict()[path]) for path, tensor in again.state_dict().items())


def test_scores_tell_by_what_they_were_made_after_they_were_saved(tmp_path: Any) -> None:
    orbits = torchorbit.find_orbits(chain())
    WeightNorm(p=math.inf).scores(orbits).save(tmp_path / "scores")
    scores = torchorbit.Scores.load(tmp_path / "scores", orbits)
    assert scores.criterion == "weight_norm(p=inf)"
    assert from_description(scores.description, Criterion) == WeightNorm(p=math.inf)
    pruned = torchorbit.prune(orbits.model.dag, flops=0.5, criterion=scores)
    assert pruned.history.prunings[0].criterion == describe(WeightNorm(p=math.inf))


def test_what_a_graph_cost_is_counted_when_it_is_asked_for_and_holds_none_of_its_tensors() -> None:
    dag = chain()
    before = torchorbit.flops(dag)
    parameters = sum(parameter.numel() for parameter in dag.parameters())
    orbits = torchorbit.find_orbits(dag)
    smaller = torchorbit.remove_channels(dag, {orbits[0]: [0, 1]}, inplace=True)
    smaller = torchorbit.prune(smaller, flops=0.5, inplace=True)
    original = smaller.history.original
    assert not any(isinstance(value, torch.Tensor) for value in vars(original).values())
    assert "figures" not in vars(original)
    figures = original.figures
    assert (figures.flops, figures.kmapp, figures.parameters) == (before.total, before.kmapp, parameters)
    assert figures.widths == {"0": 16, "2": 24, "4": 4}
