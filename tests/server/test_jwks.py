"""Which public keys sign tokens just now: reading a key set, and keeping it fresh."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from server import jwks
from server.jwks import Jwks, KeyRejected, KeySetRejected, read_key_set, verifying_key, wait_for

URL = "https://issuer.example/jwks.json"
RSA_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()


def jwk(key: Any, **changes: Any) -> dict[str, Any]:
    kinds: dict[str, Any] = {"RSA": RSAAlgorithm, "EC": ECAlgorithm, "Ed": OKPAlgorithm}
    kind = next(kinds[prefix] for prefix in kinds if type(key).__name__.startswith(prefix))
    entry: dict[str, Any] = dict(kind.to_jwk(key, as_dict=True))
    entry.pop("key_ops", None)
    return {**entry, **changes}


def document(*entries: Any) -> bytes:
    return json.dumps({"keys": entries}).encode()


RSA_JWK = jwk(RSA_KEY.public_key(), kid="r")
EC_JWK = jwk(EC_KEY.public_key(), kid="e")
ED_JWK = jwk(ED_KEY.public_key(), kid="d")


# ---- reading


def test_each_key_is_bound_to_the_one_algorithm_of_its_type() -> None:
    keys = read_key_set(document(RSA_JWK, EC_JWK, ED_JWK))
    assert {kid: key.algorithm for kid, key in keys.items()} == {
        "r": "RS256",
        "e": "ES256",
        "d": "EdDSA",
    }
    assert keys["e"].key == EC_KEY.public_key()


@pytest.mark.parametrize(
    "entry",
    [
        {**RSA_JWK, "use": "sig", "alg": "RS256"},
        {**RSA_JWK, "key_ops": ["verify"]},
        {**RSA_JWK, "x5c": ["ignored"]},
    ],
)
def test_keys_that_say_what_they_are_for(entry: dict[str, Any]) -> None:
    assert set(read_key_set(document(entry))) == {"r"}


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"kty": "oct", "kid": "r", "k": "c2VjcmV0" * 8},
        {"kty": "oct", "kid": "r", "alg": "RS256", "k": "c2VjcmV0" * 8},
        {**RSA_JWK, "use": "enc"},
        {**RSA_JWK, "alg": "RS512"},
        {**RSA_JWK, "alg": "HS256"},
        {**RSA_JWK, "alg": "none"},
        {**RSA_JWK, "alg": None},
        {**RSA_JWK, "key_ops": ["encrypt"]},
        {**RSA_JWK, "key_ops": "verify"},
        {**RSA_JWK, "kty": 7},
        {**RSA_JWK, "kty": ["RSA"]},
        {**RSA_JWK, "kid": 7},
        {**RSA_JWK, "kid": ""},
        {**RSA_JWK, "kid": "k" * 256},
        {**RSA_JWK, "n": 7},
        {**RSA_JWK, "n": "!"},
        {**RSA_JWK, "e": ""},
        {name: RSA_JWK[name] for name in ("kty", "kid", "e")},
        {name: RSA_JWK[name] for name in ("kty", "n", "e")},
        {**EC_JWK, "crv": "P-384"},
        {**EC_JWK, "crv": 7},
        {**EC_JWK, "x": EC_JWK["y"]},
        {**ED_JWK, "crv": "Ed448"},
        {**ED_JWK, "x": "AAAA"},
        jwk(RSA_KEY, kid="r"),
        jwk(EC_KEY, kid="e"),
        jwk(rsa.generate_private_key(65537, 1024).public_key(), kid="r"),  # noqa: S505
        jwk(ec.generate_private_key(ec.SECP384R1()).public_key(), kid="e"),
    ],
)
def test_keys_of_no_use_are_passed_over(entry: dict[str, Any]) -> None:
    assert set(read_key_set(document(entry, ED_JWK))) == {"d"}


def test_of_two_with_one_id_the_first_counts() -> None:
    keys = read_key_set(document(RSA_JWK, {**EC_JWK, "kid": "r"}))
    assert keys["r"].algorithm == "RS256"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"<html>",
        b"[]",
        b"null",
        b"{}",
        b'{"keys": {}}',
        b'{"keys": [1]}',
        b'{"keys": [{"kty": "\xff"}]}',
        b'{"keys": ' + b"[" * 100_000,
        b'{"keys": [{"a": ' + b"[" * 100_000,
    ],
)
def test_what_is_no_key_set(text: bytes) -> None:
    with pytest.raises(KeySetRejected, match=r"^the document is not a key set$"):
        read_key_set(text)


def test_the_bounds_of_a_key_set() -> None:
    assert set(read_key_set(document(*[{}] * 99, RSA_JWK))) == {"r"}
    with pytest.raises(KeySetRejected, match="more than 100 keys"):
        read_key_set(document(*[{}] * 101))
    text = document(RSA_JWK)
    assert read_key_set(text + b" " * (jwks.MAX_DOCUMENT_BYTES - len(text)))
    with pytest.raises(KeySetRejected, match="more than 262144 bytes"):
        read_key_set(text + b" " * (jwks.MAX_DOCUMENT_BYTES - len(text) + 1))


@pytest.mark.parametrize(
    ("algorithm", "key"),
    [
        ("RS256", EC_KEY.public_key()),
        ("ES256", RSA_KEY.public_key()),
        ("EdDSA", RSA_KEY.public_key()),
        ("EdDSA", ed448.Ed448PrivateKey.generate().public_key()),
        ("RS256", RSA_KEY),
        ("HS256", RSA_KEY.public_key()),
        ("none", RSA_KEY.public_key()),
        ("HS256", b"x" * 32),
    ],
)
def test_a_key_is_not_bound_to_a_foreign_algorithm(algorithm: str, key: object) -> None:
    with pytest.raises(KeyRejected, match="not a public key for"):
        verifying_key(algorithm, key)


# ---- keeping it fresh


class Issuer:
    """A key server and the time, in the test's hands: nothing goes on until `turn()`."""

    def __init__(self) -> None:
        self.answer: bytes | Exception = document(RSA_JWK)
        self.fetched: list[str] = []
        self.pauses: list[float] = []
        self.at = 1000.0
        self._asleep = asyncio.Event()
        self._go_on = asyncio.Event()

    def __call__(self) -> float:
        return self.at

    async def fetch(self, url: str) -> bytes:
        self.fetched.append(url)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def wait(self, event: asyncio.Event, timeout_s: float) -> None:
        self.pauses.append(timeout_s)
        self._asleep.set()
        waiting = [asyncio.ensure_future(each.wait()) for each in (event, self._go_on)]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waiting:
                each.cancel()
            self._go_on.clear()

    async def asleep(self) -> None:
        """Wait until a fetch was made and its outcome taken in."""
        await self._asleep.wait()
        self._asleep.clear()

    async def turn(self) -> None:
        """Let the pause be over and the next fetch be done."""
        self.at += self.pauses[-1]
        self._go_on.set()
        await self.asleep()


