"""What a module or a unit depends on, what is frozen and why."""

import pytest
import timm
import torch
import torchvision
from torch import nn

import torchorbit
from tests.migrating.helpers import FILTERS_OF_ENOT
from tests.models import Computes, stir
from torchorbit.inspect import (
    frozen_groups,
    module_dependencies,
    module_of_vertex,
    unit_dependencies,
    unit_slices,
    vertices_of_module,
)
from torchorbit.labels import arrays_of
from torchorbit.orbits.frozen import _owned


def converted(name, size=224, **options):
    with torch.device("meta"):
        model = timm.create_model(name, scriptable=False, **options).eval()
    return torchorbit.convert(model, torch.empty(2, 3, size, size, device="meta"))


def of(model, *inputs, frozen=()):
    return torchorbit.find_orbits(torchorbit.convert(model.eval(), inputs), frozen=frozen)


@pytest.fixture(scope="module")
def mobilenet():
    model = torchvision.models.mobilenet_v2(num_classes=10).eval()
    return torchorbit.find_orbits(torchorbit.convert(model, torch.empty(2, 3, 224, 224)))


@pytest.fixture(scope="module")
def vit():
    return torchorbit.find_orbits(converted("vit_tiny_patch16_224"))


def named(members):
    return [member.name for member in members]


# -- ENOT's documented examples


def test_the_depthwise_convolution_of_mobilenet(mobilenet):
    found = module_dependencies(mobilenet, "features.17.conv.1.0")
    (group,) = found.orbits
    assert group.orbit.width == 960
    assert set(named(group.members)) == {"features.17.conv.1.0", "features.17.conv.0.0"}
    assert named(group.users) == ["features.17.conv.2"]
    assert found.operators == ("conv2d",)
    assert found.labels == ([None, f"orbit {group.orbit.index}: 960", None, None],)
    assert found.frozen == ()
    text = str(found)
    assert "Conv2d(960, 320, kernel_size=(1, 1), stride=(1, 1), bias=False)" in text
    assert "960 channels" in text


def test_the_slices_of_a_unit_of_mobilenet(mobilenet):
    (orbit,) = mobilenet.of_tensor("features.18.0.weight")
    found = unit_slices(orbit, 1202)
    assert [(piece.tensor, piece.shape, piece.mapping) for piece in found] == FILTERS_OF_ENOT
    assert all(piece.values is None for piece in found)
    assert "features.18.0.weight        (1, 320, 1, 1)  [[(1202, 0)], None, None, None]" in str(found)
    weight = mobilenet.model.dag.get_parameter("classifier.1.weight")
    with_values = unit_slices(orbit, 1202, values=True)
    assert torch.equal(with_values[-1].values, weight[:, 1202:1203])
    assert not with_values[-1].values.requires_grad


def test_what_a_unit_of_mobilenet_passes(mobilenet):
    (orbit,) = mobilenet.of_tensor("features.18.0.weight")
    found = unit_dependencies(orbit, 1202)
    assert named(found.members) == [
        "features.18.0.weight", "features.18.0", "features.18.1.running_mean", "features.18.1.running_var",
        "features.18.1.weight", "features.18.1.bias", "features.18.1", "features.18.2", "adaptive_avg_pool2d", "flatten",
        "classifier.0", "classifier.1.weight", "classifier.1",
    ]  # fmt: skip
    assert [member.role for member in found.members if member.role not in ("holds", "passes on")] == [
        "produces",
        "consumes",
    ]
    assert named(unit_dependencies(orbit, 1202, show="layers").members) == ["features.18.0", "classifier.1"]
    assert set(named(unit_dependencies(orbit, 0, show="parameters").members)) == {
        "features.18.0",
        "classifier.1",
        *[piece.tensor for piece in unit_slices(orbit, 0)],
    }
    assert "Linear(in_features=1280, out_features=10, bias=True)" in str(found)


