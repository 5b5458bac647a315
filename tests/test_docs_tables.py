"""The tables of the documents are the code's: messages, codes, settings, metrics, routes."""

import gzip
import json
import re
from typing import Any, get_args

import msgspec
import pytest
from msgspec import UNSET
from msgspec import inspect as mi

from config.checks import SCOPES
from config.settings import Settings
from doc_text import DOCUMENTS, GENERATED, prose, read, tables
from handlers.models import PublishRequest
from handlers.table import TABLE
from server import protocol
from server.closing import Closing
from server.errors import ALL
from server.metrics import (
    ARCHIVE,
    ARCHIVE_NOW,
    BROKER,
    SCHEDULES,
    SCHEDULES_NOW,
    Metrics,
)

# ---- messages


def type_word(kind: mi.Type) -> str:
    """What the documents call a type."""
    if isinstance(kind, mi.Metadata):
        return type_word(kind.type)
    if isinstance(kind, mi.UnionType):
        null = any(isinstance(each, mi.NoneType) for each in kind.types)
        (inner,) = (e for e in kind.types if not isinstance(e, mi.NoneType | mi.CustomType))
        return f"{type_word(inner)} or null" if null else type_word(inner)
    words: dict[type[mi.Type], str] = {
        mi.FloatType: "number",
        mi.IntType: "integer",
        mi.StrType: "string",
        mi.BoolType: "boolean",
        mi.LiteralType: "string",
        mi.ListType: "list",
        mi.DictType: "object",
        mi.StructType: "object",
        mi.RawType: "any value",
    }
    return words[type(kind)]


def fields_of(struct: type[msgspec.Struct]) -> dict[str, tuple[str, Any]]:
    """Each field's type in words, and its default (`msgspec.NODEFAULT` where it is required)."""
    found: dict[str, tuple[str, Any]] = {}
    for field, raw in zip(msgspec.structs.fields(struct), struct.__struct_fields__, strict=True):
        assert field.name == raw
        default = field.default
        if field.default_factory is not msgspec.NODEFAULT:
            default = field.default_factory()
        info = mi.type_info(field.type | str if field.type is UNSET else field.type)
        found[field.encode_name] = (type_word(_without_unset(info)), default)
    return found


def _without_unset(kind: mi.Type) -> mi.Type:
    if isinstance(kind, mi.UnionType):
        rest = tuple(e for e in kind.types if "Unset" not in type(e).__name__)
        return rest[0] if len(rest) == 1 else mi.UnionType(rest)
    return kind


def tag_of(struct: type[msgspec.Struct]) -> str:
    return str(struct.__struct_config__.tag)


COMMANDS = get_args(protocol.AnyCommand)
MESSAGES = [
    each
    for each in vars(protocol).values()
    if isinstance(each, type)
    and issubclass(each, msgspec.Struct)
    and each.__struct_config__.tag is not None
    and each not in COMMANDS
    and not each.__subclasses__()
    and each not in (protocol.Command, protocol.Message)
]


def section(document: str, name: str, kind: str) -> list[list[str]]:
    """The table of a message: `presence` is both, a command and a message."""
    text = read(document)
    start, end = {
        "command": ("## Commands", "## Replies"),
        "message": ("## Replies", "## Positions"),
    }[kind]
    part = text[text.index(f"\n{start}\n") : text.index(f"\n{end}")]
    found = re.search(rf"^### `{name}`$(.*?)(?=^##|\Z)", part, re.MULTILINE | re.DOTALL)
    assert found is not None, f"{document} has no {kind} `{name}`"
    return rows(found[1])


def rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def check_input(table: list[list[str]], struct: type[msgspec.Struct]) -> None:
    """Compare a table of fields that clients send: names, types, defaults."""
    fields = fields_of(struct)
    assert [cells[0].strip("`") for cells in table] == sorted(
        fields, key=[cells[0].strip("`") for cells in table].index
    )
    for cells in table:
        kind, default = fields[cells[0].strip("`")]
        assert cells[1] == kind.removesuffix(" or null"), cells
        if default is msgspec.NODEFAULT:
            assert cells[2] == "required", cells
        elif default is None or default is UNSET:
            assert cells[2] in ("none", "a new ULID"), cells
        else:
            assert cells[2] == f"`{json.dumps(default)}`", cells


