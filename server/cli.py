"""Who is connected here, and what may they do? This file: the command line.

Each command imports what it needs when it runs, so that `galecast --help` is quick.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.cli_flags import parse

if TYPE_CHECKING:
    from config.settings import Settings
    from config.sources import Loaded
    from server.cli_archive import Wanted
    from server.cli_target import Credential, Target

_INTERRUPTED = 130
_BROKEN_PIPE = 141
_FAILED = 1

# The paths of the settings that flags set.
_FLAGS = {
    "host": "host",
    "port": "port",
    "workers": "workers",
    "broker_url": "broker.url",
    "archive_url": "archive.url",
    "admin_port": "admin_port",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, or 1 when it failed.

    Raises SystemExit, as argparse does: 2 on wrong usage, 0 after --help and --version.
    """
    args = parse(argv)
    from config.errors import SettingsRejected
    from server.cli_output import CommandFailed, tell

    try:
        return _COMMANDS[args.command](args)
    except SettingsRejected as rejected:
        for problem in rejected.problems:
            tell(problem)
    except CommandFailed as failed:
        tell(str(failed))
    except KeyboardInterrupt:
        # To stop them is how they end.
        return 0 if args.command in ("tail", "readings") else _INTERRUPTED
    except BrokenPipeError:
        # Who read the output has gone. What is still buffered must not fail again at exit.
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return _BROKEN_PIPE
    return _FAILED


def _load(args: argparse.Namespace) -> "Loaded":
    """Read the settings; raises SettingsRejected."""
    from config.sources import load

    given = {
        path: value
        for name, path in _FLAGS.items()
        if (value := getattr(args, name, None)) is not None
    }
    if args.dev:
        given["dev"] = "true"
    return load(given, os.environ, args.config)


# ---- commands


def _serve(args: argparse.Namespace) -> int:
    from config.errors import SettingsRejected
    from config.settings import dev_notice, warnings
    from server.app import Beside, serve
    from server.cli_check import problems, raise_file_limit
    from server.cli_output import CommandFailed, tell

    loaded = _load(args)
    settings = loaded.settings
    if found := problems(settings):
        raise SettingsRejected(tuple(found))
    if args.readings and not settings.dev:
        raise CommandFailed("--readings publishes with the key of development mode: add --dev")
    if settings.dev:
        tell(dev_notice(settings))
    for text in warnings(settings):
        tell(f"warning: {text}")
    raise_file_limit()

    def reread() -> "Settings | None":
        try:
            return _load(args).settings
        except SettingsRejected as rejected:
            for problem in rejected.problems:
                logging.getLogger("galecast").error("not reloaded: %s", problem)
            return None

    beside: Beside = nullcontext
    if args.readings:
        from server.cli_readings import beside
    if settings.workers == 1:
        return serve(loaded, reread, beside)
    from server.workers import supervise

    return supervise(
        loaded,
        reread,
        # One of the workers has the readings published, for all.
        lambda share, again, tie: serve(share, again, nullcontext if tie.index else beside, tie),
    )


def _check(args: argparse.Namespace) -> int:
    from config.errors import SettingsRejected
    from server.cli_check import examine, refused, report, this_host

    try:
        found = examine(_load(args).settings, this_host())
    except SettingsRejected as rejected:
        found = refused(rejected.problems)
    return report(found, as_json=args.json)


def _config(args: argparse.Namespace) -> int:
    import msgspec

    from config.describe import effective
    from server.cli_output import columns, put, put_json

    found = effective(_load(args))
    if args.json:
        put_json({"settings": found})
        return 0
    rows = (
        (each["key"], msgspec.json.encode(each["value"]).decode(), f"({each['origin']})")
        for each in found
    )
    for line in columns(rows):
        put(line)
    return 0


def _token(args: argparse.Namespace) -> int:
    from server.cli_credentials import mint

    settings = _load(args).settings
    return mint(settings, args.user, args.grant, args.ttl, as_json=args.json)


def _key(args: argparse.Namespace) -> int:
    from server.cli_credentials import make_key

    return make_key(args.name, args.scope, as_json=args.json)


def _publish(args: argparse.Namespace) -> int:
    from server.cli_publish import Publisher, parse_tags, publish, publish_lines, read_data
    from server.cli_times import parse_time

    common: dict[str, Any] = {}
    for name in ("channel", "name", "id"):
        if (value := getattr(args, name)) is not None:
            common[name] = value
    if args.tag:
        common["tags"] = parse_tags(args.tag)
    if args.deliver_at is not None:
        common["deliver_at"] = parse_time(args.deliver_at, "--deliver-at")
    if not args.ndjson:
        common["data"] = read_data(args.data)
    target, credential = _server(args)
    publisher = Publisher(target, credential)
    try:
        if args.ndjson:
            return publish_lines(publisher, common, as_json=args.json)
        return publish(publisher, common, as_json=args.json)
    finally:
        publisher.close()


def _tail(args: argparse.Namespace) -> int:
    from server.cli_following import Following
    from server.cli_tail import Tail

    target, credential = _server(args)
    following = Following(args.channels, args.since, args.rewind)
    return Tail(target, credential, following, count=args.count, as_json=args.json).run()


def _readings(args: argparse.Namespace) -> int:
    from server.cli_publish import Publisher
    from server.cli_readings import Readings, sleep, sleep_until_eof

    publisher = Publisher(*_server(args))
    wait = sleep_until_eof if args.until_eof else sleep
    try:
        return Readings(publisher, args.channel, args.every, wait=wait).run()
    finally:
        publisher.close()


def _bench(args: argparse.Namespace) -> int:
    from server.cli_bench import bench
    from server.cli_bench_flags import wanted

    picture = None if args.plot is None else Path(args.plot)
    return bench(*_server(args), wanted(args), picture, as_json=args.json)


def _export(args: argparse.Namespace) -> int:
    from server.cli_export import export

    settings, url, name, wanted = _archive(args)
    return export(settings, url, name, wanted, resume=args.resume, as_json=args.json)


def _import(args: argparse.Namespace) -> int:
    from server.cli_import import import_events

    settings, url, name, wanted = _archive(args)
    return import_events(settings, url, name, wanted, strict=args.strict, as_json=args.json)


def _archive(args: argparse.Namespace) -> "tuple[Settings, str, str, Wanted]":
    """Return the settings, the archive's address, the file, and which events are meant."""
    from server.cli_archive import STANDARD, Channels, Wanted, parse_time

    times = parse_time(args.since, "--from"), parse_time(args.until, "--to")
    wanted = Wanted(Channels(args.channel), *times)
    settings = _load(args).settings
    url = settings.archive.url if args.archive is None else args.archive
    return settings, url, STANDARD if args.file is None else args.file, wanted


def _server(args: argparse.Namespace) -> "tuple[Target, Credential]":
    """Return the server that a client is to go to, and what it shows there.

    With --url the settings are not read: they are of no concern to a client elsewhere.
    """
    from server.cli_target import Credential, parse_url, target_of

    dev = args.dev
    if args.url is not None:
        target = parse_url(args.url)
    else:
        settings = _load(args).settings
        target, dev = target_of(settings), settings.dev
    file = None if args.key_file is None else Path(args.key_file)
    return target, Credential(text=args.key, file=file, dev=dev)


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "serve": _serve,
    "check": _check,
    "config": _config,
    "token": _token,
    "key": _key,
    "publish": _publish,
    "tail": _tail,
    "readings": _readings,
    "bench": _bench,
    "export": _export,
    "import": _import,
}


if __name__ == "__main__":
    sys.exit(main())
