"""Who may do what? This file answers: which service an API key belongs to."""

import secrets
from collections.abc import Iterable
from hashlib import sha256
from hmac import compare_digest
from typing import Final, NamedTuple

from config.access import ApiKey
from config.settings import hash_secret
from server.errors import Unauthorized
from server.principal import Principal, service_grants

MAX_KEY_BYTES: Final = 512
SECRET_BYTES: Final = 32


class NewKey(NamedTuple):
    """A key that was just made: its id, its secret (to be shown once), and the hash to keep."""

    id: str
    secret: str
    hash: str

    @property
    def text(self) -> str:
        """The key as a client sends it."""
        return f"{self.id}.{self.secret}"

    def __repr__(self) -> str:
        return f"NewKey(id={self.id!r})"


def new_key() -> NewKey:
    """Make a key with a secret of 256 random bits, in characters that are safe in URLs."""
    secret = secrets.token_urlsafe(SECRET_BYTES)
    return NewKey(secrets.token_hex(6), secret, hash_secret(secret))


class _Entry(NamedTuple):
    digest: bytes
    principal: Principal | None


class ApiKeys:
    """The keys in force; principals are made once, not per request."""

    __slots__ = ("_entries", "_nobody")

    def __init__(self, keys: Iterable[ApiKey]) -> None:
        self._nobody = _Entry(secrets.token_bytes(32), None)
        self._entries: dict[str, _Entry] = {}
        self.replace(keys)

    @property
    def ids(self) -> frozenset[str]:
        """The ids of the keys in force."""
        return frozenset(self._entries)

    def replace(self, keys: Iterable[ApiKey]) -> None:
        """Put `keys` in force instead of those before; raises ValueError and then changes nothing.

        Principals that were given out stay as they are; `service` tells what they would be now.
        """
        self._entries = {
            key.id: _Entry(
                bytes.fromhex(key.hash.removeprefix("sha256:")),
                Principal(
                    kind="service", name=key.name, key=key.id, grants=service_grants(key.scopes)
                ),
            )
            for key in keys
        }

    def service(self, key_id: str) -> Principal | None:
        """Return the principal of the key with that id, or None if there is no such key."""
        entry = self._entries.get(key_id)
        return None if entry is None else entry.principal

    def authenticate(self, text: str) -> Principal:
        """Return the service whose key `text` (`id.secret`) is; raises Unauthorized.

        One hash and one comparison in constant time for known and unknown ids alike, so that
        time does not tell which ids exist.
        """
        # Lone surrogates can be in text that came as JSON.
        if len(text) <= MAX_KEY_BYTES:
            key_id, _, secret = text.partition(".")
            raw = secret.encode("utf-8", "surrogatepass")
            entry = self._entries.get(key_id, self._nobody)
            if compare_digest(sha256(raw).digest(), entry.digest) and entry.principal is not None:
                return entry.principal
        raise Unauthorized("the API key is not valid")
