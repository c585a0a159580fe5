"""The tree: nested like the source, holding its own leaf modules and parameters under their own names."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree

import torchorbit
from tests.models import Computes, assert_converts, assert_same, module_vertices, reloaded
from torchorbit.graph.dag import Container, DagModule

pytestmark = pytest.mark.numeric

X = torch.randn(2, 6, 8)


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)

    def forward(self, x, which=0):
        return self.first(x).relu() if which == 0 else self.second(x).tanh() * 2


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.full((8,), 0.3))
        self.mix = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return x + self.mix(x, x, x)[0] * self.scale


def test_a_graph_is_nested_like_its_source():
    model = nn.Sequential(Branches(), nn.Sequential(Attention(), nn.LayerNorm(8)), nn.ReLU())
    dag = assert_converts(model, X)
    kinds = [(v.target, type(dag.get_submodule(v.target))) for v in module_vertices(dag)]
    assert [target for target, _ in kinds] == ["0", "1", "2"]
    assert isinstance(dag.get_submodule("0"), DagModule)
    assert isinstance(dag.get_submodule("1.0"), DagModule)
    assert dag.get_submodule("0.first") is model[0].first
    assert dag.get_submodule("1.1") is model[1][1]
    assert dag.get_submodule("1.0")._parameters["scale"] is model[1][0].scale
    assert [path for path, _ in dag.all_vertices()][:3] == ["input", "_0", "_0/x"]


def test_parameters_are_shared_not_copied():
    model = nn.Sequential(Branches(), Attention())
    dag = torchorbit.convert(model, X)
    for (name, ours), (other, theirs) in zip(dag.named_parameters(), model.named_parameters(), strict=True):
        assert name == other
        assert ours is theirs
    flat = dag.flatten()
    assert all(a is b for a, b in zip(flat.parameters(), model.parameters(), strict=True))


def test_a_flat_graph_has_one_level():
    dag = torchorbit.convert(nn.Sequential(Branches(), nn.Sequential(Attention(), Attention())), X)
    flat = dag.flatten()
    assert all("/" not in path for path, _ in flat.all_vertices())
    assert flat.provenance == dag.provenance
    assert list(flat.state_dict()) == list(dag.state_dict())
    assert_same(reloaded(flat)(X), dag(X))
    assert_same(flat.flatten()(X), dag(X))
    nested = dag.get_submodule("1").flatten()
    assert_same(nested(X), dag.get_submodule("1")(X))


SHARED = nn.Linear(8, 8)


def twice(m, x):
    return m.layer(m.layer(x))


def twice_with_other_shapes(m, x):
    return m.layer(x).mean(1) + m.layer(x[:, 0])


def two_paths(m, x):
    return m.block(x, 0) + m.block(x, which=1)


def three_calls(m, x):
    return m.block(m.block(x)) + m.block(x, 1)


def around_the_block(m, x):
    return m.block(x) + m.block.first(x) * m.block.second.weight.sum()


@pytest.mark.parametrize(
    "model",
    [
        Computes(twice, layer=nn.Linear(8, 8)),
        Computes(twice, layer=nn.Sequential(nn.Linear(8, 8), nn.ReLU())),
        Computes(twice, layer=Attention()),
        Computes(twice_with_other_shapes, layer=nn.Linear(8, 8)),
        Computes(twice_with_other_shapes, layer=nn.Sequential(nn.Linear(8, 8), nn.GELU())),
        Computes(two_paths, block=Branches()),
        Computes(three_calls, block=Branches()),
        Computes(around_the_block, block=Branches()),
        nn.Sequential(nn.Sequential(SHARED, nn.ReLU()), nn.Sequential(SHARED)),
        nn.Sequential(nn.Sequential(nn.ReLU(), SHARED), SHARED),
    ],
    ids=["leaf", "block", "block with a parameter", "leaf, other shapes", "block, other shapes", "two paths", "three calls", "around the block", "under two names", "under two names in and out of a block"],
)  # fmt: skip
def test_a_module_that_is_called_more_than_once(model):
    dag = assert_converts(model, X)
    assert list(dag.state_dict()) == list(model.state_dict())
    assert len(list(dag.parameters())) == len(list(model.parameters()))


def test_a_block_called_twice_on_the_same_path_stays_one_block():
    model = Computes(twice, layer=nn.Sequential(nn.Linear(8, 8), nn.ReLU()))
    dag = torchorbit.convert(model, X)
    assert [v.target for v in module_vertices(dag)] == ["layer", "layer"]
    assert isinstance(dag.get_submodule("layer"), DagModule)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.body = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.body(self.embed(ids)))


def test_tied_weights_stay_tied():
    model = Tied()
    dag = assert_converts(model, torch.randint(0, 12, (2, 5)))
    for graph in (dag, reloaded(dag), dag.flatten()):
        assert graph.get_submodule("head").weight is graph.get_submodule("embed").weight
        assert list(graph.state_dict()) == list(model.state_dict())
        assert len(list(graph.parameters())) == len(list(model.parameters()))


def test_a_parameter_that_is_used_twice():
    model = Computes(lambda m, x: (x * m.scale) @ (m.weight * m.scale) + F.linear(x, m.weight),
                     scale=nn.Parameter(torch.randn(8)), weight=nn.Parameter(torch.randn(8, 8)))  # fmt: skip
    dag = assert_converts(model, X)
    for m in (model, dag):
        m.zero_grad()
        m(X).sum().backward()
    assert_same(dag._parameters["scale"].grad, model.scale.grad)


class Inner(nn.Module):
    def __init__(self, outer):
        super().__init__()
        self.__dict__["outer"] = outer
        self.own = nn.Linear(8, 8)

    def forward(self, x):
        return self.own(x) * self.outer.gain + self.outer.shared(x)


class Outer(nn.Module):
    """Children that use a parameter and a module of their parent."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.randn(8))
        self.shared = nn.Linear(8, 8)
        self.children_ = nn.ModuleList([Inner(self), Inner(self)])

    def forward(self, x):
        for child in self.children_:
            x = child(x)
        return x


