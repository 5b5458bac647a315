"""What is refused before any handler sees it: bodies too large, and what is hardly HTTP."""

import json

import pytest

from config.limits import LimitSettings
from nodes import KEY, Served, serving

LIMITS = LimitSettings(body_bytes=2_000, data_bytes=1_000)
HEAD = f"POST /v1/events HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEY}\r\n"


def problem(answer: bytes) -> tuple[int, str]:
    """Status and code of the first response in `answer`, which is the only one."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert answer.count(b"HTTP/1.1") == 1
    assert b"application/problem+json" in head
    document = json.loads(body)
    assert int(head.split()[1]) == document["status"]
    return document["status"], document["code"]


def chunks(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


async def publish(served: Served, size: int) -> bytes:
    start = b'{"channel":"a","data":1}'
    body = start + b" " * (size - len(start))
    head = f"{HEAD}Content-Length: {size}\r\nConnection: close\r\n\r\n"
    return await served.raw(head.encode() + body)


async def test_a_body_at_the_limit_and_beyond() -> None:
    async with serving(limits=LIMITS) as served:
        assert (await publish(served, 2_000)).startswith(b"HTTP/1.1 200 ")
        assert problem(await publish(served, 2_001)) == (413, "too_large")
        assert b"Connection: close" in await publish(served, 2_001)
        # Far more than is read and dropped: the answer comes all the same.
        assert problem(await publish(served, 30_000_000)) == (413, "too_large")
        assert served.node.metrics.events_in == 1


async def test_a_body_that_is_announced_but_not_sent() -> None:
    async with serving(limits=LIMITS) as served:
        head = f"{HEAD}Content-Length: 99999999999999999999\r\nExpect: 100-continue\r\n\r\n"
        assert problem(await served.raw(head.encode())) == (413, "too_large")


async def test_a_body_in_chunks() -> None:
    async with serving(limits=LIMITS) as served:
        head = f"{HEAD}Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n".encode()
        answer = await served.raw(head + chunks(b'{"channel":"a",', b'"data":1}'))
        assert answer.startswith(b"HTTP/1.1 200 ")
        answer = await served.raw(head + chunks(b" " * 1_000, b" " * 1_000, b'{"chan'))
        assert problem(answer) == (413, "too_large")
        answer = await served.raw(head + chunks(*[b" " * 60_000] * 500))
        assert problem(answer) == (413, "too_large")
        await served.node.lifecycle.requests_done()


async def test_a_head_request_gets_no_body() -> None:
    async with serving(limits=LIMITS) as served:
        head = b"HEAD /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 3000\r\n\r\n"
        answer = await served.raw(head + b" " * 3_000)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    "request_head",
    [
        b"GET /healthz HTTP/1.1\r\n\r\n",  # no Host
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a b\r\n\r\n",
    ],
)
async def test_a_malformed_request_is_a_problem(request_head: bytes) -> None:
    async with serving() as served:
        answer = await served.raw(request_head)
        assert problem(answer) == (400, "bad_request")


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"POST /v1/events HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        b"POST /v1/events HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v1/events HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)
async def test_what_is_no_http_ends_the_connection(data: bytes) -> None:
    async with serving() as served:
        assert (await served.raw(data)).startswith(b"HTTP/1.1 400 ")
        assert (await served.ask("GET", "/healthz")).status == 200


async def test_a_page_can_read_the_refusal() -> None:
    async with serving(limits=LIMITS, origins=("https://app.example.com",)) as served:
        headers = {"Origin": "https://app.example.com"}
        answer = await served.ask("POST", "/v1/events", b"x" * 3_000, headers=headers)
        assert answer.status == 413
        assert answer.headers["Access-Control-Allow-Origin"] == "https://app.example.com"


async def test_a_client_that_leaves_while_it_is_refused() -> None:
    async with serving(limits=LIMITS) as served:
        _reader, writer = await served.connect()
        writer.write(f"{HEAD}Content-Length: 5000\r\n\r\n".encode())
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        assert (await served.ask("GET", "/healthz")).status == 200


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_nothing_is_carried_out_behind_the_last_request(version: str) -> None:
    """What followed a request with `Connection: close` in the same piece was published, unanswered.

    Tornado had it in its buffer, and read on after the socket was closed, about every third time.
    """
    async with serving() as served:
        body = b'{"channel":"a","data":%d}'
        head = (
            HEAD.replace("1.1", version) + f"Connection: close\r\nContent-Length: {len(body) - 1}"
        )
        request = head.encode() + b"\r\n\r\n" + body
        for _ in range(20):
            answer = await served.raw(request % 1 + request % 2)
            assert answer.count(b"HTTP/1.1 200 ") == 1
        # What was read with the last of them is handled, if at all, before another request is.
        assert (await served.ask("GET", "/healthz")).status == 200
        assert served.node.metrics.events_in == 20


@pytest.mark.parametrize(
    "body",
    [
        b"Transfer-Encoding: gzip\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"Content-Length: %s\r\n\r\n" % (b"9" * 5_000),
    ],
)
async def test_what_is_wrong_twice_is_answered_once(body: bytes) -> None:
    """There were two: a problem for one fault, and behind it Tornado's own 400 for the other."""
    async with serving() as served:
        for head in (b"GET /healthz HTTP/1.1\r\n", HEAD.encode()):
            answer = await served.raw(head + body)
            assert answer.startswith(b"HTTP/1.1 400 ")
            assert answer.count(b"HTTP/1.1") == 1
