"""How do bytes come in and go out? First by an upgrade: which requests may become a WebSocket.

Pure: a request's parts in, an acceptance or a named refusal out (RFC 6455 4.2, RFC 9110 7.8). With
what both ends agree on: the subprotocol, and whether messages may be compressed (RFC 7692).
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from handlers.deflate import WINDOW_BITS

JSON_PROTOCOL: Final = "galecast.v1.json"
MSGPACK_PROTOCOL: Final = "galecast.v1.msgpack"
SUBPROTOCOLS: Final = (JSON_PROTOCOL, MSGPACK_PROTOCOL)

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_UPGRADE: Final = (("Upgrade", "websocket"), ("Connection", "Upgrade"))
_VERSION: Final = "13"

# The host is an alphabet, not "anything but": user info, paths, trailing dots, lists of origins
# and look-alike letters all fail to match. What is no plain origin is nobody's origin.
_ORIGIN: Final = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://"
    r"(?P<host>[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*|\[[0-9A-Fa-f:.]+\])"
    r"(?::(?P<port>[0-9]{1,5}))?"
)
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_TOKEN: Final = _HEADER_NAME.pattern
_DEFLATE: Final = "permessage-deflate"
_NO_CONTEXT: Final = ("server_no_context_takeover", "client_no_context_takeover")
_PARAMETER: Final = re.compile(rf'({_TOKEN})(?:[ \t]*=[ \t]*(?:({_TOKEN})|"({_TOKEN})"))?')
_WINDOWS: Final = tuple(str(bits) for bits in range(8, 16))
_HEADER_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


class Headers(Protocol):
    """The request's headers, looked up without regard to case; Tornado's HTTPHeaders is one."""

    def get_list(self, name: str, /) -> list[str]:
        """Return the values of all lines of that name, in order, without white space around."""
        ...


class HandshakeRejected(Exception):
    """The request cannot become a WebSocket; answer it as plain HTTP.

    `status` is the HTTP status, `code` the contract's error code, `text` for the client's developer
    (it repeats nothing of the request), `headers` what the response must carry.
    """

    def __init__(
        self, status: int, code: str, text: str, headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        super().__init__(text)
        self.status = status
        self.code = code
        self.text = text
        self.headers = headers


@dataclass(frozen=True, slots=True)
class Accepted:
    """An upgrade that is granted.

    `subprotocol` is the one to speak; `offered` says whether the client named it, since only then
    may the response name it too (RFC 6455 4.1). `deflate` is the answer to an offer of compression,
    None where there is none.
    """

    accept_key: str
    subprotocol: str
    offered: bool
    deflate: str | None = None


def accept_upgrade(
    method: str, version: str, headers: Headers, *, deflate: bool = False
) -> Accepted:
    """Judge an upgrade request, `version` being the HTTP version as in "HTTP/1.1".

    With `deflate` an offer of compression is taken up, where there is one that can be honoured.
    Raises HandshakeRejected. The origin is not judged here: see `check_origin`.
    """
    if method != "GET":
        raise HandshakeRejected(405, "bad_request", "use GET", (("Allow", "GET"),))
    if version != "HTTP/1.1":
        raise HandshakeRejected(400, "bad_request", "a WebSocket needs HTTP/1.1")
    if "websocket" not in _lower_tokens(headers, "Upgrade"):
        raise HandshakeRejected(
            426, "bad_request", "this address speaks WebSocket: Upgrade: websocket", _UPGRADE
        )
    if "upgrade" not in _lower_tokens(headers, "Connection"):
        raise HandshakeRejected(
            426,
            "bad_request",
            "Connection: Upgrade is missing; a proxy on the way may have dropped it",
            _UPGRADE,
        )
    if headers.get_list("Sec-WebSocket-Version") != [_VERSION]:
        raise HandshakeRejected(
            426,
            "bad_request",
            f"use Sec-WebSocket-Version: {_VERSION}",
            (*_UPGRADE, ("Sec-WebSocket-Version", _VERSION)),
        )
    accept_key = _accept_key(headers)
    subprotocol = _choose_subprotocol(headers)
    return Accepted(
        accept_key,
        subprotocol or JSON_PROTOCOL,
        subprotocol is not None,
        _choose_deflate(headers) if deflate else None,
    )


def response_head(accepted: Accepted, extra_headers: Iterable[tuple[str, str]] = ()) -> bytes:
    """Build the 101 response, its final empty line included.

    Raises ValueError for an extra header that could end its line (response splitting).
    """
    lines = ["HTTP/1.1 101 Switching Protocols"]
    lines += [f"{name}: {value}" for name, value in _UPGRADE]
    lines.append(f"Sec-WebSocket-Accept: {accepted.accept_key}")
    if accepted.offered:
        lines.append(f"Sec-WebSocket-Protocol: {accepted.subprotocol}")
    if accepted.deflate is not None:
        lines.append(f"Sec-WebSocket-Extensions: {accepted.deflate}")
    for name, value in extra_headers:
        if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
            raise ValueError(f"header {name!r} may not be sent")
        lines.append(f"{name}: {value}")
    return "\r\n".join((*lines, "", "")).encode("latin-1")


def check_origin(origin: str | None, allowed: frozenset[str]) -> bool:
    """Whether a page of this origin may connect: scheme, host and port are all the same.

    No Origin means that no browser sent the request. `null`, lists, and anything that is more or
    less than scheme, host and port are refused. Entries of `allowed` are normalised as well.
    """
    if origin is None:
        return True
    wanted = normal_origin(origin)
    if wanted is None:
        return False
    return wanted in allowed or any(normal_origin(entry) == wanted for entry in allowed)


def normal_origin(origin: str) -> str | None:
    """Return an origin with scheme and host in lower case and no default port; None if it is none.

    Browsers send exactly this form (RFC 6454 6.2).
    """
    match = _ORIGIN.fullmatch(origin)
    if match is None:
        return None
    scheme, host = match["scheme"].lower(), match["host"].lower()
    port = int(match["port"]) if match["port"] else None
    if port is None or port == _DEFAULT_PORTS.get(scheme):
        return f"{scheme}://{host}"
    return f"{scheme}://{host}:{port}" if 0 < port < 1 << 16 else None


def _accept_key(headers: Headers) -> str:
    keys = headers.get_list("Sec-WebSocket-Key")
    # 16 bytes are always 24 characters; longer input is not worth decoding.
    if len(keys) == 1 and len(keys[0]) == 24:
        try:
            nonce = base64.b64decode(keys[0], validate=True)
        except ValueError:
            nonce = b""
        if len(nonce) == 16:
            # RFC 6455 4.2.2 prescribes SHA-1; nothing secret rests on it.
            digest = hashlib.sha1(keys[0].encode() + _GUID, usedforsecurity=False).digest()
            return base64.b64encode(digest).decode()
    raise HandshakeRejected(
        400, "bad_request", "Sec-WebSocket-Key must occur once, as the base64 of 16 bytes"
    )


def _choose_subprotocol(headers: Headers) -> str | None:
    """Return the first of the client's list that is known, None if it offers nothing."""
    offers = _tokens(headers, "Sec-WebSocket-Protocol")
    if not offers:
        return None
    for offer in offers:
        if offer in SUBPROTOCOLS:
            return offer
    known = ", ".join(SUBPROTOCOLS)
    raise HandshakeRejected(400, "bad_request", f"no subprotocol offered is known; use {known}")


