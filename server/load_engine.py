"""Who is connected here? This file: the load engine, many sessions of a server and who publishes.

One thread, no asyncio: what it costs to receive is little more than the system call. What it has to
know of the server is in load_target; who is on which channel in load_layout.
"""

import gc
import time
from array import array
from collections.abc import Callable, Sequence
from zlib import crc32

from msgspec.structs import replace

from server.load_layout import Layout
from server.load_loop import LoadLoop, Take
from server.load_opening import Open, Opened, Opening, Wanted
from server.load_publisher import LoadPublisher
from server.load_report import LoadReport
from server.load_run import Moment, Plan, Run
from server.load_target import Target, Wire, padding
from server.load_verdict import Session
from server.load_witness import Witness


class Load:
    """Sessions of one server, and what publishes to them; `size` is that of an event's data.

    `open` first, then `run` once, then `close`; a `with` block closes too.
    """

    def __init__(self, target: Target, layout: Layout, *, size: int = 128) -> None:
        if layout.wires != len(target.wires):
            raise ValueError("the layout has other wires than the target")
        self._target = target
        self._layout = layout
        self._padding = padding(size)
        self._sent = [array("d") for _ in range(layout.lanes)]
        self._loop = LoadLoop()
        self._wires = list(target.wires)
        self._open: list[Open] = []
        self._sessions: list[Session] = []
        self._publishers: list[LoadPublisher] = []
        self._run: Run | None = None
        self._stopped = False

    def open(self, *, parallel: int = 128, heard: Callable[[int], None] = lambda _: None) -> Opened:
        """Open the sessions, then the publishers; return how the sessions went.

        `heard` is told how many are open. Raises LoadFailed; then none is.
        """
        layout = self._layout
        port = self._target.port
        sessions, how = self._connect(
            port,
            [self._session_wanted(number) for number in range(layout.sessions)],
            parallel,
            heard,
        )
        self._open += sessions
        self._wires = [self._keeping_alive(place, sessions) for place in range(len(self._wires))]
        self._set_up(sessions)
        ways = [self._target.publishing() for _ in range(layout.publishers)]
        wanted = [
            Wanted(
                hello=way.hello,
                accepted=way.accepted,
                first=way.first,
                ready=way.ready,
                confirmations=1 if way.ready else 0,
                refused=way.refused,
                frames=way.frames,
            )
            for way in ways
        ]
        port = self._target.publish_port or port
        publishers, _ = self._connect(port, wanted, parallel, lambda _: None)
        self._open += publishers
        names = [layout.name(lane % layout.channels) for lane in range(layout.lanes)]
        for number, (each, way) in enumerate(zip(publishers, ways, strict=True)):
            lanes = layout.lanes_of(number)
            self._publishers.append(
                LoadPublisher(each.sock, way, lanes, names, self._padding, self._sent)
            )
        return how

    def _keeping_alive(self, place: int, opened: Sequence[Open]) -> Wire:
        wire = self._wires[place]
        for number, each in enumerate(opened):
            if self._layout.wire_of(number) == place:
                found = wire.keepalive_of(each.said)
                return wire if found is None else replace(wire, keepalive_s=found)
        return wire

    def _session_wanted(self, number: int) -> Wanted:
        layout = self._layout
        wire = self._target.wires[layout.wire_of(number)]
        names = [layout.name(each) for each in layout.channels_of(number)]
        return Wanted(
            hello=wire.hello(number),
            accepted=wire.accepted,
            first=wire.first(names),
            ready=wire.ready,
            confirmations=len(names) if wire.ready else 0,
            refused=wire.refused,
            frames=wire.frames,
        )

    def _connect(
        self, port: int, wanted: Sequence[Wanted], parallel: int, heard: Callable[[int], None]
    ) -> tuple[list[Open], Opened]:
        target = self._target
        opening = Opening(target.host, port, parallel=parallel, again=target.again, heard=heard)
        return opening.open(wanted)

    def _set_up(self, opened: Sequence[Open]) -> None:
        layout, chosen = self._layout, self._layout.witnesses()
        lanes_of: dict[int, list[int]] = {}
        for lane in range(layout.lanes):
            lanes_of.setdefault(lane % layout.channels, []).append(lane)
        for number, each in enumerate(opened):
            wire, channels = layout.wire_of(number), layout.channels_of(number)
            witness = None
            if number in chosen:
                lanes = {lane: channel for channel in channels for lane in lanes_of[channel]}
                frames = self._target.wires[wire].frames
                witness = Witness(frames, lanes, self._sent, self._on_event)
            session = Session(number, each.sock, wire, channels, witness)
            self._take_early(session, each.rest)
            self._sessions.append(session)

    def _take_early(self, session: Session, data: bytes) -> None:
        """Count what came behind the last confirmation."""
        if data and data != self._target.wires[session.wire].ping:
            session.early = len(data)
            if session.witness is not None:
                session.witness.feed(data, time.perf_counter())

    def _on_event(self, due: float, late: float) -> None:
        if self._run is not None:
            self._run.on_event(due, late)

    # ---- running

    def stop(self) -> None:
        """Publish no more: the run ends when what was published has come. For signal handlers."""
        self._stopped = True
        if self._run is not None:
            self._run.stop()

    def run(
        self,
        plan: Plan,
        *,
        servers: Sequence[int] = (),
        heard: Callable[[Moment], None] = lambda _: None,
    ) -> LoadReport:
        """Publish and receive as planned; raises LoadFailed when publishing is not possible.

        `servers` are processes of this machine whose CPU and memory are reported.
        """
        pings = [wire.ping for wire in self._target.wires]
        publishing = [each.sock for each in self._open[len(self._sessions) :]]
        self._loop.register(
            [(each, self._take_of(each, plan)) for each in self._sessions],
            list(zip(publishing, self._publishers, strict=True)),
            pings,
        )
        collects = gc.isenabled()
        gc.collect()
        # Nothing that is made in the loop refers to itself.
        gc.disable()
        try:
            self._run = Run(
                self._loop,
                self._wires,
                self._sessions,
                self._publishers,
                plan,
                servers,
                heard,
            )
            if self._stopped:
                self._run.stop()
            return self._run.report()
        finally:
            if collects:
                gc.enable()

    def _take_of(self, session: Session, plan: Plan) -> Take:
        if session.witness is not None:
            return _witnessing(session.sock.recv_into, session.witness)
        compare = plan.compare_every and session.number % plan.compare_every == 0
        # The events of several channels may mix in another way for each session.
        if compare and self._layout.per_session == 1 and not session.early:
            return _comparing(session.sock.recv_into, session)
        return session.sock.recv_into

    def close(self) -> None:
        """End all connections; may be called twice."""
        for each in self._open:
            each.sock.close()
        self._open = []
        self._loop.close()

    def __enter__(self) -> "Load":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _witnessing(receive: Take, witness: Witness) -> Take:
    feed, clock = witness.feed, time.perf_counter

    def take(buffer: bytearray) -> int:
        size = receive(buffer)
        feed(bytes(memoryview(buffer)[:size]), clock())
        return size

    return take


def _comparing(receive: Take, session: Session) -> Take:
    session.compared = True

    def take(buffer: bytearray) -> int:
        size = receive(buffer)
        # A ping is shorter.
        if size > 8:
            session.crc = crc32(memoryview(buffer)[:size], session.crc)
        return size

    return take
