"""Python modules of the user's that register models with timm."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import sys
from collections.abc import Sequence

from harness.errors import UsageError, one_line

_LOG = logging.getLogger(__name__)


def import_modules(names: Sequence[str], folder: str) -> None:
    """Import modules, those in a folder included.

    What they print goes to the log, at the level "debug".

    Args:
        names: The modules.
        folder: It comes after everything that is installed, so that nothing in it stands in for that.

    Raises:
        UsageError: One of them cannot be imported.
    """
    if names and folder not in sys.path:
        sys.path.append(folder)
    for name in names:
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                importlib.import_module(name)
        except (Exception, SystemExit) as error:
            where = "" if not isinstance(error, ImportError) else "; it has to be a module that Python finds here"
            raise UsageError(f"--import {name}: {one_line(error)}{where}") from None
        finally:
            if said.getvalue():
                _LOG.debug("%s printed: %s", name, said.getvalue())
