"""What every test gets: a fixed random state, and one thread, so that two tests can run side by side."""

import pytest
import torch

import torchorbit  # noqa: F401 - before timm, for which it declares what a missing compiled torchvision lacks

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
