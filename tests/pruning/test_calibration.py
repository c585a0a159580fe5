"""Calibration: what runs, what is left as it was, and what is refused."""

import copy
import gc
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import torchorbit
from tests.models import Computes, assert_same, stir
from tests.numerics import in_float64
from tests.orbits.helpers import the
from tests.pruning.gated import MODELS, Attention, Chain, Concat, Residual, data, loss_of, made, mean_loss
from torchorbit import Scores
from torchorbit.criteria import CRITERIA, Shapley
from torchorbit.orbits.selection import Selection
from torchorbit.removal.masked import masked_run

pytestmark = pytest.mark.numeric

PER_SAMPLE = ("activation_norm", "apoz", "fisher", "sensitivity", "shapley", "taylor")


def assert_equal_scores(ours, theirs, tolerance=1e-9):
    assert ours.keys() == theirs.keys()
    for key, scores in ours.items():
        for orbit in scores.orbits:
            there = theirs[key][theirs[key].orbits[orbit.index]]
            assert np.abs(scores[orbit] - there).max() <= tolerance * max(np.abs(there).max(), 1e-300), (key, orbit)


def scored(dag, batches, criteria=PER_SAMPLE, **options):
    return torchorbit.calibrate(dag, batches, options.pop("loss", mean_loss), criteria, **options)


# -- what the scores are of


@pytest.mark.parametrize("kind", MODELS, ids=lambda kind: kind.__name__)
def test_scores_do_not_depend_on_how_samples_are_put_together_in_batches(kind):
    _, dag, orbits = made(kind)
    images, labels = data()
    whole = scored(dag, [(images, labels)], ("taylor", "fisher", "sensitivity", "apoz"), orbits=orbits)
    parts = [(images[a:b], labels[a:b]) for a, b in ((0, 3), (3, 4), (4, 8))]
    assert_equal_scores(scored(dag, parts, whole.keys(), orbits=orbits), whole)
    assert all(scores.samples == 8 for scores in whole.values())
    apart = [scored(dag, [part], whole.keys(), orbits=orbits) for part in parts]
    assert_equal_scores({key: apart[0][key].merged(apart[1][key], apart[2][key]) for key in whole}, whole)


def test_a_mean_a_sum_and_a_loss_for_each_sample_are_the_same():
    _, dag, orbits = made(Residual)
    every = [*PER_SAMPLE, "taylor_weights", "fisher_weights"]
    batch = data()
    mean = scored(dag, [batch], every, orbits=orbits)
    each = scored(dag, [batch], every, orbits=orbits, loss=loss_of)
    total = scored(dag, [batch], every, orbits=orbits, loss=lambda o, b: loss_of(o, b).sum(), loss_reduction="sum")
    assert_equal_scores(each, mean)
    assert_equal_scores(total, mean)


def test_epochs_and_steps_say_how_many_batches_are_taken():
    _, dag, orbits = made(Chain)
    batches = [data(3), data(2), data(4)]
    twice = scored(dag, batches, "taylor", orbits=orbits, epochs=2)
    assert twice["taylor"].samples == 18
    assert_equal_scores(twice, scored(dag, batches, "taylor", orbits=orbits))
    assert scored(dag, batches, "taylor", orbits=orbits, epochs=2, max_batches=4)["taylor"].samples == 12


