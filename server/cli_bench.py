"""Who is connected here? This file: `bench`, which measures a running server."""

import contextlib
import os
import re
import signal
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Final

import msgspec

from config.checks import is_loopback
from server.cli_output import CommandFailed, columns, put, put_json, tell
from server.cli_progress import Progress
from server.cli_target import Credential, Target, problem_of
from server.load_cores import Cores, choose
from server.load_engine import Load
from server.load_galecast import Encoding, How, galecast
from server.load_layout import Layout
from server.load_machine import listeners, need_files
from server.load_opening import Opened, Refusal
from server.load_plot import plot
from server.load_publisher import PublisherClosed, PublishRefused
from server.load_report import LoadReport
from server.load_run import Moment, Plan
from server.load_target import LoadFailed

# What this process has open beside its sessions.
_SPARE_FILES: Final = 64
_FIELD: Final = r'"%s" ?: ?"((?:[^"\\]|\\.)*)"'
_PACKED: Final = rb"%s(?:[\xa1-\xbf]|\xd9.)([ -~]+)"
_SESSION_HINTS: Final = {
    "limit_exceeded": "see limits.connections_per_address, limits.connections_per_user, "
    "limits.connections and limits.subscriptions_per_session of the server",
    "rate_limited": "see limits.session_commands_per_s of the server, or use an API key",
    "forbidden": "an API key needs the scopes publish and history on the channels of --prefix",
    "unauthorized": "--key-file names a file with an API key",
}
_PUBLISH_HINTS: Final = {
    **_SESSION_HINTS,
    "rate_limited": "see limits.key_publishes_per_s of the server and, for clients without an "
    "API key, limits.session_publishes_per_s",
    "too_large": "see limits.data_bytes, limits.frame_bytes, limits.batch_events and "
    "limits.body_bytes of the server",
}


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure, as it was asked for."""

    layout: Layout
    plan: Plan
    size: int
    encoding: Encoding
    publish: How
    cores: str

    def described(self) -> dict[str, Any]:
        """Return it as JSON values."""
        layout, plan = self.layout, self.plan
        return {
            "sessions": layout.sessions,
            "channels": layout.channels,
            "per_session": layout.per_session,
            "publishers": layout.publishers,
            "prefix": layout.prefix,
            "size": self.size,
            "encoding": self.encoding,
            "publish": self.publish,
            "in_flight": None if plan.rate else plan.in_flight,
            "rate": plan.rate,
            "batch": plan.batch,
            "seconds": plan.seconds,
            "warm_up": plan.warmup_s,
        }


def bench(
    target: Target, credential: Credential, wanted: Wanted, picture: Path | None, *, as_json: bool
) -> int:
    """Measure a server, and write what was found; raises CommandFailed.

    Returns 1 if an event was lost, came twice or out of order. Ctrl-C ends it early, with what was
    measured until then.
    """
    if picture is not None and not picture.absolute().parent.is_dir():
        raise CommandFailed(f"--plot {picture}: there is no such folder")
    local = _is_local(target)
    servers = listeners(target.port) if local else []
    load = _load(target, credential, wanted)
    with load, _cores(wanted.cores, servers) as cores:
        for note in (
            cores.note,
            "" if local else f"the load goes to another machine: {target.url}",
        ):
            if note:
                tell(note)
        progress = Progress()
        try:
            opened = load.open(heard=lambda count: progress.show(_opening(wanted, count)))
            with _interrupts(load):
                report = load.run(
                    wanted.plan,
                    servers=servers,
                    heard=lambda moment: progress.show(lambda: _running(moment)),
                )
        except LoadFailed as failed:
            raise CommandFailed(explain(failed)) from None
        finally:
            progress.end()
    _write(target, wanted, opened, report, as_json=as_json)
    if picture is not None:
        _draw(picture, target, wanted, report)
    for problem in report.problems:
        tell(f"error: {problem}")
    if report.warning:
        tell(f"warning: {report.warning}")
    if report.partial:
        tell("ended early: the figures are of what was measured until then")
    return 0 if report.ok else 1


def _load(target: Target, credential: Credential, wanted: Wanted) -> Load:
    if target.secure:
        raise CommandFailed(f"{target.url}: bench speaks no TLS; name a node itself, by http://")
    layout = wanted.layout
    count = layout.sessions + layout.publishers + _SPARE_FILES
    if not need_files(count):
        raise CommandFailed(
            f"{layout.sessions} sessions need {count} open files, and this process may not open "
            "as many: raise the hard limit (ulimit -Hn)"
        )
    text = credential.read()
    spoken = galecast(
        target.host,
        target.port,
        netloc=target.netloc,
        prefix=target.prefix,
        credentials=[] if text is None else [text],
        encoding=wanted.encoding,
        publish=wanted.publish,
    )
    try:
        return Load(spoken, layout, size=wanted.size)
    except LoadFailed as failed:
        raise CommandFailed(f"--size {wanted.size}: {failed}") from None


@contextlib.contextmanager
def _cores(wanted: str, servers: Sequence[int]) -> Iterator[Cores]:
    """Run on cores of one's own where that is possible, and as before afterwards."""
    try:
        found = choose(wanted, servers)
    except ValueError as error:
        raise CommandFailed(f"--cores {wanted}: {error}") from None
    before = os.sched_getaffinity(0)
    try:
        if found.own:
            os.sched_setaffinity(0, found.own)
    except OSError as error:
        raise CommandFailed(f"--cores {wanted}: {error.strerror}") from None
    try:
        yield found
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def _interrupts(load: Load) -> Iterator[None]:
    """Let Ctrl-C end the run in good order, and a second one at once."""

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        load.stop()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        before = signal.signal(signal.SIGINT, on_signal)
    except ValueError:
        # Only the main thread hears of signals.
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _is_local(target: Target) -> bool:
    try:
        found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CommandFailed(f"cannot reach {target.url}: {reason}") from None
    return is_loopback(str(found[0][4][0]))


