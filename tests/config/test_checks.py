"""Each value is taken in its normal form, or refused with a reason."""

from typing import Any

import pytest

from config import checks


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("https://app.example.com", "https://app.example.com"),
        ("HTTPS://x", None),
        ("https://APP.Example.com:443", "https://app.example.com"),
        ("http://localhost:80", "http://localhost"),
        ("http://localhost:0443", "http://localhost:443"),
        ("https://h:80", "https://h:80"),
        ("http://[0:0::1]:8000", "http://[::1]:8000"),
        ("https://a/", None),
        ("https://a/path", None),
        ("https://a?x", None),
        ("https://*.a", None),
        ("*", None),
        ("null", None),
        ("", None),
        ("ftp://a", None),
        ("//a", None),
        ("https://", None),
        ("https://a:", None),
        ("https://a:0", None),
        ("https://a:65536", None),
        ("https://u:p@a", None),
        ("https://a..b", None),
        ("https://a\n", None),
        (" https://a", None),
        ("https://bücher.example", None),
        ("http://[::1", None),
        ("http://[:::]", None),
        ("https://a, https://b", None),
    ],
)
def test_an_origin_is_exact(text: str, normal: str | None) -> None:
    if normal is None:
        with pytest.raises(ValueError, match=r"\w"):
            checks.normal_origin(text)
    else:
        assert checks.normal_origin(text) == normal


def test_origins_are_kept_once() -> None:
    assert checks.check_origins(("https://a", "https://A:443")) == ("https://a",)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.example.com", False),
    ],
)
def test_only_this_machine_is_loopback(host: str, loopback: bool) -> None:
    assert checks.check_host(host) == host
    assert checks.is_loopback(host) is loopback


def test_networks_are_normal() -> None:
    found = checks.check_networks(("10.1.2.3", "10.1.2.3/8", "::1"))
    assert found == ("10.1.2.3/32", "10.0.0.0/8", "::1/128")


@pytest.mark.parametrize(
    ("check", "good"),
    [
        (checks.check_node, ["", "n-1.eu"]),
        (checks.check_broker_url, ["memory://", "redis://a", "unix:///a", "redis+cluster://a,b"]),
        (checks.check_prefix, ["galecast", "a.b:c-d_e", "x" * 64]),
        (
            checks.check_archive_url,
            [
                "none",
                "sqlite:///data/a b.db",
                "sqlite:////var/lib/galecast/archive.db",
                "mongodb://a/events",
                "mongodb://u:p%40%3A@a:27017,[::1]:1,b_c.d-e/events?replicaSet=rs0&w=1",
                "mongodb+srv://u@cluster0.example.net/events",
            ],
        ),
        (checks.check_secret, ["", "x" * 32, "é" * 16]),
        (checks.check_public_key, ["", "-----BEGIN PUBLIC KEY-----\n"]),
        (checks.check_algorithm, ["", "RS256", "ES256", "EdDSA"]),
        (checks.check_jwks_url, ["", "https://a/jwks.json", "http://127.0.0.1:1/x"]),
        (checks.check_key_id, ["a", "A-_9"]),
        (checks.check_key_name, ["orders service"]),
        (checks.check_key_hash, ["sha256:" + "0a" * 32]),
        (checks.check_format, ["auto", "json", "pretty"]),
        (checks.check_level, ["debug", "info", "warning", "error"]),
    ],
)
def test_a_good_value_is_kept(check: Any, good: list[Any]) -> None:
    assert [check(value) for value in good] == good


