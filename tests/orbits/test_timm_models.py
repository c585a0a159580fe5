"""What is one orbit in real models: known from how they are built, not from what the engine says."""

import numpy as np
import pytest
import torch
import torchvision

import torchorbit
from tests.orbits.helpers import kinds, of_timm, owned, targets, the


def rows(*heads, inside):
    """Positions of whole heads in a projection."""
    return tuple(head * inside + place for head in heads for place in range(inside))


def test_resnet18():
    dag = torchorbit.convert(torchvision.models.resnet18(weights=None).eval(), torch.empty(2, 3, 224, 224))
    orbits = torchorbit.find_orbits(dag)
    # A residual stream for each stage, the stem's joins the first; and the inside of every block.
    assert kinds(orbits) == sorted([(64, 0)] * 3 + [(128, 0)] * 3 + [(256, 0)] * 3 + [(512, 0)] * 3)
    stream = the(orbits, "conv1.weight")
    assert targets(orbits, stream.sources) == {"conv1", "layer1.0.conv2", "layer1.1.conv2"}
    assert targets(orbits, stream.sinks) == {
        "layer1.0.conv1", "layer1.1.conv1", "layer2.0.conv1", "layer2.0.downsample.0",
    }  # fmt: skip
    assert owned(stream, 7) == {
        **{
            (f"{norm}.{name}", 0): (7,)
            for norm in ("bn1", "layer1.0.bn2", "layer1.1.bn2")
            for name in ("weight", "bias", "running_mean", "running_var")
        },
        **{(f"{conv}.weight", 0): (7,) for conv in ("conv1", "layer1.0.conv2", "layer1.1.conv2")},
        **{
            (f"{conv}.weight", 1): (7,)
            for conv in ("layer1.0.conv1", "layer1.1.conv1", "layer2.0.conv1", "layer2.0.downsample.0")
        },
    }
    assert targets(orbits, the(orbits, "layer4.1.conv2.weight").sinks) == {"layer4.1.conv1", "fc"}
    assert orbits.units == 3 * (64 + 128 + 256 + 512)
    inner = the(orbits, "layer3.1.conv1.weight")
    assert targets(orbits, inner.sources) == {"layer3.1.conv1"}
    assert targets(orbits, inner.sinks) == {"layer3.1.conv2"}
    assert inner.parameters == 256 * 256 * 9 * 2 + 2 * 256


def test_resnext50():
    orbits = of_timm("resnext50_32x4d")
    assert orbits.of_tensor("layer1.0.conv1.weight")[0] is not orbits.of_tensor("layer1.0.conv2.weight")[0]
    channels, outputs = (the(orbits, f"layer1.0.conv{n}.weight") for n in (1, 2))
    group = the(orbits, "layer1.0.conv1.weight", groups=True)
    assert (channels.width, outputs.width, group.width) == (4, 4, 32)
    assert group is the(orbits, "layer1.0.conv2.weight", groups=True)
    every = tuple(range(2, 128, 4))
    assert owned(channels, 2)["layer1.0.conv1.weight", 0] == every
    assert owned(channels, 2)["layer1.0.conv2.weight", 1] == (2,)
    assert ("layer1.0.conv2.weight", 0) not in owned(channels, 2)
    assert owned(outputs, 2)["layer1.0.conv2.weight", 0] == every
    assert owned(outputs, 2)["layer1.0.conv3.weight", 1] == every
    whole = owned(group, 5)
    assert whole["layer1.0.conv1.weight", 0] == (20, 21, 22, 23)
    assert whole["layer1.0.conv2.weight", 0] == (20, 21, 22, 23)
    assert whole["layer1.0.conv3.weight", 1] == (20, 21, 22, 23)
    assert whole["layer1.0.bn1.running_var", 0] == (20, 21, 22, 23)
    assert ("layer1.0.conv2.weight", 1) not in whole
    # Four stages of 3, 4, 6, 3 blocks, three orbits in each; four residual streams and the stem.
    assert len(orbits) == 16 * 3 + 4 + 1


