"""Who is connected here, and what may they do? This file: what is counted, and how it is told.

No label names a channel, a user or an address: their number has no bound.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, Literal, Protocol

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from config.limits import LimitSettings
from server.closing import Closing
from server.errors import ALL
from server.histogram import Histogram

_PREFIX: Final = "galecast_"

# Few buckets: each costs a comparison per observation and a series per scrape.
_FAST: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
_SLOW: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)

# Why something is refused: a code, a setting that limits, or how a connection misbehaved.
_OTHER: Final = "other"
REASONS: Final = frozenset(
    {error.code for error in ALL}
    | set(LimitSettings.__struct_fields__)
    | {closing.reason for closing in Closing}
    | {"broker.max_channels", "sse.max_channels", "file_limit", "origins", "send_timeout_s"}
    | {"slow_message", _OTHER}
)
_METHODS: Final = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})

# What the broker counts, with its help.
BROKER: Final = {
    "acknowledgements_forgotten": (
        "Acknowledged positions forgotten within their minute: there were too many channels."
    ),
    "circuit_openings": "Times that Redis was given up for a while.",
    "doubts": "Times that a channel's top was not what was heard of it.",
    "history_reads": "Reads of a channel's history.",
    "junk": "Messages and entries in Redis that no node wrote.",
    "notices_dropped": "Notices of this node forgotten before their end: there were too many.",
    "notices_repaired": "Notices of other nodes that were found by comparing only.",
    "orders_dropped": "Orders of other nodes that were not carried out: there were too many.",
    "orders_silent": "Answers of other nodes to orders that did not come in time.",
    "reconnects": "Pub/sub connections that were lost.",
    "silences": "Pub/sub connections replaced since nothing came back on them.",
    "surprises": "Subscriptions that Redis confirmed or ended unasked.",
}

# What `archive` may be told of, with help: what grows and what goes up and down.
ARCHIVE: Final = {
    "failures": "Writes to the archive that failed; they are tried again, or were refused.",
    "gaps": "Times that events were missing in the archive since the queue was full.",
    "junk": "Entries in the archive's queue that no node wrote.",
    "swept": "Events deleted from the archive when they had expired.",
    "written": "Entries written to the archive.",
}
ARCHIVE_NOW: Final = {
    "backlog": "Entries that wait for the archive, of the partitions that this node has.",
    "lag_seconds": "How old the oldest of them is.",
    "missing_channels": "Channels whose events are kept out of a full queue.",
}

# What `schedules` may be told of, with help.
SCHEDULES: Final = {
    "delivered": "Scheduled events that this node published.",
    "dropped": "Scheduled events given up, since they can never be published.",
    "failures": "Attempts to look for what is due, or to publish it, that failed.",
}
SCHEDULES_NOW: Final = {
    "late_seconds": "By how much the earliest scheduled event that is due is late.",
    "pending": "Scheduled events that wait, of all nodes that share the archive.",
}

# Gauges that others know: what `bind` takes, with their help.
_BOUND: Final = {
    "channels": "Channels with a feed on this node.",
    "events_held": "Subscriptions that are owed an event, for their rate or until they read.",
    "subscriptions": "Subscriptions of all sessions.",
}


class Kind(Protocol):
    """What the metrics want to know of a connection: ws or sse, and its encoding."""

    @property
    def transport(self) -> str: ...
    @property
    def label(self) -> str: ...


class Metrics:
    """The numbers of one node, in a registry of their own.

    Hot paths add to plain attributes (`metrics.events_out += n`); everything else is a method.
    Not safe for several threads.
    """

    __slots__ = (
        "_archive",
        "_bound",
        "_broker",
        "_closes",
        "_connections",
        "_http",
        "_lag",
        "_lag_seconds",
        "_orders",
        "_recoveries",
        "_refusals",
        "_registry",
        "_schedules",
        "_sessions",
        "_version",
        "bytes_in",
        "bytes_out",
        "deflate_in",
        "deflate_out",
        "delivery_seconds",
        "events_conflated",
        "events_duplicate",
        "events_in",
        "events_out",
        "http_request_seconds",
        "presence_changes",
        "publish_seconds",
        "publishes_slowed",
        "replayed",
        "resets",
        "slow_closes",
        "unsent_bytes",
    )

    def __init__(self, *, version: str) -> None:
        self.events_in = 0
        self.events_duplicate = 0
        self.events_out = 0
        self.events_conflated = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.deflate_in = 0
        self.deflate_out = 0
        self.unsent_bytes = 0
        self.slow_closes = 0
        self.resets = 0
        self.replayed = 0
        self.publishes_slowed = 0
        self.presence_changes = 0
        self._version = version
        self._lag = 0.0
        self._connections = {"sse": 0, "ws": 0}
        self._sessions: dict[tuple[str, str], int] = {}
        self._closes = dict.fromkeys((str(closing.code) for closing in Closing), 0)
        self._orders = {"done": 0, "failed": 0, "unknown": 0}
        self._recoveries = {"false": 0, "true": 0}
        self._refusals = dict.fromkeys(sorted(REASONS), 0)
        self._http: dict[tuple[str, str, str], int] = {}
        self._bound: dict[str, Callable[[], int]] = {}
        self._archive: Callable[[], Mapping[str, float]] = dict
        self._broker: Callable[[], Mapping[str, int]] = dict
        self._schedules: Callable[[], Mapping[str, float]] = dict
        self._registry = CollectorRegistry()
        self.publish_seconds = self._histogram(
            "publish_seconds", "From a publish's validation to its acknowledgement.", _FAST
        )
        self.delivery_seconds = self._histogram(
            "delivery_seconds", "From acceptance by the feed to the last socket write.", _FAST
        )
        self.http_request_seconds = self._histogram(
            "http_request_seconds", "From a request's headers to its response.", _SLOW
        )
        self._lag_seconds = self._histogram(
            "loop_lag_seconds", "How late the loop calls back.", _SLOW
        )
        self._registry.register(_Exporter(self._collect))
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def bind(self, **gauges: Callable[[], int]) -> None:
        """Take functions that are asked at each scrape: `channels`, `subscriptions`."""
        for name in gauges:
            if name not in _BOUND:
                raise ValueError(f"no gauge is called {name!r}")
        self._bound |= gauges

    def count(self, broker: Callable[[], Mapping[str, int]]) -> None:
        """Take a function that returns what the broker has counted, asked at each scrape."""
        self._broker = broker

    def archive(self, archived: Callable[[], Mapping[str, float]]) -> None:
        """Take a function that returns how the archive stands, asked at each scrape."""
        self._archive = archived

    def schedules(self, scheduled: Callable[[], Mapping[str, float]]) -> None:
        """Take a function that returns how schedules stand, asked at each scrape."""
        self._schedules = scheduled

    def connection_opened(self, kind: Kind) -> None:
        """A connection was taken over from HTTP, whether or not it becomes a session."""
        self._connections[kind.transport] += 1

    def connection_closed(self, kind: Kind) -> None:
        """A connection of that kind is over."""
        self._connections[kind.transport] -= 1

    def session_opened(self, kind: Kind) -> None:
        """A session acts for a principal."""
        key = (kind.transport, kind.label)
        self._sessions[key] = self._sessions.get(key, 0) + 1

    def session_closed(self, kind: Kind) -> None:
        """A session that was opened is over."""
        self._sessions[kind.transport, kind.label] -= 1

    def closed(self, closing: Closing) -> None:
        """The server ended a session."""
        self._closes[str(closing.code)] += 1

    def recovered(self, recovered: bool) -> None:
        """A client asked to resume; `recovered` is what it was told."""
        self._recoveries["true" if recovered else "false"] += 1

    def refused(self, reason: str) -> None:
        """Something was refused: a code or a limit's setting, with or without its section.

        Whatever is not in REASONS counts as `other`, so that no input makes a new series.
        """
        reason = reason.removeprefix("limits.")
        self._refusals[reason if reason in self._refusals else _OTHER] += 1

    def ordered(self, outcome: Literal["done", "failed", "unknown"]) -> None:
        """This node was given an order, by itself or by another node."""
        self._orders[outcome] += 1

    @property
    def version(self) -> str:
        """What runs here."""
        return self._version

    @property
    def connections(self) -> int:
        """Live connections."""
        return sum(self._connections.values())

    @property
    def lag_s(self) -> float:
        """How late the loop called back last, in s."""
        return self._lag

    def loop_lag(self, seconds: float) -> None:
        """The loop called back that late."""
        self._lag = seconds
        self._lag_seconds.observe(seconds)

    def http_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request was answered. `route` is the route's pattern, never the path asked for."""
        key = (method if method in _METHODS else _OTHER, route, str(status))
        self._http[key] = self._http.get(key, 0) + 1
        self.http_request_seconds.observe(seconds)

    def exposition(self, accept: str | None) -> tuple[bytes, str]:
        """Return all metrics and their content type, in the format that `Accept` asks for."""
        encode, content_type = choose_encoder(accept or "")
        return encode(self._registry), content_type

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        histogram = Histogram(_PREFIX + name, text, buckets)
        self._registry.register(histogram)
        return histogram

    def _collect(self) -> Iterator[Metric]:
        yield _gauge("build_info", "What runs here.", ["version"], [((self._version,), 1)])
        for name, ask in sorted(self._bound.items()):
            yield _gauge(name, _BOUND[name], [], [((), ask())])
        yield from self._gauges()
        yield from self._plain_counters()
        yield from self._labelled_counters()

    def _gauges(self) -> Iterator[Metric]:
        yield _gauge(
            "connections",
            "Live connections.",
            ["transport"],
            (((transport,), count) for transport, count in self._connections.items()),
        )
        yield _gauge(
            "sessions", "Live sessions.", ["transport", "encoding"], self._sessions.items()
        )
        yield _gauge(
            "unsent_bytes", "Bytes that the kernel has not taken.", [], [((), self.unsent_bytes)]
        )
        yield _gauge(
            "loop_lag_last_seconds", "How late the loop called back last.", [], [((), self._lag)]
        )

    def _plain_counters(self) -> Iterator[Metric]:
        for name, text, value in (
            ("events_in", "Events published and accepted.", self.events_in),
            ("events_duplicate", "Publishes whose id was known.", self.events_duplicate),
            ("events_out", "Events handed to sessions.", self.events_out),
            ("events_conflated", "Events left out for newer ones.", self.events_conflated),
            ("events_replayed", "Events replayed to resuming sessions.", self.replayed),
            (
                "publishes_slowed",
                "Publishes that waited since their channel had more to send than it could.",
                self.publishes_slowed,
            ),
            ("bytes_in", "Bytes read from connections.", self.bytes_in),
            ("bytes_out", "Bytes of messages handed to connections.", self.bytes_out),
            ("deflate_in_bytes", "Bytes of events before compression.", self.deflate_in),
            ("deflate_out_bytes", "Bytes of the same after it.", self.deflate_out),
            ("slow_closes", "Sessions ended for being slow.", self.slow_closes),
            ("resets", "Feeds and sessions told that continuity was lost.", self.resets),
            ("presence_changes", "Joins, leaves and updates.", self.presence_changes),
        ):
            yield _counter(name, text, [], [((), value)])
        for name, value in self._broker().items():
            yield _counter(f"broker_{name}", BROKER[name], [], [((), value)])
        for part, told, counters, gauges in (
            ("archive", self._archive(), ARCHIVE, ARCHIVE_NOW),
            ("schedules", self._schedules(), SCHEDULES, SCHEDULES_NOW),
        ):
            for name, amount in told.items():
                if name in counters:
                    yield _counter(f"{part}_{name}", counters[name], [], [((), amount)])
                else:
                    yield _gauge(f"{part}_{name}", gauges[name], [], [((), amount)])

    def _labelled_counters(self) -> Iterator[Metric]:
        for name, text, label, counts in (
            ("closes", "Sessions ended by the server.", "code", self._closes),
            ("orders", "Orders of nodes to nodes.", "outcome", self._orders),
            ("recoveries", "Attempts to resume.", "recovered", self._recoveries),
            ("refusals", "What was refused, and why.", "reason", self._refusals),
        ):
            yield _counter(name, text, [label], (((key,), n) for key, n in counts.items()))
        yield _counter(
            "http_requests",
            "Requests answered.",
            ["method", "route", "status"],
            self._http.items(),
        )


class _Exporter(Collector):
    """Lets a registry ask a function."""

    def __init__(self, ask: Callable[[], Iterator[Metric]]) -> None:
        self._ask = ask

    def collect(self) -> Iterator[Metric]:
        return self._ask()


_Samples = Iterable[tuple[tuple[str, ...], float]]


def _gauge(name: str, text: str, labels: list[str], samples: _Samples) -> Metric:
    family = GaugeMetricFamily(_PREFIX + name, text, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family


def _counter(name: str, text: str, labels: list[str], samples: _Samples) -> Metric:
    family = CounterMetricFamily(_PREFIX + name, text, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family
