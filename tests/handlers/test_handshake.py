from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tornado.httputil import HTTPHeaders

from handlers.handshake import (
    Accepted,
    HandshakeRejected,
    accept_upgrade,
    check_origin,
    normal_origin,
    response_head,
)

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT_KEY = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # of the example in RFC 6455 1.3


def request_headers(**changes: str | list[str] | None) -> HTTPHeaders:
    """The headers of a good request; a change to None leaves one out, a list repeats its line."""
    values: dict[str, str | list[str] | None] = {
        "Host": "example.com",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec_WebSocket_Version": "13",
        "Sec_WebSocket_Key": KEY,
    }
    headers = HTTPHeaders()
    for name, value in (values | changes).items():
        for line in [] if value is None else [value] if isinstance(value, str) else value:
            headers.add(name.replace("_", "-"), line)
    return headers


def accept(**changes: str | list[str] | None) -> Accepted:
    return accept_upgrade("GET", "HTTP/1.1", request_headers(**changes))


def rejection(
    method: str = "GET", version: str = "HTTP/1.1", **changes: str | list[str] | None
) -> HandshakeRejected:
    with pytest.raises(HandshakeRejected) as caught:
        accept_upgrade(method, version, request_headers(**changes))
    assert caught.value.code == "bad_request"
    assert str(caught.value) == caught.value.text
    return caught.value


# ---- the request


def test_example_of_the_rfc() -> None:
    assert accept() == Accepted(ACCEPT_KEY, "galecast.v1.json", offered=False)


@pytest.mark.parametrize(
    "changes",
    [
        {"Upgrade": "WebSocket"},
        {"Upgrade": "h2c, websocket"},
        {"Upgrade": ["h2c", "websocket"]},
        {"Connection": "keep-alive, Upgrade"},
        {"Connection": ["keep-alive", "UPGRADE"]},
        {"Sec_WebSocket_Protocol": ", ,"},
    ],
)
def test_other_spellings_are_accepted(changes: dict[str, str | list[str]]) -> None:
    assert accept(**changes) == Accepted(ACCEPT_KEY, "galecast.v1.json", offered=False)


@pytest.mark.parametrize("method", ["POST", "HEAD", "get", "CONNECT"])
def test_method_is_get(method: str) -> None:
    rejected = rejection(method=method)

    assert (rejected.status, rejected.headers) == (405, (("Allow", "GET"),))


@pytest.mark.parametrize("version", ["HTTP/1.0", "HTTP/2", "HTTP/1.2", ""])
def test_http_version(version: str) -> None:
    assert rejection(version=version).status == 400


@pytest.mark.parametrize(
    "changes",
    [
        {"Upgrade": None},
        {"Upgrade": "h2c"},
        {"Upgrade": "websocket2"},
        {"Connection": None},
        {"Connection": "keep-alive"},
        {"Connection": "upgrades"},
    ],
)
def test_request_that_is_no_upgrade(changes: dict[str, Any]) -> None:
    rejected = rejection(**changes)

    assert rejected.status == 426
    assert dict(rejected.headers) == {"Upgrade": "websocket", "Connection": "Upgrade"}


@pytest.mark.parametrize("version", [None, "8", "12", "13, 8", "013", ["13", "13"], ""])
def test_websocket_version(version: str | list[str] | None) -> None:
    rejected = rejection(Sec_WebSocket_Version=version)

    assert rejected.status == 426
    assert dict(rejected.headers)["Sec-WebSocket-Version"] == "13"
    assert dict(rejected.headers)["Upgrade"] == "websocket"


@pytest.mark.parametrize(
    "key",
    [
        None,
        "",
        [KEY, KEY],
        f"{KEY}, {KEY}",
        base64.b64encode(bytes(15)).decode(),
        base64.b64encode(bytes(17)).decode(),
        base64.b64encode(bytes(18)).decode(),
        "dGhlIHNhbXBsZSBub25jZQ",
        "dGhlIHNhbXBsZSBub25jZ!==",
        "dGhlIHNhbXBsZSBub25jZ\xe9==",
        "dGhl-HNhbXBsZSBub25jZQ==",
    ],
)
def test_key_is_16_bytes_in_base64_and_there_once(key: str | list[str] | None) -> None:
    assert rejection(Sec_WebSocket_Key=key).status == 400


# ---- subprotocols


