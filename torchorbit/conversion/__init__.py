"""Conversion of any ``nn.Module`` into a `DagModule`: the model is run on meta tensors and its run is recorded."""

from torchorbit.conversion.converting import convert

__all__ = ["convert"]
