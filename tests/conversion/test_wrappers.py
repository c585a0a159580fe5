"""What stands around models and functions: parallel and compiled modules, scripted parts, profilers, caches."""

import functools

import pytest
import torch
from torch import nn

import torchorbit
from tests.models import Computes, assert_converts, assert_same, outcome

X = torch.randn(2, 6, 8)


def small():
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()


@pytest.mark.parametrize(
    "wrapped", [nn.DataParallel, torch.compile, lambda model: torch.compile(nn.DataParallel(model))]
)
def test_a_wrapped_model_is_the_model_inside(wrapped):
    model = small()
    dag = torchorbit.convert(wrapped(model), X)
    assert list(dag.state_dict()) == list(model.state_dict())
    assert_same(outcome(dag, X), outcome(model, X))


def test_a_compiled_part_is_recorded_like_any_other():
    inner = small()
    model = nn.Sequential(nn.Linear(8, 8), torch.compile(inner)).eval()
    dag = torchorbit.convert(model, X)
    assert list(dag.state_dict()) == list(model.state_dict())
    assert_same(outcome(dag, X), inner(model[0](X)))


@pytest.mark.parametrize("made", [torch.jit.script, lambda model: torch.jit.trace(model, X)], ids=["script", "trace"])
@pytest.mark.parametrize("part", [False, True])
def test_what_is_scripted_or_traced_is_refused_with_what_to_do(made, part):
    model = nn.Sequential(nn.Linear(8, 8), made(small())) if part else made(small())
    with pytest.raises(torchorbit.ConversionError, match="give the module it was made from") as raised:
        torchorbit.convert(model, X)
    assert raised.value.module == ("1" if part else "")


def test_an_exported_program_is_refused_with_what_to_do():
    with pytest.raises(torchorbit.ConversionError, match="convert the module from which it was exported"):
        torchorbit.convert(torch.export.export(small(), (X,)).module(), X)


def test_packed_sequences_are_refused_with_what_to_do():
    def packed(m, x, lengths):
        sequences = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
        return nn.utils.rnn.pad_packed_sequence(m.layer(sequences)[0], batch_first=True)[0]

    model = Computes(packed, layer=nn.LSTM(8, 4, batch_first=True))
    with pytest.raises(torchorbit.ConversionError, match="give them padded"):
        torchorbit.convert(model, (X, torch.tensor([6, 3])))


def test_a_part_that_is_profiled_converts():
    def profiled(m, x):
        with torch.profiler.record_function("inner"):
            return m.inner(x)

    assert_converts(Computes(profiled, inner=small()), X)


@torch.jit.script
def scripted(x):
    return x * 2 + 1


def test_a_scripted_function_is_the_python_that_it_was_made_from():
    assert_converts(lambda x: scripted(x) + 1, X)


@functools.lru_cache
def positions(length):
    return torch.arange(length) * 1.0


@functools.cache
def names(number):
    return [f"layer {position}" for position in range(number)]


class Missing:
    """Stands for a package that is not installed, and says so whatever it is asked."""

    def __getattribute__(self, name):
        raise ImportError(f"no package, no {name}")


missing = Missing()


class Cached(nn.Module):
    @staticmethod
    @functools.lru_cache
    def scales(length):
        return torch.linspace(0, 1, length)

    def forward(self, x):
        return x * positions(x.shape[-1]) + self.scales(x.shape[-1]).mean()


def test_cached_functions_keep_no_tensor_of_a_recording():
    positions(8)
    model = Cached()
    assert_converts(model, X, torch.randn(3, 6, 8))
    assert_converts(model, X[0])  # of the same length in all recordings
    assert positions(8).device.type == "cpu"
    assert model(X).device.type == "cpu"
    kept = names(3)
    torchorbit.convert(model, X)
    assert names(3) is kept


def test_nodes_and_edges_of_a_graph_vary_by_themselves():
    def message(m, nodes, edges):
        source, target = edges
        found = m.layer(torch.cat([nodes[source], nodes[target]], 1))
        return torch.zeros_like(nodes).index_add(0, target, found)

    model = Computes(message, layer=nn.Linear(16, 8))
    example = torch.randn(10, 8), torch.randint(0, 2, (2, 22))
    assert_converts(model, example, (torch.randn(7, 8), torch.randint(0, 7, (2, 30))))


def test_keyword_inputs_come_in_any_order():
    def joined(m, x, *, tokens, scale):
        return m.image(x).flatten(2).mT + m.text(tokens).mean(1, keepdim=True) * scale[:, None, None]

    model = Computes(joined, image=nn.Conv2d(3, 8, 4, 4), text=nn.Linear(5, 8)).eval()
    inputs = {"x": torch.randn(2, 3, 16, 16), "tokens": torch.randn(2, 6, 5), "scale": torch.rand(2)}
    dag = torchorbit.convert(model, inputs)
    assert dag.provenance.free_lengths
    other = {"scale": torch.rand(3), "tokens": torch.randn(3, 6, 5), "x": torch.randn(3, 3, 16, 16)}
    assert_same(outcome(dag, other), outcome(model, other))
    fixed = Computes(lambda x, *, y: torch.cat((x.view(6, 4), y.view(6, 8)), 1))
    graph = torchorbit.convert(fixed, {"y": torch.randn(6, 8), "x": torch.randn(6, 4)})
    assert graph(y=torch.randn(6, 8), x=torch.randn(6, 4)).shape == (6, 12)
