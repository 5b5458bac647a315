"""Who is connected here? This file: the garbage collector, kept from holding the loop.

A full collection looks at every container: with 10,000 sessions that holds the loop for 50 to 100
ms, and what it looks at is nearly all alive. So each one sets aside what it left (`gc.freeze`), and
the next looks at newer objects only. What is set aside is freed by its reference count as ever;
only a cycle that became garbage later, such as of a request that was under way, has to wait for a
complete collection, which comes after very many others.
"""

import gc
import logging
import time
from types import TracebackType
from typing import Final, Literal, Self

_log = logging.getLogger(__name__)

# Rarely, since most of what is young is freed before it is looked at; and a full collection after
# two of the middle generation, which is after some 20,000 new containers: it takes a few ms.
_THRESHOLDS: Final = (3_000, 3, 1)
# Full collections between two complete ones. Measured: while sessions came and went, each left some
# twenty objects that became garbage later.
_COMPLETE_EVERY: Final = 1_000


class Collector:
    """Has the process's collector in its charge for as long as the `with` block lasts."""

    def __init__(self, *, complete_every: int = _COMPLETE_EVERY) -> None:
        self._complete_every = complete_every
        self._left = complete_every
        self._complete = False
        self._began = 0.0
        self._before = gc.get_threshold()

    def __enter__(self) -> Self:
        # What was imported and made at start stays for good.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_THRESHOLDS)
        gc.callbacks.append(self._on_phase)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        gc.callbacks.remove(self._on_phase)
        gc.set_threshold(*self._before)
        gc.unfreeze()

    def _on_phase(self, phase: Literal["start", "stop"], info: dict[str, int]) -> None:
        if info["generation"] != 2:
            return
        if phase == "start":
            self._left -= 1
            self._complete = self._left < 0
            if self._complete:
                self._left = self._complete_every
                self._began = time.perf_counter()
                gc.unfreeze()
            return
        gc.freeze()
        if self._complete:
            took_ms = (time.perf_counter() - self._began) * 1000
            _log.info(
                "complete garbage collection",
                extra={"took_ms": round(took_ms, 1), "collected": info["collected"]},
            )
