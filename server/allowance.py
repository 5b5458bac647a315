"""Who may do how much? This file: what a session may do in a second, or the key it speaks for."""

import time
from typing import TYPE_CHECKING

from server.errors import RateLimited
from server.limits import TokenBucket

if TYPE_CHECKING:
    from server.session import Session


def pay_command(session: "Session") -> None:
    """Take one from the allowance of commands; raises RateLimited."""
    node, key = session.node, session.principal.key
    if key is not None:
        node.rates.request(key, time.monotonic())
        return
    if session.commands is None:
        session.commands = TokenBucket(node.settings.limits.session_commands_per_s)
    _take(session.commands, "commands", "session_commands_per_s")


def pay_publish(session: "Session") -> None:
    """Take one from the allowance of publishes; raises RateLimited."""
    node, key = session.node, session.principal.key
    if key is not None:
        node.rates.publish(key, time.monotonic())
        return
    if session.publishes is None:
        session.publishes = TokenBucket(node.settings.limits.session_publishes_per_s)
    _take(session.publishes, "publishes", "session_publishes_per_s")


def _take(bucket: TokenBucket, what: str, limit: str) -> None:
    wait_s = bucket.take(time.monotonic())
    if wait_s:
        raise RateLimited(f"too many {what} in this session", reason=limit, retry_after_s=wait_s)
