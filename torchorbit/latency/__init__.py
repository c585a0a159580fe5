"""What a model costs: FLOPs and parameters, counted without building it, and times, measured or looked up."""

from torchorbit.latency.base import AdditiveLatency, Keep, Latency, LatencyMeasurementError, PredictedLatency, name_of
from torchorbit.latency.counts import FlopsLatency, ParametersLatency, flops, parameters
from torchorbit.latency.lookup import LookupCheck, LookupTable, LookupTableError, Seconds
from torchorbit.latency.measured import MeasuredLatency, timed
from torchorbit.latency.onnx import OnnxRuntimeLatency, export_onnx

__all__ = [
    "AdditiveLatency",
    "FlopsLatency",
    "Keep",
    "Latency",
    "LatencyMeasurementError",
    "LookupCheck",
    "LookupTable",
    "LookupTableError",
    "MeasuredLatency",
    "OnnxRuntimeLatency",
    "ParametersLatency",
    "PredictedLatency",
    "Seconds",
    "export_onnx",
    "flops",
    "name_of",
    "parameters",
    "timed",
]
