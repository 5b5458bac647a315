"""Who may do how much? This file answers: how often, and how many at the same time (pure)."""

from collections.abc import Iterable
from ipaddress import IPv6Address
from math import ceil
from typing import Final, NamedTuple

from config.limits import LimitSettings
from server.errors import LimitExceeded, RateLimited

# Sums of many small durations are off by a rounding error; nobody is refused for one.
_TOLERANCE_S: Final = 1e-6


class Quota(NamedTuple):
    """What is left of a rate: at most `limit` at once, `remaining` now, all again in `reset_s`."""

    limit: int
    remaining: int
    reset_s: int


class TokenBucket:
    """Allows `rate` per second, and as much at once (at least 1); a rate of 0 is no limit.

    Keeps one moment instead of a count (GCRA): when the bucket will be full again. No timer.
    Times are of one monotonic clock, in seconds.
    """

    __slots__ = ("_full_at", "rate")

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._full_at = 0.0

    @property
    def burst(self) -> float:
        """What is allowed at once."""
        return max(self.rate, 1.0)

    def take(self, now: float, n: float = 1) -> float:
        """Take `n`; return 0.0 if they are allowed, else the seconds until they will be.

        Nothing is taken when refused. More than the burst is allowed from a full bucket, and paid
        for by the pause that follows: else a batch above the rate could never pass.
        """
        rate = self.rate
        if rate <= 0:
            return 0.0
        full_at = self._full_at
        if full_at < now:
            full_at = now
        burst = self.burst
        wait = full_at - now + (min(n, burst) - burst) / rate
        if wait > _TOLERANCE_S:
            return wait
        self._full_at = full_at + n / rate
        return 0.0

    def quota(self, now: float) -> Quota | None:
        """Return what is left, or None without a limit."""
        if self.rate <= 0:
            return None
        lacking_s = max(0.0, self._full_at - now)
        left = self.burst - lacking_s * self.rate + _TOLERANCE_S * self.rate
        return Quota(int(self.burst), max(0, int(left)), ceil(lacking_s))


class _Askers:
    """What clients without a session have used: a pair of buckets for each that asked lately."""

    __slots__ = ("_limits", "_most", "_pairs")

    def __init__(self, limits: LimitSettings, most: int) -> None:
        self._limits = limits
        self._most = most
        self._pairs: dict[str, tuple[TokenBucket, TokenBucket]] = {}

    def pair(self, name: str) -> tuple[TokenBucket, TokenBucket]:
        """Return the buckets of requests and of publishes, those of one session's commands."""
        limits = self._limits
        pair = self._pairs.pop(name, None) or (
            TokenBucket(limits.session_commands_per_s),
            TokenBucket(limits.session_publishes_per_s),
        )
        self._pairs[name] = pair
        if len(self._pairs) > self._most:
            # The one that asked longest ago: its buckets are most likely full again.
            del self._pairs[next(iter(self._pairs))]
        return pair


