"""Who may do what? This file answers: which user a token (JWT, RFC 7519) stands for.

The checks follow RFC 8725: a key decides the algorithm, never the token; a token brings no key
along; nothing of a token's text reaches an error.
"""

import base64
import binascii
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NoReturn

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt import PyJWS
from jwt.algorithms import HMACAlgorithm
from jwt.exceptions import InvalidKeyError, PyJWTError

from config.access import TokenSettings
from config.checks import ALGORITHMS, MIN_SECRET_BYTES
from config.patterns import NameRejected, check_user
from config.rules import ChannelRules
from server.errors import BadRequest, Forbidden, TokenExpired, Unauthorized
from server.jwks import Jwks, KeyRejected, VerifyingKey, verifying_key
from server.principal import GrantsCache, GrantsRejected, Principal

MAX_TOKEN_BYTES: Final = 8 * 1024

# Keys that a token brings along (`jku x5u jwk x5c`), and extensions that would have to be
# understood (`crit`, and `b64` that needs it).
_REFUSED_HEADERS: Final = ("jku", "x5u", "jwk", "x5c", "crit", "b64")
_NAMES_A_CLAIM = re.compile(r"\$\.(sub|exp|iat|nbf|iss|grants)\b")


class _Claims(msgspec.Struct):
    sub: str | None = None
    exp: float | None = None
    iat: float | None = None
    nbf: float | None = None
    iss: str | None = None
    aud: Any = None
    grants: dict[str, list[str]] | None = None


def _refuse(text: str) -> NoReturn:
    raise Unauthorized(f"token: {text}")


class _ParsedSecret(HMACAlgorithm):
    """HMAC with secrets from `parse_secret`, which are not looked at again for each token.

    To find out that a secret is no public key in disguise takes a third of what a check takes.
    """

    def prepare_key(self, key: str | bytes) -> bytes:
        if not isinstance(key, bytes):
            raise InvalidKeyError("not a parsed secret")
        return key


def signature_checker() -> PyJWS:
    """Return what checks and makes signatures, with what it leaves off by default put on.

    Secrets for it come from `parse_secret`.
    """
    checker = PyJWS(options={"verify_signature": True, "enforce_minimum_key_length": True})
    checker.unregister_algorithm("HS256")
    checker.register_algorithm("HS256", _ParsedSecret(HMACAlgorithm.SHA256))
    return checker


def parse_secret(secret: str) -> bytes:
    """Return an HS256 secret as bytes; raises KeyRejected if it is too short or no secret."""
    raw = secret.encode()
    if len(raw) < MIN_SECRET_BYTES:
        raise KeyRejected(f"token.secret has {len(raw)} bytes, it needs {MIN_SECRET_BYTES}")
    try:
        PyJWS().get_algorithm_by_name("HS256").prepare_key(raw)
    except PyJWTError:
        # A public key as HMAC secret is how algorithm confusion begins.
        raise KeyRejected(
            "token.secret holds a key in PEM, SSH or JWK form, not a secret"
        ) from None
    return raw


def parse_public_key(pem: str, algorithm: str) -> VerifyingKey:
    """Return the public key in `pem`, bound to `algorithm`; raises KeyRejected."""
    if algorithm not in ALGORITHMS:
        raise KeyRejected(f"token.algorithm must be one of {', '.join(ALGORITHMS)}")
    try:
        key = load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise KeyRejected("token.public_key is not a public key in PEM") from None
    try:
        return verifying_key(algorithm, key)
    except KeyRejected as error:
        raise KeyRejected(f"token.public_key: {error}") from None