# ---- what a server says no with


def explain(failed: LoadFailed) -> str:
    """Return what went wrong in words for whoever asked, with the setting that matters."""
    if isinstance(failed, PublishRefused):
        return _refused("a publish was refused", failed.answer, _PUBLISH_HINTS)
    if isinstance(failed, PublisherClosed):
        reason = _field(failed.answer, "reason")
        return f"a publisher's session was closed: {reason}{_hint(reason, _PUBLISH_HINTS)}"
    if not isinstance(failed, Refusal):
        return str(failed)
    answer = failed.answer
    if not answer.startswith(b"HTTP/"):
        if not answer:
            return str(failed)
        return _refused("a session was refused", answer, _SESSION_HINTS)
    head, _, body = answer.partition(b"\r\n\r\n")
    status = head.split(b" ", 2)[1:2]
    problem = problem_of(int(status[0]) if status and status[0].isdigit() else 0, body)
    return f"a session was refused: {problem}{_hint(problem.code, _SESSION_HINTS)}"


def _refused(what: str, answer: bytes, hints: Mapping[str, str]) -> str:
    code = _field(answer, "code")
    text = _field(answer, "detail") or _field(answer, "message")
    if not code and not text:
        return f"{what}: {answer[:200].decode('utf-8', 'replace')}"
    return f"{what}: {': '.join(each for each in (code, text) if each)}{_hint(code, hints)}"


def _field(answer: bytes, name: str) -> str:
    """Return the text of a field in what may be part of an answer, JSON or MessagePack."""
    found = re.search((_FIELD % name).encode(), answer)
    if found is None:
        found = re.search(_PACKED % name.encode(), answer, re.DOTALL)
    return "" if found is None else found[1].decode("utf-8", "replace").replace('\\"', '"')


def _hint(code: str, hints: Mapping[str, str]) -> str:
    return f" ({hints[code]})" if code in hints else ""


# ---- what a person sees