@pytest.mark.parametrize(
    ("offers", "chosen"),
    [
        ("galecast.v1.json", "galecast.v1.json"),
        ("galecast.v1.msgpack", "galecast.v1.msgpack"),
        ("galecast.v1.msgpack, galecast.v1.json", "galecast.v1.msgpack"),
        ("chat,galecast.v1.json,galecast.v1.msgpack", "galecast.v1.json"),
        (["galecast.v2.json", "galecast.v1.msgpack"], "galecast.v1.msgpack"),
    ],
)
def test_first_offer_that_is_known_wins(offers: str | list[str], chosen: str) -> None:
    assert accept(Sec_WebSocket_Protocol=offers) == Accepted(ACCEPT_KEY, chosen, offered=True)


@pytest.mark.parametrize("offers", ["chat", "GALECAST.V1.JSON", "galecast.v1", ["a", "b"]])
def test_unknown_offers_are_refused_and_the_known_named(offers: str | list[str]) -> None:
    rejected = rejection(Sec_WebSocket_Protocol=offers)

    assert rejected.status == 400
    assert rejected.text.endswith("use galecast.v1.json, galecast.v1.msgpack")


# ---- the response


def test_response_of_the_rfc() -> None:
    assert response_head(accept()) == (
        b"HTTP/1.1 101 Switching Protocols\r\n"
        b"Upgrade: websocket\r\n"
        b"Connection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
        b"\r\n"
    )


def test_response_names_what_was_offered_and_adds_headers() -> None:
    accepted = accept(Sec_WebSocket_Protocol="galecast.v1.msgpack")

    head = response_head(accepted, [("X-Request-Id", "r1"), ("X-A", "\xe9")])

    assert head.endswith(
        b"\r\nSec-WebSocket-Protocol: galecast.v1.msgpack\r\nX-Request-Id: r1\r\nX-A: \xe9\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [("X-A", "b\r\nX-C: d"), ("X-A", "b\n"), ("X-A", "\0"), ("X A", "b"), ("", "b"), ("X-A", "€")],
)
def test_header_that_could_split_the_response(name: str, value: str) -> None:
    with pytest.raises(ValueError, match="may not be sent"):
        response_head(accept(), [(name, value)])


# ---- origins

ALLOWED = frozenset(
    {"https://app.com", "http://localhost:3000", "HTTPS://Wide.example:443", "http://[::1]:8000"}
)


@pytest.mark.parametrize(
    "origin",
    [
        None,
        "https://app.com",
        "https://app.com:443",
        "HTTPS://APP.com",
        "http://localhost:3000",
        "https://wide.example",
        "http://[::1]:8000",
    ],
)
def test_origin_is_allowed(origin: str | None) -> None:
    assert check_origin(origin, ALLOWED)


@pytest.mark.parametrize(
    "origin",
    [
        "",
        "null",
        "*",
        "app.com",
        "http://app.com",
        "http://app.com:443",
        "https://app.com:80",
        "https://app.com:8443",
        "https://app.com.evil.com",
        "https://evil-app.com",
        "https://www.app.com",
        "https://app.com.",
        "https://app.com/",
        "https://app.com/path",
        "https://app.com?x",
        "https://app.com#x",
        "https://user@app.com",
        "https://evil.com@app.com",
        "https://app.com@evil.com",
        "https://app.com:",
        "https://app.com:443:443",
        "https://app.com:99999",
        "https://app.com:0",
        "https://app.com\n",
        " https://app.com",
        "https://app.com https://app.com",
        "https://app.com,https://app.com",
        "https://аpp.com",
        "https://app.com:４４３",
        "http://localhost",
        "http://[::1]",
        "http://[::1",
        "https://",
        "//app.com",
        "file://",
    ],
)
def test_origin_is_refused(origin: str) -> None:
    assert not check_origin(origin, ALLOWED)


def test_no_origin_list_refuses_every_browser() -> None:
    assert not check_origin("https://app.com", frozenset())
    assert not check_origin("null", frozenset({"null"}))
    assert check_origin(None, frozenset())


def test_normal_origin() -> None:
    assert normal_origin("HTTP://A.b:80") == "http://a.b"
    assert normal_origin("https://a.b:80") == "https://a.b:80"
    assert normal_origin("app://local") == "app://local"
    assert normal_origin("https://a.b:65535") == "https://a.b:65535"
    assert normal_origin("a.b") is None
    assert normal_origin("https://a.b:0") is None
    assert normal_origin("https://a.b:65536") is None


