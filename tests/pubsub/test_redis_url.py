"""Addresses of a Redis: what they say, what is refused, and that no password is told."""

import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pubsub.errors import RedisUrlRejected
from pubsub.redis_url import Endpoint, RedisTarget, Tls, parse_redis_url

LOCAL = (Endpoint("localhost", 6379),)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("redis://localhost", RedisTarget("tcp", LOCAL)),
        ("redis://localhost/", RedisTarget("tcp", LOCAL)),
        ("redis://10.0.0.1:7000/3", RedisTarget("tcp", (Endpoint("10.0.0.1", 7000),), db=3)),
        ("redis://localhost?db=3", RedisTarget("tcp", LOCAL, db=3)),
        ("redis://[::1]:7000", RedisTarget("tcp", (Endpoint("::1", 7000),))),
        ("redis://:s%40cret@localhost", RedisTarget("tcp", LOCAL, password="s@cret")),
        ("redis://u:p@localhost", RedisTarget("tcp", LOCAL, user="u", password="p")),
        ("rediss://localhost", RedisTarget("tcp", LOCAL, tls=Tls())),
        (
            "rediss://localhost?ca_file=/ca&cert_file=/c&key_file=/k&verify=ca",
            RedisTarget("tcp", LOCAL, tls=Tls("/ca", "/c", "/k", "ca")),
        ),
        ("unix:///run/redis.sock", RedisTarget("unix", path="/run/redis.sock")),
        (
            "unix://u:p@/run/a%20b.sock?db=2",
            RedisTarget("unix", path="/run/a b.sock", db=2, user="u", password="p"),
        ),
        (
            "redis+sentinel://a,b:27000/main/2?sentinel_user=s&sentinel_password=t",
            RedisTarget(
                "sentinel",
                (Endpoint("a", 26379), Endpoint("b", 27000)),
                service="main",
                db=2,
                sentinel_user="s",
                sentinel_password="t",
            ),
        ),
        (
            "redis+cluster://u:p@a,[::1]:7000?tls=true&verify=none",
            RedisTarget(
                "cluster",
                (Endpoint("a", 6379), Endpoint("::1", 7000)),
                user="u",
                password="p",
                tls=Tls(verify="none"),
            ),
        ),
        ("redis+cluster://a?tls=false", RedisTarget("cluster", (Endpoint("a", 6379),))),
    ],
)
def test_what_an_address_says(text: str, target: RedisTarget) -> None:
    assert parse_redis_url(text) == target


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "scheme"),
        ("localhost:6379", "scheme"),
        ("http://localhost", "scheme"),
        ("redis://", "host"),
        ("redis://[::1", "host"),
        ("redis://localhost:0", "port"),
        ("redis://localhost:", "port"),
        ("redis://localhost:99999", "port"),
        ("redis://localhost:secret", "port"),
        ("redis://a b", "host"),
        ("redis://a,b", "several hosts"),
        ("redis+cluster://a,a", "twice"),
        ("redis+cluster://a,", "host"),
        ("redis://u@localhost", "without a password"),
        ("redis://:secret#1@localhost", "%23"),
        ("redis://localhost/x", "database"),
        ("redis://localhost/-1", "database"),
        ("redis://localhost/99999999", "database"),
        ("redis://localhost/1?db=1", "twice"),
        ("redis://localhost/1/2", "too many parts"),
        ("redis+cluster://a/1", "no databases"),
        ("redis+sentinel://a", "service"),
        ("redis+sentinel:///main", "host"),
        ("unix://", "path"),
        ("unix://host/run/redis.sock", "path"),
        ("unix:///run/", "path"),
        ("redis://localhost?x", "name=value"),
        ("redis://localhost?x=1", "unknown"),
        ("redis://localhost?db=1&db=2", "twice"),
        ("redis://localhost?verify=none", "unknown"),
        ("redis://localhost?tls=true", "unknown"),
        ("rediss://localhost?verify=maybe", "verify"),
        ("rediss://localhost?key_file=/k", "cert_file"),
        ("redis+cluster://a?tls=1", "tls"),
        ("redis+cluster://a?sentinel_password=secret", "unknown"),
    ],
)
def test_what_is_refused(text: str, wrong: str) -> None:
    with pytest.raises(RedisUrlRejected, match=wrong) as refusal:
        parse_redis_url(text)
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://u:secret@h/3?db=3", None),
        ("redis://u:secret@h/3", "redis://u:***@h:6379/3"),
        ("rediss://:secret@[::1]", "rediss://:***@[::1]:6379"),
        ("unix://:secret@/run/r.sock?db=1", "unix://:***@/run/r.sock"),
        (
            "redis+sentinel://:secret@a,b/m?sentinel_password=secret",
            "redis+sentinel://:***@a:26379,b:26379/m",
        ),
        ("redis+cluster://a", "redis+cluster://a:6379"),
    ],
)
def test_no_password_is_told(text: str, shown: str | None) -> None:
    try:
        target = parse_redis_url(text)
    except RedisUrlRejected:
        assert shown is None
        assert "secret" not in traceback.format_exc()
        return
    assert str(target) == shown
    assert repr(target) == f"<RedisTarget {shown}>"


@given(st.text(max_size=40), st.sampled_from(["", "redis://", "unix://", "redis+sentinel://"]))
def test_any_text_is_read_or_refused(text: str, scheme: str) -> None:
    try:
        target = parse_redis_url(scheme + text)
    except RedisUrlRejected as refusal:
        assert str(refusal)
    else:
        assert target.path or target.endpoints
