"""What may an operator set? This file answers: the sections of the settings, key by key.

Durations end in `_s` or `_ms`, sizes in `_bytes`; rates allow one second's worth at once.
"""

from typing import Annotated, Final

import msgspec

from config import checks
from config.checks import Scope
from config.declare import says
from config.rules import Action

NO_LIMIT: Final = "no limit"
_DAY_S: Final = 86_400
_MOST: Final = 1_000_000_000


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
            high=_MOST,
        ),
    ] = 0
    max_channels: Annotated[
        int,
        says(
            "Channels kept at most; a publish that needs one more is refused.",
            unit="channels",
            zero=NO_LIMIT,
            low=0,
            high=_MOST,
        ),
    ] = 1_000_000
    idempotency_window_s: Annotated[
        float,
        says(
            "How long an event's id is remembered, so that it is published once.",
            unit="s",
            zero="ids are not remembered",
            low=0,
            high=_DAY_S,
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
            high=_MOST,
        ),
    ] = 2_000_000
    position_ttl_s: Annotated[
        float,
        says(
            "How long a channel's position outlives its events; a client that comes back within "
            "it with the last position has missed nothing.",
            unit="s",
            low=1,
            high=365 * _DAY_S,
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
            high=_MOST,
        ),
    ] = 100_000

    def __repr__(self) -> str:
        # The address may hold a password.
        return f"ArchiveSettings(url={checks.mask_url(self.url)!r})"


class TokenSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How clients' tokens (JWT) are checked and minted."""

    secret: Annotated[
        str,
        says(
            "Secret for HS256; also signs the tokens that the server mints.",
            secret=True,
            check=checks.check_secret,
            allowed=f"at least {checks.MIN_SECRET_BYTES} bytes",
        ),
    ] = ""
    secret_file: Annotated[str, says("File that holds `token.secret`, read at start.")] = ""
    public_key: Annotated[
        str,
        says(
            "Public key in PEM; needs `token.algorithm`.",
            check=checks.check_public_key,
            allowed="PEM text of a public key",
        ),
    ] = ""
    public_key_file: Annotated[str, says("File that holds `token.public_key`, read at start.")] = ""
    algorithm: Annotated[
        str,
        says(
            "Algorithm of `token.public_key`.",
            check=checks.check_algorithm,
            allowed="one of " + ", ".join(checks.ALGORITHMS),
        ),
    ] = ""
    jwks_url: Annotated[
        str,
        says(
            "Address of a key set (JWKS); keys rotate by `kid`.",
            mask=checks.mask_url,
            check=checks.check_jwks_url,
            allowed="an http or https URL",
        ),
    ] = ""
    jwks_refresh_s: Annotated[
        float, says("How often the key set is fetched.", unit="s", low=1, high=_DAY_S)
    ] = 300.0
    issuer: Annotated[str, says("Required `iss` of a token; empty: not checked.")] = ""
    audience: Annotated[str, says("Required `aud` of a token; empty: not checked.")] = ""
    leeway_s: Annotated[
        float,
        says("Difference of clocks allowed for.", unit="s", zero="none", low=0, high=300),
    ] = 5.0
    max_lifetime_s: Annotated[
        float,
        says(
            "Tokens that expire later than this from now are refused; a user whose sessions were "
            "ended is remembered this long.",
            unit="s",
            low=60,
            high=366 * _DAY_S,
        ),
    ] = 30.0 * _DAY_S
    default_ttl_s: Annotated[
        float,
        says("Lifetime of a minted token when none is asked for.", unit="s", low=1, high=_MOST),
    ] = 3_600.0

    def __repr__(self) -> str:
        # Settings may end up in a log or a traceback; the secret must not.
        return "TokenSettings(...)"


class AnonymousSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Clients without a token."""

    grants: Annotated[
        dict[str, tuple[Action, ...]],
        says(
            "Pattern to list of actions, for clients without a token; empty: they are refused.",
            check=checks.check_grants,
            allowed="a table of pattern = list of subscribe, publish, presence, history",
        ),
    ] = msgspec.field(default_factory=dict)


class SessionSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Live sessions."""

    ping_s: Annotated[
        float,
        says(
            "Time between two pings of a WebSocket session; without a pong before the next one "
            "the session is closed (4003).",
            unit="s",
            low=0.05,
            high=3_600,
        ),
    ] = 25.0
    connect_timeout_s: Annotated[
        float,
        says(
            "Time for the `connect` message, else the session is closed (4004).",
            unit="s",
            low=0.05,
            high=300,
        ),
    ] = 10.0
    expiring_s: Annotated[
        float,
        says(
            "How long before its token expires a session gets `expiring`.",
            unit="s",
            zero="no warning",
            low=0,
            high=_DAY_S,
        ),
    ] = 60.0
    send_timeout_s: Annotated[
        float,
        says(
            "A peer that takes no byte for this long is cut off; also one that takes nothing of "
            "an answer over HTTP.",
            unit="s",
            low=0.05,
            high=3_600,
        ),
    ] = 30.0
    close_timeout_s: Annotated[
        float,
        says("Time for the peer to answer a close frame.", unit="s", low=0.05, high=60),
    ] = 2.0


