"""What may an operator set? This file answers: all settings as one object.

`Settings()` is a node with every default. `config.sources.load` makes one from file, environment
and command line; whoever makes one by hand passes valid values.
"""

from collections.abc import Iterator
from hashlib import sha256
from typing import Annotated, Any, Final

import msgspec

from config import checks
from config.access import AnonymousSettings, ApiKey, TokenSettings
from config.checks import is_loopback, normal_origin
from config.declare import says
from config.limits import LimitSettings
from config.rules import ACTIONS, DEFAULT_RULE, ChannelRule
from config.serving import (
    DrainSettings,
    HttpSettings,
    LogSettings,
    SessionSettings,
    SseSettings,
    WebSocketSettings,
)
from config.storage import ArchiveSettings, BrokerSettings, PublishSettings

KEYS_PER_NAME: Final = 2
_LAST_PORT: Final = 65_535
DEV_KEY: Final = "dev.galecast"
DEV_SECRET: Final = "galecast-development-secret-do-not-use-elsewhere"  # noqa: S105


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Every setting of a node; sections are attributes (`settings.token.leeway_s`)."""

    host: Annotated[
        str,
        says(
            "Address to listen on.",
            check=checks.check_host,
            allowed="a host name or an IP address",
        ),
    ] = "127.0.0.1"
    port: Annotated[
        int, says("Port to listen on.", zero="any free port", low=0, high=_LAST_PORT)
    ] = 8000
    workers: Annotated[
        int,
        says(
            "Processes that share the port. More than 1 need a Redis: `broker.url`, or a private "
            "one that is started for them.",
            low=1,
            high=256,
        ),
    ] = 1
    admin_port: Annotated[
        int,
        says(
            "Port that serves health and metrics apart; that of the first of several workers, "
            "the next has the next.",
            zero="none",
            low=0,
            high=_LAST_PORT,
        ),
    ] = 0
    node: Annotated[
        str,
        says(
            "Name of this node, unlike all others; empty: a random name at start. Workers add "
            "their number: `-0`, `-1`.",
            check=checks.check_node,
            allowed="up to 64 letters, digits, dots and _ ~ @ : = -",
        ),
    ] = ""
    dev: Annotated[bool, says("Development mode: loopback only, and open to all.")] = False
    demo: Annotated[bool, says("Serve the page at `/`.")] = False
    origins: Annotated[
        tuple[str, ...],
        says(
            "Origins of the web pages that may connect; exact, no wildcards. Empty: only clients "
            "that send no Origin.",
            check=checks.check_origins,
            allowed="a list of http(s)://host or http(s)://host:port, without path or wildcard",
        ),
    ] = ()
    trusted_proxies: Annotated[
        tuple[str, ...],
        says(
            "Addresses and networks of proxies whose X-Forwarded-For is believed.",
            check=checks.check_networks,
            allowed="a list of IP addresses and networks such as 10.0.0.0/8",
        ),
    ] = ()
    broker: BrokerSettings = msgspec.field(default_factory=BrokerSettings)
    publish: PublishSettings = msgspec.field(default_factory=PublishSettings)
    archive: ArchiveSettings = msgspec.field(default_factory=ArchiveSettings)
    token: TokenSettings = msgspec.field(default_factory=TokenSettings)
    anonymous: AnonymousSettings = msgspec.field(default_factory=AnonymousSettings)
    session: SessionSettings = msgspec.field(default_factory=SessionSettings)
    websocket: WebSocketSettings = msgspec.field(default_factory=WebSocketSettings)
    sse: SseSettings = msgspec.field(default_factory=SseSettings)
    http: HttpSettings = msgspec.field(default_factory=HttpSettings)
    limits: LimitSettings = msgspec.field(default_factory=LimitSettings)
    drain: DrainSettings = msgspec.field(default_factory=DrainSettings)
    log: LogSettings = msgspec.field(default_factory=LogSettings)
    channels: Annotated[
        tuple[ChannelRule, ...], says("Channel rules, in order; the first match applies.")
    ] = ()
    keys: Annotated[tuple[ApiKey, ...], says("API keys of services.")] = ()


def hash_secret(secret: str) -> str:
    """Return what `keys.hash` holds for an API key whose part after the dot is `secret`."""
    return "sha256:" + sha256(secret.encode()).hexdigest()


def default_rule(settings: Settings) -> ChannelRule:
    """Return the rule of channels that no rule matches; in development mode an open one."""
    if settings.dev:
        return ChannelRule(match=">", presence=True, client_publish=True)
    return DEFAULT_RULE


def dev_origins(port: int) -> tuple[str, ...]:
    """Return the origins of pages served by this machine on `port`."""
    return tuple(
        normal_origin(f"http://{host}:{port}") for host in ("127.0.0.1", "localhost", "[::1]")
    )


def dev_changes(settings: Settings, given: frozenset[str]) -> dict[str, Any]:
    """Return what development mode sets beyond the settings `given`, by path (`token.secret`)."""
    name, secret = DEV_KEY.split(".")
    scopes: dict[checks.Scope, tuple[str, ...] | bool] = {
        scope: True if scope in checks.WIDE_SCOPES else (">",) for scope in checks.SCOPES
    }
    key = ApiKey(name=name, id=name, hash=hash_secret(secret), scopes=scopes)
    others = tuple(each for each in settings.keys if each.id != name)
    changes: dict[str, Any] = {"demo": True, "keys": (*others, key)}
    if settings.port:
        changes["origins"] = tuple(dict.fromkeys(settings.origins + dev_origins(settings.port)))
    if not settings.token.secret:
        changes["token.secret"] = DEV_SECRET
    if "anonymous.grants" not in given:
        changes["anonymous.grants"] = {">": ACTIONS}
    if "drain.delay_s" not in given:
        changes["drain.delay_s"] = 0.0
    return changes


def dev_notice(settings: Settings) -> str:
    """Return the warning that a node in development mode prints at start."""
    return (
        f"Development mode: anyone on this machine may do anything. API key {DEV_KEY}, tokens "
        f"signed with a known secret, anonymous clients, presence everywhere. Listening on "
        f"{settings.host} only. Never use this for others."
    )


def conflicts(
    settings: Settings, given: frozenset[str] = frozenset()
) -> Iterator[tuple[str, str, str]]:
    """Yield what cannot hold together: a path, the other path concerned, and what must hold.

    Single values are taken as valid. `given` are the paths that were set, be it to the default.
    """
    limits, token = settings.limits, settings.token
    data, frame = f"({limits.data_bytes})", f"({limits.frame_bytes})"
    if limits.frame_bytes <= limits.data_bytes:
        yield "limits.frame_bytes", "limits.data_bytes", f"must exceed limits.data_bytes {data}"
    if limits.body_bytes <= limits.data_bytes:
        yield "limits.body_bytes", "limits.data_bytes", f"must exceed limits.data_bytes {data}"
    if limits.unsent_bytes <= limits.frame_bytes:
        yield "limits.unsent_bytes", "limits.frame_bytes", f"must exceed limits.frame_bytes {frame}"
    if settings.session.expiring_s >= token.default_ttl_s:
        text = f"must be below token.default_ttl_s ({token.default_ttl_s:.10g})"
        yield "session.expiring_s", "token.default_ttl_s", text
    if token.default_ttl_s > token.max_lifetime_s:
        text = f"must not exceed token.max_lifetime_s ({token.max_lifetime_s:.10g})"
        yield "token.default_ttl_s", "token.max_lifetime_s", text
    if bool(token.public_key) != bool(token.algorithm):
        text = "token.algorithm and a public key (token.public_key_file) need each other"
        yield "token.algorithm", "token.public_key", text
    if settings.publish.wait_replicas and settings.broker.url == checks.MEMORY:
        yield "publish.wait_replicas", "broker.url", "needs a broker.url with replicas: a Redis"
    within = settings.publish.wait_timeout_s < settings.broker.call_timeout_s
    if settings.publish.wait_replicas and not within:
        text = f"must be below broker.call_timeout_s ({settings.broker.call_timeout_s:.10g})"
        yield "publish.wait_timeout_s", "broker.call_timeout_s", text
    if settings.archive.url.startswith(checks.MONGO_SCHEMES) and (
        settings.broker.url == checks.MEMORY and settings.workers == 1
    ):
        text = "needs a Redis in front of it (broker.url); alone, a node archives in sqlite:///"
        yield "archive.url", "broker.url", text
    last_admin_port = settings.admin_port + settings.workers - 1
    if settings.admin_port and settings.admin_port <= settings.port <= last_admin_port:
        several = f"; workers use it to {last_admin_port}" if settings.workers > 1 else ""
        yield "admin_port", "port", f"must differ from port ({settings.port}){several}"
    if settings.workers > 1:
        yield from _worker_conflicts(settings, given, last_admin_port)
    if settings.dev and not is_loopback(settings.host):
        text = "must be a loopback address in development mode, such as 127.0.0.1"
        yield "host", "dev", text
    yield from _key_conflicts(settings.keys)


def _worker_conflicts(
    settings: Settings, given: frozenset[str], last_admin_port: int
) -> Iterator[tuple[str, str, str]]:
    if settings.admin_port and last_admin_port > _LAST_PORT:
        text = f"leaves no ports for workers ({settings.workers}), each of which has its own"
        yield "admin_port", "workers", text
    if len(settings.node) + len(f"-{settings.workers - 1}") > checks.MOST_NODE:
        yield "node", "workers", "leaves no room for the number that workers add"
    if settings.broker.url == checks.MEMORY and "broker.url" in given:
        text = (
            f"keeps events inside one process, and workers is {settings.workers}: name a Redis, "
            "or leave it out and a private one is started"
        )
        yield "broker.url", "workers", text


def _key_conflicts(keys: tuple[ApiKey, ...]) -> Iterator[tuple[str, str, str]]:
    ids: set[str] = set()
    names: dict[str, int] = {}
    for place, key in enumerate(keys):
        if key.id in ids:
            yield f"keys[{place}].id", "keys", "must be unlike the ids of all other keys"
        ids.add(key.id)
        names[key.name] = names.get(key.name, 0) + 1
        if names[key.name] == KEYS_PER_NAME + 1:
            yield f"keys[{place}].name", "keys", f"at most {KEYS_PER_NAME} keys may share a name"


def warnings(settings: Settings) -> list[str]:
    """Return what is allowed but hardly meant."""
    token = settings.token
    found = []
    verifies = bool(token.secret or token.public_key or token.jwks_url)
    if not settings.keys:
        found.append(
            "There are no API keys: no service can publish. `galecast key` makes one."
            if verifies or settings.anonymous.grants
            else "There are no API keys and no way to check tokens: nobody can use this server. "
            "Add [[keys]] and token.secret, or use --dev to try it."
        )
    if any(key.scopes.get("tokens") for key in settings.keys) and not token.secret:
        found.append("A key may mint tokens, but token.secret is not set: none can be signed.")
    clients = token.public_key or token.jwks_url or settings.anonymous.grants
    if settings.broker.url != checks.MEMORY and clients and not token.secret:
        found.append(
            "token.secret is not set: tickets are signed with it, so those of one node are refused "
            "by the others."
        )
    archived = [rule.match for rule in settings.channels if rule.archive]
    if archived and settings.archive.url == checks.NO_ARCHIVE:
        found.append(f"archive.url is none: what rule {archived[0]} archives is not kept.")
    if not is_loopback(settings.host) and not settings.origins:
        found.append("origins is empty: web pages cannot connect.")
    if settings.workers > 1 and not settings.admin_port:
        found.append("admin_port is 0: there is no way to scrape the metrics of each worker.")
    return found