def test_a_child_that_uses_what_its_parent_holds():
    model = Outer()
    dag = assert_converts(model, X)
    assert list(dag.state_dict()) == list(model.state_dict())


class Unregistered(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = [nn.Linear(8, 8)]
        self.seen = nn.Linear(8, 8)

    def forward(self, x):
        return self.seen(x) + self.hidden[0](x)


def test_a_module_that_is_not_registered_is_part_of_the_graph_all_the_same():
    model = Unregistered()
    dag = assert_converts(model, X)
    assert list(dag.state_dict()) == list(model.state_dict())


class Lists(nn.Module):
    def __init__(self):
        super().__init__()
        self.gains = nn.ParameterList([torch.randn(8) for _ in range(3)])
        self.named_gains = nn.ParameterDict({"a": torch.randn(8), "b": torch.randn(8)})
        self.blocks = nn.ModuleDict({"x": nn.Linear(8, 8), "y": nn.ModuleList([nn.Linear(8, 8), nn.ReLU()])})
        self.unused = nn.Linear(3, 3)
        self.unused_gain = nn.Parameter(torch.randn(2))
        self.unused_block = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))

    def forward(self, x):
        for gain in self.gains:
            x = x * gain
        x = self.blocks["x"](x) + self.named_gains["a"]
        for block in self.blocks["y"]:
            x = block(x)
        return x * self.named_gains["b"]


def test_lists_and_dicts_of_modules_and_parameters_and_what_is_never_used():
    model = Lists()
    dag = assert_converts(model, X)
    assert list(dag.state_dict()) == list(model.state_dict())
    dag.load_state_dict(Lists().state_dict(), strict=True)
    assert isinstance(dag.get_submodule("gains"), Container)
    assert dag.get_submodule("unused") is model.unused


# -- names


NAMES = [
    "flatten", "save", "code", "graph", "provenance", "vertices", "table", "all_vertices", "self", "math", "torch", "conv2d", "x", "input",
    "0", "0a", "1_2", "if", "class", "None", "match", "__x", "_", "a-b", "a b", "é", "b'", 'c"', "d\\", "e\n", "f()", "print", "inf",
]  # fmt: skip


class Dictionary(nn.Module):
    """A block and a leaf under a name of one's choice."""

    def __init__(self, name):
        super().__init__()
        self.name = name
        self.blocks = nn.ModuleDict({name: nn.Sequential(nn.Linear(8, 8), nn.ReLU())})
        self.leaves = nn.ModuleDict({name: nn.Linear(8, 8)})

    def forward(self, x):
        return self.leaves[self.name](self.blocks[self.name](x))