def test_what_of_mobilenet_is_frozen(mobilenet):
    images, classes = frozen_groups(mobilenet)
    assert (images.width, [(s.tensor, s.dim) for s in images.slices]) == (3, [("features.0.0.weight", 1)])
    assert [reason.kind for reason in images.reasons] == ["input"]
    assert images.sinks == ("features__0__0",)
    assert (classes.width, {s.tensor for s in classes.slices}) == (10, {"classifier.1.weight", "classifier.1.bias"})
    assert [reason.kind for reason in classes.reasons] == ["output"]
    assert classes.sources == ("classifier__1",)


# -- modules


def test_a_layer_between_two_orbits_has_both(mobilenet):
    found = module_dependencies(mobilenet, "features.17.conv.2")
    assert [(g.consumed, g.produced, g.orbit.width) for g in found.orbits] == [(True, False, 960), (False, True, 320)]
    assert found.of_orbit(found.orbits[1].orbit).orbit.width == 320
    with pytest.raises(KeyError, match="has no channels of"):
        found.of_orbit(mobilenet[0])


def test_the_last_layer_is_frozen_in_what_it_gives(mobilenet):
    found = module_dependencies(mobilenet, mobilenet.model.dag.get_submodule("classifier.1"))
    assert found.labels == ([None, "frozen: 10"],)
    assert [group.width for group in found.frozen] == [10]
    assert "10 frozen, classifier.1.weight (dimension 0)" in str(found)


def test_all_that_an_orbit_passes_comes_in_the_order_of_the_graph(mobilenet):
    (group,) = module_dependencies(mobilenet, "features.17.conv.1.0", show="all").orbits
    assert [name for name in named(group.members) if not name.endswith(("mean", "var", "bias", "weight"))] == [
        "features.17.conv.0.0", "features.17.conv.0.1", "features.17.conv.0.2", "features.17.conv.1.0",
        "features.17.conv.1.1", "features.17.conv.1.2",
    ]  # fmt: skip
    names = [vertex.name for vertex in mobilenet.model.graph.vertices]
    places = [names.index(member.vertex) for member in group.members]
    assert places == sorted(places)
    tensors = {member.name for member in group.members if member.role == "holds"}
    assert tensors == {piece.tensor for piece in group.orbit.slices}


def test_a_layer_that_takes_what_it_gives_is_also_a_user():
    orbits = of(nn.Sequential(nn.Linear(3, 6), Computes(lambda self, x: x + self.layer(x), layer=nn.Linear(6, 6)),
                              nn.Linear(6, 2)), torch.randn(2, 3))  # fmt: skip
    (group,) = module_dependencies(orbits, "1.layer").orbits
    assert named(group.members) == ["0", "1.layer"]
    assert named(group.users) == ["1.layer", "2"]


def test_packed_projections_show_the_orbits_of_queries_values_and_heads(vit):
    found = module_dependencies(vit, "blocks.0.attn.qkv")
    given = [g.orbit for g in found.orbits if g.produced]
    assert sorted((orbit.reading, orbit.width) for orbit in given) == [(0, 64), (0, 64), (1, 3)]
    assert sorted(text.split(": ")[1] for text in found.labels[0][2].split(" + ")) == ["192", "384", "576"]


def test_a_block_has_the_vertices_of_its_layers(vit):
    found = module_dependencies(vit, "blocks.3.mlp")
    assert found.description == ""
    inside = set(found.vertices)
    assert {vertex.name for vertex in vertices_of_module(vit, "blocks.3.mlp.fc1")} < inside
    widths = {g.orbit.width for g in found.orbits}
    assert widths == {192, 768}


# -- look-ups


@pytest.mark.parametrize("graph", [lambda orbits: orbits, lambda orbits: orbits.model.dag])
def test_a_layer_and_its_vertex_find_each_other(vit, graph):
    graph = graph(vit)
    for path, module in vit.model.dag.named_modules():
        if isinstance(module, (nn.Linear, nn.LayerNorm, nn.Conv2d)):
            (vertex,) = vertices_of_module(graph, path)
            assert vertices_of_module(graph, module) == (vertex,)
            assert module_of_vertex(graph, vertex) == module_of_vertex(graph, vertex.name) == path