def test_vit_tiny():
    orbits = of_timm("vit_tiny_patch16_224", depth=2)
    prefix = "blocks.1.attn"
    stream = the(orbits, "patch_embed.proj.weight")
    assert stream.width == 192
    assert {("cls_token", 2), ("pos_embed", 2), ("head.weight", 1), (f"{prefix}.qkv.weight", 1)} <= set(owned(stream))
    widths = {orbit.width: orbit for orbit in orbits.of_tensor(f"{prefix}.qkv.weight") if not orbit.reading}
    assert list(widths) == [64]
    query_and_key, value = [o for o in orbits.of_tensor(f"{prefix}.qkv.weight") if not o.reading]
    assert owned(query_and_key, 3) == {
        (f"{prefix}.qkv.weight", 0): (3, 67, 131, 195, 259, 323),
        (f"{prefix}.qkv.bias", 0): (3, 67, 131, 195, 259, 323),
    }
    assert owned(value, 3) == {
        (f"{prefix}.qkv.weight", 0): (387, 451, 515),
        (f"{prefix}.qkv.bias", 0): (387, 451, 515),
        (f"{prefix}.proj.weight", 1): (3, 67, 131),
    }
    head = the(orbits, f"{prefix}.qkv.weight", groups=True)
    made = tuple(range(64, 128)) + tuple(range(192 + 64, 192 + 128)) + tuple(range(384 + 64, 384 + 128))
    assert owned(head, 1) == {
        (f"{prefix}.qkv.weight", 0): made,
        (f"{prefix}.qkv.bias", 0): made,
        (f"{prefix}.proj.weight", 1): tuple(range(64, 128)),
    }
    assert head.width == 3
    assert targets(orbits, head.sources) == {f"{prefix}.qkv"}
    assert targets(orbits, head.sinks) == {f"{prefix}.proj"}
    assert the(orbits, "blocks.0.mlp.fc1.weight").width == 768


def test_swin_heads_have_their_biases():
    orbits = of_timm("swin_tiny_patch4_window7_224", depths=(2, 2, 2, 2), embed_dim=48)
    prefix = "layers.1.blocks.0.attn"
    head = the(orbits, f"{prefix}.qkv.weight", groups=True)
    assert head.width == 6
    assert owned(head, 4)[f"{prefix}.relative_position_bias_table", 1] == (4,)
    assert owned(head, 4)[f"{prefix}.proj.weight", 1] == rows(4, inside=16)
    made = rows(4, 10, 16, inside=16)
    assert owned(head, 4)[f"{prefix}.qkv.weight", 0] == made
    # Shifting windows and merging patches leave the channels alone.
    stream = the(orbits, f"{prefix}.proj.weight")
    assert stream.width == 96
    assert len(owned(stream, 0)["layers.2.downsample.reduction.weight", 1]) == 4


def test_swinv2_heads_have_their_scale():
    orbits = of_timm("swinv2_tiny_window8_256", depths=(2, 2, 2, 2), embed_dim=48)
    prefix = "layers.1.blocks.1.attn"
    head = the(orbits, f"{prefix}.qkv.weight", groups=True)
    assert head.width == 6
    unit = owned(head, 2)
    assert unit[f"{prefix}.logit_scale", 0] == (2,)
    assert unit[f"{prefix}.cpb_mlp.2.weight", 0] == (2,)
    for bias in ("q_bias", "v_bias"):
        assert unit[f"{prefix}.{bias}", 0] == rows(2, inside=16)
    assert the(orbits, f"{prefix}.cpb_mlp.0.weight").width == 512
    # The coordinates from which the bias is made are an input, not what a layer makes; what is made of them is.
    assert not orbits.of_tensor(f"{prefix}.relative_coords_table", 3)
    assert not orbits.of_tensor(f"{prefix}.cpb_mlp.0.weight", 1)
    assert the(orbits, f"{prefix}.cpb_mlp.0.weight").width == 512


