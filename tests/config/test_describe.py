"""The documentation is what the declarations say, and what is shown holds no secret."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

from config.describe import document, effective, limits_table, settings_table
from config.limits import ANSWERS, LimitSettings
from config.settings import hash_secret
from config.sources import all_settings, load
from config.values import MASK

ROOT = Path(__file__).parents[2]
CANARY = "canary-0123456789-0123456789-0123456789"


def test_the_committed_documentation_is_the_generated_one() -> None:
    committed = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    again = "stale: run python -m config.describe > docs/configuration.md"
    assert committed == document(), again


def test_the_module_prints_the_documentation() -> None:
    command = [sys.executable, "-m", "config.describe"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=60)
    assert printed.stdout.decode() == document()


def test_every_setting_has_one_row() -> None:
    table = settings_table()
    for setting in all_settings().values():
        assert table.count(f"| `{setting.path}` | `{setting.variable}` |") == 1
    assert re.search(r"\| `port` .*\| `8000` \| any free port \|", table)
    assert re.search(r"\| `limits.depth` .*\| `64` \| refused \|", table)


def test_every_row_has_every_column() -> None:
    rows = [line for line in document().splitlines() if line.startswith("|")]
    widths = {len(re.split(r"(?<!\\)\|", row)) for row in rows}
    assert widths == {len(columns) + 2 for columns in ("1234567", "123456", "1234")}


def test_every_limit_says_what_happens_beyond_it() -> None:
    names = [field.name for field in msgspec.structs.fields(LimitSettings)]
    assert list(ANSWERS) == names
    assert "| `limits.unsent_bytes` | `1_048_576` | close 4002 | `unsent_bytes` |" in limits_table()


def test_the_example_is_valid(tmp_path: Path) -> None:
    [example] = re.findall(r"```toml\n(.*?)```", document(), re.DOTALL)
    secret = tmp_path / "secret"
    secret.write_text(CANARY, "utf-8")
    path = tmp_path / "galecast.toml"
    path.write_text(example.replace("/run/secrets/galecast-token", str(secret)), "utf-8")
    settings = load({}, {}, path).settings
    assert settings.channels[0].match == "user.{sub}.>"
    assert settings.keys[0].scopes["publish"] == ("orders.>",)


def shown(**flags: str) -> dict[str, dict[str, Any]]:
    environ = {"GALECAST_TOKEN_SECRET": CANARY}
    rows = effective(load({"dev": "true", **flags}, environ, None))
    assert [row["key"] for row in rows] == list(all_settings())
    return {row["key"]: row for row in rows}


def test_what_is_in_force_is_shown_with_its_origin() -> None:
    rows = shown(port="1")
    assert rows["port"] == {"key": "port", "value": 1, "origin": "flag --port"}
    assert rows["node"] == {"key": "node", "value": "", "origin": "default"}
    assert rows["drain.delay_s"] == {"key": "drain.delay_s", "value": 0.0, "origin": "dev"}


def test_secrets_in_force_are_masked() -> None:
    rows = shown()
    assert rows["token.secret"]["value"] == MASK
    [key] = rows["keys"]["value"]
    assert (key["id"], key["hash"]) == ("dev", MASK)
    text = msgspec.json.encode(list(rows.values())).decode()
    assert CANARY not in text
    assert hash_secret("galecast") not in text
    environ = {"GALECAST_TOKEN_JWKS_URL": f"https://u:{CANARY}@h/keys?key={CANARY}"}
    [keys] = [row for row in effective(load({}, environ, None)) if row["key"] == "token.jwks_url"]
    assert keys["value"] == "https://u:***@h/keys?***"
    unset = effective(load({}, {}, None))
    assert [row["value"] for row in unset if row["key"] == "token.jwks_url"] == [""]
    assert [row["value"] for row in unset if row["key"] == "token.secret"] == [""]
