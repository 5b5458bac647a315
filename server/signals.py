"""Who is connected here? This file: which signals a process hears, and when it no longer does."""

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

STOP: Final = (signal.SIGTERM, signal.SIGINT)
_TOLD: Final = (*STOP, signal.SIGHUP, signal.SIGQUIT)
HANDLED: Final = (*_TOLD, signal.SIGCHLD)


@contextmanager
def received_signals(numbers: Iterable[int] = HANDLED) -> Iterator[int]:
    """Yield a descriptor that gives the number of each signal that comes, one byte each.

    After it they are ignored: one that comes too late must not change how the process ended.
    """
    receiving, sending = socket.socketpair()
    with receiving, sending:
        receiving.setblocking(False)
        sending.setblocking(False)
        before_fd = signal.set_wakeup_fd(sending.fileno(), warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, lambda *_: None)
        try:
            yield receiving.fileno()
        finally:
            for number in _TOLD:
                signal.signal(number, signal.SIG_IGN)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.set_wakeup_fd(before_fd)


@contextmanager
def handled_signals(
    loop: asyncio.AbstractEventLoop, handlers: Mapping[signal.Signals, Callable[[], None]]
) -> Iterator[None]:
    """Have `loop` call the handler of each of these signals that comes; then as above.

    Not by `loop.add_signal_handler`: while that is undone nobody handles the signal for a moment,
    and one that any other thread may get then kills.
    """
    with received_signals(handlers) as received:

        def on_signals() -> None:
            for number in os.read(received, 4096):
                if number in handlers:
                    loop.call_soon(handlers[signal.Signals(number)])

        loop.add_reader(received, on_signals)
        try:
            yield
        finally:
            loop.remove_reader(received)