@settings(deadline=None)
@given(st.text(alphabet=":.,/@?#[]% \n\x00034٤。amo", max_size=12))
def test_what_is_allowed_by_chance_is_on_the_list(tail: str) -> None:
    origin = f"https://app.com{tail}"

    assert check_origin(origin, ALLOWED) == (tail.lower() in {"", ":443", ":0443", ":00443"})


# ---- compression


def answer_to(*offers: str) -> str | None:
    headers = request_headers(Sec_WebSocket_Extensions=list(offers))
    return accept_upgrade("GET", "HTTP/1.1", headers, deflate=True).deflate


PLAIN = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
NARROW = f"{PLAIN}; server_max_window_bits=12"


@pytest.mark.parametrize(
    ("offers", "answer"),
    [
        (["permessage-deflate"], PLAIN),
        (["permessage-deflate; client_max_window_bits"], PLAIN),  # Chromium
        # The library websockets.
        (["permessage-deflate; server_max_window_bits=12; client_max_window_bits=12"], NARROW),
        (["permessage-deflate;server_no_context_takeover;client_no_context_takeover"], PLAIN),
        (["permessage-deflate; server_max_window_bits=15"], NARROW),
        (['permessage-deflate; server_max_window_bits = "13"'], NARROW),
        (["permessage-deflate; client_max_window_bits=8"], PLAIN),
        # The first of several that can be honoured, also over several lines.
        (["permessage-deflate; server_max_window_bits=9, permessage-deflate"], PLAIN),
        (["permessage-deflate; server_max_window_bits=9", "permessage-deflate"], PLAIN),
        (["permessage-deflate; server_max_window_bits=14, permessage-deflate"], NARROW),
        (["x-webkit-deflate-frame, permessage-bzip2; a=1, permessage-deflate"], PLAIN),
        ([", ,permessage-deflate,"], PLAIN),
    ],
)
def test_offer_of_compression_is_answered(offers: list[str], answer: str) -> None:
    assert answer_to(*offers) == answer


@pytest.mark.parametrize(
    "offer",
    [
        "",
        "x-webkit-deflate-frame",
        "Permessage-Deflate",
        "permessage-deflate; server_max_window_bits=8",
        "permessage-deflate; server_max_window_bits=11",
        "permessage-deflate; server_max_window_bits",
        "permessage-deflate; server_max_window_bits=",
        "permessage-deflate; server_max_window_bits=16",
        "permessage-deflate; server_max_window_bits=7",
        "permessage-deflate; server_max_window_bits=015",
        "permessage-deflate; server_max_window_bits=1\u00b2",
        "permessage-deflate; server_max_window_bits=+12",
        "permessage-deflate; server_max_window_bits=12; server_max_window_bits=12",
        "permessage-deflate; client_max_window_bits=16",
        "permessage-deflate; client_max_window_bits=x",
        "permessage-deflate; client_max_window_bits; client_max_window_bits=10",
        "permessage-deflate; server_no_context_takeover=1",
        "permessage-deflate; client_no_context_takeover=true",
        "permessage-deflate; client_no_context_takeover; client_no_context_takeover",
        "permessage-deflate; no_such_parameter",
        "permessage-deflate; permessage-deflate",
        "permessage-deflate;",
        'permessage-deflate; server_max_window_bits="12',
        "permessage-deflate server_no_context_takeover",
        "permessage-deflate; client max window bits",
    ],
)
def test_offer_that_cannot_be_honoured_is_declined(offer: str) -> None:
    assert answer_to(offer) is None
    # Others beside it are judged on their own.
    assert answer_to(offer, "permessage-deflate") == PLAIN


def test_compression_is_off_unless_asked_for() -> None:
    accepted = accept(Sec_WebSocket_Extensions="permessage-deflate")

    assert accepted.deflate is None
    assert b"Extensions" not in response_head(accepted)


def test_answer_stands_in_the_response() -> None:
    head = response_head(Accepted(ACCEPT_KEY, "galecast.v1.json", offered=True, deflate=PLAIN))

    assert head.count(b"Sec-WebSocket-Extensions") == 1
    assert f"\r\nSec-WebSocket-Extensions: {PLAIN}\r\n".encode() in head


@given(st.text(alphabet='permsag-dfltw_xbi0159;,= "\\\t', max_size=80))
def test_any_offer_is_answered_or_declined(offer: str) -> None:
    assert answer_to(f"permessage-deflate; {offer}".strip()) in (None, PLAIN, NARROW)
