"""What may an operator set? This file answers: whether a single value is one, beyond its type.

Each function takes a value and returns it in its normal form; it raises ValueError with what is
wrong.
"""

import ipaddress
import re
from collections.abc import Mapping
from typing import Any, Final, Literal, get_args
from urllib.parse import unquote, urlsplit

from config.patterns import Pattern
from config.rules import Action, check_actions

Scope = Literal[
    "publish", "history", "presence", "channels", "sessions", "tokens", "purge", "metrics"
]
SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)
WIDE_SCOPES: Final[tuple[Scope, ...]] = ("sessions", "tokens", "metrics")

MEMORY: Final = "memory://"
REDIS_SCHEMES: Final = (
    "redis://",
    "rediss://",
    "unix://",
    "redis+sentinel://",
    "redis+cluster://",
)

NO_ARCHIVE: Final = "none"
SQLITE_SCHEME: Final = "sqlite://"
MONGO_SCHEMES: Final = ("mongodb://", "mongodb+srv://")

MIN_SECRET_BYTES: Final = 32
MOST_NODE: Final = 64
ALGORITHMS: Final = ("RS256", "ES256", "EdDSA")

_DEFAULT_PORTS: Final = {"http": "80", "https": "443"}
_split_origin = re.compile(
    r"(https?)://([A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?"
).fullmatch
_is_key_id = re.compile(r"[A-Za-z0-9_-]{1,64}").fullmatch
_is_key_hash = re.compile(r"sha256:[0-9a-f]{64}").fullmatch
_is_prefix = re.compile(r"[A-Za-z0-9_.:-]{1,64}").fullmatch
# A colon with no port behind it, outside of an IPv6 address.
_has_odd_port = re.compile(r":(?!\d*(?:,|$))").search
_bracketed = re.compile(r"\[[^\]]*\]")
# Owner, hosts, database and options, of what stands behind a MongoDB's scheme.
_split_mongo = re.compile(r"(?:([^@/?#]*)@)?([^@/?#]*)(?:/([^/?#@]*))?(?:\?([^?#@]*))?").fullmatch
_is_mongo_host = re.compile(
    r"(?:[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\.?|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?"
).fullmatch
# What MongoDB refuses in a database's name, on any system.
_is_mongo_database = re.compile(r"[^/\\. \"$*<>:|?\0]{1,63}").fullmatch
_is_node = re.compile(rf"[A-Za-z0-9_~@:=.-]{{0,{MOST_NODE}}}").fullmatch


def normal_origin(text: str) -> str:
    """Return the origin `text` as browsers write it: lower case, no default port.

    Raises ValueError for all that is not scheme://host[:port] with http or https.
    """
    found = _split_origin(text)
    if found is None:
        raise ValueError(f"{text!a} is not scheme://host or scheme://host:port")
    scheme, host, port = found.groups()
    if host.startswith("["):
        host = f"[{ipaddress.IPv6Address(host[1:-1]).compressed}]"
    if port is None or port == _DEFAULT_PORTS[scheme]:
        return f"{scheme}://{host.lower()}"
    if not 1 <= int(port) <= 65_535:
        raise ValueError(f"{text!a} has no valid port")
    return f"{scheme}://{host.lower()}:{int(port)}"


def check_origins(values: tuple[str, ...]) -> tuple[str, ...]:
    """Return the origins, each normal and once."""
    return tuple(dict.fromkeys(normal_origin(value) for value in values))


def check_networks(values: tuple[str, ...]) -> tuple[str, ...]:
    """Return addresses and networks as networks (`10.0.0.1/32`)."""
    return tuple(str(ipaddress.ip_network(value, strict=False)) for value in values)


def check_host(value: str) -> str:
    """Return a host name or address to listen on."""
    if not value or not value.isascii() or not value.isprintable() or set(value) & set(" /[]"):
        raise ValueError("not a host name or an address")
    return value


def is_loopback(host: str) -> bool:
    """Say whether only this machine can reach `host`; names other than localhost never count."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def check_prefix(value: str) -> str:
    """Return the prefix of all names at the broker."""
    if _is_prefix(value) is None:
        raise ValueError("not a prefix")
    return value


def check_node(value: str) -> str:
    """Return a node's name, or nothing."""
    if _is_node(value) is None:
        raise ValueError("not a node's name")
    return value


def check_broker_url(value: str) -> str:
    """Return the broker's address, whose scheme is known; who connects reads the rest."""
    if value != MEMORY and not value.startswith(REDIS_SCHEMES):
        raise ValueError("unknown scheme")
    return value


def mask_url(text: str) -> str:
    """Return an address without the secrets that it may hold: passwords, and all of its options.

    Also of one that is written wrongly, since it stands in the refusal.
    """
    if text == NO_ARCHIVE:
        return text
    scheme, colon, rest = text.partition("://")
    if not colon:
        return "***"
    rest, question, options = rest.partition("?")
    if "@" in options:
        # It stands in a password whose `?` was not encoded; so may all that is before it.
        return f"{scheme}://***"
    owner, at, place = rest.rpartition("@")
    user = owner.partition(":")[0]
    shown = f"{user}:***@{place}" if at else rest
    if not at and _has_odd_port(_bracketed.sub("", rest.partition("/")[0])):
        # A user and a password, and the host is missing.
        shown = "***"
    return f"{scheme}://{shown}{'?***' if question else ''}"


