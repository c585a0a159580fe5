"""Training and testing small classifiers on images that are all in memory."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH = 64


def train(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    augment: Callable[[Tensor], Tensor] = lambda images: images,
    batch_size: int = BATCH,
    warm_up: float = 0.0,
) -> None:
    """Train; the model is in evaluation mode afterwards.

    The rate rises for a share ``warm_up`` of all steps, and falls to nothing by a cosine.
    """
    batches = len(x) // batch_size
    steps = epochs * batches

    def rate(step: int) -> float:
        rising = min(1.0, (step + 1) / (warm_up * steps)) if warm_up else 1.0
        return rising * (1 + math.cos(math.pi * step / steps)) / 2

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(batch_size)[:batches]:
            optimizer.zero_grad()
            F.cross_entropy(model(augment(x[batch])), y[batch]).backward()
            optimizer.step()
            schedule.step()
    model.zero_grad()
    model.eval()


def sgd(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    """What residual networks are trained with."""
    return torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4, nesterov=True)


def shaken(images: Tensor) -> Tensor:
    """Each image turned by up to 10 degrees, moved by up to a tenth of its size, and scaled by up to a tenth."""
    angle, left, up, size = torch.rand(4, len(images)).mul(2).sub(1)
    angle, size = angle.mul(torch.pi / 18), size.mul(0.1).exp()
    rows = [[angle.cos() * size, -angle.sin() * size, left * 0.2], [angle.sin() * size, angle.cos() * size, up * 0.2]]
    grid = F.affine_grid(
        torch.stack([torch.stack(row, -1) for row in rows], 1), list(images.shape), align_corners=False
    )
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def mirrored(images: Tensor) -> Tensor:
    """Every other image, by chance, with left and right changed."""
    chosen = torch.rand(len(images)) < 0.5
    return torch.where(chosen[:, None, None, None], images.flip(-1), images)


@torch.no_grad()
def top1(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of the images that are told right."""
    found = torch.cat([model(part).argmax(-1) for part in x.split(128)])
    return (found == y).double().mean().item()