def test_samples_are_told_apart_where_windows_and_heads_are_folded_into_the_batch():
    def forward(m, x):
        n = x.shape[0]
        windows = m.embed(x).unflatten(1, (2, 4)).flatten(0, 1)  # (batch * windows, tokens, channels)
        q, k = (layer(windows).unflatten(-1, (2, 3)).transpose(1, 2).flatten(0, 1) for layer in (m.q, m.k))
        out = torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), q)  # (batch * windows * heads, ...)
        out = out.unflatten(0, (2 * n, 2)).transpose(1, 2).flatten(2)
        return m.head(m.proj(out).reshape(n, 8, 5).mean(1))

    layers = {"embed": nn.Linear(2, 5), "q": nn.Linear(5, 6), "k": nn.Linear(5, 6), "proj": nn.Linear(6, 5)}
    model = stir(Computes(forward, **layers, head=nn.Linear(5, 3))).double().eval()
    images, labels = torch.randn(6, 8, 2, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    dag = torchorbit.convert(model, images[:2])
    whole = scored(dag, [(images, labels)])
    assert {orbit.kind for orbit in whole["taylor"]} == {"channels", "groups"}
    singles = [(images[n : n + 1], labels[n : n + 1]) for n in range(6)]
    criteria = [name for name in PER_SAMPLE if name != "shapley"]
    assert_equal_scores(scored(dag, singles, criteria), {name: whole[name] for name in criteria})


def test_what_is_made_of_parameters_alone_has_scores_of_the_mean_loss():
    """A weight that is a product of two: the inner dimension is an orbit, and no sample passes there."""
    model = Computes(
        lambda m, x: m.head(F.relu(F.linear(x, m.first @ m.second))),
        first=nn.Parameter(torch.randn(4, 3)), second=nn.Parameter(torch.randn(3, 6)), head=nn.Linear(4, 3),
    ).double().eval()  # fmt: skip
    x, labels = torch.randn(5, 6, dtype=torch.float64), torch.tensor([0, 2, 1, 1, 0])
    dag = torchorbit.convert(model, x[:2])
    orbits = torchorbit.find_orbits(dag)
    inner = the(orbits, "second")
    scores = scored(dag, [(x, labels)], ["taylor", "fisher"], orbits=orbits)
    gate = torch.ones(3, dtype=torch.float64, requires_grad=True)
    F.cross_entropy(model.head(F.relu(F.linear(x, (model.first * gate) @ model.second))), labels).backward()
    assert scores["taylor"][inner] == pytest.approx(gate.grad.abs().numpy(), rel=1e-12)
    assert scores["fisher"][inner] == pytest.approx(gate.grad.square().numpy() / 2, rel=1e-12)


def test_parameters_and_inputs_without_gradients_make_no_difference():
    _, dag, orbits = made(Attention)
    batch = data()
    every = [name for name in CRITERIA if name != "shapley"]
    wanted = scored(dag, [batch], every, orbits=orbits)
    dag.requires_grad_(False)
    assert_equal_scores(scored(dag, [batch], every, orbits=orbits), wanted)
    assert not any(parameter.requires_grad for parameter in dag.parameters())


def test_several_inputs_by_name_and_several_outputs():
    def forward(m, image, scale):
        x = F.relu(m.a(image)) * scale
        return {"logits": m.b(x), "others": (x.mean(1),)}

    model = Computes(forward, a=nn.Linear(3, 4), b=nn.Linear(4, 2)).eval()
    x, scale = torch.randn(6, 3), torch.rand(6, 1)
    dag = torchorbit.convert(model, {"image": x, "scale": scale})
    batch = {"image": x, "scale": scale, "label": torch.tensor([0, 1, 1, 0, 1, 1])}
    scores = torchorbit.calibrate(
        dag, [batch], lambda out, b: F.cross_entropy(out["logits"], b["label"]), "taylor",
        sample_to_model_inputs=lambda b: ((), {"image": b["image"], "scale": b["scale"]}),
    )  # fmt: skip
    assert scores["taylor"].samples == 6
    assert all(values.any() for values in scores["taylor"].values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_is_close_to_full(dtype):
    model, _, _ = made(Attention)
    model = model.float()
    dag = torchorbit.convert(model, data(2)[0].float())
    images, labels = data()
    batch = images.float(), labels
    every = [name for name in CRITERIA if name != "shapley"]
    full, mixed = scored(dag, [batch], every), scored(dag, [batch], every, autocast=dtype)
    for name in every:
        ours = np.concatenate(list(mixed[name].values()))
        theirs = np.concatenate(list(full[name].values()))
        assert np.corrcoef(ours, theirs)[0, 1] > 0.99, name


# -- the context manager


def test_a_loop_of_ones_own_gives_the_scores_of_calibrate():
    model, dag, orbits = made(Residual)
    batches = [data(5), data(3)]
    every = [name for name in CRITERIA if name != "shapley"]
    with torchorbit.criteria.Calibrator(dag, every, orbits=orbits) as calibrator:
        for images, labels in batches:
            output = dag(images)
            assert_same(output, model(images))
            F.cross_entropy(output, labels).backward()
    assert_equal_scores(calibrator.scores, scored(dag, batches, every, orbits=orbits))


def test_gradients_of_parameters_are_those_of_a_loop_without_calibrator():
    model, dag, _ = made(Attention)
    images, labels = data()
    F.cross_entropy(model(images), labels).backward()
    wanted = [parameter.grad.clone() for parameter in model.parameters()]
    dag.zero_grad()
    with torchorbit.criteria.Calibrator(dag, ["taylor", "fisher_weights"]):
        F.cross_entropy(dag(images), labels).backward()
    for parameter, grad in zip(dag.parameters(), wanted, strict=True):
        assert_same(parameter.grad, grad)


def test_backwards_of_one_forward_add_up():
    _, dag, orbits = made(Residual)
    images, labels = data()
    with torchorbit.criteria.Calibrator(
        dag, ["taylor", "fisher", "taylor_weights", "fisher_weights"], orbits=orbits
    ) as parts:
        losses = loss_of(dag(images), (images, labels))
        (losses[:3].sum() / 8).backward(retain_graph=True)
        (losses[3:].sum() / 8).backward()
    wanted = scored(dag, [(images, labels)], list(parts.criteria), orbits=orbits)
    assert_equal_scores(parts.scores, wanted)


def test_backwards_may_come_after_several_forwards():
    _, dag, orbits = made(Chain)
    first, second = data(5), data(3)
    with torchorbit.criteria.Calibrator(dag, "fisher", orbits=orbits) as calibrator:
        losses = [F.cross_entropy(dag(images), labels) for images, labels in (first, second)]
        losses[1].backward()
        losses[0].backward()
    assert_equal_scores(calibrator.scores, scored(dag, [first, second], "fisher", orbits=orbits))


def test_a_backward_after_the_scores_were_taken_is_refused():
    _, dag, _ = made(Chain)
    images, labels = data()
    with torchorbit.criteria.Calibrator(dag, "taylor") as calibrator:
        loss = F.cross_entropy(dag(images), labels)
        loss.backward(retain_graph=True)
        assert calibrator.scores["taylor"].samples == 8
        with pytest.raises(torchorbit.errors.CalibrationError, match="before the next forward"):
            loss.backward()


def test_the_modes_are_those_of_the_graph_at_every_call():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5))
            self.head = nn.Linear(6, 2)

        def forward(self, x):
            return self.head(F.dropout(self.block(x), 0.3, self.training))

    model = stir(Noisy()).eval()
    dag = torchorbit.convert(model, torch.randn(4, 4))
    x = torch.randn(8, 4)
    with torchorbit.criteria.Calibrator(dag, "apoz"):
        assert_same(dag(x), model(x))
        dag.train()
        model.train()
        twin = copy.deepcopy(model)
        torch.manual_seed(1)
        ours = dag(x)
        torch.manual_seed(1)
        assert_same(ours, twin(x))
        dag.block.eval()
        twin.block.eval()
        torch.manual_seed(1)
        ours = dag(x)
        torch.manual_seed(1)
        assert_same(ours, twin(x))
    assert torch.equal(dag.get_submodule("block.1").running_mean, twin.block[1].running_mean)


