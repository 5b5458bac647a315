"""Who is connected here, and what may they do? This file: the composition root, one server process.

Everything is made and owned here: node, sockets, timers, signals. Nothing else starts or stops.
"""

import asyncio
import logging
import secrets
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from importlib.metadata import PackageNotFoundError, version

import msgspec
from tornado.httpclient import AsyncHTTPClient
from tornado.netutil import bind_sockets
from tornado.web import Application

from config.rules import ChannelRules
from config.settings import Settings, default_rule, dev_origins
from config.sources import Loaded, reloadable
from handlers.accept import RESERVE, Acceptor
from handlers.http_server import HttpServer
from handlers.live import Live
from handlers.routes import make_admin_application, make_application
from pubsub.errors import ArchiveUnavailable
from pubsub.ulid import UlidFactory
from server.auth import Auth
from server.backplane import open_backplane
from server.closing import Closing
from server.collector import Collector
from server.jwks import Jwks
from server.lifecycle import Phase
from server.log import configure
from server.metrics import Metrics
from server.node import Node, assemble
from server.signals import STOP, handled_signals
from server.ticker import LoopLag
from server.tie import Tie
from server.timetable import Timetable

_log = logging.getLogger("galecast")

_BACKLOG = 4096
# How long a request may be under way on a connection that stands.
_LAST_REQUESTS_S = 0.5
_LET_GO_S = 0.5


def app_version() -> str:
    """Return the version of the installed distribution."""
    try:
        return version("galecast")
    except PackageNotFoundError:
        return "0"


async def fetch(url: str) -> bytes:
    """Return the body behind a URL; raises what the client raises."""
    response = await AsyncHTTPClient().fetch(url, request_timeout=10, max_redirects=3)
    return response.body


