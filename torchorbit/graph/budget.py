"""What loading one graph may take: a budget over all of its parts together."""

from __future__ import annotations

import time
from typing import Any

from torchorbit.containers import items_of
from torchorbit.errors import CheckpointError

#: Seconds of processor time of a load; the largest model of timm needs less than one.
MAX_SECONDS = 5.0
#: Tensors that operators return in containers, in one run; a block is counted as often as it is called.
MAX_PIECES = 65_536
#: Values in the containers that are made in one run. What is held in several places counts as often as it is held.
MAX_HELD = 1_000_000
#: Characters of the paths of all modules, and of the names of all vertices of a run with the blocks that they are in.
MAX_CHARACTERS = 16 * 1024**2


class Budget:
    """What is left for a load.

    Args:
        seconds: of the processor time of this thread.
    """

    def __init__(self, seconds: float = MAX_SECONDS):
        self._seconds = seconds
        self._end = time.thread_time() + seconds
        self._pieces = MAX_PIECES
        self._held = MAX_HELD
        self._characters = MAX_CHARACTERS

    def check_time(self, where: str) -> None:
        """Refuse to go on where the time is over.

        Raises:
            CheckpointError: it is.
        """
        if time.thread_time() > self._end:
            raise CheckpointError(
                f"{where}: loading the graph takes more than the {self._seconds:g} s of processor time that it may; a "
                "graph that is worth that is loaded with a longer time (seconds=...)"
            )

    def take_pieces(self, count: int, where: str) -> None:
        """Count tensors that an operator returns.

        Raises:
            CheckpointError: all of them together are more than `MAX_PIECES`.
        """
        self._pieces -= count
        if self._pieces < 0:
            raise CheckpointError(
                f"{where}: it returns {count} tensors; in one run, operators return more than the {MAX_PIECES} tensors "
                "in containers that they may"
            )

    def take_characters(self, count: int, where: str) -> None:
        """Count characters of paths and names.

        Raises:
            CheckpointError: all of them together are more than `MAX_CHARACTERS`.
        """
        self._characters -= count
        if self._characters < 0:
            raise CheckpointError(f"{where}: the paths of the graph have more than {MAX_CHARACTERS} characters")

    def leaves(self, value: Any, where: str) -> list[Any]:
        """Everything in a value that is no container, in order.

        Raises:
            CheckpointError: all containers together hold more than `MAX_HELD` values.
        """
        items = items_of(value)
        if items is None:
            return [value]
        found: list[Any] = []
        waiting = [iter(items)]
        while waiting:
            for item in waiting[-1]:
                self._held -= 1
                if self._held < 0:
                    raise CheckpointError(f"{where}: the containers of a run hold more than {MAX_HELD} values")
                inner = items_of(item)
                if inner is not None:
                    waiting.append(iter(inner))
                    break
                found.append(item)
            else:
                waiting.pop()
        return found
