"""Who is measured beside us: how each is started, and how its subscribers and publishers speak.

A peer sends what is posted to it to all who subscribed to that channel. Its server is a program
under peers/, as its own users would write it; where it cannot run, `missing` says why.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Final
from urllib.parse import urlencode

import jwt
import msgspec

from _installed import (
    PROGRAMS,
    PYTHON,
    compiler_version,
    distribution_version,
    find_compiler,
    find_nchan,
    find_nginx,
    find_program,
    go_version,
    nginx_version,
    no_nchan,
    no_package,
    no_program,
    no_python,
    package_version,
    python_version,
)
from _servers import Server, free_port, raise_file_limit
from _wires import (
    http_publishing,
    json_event,
    stream_wire,
    websocket_publishing,
    websocket_wire,
)
from server.load_frames import masked
from server.load_layout import Layout
from server.load_target import Publishing, Target, Wire

# The key that a compiled Mercure and the token of its publisher are made of; it guards nothing.
_MERCURE_KEY: Final = "a-key-for-benchmarks-of-32-bytes-"
_CENTRIFUGO_KEY: Final = "bench"


Start = Callable[[], AbstractContextManager[Server]]


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """Something to be measured: `start` runs it, `target` says how to speak to it on a port.

    `missing` returns why it cannot run here, or nothing; `version` is asked where it can. `several`
    tells whether a session may have more than one channel, `wires` how many encodings there are.
    """

    name: str
    title: str
    version: Callable[[], str]
    missing: Callable[[], str]
    start: Start
    target: Callable[[int, Layout], Target]
    several: bool = False
    wires: int = 1


# ---- how they are started


@contextmanager
def _nchan() -> Iterator[Server]:
    nginx, module, port = find_nginx(), find_nchan(), free_port()
    assert nginx is not None
    assert module is not None
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        files = raise_file_limit()
        text = (PROGRAMS / "nchan.conf").read_text()
        for word, value in {
            "module": module,
            "folder": name,
            "port": port,
            "files": files,
            # The zone of nginx for so many is made at once.
            "connections": min(files, 65_536) - 64,
            # A worker of root's would be nobody, who may not write to the folder.
            "user": "user root;" if os.geteuid() == 0 else "",
        }.items():
            text = text.replace(f"@{word}@", str(value))
        path = Path(name) / "nginx.conf"
        path.write_text(text)
        with Server([nginx, "-p", name, "-c", str(path), "-e", "stderr"], port=port) as server:
            # The port is open before there is a worker, which is what is to be measured.
            server.await_processes(2)
            yield server


@contextmanager
def _bare() -> Iterator[Server]:
    compiler = find_compiler()
    assert compiler is not None
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        program = Path(name) / "bare_send"
        source = PROGRAMS / "bare_send.c"
        subprocess.run([compiler, "-O2", "-o", str(program), str(source)], check=True)
        with Server([str(program)]) as server:
            yield server


def _node(script: str) -> Callable[[], Server]:
    return lambda: Server([shutil.which("node") or "node", str(PROGRAMS / script)])


def _python(script: str) -> Callable[[], Server]:
    return lambda: Server([str(PYTHON), str(PROGRAMS / script)])


@contextmanager
def _centrifugo() -> Iterator[Server]:
    program, port = find_program("centrifugo"), free_port()
    assert program is not None
    settings = {
        "http_server": {"address": "127.0.0.1", "port": port},
        "http_api": {"key": _CENTRIFUGO_KEY},
        "log": {"level": "error"},
        "client": {
            "allow_anonymous_connect_without_token": True,
            # No client of the load answers pings.
            "ping_interval": "1h",
            "allowed_origins": ["*"],
        },
        # As much of the past as a channel of ours keeps by default.
        "channel": {
            "without_namespace": {
                "allow_subscribe_for_client": True,
                "allow_subscribe_for_anonymous": True,
                "history_size": 500,
                "history_ttl": "300s",
            }
        },
        "uni_websocket": {"enabled": True},
        "usage_stats": {"disabled": True},
    }
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        path = Path(name) / "centrifugo.json"
        path.write_bytes(msgspec.json.encode(settings))
        with Server([program, "-c", str(path)], port=port) as server:
            yield server


@contextmanager
def _mercure() -> Iterator[Server]:
    program, port = find_program("mercure"), free_port()
    assert program is not None
    environ = {
        "ADDR": f"127.0.0.1:{port}",
        "ALLOW_ANONYMOUS": "1",
        "PUBLISHER_JWT_KEY": _MERCURE_KEY,
        "SUBSCRIBER_JWT_KEY": _MERCURE_KEY,
        "TRANSPORT_URL": "local://local",
        "HEARTBEAT_INTERVAL": "0",
        "LOG_LEVEL": "error",
    }
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        with Server([program], environ, port=port, cwd=Path(name)) as server:
            yield server


# ---- how one speaks to them


def _to(
    name: str, wire: Callable[[Layout], Wire], publishing: Callable[[], Publishing]
) -> Callable[[int, Layout], Target]:
    def target(port: int, layout: Layout) -> Target:
        return Target(
            name=name,
            host="127.0.0.1",
            port=port,
            wires=(wire(layout),),
            publishing=publishing,
        )

    return target


def _names(layout: Layout, number: int) -> list[str]:
    return [layout.name(each) for each in layout.channels_of(number)]


def _by_address(path: str, *, ready: bytes = b"", first: bytes = b"") -> Callable[[Layout], Wire]:
    """Return a wire whose session names its channel in the address; `first` is said then."""
    return lambda layout: websocket_wire(
        lambda number: path + ",".join(_names(layout, number)),
        first=lambda _: first,
        ready=ready,
    )


def _centrifugo_wire(_layout: Layout) -> Wire:
    # Its own one-way transport: a frame for each publication, where its two-way one joins some of
    # them for one session and others for another, so that no bytes can be compared.
    def first(names: Sequence[str]) -> bytes:
        return masked(msgspec.json.encode({"subs": {name: {} for name in names}}))

    return websocket_wire(lambda _: "/connection/uni_websocket", first=first, ready=b'"connect":')


def _centrifugo_body(channel: str, data: bytes) -> bytes:
    return b'{"channel":"%s","data":%s}' % (channel.encode(), json_event(channel, data))


def _mercure_body(channel: str, data: bytes) -> bytes:
    return urlencode({"topic": channel, "data": json_event(channel, data)}).encode()


def _mercure_publishing() -> Publishing:
    token = jwt.encode({"mercure": {"publish": ["*"]}}, _MERCURE_KEY, "HS256")
    return http_publishing(
        lambda _: "/.well-known/mercure",
        body=_mercure_body,
        headers="Content-Type: application/x-www-form-urlencoded\r\n"
        f"Authorization: Bearer {token}\r\n",
    )


def _socket_io(
    name: str,
    title: str,
    version: Callable[[], str],
    missing: Callable[[], str],
    start: Start,
) -> Peer:
    path = "/socket.io/?EIO=4&transport=websocket&channel="
    # Engine.IO's message (4) with Socket.IO's connect (0), and the answer to it.
    wire = _by_address(path, first=masked(b"40"), ready=b'40{"sid"')
    return Peer(
        name=name,
        title=title,
        version=version,
        missing=missing,
        start=start,
        target=_to(name, wire, http_publishing),
    )


_WS: Final = "/v1/ws?channel="

PEERS: Final = (
    Peer(
        name="bare_send",
        title="bare `send()` in C, the physical limit",
        version=compiler_version,
        missing=lambda: "" if find_compiler() else "there is no C compiler",
        start=_bare,
        target=_to("bare_send", _by_address(_WS), http_publishing),
    ),
    Peer(
        name="nchan",
        title="nchan (C, in nginx)",
        version=nginx_version,
        missing=no_nchan,
        start=_nchan,
        target=_to(
            "nchan",
            _by_address("/subscribe?channel="),
            lambda: http_publishing(lambda channel: f"/publish?channel={channel}"),
        ),
        several=True,
    ),
    Peer(
        name="centrifugo",
        title="Centrifugo (Go)",
        version=go_version("github.com/centrifugal/centrifugo"),
        missing=no_program("centrifugo"),
        start=_centrifugo,
        target=_to(
            "centrifugo",
            _centrifugo_wire,
            lambda: http_publishing(
                lambda _: "/api/publish",
                body=_centrifugo_body,
                headers=f"Content-Type: application/json\r\nX-API-Key: {_CENTRIFUGO_KEY}\r\n",
                acked=b'{"result":',
                refused=b'"error":',
            ),
        ),
    ),
    Peer(
        name="mercure",
        title="Mercure (Go, SSE)",
        version=go_version("github.com/dunglas/mercure"),
        missing=no_program("mercure"),
        start=_mercure,
        target=_to(
            "mercure",
            lambda layout: stream_wire(
                lambda number: "/.well-known/mercure?topic=" + _names(layout, number)[0]
            ),
            _mercure_publishing,
        ),
    ),
    Peer(
        name="ws",
        title="`ws` (Node.js)",
        version=package_version("ws"),
        missing=no_package("ws"),
        start=_node("ws_server.js"),
        target=_to("ws", _by_address(_WS), http_publishing),
    ),
    _socket_io(
        "socket.io",
        "Socket.IO (Node.js)",
        package_version("socket.io"),
        no_package("socket.io"),
        _node("socketio_server.js"),
    ),
    Peer(
        name="websockets",
        title="python-websockets, `broadcast()`",
        version=distribution_version("websockets"),
        missing=no_python,
        start=_python("websockets_server.py"),
        target=_to("websockets", _by_address(_WS), lambda: websocket_publishing("/publish")),
    ),
    _socket_io(
        "python-socketio",
        "python-socketio (uvicorn)",
        distribution_version("python-socketio", "uvicorn"),
        no_python,
        _python("python_socketio_server.py"),
    ),
    Peer(
        name="starlette",
        title="Starlette (uvicorn)",
        version=distribution_version("starlette", "uvicorn"),
        missing=no_python,
        start=_python("starlette_server.py"),
        target=_to("starlette", _by_address(_WS), http_publishing),
    ),
    Peer(
        name="channels",
        title="Django Channels (uvicorn)",
        version=distribution_version("channels", "django", "uvicorn"),
        missing=no_python,
        start=_python("channels_server.py"),
        target=_to("channels", _by_address(_WS), http_publishing),
    ),
    Peer(
        name="write_message",
        title="a loop over Tornado's `write_message`",
        version=lambda: f"tornado {metadata.version('tornado')}, {python_version()}",
        missing=lambda: "",
        start=lambda: Server([sys.executable, str(PROGRAMS / "naive_server.py")]),
        target=_to("write_message", _by_address(_WS), http_publishing),
    ),
)