class App:
    """One server process: a node, its sockets and its timers.

    Binds at once, so that the port is known (`settings.port` may be 0); raises OSError. `start`,
    then `drain`, then `close`. `close` may be called twice, and without the others.
    `ticket_secret` is as for `Auth`.
    """

    def __init__(
        self, settings: Settings, loop: asyncio.AbstractEventLoop, ticket_secret: bytes = b""
    ) -> None:
        self._sockets = bind_sockets(
            settings.port, settings.host, backlog=_BACKLOG, reuse_port=settings.workers > 1
        )
        self.port: int = self._sockets[0].getsockname()[1]
        if settings.dev and settings.port == 0:
            origins = settings.origins + dev_origins(self.port)
            settings = msgspec.structs.replace(settings, origins=origins)
        self.settings = settings
        self._ticket_secret = ticket_secret
        self._loop = loop
        self._rules = ChannelRules(settings.channels, default_rule(settings))
        token = settings.token
        self._jwks = (
            Jwks(token.jwks_url, fetch, refresh_s=token.jwks_refresh_s) if token.jwks_url else None
        )
        self._name = settings.node or f"node-{secrets.token_hex(4)}"
        self._backplane = open_backplane(
            settings,
            self._rules,
            loop,
            node=self._name,
            revision=lambda: self.settings.broker.rules_revision,
        )
        self.node = self._build()
        self.live = Live(self.node, loop)
        self._lag = LoopLag(loop, self.node.metrics)
        self._acceptors: list[Acceptor] = []
        self._server: HttpServer | None = None
        self._admin: HttpServer | None = None
        self.admin_port = settings.admin_port

    def _build(self) -> Node:
        settings = self.settings
        node = assemble(
            settings,
            name=self._name,
            rules=self._rules,
            broker=self._backplane.broker,
            presence=self._backplane.presence,
            control=self._backplane.control,
            archive=self._backplane.archive,
            coming=self._backplane.coming,
            scheduler=self._backplane.scheduler,
            auth=Auth(settings, self._rules, jwks=self._jwks, ticket_secret=self._ticket_secret),
            metrics=Metrics(version=app_version()),
            timetable=Timetable(self._loop),
            new_id=UlidFactory(),
        )
        node.metrics.count(self._backplane.counters)
        node.metrics.archive(self._backplane.archived)
        node.metrics.schedules(self._backplane.scheduled)
        node.lifecycle.checks.append(self._backplane.problem)
        if self._jwks is not None:
            jwks = self._jwks
            node.lifecycle.checks.append(
                lambda: None if jwks.ready else "the key set was not fetched yet"
            )
        return node

    # Start

    async def start(self) -> None:
        """Serve; what keeps the node from being ready shows in readiness only.

        Raises OSError if the address for health and metrics cannot be had.
        """
        application = make_application(self.node, self.live)
        self._server = self._serve(application, self._sockets)
        port = self.settings.admin_port
        if port:
            sockets = bind_sockets(port, self.settings.host, backlog=_BACKLOG)
            # Still reached when the node has all the connections that it can take.
            self._admin = self._serve(make_admin_application(self.node), sockets, RESERVE // 4)
        if self._jwks is not None:
            self._jwks.start()
        await self._backplane.start()
        self.node.lifecycle.phase = Phase.READY

    def _serve(
        self, application: Application, sockets: list[socket.socket], reserve: int = RESERVE
    ) -> HttpServer:
        settings = self.settings
        server = HttpServer(
            application,
            settings.http,
            self._loop,
            self.node.timetable,
            body_bytes=settings.limits.body_bytes,
        )
        acceptor = Acceptor(self._loop, self.node, server, sockets, reserve=reserve)
        acceptor.start()
        self._acceptors.append(acceptor)
        return server

    @property
    def url(self) -> str:
        """The address to reach this node at, from this machine."""
        host = self.settings.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def http_connections(self) -> int:
        """Connections on the main port that are not live sessions."""
        return self._acceptors[0].connections

    # Running

    def reload(self, settings: Settings) -> None:
        """Put in force what can change while running: channel rules, API keys, log level."""
        change = reloadable(self.settings, settings)
        if change.needs_restart:
            _log.warning("these settings need a restart: %s", ", ".join(change.needs_restart))
        self.settings = settings = change.settings
        self._rules.replace(settings.channels)
        self.node.auth.reload(settings)
        self.node.rates.replace([key.id for key in settings.keys])
        logging.getLogger().setLevel(settings.log.level.upper())
        # Also those that are not open yet: a stream waits for its feeds first.
        for session in self.live.sessions():
            principal = self.node.auth.current(session.principal)
            if principal is None:
                session.end(Closing.INVALID_TOKEN)
            else:
                session.principal = principal
                session.drop_ungranted()
        _log.info("reloaded: %s", ", ".join(change.applied) or "nothing changed")

    # The end

    @property
    def patience_s(self) -> float:
        """How long a drain takes at most, and all that follows it."""
        return self.settings.drain.delay_s + self.settings.drain.grace_s

    async def drain(self) -> None:
        """Say goodbye: not ready; after the delay no new connections; then every session is told.

        Returns when all is said and sent, or when the grace time is over.
        """
        drain, node = self.settings.drain, self.node
        node.lifecycle.phase = Phase.DRAINING
        _log.info(
            "draining, at most %g s; a second signal ends at once",
            self.patience_s,
            extra={"sessions": len(node.hub.sessions)},
        )
        await asyncio.sleep(drain.delay_s)
        for acceptor in self._acceptors[:1]:
            acceptor.close()
        try:
            async with asyncio.timeout(drain.grace_s):
                await node.lifecycle.dismiss(self.live.sessions())
                await self._last_requests()
                await node.lifecycle.requests_done()
                while self.live.connections():
                    # A request in flight may have become a session meanwhile.
                    await node.lifecycle.dismiss(self.live.sessions())
                    await asyncio.sleep(0.02)
        except TimeoutError:
            _log.warning("the grace time is over; what is left is cut off")

    async def _last_requests(self) -> None:
        """Wait a moment for the requests of connections that were accepted last."""
        end = self._loop.time() + _LAST_REQUESTS_S
        while self.http_connections and self._loop.time() < end:  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    async def close(self) -> None:
        """Let go of everything; may be called twice."""
        self.node.lifecycle.phase = Phase.STOPPED
        for acceptor in self._acceptors:
            acceptor.close()
        for sock in self._sockets:
            sock.close()
        for server in (self._server, self._admin):
            if server is not None:
                await server.close_all_connections()
        self.live.abort()
        if self._jwks is not None:
            await self._jwks.close()
        await self.node.hub.close()
        await self._backplane.close()
        self._lag.close()
        self.node.timetable.close()


Beside = Callable[[str], AbstractAsyncContextManager[object]]


async def run(
    loaded: Loaded,
    reread: Callable[[], Settings | None],
    beside: Beside,
    tie: Tie | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT, then drain; return the exit code.

    A second signal ends at once, with code 1. SIGHUP reloads; `reread` returns None if what it
    read is not valid, and has said so. `beside` gets the node's address once it listens, and is
    left before it drains. A worker is told by its supervisor, through `tie`, when to end.
    """
    loop = asyncio.get_running_loop()
    app = App(loaded.settings, loop, b"" if tie is None else tie.ticket_secret)
    stopping = asyncio.Event()
    hurried = asyncio.Event()

    def on_stop() -> None:
        (hurried if stopping.is_set() else stopping).set()

    def on_hurry() -> None:
        stopping.set()
        hurried.set()

    def on_reload() -> None:
        settings = reread()
        if settings is not None:
            app.reload(settings)

    if tie is not None:
        signals = tie.hold(loop, stop=stopping.set, hurry=on_hurry, reload=on_reload)
    else:
        handlers = {**dict.fromkeys(STOP, on_stop), signal.SIGHUP: on_reload}
        signals = handled_signals(loop, handlers)
    ends: float | None = None
    with signals:
        try:
            try:
                await app.start()
            except ArchiveUnavailable as error:
                _log.error("the archive cannot be opened: %s", error)
                return 1
            _log.info("listening on %s", app.url, extra={"node": app.node.name})
            if tie is not None:
                tie.say_ready()
            async with beside(app.url):
                await stopping.wait()
            ends = loop.time() + app.patience_s
            drained = asyncio.create_task(app.drain())
            hurry = asyncio.create_task(hurried.wait())
            await asyncio.wait([drained, hurry], return_when=asyncio.FIRST_COMPLETED)
            for task in (drained, hurry):
                task.cancel()
            await asyncio.wait([drained, hurry])
        finally:
            await _let_go(app, hurried, None if ends is None else max(0.0, ends - loop.time()))
    _log.info("stopped")
    return 1 if hurried.is_set() else 0


async def _let_go(app: App, hurried: asyncio.Event, patience_s: float | None) -> None:
    """Close `app`: not for longer than that (None: for ever), and not once one is in a hurry.

    What takes so long is asking others, such as a Redis that does not answer, to forget this node;
    they forget it by themselves too. What was acknowledged is where it belongs already.
    """
    closing = asyncio.create_task(app.close())
    hurry = asyncio.create_task(hurried.wait())
    await asyncio.wait([closing, hurry], timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
    hurry.cancel()
    # Where all answer it takes a moment.
    done, _rest = await asyncio.wait([closing], timeout=_LET_GO_S)
    if not done:
        _log.warning("ends without waiting for what does not answer")
        closing.cancel()
    await asyncio.wait([closing, hurry])
    if not closing.cancelled():
        closing.result()


def serve(
    loaded: Loaded,
    reread: Callable[[], Settings | None] = lambda: None,
    beside: Beside = nullcontext,
    tie: Tie | None = None,
) -> int:
    """Run a node until it is told to stop; return the exit code. Workers have a `tie`."""
    log = loaded.settings.log
    # Workers write to one stream.
    configure(log.level, log.format, sys.stderr, node="" if tie is None else loaded.settings.node)
    try:
        with Collector(), asyncio.Runner() as runner:
            return runner.run(run(loaded, reread, beside, tie))
    except OSError as error:
        settings = loaded.settings
        ports = f"{settings.port}"
        if settings.admin_port:
            ports += f" and {settings.admin_port}"
        _log.error(
            "cannot listen on %s, port %s: %s; choose another with --port",
            settings.host,
            ports,
            error.strerror or error,
        )
        return 1
