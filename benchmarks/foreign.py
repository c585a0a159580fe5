"""Models of other libraries, without trained weights and as small as the library lets them be.

What belongs to a library is imported when its first model is built. `requirements-generality.txt` says what to install.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from examples import Case, Example, floats, images, named, together, tokens, whole

MODULES = {
    "torchvision": "torchvision.models",
    "timm features": "timm",
    "transformers": "transformers",
    "segmentation_models_pytorch": "segmentation_models_pytorch",
    "ultralytics": "ultralytics.nn.tasks",
    "diffusers": "diffusers",
    "monai": "monai.networks.nets",
    "open_clip": "open_clip",
}
"""Source -> the module that is imported before its models are built."""


def cases() -> Iterator[Case]:
    """All models."""
    yield from _torchvision()
    yield from _timm_features()
    yield from _transformers()
    yield from _segmentation_models()
    yield from _ultralytics()
    yield from _diffusers()
    yield from _monai()
    yield from _open_clip()


def _made(module: str, name: str, *args: Any, **kwargs: Any) -> Callable[[], nn.Module]:
    """What calls a class or function of a library."""
    return lambda: getattr(importlib.import_module(module), name)(*args, **kwargs)


# -- torchvision


class Chained(nn.Module):
    """A head on what a backbone gives."""

    def __init__(self, backbone: nn.Module, head: nn.Module, *, levels: bool = True):
        super().__init__()
        self.backbone, self.head, self.levels = backbone, head, levels

    def forward(self, x: Tensor) -> Any:
        features = self.backbone(x)
        return self.head(list(features.values()) if self.levels else features)


def _pyramid(name: str) -> nn.Module:
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    return resnet_fpn_backbone(backbone_name=name, weights=None, trainable_layers=5)


def _fpn() -> nn.Module:
    return _pyramid("resnet18")


def _fpn_of_mobilenet() -> nn.Module:
    from torchvision.models.detection.backbone_utils import mobilenet_backbone

    return mobilenet_backbone(backbone_name="mobilenet_v3_small", fpn=True, weights=None)


def _retinanet() -> nn.Module:
    from torchvision.models.detection.retinanet import RetinaNetHead

    return Chained(_pyramid("resnet18"), RetinaNetHead(256, 3, 6))


def _fcos() -> nn.Module:
    from torchvision.models.detection.fcos import FCOSHead

    return Chained(_pyramid("resnet18"), FCOSHead(256, 1, 6))


def _region_proposals() -> nn.Module:
    from torchvision.models.detection.rpn import RPNHead

    return Chained(_pyramid("resnet18"), RPNHead(256, 3))


def _ssdlite() -> nn.Module:
    from functools import partial

    from torchvision.models import mobilenet_v3_small
    from torchvision.models.detection import _utils
    from torchvision.models.detection.ssdlite import SSDLiteHead, _mobilenet_extractor

    norm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.03)
    backbone = _mobilenet_extractor(mobilenet_v3_small(weights=None, norm_layer=norm), 6, norm)
    channels = _utils.retrieve_out_channels(backbone, (128, 128))
    return Chained(backbone, SSDLiteHead(channels, [6] * len(channels), 5, norm))


def _traced_features() -> nn.Module:
    from torchvision.models import resnet18
    from torchvision.models.feature_extraction import create_feature_extractor

    return create_feature_extractor(resnet18(weights=None), {"layer2": "low", "layer4": "high"})


def _vit() -> nn.Module:
    from torchvision.models.vision_transformer import VisionTransformer

    return VisionTransformer(64, 16, 2, 4, 64, 128, num_classes=10)


def _swin(version: int) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from torchvision.models import swin_transformer as swin

        block, down = swin.SwinTransformerBlock, swin.PatchMerging
        if version == 2:
            block, down = swin.SwinTransformerBlockV2, swin.PatchMergingV2
        return swin.SwinTransformer(
            [4, 4], 24, [2, 2], [2, 4], [4, 4], num_classes=10, block=block, downsample_layer=down
        )

    return build


def _maxvit() -> nn.Module:
    from torchvision.models.maxvit import MaxVit

    return MaxVit((64, 64), 16, 4, [16, 32], [1, 1], 8, 0.0, num_classes=10)


def _torchvision() -> Iterator[Case]:
    source = "torchvision"
    for name in [
        "alexnet",
        "densenet121",
        "efficientnet_v2_s",
        "mnasnet0_5",
        "mobilenet_v2",
        "mobilenet_v3_small",
        "regnet_y_400mf",
        "resnet18",
        "resnext50_32x4d",
        "shufflenet_v2_x0_5",
        "squeezenet1_1",
        "vgg11_bn",
        "convnext_tiny",
    ]:
        yield Case(
            source, name, _made("torchvision.models", name, weights=None), images(64 if name != "alexnet" else 96)
        )
    googlenet = _made("torchvision.models", "googlenet", weights=None, aux_logits=True, init_weights=False)
    yield Case(source, "googlenet with auxiliary heads", googlenet, images(96))
    inception = _made("torchvision.models", "inception_v3", weights=None, aux_logits=True, init_weights=False)
    yield Case(source, "inception_v3 with auxiliary head", inception, images(299))
    yield Case(source, "vit", _vit, images(64))
    yield Case(source, "swin", _swin(1), images(64))
    yield Case(source, "swin_v2", _swin(2), images(64))
    yield Case(source, "swin_v2_t", _made("torchvision.models", "swin_v2_t", weights=None), images(64))
    yield Case(source, "maxvit", _maxvit, images(64))
    for name, options in (
        ("fcn_resnet50", {"aux_loss": True}),
        ("deeplabv3_resnet50", {"aux_loss": True}),
        ("deeplabv3_mobilenet_v3_large", {}),
        ("lraspp_mobilenet_v3_large", {}),
    ):
        build = _made(
            "torchvision.models.segmentation", name, weights=None, weights_backbone=None, num_classes=5, **options
        )
        yield Case(source, f"segmentation {name}", build, images(64))
    for name in ("r3d_18", "mc3_18", "r2plus1d_18"):
        yield Case(
            source, f"video {name}", _made("torchvision.models.video", name, weights=None), floats((3, 4, 32, 32))
        )
    yield Case(source, "video s3d", _made("torchvision.models.video", "s3d", weights=None), floats((3, 16, 224, 224)))
    yield Case(source, "video swin3d", _swin3d, floats((3, 4, 32, 32)))
    yield Case(source, "detection resnet18 with pyramid", _fpn, images(64))
    yield Case(source, "detection mobilenet_v3 with pyramid", _fpn_of_mobilenet, images(64))
    yield Case(source, "detection RetinaNet without boxes", _retinanet, images(64))
    yield Case(source, "detection FCOS without boxes", _fcos, images(64))
    yield Case(source, "detection region proposals without boxes", _region_proposals, images(64))
    yield Case(source, "detection SSDLite without boxes", _ssdlite, images(128))
    yield Case(source, "features of a traced resnet18", _traced_features, images(64))
    yield Case(
        source,
        "flow raft_small",
        _made("torchvision.models.optical_flow", "raft_small", weights=None),
        floats((3, 128, 128), (3, 128, 128)),
    )


def _swin3d() -> nn.Module:
    from torchvision.models.video.swin_transformer import SwinTransformer3d

    return SwinTransformer3d([2, 4, 4], 24, [2, 2], [2, 4], [2, 4, 4], num_classes=10)


# -- timm


def _timm_features() -> Iterator[Case]:
    for name in [
        "resnet18",
        "resnet10t",
        "mobilenetv3_small_050",
        "mobilenetv4_conv_small_050",
        "efficientnet_lite0",
        "regnety_002",
        "hrnet_w18_small",
        "densenet121",
        "ghostnet_100",
        "cspresnet50",
        "ese_vovnet19b_dw",
        "dla34",
        "selecsls42b",
        "rexnet_100",
        "repvgg_a0",
        "mobileone_s0",
        "convnext_atto",
        "edgenext_xx_small",
        "mobilevit_xxs",
        "nf_regnet_b0",
        "poolformerv2_s12",
        "pvt_v2_b0",
    ]:
        side = 64 if name not in ("mobilevit_xxs", "edgenext_xx_small") else 128
        yield Case("timm features", name, _made("timm", "create_model", name, features_only=True), images(side))
    for name in ("vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "eva02_tiny_patch14_224"):
        side = 112
        build = _made("timm", "create_model", name, features_only=True, img_size=side)
        yield Case("timm features", name, build, images(side))


# -- transformers

_TEXT: dict[str, Any] = {
    "vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_VISION: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 32,
    "patch_size": 8, "num_channels": 3,
}  # fmt: skip
_GROUPED = {"num_key_value_heads": 2}


def _zero_rates(config: Any) -> None:
    """Turn off what a configuration, or one within it, drops at random."""
    for name, value in list(vars(config).items()):
        if hasattr(value, "to_dict"):
            _zero_rates(value)
        elif isinstance(value, float) and any(word in name for word in ("drop", "_prob", "_pdrop")):
            setattr(config, name, 0.0)


def _transformer(model: str, config: str, attention: str | None, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        transformers = importlib.import_module("transformers")
        made = getattr(transformers, config)(**options)
        _zero_rates(made)
        cls = getattr(transformers, model)
        return cls._from_config(made, attn_implementation=attention) if attention else cls(made)

    return build


def _masked(length: int = 12, below: int = 99) -> Example:
    """Texts with a mask over the padding at their ends, as a tokenizer gives them."""

    def make(batch: int) -> dict[str, Any]:
        mask = torch.ones(batch, length, dtype=torch.long)
        mask[0, -3:] = 0
        return {"input_ids": whole(length, below, batch), "attention_mask": mask}

    return make


def _transformers() -> Iterator[Case]:
    yield from _texts()
    yield from _visions()
    yield from _sounds()
    yield from _pairs_of_kinds()


def _case(
    model: str, config: str, example: Example, *attentions: str | None, label: str = "", **options: Any
) -> Iterator[Case]:
    for attention in attentions or (None,):
        name = " ".join(filter(None, (model, label, attention)))
        yield Case("transformers", name, _transformer(model, config, attention, **options), example)


def _texts() -> Iterator[Case]:
    both = ("eager", "sdpa")
    text, grouped = _TEXT, {**_TEXT, **_GROUPED}
    decoder = {**grouped, "use_cache": False}
    yield from _case("BertForSequenceClassification", "BertConfig", _masked(), *both, **text)
    yield from _case("BertForMaskedLM", "BertConfig", tokens(), "sdpa", **text)
    yield from _case("RobertaForSequenceClassification", "RobertaConfig", _masked(), *both, **text)
    yield from _case("AlbertForSequenceClassification", "AlbertConfig", _masked(), "sdpa", embedding_size=16, **text)
    yield from _case("ElectraForTokenClassification", "ElectraConfig", _masked(), "sdpa", embedding_size=16, **text)
    yield from _case(
        "DistilBertForSequenceClassification", "DistilBertConfig", _masked(), *both,
        vocab_size=99, dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    yield from _case(
        "DebertaV2ForSequenceClassification",
        "DebertaV2Config",
        _masked(),
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        **text,
    )
    yield from _case("MPNetForSequenceClassification", "MPNetConfig", _masked(), **text)
    yield from _case(
        "ModernBertForSequenceClassification",
        "ModernBertConfig",
        _masked(),
        *both,
        **{**text, "cls_token_id": 1, "sep_token_id": 2},
    )
    yield from _case("ConvBertForSequenceClassification", "ConvBertConfig", _masked(), embedding_size=32, **text)
    yield from _case("SqueezeBertForSequenceClassification", "SqueezeBertConfig", _masked(), embedding_size=32, **text)
    yield from _case(
        "MobileBertForSequenceClassification",
        "MobileBertConfig",
        _masked(),
        embedding_size=32,
        true_hidden_size=32,
        intra_bottleneck_size=32,
        **text,
    )
    yield from _case(
        "FNetForSequenceClassification",
        "FNetConfig",
        tokens(),
        **{k: v for k, v in text.items() if k != "num_attention_heads"},
    )
    yield from _case(
        "NystromformerForSequenceClassification",
        "NystromformerConfig",
        tokens(),
        num_landmarks=4,
        segment_means_seq_len=12,
        **text,
    )
    yield from _case("RoFormerForSequenceClassification", "RoFormerConfig", _masked(), embedding_size=32, **text)
    yield from _case(
        "GPT2LMHeadModel", "GPT2Config", tokens(), *both,
        vocab_size=99, n_positions=64, n_embd=32, n_layer=2, n_head=4, use_cache=False, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    yield from _case("GPTNeoXForCausalLM", "GPTNeoXConfig", tokens(), "sdpa", use_cache=False, **text)
    yield from _case(
        "OPTForCausalLM",
        "OPTConfig",
        tokens(),
        "sdpa",
        ffn_dim=64,
        word_embed_proj_dim=32,
        use_cache=False,
        **{k: v for k, v in text.items() if k != "intermediate_size"},
    )
    yield from _case(
        "BloomForCausalLM",
        "BloomConfig",
        tokens(),
        vocab_size=99,
        hidden_size=32,
        n_layer=2,
        n_head=4,
        use_cache=False,
        pad_token_id=0,
    )
    yield from _case("LlamaForCausalLM", "LlamaConfig", tokens(), *both, **decoder)
    yield from _case("LlamaForCausalLM", "LlamaConfig", tokens(), "sdpa", label="with a cache", **grouped)
    yield from _case("LlamaForSequenceClassification", "LlamaConfig", _masked(), "sdpa", **decoder)
    yield from _case("MistralForCausalLM", "MistralConfig", tokens(), "sdpa", sliding_window=8, **decoder)
    yield from _case("Qwen2ForCausalLM", "Qwen2Config", _masked(), "sdpa", **decoder)
    yield from _case("Qwen3ForCausalLM", "Qwen3Config", tokens(), *both, head_dim=8, **decoder)
    yield from _case("Gemma2ForCausalLM", "Gemma2Config", tokens(), "eager", head_dim=8, **decoder)
    yield from _case("PhiForCausalLM", "PhiConfig", tokens(), "sdpa", **decoder)
    yield from _case("Phi3ForCausalLM", "Phi3Config", tokens(), "sdpa", **decoder)
    yield from _case(
        "FalconForCausalLM",
        "FalconConfig",
        tokens(),
        "sdpa",
        use_cache=False,
        **{k: v for k, v in text.items() if k not in ("intermediate_size",)},
    )
    yield from _case("OlmoForCausalLM", "OlmoConfig", tokens(), "sdpa", **decoder)
    yield from _case(
        "MambaForCausalLM",
        "MambaConfig",
        tokens(),
        vocab_size=99,
        hidden_size=32,
        state_size=4,
        num_hidden_layers=2,
        use_cache=False,
    )
    t5 = {
        "vocab_size": 99,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 4,
        "use_cache": False,
        "decoder_start_token_id": 0,
    }
    yield from _case("T5EncoderModel", "T5Config", _masked(), **t5)
    both_sides = named(input_ids=tokens(), decoder_input_ids=tokens(6))
    yield from _case("T5ForConditionalGeneration", "T5Config", both_sides, **t5)
    bart = {
        "vocab_size": 99, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "use_cache": False,
    }  # fmt: skip
    yield from _case("BartForConditionalGeneration", "BartConfig", both_sides, *both, **bart)


def _visions() -> Iterator[Case]:
    both = ("eager", "sdpa")
    small = images(32)
    yield from _case("ViTForImageClassification", "ViTConfig", small, *both, **_VISION)
    yield from _case("DeiTForImageClassificationWithTeacher", "DeiTConfig", small, "sdpa", **_VISION)
    yield from _case(
        "BeitForImageClassification", "BeitConfig", small, *both, use_relative_position_bias=True, **_VISION
    )
    yield from _case(
        "Dinov2ForImageClassification",
        "Dinov2Config",
        small,
        "sdpa",
        **{k: v for k, v in _VISION.items() if k != "intermediate_size"},
    )
    yield from _case("SiglipVisionModel", "SiglipVisionConfig", small, *both, **_VISION)
    yield from _case("CLIPVisionModelWithProjection", "CLIPVisionConfig", small, "sdpa", projection_dim=16, **_VISION)
    yield from _case("ViTMSNForImageClassification", "ViTMSNConfig", small, "sdpa", **_VISION)
    yield from _case(
        "YolosForObjectDetection",
        "YolosConfig",
        small,
        "sdpa",
        num_detection_tokens=5,
        **{**_VISION, "image_size": [32, 32]},
    )
    video = floats((4, 3, 32, 32))
    yield from _case("VideoMAEForVideoClassification", "VideoMAEConfig", video, "sdpa", num_frames=4, **_VISION)
    yield from _case("TimesformerForVideoClassification", "TimesformerConfig", video, num_frames=4, **_VISION)
    windows = {
        "image_size": 64,
        "patch_size": 4,
        "embed_dim": 16,
        "depths": [2, 2],
        "num_heads": [2, 4],
        "window_size": 4,
    }
    yield from _case("SwinForImageClassification", "SwinConfig", images(64), **windows)
    yield from _case("Swinv2ForImageClassification", "Swinv2Config", images(64), **windows)
    stages = {"hidden_sizes": [16, 32], "depths": [1, 1]}
    yield from _case("ConvNextForImageClassification", "ConvNextConfig", small, num_stages=2, **stages)
    yield from _case("ConvNextV2ForImageClassification", "ConvNextV2Config", small, num_stages=2, **stages)
    yield from _case("ResNetForImageClassification", "ResNetConfig", small, embedding_size=16, **stages)
    yield from _case("RegNetForImageClassification", "RegNetConfig", small, embedding_size=16, groups_width=8, **stages)
    yield from _case(
        "MobileNetV2ForImageClassification", "MobileNetV2Config", small, depth_multiplier=0.25, image_size=32
    )
    yield from _case(
        "MobileViTForImageClassification",
        "MobileViTConfig",
        images(64),
        image_size=64,
        hidden_sizes=[24, 32, 40],
        num_attention_heads=2,
    )
    yield from _case(
        "EfficientNetForImageClassification",
        "EfficientNetConfig",
        images(64),
        image_size=64,
        width_coefficient=0.5,
        depth_coefficient=0.5,
        hidden_dim=640,
    )
    yield from _case("BitForImageClassification", "BitConfig", images(64), embedding_size=16, num_groups=8, **stages)
    segformer = {
        "num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [16, 32], "patch_sizes": [7, 3],
        "strides": [4, 2], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2], "decoder_hidden_size": 32,
    }  # fmt: skip
    yield from _case("SegformerForSemanticSegmentation", "SegformerConfig", images(64), **segformer)
    yield from _case(
        "GLPNForDepthEstimation",
        "GLPNConfig",
        images(64),
        **{
            **segformer,
            "num_encoder_blocks": 4,
            "depths": [1] * 4,
            "sr_ratios": [8, 4, 2, 1],
            "hidden_sizes": [16, 16, 32, 32],
            "patch_sizes": [7, 3, 3, 3],
            "strides": [4, 2, 2, 2],
            "num_attention_heads": [1, 1, 2, 2],
            "mlp_ratios": [2] * 4,
            "decoder_hidden_size": 16,
        },
    )
    yield from _case(
        "PvtForImageClassification",
        "PvtConfig",
        images(64),
        image_size=64,
        hidden_sizes=[16, 16, 32, 32],
        depths=[1] * 4,
        num_attention_heads=[1, 1, 2, 2],
        mlp_ratios=[2] * 4,
    )
    yield from _case(
        "PoolFormerForImageClassification",
        "PoolFormerConfig",
        images(64),
        hidden_sizes=[16, 16, 32, 32],
        depths=[1] * 4,
    )
    yield from _case(
        "LevitForImageClassification",
        "LevitConfig",
        images(64),
        image_size=64,
        hidden_sizes=[32, 48, 64],
        num_attention_heads=[2, 3, 4],
        depths=[1, 1, 1],
        key_dim=[8, 8, 8],
    )
    yield from _case(
        "CvtForImageClassification",
        "CvtConfig",
        images(64),
        embed_dim=[16, 32, 48],
        num_heads=[1, 2, 3],
        depth=[1, 2, 3],
    )
    yield from _case(
        "FocalNetForImageClassification",
        "FocalNetConfig",
        images(64),
        image_size=64,
        embed_dim=16,
        hidden_sizes=[16, 32],
        depths=[1, 1],
        focal_levels=[2, 2],
        focal_windows=[3, 3],
    )
    yield Case(
        "transformers",
        "DPTForDepthEstimation",
        _transformer(
            "DPTForDepthEstimation",
            "DPTConfig",
            "sdpa",
            **{
                **_VISION,
                "image_size": 32,
                "backbone_out_indices": [0, 1, 2, 3],
                "num_hidden_layers": 4,
                "neck_hidden_sizes": [8, 16, 16, 16],
                "fusion_hidden_size": 16,
                "is_hybrid": False,
                "backbone_config": None,
            },
        ),
        small,
    )
    yield Case("transformers", "DetrForObjectDetection", _detr, images(64))
    yield Case("transformers", "RTDetrForObjectDetection", _rt_detr, images(64))
    yield Case("transformers", "Mask2FormerForUniversalSegmentation", _mask2former, images(64))
    yield Case("transformers", "UperNetForSemanticSegmentation", _upernet, images(64))


def _small_resnet(**options: Any) -> Any:
    from transformers import ResNetConfig

    return ResNetConfig(embedding_size=16, hidden_sizes=[16, 16, 32, 32], depths=[1] * 4, **options)


def _detr() -> nn.Module:
    from transformers import DetrConfig, DetrForObjectDetection

    config = DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=_small_resnet(out_features=["stage4"]),
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        num_queries=5,
    )
    _zero_rates(config)
    return DetrForObjectDetection(config)


def _rt_detr() -> nn.Module:
    from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrResNetConfig

    backbone = RTDetrResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 16, 32, 32],
        depths=[1] * 4,
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = RTDetrConfig(
        backbone_config=backbone, encoder_hidden_dim=32, encoder_in_channels=[16, 32, 32], encoder_ffn_dim=64,
        encoder_attention_heads=4, d_model=32, num_queries=5, decoder_in_channels=[32, 32, 32], decoder_ffn_dim=64,
        decoder_layers=1, decoder_attention_heads=4, decoder_n_points=2, num_denoising=0,
    )  # fmt: skip
    _zero_rates(config)
    return RTDetrForObjectDetection(config)


def _mask2former() -> nn.Module:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    backbone = SwinConfig(
        image_size=64,
        patch_size=4,
        embed_dim=16,
        depths=[1] * 4,
        num_heads=[1, 1, 2, 2],
        window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=64,
        encoder_layers=1, decoder_layers=2, num_attention_heads=4, dim_feedforward=64, num_queries=5, num_labels=4,
    )  # fmt: skip
    _zero_rates(config)
    return Mask2FormerForUniversalSegmentation(config)


def _upernet() -> nn.Module:
    from transformers import UperNetConfig, UperNetForSemanticSegmentation

    backbone = _small_resnet(out_features=["stage1", "stage2", "stage3", "stage4"])
    config = UperNetConfig(
        backbone_config=backbone, hidden_size=32, num_labels=4, auxiliary_in_channels=32, auxiliary_channels=16
    )
    _zero_rates(config)
    return UperNetForSemanticSegmentation(config)


def _sounds() -> Iterator[Case]:
    wave = floats((400,))
    speech: dict[str, Any] = {
        **{k: _TEXT[k] for k in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")},
        "conv_dim": [16, 16],
        "conv_kernel": [4, 4],
        "conv_stride": [2, 2],
        "num_conv_pos_embeddings": 8,
        "vocab_size": 32,
        "num_conv_pos_embedding_groups": 4,
        "apply_spec_augment": False,
        "num_feat_extract_layers": 2,
    }
    yield from _case("Wav2Vec2ForCTC", "Wav2Vec2Config", wave, "eager", "sdpa", **speech)
    yield from _case("HubertForCTC", "HubertConfig", wave, "sdpa", **speech)
    yield from _case("UniSpeechForCTC", "UniSpeechConfig", wave, "sdpa", **speech)
    yield from _case("WavLMForCTC", "WavLMConfig", wave, **speech)
    yield from _case("SEWForCTC", "SEWConfig", wave, squeeze_factor=2, **speech)
    yield from _case("Data2VecAudioForCTC", "Data2VecAudioConfig", wave, "sdpa", **speech)
    yield from _case(
        "ASTForAudioClassification",
        "ASTConfig",
        floats((64, 16)),
        "sdpa",
        **{k: v for k, v in _VISION.items() if k not in ("image_size", "num_channels")},
        max_length=64,
        num_mel_bins=16,
        time_stride=8,
        frequency_stride=8,
    )
    whisper = {
        "vocab_size": 99,
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "num_mel_bins": 16,
        "max_source_positions": 32,
        "max_target_positions": 32,
        "use_cache": False,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 1,
    }
    yield from _case(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        named(input_features=floats((16, 64)), decoder_input_ids=tokens(6)),
        "eager",
        "sdpa",
        **whisper,
    )
    yield from _case(
        "EncodecModel",
        "EncodecConfig",
        floats((1, 640)),
        num_filters=4,
        upsampling_ratios=[4, 2],
        codebook_size=16,
        codebook_dim=16,
        hidden_size=16,
        num_lstm_layers=1,
    )


def _pairs_of_kinds() -> Iterator[Case]:
    text = {k: v for k, v in _TEXT.items() if k != "pad_token_id"}
    for attention in ("eager", "sdpa"):
        options = {"text_config": dict(text), "vision_config": dict(_VISION), "projection_dim": 16}
        inputs = named(input_ids=tokens(), pixel_values=images(32))
        yield from _case("CLIPModel", "CLIPConfig", inputs, attention, **options)
    yield from _case(
        "ViltForQuestionAnswering",
        "ViltConfig",
        named(input_ids=tokens(), pixel_values=images(32)),
        **{**_VISION, "vocab_size": 99, "max_position_embeddings": 64, "max_image_length": -1},
    )


# -- segmentation_models_pytorch


def _segmentation_models() -> Iterator[Case]:
    package = "segmentation_models_pytorch"
    for architecture, encoder in (
        ("Unet", "resnet18"),
        ("UnetPlusPlus", "mobilenet_v2"),
        ("MAnet", "resnet18"),
        ("Linknet", "resnet18"),
        ("FPN", "efficientnet-b0"),
        ("PSPNet", "resnet18"),
        ("PAN", "resnet18"),
        ("DeepLabV3", "mobilenet_v2"),
        ("DeepLabV3Plus", "resnet18"),
        ("UPerNet", "resnet18"),
        ("Segformer", "mit_b0"),
        ("Unet", "timm-mobilenetv3_small_minimal_100"),
    ):
        build = _made(package, architecture, encoder_name=encoder, encoder_weights=None, classes=3)
        yield Case(package, f"{architecture} {encoder}", build, images(128 if architecture == "PAN" else 64))
    scse = _made(package, "Unet", "resnet18", encoder_weights=None, decoder_attention_type="scse", classes=3)
    yield Case(package, "Unet resnet18 with attention", scse, images(64))


# -- ultralytics


def _ultralytics() -> Iterator[Case]:
    for cls, names in (
        ("DetectionModel", "yolov5n yolov8n yolov8n-p2 yolov9t yolov10n yolo11n yolo12n"),
        ("SegmentationModel", "yolov8n-seg yolo11n-seg"),
        ("PoseModel", "yolov8n-pose yolo11n-pose"),
        ("OBBModel", "yolov8n-obb yolo11n-obb"),
        ("ClassificationModel", "yolov8n-cls yolo11n-cls"),
    ):
        for name in names.split():
            yield Case(
                "ultralytics", name, _made("ultralytics.nn.tasks", cls, f"{name}.yaml", verbose=False), images(128)
            )


# -- diffusers

_BLOCKS_2D: dict[str, Any] = {
    "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8,
}  # fmt: skip


def _moments(width: int, length: int = 4) -> Example:
    """A latent, a time and what describes the picture."""
    return lambda batch: {
        "sample": torch.randn(batch, 4, 16, 16),
        "timestep": torch.randint(0, 100, (batch,)),
        "encoder_hidden_states": torch.randn(batch, length, width),
    }


def _diffusers() -> Iterator[Case]:
    package = "diffusers"

    def case(name: str, example: Example, label: str = "", **options: Any) -> Case:
        return Case(package, f"{name} {label}".strip(), _made(package, name, **options), example)

    timed = named(sample=images(16), timestep=lambda batch: (torch.randint(0, 100, (batch,)),))
    yield case(
        "UNet2DModel",
        timed,
        sample_size=16,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        **_BLOCKS_2D,
    )
    conditional = {
        "sample_size": 16, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "cross_attention_dim": 32,
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "attention_head_dim": 8, **_BLOCKS_2D,
    }  # fmt: skip
    yield case("UNet2DConditionModel", _moments(32), **conditional)
    yield case(
        "UNet2DConditionModel", _moments(32), "with linear projections", use_linear_projection=True, **conditional
    )
    encoder = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        **_BLOCKS_2D,
    }
    yield case("AutoencoderKL", images(32), latent_channels=4, **encoder)
    yield case("VQModel", images(32), latent_channels=3, num_vq_embeddings=16, **encoder)
    yield case(
        "AutoencoderTiny",
        images(32),
        encoder_block_out_channels=(16, 16),
        decoder_block_out_channels=(16, 16),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    yield case(
        "AsymmetricAutoencoderKL", images(32), latent_channels=4, down_block_types=("DownEncoderBlock2D",) * 2,
        down_block_out_channels=(16, 32), layers_per_down_block=1, up_block_types=("UpDecoderBlock2D",) * 2,
        up_block_out_channels=(16, 32), layers_per_up_block=1, norm_num_groups=8,
    )  # fmt: skip
    yield case(
        "DiTTransformer2DModel",
        lambda batch: {
            "hidden_states": torch.randn(batch, 4, 8, 8),
            "timestep": torch.randint(0, 100, (batch,)),
            "class_labels": torch.randint(0, 9, (batch,)),
        },
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        norm_num_groups=8,
        num_embeds_ada_norm=10,
    )
    yield case(
        "SD3Transformer2DModel",
        lambda batch: {
            "hidden_states": torch.randn(batch, 4, 8, 8),
            "encoder_hidden_states": torch.randn(batch, 6, 32),
            "pooled_projections": torch.randn(batch, 24),
            "timestep": torch.randint(0, 100, (batch,)),
        },
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=24,
        out_channels=4,
        pos_embed_max_size=16,
    )
    yield case(
        "FluxTransformer2DModel",
        lambda batch: {
            "hidden_states": torch.randn(batch, 16, 4),
            "encoder_hidden_states": torch.randn(batch, 6, 32),
            "pooled_projections": torch.randn(batch, 24),
            "timestep": torch.rand(batch),
            "img_ids": torch.zeros(16, 3),
            "txt_ids": torch.zeros(6, 3),
        },
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=24,
        axes_dims_rope=(4, 4, 8),
    )
    yield case(
        "PixArtTransformer2DModel",
        lambda batch: {
            "hidden_states": torch.randn(batch, 4, 8, 8),
            "timestep": torch.randint(0, 100, (batch,)),
            "encoder_hidden_states": torch.randn(batch, 6, 24),
        },
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=32,
        sample_size=8,
        norm_num_groups=8,
        caption_channels=24,
        use_additional_conditions=False,
    )
    control = {k: v for k, v in conditional.items() if k not in ("sample_size", "up_block_types")}
    yield case(
        "ControlNetModel",
        lambda batch: {**_moments(32)(batch), "controlnet_cond": torch.randn(batch, 3, 128, 128)},
        conditioning_embedding_out_channels=(8, 8, 16, 16),
        **control,
    )


# -- monai


def _monai() -> Iterator[Case]:
    package = "monai.networks.nets"
    volume = floats((1, 32, 32, 32))

    def case(name: str, example: Example = volume, label: str = "", **options: Any) -> Case:
        return Case("monai", f"{name} {label}".strip(), _made(package, name, **options), example)

    spaces = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2}
    yield case("UNet", channels=(8, 16, 32), strides=(2, 2), num_res_units=1, **spaces)
    yield case("UNet", images(32, 1), "2d", **{**spaces, "spatial_dims": 2}, channels=(8, 16, 32), strides=(2, 2))
    yield case("BasicUNet", features=(8, 8, 16, 16, 32, 8), **spaces)
    yield case("BasicUNetPlusPlus", images(32, 1), features=(8, 8, 16, 16, 32, 8), **{**spaces, "spatial_dims": 2})
    yield case("AttentionUnet", channels=(8, 16, 32), strides=(2, 2), **spaces)
    yield case("SegResNet", init_filters=8, blocks_down=(1, 1, 1), blocks_up=(1, 1), **spaces)
    yield case("SegResNetDS", init_filters=8, blocks_down=(1, 1, 1), dsdepth=2, **spaces)
    yield case(
        "DynUNet", kernel_size=(3, 3, 3), strides=(1, 2, 2), upsample_kernel_size=(2, 2), filters=(8, 16, 32), **spaces
    )
    yield case("VNet", images(32, 1), spatial_dims=2, in_channels=1, out_channels=2)
    yield case(
        "UNETR",
        in_channels=1,
        out_channels=2,
        img_size=(32, 32, 32),
        feature_size=8,
        hidden_size=48,
        mlp_dim=64,
        num_heads=4,
    )
    yield case(
        "SwinUNETR",
        floats((1, 64, 64)),
        in_channels=1,
        out_channels=2,
        feature_size=12,
        depths=(1, 1, 1, 1),
        num_heads=(1, 2, 3, 4),
        spatial_dims=2,
    )
    yield case(
        "ViT",
        floats((1, 32, 32)),
        in_channels=1,
        img_size=(32, 32),
        patch_size=(8, 8),
        hidden_size=32,
        mlp_dim=64,
        num_layers=2,
        num_heads=4,
        classification=True,
        spatial_dims=2,
    )
    yield case(
        "DenseNet",
        images(64, 1),
        spatial_dims=2,
        in_channels=1,
        out_channels=2,
        init_features=16,
        growth_rate=8,
        block_config=(2, 2),
    )
    yield case("SEResNet50", images(64, 1), spatial_dims=2, in_channels=1, num_classes=2)
    yield case("HighResNet", spatial_dims=3, in_channels=1, out_channels=2)
    yield case("FlexibleUNet", images(64), in_channels=3, out_channels=2, backbone="efficientnet-b0", spatial_dims=2)
    yield case(
        "AutoEncoder", images(32, 1), spatial_dims=2, in_channels=1, out_channels=1, channels=(8, 16), strides=(2, 2)
    )


# -- open_clip


def _open_clip() -> Iterator[Case]:
    vision = {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 8}
    text = {"context_length": 16, "vocab_size": 99, "width": 32, "heads": 4, "layers": 2}
    pair = together(images(32), tokens(16))

    def tower(*path: str, **options: Any) -> Callable[[], nn.Module]:
        def build() -> nn.Module:
            model = importlib.import_module("open_clip").CLIP(16, **options)
            return model.get_submodule(".".join(path))

        return build

    yield Case("open_clip", "CLIP", _made("open_clip", "CLIP", 16, vision_cfg=vision, text_cfg=text), pair)
    yield Case(
        "open_clip",
        "CustomTextCLIP",
        _made("open_clip", "CustomTextCLIP", 16, vision_cfg=vision, text_cfg=text, quick_gelu=True),
        pair,
    )
    pooled = {
        **vision,
        "attentional_pool": True,
        "attn_pooler_queries": 4,
        "attn_pooler_heads": 4,
        "output_tokens": False,
    }
    yield Case(
        "open_clip",
        "vision tower with attentional pooling",
        tower("visual", vision_cfg=pooled, text_cfg=text),
        images(32),
    )
    residual = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 32, "patch_size": None}
    yield Case("open_clip", "residual vision tower", tower("visual", vision_cfg=residual, text_cfg=text), images(64))
    coca = {
        "vision_cfg": {**pooled, "output_tokens": True}, "text_cfg": {**text, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {"context_length": 16, "width": 32, "heads": 4, "layers": 1, "vocab_size": 99},
    }  # fmt: skip
    yield Case("open_clip", "CoCa", _made("open_clip", "CoCa", 32, **coca), pair)