def snapshot(dag):
    return {
        path: (dict(vars(module)), dict(module._parameters), dict(module._buffers), dict(module._modules),
               dict(module._forward_hooks), dict(module._forward_pre_hooks), module.training)
        for path, module in dag.named_modules()
    }  # fmt: skip


@pytest.mark.parametrize("raises", [False, True])
def test_on_leaving_the_graph_is_as_it_was(raises):
    _, dag, _ = made(Attention)
    before = snapshot(dag)
    images, labels = data()
    try:
        with torchorbit.criteria.Calibrator(dag, ["taylor", "apoz", "fisher_weights"]):
            torch.autograd.grad(F.cross_entropy(dag(images), labels), dag.parameters())
            if raises:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    after = snapshot(dag)
    assert before.keys() == after.keys()
    for path in before:
        ours, theirs = (dict(at[path][0]) for at in (before, after))
        ours.pop("_levels", None), theirs.pop("_levels", None)
        assert ours.keys() == theirs.keys()
        assert all(a is b or a == b for a, b in zip(before[path][1:], after[path][1:], strict=True)), path
    assert all(parameter.grad is None for parameter in dag.parameters())
    assert not any(parameter._backward_hooks for parameter in dag.parameters())


def test_nothing_holds_what_ran_after_it_was_used():
    _, dag, _ = made(Residual)
    images, labels = data()
    gc.collect()
    with torchorbit.criteria.Calibrator(dag, ["taylor", "apoz"]):
        output = dag(images)
        F.cross_entropy(output, labels).backward()
        before = sum(issubclass(type(found), torch.Tensor) for found in gc.get_objects())
        gc.disable()
        try:
            for _ in range(3):
                output = dag(images)
                F.cross_entropy(output, labels).backward()
            after = sum(issubclass(type(found), torch.Tensor) for found in gc.get_objects())
        finally:
            gc.enable()
    assert after <= before


