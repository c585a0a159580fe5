"""Operators that are declared by torch's schema of them."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchorbit
from tests.models import Computes, assert_converts, operators
from tests.operators.schema_cases import CASES, X
from tests.orbits.helpers import kinds
from torchorbit.graph.loading import unpack
from torchorbit.graph.saving import pack
from torchorbit.operators import OPERATORS


def test_every_operator_that_a_schema_declares_has_a_case():
    assert {name for name, row in OPERATORS.items() if row.of_schema} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_a_call_becomes_the_operator_and_computes_the_same(name):
    example, function = CASES[name]
    assert name in operators(assert_converts(function, example))


def between_layers(function):
    return Computes(
        lambda self, x: self.d(function(self.c(self.b(self.a(x))))),
        a=nn.Linear(6, 8), b=nn.Linear(8, 7), c=nn.Linear(7, 6), d=nn.Linear(6, 5),
    )  # fmt: skip


def test_what_no_rule_knows_freezes_what_it_touches_and_is_reported():
    model = between_layers(lambda x: x - torch.quantile(x, 0.5, dim=-1, keepdim=True)).double()
    dag = torchorbit.convert(model.eval(), X.double())
    orbits = torchorbit.find_orbits(dag)
    assert orbits.unruled == ("quantile",)
    assert kinds(orbits) == [(7, 0), (8, 0)]
    frozen = torchorbit.inspect.frozen_groups(orbits)
    assert any(
        reason.kind == "no rule" and "the operator quantile of 'quantile' has no rule" in reason.text
        for group in frozen
        for reason in group.reasons
    )
    removed = {orbit: range(1, orbit.width) for orbit in orbits}
    pruned = torchorbit.remove_channels(dag, removed)
    assert torchorbit.verify_removal(dag, pruned, removed, X.double()) < 1e-12


def test_a_loss_is_reported_as_an_operator_that_needs_everything():
    model = Computes(
        lambda self, x: F.mse_loss(self.b(self.a(x)), self.c(x)),
        a=nn.Linear(6, 8),
        b=nn.Linear(8, 6),
        c=nn.Linear(6, 6),
    )
    orbits = torchorbit.find_orbits(torchorbit.convert(model.eval(), X))
    assert orbits.unruled == ()
    assert kinds(orbits) == [(8, 0)]
    reasons = [reason for group in torchorbit.inspect.frozen_groups(orbits) for reason in group.reasons]
    assert "operator" in {reason.kind for reason in reasons}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"operator": "from_file"}, "from_file"),
        ({"operator": "_standard_gamma"}, "_standard_gamma"),
        ({"q": "half"}, "argument 'q' is 'half', expected tensor or number"),
        ({"dim": 2.5}, "argument 'dim' is 2.5, expected int or none"),
        ({"out": 1}, "takes the arguments"),
        ({"q": None}, "argument 'q' is None"),
    ],
)
def test_a_file_holds_no_operator_beside_the_list_and_no_argument_beside_its_schema(change, message):
    dag = torchorbit.convert(Computes(lambda x: torch.quantile(x, 0.5, dim=1)), X)
    document, tensors = pack(dag)
    document = json.loads(json.dumps(document))
    (vertex,) = [vertex for vertex in document["root"]["vertices"] if vertex.get("operator") == "quantile"]
    if "operator" in change:
        vertex.update(change)
    else:
        vertex["args"].update(change)
    with pytest.raises(torchorbit.CheckpointError, match=message):
        unpack(document, tensors)


def test_a_way_of_reducing_is_always_written():
    """torch's own functions take another one where none is given than torch's schemas say."""
    dag = torchorbit.convert(Computes(lambda x: F.mse_loss(x, x + 1)), X)
    (vertex,) = [vertex for vertex in dag.flatten().graph.vertices if getattr(vertex, "operator", "") == "mse_loss"]
    assert vertex.args["reduction"] == 1