@pytest.mark.parametrize("name", NAMES)
def test_a_submodule_of_any_name(name):
    model = Dictionary(name)
    dag = assert_converts(model, X)
    assert list(dag.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_a_child_of_any_name(name):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.add_module(name, nn.Sequential(nn.Linear(8, 8), nn.ReLU()))

        def forward(self, x):
            return self._modules[name](x) * 2

    model = Model()
    dag = assert_converts(model, X)
    assert list(dag.state_dict()) == list(model.state_dict())
    assert_same(dag.eval()(X), model(X))


@pytest.mark.parametrize("kind", ["parameter", "buffer"])
@pytest.mark.parametrize("name", NAMES)
def test_a_parameter_or_buffer_of_any_name(name, kind):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            if kind == "parameter":
                self.register_parameter(name, nn.Parameter(torch.randn(8)))
            else:
                self.register_buffer(name, torch.randn(8))

        def forward(self, x):
            return x * getattr(self, name) + 1

    for model in (Model(), nn.Sequential(Model(), nn.ReLU())):
        dag = assert_converts(model, X)
        assert list(dag.state_dict()) == list(model.state_dict())


def test_a_graph_converts_again():
    model = nn.Sequential(Branches(), nn.BatchNorm1d(6), Attention(), Computes(lambda x: x * torch.tensor([2.0] * 8)))
    once = torchorbit.convert(model, X)
    again = assert_converts(once, X)
    assert list(again.state_dict()) == list(model.state_dict())
    wrapped = assert_converts(nn.Sequential(once, Computes(lambda x: x * torch.tensor([3.0] * 8))), X)
    assert_same(wrapped(X), model(X) * 3)


@pytest.mark.parametrize(
    ("layer", "example"),
    [
        (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), X),
        (nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2), X),
        (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True, activation="gelu"), X),
        (nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16, batch_first=True), 2), (X, X * 2)),
        (nn.Transformer(8, 2, 1, 1, 16, batch_first=True), (X, X * 2)),
        (nn.MultiheadAttention(8, 2, batch_first=True), (X, X * 2, X)),
        (nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True, add_zero_attn=True), (X, X, X)),
        (Computes(lambda m, x: m.mix(x, x, x, need_weights=False)[0], mix=nn.MultiheadAttention(8, 2, batch_first=True)), X),
        (Computes(lambda m, x: m.mix(x, x, x, attn_mask=torch.ones(6, 6).triu(1) > 0)[0], mix=nn.MultiheadAttention(8, 2, batch_first=True)), X),
    ],
)  # fmt: skip
def test_the_attention_layers_of_torch_are_entered(layer, example):
    # In evaluation torch runs such a layer as one fused operator, which does not round as the graph's operators do.
    dag = assert_converts(layer.double(), pytree.tree_map_only(torch.Tensor, torch.Tensor.double, example))
    assert list(dag.state_dict()) == list(layer.state_dict())


def test_attention_over_other_keys_with_a_mask_of_padding():
    mix = nn.MultiheadAttention(8, 2, kdim=4, vdim=4, batch_first=True)
    model = Computes(lambda m, x, y, hidden: m.mix(x, y, y, key_padding_mask=hidden)[0], mix=mix)
    hidden = torch.zeros(2, 5, dtype=torch.bool)
    hidden[:, -1] = True
    assert_converts(model, (X, torch.randn(2, 5, 4), hidden))


def test_a_recurrent_layer_with_a_state_is_one_vertex():
    model = Computes(lambda m, x, h: m.rnn(x, (h, h + 1)), rnn=nn.LSTM(8, 5, batch_first=True))
    example = (X, torch.zeros(1, 2, 5))
    dag = torchorbit.convert(model, example)
    assert [v.leaf for v in module_vertices(dag)] == ["LSTM"]
    assert_same(dag(*example), model(*example))
    assert_same(reloaded(dag)(*example), model(*example))


# -- real models


def test_the_tree_of_a_timm_model():
    model = timm.create_model("test_vit").eval()
    dag = torchorbit.convert(model, torch.randn(1, 3, 160, 160))
    block = dag.get_submodule("blocks.0")
    assert isinstance(block, DagModule)
    assert isinstance(dag.get_submodule("blocks.0.attn"), DagModule)
    assert dag.get_submodule("blocks.0.attn.qkv") is model.blocks[0].attn.qkv
    assert dag.get_submodule("blocks.0.norm1") is model.blocks[0].norm1
    assert dag._parameters["pos_embed"] is model.pos_embed
    assert "scaled_dot_product_attention" in block.get_submodule("attn").code
    assert "LayerNorm" in block.table()


def test_reading_a_graph():
    dag = torchorbit.convert(nn.Sequential(Branches(), nn.Dropout(0.1)), X)
    assert [vertex.name for vertex in dag.vertices] == ["input", "_0", "_1"]
    assert dag.code.startswith("def forward(self, input):")
    table = dag.table()
    assert "block" in table
    assert "Dropout" in table
    assert "output" in table
    with pytest.raises(AttributeError, match="nope"):
        dag.get_submodule("nope")