class WebSocketSettings(msgspec.Struct, frozen=True, kw_only=True):
    """WebSocket."""

    compression: Annotated[
        bool,
        says(
            "Compress events for clients that offer it (permessage-deflate), each once for all of "
            "them; read docs/security.md first."
        ),
    ] = False
    compression_level: Annotated[
        int,
        says(
            "How hard to try, from fast to small. Beyond 5 a text that is made for it would hold "
            "up everybody.",
            unit="level",
            low=1,
            high=5,
        ),
    ] = 4
    compression_min_bytes: Annotated[
        int,
        says(
            "Events whose message is smaller are sent as they are.",
            unit="bytes",
            zero="all are compressed",
            low=0,
            high=81_920,
        ),
    ] = 256


class SseSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Server-Sent Events."""

    comment_s: Annotated[
        float,
        says("Time between two comments that keep a stream alive.", unit="s", low=0.05, high=3_600),
    ] = 15.0
    retry_ms: Annotated[
        int,
        says(
            "Reconnect hint sent as `retry:`.",
            unit="ms",
            zero="clients come back at once",
            low=0,
            high=600_000,
        ),
    ] = 2_000
    ticket_ttl_s: Annotated[
        float, says("Time for the first use of a ticket.", unit="s", low=0.05, high=3_600)
    ] = 30.0
    max_channels: Annotated[
        int, says("Channels of one stream at most.", unit="channels", low=1, high=10_000)
    ] = 50


class HttpSettings(msgspec.Struct, frozen=True, kw_only=True):
    """HTTP requests."""

    body_timeout_s: Annotated[
        float, says("Time for a request's body.", unit="s", low=0.05, high=3_600)
    ] = 30.0
    idle_timeout_s: Annotated[
        float,
        says(
            "Time for a request's whole header, counted from the opening of the connection or the "
            "response before; so also how long a connection may idle.",
            unit="s",
            low=0.05,
            high=_DAY_S,
        ),
    ] = 75.0


class DrainSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How a node stops (SIGTERM)."""

    delay_s: Annotated[
        float,
        says(
            "How long connections are still accepted after the node says that it is not ready.",
            unit="s",
            zero="stops accepting at once",
            low=0,
            high=600,
        ),
    ] = 5.0
    grace_s: Annotated[
        float,
        says(
            "Time for sessions and requests to end after that.",
            unit="s",
            zero="ends at once",
            low=0,
            high=3_600,
        ),
    ] = 25.0
    batch: Annotated[
        int,
        says("Sessions told to leave in each 100 ms.", unit="sessions", low=1, high=1_000_000),
    ] = 500
    retry_spread_ms: Annotated[
        int,
        says(
            "`retry_in_ms` is drawn from 0 to this.",
            unit="ms",
            zero="all come back at once",
            low=0,
            high=600_000,
        ),
    ] = 5_000


class LogSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Logs, on standard error."""

    level: Annotated[
        str,
        says(
            "Least level that is logged.",
            check=checks.check_level,
            allowed="one of debug, info, warning, error",
        ),
    ] = "info"
    format: Annotated[
        str,
        says(
            "`json`, `pretty`, or `auto`: pretty on a terminal, JSON else.",
            check=checks.check_format,
            allowed="one of auto, json, pretty",
        ),
    ] = "auto"


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """An API key of a service: `id.secret`, of which only the hash of the secret is kept."""

    name: Annotated[
        str,
        says(
            "Whose key it is; two keys may share a name while they are rotated.",
            check=checks.check_key_name,
            allowed="1 to 255 bytes of printable text",
        ),
    ]
    id: Annotated[
        str,
        says(
            "The part of the key before the dot.",
            check=checks.check_key_id,
            allowed="1 to 64 letters, digits, _ or -",
        ),
    ]
    hash: Annotated[
        str,
        says(
            "SHA-256 of the part after the dot.",
            secret=True,
            check=checks.check_key_hash,
            allowed='"sha256:" and 64 hexadecimal digits in lower case',
        ),
    ]
    scopes: Annotated[
        dict[Scope, tuple[str, ...] | bool],
        says(
            "Scope to list of patterns (publish, history, presence, channels, purge) or to true "
            "(sessions, tokens, metrics).",
            check=checks.check_scopes,
            allowed="a table of scope = list of patterns, or = true for sessions, tokens, metrics",
        ),
    ]
