"""The packages that are installed together with this one, and strangers of the same name.

`torchorbit`, `zoo` and `harness` are in one folder. The names of the last two are common, and Python looks for them in
the current folder, or that of a script, before it looks at what is installed: there may be somebody else's `zoo.py`.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from pathlib import Path

from torchorbit.errors import ShadowedPackageError

_FOLDER = Path(__file__).parents[1]


@functools.cache
def require_own(package: str) -> None:
    """Refuse to go on where an import of one of our packages would take somebody else's. Nothing is imported for that.

    Args:
        package: ``"zoo"`` or ``"harness"``.

    Raises:
        ShadowedPackageError: What Python finds under that name, or has imported already, is not beside this package.
    """
    expected = _FOLDER / package / "__init__.py"
    found = _found(package)
    if found is not None and os.path.realpath(found) != os.path.realpath(expected):
        raise ShadowedPackageError(package, found, str(expected.parent))


def _found(package: str) -> str | None:
    """Where what is imported under a name comes from; None where there is nothing, of which the import itself tells."""
    module = sys.modules.get(package)
    if module is not None and getattr(module, "__spec__", None) is None:  # made by hand, or run as a script
        return getattr(module, "__file__", None) or repr(module)
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # somebody forbids it
        return None
    if spec is None:
        return None
    return spec.origin or next(iter(spec.submodule_search_locations or ()), repr(spec.loader))
