"""Nothing of the sizes that a model was recorded with is left in what a removal makes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchorbit
from tests.models import Computes
from tests.orbits.helpers import kinds
from torchorbit.errors import ArgumentError

TOLERANCE = 1e-12


def halved(model, example):
    """The graph of a model, and what is left where every other unit of every orbit is gone."""
    dag = torchorbit.convert(model.double().eval(), example)
    removed = {orbit: range(0, orbit.width, 2) for orbit in torchorbit.find_orbits(dag)}
    return dag, torchorbit.remove_channels(dag, removed), removed


def assert_right_at(model, example, *others):
    dag, pruned, removed = halved(model, example)
    for inputs in (example, *others):
        assert torchorbit.verify_removal(dag, pruned, removed, inputs) < TOLERANCE
    assert torchorbit.verify_removal(dag, pruned, removed) < TOLERANCE
    return pruned


class AttentionPool(nn.Module):
    """As CLIP's: the mean of all places asks them, by torch's function for attention with weights of its own layers."""

    def __init__(self, width=16, heads=4, out=6):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 2, 2)
        self.positions = nn.Parameter(torch.randn(17, width))
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, out)
        self.heads = heads

    def forward(self, x):
        x = self.stem(x).flatten(2).permute(2, 0, 1)
        x = torch.cat([x.mean(0, keepdim=True), x]) + self.positions[:, None]
        x, _ = F.multi_head_attention_forward(
            x, x, x, x.shape[-1], self.heads, None, torch.cat([self.q.bias, self.k.bias, self.v.bias]), None, None,
            False, 0.0, self.out.weight, self.out.bias, training=self.training, need_weights=False,
            use_separate_proj_weight=True, q_proj_weight=self.q.weight, k_proj_weight=self.k.weight,
            v_proj_weight=self.v.weight,
        )  # fmt: skip
        return x[0]


class FoldedProjection(nn.Module):
    """Batch and tokens are one dimension where queries, keys and values are packed."""

    def __init__(self, width=16, heads=4):
        super().__init__()
        self.stem, self.qkv, self.out = nn.Linear(12, width), nn.Linear(width, 3 * width), nn.Linear(width, 5)
        self.heads = heads

    def forward(self, x):
        batch, tokens, _ = x.shape
        packed = self.qkv(self.stem(x).reshape(batch * tokens, -1))
        q, k, v = packed.reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.out(x.transpose(1, 2).reshape(batch, tokens, -1))


class Registers(nn.Module):
    """A transformer in which learned tokens stand before those of an image of any size."""

    def __init__(self, width=16, heads=2, registers=4, read=lambda x: x[:, 4:].mean(1)):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 4, 4)
        self.registers = nn.Parameter(torch.randn(1, registers, width))
        self.qkv, self.proj, self.head = nn.Linear(width, 3 * width), nn.Linear(width, width), nn.Linear(width, 5)
        self.heads, self.read = heads, read

    def forward(self, x):
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.registers.expand(x.shape[0], -1, -1), x], 1)
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width))
        return self.head(self.read(x))


IMAGES = torch.randn(2, 3, 8, 8).double()
TOKENS = torch.randn(2, 6, 12).double()


def test_attention_pooling_takes_any_batch():
    pruned = assert_right_at(
        AttentionPool(), IMAGES, torch.randn(1, 3, 8, 8).double(), torch.randn(5, 3, 8, 8).double()
    )
    assert pruned.k.weight.shape == (4, 8)  # two heads of four, two channels in each


def test_a_projection_of_batch_and_tokens_takes_any_number_of_both():
    assert_right_at(FoldedProjection(), TOKENS, torch.randn(5, 6, 12).double(), torch.randn(3, 11, 12).double())


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x[:, 4:].mean(1),
        lambda x: x[:, 0],
        lambda x: x[:, -1],
        lambda x: x[:, :-3].mean(1),
        lambda x: x[:, -3:-1].mean(1),
        lambda x: x.select(1, -1),
        lambda x: x.narrow(1, 2, 4).mean(1),
        lambda x: x.split([4, x.shape[1] - 4], 1)[1].mean(1),
    ],
)
def test_registers_go_and_images_may_have_any_size(read):
    model = Registers(read=read)
    images = torch.randn(2, 3, 16, 16).double()
    pruned = assert_right_at(model, images, torch.randn(3, 3, 16, 16).double(), torch.randn(2, 3, 32, 12).double())
    assert pruned.registers.shape[1] < 4


def test_channels_beside_others_may_be_folded_with_rows_of_any_number():
    def forward(self, x):
        y = torch.cat([self.first(x), x], 1)
        batch, channels, rows, columns = y.shape
        y = y.reshape(batch, channels * rows, columns).softmax(-1)
        return self.last(y.reshape(batch, channels, rows, columns))

    model = Computes(forward, first=nn.Conv2d(3, 8, 1), last=nn.Conv2d(11, 4, 1))
    assert_right_at(model, IMAGES, torch.randn(1, 3, 5, 6).double())


def test_registers_are_tokens_and_prune_leaves_them_unless_it_is_told_to():
    model, images = Registers(), torch.randn(2, 3, 16, 16)
    orbits = torchorbit.find_orbits(torchorbit.convert(model, images))
    (registers,) = orbits.of_tensor("registers", 1)
    assert registers.kind == "tokens"
    assert [orbit.kind for orbit in orbits if orbit is not registers].count("tokens") == 0
    assert torchorbit.prune(model, images, ratio=0.5).registers.shape == (1, 4, 8)
    assert torchorbit.prune(model, images, ratio=0.5, tokens=True).registers.shape == (1, 2, 8)


def test_a_matrix_that_no_layer_holds_has_channels():
    first, second = nn.Parameter(torch.randn(12, 8)), nn.Parameter(torch.randn(3, 8))
    model = Computes(lambda self, x: (x @ self.first).relu() @ self.second.t(), first=first, second=second)
    (hidden,) = torchorbit.find_orbits(torchorbit.convert(model, TOKENS.float()))
    assert (hidden.width, hidden.kind) == (8, "channels")


def test_repeated_channels_are_as_many_as_are_left():
    model = Computes(
        lambda self, x: self.last(self.first(x).repeat_interleave(3, 1, output_size=24)),
        first=nn.Conv2d(3, 8, 1),
        last=nn.Conv2d(24, 4, 1),
    )
    assert_right_at(model, IMAGES, torch.randn(1, 3, 5, 6).double())


def test_the_proof_finds_a_batch_size_or_a_length_that_was_left():
    for free, fixed in (
        (lambda x: x[: x.shape[0] // 2 + 1], lambda x: x[:1]),
        (lambda x: x[..., : x.shape[-1] // 2], lambda x: x[..., :4]),
    ):
        dag = torchorbit.convert(Computes(free), torch.randn(1, 3, 8, 8))
        other = torchorbit.convert(Computes(fixed), torch.randn(1, 3, 8, 8))
        assert torchorbit.verify_removal(dag, dag, {}) == 0
        with pytest.raises(ArgumentError, match="the output of the pruned graph is"):
            torchorbit.verify_removal(dag, other, {})


def test_the_proof_stays_with_the_recorded_lengths_where_others_do_not_run():
    model = Computes(lambda self, x: self.last(self.first(x)), first=nn.Conv2d(3, 8, 7), last=nn.Conv2d(8, 4, 7))
    dag, pruned, removed = halved(model, torch.randn(2, 3, 13, 13).double())  # half of that is smaller than the kernels
    assert torchorbit.verify_removal(dag, pruned, removed) < TOLERANCE


def test_heads_of_torchs_attention_are_those_of_one_that_is_written_out():
    class Written(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.qkv, self.proj, self.last = (nn.Linear(*n) for n in ((12, 16), (16, 48), (16, 16), (16, 5)))

        def forward(self, x):
            x = self.stem(x)
            q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, 4, 4).permute(2, 0, 3, 1, 4).unbind(0)
            y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
            return self.last(x + self.proj(y))

    def torchs(**options):
        return Computes(
            lambda self, x: self.last(self.stem(x) + self.attention(*[self.stem(x)] * 3, **options)[0]),
            stem=nn.Linear(12, 16),
            attention=nn.MultiheadAttention(16, 4, batch_first=True),
            last=nn.Linear(16, 5),
        )

    expected = kinds(torchorbit.find_orbits(torchorbit.convert(Written(), TOKENS.float())))
    assert expected == [(4, 0), (4, 0), (4, 1), (16, 0)]
    for options in ({}, {"need_weights": False}):
        assert kinds(torchorbit.find_orbits(torchorbit.convert(torchs(**options), TOKENS.float()))) == expected
        assert_right_at(torchs(**options), TOKENS, torch.randn(5, 9, 12).double())


@pytest.mark.parametrize("norm_first", [False, True])
def test_layers_of_torchs_transformers_lose_heads_and_what_is_in_them(norm_first):
    class Translator(nn.Module):
        def __init__(self):
            super().__init__()
            options = {"dim_feedforward": 20, "batch_first": True, "norm_first": norm_first}
            self.source, self.target = nn.Linear(12, 16), nn.Linear(7, 16)
            self.encoder = nn.TransformerEncoder(
                nn.TransformerEncoderLayer(16, 4, **options), 2, enable_nested_tensor=False
            )
            self.decoder = nn.TransformerDecoderLayer(16, 4, **options)
            self.last = nn.Linear(16, 5)

        def forward(self, source, target):
            return self.last(self.decoder(self.target(target), self.encoder(self.source(source))))

    example = (TOKENS, torch.randn(2, 4, 7).double())
    pruned = assert_right_at(Translator(), example, (torch.randn(5, 9, 12).double(), torch.randn(5, 3, 7).double()))
    attention = pruned.get_submodule("decoder.multihead_attn")
    assert attention.in_proj_weight.shape == (12, 8)
    assert attention.out_proj.weight.shape == (8, 4)


def test_samples_that_are_folded_into_queries_may_be_of_any_number():
    def forward(self, x):
        queries = self.queries[:, None].expand(-1, len(x), -1) * x[None, :, 0]
        return self.layer(queries.reshape(-1, 6)).relu().view(8, -1, 5).transpose(0, 1).mean(1)

    model = Computes(forward, queries=nn.Parameter(torch.randn(8, 6)), layer=nn.Linear(6, 5))
    dag = torchorbit.convert(model.double().eval(), torch.randn(2, 3, 6).double())
    (orbit,) = [orbit for orbit in torchorbit.find_orbits(dag) if orbit.width == 8]
    for removed in ({orbit: [0, 2, 3]}, {orbit: range(1, 8)}):
        pruned = torchorbit.remove_channels(dag, removed)
        for batch in (2, 3, 5):
            inputs = torch.randn(batch, 3, 6).double()
            assert torchorbit.verify_removal(dag, pruned, removed, inputs) < TOLERANCE
