"""The public names: what a user may rely on, listed here so that none comes or goes unnoticed."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest

import torchorbit

TOP = """
    Bounds CheckpointError ConversionError DagModule HubError Orbit Orbits Scores Target TorchorbitError __version__
    calibrate convert criteria edit errors explain find_orbits finetune_batch_norm flops fold_parametrizations
    from_pretrained inspect latency load plan prune reconstruct remove_channels rules selectors transforms verify_removal
"""
NAMED = {
    "cost": "AdditiveCost CostFunction Flops FlopsCost ParametersCost PredictedCost",
    "criteria": """
        APoZ ActivationCriterion ActivationNorm BatchNormScale CRITERIA Calibrator Criterion Description Fisher
        FisherNoise FisherWeights GeometricMedian GradientCriterion L1 L2 Lamp LossCriterion Losses Magnitude MaskedLoss Place Random
        Sensitivity Shapley Taylor TaylorWeights WeightCriterion WeightNorm default_sample_to_model_inputs
        default_sample_to_n_samples describe from_description
    """,
    "edit": "group insert_after replace_layers users",
    "errors": """
        ArgumentError ArgumentIndexError ArgumentKeyError ArgumentTypeError CalibrationError CheckpointError
        ConversionError GraphRunError HubError InternalError LatencyMeasurementError LookupTableError MissingExtraError
        PlanError ScoresError ShadowedPackageError TargetError TorchorbitError
    """,
    "inspect": """
        FrozenGroup FrozenGroups Member ModuleDependencies OrbitDependencies Reason Slice UnitDependencies UnitSlices
        compare_module_outputs frozen_groups module_dependencies module_of_vertex unit_dependencies unit_slices
        vertices_of_module
    """,
    "latency": """
        LatencyMeasurementError LookupCheck LookupTable LookupTableError MeasuredLatency OnnxRuntimeLatency Seconds
        export_onnx timed
    """,
    "rules": "Dim Labelled Operands Reading check_rule register_rule",
    "selectors": """
        Bounds CONSTRAINTS Constraint Description EnotBounds Global Knapsack Optimal Overrides Ratios Removed SELECTORS
        ScboOptions Selector Task Uniform WidthSelector describe from_description
    """,
}
PLACES = ["", *NAMED]


def module(name: str) -> Any:
    return importlib.import_module(f"torchorbit.{name}" if name else "torchorbit")


def expected(name: str) -> list[str]:
    return (NAMED[name] if name else TOP).split()


def public(name: str) -> list[str]:
    """What a module says that it has; of one that only defines, what it defines."""
    found = module(name)
    if hasattr(found, "__all__"):
        return list(found.__all__)
    return [key for key, value in vars(found).items() if getattr(value, "__module__", "") == found.__name__]


@pytest.mark.parametrize("name", PLACES)
def test_the_names_are_these_and_no_others(name: str) -> None:
    assert expected(name) == sorted(expected(name)), "this list is sorted"
    assert sorted(public(name)) == expected(name)


@pytest.mark.parametrize(("name", "key"), [(name, key) for name in PLACES for key in expected(name)])
def test_every_name_is_there_and_says_what_it_is(name: str, key: str) -> None:
    value = getattr(module(name), key)
    if inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value):
        text = value.__doc__ or ""
        assert text.strip()
        assert not text.startswith(f"{key}("), "dataclasses write one like that themselves"


def methods() -> list[Any]:
    classes = {
        value: f"{name}.{key}"
        for name in PLACES
        for key in expected(name)
        if inspect.isclass(value := getattr(module(name), key)) and value.__module__.startswith("torchorbit.")
    }
    return [
        pytest.param(member, id=f"{where}.{key}")
        for kind, where in classes.items()
        for key, member in vars(kind).items()
        if not key.startswith("_") and (inspect.isroutine(member) or isinstance(member, (property, classmethod)))
    ]


@pytest.mark.parametrize("member", methods())
def test_every_public_method_says_what_it_does(member: Any) -> None:
    assert inspect.getdoc(member)


@pytest.mark.parametrize("name", PLACES)
def test_arguments_are_described_where_there_are_several(name: str) -> None:
    for key in expected(name):
        function = getattr(module(name), key)
        if inspect.isfunction(function) and len(inspect.signature(function).parameters) > 1:
            text = inspect.getdoc(function) or ""
            assert "Args:" in text, key
            section = text.partition("Args:")[2]
            for argument in inspect.signature(function).parameters:
                assert f"\n    {argument}:" in section or f"\n    *{argument}:" in section or f"\n    **{argument}:" in section, (key, argument)  # fmt: skip


def test_the_stub_says_where_each_name_is_and_is_right() -> None:
    stub = ast.parse((Path(torchorbit.__file__).parent / "__init__.pyi").read_text(encoding="utf-8"))
    named: dict[str, Any] = {}
    for node in stub.body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                path = "torchorbit" + (f".{node.module}" if node.module else "")
                source = importlib.import_module(path if node.module else f"{path}.{alias.name}")
                named[alias.asname or alias.name] = getattr(source, alias.name) if node.module else source
    assert sorted(named) == expected("")
    for key, value in named.items():
        assert getattr(torchorbit, key) is value
    assert set(expected("")) <= set(dir(torchorbit))


def test_a_name_that_there_is_not_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="pruning_plan"):
        torchorbit.pruning_plan  # noqa: B018
