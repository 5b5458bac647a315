"""How does an event reach every node? This file: what the address of a Redis says (pure).

    redis://[[user]:password@]host[:port][/db][?options]
    rediss://...                                                  the same with TLS
    unix://[[user]:password@]/path/to/socket[?db=0&options]
    redis+sentinel://[[user]:password@]host[:port],host.../service[/db][?options]
    redis+cluster://[[user]:password@]host[:port],host...[?options]

Options: `db`; with TLS (`rediss`, or `tls=true` for Sentinel and Cluster) `ca_file`, `cert_file`,
`key_file`, `verify` (`full`, `ca` or `none`); for Sentinel `sentinel_user` and
`sentinel_password`. User, password, path and service are percent-decoded.
"""

import re
from collections.abc import Callable, Mapping
from typing import Final, Literal, TypeVar, get_args
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from pubsub.errors import RedisUrlRejected

T = TypeVar("T")

Kind = Literal["tcp", "unix", "sentinel", "cluster"]
Verify = Literal["full", "ca", "none"]

_PORT: Final = 6379
_SENTINEL_PORT: Final = 26379
_MOST_DB: Final = 1_000_000

_KINDS: Final[Mapping[str, Kind]] = {
    "redis": "tcp",
    "rediss": "tcp",
    "unix": "unix",
    "redis+sentinel": "sentinel",
    "redis+cluster": "cluster",
}
SCHEMES: Final = tuple(_KINDS)

# Scheme, authority, path and query (RFC 3986, appendix B).
_parts: Final = re.compile(
    r"([A-Za-z][\w+.-]*):(?://([^/?#]*))?([^?#]*)(?:\?([^#]*))?(?:#.*)?"
).fullmatch

_TLS_OPTIONS: Final = ("ca_file", "cert_file", "key_file", "verify")


class Endpoint(msgspec.Struct, frozen=True):
    """A host and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        """Return host:port, an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Tls(msgspec.Struct, frozen=True):
    """How the connection is encrypted: `full` checks the name too, `ca` the chain, `none` nothing.

    An empty `ca_file` stands for the authorities of the system, an empty `cert_file` for no
    certificate of our own.
    """

    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    verify: Verify = "full"


class RedisTarget(msgspec.Struct, frozen=True, repr_omit_defaults=True):
    """Where a Redis is and who we are there; `str` and `repr` show no password."""

    kind: Kind
    endpoints: tuple[Endpoint, ...] = ()
    path: str = ""
    service: str = ""
    db: int = 0
    user: str = ""
    password: str = ""
    tls: Tls | None = None
    sentinel_user: str = ""
    sentinel_password: str = ""

    def __str__(self) -> str:
        """Return the address for people: no options, `***` for a password."""
        scheme = {"tcp": "rediss" if self.tls else "redis", "unix": "unix"}.get(
            self.kind, f"redis+{self.kind}"
        )
        secret = ":***" if self.password else ""
        owner = f"{self.user}{secret}@" if self.user or secret else ""
        place = self.path or ",".join(map(str, self.endpoints))
        service = f"/{self.service}" if self.service else ""
        db = f"/{self.db}" if self.db and not self.path else ""
        return f"{scheme}://{owner}{place}{service}{db}"

    def __repr__(self) -> str:
        """Return the same in angle brackets, lest a traceback tells the password."""
        return f"<RedisTarget {self}>"


def parse_redis_url(text: str) -> RedisTarget:
    """Read the address of a Redis.

    Raises RedisUrlRejected, whose text says what is wrong and never repeats the address, since
    that may hold a password.
    """
    # Not by urlsplit: what it takes for a bracketed address differs between versions of Python.
    parts = _parts(text)
    scheme, netloc, way, query = parts.groups(default="") if parts else ("", "", "", "")
    kind = _KINDS.get(scheme.lower())
    if kind is None:
        raise RedisUrlRejected(f"the scheme is none of {', '.join(SCHEMES)}")
    if "#" in text:
        raise RedisUrlRejected("it has a '#'; in a password, write %23")
    user, password, place = _owner(netloc)
    options = _Options(query)
    tls = _tls(options, scheme.lower() == "rediss", kind)
    endpoints: tuple[Endpoint, ...] = ()
    path = service = ""
    db = options.take("db", _db)
    if kind == "unix":
        path = unquote(way)
        if place or not path.startswith("/") or path.endswith("/"):
            raise RedisUrlRejected(
                "a unix address has the path of a socket: unix:///run/redis.sock"
            )
    else:
        endpoints = _endpoints(place, _SENTINEL_PORT if kind == "sentinel" else _PORT)
        if kind == "tcp" and len(endpoints) > 1:
            raise RedisUrlRejected("several hosts stand only with redis+sentinel or redis+cluster")
        service, db = _path(way, kind, db)
    target = RedisTarget(
        kind,
        endpoints,
        path,
        service,
        db or 0,
        user,
        password,
        tls,
        options.take("sentinel_user", str) or "" if kind == "sentinel" else "",
        options.take("sentinel_password", str) or "" if kind == "sentinel" else "",
    )
    options.end()
    return target


