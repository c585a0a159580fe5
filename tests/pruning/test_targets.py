"""Real models come close to the FLOPs that are asked for, from below, by every selector."""

import pytest
import torch

import torchorbit
from harness.models import build_with_random_weights, input_size
from torchorbit import Bounds, Target
from torchorbit.criteria import Magnitude
from torchorbit.selectors import Global, Knapsack, Task, Uniform

MODELS = [
    "mobilenetv3_small_100", "levit_128s", "resnet18", "vit_tiny_patch16_224", "efficientnet_b0", "ghostnet_100",
    "xcit_nano_12_p16_224", "pvt_v2_b0",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_targets_are_met_closely_and_every_removal_is_proved(name):
    model = build_with_random_weights(name)
    x = torch.randn(1, *input_size(model), dtype=torch.float64)
    dag = torchorbit.convert(model.double(), x)
    orbits = torchorbit.find_orbits(dag)
    scores = Magnitude().scores(orbits)
    total = torchorbit.flops(dag).total
    for round_to, within in ((1, 0.98), (8, 0.96)):
        for target in (0.7, 0.5, 0.3):
            for selector in (Uniform(), Global(), Knapsack()):
                task = Task(scores, target=Target.flops(target), constraint=Bounds(round_to=round_to))
                removed = selector.select(task)
                smaller = torchorbit.remove_channels(dag, removed)
                reached = torchorbit.flops(smaller).total / (target * total)
                assert within <= reached <= 1, f"{selector} to {target}, multiples of {round_to}"
                if target == 0.5:
                    assert torchorbit.verify_removal(dag, smaller, removed, x) < 1e-9
