"""Who is connected here, and what may they do? This file: what the command line takes."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from server import cli_bench_flags

_MOST: Final = 100_000
_SHORTEST_S: Final = 0.1
_LONGEST_S: Final = 3600.0

_BROKER_HELP: Final = (
    "address of the broker; others on this machine can see a password in it: GALECAST_BROKER_URL "
    "or the settings file is safer"
)
_KEY_HELP: Final = "API key or token; others on this machine can see it: --key-file is safer"
_SERVE_MORE: Final = """\
example:
  galecast serve --dev --readings --port 8901
  galecast serve --config /etc/galecast.toml

SIGTERM ends it in good order, SIGHUP reads channel rules, keys and log level again.
"""
_CHECK_MORE: Final = """\
example:
  galecast check --config /etc/galecast.toml

The exit code is 1 if anything failed; warnings alone do not fail.
"""
_CONFIG_MORE: Final = """\
example:
  galecast config --config /etc/galecast.toml --json
"""
_MINT_MORE: Final = """\
example:
  galecast token u7 --grant 'chat.*=subscribe,publish' --grant 'news.>=subscribe' --ttl 600

Signs with token.secret of the settings. Only the token goes to standard output.
"""
_KEY_MORE: Final = """\
example:
  galecast key orders --scope 'publish=orders.>' --scope 'history=orders.>' --scope tokens

The scopes publish, history, presence, channels and purge take patterns; sessions, tokens and
metrics take none.
"""
_PUBLISH_MORE: Final = """\
example:
  galecast publish --dev chat.lobby '{"text": "hello"}'
  galecast publish --key-file orders.key --url https://events.example.com orders.eu - < order.json
  galecast publish --key-file orders.key --deliver-at +30s orders.eu '{"remind": 17}'
  sensors | galecast publish --dev --ndjson sensors.raw

With --ndjson each line of standard input is the data of one event; without CHANNEL it is a whole
event: {"channel": ..., "data": ...}.
"""
_TAIL_MORE: Final = """\
example:
  galecast tail --dev chat.lobby --rewind 20
  galecast tail --key-file reader.key --url https://events.example.com orders.eu orders.us --json

It comes back when the connection is lost, and goes on behind the last event. Ctrl-C ends it.
"""
_EXPORT_MORE: Final = """\
example:
  galecast export --config galecast.toml events.ndjson.gz
  galecast export --archive-url sqlite:///a.db --channel 'orders.>' --from 2026-01-31 > a.ndjson

One event is one line, with all its fields, and import takes it again. Nodes may run meanwhile.
Times are ms since 1970, or as in ISO 8601, in UTC unless they say otherwise.
"""
_IMPORT_MORE: Final = """\
example:
  galecast import --config galecast.toml events.ndjson.gz
  galecast import --archive-url sqlite:///a.db --strict < a.ndjson

Events keep their positions, so importing them again changes nothing. How long they are kept says
the rule of their channel. A node that has its broker in memory has to be stopped meanwhile. The
exit code is 1 if a line was wrong.
"""
_READINGS_MORE: Final = """\
example:
  galecast readings --dev
  galecast readings --key-file machine.key --url https://events.example.com --every 5

Load, CPU, memory and network of this machine, from /proc (Linux). The page at / shows those of the
channel machine.readings. It goes on trying while the server is away. Ctrl-C ends it.
"""


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            found = version("galecast")
        except PackageNotFoundError:
            found = "(not installed)"
        print(f"galecast {found}")
        parser.exit()


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments; raises SystemExit as argparse does, with 2 on wrong usage."""
    args, late = make_parser().parse_known_args(argv)
    command: argparse.ArgumentParser = args.parser
    # argparse takes positional arguments from one place only, and leaves those behind an option.
    if late and (any(_is_flag(text) for text in late) or not _take(args, late)):
        command.error(f"unrecognized arguments: {' '.join(late)}")
    if wrong := _wrong(args):
        command.error(wrong)
    return args


