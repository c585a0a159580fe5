"""The errors that torchorbit raises on purpose.

All of them are a `TorchorbitError`. So that who catches what Python's own functions raise catches these as well,

- what is wrong with an argument, or with data that was given, is a ``ValueError`` too, a ``TypeError`` where it is of
  the wrong type, an ``IndexError`` or a ``KeyError`` where it asks for what is not there;
- what fails while it runs is a ``RuntimeError`` too, a package that is missing an ``ImportError``;
- a model that cannot be converted, a file that is no checkpoint and a hub that refuses are none of these: nothing in
  Python stands for them.

What is raised otherwise is a mistake in torchorbit. Exceptions that say where a protocol of Python expects them that
there is nothing (``AttributeError``, ``StopIteration``), and ``AssertionError`` of the functions that check a model for
a test, are what these expect.
"""

from __future__ import annotations

from typing import Any


class TorchorbitError(Exception):
    """Base of every error that torchorbit raises on purpose."""


class ArgumentError(TorchorbitError, ValueError):
    """An argument has a value that it cannot have, or does not fit the others."""


class ArgumentTypeError(TorchorbitError, TypeError):
    """An argument is of the wrong type."""


class ArgumentIndexError(TorchorbitError, IndexError):
    """A position is out of range."""


class ArgumentKeyError(TorchorbitError, KeyError):
    """There is nothing under what was asked for."""

    __str__ = Exception.__str__


class MissingExtraError(TorchorbitError, ImportError):
    """Something needs a package that is not installed.

    Attributes:
        what: what needs it.
        extra: the extra of torchorbit that brings it, as in ``pip install 'torchorbit[harness]'``.
        missing: the package.
    """

    def __init__(self, what: str, extra: str, missing: str):
        self.what = what
        self.extra = extra
        self.missing = missing
        super().__init__(f"{what} needs {missing}, which is not installed: pip install 'torchorbit[{extra}]'")

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.what, self.extra, self.missing))


class ShadowedPackageError(TorchorbitError, ImportError):
    """A file of somebody else's has the name of a package of torchorbit, and would be imported in its place.

    Attributes:
        package: the package: ``"zoo"`` or ``"harness"``.
        file: what Python finds under that name.
        own: the folder of the package that was meant.
    """

    def __init__(self, package: str, file: str, own: str):
        self.package = package
        self.file = file
        self.own = own
        super().__init__(
            f"{file!r} hides the package '{package}' of torchorbit, which is {own!r}: Python would import that file in "
            "its place; rename it, or run from another folder"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.package, self.file, self.own))


class ConversionError(TorchorbitError):
    """A model could not be converted into a `DagModule`.

    Attributes:
        stage: what was being done: ``"run"`` (the model's own forward failed), ``"record"`` (a step of it
            cannot be written down), ``"reconcile"`` (two recordings disagree) or ``"build"``.
        module: path of the submodule in which it happened (``""`` is the model itself).
        operator: name of the function or module class that it happened at, or None.
        line: file and line of the model's code at which it happened, or None where it is not known.
    """

    def __init__(self, stage: str, module: str, operator: str | None, message: str, line: str | None = None):
        self.stage = stage
        self.module = module
        self.operator = operator
        self.reason = " ".join(message.split())
        self.line = line
        where = f"module '{module}'" if module else "the model itself"
        at = f", at {operator}" if operator else ""
        code = f" ({line})" if line else ""
        super().__init__(f"cannot convert ({stage}) in {where}{at}{code}: {self.reason}")

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.stage, self.module, self.operator, self.reason, self.line))


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


class InternalError(TorchorbitError, RuntimeError):
    """Something that torchorbit made is not what it should be: a mistake in torchorbit, or in a registered rule.

    Nothing was changed. Please report it, with the model.
    """


class ScoresError(TorchorbitError, ValueError):
    """A file holds no scores, or those of another graph."""


class PlanError(TorchorbitError, ValueError):
    """A plan cannot be made, edited or executed as asked; it is as it was before."""


class LatencyMeasurementError(TorchorbitError, RuntimeError):
    """A latency could not be measured. A search over many models passes over this one."""


class TargetError(TorchorbitError, ValueError):
    """A target cannot be reached.

    Attributes:
        min_cost: the lowest cost that can be reached.
    """

    def __init__(self, message: str, min_cost: float):
        self.min_cost = min_cost
        super().__init__(message)

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (*self.args, self.min_cost))


class LookupTableError(TorchorbitError, ValueError):
    """A file holds no table of latencies."""


class CalibrationError(TorchorbitError, ValueError):
    """Data, a loss or a loader from which no scores can be made."""


class HubError(TorchorbitError):
    """A hub does not have what was asked for, does not let us do it, or cannot be reached."""


_LONGEST_MESSAGE = 2000
