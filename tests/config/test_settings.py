"""Defaults hold together; development mode opens a node only to its own machine."""

import re
from typing import Any

import pytest

from config.access import AnonymousSettings, ApiKey, TokenSettings
from config.checks import Scope
from config.declare import declared
from config.limits import LimitSettings
from config.rules import ACTIONS, DEFAULT_RULE, ChannelRules
from config.serving import SessionSettings
from config.settings import (
    DEV_KEY,
    DEV_SECRET,
    Settings,
    conflicts,
    default_rule,
    dev_changes,
    dev_notice,
    dev_origins,
    hash_secret,
    warnings,
)
from config.sources import all_settings, changed
from config.storage import BrokerSettings
from config.values import REFUSED, accept

PEM = "-----BEGIN PUBLIC KEY-----"


def key(name: str = "a", key_id: str = "k", scope: Scope = "metrics") -> ApiKey:
    return ApiKey(name=name, id=key_id, hash=hash_secret("x"), scopes={scope: True})


def with_limits(**values: int) -> Settings:
    return Settings(limits=LimitSettings(**values))


def dev_settings(**values: Any) -> Settings:
    settings = Settings(dev=True, **values)
    return changed(settings, dev_changes(settings, frozenset()))


def test_every_default_is_a_value_that_is_allowed() -> None:
    for setting in all_settings().values():
        problems: list[str] = []
        default = list(setting.default) if isinstance(setting.default, tuple) else setting.default
        value = accept(default, setting, "default", problems)
        assert value is not REFUSED, problems
        assert value == setting.default


def test_defaults_hold_together() -> None:
    assert list(conflicts(Settings())) == []


def test_every_setting_has_its_own_variable() -> None:
    variables = [setting.variable for setting in all_settings().values()]
    assert len(set(variables)) == len(variables)
    assert "GALECAST_CONFIG" not in variables
    assert {"GALECAST_BROKER_URL", "GALECAST_TOKEN_SECRET", "GALECAST_ADMIN_PORT"} <= set(variables)
    assert all_settings()["admin_port"].flag == "--admin-port"


def test_every_setting_says_meaning_unit_and_what_zero_does() -> None:
    for setting in [*all_settings().values(), *declared(ApiKey)]:
        assert setting.meaning.endswith("."), setting.path
        if setting.low is not None:
            assert setting.high is not None
            assert (setting.low > 0) or setting.zero, f"{setting.path} does not say what 0 does"
        for ending, unit in (("_s", ("s", "per second")), ("_ms", ("ms",)), ("_bytes", ("bytes",))):
            if re.search(rf"[a-z]{ending}$", setting.path):
                assert setting.unit in unit, setting.path


def test_a_node_is_closed_by_default() -> None:
    settings = Settings()
    assert settings.host == "127.0.0.1"
    assert not (settings.keys or settings.origins or settings.anonymous.grants or settings.dev)
    assert not settings.token.secret
    assert default_rule(settings) is DEFAULT_RULE


def test_settings_do_not_show_their_secret() -> None:
    assert "canary" not in repr(Settings(token=TokenSettings(secret="canary" * 6)))


@pytest.mark.parametrize(
    ("settings", "path", "text"),
    [
        (with_limits(frame_bytes=65_536), "limits.frame_bytes", "limits.data_bytes"),
        (with_limits(body_bytes=65_536), "limits.body_bytes", "limits.data_bytes"),
        (with_limits(unsent_bytes=131_072), "limits.unsent_bytes", "limits.frame_bytes"),
        (
            Settings(session=SessionSettings(expiring_s=3_600)),
            "session.expiring_s",
            "default_ttl_s",
        ),
        (Settings(token=TokenSettings(max_lifetime_s=60)), "token.default_ttl_s", "max_lifetime_s"),
        (Settings(token=TokenSettings(algorithm="RS256")), "token.algorithm", "public_key_file"),
        (Settings(token=TokenSettings(public_key=PEM)), "token.algorithm", "public_key_file"),
        (Settings(admin_port=8000), "admin_port", "port"),
        (Settings(admin_port=7998, workers=3), "admin_port", "workers use it to 8000"),
        (Settings(admin_port=65_534, workers=3), "admin_port", "leaves no ports"),
        (Settings(node="n" * 61, workers=101), "node", "leaves no room"),
        (Settings(dev=True, host="0.0.0.0"), "host", "loopback"),
        (Settings(keys=(key("a"), key("b"))), "keys[1].id", "unlike"),
        (
            Settings(keys=tuple(key("a", str(number)) for number in range(4))),
            "keys[2].name",
            "at most 2",
        ),
    ],
)
def test_what_cannot_hold_together_is_told_once(settings: Settings, path: str, text: str) -> None:
    [(found, _, message)] = conflicts(settings)
    assert found == path
    assert text in message


