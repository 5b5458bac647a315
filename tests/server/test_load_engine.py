import threading
import time
from collections.abc import Callable

import pytest

from load_rig import ACCEPTED, Tamper, text_frame, wire_server, wire_target
from server.load_engine import Load
from server.load_frames import PING, PONG_MASKED
from server.load_layout import Layout
from server.load_loop import LoadLoop
from server.load_opening import Refusal
from server.load_publisher import PublishRefused
from server.load_report import LoadReport
from server.load_run import Moment, Plan
from server.load_target import LoadFailed

# Of so many sessions every second is a witness.
SESSIONS = 60
WITNESS, OTHER = 2, 3
EVENTS = 40
PLAN = Plan(seconds=20.0, warmup_s=0.0, in_flight=8, events=EVENTS, patience_s=0.3)


def run(tamper: Tamper | None = None, plan: Plan = PLAN, publishers: int = 1) -> LoadReport:
    layout = Layout(sessions=SESSIONS, publishers=publishers)
    assert WITNESS in layout.witnesses() and OTHER not in layout.witnesses()
    with wire_server(tamper) as server, Load(wire_target(server.port), layout, size=32) as load:
        load.open()
        return load.run(plan)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def tampering(session: int, change: Callable[[int, bytes], bytes]) -> Tamper:
    """Let one session have something else."""
    return lambda to, number, frame: change(number, frame) if to == session else frame


def test_all_is_well_when_everyone_gets_everything() -> None:
    report = run()
    assert report.problems == []
    assert (report.published, report.acknowledged) == (EVENTS, EVENTS)
    assert report.delivered == EVENTS * SESSIONS
    assert report.compared == SESSIONS
    assert not report.partial
    assert report.latency.total == EVENTS * len(Layout(sessions=SESSIONS).witnesses())


@pytest.mark.parametrize("session", [WITNESS, OTHER])
@pytest.mark.parametrize("at", [0, 7, EVENTS - 1])
def test_a_lost_event_is_noticed(session: int, at: int) -> None:
    report = run(tampering(session, lambda number, frame: b"" if number == at else frame))
    assert report.problems
    assert all(f"session {session}:" in each for each in report.problems)
    assert not report.ok
    assert report.delivered == EVENTS * SESSIONS - 1


@pytest.mark.parametrize("session", [WITNESS, OTHER])
def test_an_event_that_comes_twice_is_noticed(session: int) -> None:
    report = run(tampering(session, lambda number, frame: frame * 2 if number == 7 else frame))
    assert [f"session {session}:" in each for each in report.problems] == [True]


@pytest.mark.parametrize("session", [WITNESS, OTHER])
def test_events_in_another_order_are_noticed(session: int) -> None:
    """The bytes are as many; of a session that is no witness only the content tells."""
    kept: list[bytes] = []

    def swap(number: int, frame: bytes) -> bytes:
        if number == 7:
            kept.append(frame)
            return b""
        return frame + kept.pop() if number == 8 else frame

    report = run(tampering(session, swap))
    assert report.problems
    assert all(f"session {session}:" in each for each in report.problems)


def test_what_all_lose_is_noticed() -> None:
    report = run(lambda _session, number, frame: b"" if number == 7 else frame)
    assert any("events are missing before event 8" in each for each in report.problems)


def test_a_session_that_is_cut_off_is_named() -> None:
    report = run(tampering(OTHER, lambda number, frame: b"hang up" if number == 7 else frame))
    assert f"session {OTHER} was lost: the server closed the connection" in report.problems


def test_an_event_that_is_not_acknowledged_is_noticed() -> None:
    with wire_server(acknowledge=lambda number: b"" if number == 7 else b"ack;") as server:
        with Load(wire_target(server.port), Layout(sessions=2), size=32) as load:
            load.open()
            report = load.run(PLAN)
    assert report.problems == [f"{EVENTS} events were sent, {EVENTS - 1} acknowledged"]


def test_a_refused_publish_ends_it_and_says_why() -> None:
    with wire_server(acknowledge=lambda _: b"refuse; no such channel") as server:
        with Load(wire_target(server.port), Layout(sessions=2), size=32) as load:
            load.open()
            with pytest.raises(PublishRefused, match="no such channel"):
                load.run(PLAN)