def check_output(table: list[list[str]], struct: type[msgspec.Struct]) -> None:
    """Compare a table of fields that the server sends: names, types, whether always there."""
    fields = fields_of(struct)
    assert sorted(cells[0].strip("`") for cells in table) == sorted(fields)
    for cells in table:
        kind, default = fields[cells[0].strip("`")]
        always = default is msgspec.NODEFAULT
        assert (cells[2] == "always") is always, cells
        assert cells[1] == (kind if always else kind.removesuffix(" or null")), cells


@pytest.mark.parametrize("struct", COMMANDS, ids=tag_of)
def test_a_command_is_as_told(struct: type[msgspec.Struct]) -> None:
    check_input(section("docs/protocol.md", tag_of(struct), "command"), struct)


@pytest.mark.parametrize("struct", MESSAGES, ids=tag_of)
def test_a_message_is_as_told(struct: type[msgspec.Struct]) -> None:
    check_output(section("docs/protocol.md", tag_of(struct), "message"), struct)


def test_no_message_is_missing_or_made_up() -> None:
    commands = [row[0].strip("`") for row in tables("docs/protocol.md")["Commands"]]
    assert sorted(commands) == sorted(map(tag_of, COMMANDS))
    text = read("docs/protocol.md")
    part = text[text.index("\n## Replies\n") : text.index("\n## Positions")]
    assert sorted(re.findall(r"^### `(\w+)`$", part, re.M)) == sorted(map(tag_of, MESSAGES))
    replies = {row[1].strip("`") for row in tables("docs/protocol.md")["Commands"]}
    assert replies <= set(map(tag_of, MESSAGES))


def test_a_member_is_as_told() -> None:
    check_output(tables("docs/protocol.md")["A member"], protocol.MemberItem)


def test_an_event_to_publish_is_as_told() -> None:
    check_input(tables("docs/http.md")["Publish"], PublishRequest)


def test_the_close_codes_are_as_told() -> None:
    told = [tuple(row[:3]) for row in tables("docs/protocol.md")["Close codes"]]
    assert told == [
        (str(each.code), f"`{each.reason}`", "yes" if each.come_back else "no") for each in Closing
    ]


def test_the_error_codes_are_as_told() -> None:
    told = [tuple(row[:3]) for row in tables("docs/protocol.md")["Error codes"]]
    assert told == [
        (f"`{each.code}`", str(each.status), "yes" if each.retry else "no") for each in ALL
    ]


# ---- settings, metrics, routes


def values(struct: msgspec.Struct, before: str = "") -> dict[str, Any]:
    """Every setting by its path, with its default."""
    found: dict[str, Any] = {}
    for name in struct.__struct_fields__:
        value = getattr(struct, name)
        if isinstance(value, msgspec.Struct):
            found |= values(value, f"{before}{name}.")
        else:
            found[before + name] = value
    return found


SETTINGS = values(Settings())
SECTIONS = {path.partition(".")[0] for path in SETTINGS if "." in path}
UNITS = {"s": 1, "ms": 1, "minutes": 60, "days": 86_400, "KiB": 1 << 10, "MiB": 1 << 20, "": 1}
# Files and modules look like settings.
_NO_SETTING = re.compile(r"\.(py|md|toml|secret|lock)$")


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if name != GENERATED])
def test_every_setting_that_is_named_exists(document: str) -> None:
    named = re.findall(r"`(\w+\.\w+)`", prose(document))
    for name in named:
        if name.partition(".")[0] in SECTIONS and not _NO_SETTING.search(name):
            assert name in SETTINGS, f"{document}: {name}"
    for name in re.findall(r"GALECAST_([A-Z_]+)", read(document)):
        known = {path.replace(".", "_").upper() for path in SETTINGS} | {"CONFIG"}
        assert name in known, f"{document}: GALECAST_{name}"


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if name != GENERATED])
def test_every_default_that_is_told_is_one(document: str) -> None:
    """`10 s (`session.connect_timeout_s`)` and the same the other way round."""
    text = prose(document)
    told = [
        (name, number, unit)
        for number, unit, name in re.findall(r"\b(\d[\d,]*) ?([A-Za-z]*)\s\(`([\w.]+)`", text)
    ] + re.findall(r"`([\w.]+)`\s\((\d[\d,]*) ?([A-Za-z]*)\)", text)
    for name, number, unit in told:
        if name in SETTINGS:
            value = int(number.replace(",", "")) * UNITS.get(unit, 1)
            assert SETTINGS[name] == value, f"{document}: {name} is {SETTINGS[name]}"


