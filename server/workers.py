"""Who is connected here? This file: several processes that share a port, and their supervisor.

One supervisor, which serves nothing itself, and N workers: copies of it (fork) that each run a
node with a listening socket of their own on the same address (SO_REUSEPORT); the kernel spreads
connections over them. Being copies they have the supervisor's settings as they were checked at
the start, whatever has become of the file since.

A worker that is told to end closes its socket only after `drain.delay_s`, and takes all before
that the kernel has for it. What comes between the last of them and the closing is reset; a client
takes that as a refusal and comes back, to another worker. (Linux moves such connections to the
others itself where net.ipv4.tcp_migrate_req is 1.)

Two pipes tie workers and supervisor together. `alive` is never written: it ends when the
supervisor does, in whatever way, and then its workers drain. Through `ready` each worker says
that it listens; it ends when the last worker has, and then the private Redis goes.
"""

import gc
import logging
import os
import secrets
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Final

import msgspec

from config.checks import MEMORY
from config.settings import Settings
from config.sources import Loaded, reloadable
from server.back_off import BackOff
from server.cli_output import CommandFailed
from server.log import configure
from server.private_redis import NOT_FOUND, NotStarted, PrivateRedis, find_redis_server
from server.shared_port import reserve
from server.signals import HANDLED, STOP, received_signals
from server.tie import Share, Tie

_log = logging.getLogger("galecast")

# Beyond the grace time, for what a worker does after it.
_SLACK_S: Final = 5.0
_AT_ONCE_S: Final = 3.0

Reread = Callable[[], Settings | None]


def private_redis(settings: Settings) -> PrivateRedis | None:
    """Return the Redis that the workers need of their own; None if the settings name one.

    Raises CommandFailed if there is no program for it.
    """
    if settings.broker.url != MEMORY:
        return None
    program = find_redis_server()
    if program is None:
        raise CommandFailed(NOT_FOUND)
    return PrivateRedis(program)


class _Worker:
    """A place for a worker: the process in it, if any, and when there is to be another."""

    __slots__ = ("back_off", "due_s", "index", "pid", "ready_s")

    def __init__(self, index: int) -> None:
        self.index = index
        self.pid = 0
        self.ready_s: float | None = None
        self.due_s: float | None = None
        self.back_off = BackOff()


