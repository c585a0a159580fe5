"""Plain weights in the place of parametrized ones."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from torchorbit.comparing import evaluating
from torchorbit.errors import ArgumentTypeError
from torchorbit.graph.dag import DagModule


@torch.no_grad()
def fold_parametrizations(model: nn.Module) -> nn.Module:
    """Give the layers of a model plain weights: those that their parametrizations make in evaluation.

    Models with parametrized weights convert and are pruned as they are. A weight norm is then one over what is left,
    which scales that up, and what an orthogonal weight or a spectral norm of a convolution is made of stays. Plain
    weights lose what is removed, and nothing else changes.
    What a model computes with its weights by itself, an adapter of low rank say, stays as it is.

    Args:
        model: any model; it is changed itself. What is folded are the parametrizations of
            `torch.nn.utils.parametrize`, and the weight and spectral norms of `torch.nn.utils` that are hooks.

    Returns:
        The model. It computes in evaluation what it computed before, and its ``state_dict()`` has the keys of plain
        layers.

    Raises:
        ArgumentTypeError: ``model`` is no module, or a graph already.
    """
    if not isinstance(model, nn.Module) or isinstance(model, DagModule):
        raise ArgumentTypeError(f"model is a {type(model).__name__}, expected the module that is then converted")
    with evaluating(model):
        for module in model.modules():
            if parametrize.is_parametrized(module):
                for name in list(module.parametrizations):  # type: ignore[arg-type]
                    parametrize.remove_parametrizations(module, name)
            for hook in list(module._forward_pre_hooks.values()):
                if isinstance(hook, WeightNorm):
                    remove_weight_norm(module, hook.name)
                elif isinstance(hook, SpectralNorm):
                    remove_spectral_norm(module, hook.name)
    return model
