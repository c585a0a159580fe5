"""Times in ONNX Runtime."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from torchorbit.comparing import evaluating
from torchorbit.cost.measured import STATISTICS, Statistic, arguments, check_options, timed
from torchorbit.errors import LatencyMeasurementError
from torchorbit.extras import require


@dataclass(frozen=True)
class OnnxRuntimeLatency:
    """Seconds of one run in ONNX Runtime on the CPU.

    The model is exported by ``torch.onnx.export`` and optimized by ONNX Runtime as for deployment.

    Attributes:
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments; on the CPU.
        warm_up: runs that are not counted, before those that are.
        repeats: runs that are.
        threads: so many threads within an operator; None leaves it to ONNX Runtime, which takes all cores.
        statistic: what is made of the times: ``"median"``, ``"mean"`` or ``"min"``.
        opset: the version of the operator set; None is the exporter's choice.

    Raises:
        ArgumentError: a number or ``statistic`` is out of range.
        MissingExtraError: onnx, onnxruntime or onnxscript is missing.
    """

    example_inputs: Any
    warm_up: int = 5
    repeats: int = 30
    threads: int | None = 1
    statistic: Statistic = "median"
    opset: int | None = None

    name: ClassVar[str] = "onnxruntime seconds"

    def __post_init__(self) -> None:
        check_options(self.warm_up, self.repeats, self.threads, self.statistic)
        require_onnx()

    def __call__(self, model: nn.Module, /) -> float:
        """Export a model and measure it.

        Raises:
            LatencyMeasurementError: it cannot be exported, or does not run.
        """
        session, feed = self._session(model)
        try:
            (times,) = timed([lambda: session.run(None, feed)], warm_up=self.warm_up, repeats=self.repeats)
        except Exception as error:
            raise LatencyMeasurementError(f"ONNX Runtime fails on the exported model: {error}") from error
        return STATISTICS[self.statistic](times)

    def outputs(self, model: nn.Module) -> list[Tensor]:
        """What a model computes in ONNX Runtime: the tensors of its output, in order.

        Raises:
            LatencyMeasurementError: it cannot be exported, or does not run.
        """
        session, feed = self._session(model)
        try:
            return [torch.from_numpy(array) for array in session.run(None, feed)]
        except Exception as error:
            raise LatencyMeasurementError(f"ONNX Runtime fails on the exported model: {error}") from error

    def _session(self, model: nn.Module) -> tuple[Any, dict[str, Any]]:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.inter_op_num_threads = 1
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        args, kwargs = arguments(self.example_inputs)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            try:
                export_onnx(model, args, kwargs, path, opset=self.opset)
                session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            except Exception as error:
                raise LatencyMeasurementError(f"the model cannot be exported to ONNX: {error}") from error
        tensors = [value for value in pytree.tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        names = [given.name for given in session.get_inputs()]
        return session, {name: value.numpy() for name, value in zip(names, tensors, strict=True)}


def export_onnx(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    path: str | Path,
    *,
    opset: int | None = None,
) -> None:
    """Write a model in evaluation mode to an ONNX file, at the sizes of its inputs.

    Args:
        model: any module; a `DagModule` too.
        args: positional inputs.
        kwargs: keyword inputs.
        path: the file; weights of more than 2 GB go into another one beside it.
        opset: the version of the operator set; None is the exporter's choice.

    Raises:
        MissingExtraError: onnx, onnxruntime or onnxscript is missing.
        torch.onnx.OnnxExporterError: torch cannot export it.
    """
    require_onnx()
    with evaluating(model), _quietly():
        program = torch.onnx.export(
            model, args, kwargs=kwargs, dynamo=True, opset_version=opset, verbose=False, optimize=True
        )
        assert program is not None
        program.save(str(path))


def require_onnx() -> None:
    """Refuse to go on without what exporting and running takes.

    Raises:
        MissingExtraError: something is missing; the message says what, and how to get it.
    """
    require("onnx", "an ONNX Runtime latency")


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """The exporter warns of its own deprecations, and prints of its progress."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
