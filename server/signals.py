"""Who is connected here? This file: which signals a process hears, and when it no longer does."""

import asyncio
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

STOP: Final = (signal.SIGTERM, signal.SIGINT)
_TOLD: Final = (*STOP, signal.SIGHUP, signal.SIGQUIT)
HANDLED: Final = (*_TOLD, signal.SIGCHLD)


@contextmanager
def received_signals() -> Iterator[int]:
    """Yield a descriptor that gives the number of each signal that comes, one byte each.

    After it they are ignored: one that comes too late must not change how the process ended.
    """
    receiving, sending = socket.socketpair()
    with receiving, sending:
        sending.setblocking(False)
        before_fd = signal.set_wakeup_fd(sending.fileno(), warn_on_full_buffer=False)
        for number in HANDLED:
            signal.signal(number, lambda *_: None)
        try:
            yield receiving.fileno()
        finally:
            for number in _TOLD:
                signal.signal(number, signal.SIG_IGN)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.set_wakeup_fd(before_fd)


def ignore_signals(loop: asyncio.AbstractEventLoop) -> None:
    """Ignore what `loop` handled: what comes too late must not change how the process ended."""
    # Held back meanwhile: without a handler they would kill.
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    for number in _TOLD:
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