class Supervisor:
    """Starts workers, starts those again that end, and ends them together.

    `serve` runs a node in a worker until it is told to end and returns its exit code; `port` is
    where, held by the sockets `held`; `redis` is run for the workers. Until each worker has
    listened once, one that ends ends all: what keeps it from starting keeps the next one too.
    """

    def __init__(
        self,
        loaded: Loaded,
        reread: Reread,
        serve: Callable[[Loaded, Reread, Tie], int],
        *,
        port: int,
        held: Sequence[socket.socket] = (),
        redis: PrivateRedis | None = None,
    ) -> None:
        self._loaded = loaded
        self._reread = reread
        self._serve = serve
        self._port = port
        self._held = held
        # A client meets another worker with each connection.
        self._ticket_secret = secrets.token_bytes(32)
        self._redis = redis
        self._redis_back_off = BackOff()
        self._redis_since_s = time.monotonic()
        self._redis_due_s: float | None = None
        self._workers = [_Worker(index) for index in range(loaded.settings.workers)]
        self._listened: set[int] = set()
        self._guard = 0
        self._stopping = False
        self._kill_s: float | None = None
        self._code = 0

    def run(self) -> int:
        """Look after the workers until all have ended; return the exit code.

        0 if all drained within the grace time after the first SIGTERM or SIGINT; else 1. Raises
        CommandFailed if the Redis cannot be started.
        """
        self._alive, self._alive_end = os.pipe()
        self._ready, self._ready_end = os.pipe()
        gc.collect()
        # What is there now stays shared between the copies: a collection would touch it.
        gc.freeze()
        with received_signals() as self._signalled:
            try:
                if self._redis is not None:
                    # Before there is anything that it would have to clear up.
                    self._guard = self._fork(self._keep_watch)
                    self._start_redis(self._redis)
                for worker in self._workers:
                    self._start(worker)
                while not self._stopping or any(worker.pid for worker in self._workers):
                    self._turn()
                return self._code
            finally:
                self._end()

    def _end(self) -> None:
        for end in (self._alive_end, self._ready_end, self._alive, self._ready):
            os.close(end)
        if self._guard:
            os.waitpid(self._guard, 0)
        if self._redis is not None:
            self._redis.close()

    # One turn: wait for anything to happen, then see to all of it

    def _turn(self) -> None:
        readable, _, _ = select.select([self._signalled, self._ready], [], [], self._timeout_s())
        self._hear_ready()
        if self._signalled in readable:
            for number in os.read(self._signalled, 4096):
                if number == signal.SIGQUIT or (number in STOP and self._stopping):
                    self._hurry()
                elif number in STOP:
                    self._drain()
                elif number == signal.SIGHUP:
                    self._on_reload()
        for worker in self._workers:
            self._reap(worker)
        if self._redis is not None:
            self._look_after(self._redis)
        now_s = time.monotonic()
        if self._kill_s is not None and now_s >= self._kill_s:
            self._kill_s, self._code = None, 1
            _log.error("workers that do not end are killed")
            self._tell(signal.SIGKILL)
        for worker in self._workers:
            if worker.due_s is not None and now_s >= worker.due_s:
                self._start(worker)

    def _timeout_s(self) -> float | None:
        times = [worker.due_s for worker in self._workers] + [self._kill_s, self._redis_due_s]
        waited = [each for each in times if each is not None]
        return max(min(waited) - time.monotonic(), 0) if waited else None

    def _hear_ready(self) -> None:
        if not select.select([self._ready], [], [], 0)[0]:
            return
        said = os.read(self._ready, 4096)
        pids = {int.from_bytes(said[at : at + 4], "big") for at in range(0, len(said), 4)}
        for worker in self._workers:
            if worker.pid not in pids:
                continue
            worker.ready_s = time.monotonic()
            self._listened.add(worker.index)
            _log.info("worker %d listens", worker.index, extra={"pid": worker.pid})

    def _drain(self) -> None:
        drain = self._loaded.settings.drain
        _log.info("draining all workers; a second signal ends at once")
        self._stop(signal.SIGTERM, drain.delay_s + drain.grace_s + _SLACK_S)

    def _hurry(self) -> None:
        _log.info("ending at once")
        self._code = 1
        self._stop(signal.SIGQUIT, _AT_ONCE_S)

    def _stop(self, number: signal.Signals, within_s: float) -> None:
        self._stopping = True
        for worker in self._workers:
            worker.due_s = None
        self._tell(number)
        kill_s = time.monotonic() + within_s
        # Further signals may bring it forward, and never put it off.
        self._kill_s = kill_s if self._kill_s is None else min(self._kill_s, kill_s)

    def _on_reload(self) -> None:
        if (settings := self._reread()) is not None:
            change = reloadable(self._loaded.settings, settings)
            # Each worker tells of all others; these it has from here, whatever was read.
            own = {"node", "port"} if self._redis is None else {"node", "port", "broker.url"}
            if hidden := [path for path in change.needs_restart if path in own]:
                _log.warning("these settings need a restart: %s", ", ".join(hidden))
            # For workers that are started from now on.
            kept = change.settings
            logging.getLogger().setLevel(kept.log.level.upper())
            self._loaded = msgspec.structs.replace(self._loaded, settings=kept)
            self._tell(signal.SIGHUP)

    def _tell(self, number: signal.Signals) -> None:
        for worker in self._workers:
            # Not reaped yet, so the number is nobody else's.
            if worker.pid:
                os.kill(worker.pid, number)

    def _reap(self, worker: _Worker) -> None:
        if not worker.pid:
            return
        pid, status = os.waitpid(worker.pid, os.WNOHANG)
        if not pid:
            return
        # What it said until then is there, and may have come after the last look.
        self._hear_ready()
        code = os.waitstatus_to_exitcode(status)
        ready_s, worker.pid, worker.ready_s = worker.ready_s, 0, None
        if self._stopping:
            self._code = self._code or int(code != 0)
        elif ready_s is None and len(self._listened) < len(self._workers):
            _log.error("worker %d could not start (%s)", worker.index, _ending(code))
            self._hurry()
        else:
            now_s = time.monotonic()
            delay_s = worker.back_off.delay_s(0 if ready_s is None else now_s - ready_s)
            worker.due_s = now_s + delay_s
            _log.warning(
                "worker %d ended (%s); another starts in %.1f s",
                worker.index,
                _ending(code),
                delay_s,
            )

    def _start_redis(self, redis: PrivateRedis) -> None:
        try:
            redis.start()
            redis.await_answer()
        except (OSError, NotStarted) as error:
            raise CommandFailed(f"the private Redis cannot be started: {error}") from None
        self._redis_since_s = time.monotonic()
        _log.info(
            "a private Redis runs for the workers; it keeps nothing beyond their life",
            extra={"pid": redis.pid, "folder": str(redis.folder)},
        )

    def _look_after(self, redis: PrivateRedis) -> None:
        now_s = time.monotonic()
        if self._redis_due_s is not None:
            if now_s < self._redis_due_s:
                return
            self._redis_due_s, self._redis_since_s = None, now_s
            try:
                redis.start()
            except OSError as error:
                self._await_redis(now_s, error.strerror or str(error))
            else:
                _log.info("the private Redis is started again", extra={"pid": redis.pid})
        elif (code := redis.ended()) is not None:
            words = redis.last_words()
            self._await_redis(now_s, f"{_ending(code)}: {words}" if words else _ending(code))

    def _await_redis(self, now_s: float, why: str) -> None:
        delay_s = self._redis_back_off.delay_s(now_s - self._redis_since_s)
        self._redis_due_s = now_s + delay_s
        _log.error(
            "the private Redis ended (%s); an empty one starts in %.1f s, and every subscriber is "
            "told `reset`",
            why,
            delay_s,
        )

    # Other processes

    def _start(self, worker: _Worker) -> None:
        settings = self._loaded.settings
        share = Share(
            index=worker.index,
            port=self._port,
            # Known before the node is made, so that every line of its log has it.
            node=f"{settings.node or 'node-' + secrets.token_hex(4)}-{worker.index}",
            broker_url=None if self._redis is None else self._redis.url,
        )

        def reread() -> Settings | None:
            settings = self._reread()
            return None if settings is None else share.of(settings)

        def work() -> int:
            os.close(self._ready)
            loaded = msgspec.structs.replace(self._loaded, settings=share.of(settings))
            tie = Tie(worker.index, self._alive, self._ready_end, self._ticket_secret)
            return self._serve(loaded, reread, tie)

        worker.due_s = None
        try:
            worker.pid = self._fork(work)
        except OSError as error:
            delay_s = worker.back_off.delay_s(0)
            worker.due_s = time.monotonic() + delay_s
            _log.error(
                "worker %d cannot be started: %s; again in %.1f s", worker.index, error, delay_s
            )

    def _keep_watch(self) -> int:
        """Clear up once supervisor and workers are gone: nobody else can if those were killed."""
        os.close(self._ready_end)
        # Each ends with the last process that has its other end. Workers that drain meanwhile
        # need the Redis; what they say to the supervisor is for nobody.
        for end in (self._alive, self._ready):
            while os.read(end, 4096):
                pass
        if self._redis is not None:
            self._redis.clear_up()
        return 0

    def _fork(self, run: Callable[[], int]) -> int:
        """Run `run` in a copy of this process, which then ends; return the copy's number.

        Signals are held back there until it lets them come.
        """
        sys.stdout.flush()
        sys.stderr.flush()
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
        try:
            pid = os.fork()
        except OSError:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
            raise
        if pid == 0:
            code = 1
            try:
                signal.set_wakeup_fd(-1)
                for number in HANDLED:
                    signal.signal(number, signal.SIG_DFL)
                os.close(self._alive_end)
                for sock in self._held:
                    sock.close()
                code = run()
            except Exception:
                _log.exception("a process of the supervisor failed")
            finally:
                # Not by the way that this came: the supervisor's frames are below.
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
        return pid


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    with suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"


def supervise(loaded: Loaded, reread: Reread, serve: Callable[[Loaded, Reread, Tie], int]) -> int:
    """Serve with `loaded.settings.workers` processes until told to end; return the exit code.

    `reread` and `serve` are as for `Supervisor`. Raises CommandFailed if the workers have nothing
    to share events through.
    """
    settings = loaded.settings
    configure(settings.log.level, settings.log.format, sys.stderr)
    with ExitStack() as stack:
        try:
            held = reserve(settings.host, settings.port)
        except OSError as error:
            _log.error(
                "cannot listen on %s, port %d: %s; choose another with --port",
                settings.host,
                settings.port,
                error.strerror or error,
            )
            return 1
        for sock in held:
            stack.enter_context(sock)
        redis = private_redis(settings)
        port: int = held[0].getsockname()[1]
        supervisor = Supervisor(loaded, reread, serve, port=port, held=held, redis=redis)
        return supervisor.run()
