"""Fuzz targets of what clients show for themselves: keys, tokens, tickets, cursors."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from jwt import PyJWS

from config.access import AnonymousSettings, TokenSettings
from config.patterns import Pattern
from config.rules import ChannelRule, ChannelRules
from config.serving import SseSettings
from config.settings import Settings
from fuzz_targets import target
from server.auth import Auth
from server.errors import BadRequest, TokenExpired, Unauthorized
from server.principal import Principal
from server.stream import parse_cursor

SECRET: Final = "a secret of fuzzing, long enough for HS256"
NOW: Final = 1_700_000_000.0
REFUSALS: Final = (Unauthorized, TokenExpired)
_jws: Final = PyJWS()


def make_auth() -> Auth:
    settings = Settings(
        token=TokenSettings(secret=SECRET, max_lifetime_s=86_400.0),
        sse=SseSettings(ticket_ttl_s=3_600.0),
        anonymous=AnonymousSettings(grants={"news": ("subscribe",)}),
    )
    rules = ChannelRules((ChannelRule(match="user.{sub}.>", grant=("subscribe",)),))
    return Auth(settings, rules, now=lambda: NOW)


AUTH: Final = make_auth()
TICKET: Final = AUTH.ticket(AUTH.anonymous())
PROOF: Final = AUTH.redeem(TICKET, None).proof.decode()


def signed(payload: bytes, key: bytes, kind: str) -> str:
    return _jws.encode(payload, key, "HS256", headers={"typ": kind})


def check(principal: Principal) -> None:
    """See that a principal may only do what could be granted to it."""
    assert principal.kind in ("user", "anonymous")
    if principal.kind == "user":
        assert principal.user and principal.user.isprintable()
        assert principal.expires_at is not None
    for name, actions in principal.grants.source:
        Pattern(name)
        assert {*actions} <= {"subscribe", "publish", "presence", "history"}
    for channel in ("$sys", "a..b", "*", ">", "user.*.a"):
        assert not principal.allows("subscribe", channel)


@target
def credentials(data: bytes) -> None:
    """Whatever stands in a header: nobody, or who was meant; and so of what was signed by us."""
    text = data.decode("latin-1")
    with suppress(*REFUSALS):
        check(AUTH.bearer(text))
    with suppress(*REFUSALS):
        principal = AUTH.token(signed(data, SECRET.encode(), "JWT"))
        check(principal)
        assert principal.expires_at is not None and principal.expires_at > NOW - 60


@target
def ticket(data: bytes) -> None:
    """A ticket stands for whom it was issued, and for nobody else; or it is refused."""
    first, _, last = data.decode("latin-1").partition("\0")
    key = AUTH.tickets._signing_key
    for text in (first, signed(first.encode("latin-1"), key, "galecast-ticket+jwt")):
        for last_id in (None, last, f"{PROOF}.{last}"):
            try:
                found = AUTH.redeem(text, last_id)
            except REFUSALS:
                continue
            check(found.principal)
            ends = found.principal.expires_at
            if ends is not None and ends <= NOW:
                # Signed by somebody who has the key and is at odds with himself.
                continue
            assert AUTH.redeem(AUTH.ticket(found.principal), None).principal == found.principal


@target
def last_event_id(data: bytes) -> None:
    """Only what begins with the ticket's own proof resumes, and then as it was given out."""
    for text in (data.decode("latin-1"), data.decode("utf-8", "surrogateescape")):
        with suppress(*REFUSALS):
            redeemed = AUTH.redeem(TICKET, text)
            assert redeemed.cursor is None or text == f"{PROOF}.{redeemed.cursor}"
            assert redeemed.cursor is not None or not text
        found = AUTH.redeem(TICKET, f"{PROOF}.{text}")
        assert found.cursor == text
        for channels in (["a"], ["a", "b"]):
            with suppress(BadRequest):
                positions = parse_cursor(text, channels)
                assert ",".join("" if each is None else str(each) for each in positions) == text
