"""Dropouts: elements, channels or samples are dropped while training."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from torchorbit.nn import StochasticDepth
from torchorbit.operators.declaring import Arguments, Leaf, operator
from torchorbit.operators.labelling import like_the_first
from torchorbit.operators.shapes import Shape, same_shape
from torchorbit.operators.spelling import renamed

NEEDLESS = {
    "cost": "fvcore counts no dropouts",
    "resize": "no argument holds a length",
    "contraction": "it sums over nothing",
    "oracle": "it leaves everything as it is in evaluation",
}


def _dropout_shape(args: Arguments) -> Shape | None:
    return same_shape(args) if 0 <= args.get("p", 0.5) <= 1 else None


# All classes are the operator `dropout`, as far as labels go. In evaluation they return what they are given.
_MODULES = [
    Leaf(nn.Dropout, layout="alias", probability="p"),
    Leaf(nn.Dropout1d, layout="alias", probability="p", ranks=(2, 3)),
    Leaf(nn.Dropout2d, layout="alias", probability="p"),
    Leaf(nn.Dropout3d, layout="alias", probability="p"),
    Leaf(nn.AlphaDropout, layout="alias", probability="p"),
    Leaf(nn.FeatureAlphaDropout, layout="alias", probability="p"),
    Leaf(
        StochasticDepth,
        layout="alias",
        stand_ins={
            "timm.layers.drop.DropPath": lambda module: {
                "p": float(module.drop_prob or 0.0),
                "mode": "row",
                "scale_by_keep": bool(module.scale_by_keep),
            },
            "torchvision.ops.stochastic_depth.StochasticDepth": lambda module: {
                "p": float(module.p),
                "mode": module.mode,
            },
        },
    ),
]

OPERATORS = [
    operator(
        "dropout(input, p=0.5, training=True)",
        function=F.dropout,
        calls={torch.dropout: renamed("dropout", "input", "p", "training")},
        modules=_MODULES,
        rule=like_the_first,
        shape=_dropout_shape,
        constant="same",
        probability="p",
    ),
    operator("dropout1d(input, p=0.5, training=True)", rule=like_the_first, constant="same", probability="p"),
    operator(
        "dropout2d(input, p=0.5, training=True)",
        names="feature_dropout",
        rule=like_the_first,
        constant="same",
        probability="p",
    ),
    operator("dropout3d(input, p=0.5, training=True)", rule=like_the_first, constant="same", probability="p"),
    operator(
        "alpha_dropout(input, p=0.5, training=False)",
        function=F.alpha_dropout,
        rule=like_the_first,
        constant="same",
        probability="p",
    ),
    operator(
        "feature_alpha_dropout(input, p=0.5, training=False)",
        function=F.feature_alpha_dropout,
        rule=like_the_first,
        constant="same",
        probability="p",
    ),
]
