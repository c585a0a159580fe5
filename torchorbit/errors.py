"""The errors that this package raises on purpose."""

from __future__ import annotations

from typing import Any


class TorchorbitError(Exception):
    """Base of every error that torchorbit raises on purpose."""


class ConversionError(TorchorbitError):
    """A model could not be converted into a `DagModule`.

    Attributes:
        stage: what was being done: ``"run"`` (the model's own forward failed), ``"record"`` (a step of it
            cannot be written down), ``"reconcile"`` (two recordings disagree) or ``"build"``.
        module: path of the submodule in which it happened (``""`` is the model itself).
        operator: name of the function or module class that it happened at, or None.
    """

    def __init__(self, stage: str, module: str, operator: str | None, message: str):
        self.stage = stage
        self.module = module
        self.operator = operator
        self.reason = " ".join(message.split())
        where = f"module '{module}'" if module else "the model itself"
        at = f", at {operator}" if operator else ""
        super().__init__(f"cannot convert ({stage}) in {where}{at}: {self.reason}")

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.stage, self.module, self.operator, self.reason))


class GraphRunError(TorchorbitError, RuntimeError):
    """A vertex of a `DagModule` failed on the given inputs.

    Attributes:
        vertex: path of the vertex, blocks joined by ``/``.
    """

    def __init__(self, vertex: str, message: str):
        self.vertex = vertex
        self.reason = message
        super().__init__(f"vertex '{vertex}': {message}")

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.vertex, self.reason))


class CheckpointError(TorchorbitError):
    """A saved graph is not valid, or a graph cannot be saved.

    The message may quote what a file holds; of a long one, the middle is left out.
    """

    def __init__(self, message: str):
        if len(message) > _LONGEST_MESSAGE:
            message = f"{message[: _LONGEST_MESSAGE // 2]} ... {message[-_LONGEST_MESSAGE // 2 :]}"
        super().__init__(message)


_LONGEST_MESSAGE = 2000