class TokenVerifier:
    """Checks clients' tokens; keys are parsed when it is made, which raises KeyRejected.

    `now` is the wall clock in seconds since 1970.
    """

    __slots__ = ("_grants", "_jwks", "_jws", "_keys", "_now", "_rules", "_settings")

    def __init__(
        self,
        settings: TokenSettings,
        rules: ChannelRules,
        grants: GrantsCache,
        *,
        now: Callable[[], float] = time.time,
        jwks: Jwks | None = None,
    ) -> None:
        self._settings = settings
        self._rules = rules
        self._grants = grants
        self._now = now
        self._jwks = jwks
        self._jws = signature_checker()
        keys: list[VerifyingKey] = []
        if settings.secret:
            keys.append(VerifyingKey("HS256", parse_secret(settings.secret)))
        if settings.public_key:
            keys.append(parse_public_key(settings.public_key, settings.algorithm))
        self._keys = {key.algorithm: key for key in keys}

    def verify(self, text: str) -> Principal:
        """Return the user that a token stands for. Costs no I/O.

        Raises TokenExpired for a valid token whose time is over, and Unauthorized for all else. A
        key id that the key set does not have makes it fetch the set soon. `expires_at` is what the
        token says: the leeway admits it, and does not make it last longer.
        """
        if not self._keys and self._jwks is None:
            _refuse("none are taken here")
        if len(text) > MAX_TOKEN_BYTES:
            _refuse(f"longer than {MAX_TOKEN_BYTES} bytes")
        if not text.isascii() or text.count(".") != 2:
            _refuse("malformed")
        payload = self._signed_by(self._choose_key(_read_header(text)), text)
        claims = _read_claims(payload)
        self._check_addressee(claims)
        issued_at, expires_at = self._check_times(claims)
        user = claims.sub
        if user is None:
            _refuse("sub is missing")
        wrong = ""
        try:
            check_user(user)
            grants = self._grants.grants(claims.grants or {})
        except NameRejected:
            wrong = "sub is not a valid user id"
        except GrantsRejected as error:
            wrong = f"grants: {error}"
        if wrong:
            _refuse(wrong)
        return Principal(
            kind="user",
            user=user,
            grants=grants,
            rules=self._rules,
            issued_at=issued_at,
            expires_at=expires_at,
        )

    def _choose_key(self, header: dict[str, Any]) -> VerifyingKey:
        algorithm, kid = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or not (kid is None or isinstance(kid, str)):
            _refuse("malformed")
        if self._jwks is not None and kid is not None and algorithm in ALGORITHMS:
            key = self._jwks.get(kid)
            if key is not None:
                if key.algorithm != algorithm:
                    _refuse("wrong algorithm")
                return key
            self._jwks.want()
        found = self._keys.get(algorithm)
        if found is not None:
            return found
        if self._jwks is not None and algorithm in ALGORITHMS:
            _refuse("unknown key")
        _refuse("wrong algorithm")

    def _signed_by(self, key: VerifyingKey, text: str) -> bytes:
        """Return the payload; an error is raised outside of `except`, to leave no trace of it."""
        payload: bytes | None = None
        try:
            payload = self._jws.decode(text, key.key, algorithms=[key.algorithm])
        except PyJWTError:
            pass
        if payload is None:
            _refuse("wrong signature")
        return payload

    def _check_addressee(self, claims: _Claims) -> None:
        settings = self._settings
        if settings.issuer and claims.iss != settings.issuer:
            _refuse("wrong issuer")
        # Strict: one audience, as a text. A list would let a token made for others pass here.
        if settings.audience and claims.aud != settings.audience:
            _refuse("wrong audience")

    def _check_times(self, claims: _Claims) -> tuple[float | None, float]:
        now, leeway = self._now(), self._settings.leeway_s
        longest = self._settings.max_lifetime_s + leeway
        issued_at, expires_at = claims.iat, claims.exp
        if expires_at is None:
            _refuse("exp is missing")
        # What lives longer than ended users are remembered could come back; so both count, the
        # time that is left and the whole of it.
        if expires_at > now + longest or (
            issued_at is not None and expires_at - issued_at > longest
        ):
            _refuse("exp is too far ahead")
        if max(claims.nbf or now, issued_at or now) > now + leeway:
            _refuse("not yet valid")
        if expires_at <= now - leeway:
            raise TokenExpired("token: expired")
        return issued_at, expires_at


def _read_header(text: str) -> dict[str, Any]:
    """Return the header: not trusted yet, and used for nothing but the choice of a key."""
    segment = text[: text.index(".")]
    header: dict[str, Any] | None = None
    try:
        raw = base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
        header = msgspec.json.decode(raw, type=dict[str, Any])
    except (binascii.Error, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    if header is None:
        _refuse("malformed")
    for name in _REFUSED_HEADERS:
        if name in header:
            _refuse(f"header {name} is not allowed")
    return header


def _read_claims(payload: bytes) -> _Claims:
    claims: _Claims | None = None
    wrong = "malformed"
    try:
        claims = msgspec.json.decode(payload, type=_Claims)
    except msgspec.ValidationError as error:
        named = _NAMES_A_CLAIM.search(str(error))
        wrong = f"{named[1]} has the wrong type" if named else wrong
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    if claims is None:
        _refuse(wrong)
    return claims


class TokenSigner:
    """Mints tokens that this server accepts, signed with `token.secret` (HS256)."""

    __slots__ = ("_grants", "_jws", "_now", "_secret", "_settings")

    def __init__(
        self,
        settings: TokenSettings,
        grants: GrantsCache | None = None,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._grants = GrantsCache() if grants is None else grants
        self._now = now
        self._jws = signature_checker()
        self._secret = parse_secret(settings.secret) if settings.secret else None

    def mint(
        self, sub: str, grants: Mapping[str, Iterable[str]], ttl_s: float | None = None
    ) -> str:
        """Return a token for the user `sub`; without `ttl_s` it lives `token.default_ttl_s`.

        Times are whole seconds, so it lives up to one second less. Raises Forbidden if there is
        no secret to sign with, BadRequest on what would not be accepted again.
        """
        if self._secret is None:
            raise Forbidden("tokens cannot be minted: token.secret is not set")
        settings = self._settings
        lifetime_s = settings.default_ttl_s if ttl_s is None else ttl_s
        if not 1 <= lifetime_s <= settings.max_lifetime_s:
            raise BadRequest(f"the lifetime of a token is 1 to {settings.max_lifetime_s:.10g} s")
        try:
            check_user(sub)
            source = self._grants.grants(grants).source
        except (NameRejected, GrantsRejected) as error:
            raise BadRequest(str(error)) from None
        issued_at = int(self._now())
        claims: dict[str, Any] = {
            "sub": sub,
            "iat": issued_at,
            "exp": int(issued_at + lifetime_s),
            "grants": dict(source),
        }
        if settings.issuer:
            claims["iss"] = settings.issuer
        if settings.audience:
            claims["aud"] = settings.audience
        text = self._jws.encode(msgspec.json.encode(claims), self._secret, "HS256")
        if len(text) > MAX_TOKEN_BYTES:
            raise BadRequest(f"the token would be longer than {MAX_TOKEN_BYTES} bytes")
        return text
