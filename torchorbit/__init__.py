"""torchorbit: structured pruning of vision models on a graph of the model.

What there is stands in ``__init__.pyi``; each name is imported when it is first used, so that importing this package
alone imports no torch.
"""

import lazy_loader

from torchorbit._version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
