"""Whose credentials these are: keys, tokens, tickets, nobody; and who was ended since."""

import json
from base64 import urlsafe_b64decode
from typing import Any

import jwt
import pytest

from config.access import AnonymousSettings, ApiKey, TokenSettings
from config.rules import ChannelRule, ChannelRules
from config.settings import Settings, hash_secret
from server.auth import Auth
from server.errors import Forbidden, Refused, TokenExpired, Unauthorized
from server.jwks import KeyRejected
from server.principal import Principal

SECRET = "a-secret-of-at-least-thirty-two-bytes"
GRANTS = {"chat.*": ["subscribe"]}


class Clock:
    def __init__(self) -> None:
        self.at = 1_000_000.0

    def __call__(self) -> float:
        return self.at


def key(key_id: str, **scopes: Any) -> ApiKey:
    made: dict[Any, Any] = scopes or {"publish": (">",)}
    return ApiKey(name="shop", id=key_id, hash=hash_secret("s3cret"), scopes=made)


def node(clock: Clock | None = None, **changes: Any) -> Auth:
    ticket_secret = changes.pop("ticket_secret", b"")
    values = {"token": TokenSettings(secret=SECRET), "keys": (key("k1"),), **changes}
    rules = ChannelRules([ChannelRule(match="user.{sub}.>", grant=("subscribe",))])
    return Auth(Settings(**values), rules, now=clock or Clock(), ticket_secret=ticket_secret)


def refused(kind: type[Refused], call: Any, *arguments: Any) -> str:
    with pytest.raises(kind) as caught:
        call(*arguments)
    assert type(caught.value) is kind
    return caught.value.message


def test_a_bearer_is_a_key_or_a_token() -> None:
    auth = node()
    token = auth.mint("u7", GRANTS)
    for scheme in ("Bearer", "bearer", "BEARER"):
        assert auth.bearer(f"{scheme} k1.s3cret").kind == "service"
        principal = auth.bearer(f" {scheme}  {token} ")
        assert (principal.kind, principal.user) == ("user", "u7")
        assert principal.allows("subscribe", "chat.lobby")
        assert principal.allows("subscribe", "user.u7.inbox")


@pytest.mark.parametrize(
    "header",
    [
        "",
        " ",
        "Bearer",
        "Bearer ",
        "Bearer\tk1.s3cret",
        "k1.s3cret",
        "Basic k1.s3cret",
        "Bearer: k1.s3cret",
        "Bearer k1",
        "Bearer k1.wrong",
        "Bearer k1.s3cret, Bearer k1.s3cret",
        "Bearer k1.s3cret.x",
        "Bearer a.b.c.d",
        "Bearer \u00e9.\u00e9",
    ],
)
def test_what_is_no_bearer(header: str) -> None:
    said = refused(Unauthorized, node().bearer, header)
    assert "s3cret" not in said


def test_a_key_is_no_token() -> None:
    assert refused(Unauthorized, node().token, "k1.s3cret") == "token: malformed"


def test_an_expired_bearer() -> None:
    clock = Clock()
    auth = node(clock)
    token = auth.mint("u7", GRANTS, 60)
    clock.at += 65
    assert refused(TokenExpired, auth.bearer, f"Bearer {token}") == "token: expired"


def test_nobody_is_let_in_unless_settings_say_so() -> None:
    assert refused(Unauthorized, node().anonymous) == "a token is required"
    anonymous = node(anonymous=AnonymousSettings(grants={"news.>": ("subscribe",)})).anonymous()
    assert (anonymous.kind, anonymous.user, anonymous.expires_at) == ("anonymous", None, None)
    assert anonymous.allows("subscribe", "news.world")
    assert not anonymous.allows("publish", "news.world")
    assert not anonymous.allows("subscribe", "user.u7.inbox")


def test_a_refresh_keeps_the_user() -> None:
    clock = Clock()
    auth = node(clock)
    principal = auth.token(auth.mint("u7", GRANTS, 60))
    clock.at += 50
    newer = auth.refresh(principal, auth.mint("u7", {"news": ["subscribe"]}, 60))
    assert newer.expires_at == 1_000_110
    assert newer.allows("subscribe", "news")
    assert not newer.allows("subscribe", "chat.lobby")


def test_a_refresh_may_not_change_the_user() -> None:
    auth = node(anonymous=AnonymousSettings(grants={">": ("subscribe",)}))
    own, other = auth.mint("u7", GRANTS), auth.mint("u8", GRANTS)
    for principal, token in (
        (auth.token(own), other),
        (auth.token(own), auth.mint("U7", GRANTS)),
        (auth.anonymous(), own),
        (auth.bearer("Bearer k1.s3cret"), own),
    ):
        said = refused(Forbidden, auth.refresh, principal, token)
        assert said == "a refresh may not change the user"
    assert refused(Unauthorized, auth.refresh, auth.token(own), "k1.s3cret") == "token: malformed"