def _opening(wanted: Wanted, count: int) -> Callable[[], str]:
    return lambda: f"{count:,} of {wanted.layout.sessions:,} sessions are open"


def _running(moment: Moment) -> str:
    if moment.draining:
        return f"{moment.published:,} events published, waiting for the last of them"
    rate = moment.delivered_per_s
    return (
        f"{moment.elapsed_s:.0f} of {moment.total_s:.0f} s: {moment.published:,} events published, "
        + ("warming up" if rate is None else f"{rate:,.0f} delivered per second")
    )


def _write(
    target: Target, wanted: Wanted, opened: Opened, report: LoadReport, *, as_json: bool
) -> None:
    if as_json:
        put_json(
            {
                "url": target.url,
                "asked": wanted.described(),
                "opened_per_s": round(opened.per_s, 1),
                "opening_s": round(opened.seconds, 3),
                "handshakes_put_off": opened.refusals,
                **report.figures(),
            }
        )
        return
    for line in columns(table(target, wanted, opened, report)):
        put(line)


def table(
    target: Target, wanted: Wanted, opened: Opened, report: LoadReport
) -> list[tuple[str, str]]:
    """Return the lines for a person: what, and how much."""
    layout = wanted.layout
    per = f", {layout.per_session} for each session" if layout.per_session > 1 else ""
    late = ""
    if opened.refusals:
        late = f"; {opened.refusals:,} handshakes were put off (limits.handshakes_per_s)"
    rows = [
        ("server", target.url),
        ("load", load_text(wanted)),
        (
            "sessions",
            f"{layout.sessions:,} on {_count(layout.channels, 'channel')}{per}, {wanted.encoding}; "
            f"opened in {opened.seconds:.2f} s ({opened.per_s:,.0f}/s){late}",
        ),
        ("published", f"{report.published_per_s:,.0f} events/s, {report.published:,} in all"),
        ("delivered", f"{report.delivered_per_s:,.0f} events/s, {report.delivered:,} in all"),
        ("latency", _quantiles(report.latency_ms())),
    ]
    if wanted.plan.rate:
        rows.append(("sent late by", _quantiles(report.figures()["send_lag_ms"])))
    if report.own is not None:
        waited = report.own.waited
        shared = f", and waited for it {waited:.0%} of the time" if waited >= 0.05 else ""
        rows.append(("load client", f"{report.own.cpu:.0%} of a core{shared}"))
    for pid, each in report.servers.items():
        memory = f"{each.rss_bytes / 1e6:,.0f} MB"
        rows.append((f"process {pid}", f"{each.cpu:.0%} of a core, {memory}"))
    rows.append(("checked", _checked(report)))
    return rows


def load_text(wanted: Wanted) -> str:
    """Return in words what publishes."""
    plan, layout = wanted.plan, wanted.layout
    way = f"{plan.rate:,g} events/s" if plan.rate else f"{plan.in_flight} in flight"
    who = f" on each of {layout.publishers} connections" if layout.publishers > 1 else ""
    batch = f", {plan.batch} events each" if plan.batch > 1 else ""
    return f"{way}{who}, {wanted.publish}{batch}, {wanted.size} bytes, {plan.seconds:g} s"


def _checked(report: LoadReport) -> str:
    if report.problems:
        return "NOT every event came once and in order, see below"
    text = f"every event came once and in order to all {report.sessions:,} sessions"
    if report.compared == report.sessions:
        return text
    return f"{text} ({report.compared:,} compared by content, the rest by size)"


def _quantiles(found: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:,.2f} ms" for name, value in found.items())


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def _draw(picture: Path, target: Target, wanted: Wanted, report: LoadReport) -> None:
    layout = wanted.layout
    title = f"{target.url}: {layout.sessions:,} sessions, {_count(layout.channels, 'channel')}"
    text = plot(title, load_text(wanted), report.slices)
    try:
        picture.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CommandFailed(f"--plot {picture}: cannot be written: {error.strerror}") from None