def families() -> dict[str, set[str]]:
    """Each metric of ours as it is queried, with its labels."""
    metrics = Metrics(version="1")
    metrics.bind(channels=int, events_held=int, subscriptions=int)
    metrics.count(lambda: dict.fromkeys(BROKER, 0))
    metrics.archive(lambda: dict.fromkeys([*ARCHIVE, *ARCHIVE_NOW], 0))
    metrics.schedules(lambda: dict.fromkeys(SCHEDULES | SCHEDULES_NOW, 0))
    found: dict[str, set[str]] = {}
    metrics.http_request("GET", "/", 200, 0.0)

    class Kind:
        transport, label = "ws", "json"

    metrics.session_opened(Kind())
    for line in metrics.exposition(None)[0].decode().splitlines():
        match = re.match(r"(galecast_\w+?)(?:_(?:bucket|count|sum|created))?(?:\{(.*?)\})? ", line)
        if match and not line.startswith("#"):
            labels = set(re.findall(r"(\w+)=", match[2] or "")) - {"le"}
            found.setdefault(match[1], set()).update(labels)
    return found


def test_the_metrics_are_as_told() -> None:
    told = {
        row[0].strip("`"): set(re.findall(r"`(\w+)`", row[1]))
        for row in tables("docs/operations.md")["Metrics"]
    }
    assert told == families()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_metric_that_is_named_exists(document: str) -> None:
    assert set(re.findall(r"galecast_[a-z]\w+", read(document))) <= set(families())


def test_every_route_is_told() -> None:
    """Each by a request, or by its path."""
    text = re.sub(r"\$URL", "", read("docs/http.md"))
    for route in TABLE:
        if "/static/" in route.path or route.path in ("/", "/v1/ws", "/v1/sse"):
            continue
        path = re.sub(r"\\\{\w+\\\}", r"[^/\\s\"?]+", re.escape(route.path))
        assert re.search(rf"{path}(?![\w/])", text), route.path


@pytest.mark.parametrize(
    ("operation", "document", "heading"),
    [("history", "docs/http.md", "History"), ("stream", "docs/protocol.md", "Server-Sent Events")],
)
def test_the_parameters_are_as_told(operation: str, document: str, heading: str) -> None:
    (found,) = (each for route in TABLE for each in route.operations if each.name == operation)
    known = {each.name for each in found.parameters if each.where == "query"}
    told = {row[0].strip("`") for row in tables(document)[heading] if row[0].startswith("`")}
    assert told & known == known


def test_the_scopes_are_as_told() -> None:
    told = [row[0].strip("`") for row in tables("docs/security.md")["API keys"]]
    assert sorted(told) == sorted(SCOPES)


# ---- the library for browsers

CLIENTS = "docs/clients.md"
LIBRARY = read("static/galecast.js")


def one(pattern: str) -> str:
    """The one place of the library that a pattern finds."""
    (found,) = re.findall(pattern, LIBRARY, re.DOTALL | re.MULTILINE)
    return str(found)


def told(heading: str) -> list[str]:
    """What begins the rows of the tables below a heading, as code."""
    return [
        name
        for row in tables(CLIENTS)[heading]
        for name in re.findall(r"`(\w+)[^`]*`(?:,|$)", row[0])
    ]