def check_archive_url(value: str) -> str:
    """Return the archive's address; what is said of a wrong one never repeats it.

    The path of an SQLite database stands behind `sqlite:///` as it is, so that an absolute one
    makes four slashes: the convention of SQLAlchemy.
    """
    if value == NO_ARCHIVE:
        return value
    if value.startswith("sqlite:"):
        _check_sqlite_url(value)
    elif value.startswith(MONGO_SCHEMES):
        _check_mongo_url(value)
    else:
        raise ValueError("unknown scheme")
    return value


def _check_sqlite_url(value: str) -> None:
    place = value.removeprefix(SQLITE_SCHEME)
    if place == value or not place.startswith("/"):
        raise ValueError("write sqlite:///relative/path or sqlite:////absolute/path")
    path = place[1:]
    if not path:
        raise ValueError("the path is missing")
    if path == ":memory:":
        raise ValueError("an archive in memory keeps nothing")
    if "?" in path or "#" in path:
        raise ValueError("a path to SQLite takes no options, so no ? or # either")
    if not path.isprintable() or path.endswith("/"):
        raise ValueError("the path is not one of a file")


def _check_mongo_url(value: str) -> None:
    scheme, _, rest = value.partition("://")
    found = _split_mongo(rest)
    if found is None:
        raise ValueError("not scheme://[user:password@]host/database; is the password encoded?")
    owner, hosts, database, _ = found.groups()
    if owner is not None and not re.fullmatch(r"[^:]+(:[^:]*)?", owner):
        raise ValueError("the user is missing, or a : in it or in the password is not encoded")
    for host in hosts.split(","):
        match = _is_mongo_host(host)
        if match is None:
            raise ValueError("a host is missing or is none")
        if match[1] and not 1 <= int(match[1]) <= 65_535:
            raise ValueError("a port is not one")
    if scheme == "mongodb+srv" and ("," in hosts or ":" in hosts):
        raise ValueError("mongodb+srv takes one host and no port")
    if not database:
        raise ValueError("the database is missing: mongodb://host/database")
    if not _is_mongo_database(unquote(database)):
        raise ValueError("the database has no valid name")


def check_secret(value: str) -> str:
    """Return an HS256 secret that is long enough, or nothing."""
    if value and len(value.encode()) < MIN_SECRET_BYTES:
        raise ValueError(f"it has {len(value.encode())} bytes")
    return value


def check_public_key(value: str) -> str:
    """Return the PEM text of a public key, or nothing; never a private one."""
    if "PRIVATE KEY" in value:
        raise ValueError("this is a private key; only the public key belongs here")
    if value and "-----BEGIN" not in value:
        raise ValueError("this is not PEM")
    return value


def check_algorithm(value: str) -> str:
    """Return the algorithm of a public key, or nothing."""
    if value and value not in ALGORITHMS:
        raise ValueError("unknown algorithm")
    return value


def check_jwks_url(value: str) -> str:
    """Return an http or https URL with a host, or nothing."""
    if value:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("not an http or https URL")
    return value


def check_grants(values: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[Action, ...]]:
    """Return grants whose patterns and actions are valid."""
    return {Pattern(text).text: check_actions(actions) for text, actions in values.items()}


def check_key_id(value: str) -> str:
    """Return the id of an API key."""
    if _is_key_id(value) is None:
        raise ValueError("not a key's id")
    return value


def check_key_name(value: str) -> str:
    """Return the name of an API key."""
    if not value or not value.isprintable() or len(value.encode()) > 255:
        raise ValueError("not a key's name")
    return value


def check_key_hash(value: str) -> str:
    """Return the hash of an API key's secret."""
    if _is_key_hash(value) is None:
        raise ValueError("not a hash; `galecast key` makes one")
    return value


def check_scopes(values: Mapping[str, Any]) -> dict[Scope, tuple[str, ...] | bool]:
    """Return scopes that are known, with patterns where a channel is meant and true elsewhere."""
    kept: dict[Scope, tuple[str, ...] | bool] = {}
    for scope in values:
        if scope not in SCOPES:
            raise ValueError(f"unknown scope {scope!a}; there are {', '.join(SCOPES)}")
    for known in SCOPES:
        if known not in values:
            continue
        value = values[known]
        if known in WIDE_SCOPES:
            if value is not True:
                raise ValueError(f"scope {known} takes true")
            kept[known] = True
        elif isinstance(value, bool) or not value:
            raise ValueError(f"scope {known} takes a list of patterns")
        else:
            kept[known] = tuple(Pattern(text).text for text in value)
    return kept


def check_level(value: str) -> str:
    """Return a log level in lower case."""
    if value.lower() not in ("debug", "info", "warning", "error"):
        raise ValueError("unknown level")
    return value.lower()


def check_format(value: str) -> str:
    """Return a log format."""
    if value not in ("auto", "json", "pretty"):
        raise ValueError("unknown format")
    return value