def _is_flag(text: str) -> bool:
    # Data may be a negative number, or stand for standard input.
    return text.startswith("-") and text != "-" and not text[1:2].isdigit()


def _take(args: argparse.Namespace, late: list[str]) -> bool:
    """Put positional arguments that stood behind an option in their place, if there is one."""
    if args.command == "tail":
        args.channels += late
        return True
    if args.command in ("export", "import") and len(late) == 1 and args.file is None:
        args.file = late[0]
        return True
    if args.command == "publish" and len(late) == 1 and args.data is None:
        args.data = late[0]
        return True
    return False


def _wrong(args: argparse.Namespace) -> str:
    """Return what is wrong with the arguments taken together, or nothing."""
    if args.command not in ("publish", "tail", "readings", "bench"):
        return ""
    if args.url is not None and (args.host is not None or args.port is not None):
        return "--url says where the server is: leave --host and --port out"
    if args.command == "readings":
        return ""
    if args.command == "bench":
        return cli_bench_flags.wrong(args)
    if args.command == "tail":
        several = len(set(args.channels)) > 1 and args.since is not None
        return "--since is a position in one channel: name one channel" if several else ""
    if not args.ndjson:
        return "CHANNEL and DATA are required (or --ndjson)" if args.data is None else ""
    if args.data is not None:
        return "with --ndjson the data comes from standard input: leave DATA out"
    return "--id names one event; --ndjson publishes many" if args.id is not None else ""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of `galecast`."""
    parser = argparse.ArgumentParser(
        prog="galecast",
        allow_abbrev=False,
        description="A real-time event server, and clients to try it with.",
        epilog="galecast COMMAND --help says more, with an example.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, text: str, example: str) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=example,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        made.set_defaults(parser=made)
        return made

    serve = command("serve", "run a node until it is told to stop", _SERVE_MORE)
    _all_settings(serve)
    serve.add_argument(
        "--readings",
        action="store_true",
        help="with --dev: also publish what this machine is doing, for the page at /",
    )
    check = command("check", "say whether a node could serve on this machine", _CHECK_MORE)
    _all_settings(check)
    _json(check)
    config = command("config", "print the settings in force and where each came from", _CONFIG_MORE)
    _all_settings(config)
    _json(config)
    _token(command("token", "make a client token", _MINT_MORE))
    _key(command("key", "make an API key for a service", _KEY_MORE))
    _publish(command("publish", "publish an event", _PUBLISH_MORE))
    _tail(command("tail", "show the events of channels as they come", _TAIL_MORE))
    _readings(command("readings", "publish what this machine is doing", _READINGS_MORE))
    bench = command("bench", "measure a running server", cli_bench_flags.BENCH_MORE)
    cli_bench_flags.add_flags(bench)
    _client(bench)
    _json(bench)
    exported = command("export", "write archived events as lines of JSON", _EXPORT_MORE)
    _archived(exported, "where to write; .gz compresses; standard output if left out, or -")
    exported.add_argument(
        "--resume", action="store_true", help="go on where an export to this file was broken off"
    )
    imported = command("import", "take exported events into the archive", _IMPORT_MORE)
    _archived(imported, "what to read, .gz too; standard input if left out, or -")
    imported.add_argument("--strict", action="store_true", help="end at the first wrong line")
    return parser


def _archived(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("file", nargs="?", metavar="FILE", help=text)
    parser.add_argument(
        "--channel",
        action="append",
        default=[],
        metavar="PATTERN",
        help="channels, all if left out; may be repeated",
    )
    parser.add_argument("--from", dest="since", metavar="TIME", help="events of this time or later")
    parser.add_argument("--to", dest="until", metavar="TIME", help="events before this time")
    _some_settings(parser)
    # Not among the settings: a MongoDB would then ask for the broker that belongs to it.
    parser.add_argument(
        "--archive-url",
        dest="archive",
        metavar="URL",
        help="the archive; else that of the settings",
    )
    _json(parser)


def _some_settings(
    parser: argparse.ArgumentParser, dev: str = "development mode: this machine only"
) -> None:
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="the settings (TOML); else GALECAST_CONFIG"
    )
    parser.add_argument("--dev", action="store_true", help=dev)


def _address(parser: argparse.ArgumentParser, verb: str) -> None:
    # Values stay text: the settings check them, as they do for every other source.
    parser.add_argument("--host", metavar="HOST", help=f"address to {verb}")
    parser.add_argument("--port", metavar="PORT", help=f"port to {verb}")


def _all_settings(parser: argparse.ArgumentParser) -> None:
    _address(parser, "listen on")
    parser.add_argument("--workers", metavar="N", help="processes that share the port")
    _some_settings(parser)
    parser.add_argument("--broker-url", metavar="URL", help=_BROKER_HELP)
    parser.add_argument("--archive-url", metavar="URL", help="address of the archive")
    parser.add_argument("--admin-port", metavar="PORT", help="port for health and metrics alone")


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="write JSON")


def _token(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("user", metavar="USER", help="whose token it is (sub)")
    parser.add_argument(
        "--grant",
        action="append",
        default=[],
        metavar="PATTERN=ACTIONS",
        help="actions (subscribe, publish, presence, history) on channels; may be repeated",
    )
    parser.add_argument("--ttl", type=float, metavar="SECONDS", help="how long it is valid")
    _some_settings(parser)
    _json(parser)


def _key(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="whose key it is")
    parser.add_argument(
        "--scope",
        action="append",
        required=True,
        metavar="SCOPE[=PATTERNS]",
        help="what it may do, and on which channels; may be repeated",
    )
    _json(parser)


def _client(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--url", metavar="URL", help="the server; else that of the settings on this machine"
    )
    _address(parser, "go to")
    _some_settings(parser, "use the key of development mode")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--key-file", metavar="FILE", help="file that holds an API key or a token")
    shown.add_argument("--key", metavar="KEY", help=_KEY_HELP)


def _publish(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("channel", nargs="?", metavar="CHANNEL", help="where to publish")
    parser.add_argument("data", nargs="?", metavar="DATA", help="JSON; - reads standard input")
    parser.add_argument("--name", metavar="NAME", help="name of the event (message)")
    parser.add_argument("--id", metavar="ID", help="id of the event; an id is published once")
    parser.add_argument(
        "--tag", action="append", default=[], metavar="KEY=VALUE", help="tag; may be repeated"
    )
    parser.add_argument(
        "--deliver-at",
        metavar="TIME",
        help="publish it then: 2030-01-31T08:00:00Z (without a zone in that of this machine), ms "
        "since 1970, or +30s, +5m, +2h, +1d from now; the server needs an archive",
    )
    parser.add_argument("--ndjson", action="store_true", help="publish every line of stdin")
    _client(parser)
    _json(parser)


def _tail(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("channels", nargs="+", metavar="CHANNEL", help="what to follow")
    parser.add_argument("--since", metavar="POSITION", help="begin behind this position")
    parser.add_argument(
        "--rewind", type=_whole, metavar="N", help="begin with the last N events of each channel"
    )
    parser.add_argument("--count", type=_whole, metavar="N", help="end after N events")
    _client(parser)
    _json(parser)


def _readings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--channel", default="machine.readings", metavar="CHANNEL", help="where (%(default)s)"
    )
    parser.add_argument(
        "--every",
        type=_interval_s,
        default=1.0,
        metavar="SECONDS",
        help="how long from one reading to the next (%(default)g)",
    )
    # Of the node that has started it: standard input ends when that does, in whatever way.
    parser.add_argument("--until-eof", action="store_true", help=argparse.SUPPRESS)
    _client(parser)


def _interval_s(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not _SHORTEST_S <= value <= _LONGEST_S:
        allowed = f"seconds from {_SHORTEST_S:g} to {_LONGEST_S:g}"
        raise argparse.ArgumentTypeError(f"{text}: {allowed}")
    return value


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text[:9]) <= _MOST:
        raise argparse.ArgumentTypeError(f"{text}: a whole number from 1 to {_MOST}")
    return int(text)