def test_an_ended_user_cannot_come_back_with_anything_old() -> None:
    clock = Clock()
    auth = node(clock)
    token = auth.mint("u7", GRANTS)
    principal = auth.token(token)
    ticket, used = auth.ticket(principal), auth.ticket(principal)
    _, proof, *_ = auth.redeem(used)
    assert auth.current(principal) is principal
    clock.at += 1
    auth.end_user("u7", *auth.revocations.span())
    said = "token: this user's sessions were ended"
    assert refused(Unauthorized, auth.bearer, f"Bearer {token}") == said
    assert refused(Unauthorized, auth.token, token) == said
    assert refused(Unauthorized, auth.refresh, principal, token) == said
    assert refused(Unauthorized, auth.redeem, ticket) == said
    assert refused(Unauthorized, auth.redeem, used, f"{proof.decode()}.c") == said
    assert auth.current(principal) is None
    assert refused(Unauthorized, auth.token, auth.mint("u7", GRANTS)) == said  # the same second
    clock.at += 1
    newer = auth.token(auth.mint("u7", GRANTS))
    assert auth.current(newer) is newer
    assert auth.token(auth.mint("u8", GRANTS)).user == "u8"


def test_no_token_outlives_the_memory_of_its_end() -> None:
    clock = Clock()
    settings = TokenSettings(secret=SECRET, max_lifetime_s=3600.0, leeway_s=10.0)
    auth = node(clock, token=settings)
    # Issued by a clock ahead by the leeway, and as long-lived as may be.
    longest = jwt.encode({"sub": "u7", "iat": 1_000_000, "exp": 1_003_610}, SECRET, "HS256")
    assert auth.token(longest).user == "u7"
    auth.end_user("u7", *auth.revocations.span())
    while True:
        clock.at += 0.5
        try:
            auth.token(longest)
        except TokenExpired:
            break
        except Unauthorized:
            continue
        pytest.fail("the token came back to life")
    assert clock.at == 1_003_620


@pytest.mark.parametrize("who", ["user", "service", "anonymous"])
def test_tickets_of_everyone(who: str) -> None:
    auth = node(anonymous=AnonymousSettings(grants={"news.>": ("subscribe",)}))
    principal: Principal = {
        "user": lambda: auth.token(auth.mint("u7", GRANTS)),
        "service": lambda: auth.bearer("Bearer k1.s3cret"),
        "anonymous": auth.anonymous,
    }[who]()
    back, _, cursor, *_ = auth.redeem(auth.ticket(principal))
    assert back == principal
    assert cursor is None
    if who == "user":
        assert back.grants is principal.grants
        assert back.allows("subscribe", "user.u7.inbox")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"grants": {"a.*": ["rewrite"]}}, "ticket: its grants are not understood"),
        ({"grants": {"a.**": ["subscribe"]}}, "ticket: its grants are not understood"),
        ({"user": None}, "ticket: not valid"),
        ({"expires_at": None}, "ticket: not valid"),
    ],
)
def test_a_ticket_of_another_version(changes: dict[str, Any], said: str) -> None:
    """While versions are mixed, one with a grant that a node did not know was an internal error."""
    auth = node()
    ticket = auth.ticket(auth.token(auth.mint("u7", GRANTS)))
    _head, payload, _signature = ticket.split(".")
    claims = json.loads(urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    claims["principal"] |= changes
    text = json.dumps(claims).encode()
    typed = {"typ": "galecast-ticket+jwt"}
    again = jwt.PyJWS().encode(text, auth.tickets._signing_key, "HS256", headers=typed)
    assert refused(Unauthorized, auth.redeem, again) == said


def test_workers_without_a_token_secret_take_each_others_tickets() -> None:
    """Each drew a key of its own: with a key set alone, or none, most streams were refused."""
    settings = Settings(anonymous=AnonymousSettings(grants={">": ("subscribe",)}))
    first, second = (Auth(settings, ChannelRules(()), ticket_secret=b"s" * 32) for _ in "12")
    ticket = first.ticket(first.anonymous())
    assert second.redeem(ticket).principal.kind == "anonymous"
    alone = Auth(settings, ChannelRules(()))
    assert refused(Unauthorized, alone.redeem, ticket) == "ticket: not valid"
    # It is the settings' that counts.
    assert refused(Unauthorized, node(ticket_secret=b"s" * 32).redeem, ticket)


def test_a_reload_rotates_keys() -> None:
    auth = node()
    service = auth.bearer("Bearer k1.s3cret")
    ticket = auth.ticket(service)
    auth.reload(Settings(keys=(key("k1", history=("news",)), key("k2"))))
    changed = auth.current(service)
    assert changed is not None
    assert changed.allows("history", "news") and not changed.allows("publish", "news")
    assert auth.bearer("Bearer k2.s3cret").name == "shop"
    auth.reload(Settings(keys=(key("k2"),)))
    assert auth.current(service) is None
    assert refused(Unauthorized, auth.bearer, "Bearer k1.s3cret")
    assert refused(Unauthorized, auth.redeem, ticket) == "ticket: its API key is no longer valid"
    assert auth.token(auth.mint("u7", GRANTS)).user == "u7"  # tokens need a restart


def test_the_ticket_of_an_anonymous_client_dies_with_anonymous_access() -> None:
    clock = Clock()
    open_node = node(clock, anonymous=AnonymousSettings(grants={">": ("subscribe",)}))
    ticket = open_node.ticket(open_node.anonymous())
    assert refused(Unauthorized, node(clock).redeem, ticket) == "a token is required"


def test_minting_needs_a_secret() -> None:
    auth = node(token=TokenSettings())
    assert "token.secret is not set" in refused(Forbidden, auth.mint, "u7", GRANTS)
    assert refused(Unauthorized, auth.bearer, "Bearer a.b.c") == "token: none are taken here"


def test_a_bad_key_stops_the_start() -> None:
    with pytest.raises(KeyRejected, match=r"token\.secret has 5 bytes"):
        node(token=TokenSettings(secret="short"))
