"""What may an operator set? This file: where events are kept, key by key.

Durations end in `_s` or `_ms`, sizes in `_bytes`; rates allow one second's worth at once.
"""

from typing import Annotated

import msgspec

from config import checks
from config.declare import DAY_S, MOST, NO_LIMIT, says


class BrokerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What gives events their positions."""

    url: Annotated[
        str,
        says(
            "Address of the broker: this process, or a Redis that all nodes share.",
            mask=checks.mask_url,
            check=checks.check_broker_url,
            allowed='"memory://", or an address that begins with '
            + ", ".join(f'"{scheme}"' for scheme in checks.REDIS_SCHEMES),
        ),
    ] = checks.MEMORY
    prefix: Annotated[
        str,
        says(
            "What the names of all keys in Redis begin with; nodes that share it are one server.",
            check=checks.check_prefix,
            allowed="1 to 64 of A-Z a-z 0-9 _ . : -",
        ),
    ] = "galecast"
    call_timeout_s: Annotated[
        float,
        says(
            "How long a publish or a read waits for Redis before it fails (503), retries included.",
            unit="s",
            low=0.1,
            high=60,
        ),
    ] = 5.0
    check_s: Annotated[
        float,
        says(
            "How often delivery through Redis is probed, and what came is compared with what was "
            "published; a connection that is deaf for two such times is replaced.",
            unit="s",
            low=0.1,
            high=300,
        ),
    ] = 5.0
    lease_s: Annotated[
        float,
        says(
            "How long the presence entries of a node that died stay, about.",
            unit="s",
            low=1,
            high=600,
        ),
    ] = 10.0
    rules_revision: Annotated[
        int,
        says(
            "Number of the channel rules: raise it with each change of `history_size` or "
            "`history_ttl_s`. Where nodes differ, the highest number applies.",
            zero="the node that published last decides",
            low=0,
            high=MOST,
        ),
    ] = 0
    max_channels: Annotated[
        int,
        says(
            "Channels kept at most; a publish that needs one more is refused.",
            unit="channels",
            zero=NO_LIMIT,
            low=0,
            high=MOST,
        ),
    ] = 1_000_000
    idempotency_window_s: Annotated[
        float,
        says(
            "How long an event's id is remembered, so that it is published once.",
            unit="s",
            zero="ids are not remembered",
            low=0,
            high=DAY_S,
        ),
    ] = 300.0
    idempotency_max_ids: Annotated[
        int,
        says(
            "Event ids remembered at most, over all channels; the oldest are forgotten first. "
            "Not with Redis, which remembers all within the window.",
            unit="ids",
            zero=NO_LIMIT,
            low=0,
            high=MOST,
        ),
    ] = 2_000_000
    position_ttl_s: Annotated[
        float,
        says(
            "How long a channel's position outlives its events; a client that comes back within "
            "it with the last position has missed nothing.",
            unit="s",
            low=1,
            high=365 * DAY_S,
        ),
    ] = 604_800.0

    def __repr__(self) -> str:
        # The address may hold a password.
        return f"BrokerSettings(url={checks.mask_url(self.url)!r}, ...)"


class PublishSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What an acknowledgement means."""

    wait_replicas: Annotated[
        int,
        says(
            "Replicas of Redis that must have an event before it is acknowledged; with fewer the "
            "publish fails (503 `not_replicated`).",
            unit="replicas",
            zero="acknowledged as soon as the master has it",
            low=0,
            high=100,
        ),
    ] = 0
    wait_timeout_s: Annotated[
        float,
        says("How long a publish waits for those replicas.", unit="s", low=0.01, high=60),
    ] = 1.0


class ArchiveSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Durable storage of events."""

    url: Annotated[
        str,
        says(
            "Address of the archive. The path of an SQLite database is relative to the working "
            "folder, or absolute with four slashes.",
            mask=checks.mask_url,
            check=checks.check_archive_url,
            allowed='"none", "sqlite:///path" or "mongodb://[user:password@]host/database", also '
            "with mongodb+srv",
        ),
    ] = checks.NO_ARCHIVE
    call_timeout_s: Annotated[
        float,
        says(
            "How long a read or a write of the archive may take; with a broker in memory also how "
            "long a publish to an archived channel waits.",
            unit="s",
            low=0.1,
            high=60,
        ),
    ] = 5.0
    queue_max: Annotated[
        int,
        says(
            "Entries that wait for the archive in Redis at most, in each of 64 partitions; events "
            "beyond it are delivered as ever, are missing in the archive, and readers are told.",
            unit="entries",
            zero=NO_LIMIT,
            low=0,
            high=MOST,
        ),
    ] = 100_000

    def __repr__(self) -> str:
        # The address may hold a password.
        return f"ArchiveSettings(url={checks.mask_url(self.url)!r})"
