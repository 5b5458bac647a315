"""Whom a ticket stands for: first use, later uses with the proof, and tricks with both."""

import base64
import json
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.access import TokenSettings
from config.rules import ChannelRules
from server.errors import Refused, TokenExpired, Unauthorized
from server.principal import GrantsCache, Principal
from server.tickets import LIFETIME_S, MAX_TICKET_BYTES, Carried, Tickets
from server.tokens import TokenSigner, TokenVerifier

SECRET = b"a-secret-of-at-least-thirty-two-bytes"
SERVICE = Principal(kind="service", name="shop", key="k1")
ANONYMOUS = Principal(kind="anonymous")
CACHE = GrantsCache()


class Clock:
    def __init__(self) -> None:
        self.at = 1_000_000.0

    def __call__(self) -> float:
        return self.at


def restore(carried: Carried) -> Principal:
    if carried.kind == "anonymous":
        return ANONYMOUS
    if carried.kind == "service":
        if carried.key != "k1":
            raise Unauthorized("gone")
        return SERVICE
    return Principal(
        kind="user",
        user=carried.user,
        grants=CACHE.grants(carried.grants),
        issued_at=carried.issued_at,
        expires_at=carried.expires_at,
    )


def user(expires_at: float | None = 1_003_600.0) -> Principal:
    return Principal(
        kind="user",
        user="u7",
        grants=CACHE.grants({"chat.*": ["subscribe", "history"], "news": ["subscribe"]}),
        issued_at=999_000.0,
        expires_at=expires_at,
    )


def made(clock: Clock, **options: Any) -> Tickets:
    return Tickets(restore, **{"secret": SECRET, "now": clock, **options})


def refused(
    tickets: Tickets,
    ticket: str,
    last_event_id: str | None = None,
    kind: type[Refused] = Unauthorized,
) -> str:
    with pytest.raises(kind) as caught:
        tickets.redeem(ticket, last_event_id)
    assert type(caught.value) is kind
    assert caught.value.__context__ is None
    assert len(ticket) < 12 or ticket not in repr(caught.value)
    return caught.value.message


@pytest.mark.parametrize("principal", [user(), SERVICE, ANONYMOUS])
def test_a_ticket_gives_its_principal_back(principal: Principal) -> None:
    tickets = made(Clock())
    back, proof, cursor, name, ttl_s = tickets.redeem(tickets.issue(principal))
    assert back == principal
    assert cursor is None
    assert name.startswith("ticket:") and ttl_s > tickets.ttl_s
    assert len(proof) == 22
    assert base64.urlsafe_b64decode(proof + b"==")


def test_a_first_use_has_a_name_that_can_be_taken_once() -> None:
    """Who takes it decides; the same on all nodes, and unlike that of any other ticket."""
    clock = Clock()
    tickets, elsewhere = made(clock), made(clock)
    one, other = tickets.issue(user()), tickets.issue(user())
    names = {tickets.redeem(one).name, tickets.redeem(one).name, elsewhere.redeem(one).name}
    assert len(names) == 1
    assert tickets.redeem(other).name not in names
    assert tickets.redeem(one, "").cursor is None  # no way around it


def test_used_first_within_its_time() -> None:
    clock = Clock()
    tickets = made(clock, ttl_s=30)
    assert tickets.ttl_s == 30
    early, late = tickets.issue(user()), tickets.issue(user())
    clock.at += 30
    tickets.redeem(early)
    clock.at += 0.1
    assert refused(tickets, late) == "ticket: not used in time"
    assert refused(tickets, early) == "ticket: not used in time"


def test_later_uses_bring_the_proof() -> None:
    clock = Clock()
    tickets = made(clock)
    ticket = tickets.issue(user())
    _, proof, *_ = tickets.redeem(ticket)
    for pause in (1, 100, 3000):
        clock.at += pause
        back, again, cursor, *_ = tickets.redeem(ticket, f"{proof.decode()}.cursor.with.dots")
        assert (back, again, cursor) == (user(), proof, "cursor.with.dots")
    clock.at = 1_003_600.0
    said = refused(tickets, ticket, f"{proof.decode()}.c", TokenExpired)
    assert said == "ticket: expired"


@pytest.mark.parametrize("expires_at", [1_000_010.0, 1_000_000.0])
def test_a_first_use_after_the_token_s_end(expires_at: float) -> None:
    clock = Clock()
    tickets = made(clock)
    ticket = tickets.issue(user(expires_at))
    clock.at += 10
    assert refused(tickets, ticket, kind=TokenExpired) == "ticket: expired"


@pytest.mark.parametrize("principal", [SERVICE, ANONYMOUS])
def test_without_an_end_of_its_own_a_day(principal: Principal) -> None:
    clock = Clock()
    tickets = made(clock)
    ticket = tickets.issue(principal)
    _, proof, *_ = tickets.redeem(ticket)
    clock.at += LIFETIME_S - 1
    tickets.redeem(ticket, proof.decode() + ".c")
    clock.at += 1
    refused(tickets, ticket, proof.decode() + ".c", TokenExpired)


