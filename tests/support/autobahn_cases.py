"""The cases of the Autobahn test suite that concern a server without compression, as data.

Each says what a client sends, how it cuts its bytes, what the server must read, and with which
RFC 6455 close code it must fail. Numbers are the suite's. Where the suite sends more than a
server of ours takes (9.*), the sizes are smaller and the shape is the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from client_frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    client_close,
    client_frame,
    cut,
    fragments,
)

# Ways to cut: the whole case in one write, a write for each frame, or so many bytes a write.
WHOLE = 0
FRAMES = -1
OCTETS = 1

LARGEST_BYTES = 1 << 20
"""The largest message among the cases."""

PROTOCOL, NOT_UTF8 = 1002, 1007

Item = tuple[int, bytes]


@dataclass(frozen=True)
class Case:
    """One case: `items` are read, then reading fails with `failure`, or does not when None.

    `failed_by` is the index of the chunk at which the failure must be known, where the suite asks
    for more than "in the end".
    """

    id: str
    frames: tuple[bytes, ...]
    items: tuple[Item, ...] = ()
    failure: int | None = None
    chop: int = FRAMES
    failed_by: int | None = None

    def chunks(self) -> Iterator[bytes]:
        """Give the writes of the client, in order."""
        if self.chop == FRAMES:
            yield from self.frames
            return
        stream = b"".join(self.frames)
        yield from cut(stream, self.chop) if self.chop else (stream,)


def cases() -> list[Case]:
    """Give all cases in the suite's order."""
    return [
        *_sizes(),
        *_pings_and_pongs(),
        *_reserved_bits(),
        *_opcodes(),
        *_fragmentation(),
        *_fragmentation_without_start(),
        *_utf8_fragmented(),
        *_utf8_sequences(),
        *_closing(),
        *_close_codes(),
        *_large(),
        *_many(),
    ]


def _sizes() -> Iterator[Case]:
    sizes = [(0, WHOLE), (125, WHOLE), (126, WHOLE), (127, WHOLE), (128, WHOLE)]
    sizes += [(65535, WHOLE), (65536, WHOLE), (65536, 997)]
    for group, opcode, byte in (("1.1", TEXT, b"*"), ("1.2", BINARY, b"\xfe")):
        for number, (size, chop) in enumerate(sizes, 1):
            payload = byte * size
            yield Case(
                f"{group}.{number}",
                (client_frame(opcode, payload),),
                ((opcode, payload),),
                chop=chop,
            )