@pytest.mark.parametrize(
    ("check", "bad"),
    [
        (checks.check_host, ["", "a b", "[::1]", "a/b", "é"]),
        (checks.check_networks, [("10.0.0.0/33",), ("proxy",)]),
        (checks.check_node, ["a b", "x" * 65, "a\n"]),
        (checks.check_broker_url, ["", "redis:a", "memory", "http://a"]),
        (checks.check_prefix, ["", "a b", "{a}", "x" * 65, "a\n"]),
        (
            checks.check_archive_url,
            [
                "",
                "None",
                "postgresql://a/b",
                "sqlite:x.db",
                "sqlite://x.db",
                "sqlite:///",
                "sqlite:///:memory:",
                "sqlite:///a.db?mode=ro",
                "sqlite:///a/",
                "sqlite:///a\n",
                "mongodb://",
                "mongodb://a",
                "mongodb://a/",
                "mongodb://a/?w=1",
                "mongodb:///events",
                "mongodb://a,/events",
                "mongodb://a:0/events",
                "mongodb://a:x/events",
                "mongodb://a:70000/events",
                "mongodb://a/e.f",
                "mongodb://a/e%2ff",
                "mongodb://a/" + "e" * 64,
                "mongodb://a/e/f",
                "mongodb://:p@a/events",
                "mongodb://u:p:w@a/events",
                "mongodb://u:p@w@a/events",
                "mongodb://u:p/w@a/events",
                "mongodb://u:p?w@a/events",
                "mongodb+srv://a,b/events",
                "mongodb+srv://a:1/events",
            ],
        ),
        (checks.check_secret, ["x", "x" * 31]),
        (checks.check_public_key, ["x", "-----BEGIN PRIVATE KEY-----"]),
        (checks.check_algorithm, ["none", "HS256", "rs256"]),
        (checks.check_jwks_url, ["file:///etc/passwd", "a/b", "https://", "http://["]),
        (checks.check_key_id, ["", "a.b", "x" * 65, "a\n"]),
        (checks.check_key_name, ["", "a\n", "x" * 256]),
        (
            checks.check_key_hash,
            ["", "sha256:" + "0A" * 32, "0a" * 32, "sha256:" + "0a" * 32 + "\n"],
        ),
        (checks.check_format, ["xml"]),
        (checks.check_level, ["loud"]),
        (checks.check_grants, [{"a*": ("publish",)}, {"a": ("fly",)}, {"{sub}": ("publish",)}]),
        (
            checks.check_scopes,
            [
                {"fly": True},
                {"tokens": ("a",)},
                {"tokens": False},
                {"publish": True},
                {"publish": ()},
                {"publish": ("a*",)},
            ],
        ),
    ],
)
def test_a_bad_value_is_refused_with_a_reason(check: Any, bad: list[Any]) -> None:
    for value in bad:
        with pytest.raises(ValueError, match=r"\w"):
            check(value)


def test_levels_are_lower_case() -> None:
    assert checks.check_level("INFO") == "info"


def test_grants_and_scopes_are_kept_as_texts() -> None:
    assert checks.check_grants({"a.*": ("publish", "publish")}) == {"a.*": ("publish",)}
    assert checks.check_scopes({"metrics": True, "publish": ["a.>"]}) == {
        "publish": ("a.>",),
        "metrics": True,
    }


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("memory://", "memory://"),
        ("none", "none"),
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
        ("mongodb://u:p@a:1,b/events?tls=true", "mongodb://u:***@a:1,b/events?***"),
        ("mongodb://u:p/w@a/events", "mongodb://u:***@a/events"),
        ("redis://h:1/2", "redis://h:1/2"),
        ("redis://u:p@h", "redis://u:***@h"),
        ("redis://:p:w@rd@h:1", "redis://:***@h:1"),
        ("unix://u:p@/run/redis.sock", "unix://u:***@/run/redis.sock"),
        ("redis+sentinel://a,b/s?sentinel_password=p", "redis+sentinel://a,b/s?***"),
        ("redis://:p", "redis://***"),
        ("p@ssword", "***"),
        # Written wrongly: a password with a `?` in it, and one with no host behind it.
        ("redis://u:p?w@h", "redis://***"),
        ("redis://u:p@w?x@h", "redis://***"),
        ("redis://u:word", "redis://***"),
        ("redis+sentinel://u:word,b/s", "redis+sentinel://***"),
        ("redis+cluster://a:1,[::1]:2,b", "redis+cluster://a:1,[::1]:2,b"),
        ("unix:///run/a:b.sock", "unix:///run/a:b.sock"),
    ],
)
def test_no_secret_of_an_address_is_shown(text: str, shown: str) -> None:
    """An address that was refused for a `?` in its password showed what was before the `?`."""
    assert checks.mask_url(text) == shown