async def running(test: Callable[[Issuer, Jwks], Awaitable[None]], **options: Any) -> None:
    issuer = Issuer()
    options = {"jitter": lambda: 1.0, "refresh_s": 300.0, **options}
    keys = Jwks(URL, issuer.fetch, now=issuer, wait=issuer.wait, **options)
    keys.start()
    try:
        await test(issuer, keys)
    finally:
        await keys.close()
        await keys.close()


async def test_keys_come_in_the_background_and_rotate() -> None:
    async def test(issuer: Issuer, keys: Jwks) -> None:
        assert keys.get("r") is None
        keys.start()  # a second start changes nothing
        await issuer.asleep()
        assert keys.ready
        assert issuer.fetched == [URL]
        first = keys.get("r")
        assert first is not None and first.algorithm == "RS256"
        issuer.answer = document(RSA_JWK, EC_JWK)
        await issuer.turn()
        assert keys.get("r") and keys.get("e")
        issuer.answer = document(EC_JWK)
        await issuer.turn()
        assert keys.get("r") is None
        assert keys.get("e")
        assert issuer.pauses == [300.0] * 3

    await running(test)


@pytest.mark.expect_log("server.jwks", "the known keys stay")
async def test_failures_keep_the_keys_and_are_tried_again_ever_slower(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test(issuer: Issuer, keys: Jwks) -> None:
        await issuer.asleep()
        failures = [OSError("no route"), TimeoutError(), b"<html>", document(*[{}] * 101)]
        for failure in [*failures, *[OSError("x" * 1000)] * 20]:
            issuer.answer = failure  # type: ignore[assignment]
            await issuer.turn()
            assert keys.get("r") and keys.ready
        assert issuer.pauses[1:8] == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]
        assert set(issuer.pauses[9:]) == {256.0, 300.0}
        issuer.answer = document(EC_JWK)
        await issuer.turn()
        assert issuer.pauses[-1] == 300.0
        assert keys.get("r") is None

    await running(test)
    assert "OSError: no route" in caplog.records[0].getMessage()
    assert max(len(record.getMessage()) for record in caplog.records) < 300


