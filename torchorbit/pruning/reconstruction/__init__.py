"""New weights for the consumers of removed channels, from inputs alone."""

from torchorbit.pruning.reconstruction.reconstructing import reconstruct

__all__ = ["reconstruct"]
