"""Losses: every one depends on all that it is given, so that nothing of it can be removed."""

from __future__ import annotations

from torchorbit.operators.aten import aten_operator
from torchorbit.operators.labelling import needs_everything

NEEDLESS = {
    "cost": "fvcore does not count it",
    "resize": "it freezes what it touches",
    "contraction": "it freezes what it touches",
    "oracle": "it freezes what it touches",
}

_NAMES = """
    binary_cross_entropy binary_cross_entropy_with_logits cosine_embedding_loss cross_entropy_loss
    hinge_embedding_loss huber_loss kl_div l1_loss margin_ranking_loss mse_loss multi_margin_loss
    multilabel_margin_loss nll_loss nll_loss2d nll_loss_nd poisson_nll_loss smooth_l1_loss soft_margin_loss
    triplet_margin_loss
"""

OPERATORS = [aten_operator(name, rule=needs_everything) for name in _NAMES.split()]