def test_vertices_are_found_by_their_nested_paths(vit):
    dag = vit.model.dag
    assert module_of_vertex(dag, "blocks/_3/attn/qkv") == "blocks.3.attn.qkv"
    assert module_of_vertex(dag, "blocks/_3") == "blocks.3", "a block"
    modules = [path for path, vertex in dag.all_vertices() if hasattr(vertex, "target")]
    assert len({module_of_vertex(vit, path) for path in modules}) == len(modules)


def test_a_layer_that_is_called_twice_has_two_vertices():
    orbits = of(Computes(lambda self, x: self.a(self.a(x)), a=nn.Linear(4, 4)), torch.randn(2, 4))
    assert len(vertices_of_module(orbits, "a")) == 2


def test_an_operator_belongs_to_the_module_whose_parameter_it_reads(vit):
    (position,) = [v for v in vit.model.graph.vertices if "pos_embed" in str(getattr(v, "args", ""))]
    assert module_of_vertex(vit, position) == ""
    gate = Computes(
        lambda self, x: self.inner(x), inner=Computes(lambda self, x: x * self.gate, gate=nn.Parameter(torch.ones(4)))
    )
    orbits = of(gate, torch.randn(2, 4))
    (vertex,) = vertices_of_module(orbits, "inner")
    assert module_of_vertex(orbits, vertex) == "inner"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda o: vertices_of_module(o, "features.17.conv.1.1.0"), "there is no module 'features.17.conv.1.1.0' in the graph; close to it: features.17.conv.1"),
        (lambda o: module_dependencies(o, "features.99"), "there is no module 'features.99'"),
        (lambda o: vertices_of_module(o, nn.Linear(2, 2)), "Linear.* is no module of the graph"),
        (lambda o: module_of_vertex(o, "features__17_conv__1__9"), "there is no vertex 'features__17_conv__1__9'; close to it"),
        (lambda o: module_of_vertex(o, "flatten"), "belongs to no module: it is an operator without parameters"),
        (lambda o: module_of_vertex(o, "x"), "belongs to no module: it is an input"),
        (lambda o: module_dependencies(o, "classifier.1", show="everything"), "show='everything', expected one of 'layers', 'parameters', 'all'"),
        (lambda o: unit_dependencies(o[0], 0, show=None), "show=None, expected one of"),
    ],
)  # fmt: skip
def test_names_that_there_are_not(mobilenet, call, message):
    with pytest.raises(ValueError, match=message):
        call(mobilenet)


def test_units_and_graphs_that_there_are_not(mobilenet):
    for call in (unit_slices, unit_dependencies):
        with pytest.raises(IndexError, match="there is no unit 10000"):
            call(mobilenet[0], 10_000)
        with pytest.raises(TypeError, match="is no Orbit"):
            call("orbit", 0)
    with pytest.raises(TypeError, match="expected what find_orbits gives"):
        frozen_groups(mobilenet.model.dag)
    with pytest.raises(TypeError, match="expected a DagModule or its orbits"):
        vertices_of_module("graph", "features")


def test_orbits_of_a_graph_that_was_pruned_since_are_refused():
    dag = torchorbit.convert(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).eval(), torch.randn(2, 3))
    (orbit,) = orbits = torchorbit.find_orbits(dag)
    torchorbit.remove_channels(dag, {orbit: [0]}, inplace=True)
    for call in (
        lambda: frozen_groups(orbits), lambda: unit_slices(orbit, 0), lambda: module_dependencies(orbits, "0"),
        lambda: unit_dependencies(orbit, 0),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="call find_orbits again"):
            call()


# -- what is frozen, and why


def reasons(orbits, tensor, dim=0):
    return [(r.kind, r.vertex) for group in frozen_groups(orbits).of_tensor(tensor, dim) for r in group.reasons]


