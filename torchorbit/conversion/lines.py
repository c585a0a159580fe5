"""The line of the model's own code that runs just now, for errors."""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path
from types import FrameType, TracebackType

import torch

# Code in these folders is called by a model's code, and is no model's code itself.
_TORCH, _PYTHON = (f"{Path(path).resolve().parent}{os.sep}" for path in (torch.__file__, os.__file__))
_OURS = f"{Path(__file__).resolve().parents[1]}{os.sep}"
_LIBRARIES = f"{os.sep}site-packages{os.sep}"


@cache
def _is_of_a_model(name: str) -> bool:
    if name.startswith(("<", _TORCH, _OURS)):
        return False
    return _LIBRARIES in name or not name.startswith(_PYTHON)


def line_running() -> str | None:
    """File and line of the innermost code of a model that is running; None where there is none."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not _is_of_a_model(frame.f_code.co_filename):
        frame = frame.f_back
    return None if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"


def without_folders(line: str) -> str:
    """A line as it may stand in a file that is given away: from the package on, else without the folders."""
    _, found, inside = line.rpartition(_LIBRARIES)
    return inside if found else line.rpartition(os.sep)[2]


def line_of(traceback: TracebackType | None) -> str | None:
    """File and line of the innermost code of a model from which an exception came; None where there is none."""
    found = None
    while traceback is not None:
        name = traceback.tb_frame.f_code.co_filename
        if _is_of_a_model(name):
            found = f"{name}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return found