def _pings_and_pongs() -> Iterator[Case]:
    payloads = [b"", b"Hello, world!", b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff", b"\xfe" * 125]
    for number, payload in enumerate(payloads, 1):
        yield Case(f"2.{number}", (client_frame(PING, payload),), ((PING, payload),))
    yield Case("2.5", (client_frame(PING, b"\xfe" * 126),), failure=PROTOCOL)
    longest = b"\xfe" * 125
    yield Case("2.6", (client_frame(PING, longest),), ((PING, longest),), chop=OCTETS)
    yield Case("2.7", (client_frame(PONG),), ((PONG, b""),))
    unsolicited = b"unsolicited pong payload"
    yield Case("2.8", (client_frame(PONG, unsolicited),), ((PONG, unsolicited),))
    yield Case(
        "2.9",
        (client_frame(PONG, unsolicited), client_frame(PING, b"ping payload")),
        ((PONG, unsolicited), (PING, b"ping payload")),
    )
    ten = [f"payload-{index}".encode() for index in range(10)]
    frames = tuple(client_frame(PING, payload) for payload in ten)
    items = tuple((PING, payload) for payload in ten)
    yield Case("2.10", frames, items)
    yield Case("2.11", frames, items, chop=OCTETS)


HELLO = b"Hello, world!"
_HELLO_FRAME = client_frame(TEXT, HELLO)
_HELLO_ITEM = (TEXT, HELLO)
_PING_FRAME = client_frame(PING)


def _reserved_bits() -> Iterator[Case]:
    def bad(rsv: int) -> bytes:
        return client_frame(TEXT, HELLO, rsv=rsv)

    yield Case("3.1", (bad(1),), failure=PROTOCOL)
    yield Case(
        "3.2", (_HELLO_FRAME, bad(2), _PING_FRAME), (_HELLO_ITEM,), failure=PROTOCOL, chop=WHOLE
    )
    yield Case("3.3", (_HELLO_FRAME, bad(3), _PING_FRAME), (_HELLO_ITEM,), failure=PROTOCOL)
    yield Case(
        "3.4",
        (_HELLO_FRAME, bad(4), _HELLO_FRAME, _PING_FRAME),
        (_HELLO_ITEM,),
        failure=PROTOCOL,
        chop=OCTETS,
    )
    yield Case("3.5", (client_frame(BINARY, b"\x00\xff\xfe", rsv=5),), failure=PROTOCOL)
    yield Case("3.6", (client_frame(PING, HELLO, rsv=6),), failure=PROTOCOL)
    yield Case("3.7", (client_frame(CLOSE, b"\x03\xe8", rsv=7),), failure=PROTOCOL)


def _opcodes() -> Iterator[Case]:
    for group, reserved in (("4.1", range(3, 8)), ("4.2", range(11, 16))):
        for number, opcode in enumerate(reserved, 1):
            bad = client_frame(opcode, b"" if number in (1, 3) else b"reserved opcode payload")
            case_id = f"{group}.{number}"
            if number < 3:
                yield Case(case_id, (bad,), failure=PROTOCOL)
            else:
                yield Case(
                    case_id,
                    (_HELLO_FRAME, bad, _PING_FRAME),
                    (_HELLO_ITEM,),
                    failure=PROTOCOL,
                    chop={3: WHOLE, 4: FRAMES, 5: OCTETS}[number],
                )


def _fragmentation() -> Iterator[Case]:
    first, second = fragments(TEXT, b"fragment1", b"fragment2")
    message = (TEXT, b"fragment1fragment2")
    yield Case("5.1", fragments(PING, b"fragment1", b"fragment2"), failure=PROTOCOL)
    yield Case("5.2", fragments(PONG, b"fragment1", b"fragment2"), failure=PROTOCOL)
    for case_id, chop in (("5.3", WHOLE), ("5.4", FRAMES), ("5.5", OCTETS)):
        yield Case(case_id, (first, second), (message,), chop=chop)
    ping = client_frame(PING, b"pongme")
    for case_id, chop in (("5.6", WHOLE), ("5.7", FRAMES), ("5.8", OCTETS)):
        yield Case(case_id, (first, ping, second), ((PING, b"pongme"), message), chop=chop)
    yield Case(
        "5.18",
        (first, client_frame(TEXT, b"fragment2")),
        failure=PROTOCOL,
        failed_by=1,
    )
    one, two, three, four, five = fragments(TEXT, *(f"fragment{n}".encode() for n in range(1, 6)))
    pings = [client_frame(PING, b"pongme %d!" % number) for number in (1, 2)]
    whole = (TEXT, b"fragment1fragment2fragment3fragment4fragment5")
    for case_id, chop in (("5.19", WHOLE), ("5.20", FRAMES)):
        yield Case(
            case_id,
            (one, two, pings[0], three, four, pings[1], five),
            ((PING, b"pongme 1!"), (PING, b"pongme 2!"), whole),
            chop=chop,
        )


def _fragmentation_without_start() -> Iterator[Case]:
    first, second = fragments(TEXT, b"fragment1", b"fragment2")
    message = (TEXT, b"fragment1fragment2")
    for start, fin in ((9, True), (12, False)):
        lost = client_frame(CONTINUATION, b"non-continuation payload", fin=fin)
        for offset, chop in enumerate((WHOLE, FRAMES, OCTETS)):
            yield Case(f"5.{start + offset}", (lost, _HELLO_FRAME), failure=PROTOCOL, chop=chop)
    lost = client_frame(CONTINUATION, b"fragment3", fin=False)
    fourth = client_frame(TEXT, b"fragment4")
    yield Case("5.15", (first, second, lost, fourth), (message,), failure=PROTOCOL)
    for case_id, fin in (("5.16", False), ("5.17", True)):
        lost = client_frame(CONTINUATION, b"fragment1", fin=fin)
        yield Case(case_id, (lost, first, second) * 2, failure=PROTOCOL, failed_by=0)


# The word kosme, its second letter being U+1F79 in three bytes.
GREEK = bytes.fromhex("cebae1bdb9cf83cebcceb5")
_EURO_TEXT = "Hello-µ@ßöäüàá-UTF-8!!".encode()
_SURROGATE_TEXT = GREEK + bytes.fromhex("eda080") + b"edited"


def _utf8_fragmented() -> Iterator[Case]:
    def text(case_id: str, *parts: bytes) -> Case:
        return Case(case_id, fragments(TEXT, *parts), ((TEXT, b"".join(parts)),))

    yield text("6.1.1", b"")
    yield text("6.1.2", b"", b"", b"")
    yield text("6.1.3", b"", b"middle frame payload", b"")
    yield text("6.2.1", _EURO_TEXT)
    yield text("6.2.2", "Hello-µ@ßöä".encode(), "üàá-UTF-8!!".encode())
    yield text("6.2.3", *cut(_EURO_TEXT, 1))
    yield text("6.2.4", *cut(GREEK, 1))
    yield Case("6.3.1", fragments(TEXT, _SURROGATE_TEXT), failure=NOT_UTF8)
    # Known by the surrogate's last byte; Python's decoder does not judge the first two.
    known = len(GREEK) + 2
    yield Case(
        "6.3.2", fragments(TEXT, *cut(_SURROGATE_TEXT, 1)), failure=NOT_UTF8, failed_by=known
    )
    beyond = bytes.fromhex("f4908080")
    parts = (GREEK, beyond, b"edited")
    yield Case("6.4.1", fragments(TEXT, *parts), failure=NOT_UTF8, failed_by=1)
    parts = (GREEK, beyond[:2], beyond[2:] + b"edited")
    yield Case("6.4.2", fragments(TEXT, *parts), failure=NOT_UTF8, failed_by=1)
    # In the midst of a frame: the suite wants the failure in the end and calls earlier strict.
    whole = (client_frame(TEXT, GREEK + beyond + b"edited"),)
    yield Case("6.4.3", whole, failure=NOT_UTF8, chop=len(GREEK) + 6 + 4)
    yield Case("6.4.4", whole, failure=NOT_UTF8, chop=OCTETS)


def _bytes(*hexes: str) -> list[bytes]:
    return [bytes.fromhex(text) for text in hexes]


_LONELY_STARTS = [
    b"".join(bytes((byte, 0x20)) for byte in starts)
    for starts in (
        range(0xC0, 0xE0),
        range(0xE0, 0xF0),
        range(0xF0, 0xF8),
        range(0xF8, 0xFC),
        range(0xFC, 0xFE),
    )
]
_LAST_BYTE_MISSING = _bytes(
    *("c0", "e080", "f08080", "f8808080", "fc80808080"),
    *("df", "efbf", "f7bfbf", "fbbfbfbf", "fdbfbfbfbf"),
)
_NONCHARACTERS = [
    chr((plane << 16) + last).encode() for plane in range(17) for last in (0xFFFE, 0xFFFF)
]
_EXACT = ("ceba", "cebae1bdb9", "cebae1bdb9cf83", "cebae1bdb9cf83cebc", "cebae1bdb9cf83cebcceb5")

# After the Unicode test file of Markus Kuhn, section by section.
_VALID: dict[str, list[bytes]] = {
    "6.5": [*(f"hello{letter}world".encode() for letter in "$¢€𤭢"), GREEK],
    "6.7": _bytes("00", "c280", "e0a080", "f0908080"),
    "6.9": _bytes("7f", "dfbf", "efbfbf", "f48fbfbf"),
    "6.11": _bytes("ed9fbf", "ee8080", "efbfbd", "f48fbfbf"),
    "6.22": _NONCHARACTERS,
    "6.23": [chr(code).encode() for code in range(0xFFF9, 0x10000)],
}
_INVALID: dict[str, list[bytes]] = {
    "6.8": _bytes("f888808080", "fc8480808080"),
    "6.10": _bytes("f7bfbfbf", "fbbfbfbfbf", "fdbfbfbfbfbf"),
    "6.12": [
        *_bytes("80", "bf", "80bf", "80bf80", "80bf80bf", "80bf80bf80", "80bf80bf80bf"),
        bytes(range(0x80, 0xBF)),
    ],
    "6.13": _LONELY_STARTS,
    "6.14": _LAST_BYTE_MISSING,
    "6.15": [b"".join(_LAST_BYTE_MISSING)],
    "6.16": _bytes("fe", "ff", "fefeffff"),
    "6.17": _bytes("c0af", "e080af", "f08080af", "f8808080af", "fc80808080af"),
    "6.18": _bytes("c1bf", "e09fbf", "f08fbfbf", "f887bfbfbf", "fc83bfbfbfbf"),
    "6.19": _bytes("c080", "e08080", "f0808080", "f880808080", "fc8080808080"),
    "6.20": _bytes("eda080", "edadbf", "edae80", "edafbf", "edb080", "edbe80", "edbfbf"),
    "6.21": _bytes(
        *("eda080edb080", "eda080edbfbf", "edadbfedb080", "edadbfedbfbf"),
        *("edae80edb080", "edae80edbfbf", "edafbfedb080", "edafbfedbfbf"),
    ),
}


def _utf8_sequences() -> Iterator[Case]:
    def valid(case_id: str, payload: bytes) -> Case:
        return Case(case_id, (client_frame(TEXT, payload),), ((TEXT, payload),))

    def invalid(case_id: str, payload: bytes) -> Case:
        return Case(case_id, (client_frame(TEXT, payload),), failure=NOT_UTF8)

    for size in range(1, len(GREEK) + 1):
        payload = GREEK[:size]
        build = valid if payload.hex() in _EXACT else invalid
        yield build(f"6.6.{size}", payload)
    # The one boundary that is not valid.
    yield invalid("6.11.5", bytes.fromhex("f4908080"))
    for table, build in ((_VALID, valid), (_INVALID, invalid)):
        for group, payloads in table.items():
            for number, payload in enumerate(payloads, 1):
                yield build(f"{group}.{number}", payload)


def _closing() -> Iterator[Case]:
    normal = client_close(1000)
    closed = (CLOSE, b"\x03\xe8")
    first, second = fragments(TEXT, b"fragment1", b"fragment2")
    yield Case("7.1.1", (_HELLO_FRAME, normal), (_HELLO_ITEM, closed))
    yield Case("7.1.2", (normal, normal), (closed,))
    yield Case("7.1.3", (normal, _PING_FRAME), (closed,))
    yield Case("7.1.4", (normal, _HELLO_FRAME), (closed,))
    yield Case("7.1.5", (first, normal, second), (closed,))
    large = b"BAsd7&jh" * (32 << 10)
    yield Case(
        "7.1.6",
        (client_frame(TEXT, large), normal, _PING_FRAME),
        ((TEXT, large), closed),
        chop=WHOLE,
    )
    yield Case("7.3.1", (client_close(),), ((CLOSE, b""),))
    yield Case("7.3.2", (client_frame(CLOSE, b"a"),), failure=PROTOCOL)
    yield Case("7.3.3", (normal,), (closed,))
    yield Case("7.3.4", (client_close(1000, HELLO),), ((CLOSE, b"\x03\xe8" + HELLO),))
    yield Case("7.3.5", (client_close(1000, b"*" * 123),), ((CLOSE, b"\x03\xe8" + b"*" * 123),))
    yield Case("7.3.6", (client_close(1000, b"*" * 124),), failure=PROTOCOL)
    yield Case("7.5.1", (client_close(1000, _SURROGATE_TEXT),), failure=NOT_UTF8)


def _close_codes() -> Iterator[Case]:
    good = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014]
    good += [3000, 3999, 4000, 4999]
    for number, code in enumerate(good, 1):
        payload = code.to_bytes(2, "big")
        yield Case(f"7.7.{number}", (client_frame(CLOSE, payload),), ((CLOSE, payload),))
    # 1015 is not in the suite; like 1005 and 1006 it never goes over the wire.
    bad = [0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999, 1015]
    for number, code in enumerate(bad, 1):
        yield Case(f"7.9.{number}", (client_close(code),), failure=PROTOCOL)
    yield Case("7.13.1", (client_close(5000),), failure=PROTOCOL)
    yield Case("7.13.2", (client_close(65535),), failure=PROTOCOL)