def test_several_workers_cannot_share_what_is_in_memory() -> None:
    settings = Settings(workers=2)
    # They get a private Redis, unless they were told that there is to be none.
    assert list(conflicts(settings)) == []
    [(found, _, message)] = conflicts(settings, frozenset({"broker.url"}))
    assert found == "broker.url"
    assert "keeps events inside one process" in message
    assert list(conflicts(Settings(admin_port=7997, node="n" * 62, workers=3))) == []


def test_two_keys_may_share_a_name() -> None:
    assert list(conflicts(Settings(keys=(key("a", "1"), key("a", "2"))))) == []


# ---- development mode


def test_development_mode_opens_the_node() -> None:
    settings = dev_settings(port=8901)
    assert settings.demo
    assert settings.token.secret == DEV_SECRET
    assert len(DEV_SECRET) >= 32
    assert settings.anonymous.grants == {">": ACTIONS}
    assert settings.drain.delay_s == 0
    assert set(settings.origins) >= {"http://127.0.0.1:8901", "http://localhost:8901"}
    rule = ChannelRules(settings.channels, default_rule(settings)).rule("a.b")
    assert rule.presence
    assert rule.client_publish
    assert list(conflicts(settings)) == []
    assert warnings(settings) == []


def test_the_development_key_has_every_scope() -> None:
    [dev_key] = dev_settings().keys
    key_id, secret = DEV_KEY.split(".")
    assert (dev_key.id, dev_key.hash) == (key_id, hash_secret(secret))
    assert dev_key.scopes["publish"] == (">",)
    assert dev_key.scopes["tokens"] is True
    assert len(dev_key.scopes) == 8


def test_development_mode_keeps_what_was_given() -> None:
    given = Settings(
        dev=True,
        origins=("https://a",),
        keys=(key("a", "k"), key("b", "dev")),
        token=TokenSettings(secret="x" * 32),
        anonymous=AnonymousSettings(grants={}),
    )
    changes = dev_changes(given, frozenset({"anonymous.grants", "drain.delay_s"}))
    assert not {"token.secret", "anonymous.grants", "drain.delay_s"} & set(changes)
    assert changes["origins"][0] == "https://a"
    assert [(each.name, each.id) for each in changes["keys"]] == [("a", "k"), ("dev", "dev")]


def test_without_a_fixed_port_origins_wait_for_the_port_in_use() -> None:
    assert dev_settings(port=0).origins == ()
    assert dev_origins(80) == ("http://127.0.0.1", "http://localhost", "http://[::1]")


def test_the_notice_names_key_and_host() -> None:
    notice = dev_notice(dev_settings(host="localhost"))
    assert DEV_KEY in notice
    assert "localhost only" in notice
    assert DEV_SECRET not in notice


# ---- warnings


def test_a_node_that_nobody_can_use_is_warned_of() -> None:
    [text] = warnings(Settings())
    assert "nobody can use this server" in text


def test_a_node_without_keys_is_warned_of() -> None:
    for settings in (
        Settings(token=TokenSettings(secret="x" * 32)),
        Settings(anonymous=AnonymousSettings(grants={">": ("subscribe",)})),
    ):
        [text] = warnings(settings)
        assert "no service can publish" in text


def test_minting_without_a_secret_is_warned_of() -> None:
    settings = Settings(keys=(key(scope="tokens"),), token=TokenSettings(jwks_url="https://a"))
    [text] = warnings(settings)
    assert "none can be signed" in text


def test_a_public_node_without_origins_is_warned_of() -> None:
    settings = Settings(host="0.0.0.0", keys=(key(),))
    [text] = warnings(settings)
    assert "web pages cannot connect" in text


def test_workers_that_cannot_be_scraped_are_warned_of() -> None:
    settings = Settings(keys=(key(),), workers=2)
    [text] = warnings(settings)
    assert "scrape" in text
    assert warnings(Settings(keys=(key(),), workers=2, admin_port=9000)) == []


def test_tickets_that_other_nodes_refuse_are_warned_of() -> None:
    """With a key set alone each node signed tickets with a key of its own, and nobody said so."""
    verified = TokenSettings(jwks_url="https://a")
    redis = BrokerSettings(url="redis://h")
    [text] = warnings(Settings(keys=(key(),), token=verified, broker=redis))
    assert "tickets" in text
    assert warnings(Settings(keys=(key(),), token=verified)) == []
    assert warnings(Settings(keys=(key(),), broker=redis)) == []
    with_secret = TokenSettings(jwks_url="https://a", secret="s" * 32)
    assert warnings(Settings(keys=(key(),), token=with_secret, broker=redis)) == []