def fields(declaration: str) -> set[str]:
    """The names in a type such as `{ code?: string, message?: string }`."""
    return set(re.findall(r"(\w+)\??: ", declaration))


def own(name: str) -> set[str]:
    """What a class of the library has for everybody: its fields and methods."""
    body = one(rf"^export class {name} .*?\{{$(.*?)^\}}$")
    return {
        *re.findall(r"^  (?:/\*\*.*\*/ )?([a-z]\w*) = ", body, re.MULTILINE),
        *re.findall(r"^    this\.([a-z]\w*) = ", body, re.MULTILINE),
        *re.findall(r"^  (?:async )?([a-z]\w*)\(.*\) \{$", body, re.MULTILINE),
        # Of EventTarget, with types of its own.
        "addEventListener",
    } - {"constructor"}


@pytest.mark.parametrize("function", ["connect", "subscribe", "publish"])
def test_the_options_of_the_library_are_as_told(function: str) -> None:
    lines = one(rf"@typedef \{{object\}} {function.capitalize()}Options\b(.*?)\*/")
    kinds = {name: kind for kind, name in re.findall(r"@property \{(.+)\} \[(\w+)\]", lines)}
    table = {row[0].strip("`"): row[1] for row in tables(CLIENTS)[f"Options of {function}"]}
    assert set(table) == set(kinds)
    for name, kind in table.items():
        simple = {kind, kinds[name]} & {"string", "number", "boolean"}
        assert not simple or kind == kinds[name], name


def test_the_defaults_of_the_library_are_as_told() -> None:
    rows = {row[0].strip("`"): row[2].strip("`") for row in tables(CLIENTS)["Options of connect"]}
    assert rows["queue"] == one(r"\bqueue = (\d\w*)").replace("_", "")
    assert rows["retryFor"] == one(r"\bretryFor = (\d\w*)").replace("_", "")
    assert rows["transports"] == one(r"\btransports = (\[.*?\])")
    assert rows["encoding"] == one(r'\bencoding = ("\w+")')


def test_what_the_library_has_is_as_told() -> None:
    assert set(told("The connection")) == own("Connection")
    assert set(told("The subscription")) == own("Subscription")


def test_the_events_of_the_library_are_as_told() -> None:
    declared = dict(re.findall(r"(\w+): (\w+)", one(r"\{\{ ([^}]*?) \}\} SubscriptionEvents")))
    assert told("Events of a subscription") == list(declared)
    for row in tables(CLIENTS)["Events of a subscription"]:
        name = declared[row[0].strip("`")]
        declaration = one(rf"@typedef \{{Event & (\{{[^\n]*?\}})\}} {name} ")
        assert set(re.findall(r"`(\w+)`", row[1])) == fields(declaration)
    sentence = prose(CLIENTS).partition("\nA `state` event has ")[2].partition(".\n")[0]
    said = set(re.findall(r"`(\w+)`", sentence)) - {"waiting", "closed"}
    assert said == fields(one(r"@typedef \{Event & (\{[^\n]*?\})\} StateEvent "))


def test_the_words_of_the_library_are_as_told() -> None:
    assert told("States") == re.findall(r"\w+", one(r"@typedef \{([^}]*)\} ConnectionState"))
    assert told("Tokens") == re.findall(r"\w+", one(r"@typedef \{([^}]*)\} TokenReason"))


def test_the_size_of_the_library_is_as_told() -> None:
    found = re.search(r"about (\d+) KB as\s+the node sends it", prose(CLIENTS))
    assert found is not None
    size_kb = len(gzip.compress(LIBRARY.encode())) / 1000
    assert size_kb == pytest.approx(int(found[1]), rel=0.1)


def test_the_errors_of_the_library_are_as_told() -> None:
    made = set(re.findall(r'new GalecastError\(\s*"(\w+)"', LIBRARY))
    assert set(told("Errors")) == made
    assert set(told("Rejected")) <= made