def test_what_the_caller_names_is_frozen_for_that():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    by_layer = of(model, torch.randn(2, 3), frozen="2")
    assert reasons(by_layer, "0.bias") == [("named", "2")]
    assert reasons(by_layer, "4.weight", 1) == [("named", "2")]
    by_tensor = of(model, torch.randn(2, 3), frozen="2.bias")
    assert reasons(by_tensor, "4.weight", 1) == [("named", "2.bias")]
    assert reasons(by_tensor, "0.bias") == []


def test_an_operator_without_a_rule_is_named():
    class Odd(nn.Module):
        def forward(self, x):
            return x.flip(1)

    model = nn.Sequential(nn.Linear(3, 4), Odd(), nn.Linear(4, 2)).eval()
    orbits = torchorbit.find_orbits(torchorbit.convert(model, torch.randn(2, 3), atomic=[Odd]))
    (before,), (after,) = (
        [g.reasons for g in frozen_groups(orbits).of_tensor(*place)] for place in (("0.weight", 0), ("2.weight", 1))
    )
    assert [reason.kind for reason in (*before, *after)] == ["no rule", "no rule"]
    assert "Odd" in before[0].text
    assert after[0].vertex == before[0].vertex


def test_what_meets_the_input_behind_its_preprocessing_is_frozen_by_the_input():
    model = Computes(
        lambda self, x: self.conv((x - self.mean) / self.std), mean=torch.zeros(1, 3, 1, 1), std=torch.ones(1, 3, 1, 1),
        conv=nn.Conv2d(3, 4, 1),
    )  # fmt: skip
    orbits = of(model, torch.randn(2, 3, 5, 5))
    for tensor, dim in (("mean", 1), ("std", 1), ("conv.weight", 1)):
        assert reasons(orbits, tensor, dim) == [("input", "input_0")], tensor


def test_channels_beside_the_input_in_a_concatenation_are_told_apart():
    """As in a decoder that is given the image again."""
    model = Computes(
        lambda self, x: self.last(self.norm(torch.cat([self.first(x), x], 1))), first=nn.Conv2d(3, 4, 1),
        norm=nn.BatchNorm2d(7), last=nn.Conv2d(7, 2, 1),
    )  # fmt: skip
    orbits = of(model, torch.randn(2, 3, 5, 5))
    groups = frozen_groups(orbits)
    assert groups.reasons("norm.weight", 0, 3) == ()
    for tensor, dim in (("norm.weight", 0), ("last.weight", 1)):
        assert [reason.kind for reason in groups.reasons(tensor, dim, 5)] == ["input"]
    (beside,) = groups.of_tensor("norm.weight")
    assert [s.indices for s in beside.slices if s.tensor == "norm.weight"] == [(4, 5, 6)]


def test_what_only_one_channel_is_taken_of_and_what_an_operator_needs_whole():
    model = Computes(
        lambda self, x: self.one(x)[:, 1:2] + self.all(x).cumsum(1).sum(1, keepdim=True), one=nn.Linear(3, 4),
        all=nn.Linear(3, 5),
    )  # fmt: skip
    orbits = of(model, torch.randn(2, 3))
    groups = frozen_groups(orbits)
    alone = groups.reasons("one.weight", 0, 1)
    assert [reason.kind for reason in alone] == ["alone"]
    (summed,) = groups.of_tensor("all.bias")
    assert summed.width == 5
    assert [(reason.kind, "cumsum" in reason.text) for reason in summed.reasons] == [("operator", True)]


def test_tables_of_whole_numbers_freeze_what_they_meet():
    model = Computes(
        lambda self, x: self.last(self.first(x) * torch.arange(1, 5)), first=nn.Linear(3, 4), last=nn.Linear(4, 2)
    )
    orbits = of(model, torch.randn(2, 3))
    assert reasons(orbits, "first.weight") == [("constant", "arange")]