class _Options:
    """The options of a URL, each taken once."""

    def __init__(self, query: str) -> None:
        try:
            pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
        except ValueError:
            raise RedisUrlRejected("the options are not name=value&name=value") from None
        self._left = dict(pairs)
        if len(self._left) < len(pairs):
            raise RedisUrlRejected("an option stands twice")

    def take(self, name: str, read: Callable[[str], T]) -> T | None:
        """Return an option's value, or None if it is not there."""
        text = self._left.pop(name, None)
        return None if text is None else read(text)

    def end(self) -> None:
        """Refuse what nobody took."""
        if self._left:
            name = min(self._left)
            raise RedisUrlRejected(f"option {name[:40]!a} is unknown, or not for this scheme")


def _owner(netloc: str) -> tuple[str, str, str]:
    """Return user, password, and the rest."""
    owner, at, place = netloc.rpartition("@")
    if not at:
        return "", "", netloc
    user, _colon, password = owner.partition(":")
    if user and not password:
        raise RedisUrlRejected("a user stands without a password")
    return unquote(user), unquote(password), place


def _endpoints(place: str, default_port: int) -> tuple[Endpoint, ...]:
    found = tuple(_endpoint(each, default_port) for each in place.split(","))
    if len(set(found)) < len(found):
        raise RedisUrlRejected("a host stands twice")
    return found


def _endpoint(text: str, default_port: int) -> Endpoint:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        raise RedisUrlRejected("a host or its port is not valid") from None
    if not host or not host.isascii() or any(each in host for each in " /?#%"):
        raise RedisUrlRejected("a host is missing or not valid")
    if port == 0 or text.endswith(":"):
        raise RedisUrlRejected("a host or its port is not valid")
    return Endpoint(host, port or default_port)


def _path(path: str, kind: Kind, db: int | None) -> tuple[str, int | None]:
    """Return service and database; an option `db` and the path must not both name one."""
    segments = [unquote(each) for each in path.removeprefix("/").split("/")] if path else []
    if segments == [""]:
        segments = []
    service = ""
    if kind == "sentinel":
        if not segments or not segments[0]:
            raise RedisUrlRejected("the service is missing: redis+sentinel://host,host/service")
        service = segments.pop(0)
    if segments:
        if db is not None:
            raise RedisUrlRejected("the database stands twice")
        if len(segments) > 1:
            raise RedisUrlRejected("the path has too many parts")
        db = _db(segments[0])
    if kind == "cluster" and db:
        raise RedisUrlRejected("a cluster has no databases")
    return service, db


def _db(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 7 or int(text) > _MOST_DB:
        raise RedisUrlRejected("the database is not a number")
    return int(text)


def _flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise RedisUrlRejected("tls is true or false")
    return text == "true"


def _verify(text: str) -> Verify:
    for each in get_args(Verify):
        if text == each:
            verify: Verify = each
            return verify
    raise RedisUrlRejected(f"verify is one of {', '.join(get_args(Verify))}")


def _tls(options: _Options, implied: bool, kind: Kind) -> Tls | None:
    wanted = implied
    if kind in ("sentinel", "cluster"):
        wanted = bool(options.take("tls", _flag))
    if not wanted:
        return None
    ca_file, cert_file, key_file = (options.take(each, str) or "" for each in _TLS_OPTIONS[:3])
    verify = options.take("verify", _verify) or "full"
    if key_file and not cert_file:
        raise RedisUrlRejected("key_file stands without cert_file")
    return Tls(ca_file, cert_file, key_file, verify)