def test_calibrate_leaves_gradients_statistics_and_modes_as_they_were():
    model = stir(nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)))
    dag = torchorbit.convert(model.train(), torch.randn(2, 2, 6, 6))
    images, labels = data()
    batch = images.float(), labels
    for parameter in list(dag.parameters())[:2]:
        parameter.grad = torch.randn_like(parameter)
    before = {name: tensor.clone() for name, tensor in dag.state_dict().items()}
    grads = [(p.grad, None if p.grad is None else p.grad.clone()) for p in dag.parameters()]
    scored(dag, [batch], list(CRITERIA))
    torchorbit.criteria.MaskedLoss(torchorbit.find_orbits(dag), [batch], mean_loss)({})
    assert all(torch.equal(tensor, before[name]) for name, tensor in dag.state_dict().items())
    assert all(module.training for module in dag.modules())
    for parameter, (grad, values) in zip(dag.parameters(), grads, strict=True):
        assert parameter.grad is grad
        assert grad is None or torch.equal(grad, values)


# -- several processes

_WORKER = """
    import sys, torch, torchorbit
    import tests.conftest  # which is not read here otherwise, and lets timm be imported beside a CPU-only torch
    from tests.pruning.gated import Concat, made, mean_loss
    torch.manual_seed(0)
    _, dag, orbits = made(Concat)
    images, labels = torch.load(sys.argv[1])
    start, stop = int(sys.argv[2]), int(sys.argv[3])
    batches = list(zip(images[start:stop].split(2), labels[start:stop].split(2)))
    for name, scores in torchorbit.calibrate(dag, batches, mean_loss, ["taylor", "apoz"], orbits=orbits).items():
        scores.save(f"{sys.argv[4]}-{name}")
"""


@pytest.mark.slow
def test_scores_of_several_processes_are_merged_to_those_of_one(tmp_path):
    _, dag, orbits = made(Concat)
    batch = data()
    torch.save(batch, tmp_path / "data")
    pieces = [(0, 2), (2, 8)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(_WORKER), tmp_path / "data", str(a), str(b), tmp_path / f"s{a}"]
        )
        for a, b in pieces
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    for name, whole in scored(dag, [batch], ["taylor", "apoz"], orbits=orbits).items():
        parts = [Scores.load(tmp_path / f"s{a}-{name}", orbits) for a, _ in pieces]
        merged = parts[0].merged(*parts[1:])
        assert merged.samples == 8
        for orbit in orbits:
            assert merged[orbit] == pytest.approx(whole[orbit], rel=1e-12)


# -- losses without units


@pytest.mark.parametrize("kind", MODELS, ids=lambda kind: kind.__name__)
def test_the_masked_loss_is_that_of_the_oracle(kind):
    """Nothing in these models normalizes over channels, so that zeros and absence are the same."""
    _, dag, orbits = made(kind)
    batches = [data(5), data(3)]
    masked = torchorbit.criteria.MaskedLoss(orbits, batches, mean_loss)
    generator = np.random.default_rng(0)
    for _ in range(4):
        removed = {orbit: generator.permutation(orbit.width)[: generator.integers(0, orbit.width)] for orbit in orbits}
        wanted = 0.0
        with torch.no_grad():
            for images, labels in batches:
                output = masked_run(dag, Selection(removed, dag), (images,), {})
                wanted += F.cross_entropy(output, labels).item() * len(images) / 8
        assert masked(removed) == pytest.approx(wanted, rel=1e-9)
        smaller = torchorbit.remove_channels(dag, removed)
        pruned = sum(F.cross_entropy(smaller(x), y).item() * len(x) / 8 for x, y in batches)
        assert masked(removed) == pytest.approx(pruned, rel=1e-9)


