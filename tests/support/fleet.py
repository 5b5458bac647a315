"""Three nodes as processes of their own, a real Redis that keeps what it has, and Nginx in front.

All settings are those of deploy/, but for names, ports, keys and times.
"""

import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPConnection
from pathlib import Path
from types import TracebackType
from typing import Final

from config.access import TokenSettings
from config.rules import ACTIONS
from config.settings import hash_secret
from nginx import ROOT, NginxServer, find_nginx, replaced
from ports import steady_ports
from processes import ServerProcess
from redis_server import RedisServer
from server.tokens import TokenSigner

KEY: Final = "fleet.0123456789abcdef"
NAMES: Final = ("node-1", "node-2", "node-3")
DEPLOY: Final = ROOT / "deploy"
_SECRET: Final = "a secret of the fleet, long enough for HS256"
_RULE: Final = """
[[channels]]
match = ">"
history_size = 20000
presence = true
client_publish = true
"""
_PATIENCE_S: Final = 30.0
# Short times, so that tests need not wait long; the rest is as deploy/ has it.
TIMES: Final = {
    "GALECAST_BROKER_CHECK_S": "0.5",
    "GALECAST_BROKER_CALL_TIMEOUT_S": "3",
    "GALECAST_BROKER_LEASE_S": "2",
    "GALECAST_DRAIN_DELAY_S": "3",
    "GALECAST_DRAIN_RETRY_SPREAD_MS": "500",
}


def make_token(user: str) -> str:
    """Return a token that opens everything to `user`."""
    settings = TokenSettings(secret=_SECRET, audience="galecast")
    return TokenSigner(settings).mint(user, {">": ACTIONS}, 600)


def settings_file(folder: Path, rule: str = _RULE) -> Path:
    """Write the settings of a fleet into a folder, and return where."""
    secret = folder / "token_secret"
    secret.write_text(_SECRET)
    text = replaced(
        (DEPLOY / "galecast.toml").read_text(),
        {
            '"0.0.0.0"': ('"127.0.0.1"', 1),
            "172.30.0.10": ("127.0.0.1", 1),
            "/run/secrets/token_secret": (str(secret), 1),
            "[[keys]]": (rule + "[[keys]]", 1),
            'id = "k1"': ('id = "fleet"', 1),
            "sha256:" + "0" * 64: (hash_secret(KEY.split(".")[1]), 1),
            'scopes = { publish = ["orders.>"], history = ["orders.>"] }': (
                'scopes = { publish = [">"], history = [">"], presence = [">"],'
                ' channels = [">"], sessions = true, metrics = true }',
                1,
            ),
        },
    )
    config = folder / "galecast.toml"
    config.write_text(text)
    return config


def redis_lines() -> list[str]:
    """Return the lines of deploy/redis.conf, but for its folder and its users."""
    text = replaced(
        (DEPLOY / "redis.conf").read_text(),
        {"dir /data": ("", 1), "aclfile /run/secrets/redis_acl": ("", 1), "2gb": ("256mb", 1)},
    )
    return [line for line in text.splitlines() if line and not line.startswith("#")]


class Node:
    """One node: a name, its ports, and the process that runs, if one does.

    `environ` is added to what all nodes have; for `before` see `ServerProcess`.
    """

    def __init__(
        self,
        name: str,
        config: Path,
        broker_url: str,
        archive_url: str = "none",
        *,
        environ: Mapping[str, str] | None = None,
        before: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.port, self.admin_port = steady_ports(2)
        self.broker_url = broker_url
        self.archive_url = archive_url
        self.environ = dict(environ or {})
        self.before = before
        self._config = config
        self._said = ""
        self.process: ServerProcess | None = None

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        ports = ("--port", str(self.port), "--admin-port", str(self.admin_port))
        environ = {
            **TIMES,
            "GALECAST_NODE": self.name,
            "GALECAST_BROKER_URL": self.broker_url,
            "GALECAST_ARCHIVE_URL": self.archive_url,
            **self.environ,
        }
        self.process = ServerProcess(
            "--config", str(self._config), *ports, environ=environ, before=self.before
        )
        await_true(lambda: self.readiness()[0] == 200, lambda: f"{self.name}: {self.readiness()}")

    def readiness(self) -> tuple[int, str]:
        """Return what its readiness is, 0 if nobody answers."""
        return self.ask_admin("/readyz")

    def ask_admin(self, path: str) -> tuple[int, str]:
        """Ask the admin port; the status is 0 where nobody answers."""
        return _get(self.admin_port, path, {})

    def ask(self, path: str, headers: Mapping[str, str]) -> tuple[int, str]:
        """Ask this node, past Nginx."""
        return _get(self.port, path, headers)

    @property
    def log(self) -> str:
        """All that its processes have written, one after another."""
        return self._said + ("" if self.process is None else self.process.log)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process that runs."""
        assert self.process is not None
        self.process.signal(number)

    def kill(self) -> None:
        """End it as a crash does."""
        self.signal(signal.SIGKILL)
        self._gone()

    def stop(self) -> int:
        """End it as a deployment does; return the exit code."""
        assert self.process is not None
        self.signal(signal.SIGTERM)
        code = self.process.wait()
        self._gone()
        return code

    def _gone(self) -> None:
        assert self.process is not None
        self.process.__exit__(None, None, None)
        self._said += self.process.log
        self.process = None

    def hurry(self) -> None:
        """End it without saying goodbye to anyone at length; may be called twice."""
        if self.process is None:
            return
        with suppress(ProcessLookupError, AssertionError):
            self.signal(signal.SIGTERM)
            self.process.await_log("draining")
            # The second one ends it at once.
            self.signal(signal.SIGTERM)
        self._gone()


def _get(port: int, path: str, headers: Mapping[str, str]) -> tuple[int, str]:
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path, headers=dict(headers))
        response = connection.getresponse()
        return response.status, response.read().decode()
    except OSError as error:
        return 0, str(error)
    finally:
        connection.close()


class Fleet:
    """Three nodes behind Nginx over one Redis; runs while the block runs.

    With `tcp`, Redis also has a port. A node may have another way to Redis: set its `broker_url`
    before. `rule` says how its channels behave.
    """

    def __init__(self, *, tcp: bool = False, archive_url: str = "none", rule: str = _RULE) -> None:
        # Skipped before anything is started.
        find_nginx()
        self._folder = Path(tempfile.mkdtemp(prefix="fleet-"))
        self.redis = RedisServer(*redis_lines(), tcp=tcp)
        config = settings_file(self._folder, rule)
        self.nodes = [Node(name, config, self.redis.url, archive_url) for name in NAMES]
        self.nginx: NginxServer

    def __enter__(self) -> "Fleet":
        try:
            self.redis.start()
            at_once(*(node.start for node in self.nodes))
            ports = [node.port for node in self.nodes]
            self.nginx = NginxServer(ports)
            self.nginx.__enter__()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End everything and delete all folders; may be called twice."""
        at_once(*(node.hurry for node in self.nodes))
        if hasattr(self, "nginx"):
            self.nginx.close()
        self.redis.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def node(self, name: str) -> Node:
        """Return a node by its name."""
        return self.nodes[NAMES.index(name)]


def at_once(*calls: Callable[[], object]) -> None:
    """Make all calls at the same time, and wait for all of them."""
    with ThreadPoolExecutor(len(calls)) as pool:
        for done in [pool.submit(call) for call in calls]:
            done.result()


def await_true(
    condition: Callable[[], object], what: Callable[[], str], patience_s: float = _PATIENCE_S
) -> None:
    """Wait until `condition` holds, in a thread."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.02)