@pytest.mark.parametrize("in_flight", [1, 5])
def test_no_more_is_in_flight_than_asked_for(in_flight: int) -> None:
    sent: list[int] = []
    acked: list[int] = []

    def tamper(session: int, number: int, frame: bytes) -> bytes:
        if session == 0:
            sent.append(number)
        return frame

    def acknowledge(number: int) -> bytes:
        # Held back until as many wait as may.
        acked.append(number)
        return b"ack;" * in_flight if len(acked) % in_flight == 0 else b""

    with wire_server(tamper, acknowledge=acknowledge) as server:
        with Load(wire_target(server.port), Layout(sessions=2), size=32) as load:
            load.open()
            report = load.run(Plan(seconds=20.0, warmup_s=0.0, in_flight=in_flight, events=20))
    assert report.ok
    assert sent == list(range(20))


def test_open_loop_sends_on_though_nothing_is_acknowledged() -> None:
    plan = Plan(seconds=0.5, warmup_s=0.0, rate=100.0, patience_s=0.2)
    with wire_server(acknowledge=lambda _: b"") as server:
        with Load(wire_target(server.port), Layout(sessions=2), size=32) as load:
            load.open()
            report = load.run(plan)
    assert report.published == 50
    assert report.delivered == 100
    assert report.problems == ["50 events were sent, 0 acknowledged"]
    assert report.lag.total == 50


def test_what_was_due_before_the_end_is_sent_by_a_load_that_was_held_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It looked at the clock first: held up for 10 ms at the end, it left out what was due."""
    pauses = [0.5]

    def turn(loop: LoadLoop, timeout_s: float) -> None:
        if pauses:
            time.sleep(pauses.pop())
        plain(loop, timeout_s)

    plain = LoadLoop.turn
    monkeypatch.setattr(LoadLoop, "turn", turn)
    report = run(plan=Plan(seconds=0.3, warmup_s=0.0, rate=400.0, patience_s=0.3))
    assert report.published == 120
    assert report.lag.total == 120
    assert report.problems == []
    assert not report.partial


def test_what_is_due_at_a_rate_that_is_too_high_is_not_made_up_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("server.load_run._CATCH_UP_S", 0.0)
    with wire_server() as server:
        with Load(wire_target(server.port), Layout(sessions=2), size=32) as load:
            load.open()
            report = load.run(Plan(seconds=0.05, warmup_s=0.0, rate=1e7))
    assert report.published < 500_000
    assert report.ok


def test_while_all_stand_still_it_is_not_said_that_nothing_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Time that passed for nobody counted: what was yet to come was given up as lost."""
    stand_still, go_on = threading.Event(), threading.Event()

    def tamper(session: int, number: int, frame: bytes) -> bytes:
        if (session, number) == (OTHER, EVENTS - 1):
            stand_still.set()
            go_on.wait()
        return frame

    def turn(loop: LoadLoop, timeout_s: float) -> None:
        if stand_still.is_set() and not go_on.is_set():
            time.sleep(2 * PLAN.patience_s)
            go_on.set()
        plain(loop, timeout_s)

    plain = LoadLoop.turn
    monkeypatch.setattr(LoadLoop, "turn", turn)
    assert run(tamper).problems == []


@pytest.mark.parametrize("plan", [PLAN, Plan(seconds=20.0, warmup_s=0.0, rate=5e5, events=EVENTS)])
def test_no_more_events_than_asked_for(plan: Plan) -> None:
    assert run(plan=plan).published == EVENTS


def test_events_of_several_publishers_are_in_order_for_each() -> None:
    report = run(publishers=3)
    assert report.ok
    assert report.delivered == report.published * SESSIONS


