"""Models of the documents."""

import pytest
import torch
import torchvision.models

import torchorbit


@pytest.fixture(autouse=True, scope="module")
def _in_float64():
    """Formulas are compared, and in float64 no kernel's rounding is seen in them."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def mobilenet():
    """The graph of ENOT's examples, and its orbits."""
    model = torchvision.models.mobilenet_v2(num_classes=10).eval()
    dag = torchorbit.convert(model, torch.randn(1, 3, 32, 32))
    return model, dag, torchorbit.find_orbits(dag)


@pytest.fixture(scope="module")
def resnet():
    """The graph of Torch-Pruning's example."""
    model = torchvision.models.resnet18().eval()
    return model, torchorbit.convert(model, torch.randn(1, 3, 64, 64))