def test_the_masked_loss_without_anything_removed_is_the_loss():
    model, _, orbits = made(Attention)
    batch = data()
    for cache in (True, False):
        masked = torchorbit.criteria.MaskedLoss(orbits, [batch], mean_loss, cache=cache)
        assert masked({}) == pytest.approx(mean_loss(model(batch[0]), batch).item(), rel=1e-12)


def test_the_masked_loss_takes_whole_orbits_and_only_its_own():
    model, dag, orbits = made(Chain)
    batch = data()
    masked = torchorbit.criteria.MaskedLoss(orbits, [batch], mean_loss)
    last = the(orbits, "c.weight")
    bias = model.head.bias.expand(8, -1)
    assert masked({last: range(last.width)}) == pytest.approx(mean_loss(bias, batch).item(), rel=1e-12)
    other = torchorbit.find_orbits(dag)[0]
    with pytest.raises(ValueError, match="another call of find_orbits"):
        masked({other: [0]})


# -- what is refused


class _Nothing:
    def __iter__(self):
        return iter(())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"loader": _Nothing()}, torchorbit.errors.CalibrationError, "gives no batch"),
        ({"loader": 3}, TypeError, "loader is a int"),
        ({"loader": [{"image": 1}]}, torchorbit.errors.CalibrationError, "batch is a dict.*sample_to_model_inputs"),
        (
            {"sample_to_model_inputs": lambda b: b[0]},
            torchorbit.errors.CalibrationError,
            r"gives a Tensor.*\(images,\), {}",
        ),
        ({"sample_to_n_samples": lambda b: 0}, torchorbit.errors.CalibrationError, "has 0 samples"),
        ({"loss": lambda o, b: 1.0}, torchorbit.errors.CalibrationError, "loss is a float"),
        (
            {"loss": lambda o, b: o},
            torchorbit.errors.CalibrationError,
            r"shape \(8, 3\), expected a scalar or .* 8 samples",
        ),
        ({"loss": lambda o, b: o.sum() / 0}, torchorbit.errors.CalibrationError, "not finite"),
        ({"loss": lambda o, b: o.detach().sum()}, torchorbit.errors.CalibrationError, "does not depend on the model"),
        ({"loss": None}, ValueError, "loss is None, and one of taylor"),
        ({"criteria": "tailor"}, ValueError, "there is no criterion 'tailor'; close to it: taylor"),
        ({"criteria": [3]}, TypeError, "3 is no criterion"),
        ({"criteria": []}, ValueError, "no criterion is given"),
        ({"place": "before"}, ValueError, "place='before', expected"),
        ({"loss_reduction": "none"}, ValueError, "loss_reduction='none', expected"),
        ({"max_batches": 0}, ValueError, "max_batches=0"),
        ({"loader": iter(()), "epochs": 2}, TypeError, "iterator, which is used up by one pass"),
        ({"frozen": ["head"], "orbits": True}, ValueError, "both orbits and frozen"),
    ],
)
def test_bad_input_is_refused_with_what_to_do(options, error, message):
    _, dag, orbits = made(Chain)
    if options.get("orbits"):
        options = {**options, "orbits": orbits}
    arguments = {"loader": [data()], "loss": mean_loss, "criteria": "taylor", **options}
    with pytest.raises(error, match=message):
        torchorbit.calibrate(dag, **arguments)


def test_batches_that_are_not_kept_have_to_come_again():
    _, _, orbits = made(Chain)
    batches = [data()]
    assert torchorbit.criteria.MaskedLoss(orbits, iter(batches), mean_loss)({}) == torchorbit.criteria.MaskedLoss(
        orbits, batches, mean_loss, cache=False
    )({})
    with pytest.raises(TypeError, match="used up by one pass"):
        torchorbit.criteria.MaskedLoss(orbits, iter(batches), mean_loss, cache=False)


def test_orbits_of_another_graph_or_of_an_earlier_state_are_refused():
    _, dag, orbits = made(Chain)
    other = made(Residual)[1]
    with pytest.raises(ValueError, match="another graph"):
        torchorbit.criteria.Calibrator(other, "taylor", orbits=orbits)
    torchorbit.remove_channels(dag, {orbits[0]: [0]}, inplace=True)
    with pytest.raises(ValueError, match="before this graph was pruned"):
        torchorbit.criteria.Calibrator(dag, "taylor", orbits=orbits)


