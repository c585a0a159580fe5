"""What a model costs: FLOPs and parameters, counted without building it, and times, measured or looked up."""

from torchorbit.latency.base import AdditiveLatency, Keep, Latency, LatencyMeasurementError, PredictedLatency, name_of
from torchorbit.latency.counts import FlopsLatency, ParametersLatency, flops, parameters

__all__ = [
    "AdditiveLatency",
    "FlopsLatency",
    "Keep",
    "Latency",
    "LatencyMeasurementError",
    "ParametersLatency",
    "PredictedLatency",
    "flops",
    "name_of",
    "parameters",
]
