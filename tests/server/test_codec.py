"""Codecs: one meaning in two encodings, and a readable answer to everything else."""

import json
import tracemalloc
from typing import Any

import msgpack  # type: ignore[import-untyped]
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, Raw

from config.limits import LimitSettings
from pubsub.event import Event
from pubsub.position import Position
from pubsub.presence import Member
from server.codec import (
    JSON,
    MSGPACK,
    Codec,
    Undecodable,
    ValueLimits,
    check_tags,
    checked_data,
    checked_info,
)
from server.errors import BadRef, BadRequest, InvalidData, Refused, TooLarge
from server.protocol import (
    Connect,
    EventsReply,
    HistoryCommand,
    MembersReply,
    Ping,
    Pong,
    Presence,
    Publish,
    Refresh,
    Subscribe,
    Unsubscribe,
)

LIMITS = ValueLimits(depth=8, data_bytes=1_000, info_bytes=100, tags=3)
CODECS = pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=["json", "msgpack"])

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


def pack(codec: Codec, content: object) -> bytes:
    packed: bytes = msgpack.packb(content) if codec.binary else json.dumps(content).encode()
    return packed


def unpacked(codec: Codec, payload: bytes) -> Any:
    return msgpack.unpackb(payload) if codec.binary else json.loads(payload)


def plain(command: msgspec.Struct) -> dict[str, object]:
    """A command's fields, with JSON text read, so that blanks do not count."""
    return {
        name: msgspec.json.decode(value) if isinstance(value, Raw) else value
        for name, value in msgspec.structs.asdict(command).items()
    }


def refused(codec: Codec, payload: bytes, limits: ValueLimits = LIMITS) -> tuple[Refused, Any]:
    with pytest.raises(Undecodable) as caught:
        codec.decode(payload, limits)
    assert str(caught.value) == caught.value.refused.message
    return caught.value.refused, caught.value.ref


# Commands

refs = st.integers(1, 2**53 - 1)
counts = st.integers(1, 100_000)
commands = st.one_of(
    st.fixed_dictionaries({"type": st.just("connect"), "ref": refs}, optional={"token": texts}),
    st.fixed_dictionaries(
        {"type": st.just("subscribe"), "ref": refs, "channel": texts},
        optional={"since": texts, "rewind": counts, "presence": st.booleans()},
    ),
    st.fixed_dictionaries(
        {"type": st.just("publish"), "ref": refs, "channel": texts, "data": values},
        optional={
            "name": texts,
            "tags": st.dictionaries(texts, texts, max_size=3),
            "id": texts,
            "echo": st.booleans(),
        },
    ),
    st.fixed_dictionaries({"type": st.just("unsubscribe"), "ref": refs, "channel": texts}),
    st.fixed_dictionaries(
        {"type": st.just("presence"), "ref": refs, "channel": texts},
        optional={"info": values, "cursor": texts},
    ),
    st.fixed_dictionaries(
        {"type": st.just("history"), "ref": refs, "channel": texts},
        optional={"limit": counts, "before": texts},
    ),
    st.fixed_dictionaries({"type": st.just("refresh"), "ref": refs, "token": texts}),
    st.fixed_dictionaries({"type": st.just("ping"), "ref": refs}),
)


@given(commands, st.dictionaries(st.sampled_from(["x", "y"]), values))
def test_equal_content_gives_equal_commands(content: dict[str, Any], more: dict[str, Any]) -> None:
    limits = ValueLimits(depth=64, data_bytes=100_000, info_bytes=100_000, tags=3)
    one = JSON.decode(pack(JSON, content | more), limits)
    two = MSGPACK.decode(pack(MSGPACK, content | more), limits)
    assert type(one) is type(two)
    assert plain(one) == plain(two)
    assert content == content | {
        name: value for name, value in plain(one).items() if name in content
    }