def test_a_calibrator_needs_data_and_gradients():
    _, dag, _ = made(Chain)
    with torchorbit.criteria.Calibrator(dag, ["apoz", "taylor"]) as calibrator:
        dag(data()[0])
        with pytest.raises(torchorbit.errors.CalibrationError, match="taylor: there are no scores, for no backward"):
            calibrator.scores  # noqa: B018
        with (
            pytest.raises(torchorbit.errors.CalibrationError, match="calibrated already"),
            torchorbit.criteria.Calibrator(dag, "apoz"),
        ):
            pass
    with pytest.raises(ValueError, match=r"shapley.*use torchorbit\.calibrate"):
        torchorbit.criteria.Calibrator(dag, "shapley")


def test_a_graph_without_weights_is_refused():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    dag = torchorbit.convert(model, torch.empty(2, 3, device="meta"))
    with pytest.raises(ValueError, match="meta device"):
        torchorbit.criteria.Calibrator(dag, "taylor")


# -- models as they are used

# Input size, and where positions are encoded by a network of their own, which samples have in common.
_MODELS = {
    "resnet18": (32, ()),
    "vit_tiny_patch16_224": (32, ()),
    "swin_tiny_patch4_window7_224": (64, ()),
    "convnext_atto": (64, ()),
    "mobilenetv3_small_050": (32, ()),
    "efficientvit_b0": (64, ()),
    "davit_tiny": (64, ()),
    "regnety_002": (32, ()),
    "tf_efficientnet_cc_b0_4e": (32, ()),
    "edgenext_xx_small": (64, ("pos_embd",)),
    "densenet121": (64, ()),
    "mixer_s32_224": (64, ()),
    "swinv2_cr_tiny_224": (64, ("meta_mlp",)),
}


@pytest.mark.parametrize("name", _MODELS)
def test_all_criteria_score_all_orbits_of_a_timm_model(name):
    size, in_common = _MODELS[name]
    fixed = {"img_size": size} if name.startswith(("vit", "swin", "mixer")) else {}
    model = stir(timm.create_model(name, scriptable=False, num_classes=3, **fixed)).double().eval()
    x, labels = torch.randn(3, 3, size, size, dtype=torch.float64), torch.tensor([0, 2, 1])
    with in_float64():
        dag = torchorbit.convert(model, x[:2])
    orbits = torchorbit.find_orbits(dag)
    every = [name for name in CRITERIA if name != "shapley"]
    whole = scored(dag, [(x, labels)], every, orbits=orbits)
    for key, scores in whole.items():
        assert len(scores) == len(orbits)
        assert all(np.isfinite(values).all() for values in scores.values())
        assert all(values.any() for values in scores.values()), key
    singles = [(x[n : n + 1], labels[n : n + 1]) for n in range(3)]
    for key, scores in scored(dag, singles, ["taylor", "apoz"], orbits=orbits).items():
        for orbit in orbits:
            if not any(part in source for part in in_common for source in orbit.sources):
                assert np.abs(scores[orbit] - whole[key][orbit]).max() <= 1e-9 * whole[key][orbit].max(), (key, orbit)


def test_shapley_values_add_up_to_the_loss_without_the_orbit():
    model = stir(timm.create_model("mobilenetv3_small_050", scriptable=False, num_classes=3)).double().eval()
    x, labels = torch.randn(2, 3, 32, 32, dtype=torch.float64), torch.tensor([0, 2])
    dag = torchorbit.convert(model, x)
    orbits = torchorbit.find_orbits(dag, frozen=["blocks.[2-5]*", "conv_head", "classifier"])
    assert len(orbits) > 1
    scores = scored(dag, [(x, labels)], Shapley(sv_samples=1), orbits=orbits)[Shapley(sv_samples=1)]
    masked = torchorbit.criteria.MaskedLoss(orbits, [(x, labels)], mean_loss)
    for orbit in orbits:
        rise = masked({orbit: range(orbit.width)}) - masked({})
        assert scores[orbit].sum() == pytest.approx(rise, abs=1e-9)