def test_xcit_attends_over_channels():
    orbits = of_timm("xcit_nano_12_p16_224", depth=3)
    prefix = "blocks.0.attn"
    # What the queries' channels are, the result's are; keys and values are contracted.
    query, key_and_value = [o for o in orbits.of_tensor(f"{prefix}.qkv.weight") if not o.reading]
    assert owned(query, 1) == {
        (f"{prefix}.qkv.weight", 0): (1, 33, 65, 97),
        (f"{prefix}.qkv.bias", 0): (1, 33, 65, 97),
        (f"{prefix}.proj.weight", 1): (1, 33, 65, 97),
    }
    assert owned(key_and_value, 1)[f"{prefix}.qkv.weight", 0] == tuple(range(129, 384, 32))
    head = the(orbits, f"{prefix}.qkv.weight", groups=True)
    assert owned(head, 2)[f"{prefix}.temperature", 0] == (2,)
    assert head.width == 4


def test_cait_heads_talk():
    orbits = of_timm("cait_xxs24_224", depth=3)
    prefix = "blocks.0.attn"
    asking, answering = [orbit for orbit in orbits.of_tensor(f"{prefix}.qkv.weight") if orbit.reading]
    talking = the(orbits, f"{prefix}.proj_l.weight", width=4)
    # Heads of the scores, heads between the two that mix them, heads of the values: three orbits.
    assert owned(asking, 1) == {
        (f"{prefix}.qkv.weight", 0): rows(1, 5, inside=48),
        (f"{prefix}.qkv.bias", 0): rows(1, 5, inside=48),
        (f"{prefix}.proj_l.weight", 1): (1,),
    }
    assert owned(talking, 1) == {
        (f"{prefix}.proj_l.weight", 0): (1,),
        (f"{prefix}.proj_l.bias", 0): (1,),
        (f"{prefix}.proj_w.weight", 1): (1,),
    }
    assert owned(answering, 1) == {
        (f"{prefix}.qkv.weight", 0): rows(9, inside=48),
        (f"{prefix}.qkv.bias", 0): rows(9, inside=48),
        (f"{prefix}.proj_w.weight", 0): (1,),
        (f"{prefix}.proj_w.bias", 0): (1,),
        (f"{prefix}.proj.weight", 1): rows(1, inside=48),
    }


def test_multi_query_attention_shares_its_keys():
    orbits = of_timm("mobilenetv4_hybrid_medium")
    name = next(v.target for v in orbits.model.graph.vertices if getattr(v, "target", "").endswith("attn.query.proj"))
    prefix = name.removesuffix(".query.proj")
    tensor = orbits.model.tensor_at
    shape = tensor(f"{prefix}.query.proj.weight").shape
    width = tensor(f"{prefix}.key.proj.weight").shape[0]
    heads = shape[0] // width
    query_and_key, head = (
        the(orbits, f"{prefix}.query.proj.weight"),
        the(orbits, f"{prefix}.query.proj.weight", groups=True),
    )
    assert (query_and_key.width, head.width) == (width, heads)
    unit = owned(query_and_key, 5)
    assert unit[f"{prefix}.query.proj.weight", 0] == tuple(range(5, shape[0], width))
    assert unit[f"{prefix}.key.proj.weight", 0] == (5,)
    value = the(orbits, f"{prefix}.value.proj.weight")
    assert owned(value, 5)[f"{prefix}.output.proj.weight", 1] == tuple(range(5, heads * value.width, value.width))
    # A head of queries has no keys and values of its own.
    assert {path for path, _ in owned(head, 0)} == {f"{prefix}.query.proj.weight", f"{prefix}.output.proj.weight"}


