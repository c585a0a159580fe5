"""What Torch-Pruning can be asked for: its criteria, and how they are applied to a model.

For each the pruning ratio is searched with which the model comes to half of its FLOPs. Transformers are handled as in
Torch-Pruning's example for timm (`examples/transformers/prune_timm_vit.py`): it is told how many heads the projections
have, and the classifier is left alone.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import Tensor, nn

from harness.timm_import import timm
from torchorbit import flops

TOLERANCE = 0.004  # a share of the FLOPs; below what was asked for
TRIALS = 12
REDUCTIONS = ("mean", "max", "prod", "first", "gate")
HEADS = {"dims": "head dims", "heads": "whole heads", "both": "head dims and heads"}
NORMALIZERS = ("mean", None, "max", "gaussian")

Data = tuple[Tensor, Tensor]
State = dict[str, Tensor]
"""Name of a parameter -> what takes the place of its gradient."""

importances = tp.pruner.importance


@dataclass(frozen=True)
class Importance:
    """A criterion.

    Attributes:
        make: makes it.
        needs: what it looks at beside weights: ``"gradients"``, ``"squares"`` of the gradients of single samples,
            ``"activations"``, ``"factors"`` (of the Fisher matrix), or nothing.
        reduces: whether it takes ``group_reduction`` and ``normalizer``.
        draws: whether it depends on a seed.
    """

    make: Callable[..., Any]
    needs: str = ""
    reduces: bool = True
    draws: bool = False


IMPORTANCES = {
    "magnitude L1": Importance(partial(importances.GroupMagnitudeImportance, p=1)),
    "magnitude L2": Importance(partial(importances.GroupMagnitudeImportance, p=2)),
    "LAMP": Importance(importances.LAMPImportance, reduces=False),
    "BN scale": Importance(importances.BNScaleImportance),
    "FPGM": Importance(importances.FPGMImportance),
    "activation": Importance(importances.ActivationImportance, "activations"),
    "Taylor": Importance(importances.GroupTaylorImportance, "gradients"),
    "Taylor, multivariable": Importance(partial(importances.GroupTaylorImportance, multivariable=True), "gradients"),
    # Its own `accumulate_grad` keeps the last sample only; it takes what stands in `.grad` when that was not called.
    "Hessian": Importance(importances.GroupHessianImportance, "squares"),
    "OBD-C": Importance(importances.OBDCImportance, "factors"),
    "random": Importance(importances.RandomImportance, reduces=False, draws=True),
}


@dataclass(frozen=True)
class Option:
    """One way to ask for a pruned model.

    Attributes:
        importance: one of `IMPORTANCES`.
        scope: ``"local"``, the same share of each layer; ``"global"``, by one ranking of all; ``"isomorphic"``, by one
            for each kind of layer.
        inner: leave the residual stream as it is ("bottleneck" in Torch-Pruning's example).
        heads: of attention, ``"dims"`` narrows heads, ``"heads"`` removes whole ones, ``"both"`` does both.
        reduction: of the scores of the layers that are pruned together.
        normalizer: of the scores of each group.
        steps: of iterative pruning; gradients are taken anew in each.
    """

    importance: str
    scope: str = "local"
    inner: bool = False
    heads: str = ""
    reduction: str = "mean"
    normalizer: str | None = "mean"
    steps: int = 1

    def __str__(self) -> str:
        about = [self.scope]
        about += ["inner channels"] * self.inner
        about += [HEADS[self.heads]] if self.heads else []
        about += [f"group_reduction={self.reduction}"] * (self.reduction != "mean")
        about += [f"normalizer={self.normalizer}"] * (self.normalizer != "mean")
        about += [f"{self.steps} steps"] * (self.steps > 1)
        return ", ".join(about)


@dataclass(frozen=True)
class Pruned:
    """What came of an option.

    Attributes:
        option: what was asked for.
        model: the smaller model.
        flops: the share of FLOPs that is left.
        seconds: that one pruning took, with what it looks at.
    """

    option: Option
    model: nn.Module
    flops: float
    seconds: float


def first_options(model: nn.Module) -> Iterator[Option]:
    """Every criterion, applied in every way to every part of the model, with Torch-Pruning's defaults."""
    heads = "dims" if _attentions(model) else ""
    norms = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    for name in IMPORTANCES:
        if name == "BN scale" and not norms:
            continue
        for scope in ("local", "global", "isomorphic"):
            for inner in (False, True):
                yield Option(name, scope, inner, heads)


def more_options(option: Option) -> Iterator[Option]:
    """An option with the other ways to reduce and to normalize, and to handle heads."""
    if option.heads:
        yield replace(option, heads="heads")
        yield replace(option, heads="both")
    importance = IMPORTANCES[option.importance]
    if importance.reduces:
        for reduction in REDUCTIONS:
            # A ranking within one group does not depend on how its scores are scaled.
            for normalizer in NORMALIZERS if option.scope != "local" else NORMALIZERS[:1]:
                if (reduction, normalizer) != (option.reduction, option.normalizer):
                    yield replace(option, reduction=reduction, normalizer=normalizer)


def in_steps(option: Option, numbers: Sequence[int]) -> Iterator[Option]:
    """An option in several steps, as Torch-Pruning recommends it."""
    for steps in numbers:
        yield replace(option, steps=steps)


class Pruner:
    """Prunes a model with Torch-Pruning.

    Args:
        model: the whole one, in evaluation mode.
        example: one sample.
        data: images and labels to calibrate on.
        flops: which share of the FLOPs is to be left.
    """

    def __init__(self, model: nn.Module, example: Tensor, data: Data, flops: float):
        self.model = model
        self.example = example
        self.data = data
        self.flops = flops
        self.whole = self._count(model)
        self._states: dict[str, tuple[Any, float]] = {}

    def prune(self, option: Option, seed: int = 0) -> Pruned:
        """Find the largest model within the FLOPs that an option gives.

        Raises:
            ValueError: it gives none.
        """
        low, high = 0.0, 1.0
        _, prepared = self._state(IMPORTANCES[option.importance].needs)
        best: Pruned | None = None
        for _ in range(TRIALS):
            ratio = (low + high) / 2
            torch.manual_seed(seed)
            started = time.perf_counter()
            smaller = self._at(option, ratio)
            seconds = time.perf_counter() - started + prepared
            share = self._count(smaller) / self.whole
            if share > self.flops:
                low = ratio
                continue
            high = ratio
            if best is None or share > best.flops:
                best = Pruned(option, smaller, share, seconds)
            if share > self.flops - TOLERANCE:
                break
        if best is None:
            raise ValueError(f"{option} leaves more than {self.flops:.0%} of the FLOPs")
        return best

    def _state(self, needs: str) -> tuple[Any, float]:
        """What criteria take from the data and the whole model, and how many seconds it took."""
        if needs not in self._states:
            started = time.perf_counter()
            state: Any = None
            if needs in ("gradients", "squares"):
                state = gradients(self.model, self.data, squared=needs == "squares")
            elif needs == "factors":
                state = self._with_factors(copy.deepcopy(self.model), self._made(IMPORTANCES["OBD-C"]))
            self._states[needs] = state, time.perf_counter() - started
        return self._states[needs]

    def _made(self, importance: Importance, **options: Any) -> Any:
        if importance.needs == "factors":
            options["num_classes"] = self.model.num_classes  # it leaves out linear layers of so many outputs
        return importance.make(**options)

    def _count(self, model: nn.Module) -> float:
        return flops(model, tuple(self.example.shape)).total

    def _at(self, option: Option, ratio: float) -> nn.Module:
        """The model with a share of its channels removed."""
        importance = IMPORTANCES[option.importance]
        chosen = {"group_reduction": option.reduction, "normalizer": option.normalizer} if importance.reduces else {}
        model, scorer = self.model, self._made(importance, **chosen)
        if importance.needs == "factors":
            model, known = self._state("factors")[0]
            scorer.Fisher, scorer.modules, scorer.steps = known.Fisher, known.modules, known.steps
        model, scorer = copy.deepcopy((model, scorer))
        pruner = self._pruner(model, scorer, option, ratio)
        for step in range(option.steps):
            self._look(model, scorer, importance.needs, first=step == 0)
            pruner.step()
            for attention in _attentions(model):
                attention.num_heads = pruner.num_heads[attention.qkv]
                attention.attn_dim = attention.proj.in_features
                attention.head_dim = attention.attn_dim // attention.num_heads
            model.zero_grad()
        return model

    def _pruner(self, model: nn.Module, scorer: Any, option: Option, ratio: float) -> Any:
        attentions = _attentions(model)
        for attention in attentions:
            attention.fused_attn = False  # it goes by autograd's functions, and cannot look into this one
        # Its own defaults for these are dictionaries that all pruners share, and fill.
        arguments: dict[str, Any] = {"num_heads": {}, "in_channel_groups": {}, "out_channel_groups": {}}
        if attentions:
            arguments |= {
                "num_heads": {attention.qkv: attention.num_heads for attention in attentions},
                "prune_num_heads": option.heads != "dims",
                "prune_head_dims": option.heads != "heads",
                "head_pruning_ratio": ratio if option.heads != "dims" else 0.0,
            }
        return tp.pruner.BasePruner(
            model,
            self.example,
            scorer,
            global_pruning=option.scope != "local",
            isomorphic=option.scope == "isomorphic",
            pruning_ratio=ratio,
            iterative_steps=option.steps,
            ignored_layers=[
                model.get_classifier(),  # type: ignore[operator]
                *(_writers(model) if option.inner else ()),
            ],
            **arguments,
        )

    def _look(self, model: nn.Module, scorer: Any, needs: str, first: bool) -> None:
        """Show a criterion the data; what it takes of the whole model is taken once."""
        if needs in ("gradients", "squares"):
            state = self._state(needs)[0] if first else gradients(model, self.data, squared=needs == "squares")
            for name, parameter in model.named_parameters():
                parameter.grad = state[name].clone()
        elif needs == "activations":
            with scorer.compute_importance(model), torch.no_grad():
                model(self.data[0])
        elif needs == "factors":
            if not first:
                self._with_factors(model, scorer)
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)  # layers that have none are left out

    def _with_factors(self, model: nn.Module, scorer: Any) -> tuple[nn.Module, Any]:
        """A model, and OBD-C with what it sums up for the Fisher matrix."""
        scorer._clear_buffer()
        pruner = self._pruner(model, scorer, Option("OBD-C", heads="dims"), 0.0)
        # It takes what this gives for attention, and fails where there is none.
        root = pruner._downstream_node_as_root_if_attention
        pruner._downstream_node_as_root_if_attention = lambda group: root(group) or group
        scorer._prepare_model(model, pruner)
        for images, labels in zip(*(part.split(16) for part in self.data), strict=True):
            model.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            scorer.step()
        scorer._rm_hooks(model)
        model.zero_grad()
        scorer.A, scorer.DS = {}, {}
        return model, scorer


