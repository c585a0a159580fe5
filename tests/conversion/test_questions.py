"""What a model asks of its tensors while it is recorded: numbers, truth values, positions."""

import math

import pytest
import torch
from torch import nn

import torchorbit
from tests.models import Computes, assert_converts, assert_same, operators, outcome, reloaded

X = torch.randn(2, 6, 8)


def strided(m, x):
    cells = x.new_full((x.shape[1] * 2, 1), m.strides[1])[: x.shape[1]]
    for _ in range(m.number):
        x = m.layer(x)
    return x * int(m.number) + cells * m.strides[0].item()


def test_numbers_that_buffers_hold_are_constants():
    layer = nn.Linear(8, 8)
    model = Computes(strided, layer=layer, number=torch.tensor(3), strides=torch.tensor([8.0, 16.0]))
    dag = assert_converts(model, X, torch.randn(3, 9, 8))
    assert "check" not in operators(dag)
    assert dag.provenance.free_lengths


def test_plain_tensors_and_numbers_in_lists_are_known():
    model = Computes(lambda m, x: x * m.scales[1] + float(m.table["bias"]), layer=nn.Identity())
    model.scales = [torch.tensor(2.0), torch.tensor(3.0)]
    model.table = {"bias": torch.tensor(0.5)}
    assert_converts(model, X)


KEEP = torch.tensor([True, False, True, True, False, False, True, False])


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: x[..., m.keep],
        lambda m, x: x[..., m.keep.nonzero()[:, 0]],
        lambda m, x: x[..., torch.where(m.keep)[0]],
        lambda m, x: x[:, :4][..., m.keep.nonzero(as_tuple=True)[0]],
        lambda m, x: x * m.keep.unique().numel() + m.keep.tolist().count(True),
        lambda m, x: x * 2 if 1 in m.keep else x,
        lambda m, x: x * (2 if torch.equal(m.keep, ~m.keep) else 3),
        lambda m, x: x * max(m.keep.sum(), torch.tensor(2)),
    ],
    ids=["mask", "nonzero", "where", "as_tuple", "unique", "contains", "equal", "maximum"],
)
def test_positions_and_answers_that_no_input_decides_are_constants(function):
    dag = assert_converts(Computes(function, keep=KEEP), X)
    assert "check" not in operators(dag)


def test_an_answer_that_sizes_decide_is_asked_again():
    def few(x):
        return x * 2 if (torch.arange(x.shape[1]) < 100).all() else x

    dag = assert_converts(few, X, torch.randn(3, 90, 8))
    assert "check" in operators(dag)
    with pytest.raises(torchorbit.errors.GraphRunError, match="another path"):
        dag(torch.randn(2, 200, 8))


def test_tensors_made_of_sizes_are_computed():
    def scaled(x):
        return x * torch.tensor(x.shape[1]) / torch.tensor([x.shape[1], 2.0]).sum() + torch.as_tensor(x.shape[2] / 2)

    assert_converts(scaled, X, torch.randn(3, 7, 8))


def padded(x, mask):
    if mask.all():
        return x * 2
    return x * mask.unsqueeze(-1)


@pytest.mark.parametrize("full", [True, False])
def test_the_example_inputs_decide_and_others_are_refused(full):
    masks = torch.ones(2, 6, dtype=torch.bool), torch.ones(2, 6, dtype=torch.bool)
    masks[1][1, 3:] = False
    ours, theirs = masks if full else masks[::-1]
    model = Computes(padded)
    dag = torchorbit.convert(model, (X, ours))
    again = reloaded(dag)
    for graph in (dag, again):
        assert_same(outcome(graph, (X, ours)), outcome(model, (X, ours)))
        with pytest.raises(torchorbit.errors.GraphRunError, match="other values"):
            graph(X, theirs)


def test_a_branch_after_layers_is_decided_by_running_them():
    torch.manual_seed(0)

    def early(m, x):
        y = m.first(x)
        return m.head(y) if y.mean() > 5 else m.head(m.second(y))

    model = Computes(early, first=nn.Linear(8, 8), second=nn.Linear(8, 8), head=nn.Linear(8, 3)).eval()
    shallow = torch.full((2, 6, 8), 100.0) * model.first.weight.sum(0)
    deep = X
    for x in (shallow, deep):
        dag = torchorbit.convert(model, x)
        assert_same(outcome(dag, x), outcome(model, x))
    assert outcome(model, shallow).shape == outcome(model, deep).shape
    with pytest.raises(torchorbit.errors.GraphRunError, match="other values"):
        dag(shallow)


