import json
import tomllib
from pathlib import Path

import pytest

from config.rules import ChannelRules
from config.settings import DEV_SECRET, Settings
from config.sources import load
from server.api_keys import ApiKeys
from server.auth import Auth
from server.cli import main

Capture = pytest.CaptureFixture[str]
SECRET = "a secret that is long enough to sign with"


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("GALECAST_TOKEN_SECRET", SECRET)
    return SECRET


def auth(secret: str) -> Auth:
    loaded = load({"token.secret": secret}, {}, None)
    return Auth(loaded.settings, ChannelRules())


# ---- token


def test_a_token_is_what_the_server_takes(secret: str, capsys: Capture) -> None:
    argv = ["token", "u7", "--grant", "chat.*=subscribe,publish", "--grant", "a=b.*=history"]
    assert main([*argv, "--grant", "chat.*=presence"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    principal = auth(secret).token(out.strip())
    assert principal.user == "u7"
    for action in ("subscribe", "publish", "presence"):
        assert principal.allows(action, "chat.x")
    assert principal.allows("history", "a=b.x")
    assert not principal.allows("history", "chat.x")


def test_a_token_as_json_says_how_long_it_is_valid(secret: str, capsys: Capture) -> None:
    assert main(["token", "u7", "--json", "--ttl", "90.5"]) == 0
    answer = json.loads(capsys.readouterr().out)
    principal = auth(secret).token(answer["token"])
    assert answer["expires_s"] == 90
    assert principal.expires_at is not None
    assert principal.issued_at is not None
    assert principal.expires_at - principal.issued_at == 90
    assert main(["token", "u7", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["expires_s"] == Settings().token.default_ttl_s


def test_a_token_of_development_mode_is_told(capsys: Capture) -> None:
    assert main(["token", "u7", "--dev"]) == 0
    out, err = capsys.readouterr()
    assert auth(DEV_SECRET).token(out.strip()).user == "u7"
    assert "development secret" in err


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--grant", "chat"], "--grant chat: write PATTERN=ACTION,ACTION"),
        (["--grant", "chat=fly"], "unknown action 'fly'"),
        (["--grant", "a..b=publish"], "pattern 'a..b'"),
        (["--ttl", "0"], "the lifetime of a token is 1 to "),
        (["--ttl", "nan"], "the lifetime of a token is 1 to "),
    ],
)
def test_a_token_that_would_not_be_taken_is_not_made(
    argv: list[str], text: str, secret: str, capsys: Capture
) -> None:
    assert main(["token", "u7", *argv]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert text in err


def test_without_a_secret_there_is_no_token(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["token", "u7"]) == 1
    assert "token.secret is not set" in capsys.readouterr().err
    key = f"-----BEGIN PUBLIC KEY-----\n{'A' * 64}\n-----END PUBLIC KEY-----\n"
    monkeypatch.setenv("GALECAST_TOKEN_SECRET", key)
    assert main(["token", "u7"]) == 1
    err = capsys.readouterr().err
    assert "no token was made: token.secret holds a key" in err
    assert "AAAA" not in err


# ---- key

SCOPES = ["--scope", "publish=orders.>,x.*", "--scope", "publish=y", "--scope", "tokens"]


def test_the_table_of_a_key_puts_it_in_force(capsys: Capture, tmp_path: Path) -> None:
    name = 'orders "x" \\ \u00e9'
    assert main(["key", name, *SCOPES]) == 0
    lines = capsys.readouterr().out.splitlines()
    (text,) = (line.strip() for line in lines if line.startswith("  "))
    table = "\n".join(lines[lines.index("[[keys]]") :]) + "\n"
    assert text.partition(".")[2] not in table
    file = tmp_path / "galecast.toml"
    file.write_text(table)
    settings = load({}, {}, file).settings
    principal = ApiKeys(settings.keys).authenticate(text)
    assert principal.name == name
    (key,) = settings.keys
    assert key.scopes == {"publish": ("orders.>", "x.*", "y"), "tokens": True}
    assert "not shown again" in lines[0]


def test_a_key_as_json_is_the_same(capsys: Capture) -> None:
    assert main(["key", "orders", *SCOPES, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    (entry,) = tomllib.loads(answer["toml"])["keys"]
    assert entry == answer["entry"]
    assert answer["key"].startswith(f"{entry['id']}.")


def test_no_two_keys_are_alike(capsys: Capture) -> None:
    keys = set()
    for _ in range(3):
        assert main(["key", "orders", "--scope", "metrics", "--json"]) == 0
        keys.add(json.loads(capsys.readouterr().out)["key"])
    assert len(keys) == 3


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["orders", "--scope", "publish"], "scope publish takes a list of patterns"),
        (["orders", "--scope", "publish="], "scope publish takes a list of patterns"),
        (["orders", "--scope", "fly=>"], "unknown scope 'fly'"),
        (["orders", "--scope", "publish=a..b"], "the pattern has an empty segment"),
        (["orders", "--scope", "tokens=>"], "tokens takes no pattern"),
        (["", "--scope", "tokens"], "1 to 255 bytes"),
        (["a\x07", "--scope", "tokens"], r"'a\x07'"),
    ],
)
def test_a_key_that_could_not_be_used_is_not_made(
    argv: list[str], text: str, capsys: Capture
) -> None:
    assert main(["key", *argv]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert text in err
