"""Who may do what? This file answers: whom a ticket stands for, where no header can be sent.

A ticket travels in a URL, and URLs end up in logs. So it is worth one use within seconds; what
makes a later use possible is a proof that only the stream itself carries.
"""

import hmac
import secrets
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable
from itertools import islice
from typing import Final, NamedTuple, NoReturn

import msgspec
from jwt import PyJWS
from jwt.exceptions import PyJWTError

from server.errors import TokenExpired, Unauthorized
from server.principal import Kind, Principal

MAX_TICKET_BYTES: Final = 16 * 1024
PROOF_BYTES: Final = 22
LIFETIME_S: Final = 24 * 3600.0
"""How long a ticket serves whose principal has no end of its own."""

# The clocks of nodes may differ by this much: a ticket that one of them no longer takes may still
# be in time for another.
_CLOCKS_S: Final = 60.0
_AUDIENCE: Final = "galecast-ticket"
_TYPE: Final = "galecast-ticket+jwt"


class Carried(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a ticket says of its principal: for a service only the key's id, so that the ticket of
    a key that was removed opens nothing."""

    kind: Kind
    user: str | None = None
    key: str | None = None
    grants: dict[str, list[str]] = {}
    issued_at: float | None = None
    expires_at: float | None = None


class _Claims(msgspec.Struct, frozen=True, kw_only=True):
    aud: str
    jti: str
    use_by: float
    exp: float
    principal: Carried


def _refuse(text: str) -> NoReturn:
    raise Unauthorized(f"ticket: {text}")


class Redeemed(NamedTuple):
    """Whom a ticket stands for, its proof, and the cursor to resume from.

    Without `cursor` this is the first use: it counts once `name` was taken (`Control.take`), which
    can be done once, for at least `name_ttl_s`.
    """

    principal: Principal
    proof: bytes
    cursor: str | None
    name: str
    name_ttl_s: float


class Tickets:
    """Issues and redeems tickets; nothing is kept of one.

    Keys are derived from `secret` under labels of their own, so that a ticket is never a token nor
    the other way round. With the same secret on all nodes, and after a restart, streams go on.
    At most `max_ended` tickets whose streams were ended are remembered.
    `restore` makes the principal anew and raises Unauthorized where there is none any more. `now`
    is the wall clock in seconds since 1970.
    """

    __slots__ = (
        "_ended",
        "_jws",
        "_max_ended",
        "_now",
        "_proof_key",
        "_restore",
        "_signing_key",
        "_ttl_s",
    )

    def __init__(
        self,
        restore: Callable[[Carried], Principal],
        *,
        secret: bytes | None = None,
        ttl_s: float = 30.0,
        now: Callable[[], float] = time.time,
        max_ended: int = 100_000,
    ) -> None:
        root = secret or secrets.token_bytes(32)
        self._signing_key = hmac.digest(root, b"galecast ticket signature 1", "sha256")
        self._proof_key = hmac.digest(root, b"galecast ticket proof 1", "sha256")
        self._jws = PyJWS(options={"verify_signature": True, "enforce_minimum_key_length": True})
        self._restore = restore
        self._ttl_s = ttl_s
        self._now = now
        self._max_ended = max_ended
        self._ended: dict[bytes, float] = {}  # proof to when its ticket is over anyway

    @property
    def ttl_s(self) -> float:
        """Seconds within which a ticket has to be used first."""
        return self._ttl_s

    def issue(self, principal: Principal) -> str:
        """Return a ticket for `principal`."""
        now = self._now()
        carried = Carried(
            kind=principal.kind,
            user=principal.user,
            key=principal.key,
            grants={pattern: list(actions) for pattern, actions in principal.grants.source}
            if principal.kind == "user"
            else {},
            issued_at=principal.issued_at,
            expires_at=principal.expires_at,
        )
        claims = _Claims(
            aud=_AUDIENCE,
            jti=secrets.token_urlsafe(16),
            use_by=now + self._ttl_s,
            exp=now + LIFETIME_S if principal.expires_at is None else principal.expires_at,
            principal=carried,
        )
        return self._jws.encode(
            msgspec.json.encode(claims), self._signing_key, "HS256", headers={"typ": _TYPE}
        )

    def redeem(self, ticket: str, last_event_id: str | None = None) -> Redeemed:
        """Return whom a ticket stands for.

        Without `last_event_id` this is the first use: it has to come within `ttl_s`, and only
        once, which the caller finds out. Later ones bring `<proof>.<cursor>`, which every event of
        the stream had as its id. The proof is 22 characters that are safe in URLs, the same for
        each use of a ticket. Raises TokenExpired when the principal's time is over, Unauthorized
        for all else that is wrong.
        """
        claims = self._read(ticket)
        proof, cursor = self._proof(claims.jti), None
        if last_event_id:
            given = last_event_id[:PROOF_BYTES].encode("utf-8", "surrogatepass")
            same = hmac.compare_digest(given, proof)
            if not same or last_event_id[PROOF_BYTES : PROOF_BYTES + 1] != ".":
                _refuse("Last-Event-ID does not belong to it")
            cursor = last_event_id[PROOF_BYTES + 1 :]
        now = self._now()
        if proof in self._ended:
            _refuse("its stream was ended")
        if now >= claims.exp:
            raise TokenExpired("ticket: expired")
        principal = self._restore(claims.principal)
        if cursor is None and now > claims.use_by:
            _refuse("not used in time")
        return Redeemed(
            principal, proof, cursor, f"ticket:{claims.jti}", self._ttl_s + 2 * _CLOCKS_S
        )

    def span(self, expires_at: float | None) -> tuple[float, float]:
        """Return from when until when a ticket counts as ended that is ended now (s since 1970).

        `expires_at` is its principal's.
        """
        now = self._now()
        return now, now + LIFETIME_S if expires_at is None else expires_at

    def end(self, proof: bytes, until_s: float) -> None:
        """Refuse the ticket of that proof from now on, until it is over anyway."""
        now = self._now()
        ended = self._ended
        for known in [known for known, until in islice(ended.items(), 8) if until < now]:
            del ended[known]
        if proof not in ended and len(ended) >= self._max_ended:
            del ended[next(iter(ended))]
        ended[proof] = until_s

    def _read(self, ticket: str) -> _Claims:
        claims: _Claims | None = None
        if len(ticket) <= MAX_TICKET_BYTES and ticket.isascii():
            try:
                signed = self._jws.decode_complete(ticket, self._signing_key, algorithms=["HS256"])
                if signed["header"].get("typ") == _TYPE:
                    claims = msgspec.json.decode(signed["payload"], type=_Claims)
            except (PyJWTError, ValueError, RecursionError):
                pass
        if claims is None or claims.aud != _AUDIENCE:
            _refuse("not valid")
        return claims

    def _proof(self, ticket_id: str) -> bytes:
        return urlsafe_b64encode(hmac.digest(self._proof_key, ticket_id.encode(), "sha256")[:16])[
            :PROOF_BYTES
        ]
