"""Starting a program, on machines where that fails now and then for no reason of its own."""

import errno
from collections.abc import Callable
from typing import Final, TypeVar

_T = TypeVar("_T")
_TIMES: Final = 5


def spawned(start: Callable[[], _T]) -> _T:
    """Return what `start` does, which begins a process; it is tried again after EFAULT.

    Virtual machines whose memory is taken back under load were seen to fail an exec with "Bad
    address" now and then: the kernel could not read the command that it was given.
    """
    for _ in range(_TIMES - 1):
        try:
            return start()
        except OSError as error:
            if error.errno != errno.EFAULT:
                raise
    return start()
