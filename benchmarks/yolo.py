"""A whole detector: YOLOv8n of ultralytics at 640 x 640, pruned to half of its FLOPs, trained, exported and run.

The weights are random, and the boxes are made up: what is shown is that every step of the way works. The packages it
needs are in `benchmarks/requirements-generality.txt`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.loss import v8DetectionLoss

import harness.timm_import  # noqa: F401 - torchvision beside a torch without CUDA
import torchorbit
from torchorbit import DagModule

_TOLERANCE = 1e-4  # relative to the largest output


def made_up_boxes(size: int) -> dict[str, Tensor]:
    """Two images with three boxes: class, center and lengths as shares of the image, and which image each is in."""
    return {
        "img": torch.rand(2, 3, size, size),
        "batch_idx": torch.tensor([0.0, 0.0, 1.0]),
        "cls": torch.tensor([[1.0], [5.0], [7.0]]),
        "bboxes": torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.3, 0.3, 0.2, 0.2], [0.6, 0.6, 0.3, 0.5]]),
    }


def train(graph: DagModule, source: Any, batch: dict[str, Tensor], steps: int) -> list[float]:
    """Train a graph with the loss that ultralytics has for its source; gives the loss before every step."""
    source.args = get_cfg()  # weights of the parts of the loss
    loss = v8DetectionLoss(source)
    optimizer = torch.optim.SGD(graph.parameters(), lr=1e-3, momentum=0.9)
    graph.train()
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        total = loss(graph(batch["img"]), batch)[0].sum()
        total.backward()
        optimizer.step()
        losses.append(total.item())
    graph.eval()
    return losses


def exported(graph: DagModule, x: Tensor) -> float:
    """Export to ONNX, run in onnxruntime, and give the largest difference of the boxes over the largest number."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "yolo.onnx"
        torch.onnx.export(graph, (x,), file, dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(file)
        (found, *_) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        expected = graph(x)[0]
    return float((torch.as_tensor(found) - expected).abs().max() / expected.abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="yolov8n.yaml", help="a detector of ultralytics (default: yolov8n.yaml)")
    parser.add_argument("--flops", type=float, default=0.5, help="share of the FLOPs that is left (default: 0.5)")
    parser.add_argument("--size", type=int, default=640, help="height and width of the images (default: 640)")
    parser.add_argument("--steps", type=int, default=2, help="training steps (default: 2)")
    arguments = parser.parse_args()

    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.manual_seed(0)
    source = DetectionModel(arguments.model, verbose=False).eval()
    x = torch.randn(1, 3, arguments.size, arguments.size)

    started = time.perf_counter()
    graph = torchorbit.convert(source, x)
    print(f"converted in {time.perf_counter() - started:.1f} s: {len(torchorbit.find_orbits(graph))} orbits")
    with torch.no_grad():
        assert torch.equal(graph(x)[0], source(x)[0])

    started = time.perf_counter()
    pruned = torchorbit.prune(graph, flops=arguments.flops)
    before, after = torchorbit.flops(graph).total, torchorbit.flops(pruned).total
    print(f"pruned in {time.perf_counter() - started:.1f} s: {before / 1e9:.2f} GFLOPs, now {after / 1e9:.2f}")

    losses = train(pruned, source, made_up_boxes(arguments.size), arguments.steps)
    print("trained, losses:", ", ".join(f"{loss:.3f}" for loss in losses))

    difference = exported(pruned, x)
    print(f"exported to ONNX and run in onnxruntime: differs by {difference:.1e} of the largest number")
    if difference > _TOLERANCE:
        raise SystemExit(f"that is more than {_TOLERANCE:g}")


if __name__ == "__main__":
    main()
