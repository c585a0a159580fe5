"""Real models, one or more per family: the graph computes what the source computes, in every form that a graph has."""

import pytest
import timm
import torch

import torchorbit
from tests.models import assert_equal, assert_same, reloaded, stir
from tests.numerics import allowed
from torchorbit.graph.dag import DagModule
from torchorbit.graph.vertices import ModuleVertex

pytestmark = pytest.mark.numeric

# Where even the smallest variant is large, a shallower one does: the blocks are the same.
_TINY = {"depth": 2, "embed_dim": 192, "num_heads": 3}
FAMILIES = {
    "beit_base_patch16_224": _TINY,
    "botnet26t_256": {},
    "cait_xxs24_224": {"depth": 3},
    "coat_tiny": {},
    "coat_lite_tiny": {},
    "convit_tiny": {},
    "convmixer_768_32": {},
    "cpubone_nano": {},
    "crossvit_9_dagger_240": {},
    "cs3darknet_focus_s": {},
    "cspnext_tiny": {},
    "davit_tiny": {"depths": (1, 1, 1, 1)},
    "deit_tiny_distilled_patch16_224": {"depth": 2},
    "densenet121": {},
    "dla46x_c": {},
    "dpn48b": {},
    "eca_halonext26ts": {},
    "edgenext_xx_small": {},
    "efficientformer_l1": {},
    "efficientformerv2_s0": {},
    "efficientvim_m1": {},
    "efficientvit_b0": {},
    "efficientvit_m0": {},
    "eva02_tiny_patch14_224": {"depth": 2},
    "fasternet_t0": {},
    "fastvit_t8": {},
    "focalnet_tiny_lrf": {},
    "gcvit_xxtiny": {},
    "ghostnet_050": {},
    "ghostnetv3_050": {},
    "gmlp_ti16_224": {},
    "halonet_h1": {},
    "hardcorenas_a": {},
    "hgnetv2_b0": {},
    "hiera_tiny_224": {"stages": (1, 1, 1, 1)},
    "hrnet_w18_small": {},
    "iformer_t": {},
    "inception_next_atto": {},
    "lambda_resnet26t": {},
    "lcnetv2_small": {},
    "legacy_seresnet18": {},
    "levit_128s": {},
    "levit_conv_128s": {},
    "lowformer_b0": {},
    "maxvit_pico_rw_256": {},
    "mixer_s32_224": {},
    "mobilenetv3_small_050": {},
    "mobilenetv4_conv_small_050": {},
    "mobileone_s0": {},
    "mobilevit_xxs": {},
    "mobilevitv2_050": {},
    "mvitv2_tiny": {},
    "nest_tiny": {},
    "nextvit_small": {},
    "nf_regnet_b0": {},
    "pit_ti_distilled_224": {},
    "poolformerv2_s12": {},
    "pvt_v2_b0": {},
    "rdnet_tiny": {},
    "regnety_002": {},
    "regnetz_b16_evos": {},
    "repghostnet_050": {},
    "repvit_m0_9": {},
    "res2net50_14w_8s": {},
    "resmlp_12_224": {},
    "resnest14d": {},
    "resnetv2_18d": {},
    "rexnet_100": {},
    "samvit_base_patch16_224": {**_TINY, "global_attn_indexes": (1,)},
    "selecsls42b": {},
    "sequencer2d_s": {"layers": (1, 1, 1, 1)},
    "shvit_s1": {},
    "skresnet18": {},
    "starnet_s050": {},
    "swiftformer_xs": {},
    "swin_tiny_patch4_window7_224": {"depths": (2, 2, 2, 2), "embed_dim": 48},
    "swinv2_tiny_window8_256": {"depths": (2, 2, 2, 2), "embed_dim": 48},
    "swinv2_cr_tiny_224": {"depths": (2, 2, 2, 2), "embed_dim": 48},
    "test_byobnet": {},
    "test_convnext": {},
    "test_convnext2": {},
    "test_efficientnet": {},
    "test_efficientnet_evos": {},
    "test_mambaout": {},
    "test_nfnet": {},
    "test_resnet": {},
    "test_vit": {},
    "test_vit3": {},
    "test_vit_relpos": {},
    "tf_efficientnet_cc_b0_4e": {},
    "tf_mixnet_s": {},
    "tiny_vit_5m_224": {},
    "tnt_s_patch16_224": {"depth": 2},
    "tresnet_m": {},
    "twins_svt_small": {"depths": (1, 1, 2, 1)},
    "vgg11_bn": {"num_classes": 10},
    "visformer_tiny": {},
    "vit_srelpos_small_patch16_224": {"depth": 2},
    "vit_tiny_r_s16_p8_224": {"depth": 2},
    "vitamin_small_224": {},
    "volo_d1_224": {},
    "ese_vovnet19b_slim": {},
    "xception41": {},
    "xcit_nano_12_p16_224": {"depth": 3},
}


def leaf_owners(dag: DagModule, prefix: str = "") -> dict[str, torch.nn.Module]:
    """The modules of all leaf vertices by path."""
    found = {}
    for vertex in dag.vertices:
        if isinstance(vertex, ModuleVertex):
            module = dag.get_submodule(vertex.target)
            path = f"{prefix}{vertex.target}"
            found |= leaf_owners(module, f"{path}.") if isinstance(module, DagModule) else {path: module}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_graph_of_a_timm_model_is_the_model(name):
    model = stir(timm.create_model(name, **FAMILIES[name])).eval()
    size = model.pretrained_cfg["input_size"]
    x = torch.randn(5, *size)
    with torch.no_grad():
        expected = model(x)
    assert expected.isfinite().all()
    assert (expected[0] - expected[1]).abs().max() > 1e-3 * expected.abs().max(), (
        "the output hardly depends on the input"
    )

    dag = torchorbit.convert(model, torch.randn(2, *size))

    tolerance = allowed(model, x[:1])
    with torch.no_grad():
        assert_same(dag(x), expected, tolerance)
        alone = dag(x[:1])
        assert_same(alone, model(x[:1]), tolerance)
        assert_equal(reloaded(dag)(x[:1]), alone)
        assert_same(dag.flatten()(x[:1]), alone, tolerance)

    assert dag.provenance.free_batch
    assert dag.provenance.mode == "both"
    assert list(dag.state_dict()) == list(model.state_dict())
    assert list(dag.flatten().state_dict()) == list(model.state_dict())
    dag.load_state_dict(model.state_dict(), strict=True)
    modules = dict(model.named_modules(remove_duplicate=False))
    leaves = leaf_owners(dag)
    assert leaves
    assert all(module is modules[path] for path, module in leaves.items())