@pytest.mark.parametrize(
    ("name", "prefix", "heads", "inside"),
    [
        ("coatnet_pico_rw_224", "stages.2.blocks.0.attn", 4, 32),
        ("maxvit_pico_rw_256", "stages.1.blocks.0.attn_block.attn", 2, 32),
    ],
)
def test_heads_that_come_before_query_key_and_value(name, prefix, heads, inside):
    orbits = of_timm(name)
    query_and_key, value = [o for o in orbits.of_tensor(f"{prefix}.qkv.weight") if not o.reading]
    head = the(orbits, f"{prefix}.qkv.weight", groups=True)
    assert (query_and_key.width, value.width, head.width) == (inside, inside, heads)
    starts = [3 * inside * n for n in range(heads)]
    assert owned(query_and_key, 1)[f"{prefix}.qkv.weight", 0] == tuple(
        start + place for start in starts for place in (1, inside + 1)
    )
    assert owned(value, 1)[f"{prefix}.qkv.weight", 0] == tuple(start + 2 * inside + 1 for start in starts)
    assert owned(head, 1)[f"{prefix}.qkv.weight", 0] == tuple(range(3 * inside, 6 * inside))
    assert owned(head, 1)[f"{prefix}.rel_pos.relative_position_bias_table", 1] == (1,)
    assert owned(head, 1)[f"{prefix}.proj.weight", 1] == tuple(range(inside, 2 * inside))


def test_densenet_concatenates():
    orbits = of_timm("densenet121")
    grown = the(orbits, "features.denseblock1.denselayer2.conv2.weight")
    assert grown.width == 32
    unit = owned(grown, 3)
    # 64 channels of the stem, 32 of the first layer, then these.
    for later in range(3, 7):
        assert unit[f"features.denseblock1.denselayer{later}.norm1.weight", 0] == (64 + 32 + 3,)
        assert unit[f"features.denseblock1.denselayer{later}.conv1.weight", 1] == (64 + 32 + 3,)
    assert unit["features.transition1.conv.weight", 1] == (64 + 32 + 3,)
    assert "features.denseblock1.denselayer2.conv1.weight" not in {path for path, _ in unit}
    # 58 layers with a bottleneck each, the stem, and three transitions.
    assert len(orbits) == 2 * 58 + 1 + 3


def test_efficientnet_cc_has_tables_of_weights():
    orbits = of_timm("tf_efficientnet_cc_b0_4e")
    name = next(
        name
        for name, module in orbits.model.dag.named_modules()
        if name.endswith("routing_fn") and module.weight.shape[0] == 4
    )
    prefix = name.removesuffix(".routing_fn")
    table = orbits.model.tensor_at(f"{prefix}.conv_pw.weight")
    inside = the(orbits, f"{prefix}.bn1.weight")
    stream = the(orbits, f"{prefix}.bn3.weight")
    assert table.shape == (4, inside.width * owned_width(orbits, f"{prefix}.conv_pw.weight", inside))
    grid = np.arange(table.shape[1]).reshape(inside.width, -1)
    assert owned(inside, 2)[f"{prefix}.conv_pw.weight", 1] == tuple(grid[2])
    assert (f"{prefix}.conv_pwl.weight", 1) in owned(stream, 0)
    kernel = orbits.model.tensor_at(f"{prefix}.conv_dw.weight").shape[1] // inside.width
    assert owned(inside, 2)[f"{prefix}.conv_dw.weight", 1] == tuple(range(2 * kernel, 3 * kernel))


def owned_width(orbits, path, inside):
    """Input channels of a table of pointwise kernels."""
    return orbits.model.tensor_at(path).shape[1] // inside.width


@pytest.mark.parametrize("name", ["eca_resnet33ts", "ecaresnet26t", "eca_vovnet39b"])
def test_convolution_along_channels_is_no_obstacle(name):
    orbits = of_timm(name)
    kernels = [path for path, m in orbits.model.dag.named_modules() if isinstance(m, torch.nn.Conv1d)]
    assert kernels
    for path in kernels:
        for dim in range(3):
            assert not orbits.of_tensor(f"{path}.weight", dim)
    convolutions = [
        path for path, m in orbits.model.dag.named_modules() if isinstance(m, torch.nn.Conv2d) and m.out_channels > 1
    ]
    assert all(orbits.of_tensor(f"{path}.weight", 0) for path in convolutions)


