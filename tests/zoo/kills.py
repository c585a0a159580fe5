"""Work that is killed at a certain moment, in a copy of the process."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def killed_at(point: int, work: Callable[[], object], places: Mapping[Any, Sequence[str]]) -> int:
    """Work in a copy of this process, which is killed before something is put in place for the n-th time.

    Args:
        point: n; 0 for never.
        work: what to do.
        places: modules and classes -> names of their functions that put something in place.

    Returns:
        The exit code of the copy: 0 where it came to its end.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        _count(point, places)
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def _count(point: int, places: Mapping[Any, Sequence[str]]) -> None:
    puts = 0

    def killing(function: Callable[..., Any]) -> Callable[..., Any]:
        def put(*arguments: Any, **more: Any) -> Any:
            nonlocal puts
            puts += 1
            if puts == point:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **more)

        return put

    for place, names in places.items():
        for name in names:
            setattr(place, name, killing(getattr(place, name)))
