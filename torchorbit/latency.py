"""Latencies: times, measured or looked up. A `torchorbit.Target` takes them, as any function of a model."""

from torchorbit.cost.lookup import LookupCheck, LookupTable, Seconds
from torchorbit.cost.measured import MeasuredLatency, timed
from torchorbit.cost.onnx import OnnxRuntimeLatency, export_onnx
from torchorbit.errors import LatencyMeasurementError, LookupTableError

__all__ = [
    "LatencyMeasurementError",
    "LookupCheck",
    "LookupTable",
    "LookupTableError",
    "MeasuredLatency",
    "OnnxRuntimeLatency",
    "Seconds",
    "export_onnx",
    "timed",
]