def test_what_parameters_answer_is_asked_again_for_they_are_trained():
    def gated(m, x):
        return x * 2 if m.gate.sum() > 0 else x

    model = Computes(gated, gate=nn.Parameter(torch.ones(3)))
    dag = assert_converts(model, X)
    with torch.no_grad():
        dag.gate.sub_(2)
    with pytest.raises(torchorbit.errors.GraphRunError, match="other values"):
        dag(X)
    with pytest.raises(torchorbit.ConversionError, match="compute with the tensor itself"):
        torchorbit.convert(Computes(lambda m, x: x * m.gate.max().item(), gate=nn.Parameter(torch.ones(3))), X)


def test_inputs_and_weights_on_meta_cannot_answer():
    with pytest.raises(torchorbit.ConversionError, match="give example inputs with values"):
        torchorbit.convert(Computes(padded), (X, torch.ones(2, 6, dtype=torch.bool, device="meta")))
    with torch.device("meta"):
        model = Computes(lambda m, x: x if m.flag else -x, flag=torch.tensor(1))
    with pytest.raises(torchorbit.ConversionError, match="give the model weights"):
        torchorbit.convert(model, X)


def test_a_model_that_asks_whether_it_is_compiled_is_told_so():
    def compiled(x):
        if not torch.compiler.is_compiling() and x.max() > 100:
            return -x
        return x * 2

    assert not torch.compiler.is_compiling()
    dag = torchorbit.convert(Computes(compiled), X)
    assert operators(dag) == ["mul"]
    assert not torch.compiler.is_compiling()


def test_torchs_own_transformer_converts_with_a_causal_mask():
    def translated(m, source, target):
        return m.model(source, target, tgt_mask=nn.Transformer.generate_square_subsequent_mask(target.shape[1]))

    model = Computes(translated, model=nn.Transformer(8, 2, 1, 1, 16, batch_first=True))
    assert_converts(model, (X, torch.randn(2, 4, 8)))


class ClampsWhatIsNotFinite(nn.Module):
    """As encoders of detectors do while they are trained."""

    def __init__(self, rate):
        super().__init__()
        self.layer, self.dropout = nn.Linear(8, 8), nn.Dropout(rate)

    def forward(self, x):
        x = self.dropout(self.layer(x)) + nn.functional.dropout(x, self.dropout.p, self.training)
        if self.training and not torch.isfinite(x).all():
            x = x.clamp(-1e30, 1e30)
        return x


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_a_question_of_training_alone_is_asked_in_training_alone(rate):
    source = ClampsWhatIsNotFinite(rate)
    dag = torchorbit.convert(source.eval(), X)
    assert dag.provenance.mode == "both"
    worst = X.clone()
    worst[0, 0, 0] = torch.inf
    assert_same(outcome(dag.eval(), X), outcome(source, X))
    assert_same(outcome(dag, worst), outcome(source, worst))
    assert_same(outcome(dag.train(), X), outcome(source.train(), X))
    with pytest.raises(torchorbit.errors.GraphRunError, match="another path"):
        outcome(dag, worst)


def test_a_model_that_cannot_be_compiled_is_recorded_as_it_runs():
    def unlike(m, x):
        if torch.compiler.is_compiling():
            return x.view(-1, 5)  # of no size that fits
        return m.layer(x) if x.isfinite().all() else x

    dag = assert_converts(Computes(unlike, layer=nn.Linear(8, 8)), X)
    assert "check" in operators(dag)
    with pytest.raises(torchorbit.ConversionError, match="shape"):
        torchorbit.convert(Computes(lambda x: x.view(-1, 5)), X)


def test_what_a_buffer_answers_that_the_model_changes_is_refused():
    def queued(m, x):
        at = int(m.at)
        m.queue[at] = x.detach().mean((0, 1))
        m.at.add_(1).remainder_(4)
        return x + m.queue.mean(0)

    model = Computes(queued, queue=torch.zeros(4, 8), at=torch.tensor(0))
    with pytest.raises(torchorbit.ConversionError, match="'at', which it changes itself"):
        torchorbit.convert(model, X)


# -- several examples


WHOLE = torch.ones(2, 6, dtype=torch.bool)
CUT = WHOLE.clone()
CUT[1, 3:] = False


def test_other_examples_of_other_sizes_on_the_same_path_convert():
    model = Computes(padded)
    others = [(torch.randn(3, 9, 8), torch.ones(3, 9, dtype=torch.bool)), [X[:1], WHOLE[:1]]]
    dag = torchorbit.convert(model, (X, WHOLE), other_examples=others)
    for example in others:
        assert_same(dag(*example), model(*example))


