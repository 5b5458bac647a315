"""How often, and how many at the same time: each limit at its bound and one beyond."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.limits import LimitSettings
from server.errors import LimitExceeded, RateLimited
from server.limits import Occupancy, Quota, Rates, TokenBucket, countable


def test_a_second_s_worth_at_once_then_by_the_rate() -> None:
    bucket = TokenBucket(10)
    assert [bucket.take(100.0) for _ in range(10)] == [0.0] * 10
    assert bucket.take(100.0) == pytest.approx(0.1)
    assert bucket.take(100.05) == pytest.approx(0.05)
    assert bucket.take(100.1) == 0.0
    assert bucket.take(100.1) > 0
    assert [bucket.take(200.0) for _ in range(10)] == [0.0] * 10
    assert bucket.take(200.0) > 0


def test_the_wait_is_long_enough() -> None:
    bucket = TokenBucket(3)
    now = 1_000_000.0
    for _ in range(50):
        wait = bucket.take(now)
        if wait:
            now += wait
            assert bucket.take(now) == 0.0


def test_a_rate_below_one_still_lets_one_through() -> None:
    bucket = TokenBucket(0.5)
    assert bucket.burst == 1
    assert bucket.take(10.0) == 0.0
    assert bucket.take(10.0) == pytest.approx(2.0)
    assert bucket.take(12.0) == 0.0


def test_no_limit() -> None:
    bucket = TokenBucket(0)
    assert not any(bucket.take(1.0, 1_000_000) for _ in range(100))
    assert bucket.quota(1.0) is None


def test_what_is_refused_is_not_taken() -> None:
    bucket = TokenBucket(10)
    assert bucket.take(5.0, 8) == 0.0
    assert bucket.take(5.0, 3) == pytest.approx(0.1)
    assert bucket.take(5.0, 2) == 0.0


def test_a_batch_above_the_rate_passes_when_full_and_is_paid_for() -> None:
    bucket = TokenBucket(10)
    assert bucket.take(5.0, 1) == 0.0
    assert bucket.take(5.0, 50) == pytest.approx(0.1)
    assert bucket.take(6.0, 50) == 0.0
    assert bucket.take(6.0) == pytest.approx(4.1)
    assert bucket.take(10.1) == 0.0


def test_the_quota() -> None:
    bucket = TokenBucket(10)
    assert bucket.quota(5.0) == Quota(limit=10, remaining=10, reset_s=0)
    bucket.take(5.0, 4)
    assert bucket.quota(5.0) == Quota(10, 6, 1)
    assert bucket.quota(5.25) == Quota(10, 8, 1)
    bucket.take(5.25, 8)
    assert bucket.quota(5.25) == Quota(10, 0, 1)
    assert bucket.quota(7.0) == Quota(10, 10, 0)
    bucket.take(7.0, 100)
    assert bucket.quota(7.0) == Quota(10, 0, 10)


@given(
    rate=st.integers(1, 1000),
    steps=st.lists(st.tuples(st.floats(0, 2), st.integers(1, 20)), max_size=60),
)
def test_never_more_than_burst_and_rate(rate: int, steps: list[tuple[float, int]]) -> None:
    bucket = TokenBucket(rate)
    now, taken, largest = 50.0, 0, 1
    for pause, n in steps:
        now += pause
        largest = max(largest, n)
        if bucket.take(now, n) == 0.0:
            taken += n
            assert taken <= (now - 50.0) * rate + max(rate, largest) + rate * 1e-3
        quota = bucket.quota(now)
        assert quota is not None and 0 <= quota.remaining <= quota.limit


def test_a_bucket_is_small() -> None:
    assert not hasattr(TokenBucket(1), "__dict__")


def test_handshakes() -> None:
    rates = Rates(LimitSettings(handshakes_per_s=2))
    rates.handshake(1.0)
    rates.handshake(1.0)
    with pytest.raises(RateLimited) as caught:
        rates.handshake(1.0)
    assert caught.value.reason == "handshakes_per_s"
    assert caught.value.retry_after_s == pytest.approx(0.5)
    rates.handshake(1.5)


def test_each_key_has_its_own_rates() -> None:
    rates = Rates(LimitSettings(key_requests_per_s=1, key_publishes_per_s=3), ["a", "b"])
    rates.request("a", 1.0)
    rates.request("b", 1.0)
    with pytest.raises(RateLimited) as requests:
        rates.request("a", 1.0)
    assert requests.value.reason == "key_requests_per_s"
    rates.publish("a", 1.0, 3)
    with pytest.raises(RateLimited) as publishes:
        rates.publish("a", 1.0)
    assert publishes.value.reason == "key_publishes_per_s"
    assert publishes.value.retry_after_s == pytest.approx(1 / 3)
    quota = rates.publishes("b").quota(1.0)
    assert quota is not None and quota.remaining == 3


def test_a_reload_gives_nobody_a_full_bucket_and_keeps_nothing_of_the_gone() -> None:
    rates = Rates(LimitSettings(key_requests_per_s=1), ["a", "b"])
    rates.request("a", 1.0)
    rates.replace(["a", "c"])
    with pytest.raises(RateLimited):
        rates.request("a", 1.0)
    rates.request("c", 1.0)
    assert rates.requests("b") is rates.requests("never-seen")
    rates.request("b", 1.0)
    with pytest.raises(RateLimited):
        rates.request("b", 1.0)


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:DB8:1:2::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("::1", "::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("", ""),
        ("unix:/run/x", "unix:/run/x"),
    ],
)
def test_what_an_address_counts_as(address: str, counted: str) -> None:
    assert countable(address) == counted


def refused(occupancy: Occupancy, address: str, user: str | None = None) -> str:
    before = (occupancy.sessions, len(occupancy))
    with pytest.raises(LimitExceeded) as caught:
        occupancy.enter(address, user)
    assert (occupancy.sessions, len(occupancy)) == before
    return caught.value.reason


def test_sessions_in_all() -> None:
    occupancy = Occupancy(LimitSettings(connections=2))
    occupancy.enter("a")
    occupancy.enter("b")
    assert refused(occupancy, "c") == "connections"
    occupancy.leave("a")
    occupancy.enter("c")
    assert occupancy.sessions == 2


def test_sessions_of_an_address() -> None:
    occupancy = Occupancy(LimitSettings(connections_per_address=2))
    occupancy.enter("2001:db8::1")
    occupancy.enter("2001:db8::2")
    assert refused(occupancy, "2001:db8::3") == "connections_per_address"
    occupancy.enter("2001:db8:0:1::3")
    occupancy.leave("2001:db8::2")
    occupancy.enter("2001:db8::3")


def test_sessions_of_a_user() -> None:
    occupancy = Occupancy(LimitSettings(connections_per_user=2))
    occupancy.enter("a", "u7")
    occupancy.enter("b")
    occupancy.identify("u7")
    assert refused(occupancy, "c", "u7") == "connections_per_user"
    occupancy.enter("c")
    with pytest.raises(LimitExceeded):
        occupancy.identify("u7")
    occupancy.enter("d", "u8")
    occupancy.leave("b", "u7")
    occupancy.identify("u7")


def test_zero_is_no_limit() -> None:
    occupancy = Occupancy(
        LimitSettings(connections=0, connections_per_address=0, connections_per_user=0)
    )
    for _ in range(2000):
        occupancy.enter("a", "u7")
    assert occupancy.sessions == 2000


def test_nothing_is_kept_of_those_who_left() -> None:
    occupancy = Occupancy(LimitSettings())
    for n in range(100):
        occupancy.enter(f"10.0.0.{n}", f"u{n}")
    for n in range(100):
        occupancy.leave(f"10.0.0.{n}", f"u{n}")
    assert (occupancy.sessions, len(occupancy)) == (0, 0)
    with pytest.raises(KeyError):
        occupancy.leave("10.0.0.1")
    assert occupancy.sessions == 0


def test_users_without_a_session_are_remembered_up_to_a_bound() -> None:
    limits = LimitSettings(session_commands_per_s=1, session_publishes_per_s=2)
    rates = Rates(limits, most=2)
    rates.user_request("a", 1.0)
    with pytest.raises(RateLimited) as refused:
        rates.user_request("a", 1.0)
    assert refused.value.reason == "session_commands_per_s"
    rates.user_publish("a", 1.0, 2)
    with pytest.raises(RateLimited) as refused:
        rates.user_publish("a", 1.0)
    assert refused.value.reason == "session_publishes_per_s"
    rates.user_request("b", 1.0)
    # A third pushes out the one that asked longest ago, and only that one.
    rates.user_request("c", 1.0)
    rates.user_request("a", 1.0)
    with pytest.raises(RateLimited):
        rates.user_request("c", 1.0)


def test_anonymous_clients_are_counted_by_address_apart_from_users() -> None:
    limits = LimitSettings(session_commands_per_s=1, session_publishes_per_s=2)
    rates = Rates(limits, most=2)
    rates.address_request("2001:db8::1", 1.0)
    with pytest.raises(RateLimited) as refused:
        rates.address_request("2001:db8::2", 1.0)
    assert refused.value.reason == "session_commands_per_s"
    assert refused.value.message == "too many requests from this address"
    rates.address_publish("2001:db8::1", 1.0, 2)
    with pytest.raises(RateLimited) as refused:
        rates.address_publish("2001:db8::2", 1.0)
    assert refused.value.reason == "session_publishes_per_s"
    # Names are chosen by whoever signs tokens: none of them is an address's, nor pushes one out.
    for user in ("2001:db8::/64", "2001:db8::1", "u3"):
        rates.user_request(user, 1.0)
    with pytest.raises(RateLimited):
        rates.address_request("2001:db8::1", 1.0)
    assert rates.address_requests("2001:db8::1") is rates.address_requests("2001:db8::2")