@CODECS
def test_every_command_and_its_defaults(codec: Codec) -> None:
    def read(**content: object) -> msgspec.Struct:
        return codec.decode(pack(codec, content), LIMITS)

    assert read(type="connect", ref=1) == Connect(ref=1, token=None)
    assert read(type="connect", ref=1, token="t") == Connect(ref=1, token="t")
    assert read(type="subscribe", ref=2, channel="a") == Subscribe(ref=2, channel="a")
    assert read(type="publish", ref=3, channel="a", data={"b": [1]}, echo=False) == Publish(
        ref=3, channel="a", data=Raw(b'{"b": [1]}' if codec is JSON else b'{"b":[1]}'), echo=False
    )
    assert read(type="unsubscribe", ref=4, channel="a") == Unsubscribe(ref=4, channel="a")
    assert read(type="presence", ref=5, channel="a") == Presence(ref=5, channel="a", info=UNSET)
    assert read(type="presence", ref=5, channel="a", info=None) == Presence(
        ref=5, channel="a", info=Raw(b"null")
    )
    assert read(type="history", ref=6, channel="a") == HistoryCommand(
        ref=6, channel="a", limit=50, before=None
    )
    assert read(type="refresh", ref=7, token="t") == Refresh(ref=7, token="t")
    assert read(type="ping", ref=8) == Ping(ref=8)


def test_data_is_the_publishers_text_without_what_surrounds_it() -> None:
    command = JSON.decode(
        b'{"data" : \r\n {"a" :\n1.0 }  , "ref":1,"channel":"c", "type":"publish"}', LIMITS
    )
    assert isinstance(command, Publish)
    assert bytes(command.data) == b'{"a" : 1.0 }'


def test_of_a_repeated_key_the_last_wins() -> None:
    command = JSON.decode(b'{"type":"ping","ref":1,"ref":2}', LIMITS)
    assert command == Ping(ref=2)
    assert MSGPACK.decode(b"\x83\xa4type\xa4ping\xa3ref\x01\xa3ref\x02", LIMITS) == command


# Refs and types


@CODECS
@pytest.mark.parametrize("ref", [None, True, "1", 1.0, 0, -1, 2**53, 2**64 - 1, [1], {}])
def test_a_ref_is_a_positive_integer(codec: Codec, ref: object) -> None:
    for type_ in ("ping", "nonsense"):
        error, answered = refused(codec, pack(codec, {"type": type_, "ref": ref}))
        assert isinstance(error, BadRef)
        assert error.message == "`ref` must be an integer from 1 to 2^53-1"
        assert answered is None


@CODECS
def test_a_ref_must_be_there(codec: Codec) -> None:
    assert isinstance(refused(codec, pack(codec, {"type": "ping"}))[0], BadRef)
    assert isinstance(refused(codec, pack(codec, {}))[0], BadRef)


def test_a_ref_that_no_double_holds() -> None:
    for ref in (b"1e999", b"9" * 30, b"1" * 5000):
        assert isinstance(refused(JSON, b'{"type":"ping","ref":' + ref + b"}")[0], BadRef)


@CODECS
@pytest.mark.parametrize("content", [{}, {"type": "pang"}, {"type": 5}, {"type": None}])
def test_an_unknown_type_is_told_the_known_ones(codec: Codec, content: dict[str, Any]) -> None:
    error, ref = refused(codec, pack(codec, content | {"ref": 9}))
    assert isinstance(error, BadRequest)
    assert error.message == (
        "`type` must be one of connect, history, ping, presence, publish, refresh, subscribe, "
        "unsubscribe"
    )
    assert ref == 9


@CODECS
@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"type": "subscribe", "channel": 5}, "Expected `str`, got `int` - at `$.channel`"),
        ({"type": "subscribe"}, "Object missing required field `channel`"),
        ({"type": "publish", "channel": "a"}, "Object missing required field `data`"),
        ({"type": "history", "channel": "a", "limit": 0}, "Expected `int` >= 1 - at `$.limit`"),
        (
            {"type": "subscribe", "channel": "a", "rewind": True},
            "Expected `int | null`, got `bool`",
        ),
        ({"type": "publish", "channel": "a", "data": 1, "tags": {"k": 1}}, "Expected `str`"),
        ({"type": "publish", "channel": "a", "data": 1, "echo": 1}, "Expected `bool`"),
    ],
)
def test_a_wrong_field_is_named(codec: Codec, content: dict[str, Any], said: str) -> None:
    error, ref = refused(codec, pack(codec, content | {"ref": 9}))
    assert isinstance(error, BadRequest)
    assert error.message.startswith(said)
    assert ref == 9


