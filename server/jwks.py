"""Who may do what? This file answers: which public keys sign tokens just now.

Keys are fetched in the background and parsed when they come, so that checking a token costs no
I/O. A key is bound to one algorithm: what a token's header says never decides how a key is used.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt import PyJWK
from jwt.exceptions import PyJWTError

_log = logging.getLogger(__name__)

MAX_DOCUMENT_BYTES: Final = 256 * 1024
MAX_KEYS: Final = 100
MAX_KID_LENGTH: Final = 255
MIN_RSA_BITS: Final = 2048
MAX_RSA_BITS: Final = 8192

PublicKey: TypeAlias = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey
Fetch: TypeAlias = Callable[[str], Awaitable[bytes]]
Wait: TypeAlias = Callable[[asyncio.Event, float], Awaitable[None]]

# By key type and curve. Never `oct`: a public document holds no secret.
_ALGORITHMS: Final = {
    ("RSA", None): "RS256",
    ("EC", "P-256"): "ES256",
    ("OKP", "Ed25519"): "EdDSA",
}


class KeyRejected(ValueError):
    """A key that cannot check tokens; the text says why and repeats nothing of the key."""


class KeySetRejected(ValueError):
    """A document that is no key set within the bounds."""


class VerifyingKey(NamedTuple):
    """A key object with the one algorithm that it is used with; bytes only for HS256."""

    algorithm: str
    key: PublicKey | bytes


def verifying_key(algorithm: str, key: object) -> VerifyingKey:
    """Bind a public key to its algorithm: RS256, ES256 (P-256) or EdDSA (Ed25519).

    Raises KeyRejected on a key of another type, another curve, or an unsafe size.
    """
    if algorithm == "RS256" and isinstance(key, RSAPublicKey):
        if not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
            raise KeyRejected(f"an RSA key has {MIN_RSA_BITS} to {MAX_RSA_BITS} bits")
        return VerifyingKey(algorithm, key)
    if algorithm == "ES256" and isinstance(key, EllipticCurvePublicKey):
        if not isinstance(key.curve, SECP256R1):
            raise KeyRejected("ES256 takes keys of the curve P-256 only")
        return VerifyingKey(algorithm, key)
    if algorithm == "EdDSA" and isinstance(key, Ed25519PublicKey):
        return VerifyingKey(algorithm, key)
    raise KeyRejected(f"this is not a public key for {algorithm}")


class _Document(msgspec.Struct):
    keys: list[dict[str, Any]]


def read_key_set(document: bytes) -> dict[str, VerifyingKey]:
    """Return the keys of a JWKS (RFC 7517) that can check signatures, by `kid`.

    Keys that are of no use here (other types, `use` other than sig, no `kid`, private ones) are
    passed over; of two with one `kid` the first counts. Raises KeySetRejected.
    """
    if len(document) > MAX_DOCUMENT_BYTES:
        raise KeySetRejected(f"the key set has more than {MAX_DOCUMENT_BYTES} bytes")
    try:
        entries = msgspec.json.decode(document, type=_Document).keys
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise KeySetRejected("the document is not a key set") from None
    if len(entries) > MAX_KEYS:
        raise KeySetRejected(f"the key set has more than {MAX_KEYS} keys")
    keys: dict[str, VerifyingKey] = {}
    for entry in entries:
        kid, key = entry.get("kid"), _read_key(entry)
        if key is not None and isinstance(kid, str) and 0 < len(kid) <= MAX_KID_LENGTH:
            keys.setdefault(kid, key)
    return keys


def _read_key(entry: dict[str, Any]) -> VerifyingKey | None:
    """Return the key of one entry, or None if it is of no use here."""
    kty, crv = entry.get("kty"), entry.get("crv")
    if not (isinstance(kty, str) and (crv is None or isinstance(crv, str))):
        return None
    algorithm = _ALGORITHMS.get((kty, crv))
    operations = entry.get("key_ops", ["verify"])
    if (
        algorithm is None
        or entry.get("alg", algorithm) != algorithm
        or entry.get("use", "sig") != "sig"
        or not (isinstance(operations, list) and "verify" in operations)
        or not all(isinstance(entry.get(name, ""), str) for name in ("n", "e", "x", "y"))
    ):
        return None
    try:
        # A private key is read as one, and refused as no public key.
        return verifying_key(algorithm, PyJWK(entry, algorithm).key)
    except (PyJWTError, KeyRejected):
        return None


async def wait_for(event: asyncio.Event, timeout_s: float) -> None:
    """Wait until `event` is set, at most `timeout_s`."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        pass