def test_sequencer2d_has_units_of_lstms():
    orbits = of_timm("sequencer2d_s", layers=(1, 1, 1, 1))
    prefix = "stages.0.blocks.0.rnn_tokens"
    hidden = the(orbits, f"{prefix}.rnn_v.weight_hh_l0", 1)
    assert hidden.width == 48
    unit = owned(hidden, 7)
    gates = (7, 55, 103, 151)
    for direction in ("l0", "l0_reverse"):
        for tensor in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            assert unit[f"{prefix}.rnn_v.{tensor}_{direction}", 0] == gates
        assert unit[f"{prefix}.rnn_v.weight_hh_{direction}", 1] == (7,)
    assert unit[f"{prefix}.fc.weight", 1] == (7, 55)
    other = the(orbits, f"{prefix}.rnn_h.weight_hh_l0", 1)
    assert owned(other, 7)[f"{prefix}.fc.weight", 1] == (96 + 7, 96 + 55)
    stream = the(orbits, "stem.proj.weight")
    assert owned(stream, 0)[f"{prefix}.rnn_h.weight_ih_l0_reverse", 1] == (0,)


def test_nfnet_standardizes_its_weights():
    orbits = of_timm("test_nfnet")
    stem = the(orbits, "stem.conv1.weight")
    assert set(owned(stem)) == {
        ("stem.conv1.weight", 0), ("stem.conv1.gain", 0), ("stem.conv1.bias", 0), ("stem.conv2.weight", 1),
    }  # fmt: skip
    prefix = "stages.1.0"
    channels, group = the(orbits, f"{prefix}.conv1.weight"), the(orbits, f"{prefix}.conv1.weight", groups=True)
    assert channels.width == 8
    assert owned(channels, 3)[f"{prefix}.conv2.weight", 1] == (3,)
    assert owned(group, 1)[f"{prefix}.conv2b.gain", 0] == tuple(range(8, 16))


def test_evonorm_keeps_its_groups():
    orbits = of_timm("test_efficientnet_evos")
    channels, group = the(orbits, "conv_stem.weight"), the(orbits, "conv_stem.weight", groups=True)
    assert channels.width == 8
    assert group.width * channels.width == orbits.model.tensor_at("conv_stem.weight").shape[0]
    assert owned(channels, 3)["bn1.v", 0] == tuple(range(3, 8 * group.width, 8))
    assert owned(group, 1)["bn1.bias", 0] == tuple(range(8, 16))


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("test_vit", "patch_embed.proj.weight", "head.weight"),
        ("test_efficientnet", "conv_stem.weight", "classifier.weight"),
        ("test_maxvit", "stem.conv1.weight", "head.fc.weight"),
        ("test_nfnet", "stem.conv1.weight", "head.fc.weight"),
        ("test_mambaout", "stem.conv1.weight", "head.fc.weight"),
        ("densenet121", "features.conv0.weight", "classifier.weight"),
        ("mixer_s32_224", "stem.proj.weight", "head.weight"),
        ("levit_128s", "stem.conv1.linear.weight", "head.linear.weight"),
    ],
)
def test_what_goes_in_and_what_comes_out_stays(name, first, last):
    orbits = of_timm(name)
    assert orbits.of_tensor(first, 0)
    assert not orbits.of_tensor(first, 1)
    assert orbits.of_tensor(last, 1)
    assert not orbits.of_tensor(last, 0)
    assert orbits.unruled == ()


@pytest.mark.parametrize("name", ["test_vit", "test_maxvit", "test_nfnet", "test_efficientnet_evos", "test_vit3"])
def test_nothing_belongs_to_two_units_of_one_reading(name):
    orbits = of_timm(name)
    taken = set()
    for orbit in orbits:
        for unit in range(orbit.width):
            for (tensor, dim), indices in owned(orbit, unit).items():
                places = {(orbit.reading, tensor, dim, index) for index in indices}
                assert not places & taken
                taken |= places
        union = {}
        for unit in range(orbit.width):
            for key, indices in owned(orbit, unit).items():
                union.setdefault(key, []).extend(indices)
        assert {key: tuple(sorted(indices)) for key, indices in union.items()} == owned(orbit)


def test_is_the_same_every_time():
    first = of_timm("test_maxvit")
    again = torchorbit.find_orbits(first.model.dag)
    assert [orbit.slices for orbit in again] == [orbit.slices for orbit in first]
    assert str(again) == str(first)