@pytest.mark.expect_log("server.jwks", "could not be fetched")
async def test_not_ready_before_the_first_success() -> None:
    async def test(issuer: Issuer, keys: Jwks) -> None:
        issuer.answer = OSError("down")
        await issuer.asleep()
        assert not keys.ready
        issuer.answer = document(RSA_JWK)
        await issuer.turn()
        assert keys.ready

    await running(test)


@pytest.mark.expect_log("server.jwks", "no key that can be used")
async def test_an_issuer_may_withdraw_every_key() -> None:
    async def test(issuer: Issuer, keys: Jwks) -> None:
        await issuer.asleep()
        issuer.answer = document()
        await issuer.turn()
        assert keys.get("r") is None

    await running(test)


async def test_an_unknown_key_makes_it_fetch_soon_but_not_often() -> None:
    async def test(issuer: Issuer, keys: Jwks) -> None:
        await issuer.asleep()
        for _ in range(100):
            keys.want()
        issuer.at += 9.9
        keys.want()
        for _ in range(10):  # turns of the loop in which a fetch would begin
            await asyncio.sleep(0)
        assert len(issuer.fetched) == 1
        issuer.answer = document(EC_JWK)
        issuer.at += 0.1
        for _ in range(100):
            keys.want()
        await issuer.asleep()
        assert keys.get("e")
        keys.want()
        assert len(issuer.fetched) == 2

    await running(test, want_every_s=10.0)


async def test_pauses_are_jittered() -> None:
    async def test(issuer: Issuer, keys: Jwks) -> None:
        await issuer.asleep()
        assert issuer.pauses == [225.0]

    await running(test, jitter=lambda: 0.0)


@pytest.mark.expect_log("server.jwks", "TimeoutError")
async def test_a_fetch_that_hangs_is_given_up() -> None:
    issuer = Issuer()

    async def hang(url: str) -> bytes:
        await asyncio.Event().wait()
        raise AssertionError

    keys = Jwks(URL, hang, refresh_s=300, wait=issuer.wait, timeout_s=0.01)
    keys.start()
    await issuer.asleep()
    assert not keys.ready
    await keys.close()


async def test_close_ends_a_fetch_that_runs() -> None:
    began = asyncio.Event()

    async def hang(url: str) -> bytes:
        began.set()
        await asyncio.Event().wait()
        raise AssertionError

    keys = Jwks(URL, hang, refresh_s=300)
    keys.start()
    await began.wait()
    await asyncio.gather(keys.close(), keys.close())
    assert not keys.ready


async def test_close_without_start() -> None:
    keys = Jwks(URL, Issuer().fetch, refresh_s=300)
    keys.want()
    await keys.close()
    assert not keys.ready


async def test_waiting_ends_by_the_event_or_by_time() -> None:
    event = asyncio.Event()
    await wait_for(event, 0.001)
    assert not event.is_set()
    event.set()
    await wait_for(event, 3600)