class Jwks:
    """The key set behind a URL, kept fresh by a task of its own.

    `start()` begins to fetch, `close()` ends and awaits the task. A fetch that fails keeps the
    keys that are known and is tried again with a growing, jittered pause; one that succeeds
    replaces them all, so that keys rotated out vanish. `ready` says whether one ever succeeded.
    `fetch` takes the URL and returns the body; whatever it raises is a failure, whose text is
    logged. `now` is monotonic; `wait` and `jitter` (0 to 1) are there for tests.
    """

    __slots__ = (
        "_attempted_at",
        "_fetch",
        "_jitter",
        "_keys",
        "_now",
        "_refresh_s",
        "_task",
        "_timeout_s",
        "_url",
        "_wait",
        "_want_every_s",
        "_wanted",
        "ready",
    )

    def __init__(
        self,
        url: str,
        fetch: Fetch,
        *,
        refresh_s: float,
        now: Callable[[], float] = time.monotonic,
        wait: Wait = wait_for,
        jitter: Callable[[], float] = random.random,
        want_every_s: float = 10.0,
        timeout_s: float = 10.0,
    ) -> None:
        self._url = url
        self._fetch = fetch
        self._refresh_s = refresh_s
        self._now = now
        self._wait = wait
        self._jitter = jitter
        self._want_every_s = want_every_s
        self._timeout_s = timeout_s
        self._keys: dict[str, VerifyingKey] = {}
        self._wanted = asyncio.Event()
        self._attempted_at: float | None = None
        self._task: asyncio.Task[None] | None = None
        self.ready = False

    def start(self) -> None:
        """Begin to fetch, in a task that this object owns; needs a running loop."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="jwks")

    async def close(self) -> None:
        """End the task and wait for it; may be called twice, and without `start()`."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def get(self, kid: str) -> VerifyingKey | None:
        """Return the key with that id, or None if the set has none."""
        return self._keys.get(kid)

    def want(self) -> None:
        """Ask for the set to be fetched soon, since a token names a key that it does not have.

        Does nothing if the last fetch began less than `want_every_s` ago: tokens with made-up
        key ids must not turn this node into a weapon against the issuer.
        """
        if self._attempted_at is None or self._now() - self._attempted_at >= self._want_every_s:
            self._wanted.set()

    async def _run(self) -> None:
        failures = 0
        while True:
            self._wanted.clear()
            self._attempted_at = self._now()
            try:
                await self._refresh()
                failures = 0
            except Exception as error:
                failures += 1
                text = f"{type(error).__name__}: {error}"[:200]
                _log.warning("the key set could not be fetched, the known keys stay: %s", text)
            await self._wait(self._wanted, self._pause(failures))

    async def _refresh(self) -> None:
        async with asyncio.timeout(self._timeout_s):
            document = await self._fetch(self._url)
        keys = read_key_set(document)
        if not keys:
            # A valid document is the issuer's word, also when it withdraws every key.
            _log.warning("the key set holds no key that can be used: tokens are refused")
        self._keys = keys
        self.ready = True

    def _pause(self, failures: int) -> float:
        if failures == 0:
            return self._refresh_s * (0.75 + 0.25 * self._jitter())
        longest = min(self._refresh_s, float(2 ** min(failures - 1, 16)))
        return longest * (0.5 + 0.5 * self._jitter())