def test_kernels_are_listed_on_request(mobilenet):
    assert not any(group.space for group in frozen_groups(mobilenet))
    kernels = [group for group in frozen_groups(mobilenet, space=True) if group.space]
    (rows,) = [g for g in kernels if ("features.0.0.weight", 2) in {(s.tensor, s.dim) for s in g.slices}]
    assert rows.width == 3


def test_kernels_of_standardized_weights_are_no_channels_either():
    orbits = torchorbit.find_orbits(converted("nf_resnet26"))
    assert [[reason.kind for reason in group.reasons] for group in frozen_groups(orbits)] == [["input"], ["output"]]
    (rows,) = frozen_groups(orbits, space=True).of_tensor("stem.conv.weight", 2)
    assert (rows.width, rows.space) == (7, True)


def test_a_dimension_that_is_joined_with_another_says_where():
    model = Computes(
        lambda self, x: self.last(self.first(x) + self.table.reshape(-1)),
        first=nn.Linear(6, 72),
        table=nn.Parameter(torch.randn(3, 2, 3, 2, 2)),
        last=nn.Linear(72, 4),
    )
    orbits = torchorbit.find_orbits(torchorbit.convert(model, torch.randn(2, 6)))
    (rows,) = frozen_groups(orbits).of_tensor("table", 0)
    assert {reason.kind for reason in rows.reasons} == {"shape"}
    assert any("reshape" in reason.vertex for reason in rows.reasons)


def test_a_dimension_of_windows_that_meets_no_channels_says_where():
    orbits = torchorbit.find_orbits(converted("halonet26t", 256))
    (rows,) = frozen_groups(orbits).of_tensor("stages.2.1.self_attn.pos_embed.height_rel", 0)
    assert {reason.kind for reason in rows.reasons} == {"unlabelled"}


def test_position_embeddings_have_no_channels_along_their_tokens(vit):
    (tokens,) = frozen_groups(vit).of_tensor("pos_embed", 1)
    assert tokens.width == 197
    assert [reason.kind for reason in tokens.reasons] == ["unlabelled"]


@pytest.mark.parametrize("name", [
    "resnet18", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "efficientnet_cc_b0_4e", "levit_128s",
    "mixer_s32_224", "coat_lite_tiny", "eca_resnet33ts", "nf_resnet26", "mobilevit_xxs",
])  # fmt: skip
def test_every_position_that_is_in_no_orbit_is_in_one_group_with_a_reason(name):
    orbits = torchorbit.find_orbits(converted(name, timm.get_pretrained_cfg(name).input_size[-1]))
    groups = frozen_groups(orbits, space=True)
    listed = {}
    for group in groups:
        assert group.reasons
        assert all(reason.text for reason in group.reasons)
        for piece in group.slices:
            listed.setdefault((piece.tensor, piece.dim), []).extend(piece.indices)
    owned = _owned(orbits)
    seen = set()
    for path, value in orbits.readings[0].attributes.items():
        if id(value) in seen:
            continue
        seen.add(id(value))
        for axis, dim in enumerate(value.dims):
            if list(arrays_of(dim)):
                expected = [n for n in range(value.shape[axis]) if not owned[path, axis][n]]
                assert sorted(set(listed.get((path, axis), []))) == expected, (path, axis)
    for path, axis in orbits.dead:
        assert listed[path, axis], "what no reading can prune has reasons as well"
    kinds = {reason.kind for group in groups for reason in group.reasons}
    assert {"input", "output"} <= kinds


def test_looking_changes_nothing(mobilenet):
    before = str(mobilenet)
    frozen_groups(mobilenet)
    module_dependencies(mobilenet, "features.3")
    assert str(mobilenet) == before
    again = torchorbit.find_orbits(mobilenet.model.dag)
    assert str(again) == before


def test_what_is_frozen_does_not_depend_on_weights(mobilenet):
    model = stir(torchvision.models.mobilenet_v2(num_classes=10)).eval()
    orbits = torchorbit.find_orbits(torchorbit.convert(model, torch.empty(2, 3, 224, 224)))
    assert str(frozen_groups(orbits)) == str(frozen_groups(mobilenet))
