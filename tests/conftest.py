"""What every test gets: a fixed random state, and one thread, so that two tests can run side by side."""

import pytest
import torch

from torchorbit.torchvision_parts import declare_missing_operators

declare_missing_operators()  # before timm
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