def _large() -> Iterator[Case]:
    kib = 1 << 10
    for opcode, groups in ((TEXT, ("9.1", "9.3", "9.5")), (BINARY, ("9.2", "9.4", "9.6"))):
        payload = (b"Hell-\xc2\xb5-" if opcode == TEXT else b"\x00\xff\xfe\xfd") * (256 * kib)
        whole, fragmented, chopped = groups
        for number, size in enumerate((64 * kib, 256 * kib, LARGEST_BYTES), 1):
            part = payload[:size]
            yield Case(f"{whole}.{number}", (client_frame(opcode, part),), ((opcode, part),))
        part = payload[: 256 * kib]
        for number, size in zip(count(3), (kib, 4 * kib, 16 * kib, 64 * kib), strict=False):
            yield Case(
                f"{fragmented}.{number}",
                fragments(opcode, *cut(part, size)),
                ((opcode, part),),
            )
        frames = (client_frame(opcode, payload[:LARGEST_BYTES]),)
        items = ((opcode, payload[:LARGEST_BYTES]),)
        for number, size in enumerate((64, 128, 256, 512, kib, 2 * kib), 1):
            yield Case(f"{chopped}.{number}", frames, items, chop=size)


def _many() -> Iterator[Case]:
    for group, opcode in (("9.7", TEXT), ("9.8", BINARY)):
        for number, size in enumerate((0, 16, 64, 256, 1024, 4096), 1):
            payload = b"*" * size
            yield Case(
                f"{group}.{number}",
                (client_frame(opcode, payload),) * 100,
                ((opcode, payload),) * 100,
            )
    payload = b"*" * 65536
    yield Case("10.1.1", fragments(TEXT, *cut(payload, 1300)), ((TEXT, payload),))