def test_what_a_codec_refuses_it_does_not_repeat() -> None:
    secret = "canary" * 3
    for content in (
        {"type": secret, "ref": 1},
        {"type": "connect", "ref": secret},
        {"type": "connect", "ref": 1, "token": [secret]},
        {"type": "publish", "ref": 1, "channel": 5, "data": secret},
        secret,
    ):
        for codec in (JSON, MSGPACK):
            assert secret not in refused(codec, pack(codec, content))[0].message


# Bytes that are no command


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (b"", "the command is empty"),
        (b"[]", "the command must be an object"),
        (b"null", "the command must be an object"),
        (b'"connect"', "the command must be an object"),
        (b'{"type":"ping","ref":1', "the command is not valid JSON: it ends too early"),
        (b'{"type":"ping","ref":1}x', "the command is not valid JSON: trailing characters"),
        (b'{"type":5,"ref":1,}', "the command is not valid JSON: "),
        (b'{"type":"ping","ref":1,"x":NaN}', "the command is not valid JSON: "),
        (b'\xef\xbb\xbf{"type":"ping","ref":1}', "the command begins with a byte order mark"),
        (b"\x82\xa4type\xa4ping\xa3ref\x01", "the command is not valid JSON: "),
    ],
)
def test_what_is_no_json_object_gets_no_ref(payload: bytes, said: str) -> None:
    error, ref = refused(JSON, payload)
    assert error.message.startswith(said)
    assert isinstance(error, BadRequest)
    assert ref is None


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (b"", "the command is not valid MessagePack: it ends too early"),
        (b"\x90", "the command must be a map whose keys are strings"),
        (b"\xc0", "the command must be a map whose keys are strings"),
        (b"\x81\x01\x01", "the command must be a map whose keys are strings"),
        (b"\x81\xc4\x03ref\x01", "the command must be a map whose keys are strings"),
        (b"\x82\xa4type", "the command is not valid MessagePack: it ends too early"),
        (b"\x80x", "the command is not valid MessagePack: trailing characters"),
        (b"\xc1", "the command is not valid MessagePack: "),
        (b'{"type":"ping","ref":1}', "the command is not MessagePack, but looks like JSON"),
    ],
)
def test_what_is_no_msgpack_map_gets_no_ref(payload: bytes, said: str) -> None:
    error, ref = refused(MSGPACK, payload)
    assert isinstance(error, BadRequest)
    assert error.message.startswith(said)
    assert ref is None


def test_invalid_utf8_is_answered_to_its_ref() -> None:
    for codec, payload in (
        (JSON, b'{"type":"subscribe","ref":3,"channel":"\xff"}'),
        (MSGPACK, b"\x83\xa4type\xa9subscribe\xa3ref\x03\xa7channel\xa1\xff"),
        (JSON, b'{"type":"publish","ref":3,"channel":"\xff","data":1}'),
    ):
        error, ref = refused(codec, payload)
        assert isinstance(error, BadRequest)
        assert error.message == "the command is not valid UTF-8"
        assert ref == 3


def test_a_lone_surrogate_is_answered_to_its_ref() -> None:
    for start, kind in (
        (b'{"ref":3,"type":"publish","channel":"a","data":', InvalidData),
        (b'{"ref":3,"type":"presence","channel":"a","info":', InvalidData),
        (b'{"ref":3,"type":"subscribe","channel":', BadRequest),
    ):
        for text in (b'"\\ud800"', b'"\\ud800 and more"', b'"\\udc00"'):
            error, ref = refused(JSON, start + text + b"}")
            assert type(error) is kind
            assert error.message == "the command has a lone surrogate in a string"
            assert ref == 3


@CODECS
def test_a_nesting_bomb_is_invalid_data(codec: Codec) -> None:
    levels = 100_000
    if codec.binary:
        head = b"\x84\xa3ref\x03\xa4type\xa7publish\xa7channel\xa1a\xa4data"
        bombs = [head + b"\x91" * levels, b"\x91" * levels, b"\x81\xa1x" + b"\x91" * levels]
    else:
        head = b'{"ref":3,"type":"publish","channel":"a","data":'
        nested = b"[" * levels + b"]" * levels
        bombs = [head + nested + b"}", b'{"x":' + nested + b"}"]
    for bomb in bombs:
        error, ref = refused(codec, bomb)
        assert isinstance(error, InvalidData | BadRequest)
        assert ref is None
    error, _ = refused(codec, bombs[0])
    assert isinstance(error, InvalidData)
    assert error.reason == "limits.depth"
    assert error.message == "the command nests deeper than 8 levels"


