"""Who is connected here? This file: what a load run found, as figures."""

from typing import Any, Final

import msgspec

from server.load_histogram import Histogram
from server.load_machine import Shares, bottleneck

QUANTILES: Final = {"p50": 0.50, "p90": 0.90, "p99": 0.99}


class Slice(msgspec.Struct):
    """A part of the time: when it began and ended (s after the start), and what happened in it.

    Latency is that of the events that were due in it.
    """

    begin_s: float
    end_s: float
    delivered_per_s: float = 0.0
    published_per_s: float = 0.0
    latency: Histogram = msgspec.field(default_factory=Histogram)


class LoadReport(msgspec.Struct, kw_only=True):
    """A load run. Rates, latency and CPU are of the measured phase, counts of the whole run.

    `delivered` counts what reached sessions, `lag` how much later than due events were sent.
    Empty `problems` mean that every session got every event, once and in order; `partial` that the
    run was ended before its time.
    """

    sessions: int
    published: int
    acknowledged: int
    delivered: int
    measured_s: float
    published_per_s: float
    delivered_per_s: float
    latency: Histogram
    lag: Histogram
    slices: list[Slice]
    own: Shares | None
    servers: dict[int, Shares]
    compared: int
    partial: bool
    problems: list[str]

    @property
    def ok(self) -> bool:
        """Whether nothing was lost, repeated or out of order."""
        return not self.problems

    @property
    def warning(self) -> str:
        """Return why the figures are lower bounds only, or nothing."""
        return bottleneck(self.own)

    def latency_ms(self) -> dict[str, float]:
        """Return the latency's quantiles and its maximum, in ms."""
        return latency_ms(self.latency)

    def figures(self) -> dict[str, Any]:
        """Return it all as JSON values."""
        return {
            "sessions": self.sessions,
            "published": self.published,
            "acknowledged": self.acknowledged,
            "delivered": self.delivered,
            "measured_s": round(self.measured_s, 3),
            "published_per_s": round(self.published_per_s, 1),
            "delivered_per_s": round(self.delivered_per_s, 1),
            "latency_ms": self.latency_ms(),
            "latency_samples": self.latency.total,
            "send_lag_ms": latency_ms(self.lag),
            "load_cpu": None if self.own is None else round(self.own.cpu, 3),
            "load_waited": None if self.own is None else round(self.own.waited, 3),
            "servers": [
                {
                    "pid": pid,
                    "cpu": round(each.cpu, 3),
                    "waited": round(each.waited, 3),
                    "rss_bytes": each.rss_bytes,
                }
                for pid, each in self.servers.items()
            ],
            "slices": [
                {
                    "begin_s": round(each.begin_s, 3),
                    "end_s": round(each.end_s, 3),
                    "delivered_per_s": round(each.delivered_per_s, 1),
                    "published_per_s": round(each.published_per_s, 1),
                    "latency_ms": latency_ms(each.latency),
                }
                for each in self.slices
            ],
            "compared_by_content": self.compared,
            "partial": self.partial,
            "problems": self.problems,
            "warning": self.warning or None,
        }


def latency_ms(found: Histogram) -> dict[str, float]:
    """Return a histogram's quantiles and its maximum, in ms."""
    shown = {name: found.quantile(share) for name, share in QUANTILES.items()}
    return {
        name: round(value * 1000, 3) for name, value in {**shown, "max": found.greatest}.items()
    }