def gradients(model: nn.Module, data: Data, *, squared: bool = False) -> State:
    """Gradients of the loss by all parameters, added up over batches as Torch-Pruning's example does; or squares of
    those of single samples, their mean.
    """
    model.zero_grad()
    total: State = {}
    for images, labels in zip(data[0].split(1 if squared else 64), data[1].split(1 if squared else 64), strict=True):
        F.cross_entropy(model(images), labels).backward()
        if squared:
            for name, parameter in model.named_parameters():
                assert parameter.grad is not None
                square = parameter.grad.square().div_(len(data[1]))
                total[name] = total[name].add_(square) if name in total else square
            model.zero_grad()
    if not squared:
        total = {
            name: parameter.grad.clone()  # type: ignore[union-attr]
            for name, parameter in model.named_parameters()
        }
        model.zero_grad()
    return total


def _attentions(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, timm.layers.Attention)]


def _writers(model: nn.Module) -> Iterator[nn.Module]:
    """The layers that write to the residual stream, all but those that are within a branch alone."""
    for module in model.modules():
        if isinstance(module, timm.models.resnet.BasicBlock):
            yield module.conv2
        elif isinstance(module, timm.models.resnet.Bottleneck):
            yield module.conv3
    if isinstance(module := getattr(model, "conv1", None), nn.Module):
        yield module
    for block in model.modules():
        if (
            isinstance(block, (timm.models.resnet.BasicBlock, timm.models.resnet.Bottleneck))
            and block.downsample is not None
        ):
            yield block.downsample
    for attention in _attentions(model):
        yield attention.proj
    for block in getattr(model, "blocks", ()):
        yield block.mlp.fc2
    if hasattr(model, "patch_embed"):
        yield model.patch_embed