def test_a_proof_of_another_ticket_or_none() -> None:
    tickets = made(Clock())
    mine, other = tickets.issue(user()), tickets.issue(user())
    _, proof, *_ = tickets.redeem(mine)
    _, others, *_ = tickets.redeem(other)
    assert proof != others
    text = proof.decode()
    for wrong in (
        "c",
        ".",
        ".c",
        text,
        text[:-1] + ".c",
        text + "c",
        text + "x.c",
        text.swapcase() + ".c",
        others.decode() + ".c",
        "\u00e9" * 22 + ".c",
        "\udcff" * 22 + ".c",
        "x" * 100_000,
    ):
        assert refused(tickets, mine, wrong) == "ticket: Last-Event-ID does not belong to it"
    assert tickets.redeem(mine, text + ".")[2] == ""


def test_a_wrong_proof_does_not_use_the_ticket_up() -> None:
    tickets = made(Clock())
    ticket = tickets.issue(user())
    refused(tickets, ticket, "x.c")
    assert tickets.redeem(ticket)[0] == user()


def test_a_ticket_for_a_key_that_is_gone() -> None:
    tickets = made(Clock())
    ticket = tickets.issue(Principal(kind="service", name="x", key="removed"))
    assert refused(tickets, ticket) == "gone"


def test_the_ticket_of_a_service_carries_only_the_key_s_id() -> None:
    payload = made(Clock()).issue(SERVICE).split(".")[1]
    carried = json.loads(base64.urlsafe_b64decode(payload + "=="))["principal"]
    assert carried == {"kind": "service", "key": "k1"}


def test_a_ticket_is_no_token_and_a_token_no_ticket() -> None:
    """Both are HS256 from one secret: the derived keys and the type keep them apart."""
    clock = Clock()
    tickets = made(clock)
    settings = TokenSettings(secret=SECRET.decode())
    verifier = TokenVerifier(settings, ChannelRules(), CACHE, now=clock)
    with pytest.raises(Unauthorized, match="token: wrong signature"):
        verifier.verify(tickets.issue(user()))
    token = TokenSigner(settings, now=clock).mint("u7", {})
    assert refused(tickets, token) == "ticket: not valid"
    payload = json.loads(base64.urlsafe_b64decode(tickets.issue(user()).split(".")[1] + "=="))
    for key, headers in (
        (SECRET, {"typ": "galecast-ticket+jwt"}),
        (tickets._signing_key, {"typ": "JWT"}),
        (tickets._signing_key, {}),
    ):
        forged = jwt.encode(payload, key, "HS256", headers=headers)
        assert refused(tickets, forged) == "ticket: not valid"
    for changes in ({"aud": "galecast"}, {"exp": "later"}, {"principal": {"kind": "root"}}):
        forged = jwt.encode(
            {**payload, **changes},
            tickets._signing_key,
            "HS256",
            headers={"typ": "galecast-ticket+jwt"},
        )
        assert refused(tickets, forged) == "ticket: not valid"


def test_forged_tickets() -> None:
    clock = Clock()
    tickets = made(clock)
    header, payload, signature = tickets.issue(user()).split(".")
    other = made(clock, secret=b"x" * 32)
    unsigned = base64.urlsafe_b64encode(b'{"alg":"none","typ":"galecast-ticket+jwt"}').decode()
    for ticket in (
        "",
        "a.b.c",
        "\u00e9",
        "\udcff",
        "x" * (MAX_TICKET_BYTES + 1),
        f"{header}.{payload}.",
        f"{header}.{payload[:-4]}AAAA.{signature}",
        f"{unsigned.rstrip('=')}.{payload}.",
        other.issue(user()),
    ):
        assert refused(tickets, ticket) == "ticket: not valid"


@given(st.text(max_size=60), st.text(max_size=40) | st.none())
def test_nothing_else_but_a_refusal_comes_out(ticket: str, last_event_id: str | None) -> None:
    with pytest.raises(Unauthorized):
        made(Clock()).redeem(ticket, last_event_id)


def test_one_secret_serves_many_processes() -> None:
    clock = Clock()
    ticket = made(clock).issue(user())
    _, proof, *_ = made(clock).redeem(ticket)
    assert made(clock).redeem(ticket, proof.decode() + ".c")[2] == "c"


def test_without_a_secret_each_process_has_its_own() -> None:
    clock = Clock()
    one, two = made(clock, secret=None), made(clock, secret=None)
    ticket = one.issue(user())
    assert refused(two, ticket) == "ticket: not valid"
    assert one.redeem(ticket)[0] == user()


def test_the_largest_principal_fits() -> None:
    grants = {f"{n:0>24}.>": ["subscribe"] for n in range(256)}
    principal = Principal(kind="user", user="u7", grants=CACHE.grants(grants), expires_at=2e6)
    tickets = made(Clock())
    assert tickets.redeem(tickets.issue(principal))[0].grants is principal.grants


@pytest.mark.parametrize(
    "payload", [b'{"aud":"\xff"}', b'{"x":' + b"[" * 1_500 + b"]" * 1_500 + b"}", b"[" * 3_000]
)
def test_rubbish_that_was_signed_is_refused_like_any_other(payload: bytes) -> None:
    """What was no UTF-8, or nested deeply, came out as an error of its own."""
    tickets = made(Clock())
    headers = {"typ": "galecast-ticket+jwt"}
    text = jwt.PyJWS().encode(payload, tickets._signing_key, "HS256", headers=headers)
    with pytest.raises(Unauthorized, match="not valid"):
        tickets.redeem(text)