def test_malformed_json_that_nests_is_refused_too() -> None:
    """msgspec finds the wrong field first, the second look runs into the nesting."""
    bomb = b'{"type":5,"ref":1,"x":' + b"[" * 100_000
    assert isinstance(refused(JSON, bomb)[0], InvalidData)


@pytest.mark.parametrize(
    "bomb",
    [
        b"\xdf\xff\xff\xff\xff",
        b"\x82\xa4type\xa7publish\xa4tags\xdf\x00\xff\xff\xff",
        b"\x82\xa4type\xa7publish\xa4data" + b"\xdd\x00\x00\xff\xf0" * 900,
        b"\x82\xa4type\xa7publish\xa7channel\xdb\x7f\xff\xff\xff",
    ],
)
def test_announced_lengths_reserve_nothing(bomb: bytes) -> None:
    tracemalloc.start()
    try:
        refused(MSGPACK, bomb + b"\x01" * 30_000)
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


@given(st.binary(max_size=60))
def test_any_bytes_give_a_command_or_a_refusal(payload: bytes) -> None:
    for codec in (JSON, MSGPACK):
        try:
            command = codec.decode(payload, LIMITS)
        except Undecodable as error:
            assert error.ref is None or error.ref >= 1
        else:
            assert command.ref >= 1


# Values


def publish(codec: Codec, data: object, **more: object) -> bytes:
    return pack(codec, {"type": "publish", "ref": 4, "channel": "a", "data": data, **more})


@CODECS
def test_data_and_info_have_a_size(codec: Codec) -> None:
    fits = "x" * 998
    command = codec.decode(publish(codec, fits), LIMITS)
    assert isinstance(command, Publish)
    assert msgspec.json.decode(command.data) == fits
    error, ref = refused(codec, publish(codec, fits + "x"))
    assert isinstance(error, TooLarge)
    assert (error.message, error.reason) == ("`data` is over 1000 bytes", "limits.data_bytes")
    assert ref == 4
    content = {"type": "presence", "ref": 5, "channel": "a", "info": "x" * 98}
    assert isinstance(codec.decode(pack(codec, content), LIMITS), Presence)
    error, ref = refused(codec, pack(codec, content | {"info": "x" * 99}))
    assert isinstance(error, TooLarge)
    assert error.message == "`info` is over 100 bytes"
    assert error.reason == "limits.presence_info_bytes"
    assert ref == 5


@CODECS
def test_data_and_info_have_a_depth(codec: Codec) -> None:
    value: list[object] = []
    for _ in range(7):
        value = [value]
    assert isinstance(codec.decode(publish(codec, value), LIMITS), Publish)
    error, ref = refused(codec, publish(codec, [value]))
    assert isinstance(error, InvalidData)
    assert (error.message, ref) == ("`data` nests deeper than 8 levels", 4)
    content = {"type": "presence", "ref": 5, "channel": "a", "info": [value]}
    error, ref = refused(codec, pack(codec, content))
    assert isinstance(error, InvalidData)
    assert (error.message, ref) == ("`info` nests deeper than 8 levels", 5)


@pytest.mark.parametrize(
    ("codec", "raw"),
    [
        (JSON, b"1e999"),
        (JSON, b'"\xff"'),
        (JSON, b"99999999999999999999"),
        (MSGPACK, b"\xc4\x01a"),
        (MSGPACK, b"\xd6\xff\x00\x00\x00\x00"),
        (MSGPACK, b"\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00"),
        (MSGPACK, b"\x81\x01\x01"),
        (MSGPACK, b"\xa1\xff"),
    ],
)
def test_data_outside_the_value_space_is_answered_to_its_ref(codec: Codec, raw: bytes) -> None:
    if codec.binary:
        payload = b"\x84\xa3ref\x03\xa4type\xa7publish\xa7channel\xa1a\xa4data" + raw
    else:
        payload = b'{"ref":3,"type":"publish","channel":"a","data":' + raw + b"}"
    error, ref = refused(codec, payload)
    assert isinstance(error, InvalidData)
    assert error.message.startswith("`data` ")
    assert ref == 3


