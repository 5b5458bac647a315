"""Requests that two servers might read differently: to a node alone, and behind the shipped Nginx.

The corpus is `smuggling.toml`. Whatever is sent, no request is answered or carried out that was
hidden inside of another, and what comes next on the connection gets its own answer or none.
"""

from __future__ import annotations

import json
import re
import socket
import tomllib
from collections.abc import Iterator
from http.client import HTTPConnection
from itertools import count
from pathlib import Path
from typing import Any, Final

import pytest

from config.settings import hash_secret
from nginx import NginxServer
from processes import ServerProcess
from raw_http import Answer, exchange, read_answers

CORPUS: Final = tomllib.loads((Path(__file__).parent / "smuggling.toml").read_text())["case"]
KEY: Final = "smuggle.0123456789abcdef"
SETTINGS: Final = f"""
trusted_proxies = ["127.0.0.1"]
[http]
body_timeout_s = 30.0
[drain]
delay_s = 0.0
[[channels]]
match = ">"
[[keys]]
name = "smuggle"
id = "smuggle"
hash = "{hash_secret(KEY.split(".")[1])}"
scopes = {{ publish = [">"], history = [">"], channels = [">"] }}
"""
# Who says nothing for so long waits for more, where that is expected; else it is only late.
SILENCE_S: Final = 1.0
PATIENCE_S: Final = 20.0

every_case = pytest.mark.parametrize("case", CORPUS, ids=lambda case: case["name"])
_number: Final = count()


def auth(name: str) -> str:
    return (
        f"Authorization: Bearer {KEY}\r\nContent-Type: application/json\r\nX-Request-Id: {name}\r\n"
    )


def event(channel: str) -> str:
    return json.dumps({"channel": channel, "data": 1})


def post(name: str, headers: str, body: str) -> str:
    return f"POST /v1/events HTTP/1.1\r\nHost: localhost\r\n{auth(name)}{headers}\r\n{body}"


def filled(text: str, number: int) -> str:
    """Put in what stands in braces."""
    outer, inner = event(f"outer.{number}"), event(f"hidden.{number}")
    hidden = post("hidden", f"Content-Length: {len(inner)}\r\n", inner)
    values = {
        "event": outer,
        "event_size": str(len(outer)),
        "event_hex": f"{len(outer):x}",
        "event_capital": f"{len(outer):X}",
        "hidden": hidden,
        "hidden_size": str(len(hidden)),
        "hidden_hex": f"{len(hidden):x}",
        # Nginx answers it by itself, and differently.
        "inside": f"GET /healthz HTTP/1.1\r\nHost: localhost\r\n{auth('inside')}\r\n",
        "all_size": str(len("0\r\n\r\n" + hidden)),
        "auth": auth("outer"),
        "auth_lf": auth("outer").replace("\r", ""),
        "lines": "X-A: b\r\n" * 4_000,
    }

    def value(match: re.Match[str]) -> str:
        name, star, times = match[1].partition("*")
        return name * int(times) if star else values[name]

    return re.sub(r"\{(\w+(?:\*\d+)?)\}", value, text)


def bytes_of(case: dict[str, Any], number: int) -> bytes:
    """Return the case, and behind it a request that has nothing to do with it."""
    headers = case.get("headers", "")
    text = case["start"] if "start" in case else post("outer", headers, "")
    text = filled(text + case.get("body", ""), number)
    text += f"GET /v1/channels/after HTTP/1.1\r\nHost: localhost\r\n{auth('after')}"
    return (text + "Connection: close\r\n\r\n").encode("latin-1")


def reading(answers: list[Answer], ended: bool) -> str:
    """Say how it was read: the status of each answer, `end` if the next request got none."""
    words = [str(each.status) for each in answers if each.request != "after"]
    if all(each.request != "after" for each in answers):
        words.append("end" if ended else "waits")
    return " ".join(words)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    config = tmp_path_factory.mktemp("smuggling") / "galecast.toml"
    config.write_text(SETTINGS)
    with ServerProcess("--config", str(config)) as server:
        yield server


@pytest.fixture(scope="module")
def nginx(node: ServerProcess) -> Iterator[NginxServer]:
    with NginxServer([node.port] * 3) as server:
        yield server


def published(node: ServerProcess, channel: str) -> int:
    """Return how many events the node has of a channel."""
    connection = HTTPConnection("127.0.0.1", node.port, timeout=10)
    try:
        headers = {"Authorization": f"Bearer {KEY}"}
        connection.request("GET", f"/v1/channels/{channel}/events", headers=headers)
        response = connection.getresponse()
        assert response.status == 200
        return len(json.loads(response.read())["events"])
    finally:
        connection.close()


def check(case: dict[str, Any], where: str, node: ServerProcess, sock: socket.socket) -> None:
    number = next(_number)
    silence_s = SILENCE_S if case[where].endswith("waits") else PATIENCE_S
    with sock:
        got, ended = exchange(sock, bytes_of(case, number), silence_s)
    answers = list(read_answers(got, bodiless=case.get("start", "").startswith("HEAD")))
    names = [each.request for each in answers]
    two = where in case.get("two", ())

    assert names.count("hidden") == published(node, f"hidden.{number}") <= int(two), answers
    assert names.count("outer") <= 1 and names.count("after") <= 1
    done = published(node, f"outer.{number}")
    assert done == int(200 in [each.status for each in answers if each.request == "outer"]) or (
        done == 0 and case.get("start", "").split(" ")[0] in ("GET", "HEAD")
    )
    found = reading(answers, ended)
    stricter = not case.get("valid", False) and re.fullmatch("[45][0-9][0-9] end", found)
    assert found == case[where] or stricter, answers


@every_case
def test_a_node_reads_one_request(case: dict[str, Any], node: ServerProcess) -> None:
    check(case, "direct", node, socket.create_connection(("127.0.0.1", node.port)))


@every_case
def test_nginx_and_a_node_read_the_same_request(
    case: dict[str, Any], node: ServerProcess, nginx: NginxServer
) -> None:
    sock = socket.create_connection(("127.0.0.1", nginx.port))
    check(case, "nginx", node, nginx.tls().wrap_socket(sock, server_hostname="127.0.0.1"))
