"""Small models and data, and what is asked of them in several places."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import torchorbit
from tests.models import stir
from torchorbit.criteria import Magnitude
from torchorbit.selectors import Task

ROOT = Path(__file__).parent.parent.parent

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()


#: Three batches of four images and their classes.
LOADER = list(
    zip(
        torch.randn(3, 4, 3, 8, 8, generator=torch.Generator().manual_seed(2)).double(),
        torch.randint(5, (3, 4), generator=torch.Generator().manual_seed(3)),
        strict=True,
    )
)

#: What ENOT's documentation lists for unit 1202 of features.18.0: tensor, shape of the slice, and where it is.
FILTERS_OF_ENOT = [
    ("features.18.0.weight", (1, 320, 1, 1), [[(1202, 0)], None, None, None]),
    ("features.18.1.running_mean", (1,), [[(1202, 0)]]),
    ("features.18.1.running_var", (1,), [[(1202, 0)]]),
    ("features.18.1.weight", (1,), [[(1202, 0)]]),
    ("features.18.1.bias", (1,), [[(1202, 0)]]),
    ("classifier.1.weight", (10, 1), [None, [(1202, 0)]]),
]


def loss(output, sample):
    return F.cross_entropy(output, sample[1])


def small(*widths, norm=False):
    """A network of convolutions, each an orbit of its own."""
    torch.manual_seed(0)
    layers, before = [], 3
    for width in widths or (8, 6):
        layers += [nn.Conv2d(before, width, 3, padding=1), *([nn.BatchNorm2d(width)] if norm else []), nn.ReLU()]
        before = width
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 5)]
    return stir(nn.Sequential(*layers)).eval()


def graph(*widths, norm=False):
    return torchorbit.convert(small(*widths, norm=norm), X)


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def task_of(dag, **options):
    return Task(Magnitude().scores(torchorbit.find_orbits(dag)), **options)


def kernels(model):
    return [module.weight for module in model.modules() if isinstance(module, nn.Conv2d)]


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


class Doubled(nn.Module):
    def forward(self, x):
        return Double.apply(x)