@CODECS
def test_tags_have_a_number_and_a_size(codec: Codec) -> None:
    for tags in ({}, {"a": "1", "b": "2", "c": "3"}, {"k" * 256: "é" * 128}):
        command = codec.decode(publish(codec, 1, tags=tags), LIMITS)
        assert isinstance(command, Publish)
        assert command.tags == tags
    error, ref = refused(codec, publish(codec, 1, tags=dict.fromkeys("abcd", "1")))
    assert isinstance(error, InvalidData)
    assert error.message == "`tags` has more than 3 entries"
    assert (error.reason, ref) == ("limits.tags", 4)
    for tags in ({"k" * 257: "v"}, {"k": "v" * 257}, {"k": "é" * 129}):
        error, ref = refused(codec, publish(codec, 1, tags=tags))
        assert isinstance(error, InvalidData)
        assert error.message == "a key or a value of `tags` is over 256 bytes"
        assert ref == 4


def test_the_same_checks_serve_other_callers() -> None:
    assert checked_data(b' {"a":\n1}', LIMITS) == b'{"a": 1}'
    assert checked_info(b"null", LIMITS) == b"null"
    check_tags({"a": "b"}, LIMITS)
    with pytest.raises(TooLarge):
        checked_data(b" " * 1_001, LIMITS)
    with pytest.raises(InvalidData, match="`info` is empty"):
        checked_info(b"", LIMITS)


def test_limits_come_from_settings() -> None:
    settings = LimitSettings(depth=5, data_bytes=6, presence_info_bytes=7, tags=8)
    assert ValueLimits.of(settings) == ValueLimits(5, 6, 7, 8)


# Messages


def event(data: bytes, **more: Any) -> Event:
    position = Position("0123456789abcdef", 7, "fedcba9876543210")
    fields: dict[str, Any] = {"name": "message", "time": 1_789_000_000_123} | more
    return Event(channel="a.b", position=position, prev="0" * 16, id="i", data=data, **fields)


EVENT = {
    "channel": "a.b",
    "position": "0123456789abcdef-7-fedcba9876543210",
    "id": "i",
    "name": "message",
    "data": {"x": [1, 2.0, None]},
    "tags": {},
    "time": 1_789_000_000_123,
}


@CODECS
def test_an_event_as_subscribers_get_it(codec: Codec) -> None:
    text = b'{"x":[1,2.0,null]}'
    assert unpacked(codec, codec.event(event(text))) == EVENT | {"type": "event"}
    found = unpacked(codec, codec.event(event(text, user="u", tags={"k": "v"}, exclude="s")))
    assert found == EVENT | {"type": "event", "user": "u", "tags": {"k": "v"}}
    reply = EventsReply(ref=1, channel="a.b", events=[codec.item(event(text))])
    assert unpacked(codec, codec.encode(reply)) == {
        "type": "events",
        "ref": 1,
        "channel": "a.b",
        "events": [EVENT],
    }


def test_json_clients_get_the_publishers_own_text() -> None:
    text = b'{"x" :  1.50, "y":"\\u00e9"}'
    assert b'"data":' + text + b"," in JSON.event(event(text))
    assert b"\n" not in JSON.event(event(text, name="a\r\nb", user="\n"))


@given(values, texts, st.dictionaries(texts, texts, max_size=2), st.none() | texts)
def test_an_event_is_equal_in_both_encodings(
    data: object, name: str, tags: dict[str, str], user: str | None
) -> None:
    one = event(json.dumps(data).encode(), name=name, tags=tags, user=user)
    assert json.loads(JSON.event(one)) == msgpack.unpackb(MSGPACK.event(one))


@CODECS
def test_members_and_plain_messages(codec: Codec) -> None:
    member = codec.member(Member("s", None, b'{"a":1}'))
    reply = MembersReply(ref=1, channel="c", members=[member])
    assert unpacked(codec, codec.encode(reply)) == {
        "type": "members",
        "ref": 1,
        "channel": "c",
        "members": [{"session": "s", "user": None, "info": {"a": 1}}],
    }
    assert unpacked(codec, codec.encode(Pong(ref=2))) == {"type": "pong", "ref": 2}
    assert msgspec.json.decode(JSON.embed(b"[1]")) == [1]


def test_names_and_frames() -> None:
    assert (JSON.name, JSON.binary) == ("json", False)
    assert (MSGPACK.name, MSGPACK.binary) == ("msgpack", True)