def test_pings_are_no_events_and_what_keeps_a_session_alive_is_sent() -> None:
    """A ping comes by itself or in one read with events; neither makes bytes too many."""

    def tamper(_session: int, number: int, frame: bytes) -> bytes:
        return PING + frame if number == 3 else frame + PING if number == 9 else frame

    # It ends with the last event, not at a time: all are heard though it is held up.
    plan = Plan(seconds=20.0, warmup_s=0.0, rate=40.0, events=40, patience_s=0.3)
    with wire_server(tamper) as server:
        target = wire_target(server.port, keepalive_s=0.5)
        with Load(target, Layout(sessions=SESSIONS), size=32) as load:
            load.open()
            for session in (WITNESS, OTHER):
                server.say(session, PING)
            report = load.run(plan)
            until(lambda: server.heard.count(PONG_MASKED) >= SESSIONS)
    assert report.problems == []
    assert report.delivered == 40 * SESSIONS


def test_what_comes_with_the_last_confirmation_belongs_to_the_session() -> None:
    """An event may be in the read in which the session became ready."""
    with wire_server(greeting=lambda _: ACCEPTED + text_frame(b"ready") + PING) as server:
        target = wire_target(server.port, ready=b"ready")
        with Load(target, Layout(sessions=SESSIONS), size=32) as load:
            load.open()
            assert load.run(PLAN).problems == []


def test_a_refused_handshake_is_what_is_raised() -> None:
    answer = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno"
    with wire_server(greeting=lambda number: answer if number == 7 else ACCEPTED) as server:
        with Load(wire_target(server.port), Layout(sessions=20), size=32) as load:
            with pytest.raises(Refusal) as caught:
                load.open()
    assert caught.value.answer == answer
    assert "403 Forbidden" in str(caught.value)


def test_a_refused_subscription_is_what_is_raised() -> None:
    with wire_server(greeting=lambda _: ACCEPTED + text_frame(b"refused: no")) as server:
        target = wire_target(server.port, ready=b"ready")
        with Load(target, Layout(sessions=2), size=32) as load:
            with pytest.raises(Refusal) as caught:
                load.open()
    assert b"refused: no" in caught.value.answer


def test_nobody_listens() -> None:
    with wire_server() as server:
        port = server.port
    with Load(wire_target(port), Layout(sessions=2), size=32) as load:
        with pytest.raises(
            LoadFailed, match=r"no connection to 127\.0\.0\.1:\d+: Connection refused"
        ):
            load.open()


def test_a_run_that_is_stopped_reports_what_it_has() -> None:
    moments: list[Moment] = []
    with wire_server() as server:
        with Load(wire_target(server.port), Layout(sessions=4), size=32) as load:
            load.open()

            def heard(moment: Moment) -> None:
                moments.append(moment)
                if moment.published > 5:
                    load.stop()

            report = load.run(Plan(seconds=60.0, warmup_s=0.0, rate=50.0), heard=heard)
    assert report.partial
    assert report.ok
    assert 5 < report.published < 1_000
    assert report.delivered == 4 * report.published
    assert moments[0].total_s == 60.0


def test_a_run_that_was_stopped_before_it_began_publishes_nothing() -> None:
    with wire_server() as server:
        with Load(wire_target(server.port), Layout(sessions=4), size=32) as load:
            load.open()
            load.stop()
            report = load.run(PLAN)
    assert (report.published, report.delivered, report.measured_s) == (0, 0, 0.0)
    assert report.ok


def test_rates_are_of_the_measured_phase() -> None:
    def measured() -> LoadReport:
        with wire_server() as server:
            with Load(wire_target(server.port), Layout(sessions=5), size=32) as load:
                load.open()
                return load.run(Plan(seconds=1.0, warmup_s=0.3, rate=100.0))

    report = measured()
    for _ in range(20):
        # A run that was held up has other rates, and says so.
        if report.latency.greatest < 0.08 and report.measured_s < 1.05:
            break
        report = measured()
    assert report.published == 130
    assert report.latency.total == 100 * 5
    assert report.published_per_s == pytest.approx(100, rel=0.15)
    assert report.delivered_per_s == pytest.approx(500, rel=0.15)
    assert len(report.slices) == 4
    assert report.slices[0].begin_s >= 0.3
    assert sum(each.latency.total for each in report.slices) == 500


def test_nothing_is_left_open() -> None:
    # Those of earlier tests may end meanwhile.
    threads = set(threading.enumerate())
    with wire_server() as server:
        load = Load(wire_target(server.port), Layout(sessions=2), size=32)
        load.open()
        load.close()
        load.close()
    assert set(threading.enumerate()) <= threads
