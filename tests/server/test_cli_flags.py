from pathlib import Path

import pytest

from server.cli_flags import parse

Capture = pytest.CaptureFixture[str]
COMMANDS = ("serve", "check", "config", "token", "key", "publish", "tail", "readings", "bench")


def refused(capsys: Capture, *argv: str) -> str:
    with pytest.raises(SystemExit) as caught:
        parse(argv)
    assert caught.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_has_an_example(command: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        parse([command, "--help"])
    assert caught.value.code == 0
    assert f"example:\n  galecast {command} " in capsys.readouterr().out


def test_the_help_names_every_command(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert [command for command in COMMANDS if f"\n    {command} " not in out] == []


def test_the_help_warns_of_a_key_on_the_command_line(capsys: Capture) -> None:
    for command in ("publish", "tail", "readings", "bench"):
        with pytest.raises(SystemExit):
            parse([command, "--help"])
        assert "others on this machine can see it" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("command", ["serve", "check", "config"])
def test_flags_of_settings(command: str) -> None:
    flags = "--host h --port 1 --workers 2 --config f --broker-url b --archive-url a --dev"
    args = parse([command, *flags.split(), "--admin-port", "3"])
    assert (args.host, args.port, args.workers, args.admin_port) == ("h", "1", "2", "3")
    assert (args.config, args.broker_url, args.archive_url) == (Path("f"), "b", "a")
    assert args.dev is True
    bare = parse([command])
    assert (bare.host, bare.port, bare.config, bare.dev) == (None, None, None, False)


@pytest.mark.parametrize(
    "argv",
    [
        ["tail", "a", "b", "--dev"],
        ["tail", "--dev", "a", "b"],
        ["tail", "a", "--dev", "b"],
    ],
)
def test_channels_stand_where_they_like(argv: list[str]) -> None:
    assert parse(argv).channels == ["a", "b"]


@pytest.mark.parametrize("data", ["1", "-", "-5", '"--x"'])
def test_data_stands_where_it_likes(data: str) -> None:
    for argv in (["a", data, "--dev"], ["a", "--dev", data], ["--dev", "a", data]):
        args = parse(["publish", *argv])
        assert (args.channel, args.data) == ("a", data)


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        ([], "required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["serve", "--json"], "unrecognized arguments: --json"),
        (["serve", "now"], "unrecognized arguments: now"),
        (["serve", "--por", "1"], "unrecognized arguments: --por 1"),
        (["key", "orders"], "required: --scope"),
        (["token"], "required: USER"),
        (["token", "u", "--ttl", "soon"], "invalid float value: 'soon'"),
        (["publish", "a"], "CHANNEL and DATA are required"),
        (["publish", "a", "1", "--dev", "2"], "unrecognized arguments: 2"),
        (["publish", "a", "1", "--ndjson"], "leave DATA out"),
        (["publish", "a", "--ndjson", "--id", "i"], "--id names one event"),
        (["publish", "a", "1", "--key", "k", "--key-file", "f"], "not allowed with argument"),
        (["publish", "a", "1", "--url", "http://a", "--port", "1"], "leave --host and --port out"),
        (["tail"], "required: CHANNEL"),
        (["tail", "a", "--url", "http://a", "--host", "h"], "leave --host and --port out"),
        (["tail", "a", "b", "--since", "p"], "name one channel"),
        (["tail", "a", "--fly", "b"], "unrecognized arguments: --fly b"),
        (["tail", "a", "--count", "0"], "0: a whole number from 1 to 100000"),
        (["tail", "a", "--rewind", "1000000000000"], "a whole number from 1 to 100000"),
        (["tail", "a", "--rewind", "\u0663"], "a whole number from 1 to 100000"),
        (["readings", "a"], "unrecognized arguments: a"),
        (["readings", "--json"], "unrecognized arguments: --json"),
        (["readings", "--every", "0"], "0: seconds from 0.1 to 3600"),
        (["readings", "--every", "nan"], "nan: seconds from 0.1 to 3600"),
        (["readings", "--every", "soon"], "soon: seconds from 0.1 to 3600"),
        (["readings", "--url", "http://a", "--port", "1"], "leave --host and --port out"),
        (["check", "--readings"], "unrecognized arguments: --readings"),
    ],
)
def test_wrong_usage_is_told(argv: list[str], text: str, capsys: Capture) -> None:
    assert text in refused(capsys, *argv)


def test_flags_of_readings(capsys: Capture) -> None:
    bare = parse(["readings"])
    assert (bare.channel, bare.every, bare.until_eof) == ("machine.readings", 1.0, False)
    args = parse("readings --channel a.b --every 0.5 --until-eof --url http://a --key k".split())
    assert (args.channel, args.every, args.until_eof) == ("a.b", 0.5, True)
    assert (args.url, args.key) == ("http://a", "k")
    assert parse(["serve"]).readings is False
    assert parse(["serve", "--readings"]).readings is True
    with pytest.raises(SystemExit):
        parse(["readings", "--help"])
    # Between a node and the process that it starts, and of no use to anybody else.
    assert "--until-eof" not in capsys.readouterr().out


def test_a_channel_named_twice_is_one_channel() -> None:
    assert parse(["tail", "a", "a", "--since", "p"]).since == "p"


def test_the_version_is_told(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    def missing(_: str) -> str:
        raise metadata.PackageNotFoundError

    for found, shown in ((lambda _: "1.2.3", "1.2.3"), (missing, "(not installed)")):
        monkeypatch.setattr(metadata, "version", found)
        with pytest.raises(SystemExit) as caught:
            parse(["--version"])
        assert caught.value.code == 0
        assert capsys.readouterr().out == f"galecast {shown}\n"
