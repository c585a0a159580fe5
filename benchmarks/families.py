"""The models that benchmarks measure: one per family, small ones, so that the whole takes minutes."""

FAMILIES = """
    resnet50 resnext50_32x4d vit_tiny_patch16_224 swin_tiny_patch4_window7_224 convnext_tiny efficientnet_b0
    mobilenetv3_small_100 levit_128s regnety_004 densenet121 beit_base_patch16_224 cait_xxs24_224 coat_lite_tiny
    coatnet_nano_rw_224 convit_tiny convmixer_768_32 crossvit_tiny_240 cspresnet50 davit_tiny deit3_small_patch16_224
    edgenext_small efficientformer_l1 eva02_tiny_patch14_224 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny ghostnet_100
    hgnet_tiny hiera_tiny_224 inception_v3 maxvit_nano_rw_256 mixer_s16_224 mobilevit_s mvitv2_tiny
    nest_tiny nfnet_f0 pit_ti_224 poolformer_s12 pvt_v2_b0 repvgg_a0 resnest26d rexnet_100 selecsls42b sequencer2d_s
    swinv2_tiny_window8_256 tiny_vit_5m_224 tnt_s_patch16_224 twins_svt_small vgg11 visformer_tiny volo_d1_224
    xception41 xcit_nano_12_p16_224
"""