class Rates:
    """The rates that are not of one session: handshakes, API keys, and clients without a session.

    Holds one pair of buckets (requests, publishes) per configured key; keys that were removed
    share one pair. Requests over HTTP of a user, and of anonymous clients from one address, count
    like the commands of one session; of the users, and of the addresses, that asked last `most`
    are remembered.
    """

    __slots__ = ("_addresses", "_handshakes", "_keys", "_limits", "_others", "_users")

    def __init__(
        self, limits: LimitSettings, keys: Iterable[str] = (), *, most: int = 10_000
    ) -> None:
        self._limits = limits
        # Apart, since a user may be called like an address.
        self._users = _Askers(limits, most)
        self._addresses = _Askers(limits, most)
        self._handshakes = TokenBucket(limits.handshakes_per_s)
        self._keys: dict[str, tuple[TokenBucket, TokenBucket]] = {}
        self._others = self._pair()
        self.replace(keys)

    def replace(self, keys: Iterable[str]) -> None:
        """Take over a new list of key ids; those that stay keep what they have used."""
        before = self._keys
        self._keys = {key: before.get(key) or self._pair() for key in keys}

    def handshake(self, now: float) -> None:
        """Count a handshake; raises RateLimited."""
        _charge(self._handshakes, now, 1, "new sessions on this node", "handshakes_per_s")

    def requests(self, key: str) -> TokenBucket:
        """Return the bucket of requests and commands with the API key of that id."""
        return self._keys.get(key, self._others)[0]

    def publishes(self, key: str) -> TokenBucket:
        """Return the bucket of events published with the API key of that id."""
        return self._keys.get(key, self._others)[1]

    def request(self, key: str, now: float) -> None:
        """Count a request or a command; raises RateLimited."""
        _charge(self.requests(key), now, 1, "requests with this API key", "key_requests_per_s")

    def publish(self, key: str, now: float, n: int = 1) -> None:
        """Count `n` events to be published; raises RateLimited, and then none is counted."""
        _charge(self.publishes(key), now, n, "events with this API key", "key_publishes_per_s")

    def user_requests(self, user: str) -> TokenBucket:
        """Return the bucket of a user's requests over HTTP."""
        return self._users.pair(user)[0]

    def user_request(self, user: str, now: float) -> None:
        """Count a user's request over HTTP; raises RateLimited."""
        bucket = self.user_requests(user)
        _charge(bucket, now, 1, "requests of this user", "session_commands_per_s")

    def user_publish(self, user: str, now: float, n: int = 1) -> None:
        """Count `n` events of a user over HTTP; raises RateLimited, and then none is counted."""
        bucket = self._users.pair(user)[1]
        _charge(bucket, now, n, "events of this user", "session_publishes_per_s")

    def address_requests(self, address: str) -> TokenBucket:
        """Return the bucket of requests over HTTP of anonymous clients from an address."""
        return self._addresses.pair(countable(address))[0]

    def address_request(self, address: str, now: float) -> None:
        """Count an anonymous client's request over HTTP; raises RateLimited."""
        bucket = self.address_requests(address)
        _charge(bucket, now, 1, "requests from this address", "session_commands_per_s")

    def address_publish(self, address: str, now: float, n: int = 1) -> None:
        """Count `n` events of anonymous clients over HTTP; raises RateLimited, then none is."""
        bucket = self._addresses.pair(countable(address))[1]
        _charge(bucket, now, n, "events from this address", "session_publishes_per_s")

    def _pair(self) -> tuple[TokenBucket, TokenBucket]:
        limits = self._limits
        return TokenBucket(limits.key_requests_per_s), TokenBucket(limits.key_publishes_per_s)


def _charge(bucket: TokenBucket, now: float, n: int, what: str, reason: str) -> None:
    wait_s = bucket.take(now, n)
    if wait_s:
        raise RateLimited(f"too many {what}", reason=reason, retry_after_s=wait_s)


def countable(address: str) -> str:
    """Return what an address counts as: IPv6 by its /64, which one subscriber commands whole.

    IPv4 in IPv6 counts as IPv4; what is no address (a Unix socket) as it is.
    """
    if ":" not in address:
        return address
    try:
        parsed = IPv6Address(address)
    except ValueError:
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return f"{IPv6Address(int(parsed) >> 64 << 64)}/64"


class Occupancy:
    """Counts live sessions: all, by address, and by user. Holds no entry for who has none."""

    __slots__ = ("_addresses", "_limits", "_users", "sessions")

    def __init__(self, limits: LimitSettings) -> None:
        self._limits = limits
        self._addresses: dict[str, int] = {}
        self._users: dict[str, int] = {}
        self.sessions = 0

    def enter(self, address: str, user: str | None = None) -> None:
        """Count a session; raises LimitExceeded, and then nothing is counted.

        Whoever entered has to leave once, with the same address, and with the user if one was
        given here or by `identify`.
        """
        limits, place = self._limits, countable(address)
        if limits.connections and self.sessions >= limits.connections:
            raise LimitExceeded(
                "this node has all the sessions it takes", reason="connections", retry=True
            )
        most = limits.connections_per_address
        if most and self._addresses.get(place, 0) >= most:
            raise LimitExceeded(
                f"this address has all the {most} sessions it may have",
                reason="connections_per_address",
                retry=True,
            )
        if user is not None:
            self.identify(user)
        self._addresses[place] = self._addresses.get(place, 0) + 1
        self.sessions += 1

    def identify(self, user: str) -> None:
        """Count a session that entered without a user as one of `user`; raises LimitExceeded."""
        most, mine = self._limits.connections_per_user, self._users.get(user, 0)
        if most and mine >= most:
            raise LimitExceeded(
                f"this user has all the {most} sessions it may have",
                reason="connections_per_user",
                retry=True,
            )
        self._users[user] = mine + 1

    def leave(self, address: str, user: str | None = None) -> None:
        """Stop counting a session; raises KeyError if it was not counted."""
        _decrease(self._addresses, countable(address))
        self.sessions -= 1
        if user is not None:
            _decrease(self._users, user)

    def __len__(self) -> int:
        """Return how many addresses and users are remembered."""
        return len(self._addresses) + len(self._users)


def _decrease(counts: dict[str, int], name: str) -> None:
    if counts[name] == 1:
        del counts[name]
    else:
        counts[name] -= 1