def _choose_deflate(headers: Headers) -> str | None:
    """Return the answer to the first offer of permessage-deflate that can be honoured.

    None declines them all, and any other extension: what was not agreed on is not used.
    """
    for offer in _tokens(headers, "Sec-WebSocket-Extensions"):
        name, *parameters = (part.strip() for part in offer.split(";"))
        if name == _DEFLATE:
            answer = _answer_deflate(parameters)
            if answer is not None:
                return answer
    return None


def _answer_deflate(parameters: Iterable[str]) -> str | None:
    """Return the answer to one offer; None if it is malformed or asks for a smaller window.

    Neither side keeps context: a server may say so of both whatever was offered (RFC 7692 7.1.1).
    How far the client looks back it may choose itself, so nothing is said of that.
    """
    answer = [_DEFLATE, *_NO_CONTEXT]
    given = set()
    for parameter in parameters:
        match = _PARAMETER.fullmatch(parameter)
        if match is None or match[1] in given:
            return None
        name, value = match[1], match[2] or match[3]
        given.add(name)
        if name == "server_max_window_bits":
            if value not in _WINDOWS or int(value) < WINDOW_BITS:
                return None
            answer.append(f"{name}={WINDOW_BITS}")
        elif name == "client_max_window_bits":
            if value is not None and value not in _WINDOWS:
                return None
        elif name not in _NO_CONTEXT or value is not None:
            return None
    return "; ".join(answer)


def _tokens(headers: Headers, name: str) -> list[str]:
    """Return the elements of a list header, which may stand in several lines (RFC 9110 5.3)."""
    elements = (part.strip() for value in headers.get_list(name) for part in value.split(","))
    return [element for element in elements if element]


def _lower_tokens(headers: Headers, name: str) -> list[str]:
    return [token.lower() for token in _tokens(headers, name)]
