"""Interrupts held back while something is changed that has to be put back."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

_Handler = Callable[[int, FrameType | None], Any]

_current: InterruptsHeldBack | None = None


class InterruptsHeldBack:
    """Hold back what Ctrl-C and other signals raise until the context ends, but for stretches that are `interruptible`.

    Python calls handlers of signals between any two of its steps, between putting back one thing and the next as well.
    Inside of this context they are called when it ends, and where `interruptible` lets them in. Handlers run in the
    main thread: in any other this does nothing.
    """

    def __init__(self) -> None:
        self._before: dict[int, _Handler] = {}
        self._noted: list[tuple[int, FrameType | None]] = []
        self._outer: InterruptsHeldBack | None = None
        self._was_open = True
        self._handler = self._handle  # one object, to be recognized
        self.open = True

    def __enter__(self) -> InterruptsHeldBack:
        global _current
        if threading.current_thread() is not threading.main_thread():
            return self
        self._outer = _current
        if self._outer is not None:
            self._was_open, self._outer.open = self._outer.open, False
            return self
        try:
            for number in signal.valid_signals():
                handler = signal.getsignal(number)
                if callable(handler):
                    self._before[number] = handler
                    signal.signal(number, self._handler)
            _current = self
            self.open = False
        except BaseException:  # one that came before they were held back
            _current = None
            self._give_back()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        global _current
        if self._outer is not None:
            self._outer.open = self._was_open
        if _current is not self:
            return
        # What has to be put back is; whoever interrupts from here on may.
        _current = None
        try:
            self._give_back()
        except BaseException:  # of a handler that has its place again already
            self._give_back()
            raise
        finally:
            self.open = True
        self.let_in()

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            if signal.getsignal(number) is self._handler:
                signal.signal(number, handler)

    def let_in(self) -> None:
        """Call the handlers of the signals that came meanwhile."""
        while self._noted:
            number, frame = self._noted.pop(0)
            self._before[number](number, frame)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.open:
            self._noted.append((number, frame))
            return
        # What it raises ends the stretch; what comes after it has to wait again.
        inside = _current is self
        if inside:
            self.open = False
        self._before[number](number, frame)
        if inside:
            self.open = True


@contextmanager
def interruptible() -> Iterator[None]:
    """Let interrupts in for a stretch that takes long, at any place of which an exception does no harm."""
    held = _current
    if held is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    was = held.open
    try:
        held.open = True
        held.let_in()
        yield
    finally:
        held.open = was
