"""Who is connected here? This file: how a load client speaks to this server."""

import re
from collections.abc import Callable, Sequence
from typing import Final, Literal

import msgspec

from server.load_frames import PONG_MASKED, masked
from server.load_target import Publishing, Target, Wire

Encoding = Literal["json", "msgpack", "mixed"]
How = Literal["ws", "http", "array", "ndjson"]

_KEY: Final = "MDEyMzQ1Njc4OWFiY2RlZg=="
# Two chances before each ping.
_PART: Final = 0.4
_PING_TEXT: Final = re.compile(rb'"ping_s":(\d{1,9})')
_PING_PACKED: Final = re.compile(rb"\xa6ping_s([\x00-\x7f]|\xcc.|\xcd..)", re.DOTALL)
_MOST_PAUSE_S: Final = 30.0
_RATE_LIMITED: Final = b'"rate_limited"'
_RETRY_AFTER: Final = re.compile(rb"(?i)\r\nretry-after: *(\d{1,4})\r\n")
_TYPES: Final[dict[How, str]] = {
    "http": "application/json",
    "array": "application/json",
    "ndjson": "application/x-ndjson",
}

Event = tuple[str, bytes]


def galecast(
    host: str,
    port: int,
    *,
    netloc: str | None = None,
    prefix: str = "",
    credentials: Sequence[str] = (),
    encoding: Encoding = "json",
    publish: How = "ws",
) -> Target:
    """Return a target for a node, or for what stands before several.

    Sessions and publishers show `credentials` in turn, keys or tokens; the publisher the first.
    Without any, sessions are anonymous, and cannot publish over HTTP.
    """
    where = f"{host}:{port}" if netloc is None else netloc
    shown = [f"Authorization: Bearer {text}\r\n" for text in credentials] or [""]

    def hello(name: str) -> Callable[[int], bytes]:
        texts = [_handshake(prefix, where, each, name) for each in shown]
        return lambda number: texts[number % len(texts)]

    wires = []
    if encoding != "msgpack":
        wires.append(_wire("json", hello("json"), anonymous=not credentials))
    if encoding != "json":
        wires.append(_wire("msgpack", hello("msgpack"), anonymous=not credentials))
    spoken = wires[0].name

    def publishing() -> Publishing:
        if publish == "ws":
            return _over_session(spoken, hello(spoken)(0), anonymous=not credentials)
        return _over_http(publish, f"{prefix}/v1/events", where, shown[0])

    return Target(
        name="galecast",
        host=host,
        port=port,
        wires=tuple(wires),
        publishing=publishing,
        again=again,
    )


def again(answer: bytes) -> float | None:
    """Return how long to wait when too many came at once; None for any other refusal."""
    if _RATE_LIMITED not in answer:
        return None
    found = _RETRY_AFTER.search(answer)
    return min(_MOST_PAUSE_S, float(found[1])) if found else 1.0


def _keepalive_of(said: bytes) -> float | None:
    """Return how often a session has to be heard, by what it was told when it connected."""
    if found := _PING_TEXT.search(said):
        ping_s = int(found[1])
    elif found := _PING_PACKED.search(said):
        ping_s = msgspec.msgpack.decode(found[1], type=int)
    else:
        return None
    return ping_s * _PART


def _handshake(prefix: str, where: str, shown: str, encoding: str) -> bytes:
    return (
        f"GET {prefix}/v1/ws HTTP/1.1\r\nHost: {where}\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Key: {_KEY}\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Protocol: galecast.v1.{encoding}\r\n{shown}\r\n"
    ).encode()


def _mark(encoding: str, text: str) -> bytes:
    """Return how the value of `type` reads, so that it is not found in a channel's name."""
    if encoding == "json":
        return b'"type":"%s"' % text.encode()
    return msgspec.msgpack.encode({"type": text})[1:]


def _message(encoding: str, **fields: object) -> bytes:
    if encoding == "json":
        return masked(msgspec.json.encode(fields))
    return masked(msgspec.msgpack.encode(fields), binary=True)


def _wire(encoding: str, hello: Callable[[int], bytes], *, anonymous: bool) -> Wire:
    begin = _message(encoding, type="connect", ref=1) if anonymous else b""

    def first(channels: Sequence[str]) -> bytes:
        return begin + b"".join(
            _message(encoding, type="subscribe", ref=ref, channel=name)
            for ref, name in enumerate(channels, 2)
        )

    return Wire(
        name=encoding,
        hello=hello,
        first=first,
        ready=_mark(encoding, "subscribed"),
        keepalive_of=_keepalive_of,
        refused=_mark(encoding, "error"),
    )


def _over_session(encoding: str, hello: bytes, *, anonymous: bool) -> Publishing:
    ref = 1

    def build(events: Sequence[Event]) -> bytes:
        nonlocal ref
        frames = []
        for channel, data in events:
            ref += 1
            if encoding == "json":
                text = b'{"type":"publish","ref":%d,"channel":"%s","data":"%s"}'
                frames.append(masked(text % (ref, channel.encode(), data)))
            else:
                fields = {"type": "publish", "ref": ref, "channel": channel, "data": data.decode()}
                frames.append(masked(msgspec.msgpack.encode(fields), binary=True))
        return frames[0] if len(frames) == 1 else b"".join(frames)

    return Publishing(
        name="ws",
        build=build,
        acked=_mark(encoding, "published"),
        refused=_mark(encoding, "error"),
        closing=_mark(encoding, "closing"),
        hello=hello,
        first=_message(encoding, type="connect", ref=1) if anonymous else b"",
        ready=_mark(encoding, "connected"),
        keepalive=PONG_MASKED,
    )


def _over_http(how: How, path: str, where: str, shown: str) -> Publishing:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {where}\r\n{shown}Content-Type: {_TYPES[how]}\r\n"
        "Content-Length: %d\r\n\r\n"
    ).encode()

    def build(events: Sequence[Event]) -> bytes:
        texts = [b'{"channel":"%s","data":"%s"}' % (name.encode(), data) for name, data in events]
        if how == "ndjson":
            body = b"\n".join(texts) + b"\n"
        elif how == "array":
            body = b"[" + b",".join(texts) + b"]"
        else:
            (body,) = texts
        return head % len(body) + body

    # Each result of an event has a position, each refusal says whether to retry.
    return Publishing(name=how, build=build, acked=b'"position":', refused=b'"retry":')
