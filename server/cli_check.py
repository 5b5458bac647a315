"""Who is connected here, and what may they do? This file: `check`, whether a node could serve."""

import asyncio
import contextlib
import resource
from pathlib import Path
from typing import Final, Literal

import msgspec

from config.checks import MEMORY, is_loopback, mask_url
from config.rules import ChannelRules
from config.settings import Settings, warnings
from pubsub.archive_check import look_at as look_at_archive
from pubsub.archive_url import parse_archive_url
from pubsub.errors import RedisUrlRejected
from pubsub.redis_check import look_at
from pubsub.redis_client import Topology, connect
from pubsub.redis_url import parse_redis_url
from server.auth import Auth
from server.cli_output import columns, put, put_json
from server.jwks import KeyRejected
from server.private_redis import NOT_FOUND, find_redis_server

Status = Literal["ok", "warn", "fail"]

# What a node has open beside its sessions: its sockets, logs, files and requests in flight.
SPARE_FILES: Final = 256
LEAST_BACKLOG: Final = 1_024
_BACKLOG_FILE: Final = Path("/proc/sys/net/core/somaxconn")


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at, and how it is."""

    check: str
    status: Status
    message: str


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """What this machine allows: open files (None: no limit) and connections that wait.

    `backlog` is None where it is not known.
    """

    soft_files: int | None
    hard_files: int | None
    backlog: int | None


def this_host() -> Host:
    """Return what this machine allows this process."""
    soft, hard = (
        None if limit == resource.RLIM_INFINITY else limit
        for limit in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    try:
        backlog = int(_BACKLOG_FILE.read_text())
    except (OSError, ValueError):
        backlog = None
    return Host(soft_files=soft, hard_files=hard, backlog=backlog)


def raise_file_limit() -> None:
    """Let this process open as many files as the machine allows it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # A hard limit without end may be more than the kernel takes.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def problems(settings: Settings) -> list[str]:
    """Return what cannot be used of settings that are valid one by one; reading it is the test.

    These are the keys that check and sign tokens, and the address of the broker.
    """
    found = []
    try:
        Auth(settings, ChannelRules(settings.channels))
    except KeyRejected as error:
        found.append(str(error))
    try:
        _topology(settings)
    except RedisUrlRejected as error:
        found.append(f'broker.url = "{mask_url(settings.broker.url)}": {error}')
    return found


def _topology(settings: Settings) -> Topology | None:
    """Return the connections to Redis, none of which is open yet, or None for another broker."""
    section = settings.broker
    if section.url == MEMORY:
        return None
    return connect(parse_redis_url(section.url), timeout_s=section.call_timeout_s)


def refused(problems: tuple[str, ...]) -> list[Finding]:
    """Return the findings for settings that cannot be used."""
    return [Finding("settings", "fail", problem) for problem in problems]


def examine(settings: Settings, host: Host) -> list[Finding]:
    """Return all findings for settings that are valid one by one."""
    found = list(refused(tuple(problems(settings))))
    usable = not found
    if usable:
        found.append(Finding("settings", "ok", "valid"))
    found += [Finding("settings", "warn", text) for text in warnings(settings)]
    if usable:
        found += _broker(settings)
        found += _archive(settings)
    found.append(_files(settings.limits.connections, host))
    if host.backlog is not None:
        found.append(_backlog(host.backlog))
    return found


def _broker(settings: Settings) -> list[Finding]:
    topology = _topology(settings)
    if topology is None:
        return [_private_broker() if settings.workers > 1 else _memory(settings)]
    looked = asyncio.run(look_at(topology, replicas=settings.publish.wait_replicas))
    return [Finding("broker", status, message) for status, message in looked]


def _memory(settings: Settings) -> Finding:
    return Finding("broker", "ok", f"{settings.broker.url} is in this process")


def _private_broker() -> Finding:
    program = find_redis_server()
    if program is None:
        return Finding("broker", "fail", NOT_FOUND)
    return Finding("broker", "ok", f"workers get a private Redis ({program})")


def _archive(settings: Settings) -> list[Finding]:
    section = settings.archive
    target = parse_archive_url(section.url)
    looked = asyncio.run(look_at_archive(target, call_timeout_s=section.call_timeout_s))
    found = [Finding("archive", status, message) for status, message in looked]
    if target.kind == "sqlite" and _is_elsewhere(settings.broker.url):
        text = "nodes on several machines would each have a file of their own: use a MongoDB"
        found.append(Finding("archive", "warn", f"SQLite with a Redis on another machine: {text}"))
    return found


def _is_elsewhere(broker_url: str) -> bool:
    """Say whether a broker is one that nodes on other machines may use too."""
    if broker_url == MEMORY:
        return False
    target = parse_redis_url(broker_url)
    return any(not is_loopback(each.host) for each in target.endpoints)


def _files(connections: int, host: Host) -> Finding:
    soft, hard = (
        "unlimited" if limit is None else str(limit) for limit in (host.soft_files, host.hard_files)
    )
    needed = connections + SPARE_FILES
    if host.hard_files is None or (connections and needed <= host.hard_files):
        raised = "" if host.soft_files == host.hard_files else f"; serve raises {soft} to that"
        return Finding("files", "ok", f"{hard} files may be open{raised}")
    if not connections:
        text = f"limits.connections is 0 (no limit), but at most {hard} files may be open"
        return Finding("files", "warn", text)
    text = (
        f"limits.connections = {connections} needs {needed} open files, but the hard limit is "
        f"{hard} (soft {soft}): raise it (ulimit -Hn, LimitNOFILE=) or lower limits.connections"
    )
    return Finding("files", "warn", text)


def _backlog(backlog: int) -> Finding:
    if backlog >= LEAST_BACKLOG:
        return Finding("backlog", "ok", f"{backlog} connections may wait to be accepted")
    text = (
        f"net.core.somaxconn is {backlog}: when many clients come back at once, some are turned "
        f"away; set it to {LEAST_BACKLOG} or more"
    )
    return Finding("backlog", "warn", text)


def report(found: list[Finding], *, as_json: bool) -> int:
    """Write the findings; return 1 if any failed, else 0."""
    failed = any(each.status == "fail" for each in found)
    if as_json:
        put_json({"ok": not failed, "checks": found})
    else:
        for line in columns((each.status, each.check, each.message) for each in found):
            put(line)
    return 1 if failed else 0