@pytest.mark.parametrize(("ours", "theirs"), [(WHOLE, CUT), (CUT, WHOLE)])
def test_another_example_that_answers_otherwise_is_refused_with_the_line_that_asks(ours, theirs):
    inner = Computes(padded)
    model = Computes(lambda m, x, mask: m.inner(x, mask), inner=inner)
    line = padded.__code__.co_firstlineno + 1
    with pytest.raises(torchorbit.ConversionError, match=r"other_examples\[1\].*convert once for each") as raised:
        torchorbit.convert(model, (X, ours), other_examples=[(X, ours), (X, theirs)])
    error = raised.value
    assert (error.stage, error.module, error.operator) == ("reconcile", "inner", "__bool__")
    assert error.line == f"{__file__}:{line}"
    assert f"{not bool(ours.all())} where it is {bool(ours.all())}" in error.reason


def test_another_example_of_a_size_that_takes_another_path_is_refused_with_its_line():
    def long(x):
        if x.shape[1] > 20:
            return x.cos()
        return x.sin()

    with pytest.raises(torchorbit.ConversionError, match="another path at") as raised:
        torchorbit.convert(Computes(long), X, other_examples=[torch.randn(2, 21, 8)])
    assert raised.value.line is not None
    assert raised.value.line.startswith(f"{__file__}:")
    torchorbit.convert(Computes(long), X, other_examples=[torch.randn(2, 20, 8)])


@pytest.mark.parametrize(
    ("function", "other", "reason"),
    [
        (lambda x: x * torch.ones(6, 8), torch.randn(2, 1, 8), "size is fixed"),
        (lambda x: x * (x.shape[0] ** 0.5 + math.sqrt(x.shape[0])), torch.randn(5, 6, 8), "batch size is fixed"),
        (lambda x: x if x.shape[1] < 9 else x * 1, torch.randn(2, 10, 8), "at the end"),
        (lambda x: x * max(x.shape[1], 4), torch.randn(2, 3, 8), "other sizes"),
        (lambda x: x.reshape(2, 6, 8), torch.randn(2, 7, 8), "shape"),
    ],
)
def test_another_example_whose_size_the_graph_would_refuse_is_refused(function, other, reason):
    with pytest.raises(torchorbit.ConversionError, match=reason) as raised:
        torchorbit.convert(Computes(function), X, other_examples=[other])
    assert "other_examples[0]" in str(raised.value)


def test_other_examples_that_are_not_like_the_first_are_refused():
    model = Computes(padded)
    with pytest.raises(torchorbit.errors.ArgumentTypeError, match="expected a list of examples"):
        torchorbit.convert(model, (X, WHOLE), other_examples=X)
    for other in ((X,), {"x": X, "mask": WHOLE}, (X, WHOLE[0]), (X, 3)):
        with pytest.raises(torchorbit.errors.ArgumentError, match=r"other_examples\[0\] is .*expected the form"):
            torchorbit.convert(model, (X, WHOLE), other_examples=[other])
    with pytest.raises(torchorbit.errors.ArgumentTypeError, match=r"other_examples\[1\] is"):
        torchorbit.convert(model, (X, WHOLE), other_examples=[(X, WHOLE), 3])


def test_other_examples_and_weights_on_meta_cannot_answer_questions_of_values():
    with pytest.raises(torchorbit.ConversionError, match=r"other_examples\[0\].*with values"):
        torchorbit.convert(Computes(padded), (X, WHOLE), other_examples=[(X, WHOLE.to("meta"))])
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    torchorbit.convert(model, X.to("meta"), other_examples=[torch.empty(3, 9, 8, device="meta")])


class DependsOnValues(nn.Module):
    def forward(self, x):
        return x * x[x > 0].sum()


def test_what_is_kept_whole_and_does_not_run_on_meta_is_said():
    model = nn.Sequential(nn.Linear(8, 8), DependsOnValues())
    with pytest.warns(UserWarning, match="'_1', which is kept whole"):
        torchorbit.convert(model, X, other_examples=[torch.randn(3, 6, 8)], atomic=[DependsOnValues])


def test_a_model_is_left_as_it_was_by_other_examples_that_are_refused():
    model = Computes(lambda m, x, mask: padded(m.norm(x), mask), norm=nn.BatchNorm1d(6)).train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(torchorbit.ConversionError):
        torchorbit.convert(model, (X, WHOLE), other_examples=[(X, CUT)])
    torchorbit.convert(model, (X, WHOLE), other_examples=[(X, WHOLE)])
    assert_same(dict(model.state_dict()), state)
    assert all(module.training for module in model.modules())
