"""Who may do what? This file: `token` and `key`, which make credentials."""

import json
from collections.abc import Iterable, Sequence

from config.checks import WIDE_SCOPES, Scope, check_key_name, check_scopes
from config.settings import DEV_SECRET, Settings
from server.api_keys import NewKey, new_key
from server.cli_output import CommandFailed, put, put_json, tell
from server.errors import Refused
from server.jwks import KeyRejected
from server.tokens import TokenSigner

Scopes = dict[Scope, tuple[str, ...] | bool]


def parse_grants(texts: Iterable[str]) -> dict[str, list[str]]:
    """Return grants from texts like `chat.*=subscribe,publish`; raises CommandFailed."""
    grants: dict[str, list[str]] = {}
    for text in texts:
        # A pattern may hold `=`, an action may not.
        pattern, equals, actions = text.rpartition("=")
        if not equals:
            raise CommandFailed(f"--grant {text}: write PATTERN=ACTION,ACTION")
        words = [word.strip() for word in actions.split(",")]
        grants.setdefault(pattern, []).extend(words)
    return grants


def mint(
    settings: Settings, user: str, grants: Sequence[str], ttl_s: float | None, *, as_json: bool
) -> int:
    """Write a new client token and nothing else to standard output."""
    try:
        signer = TokenSigner(settings.token)
        token = signer.mint(user, parse_grants(grants), ttl_s)
    except (Refused, KeyRejected) as error:
        raise CommandFailed(f"no token was made: {error}") from None
    if settings.token.secret == DEV_SECRET:
        tell("signed with the development secret: only a node in development mode takes this token")
    if as_json:
        expires_s = settings.token.default_ttl_s if ttl_s is None else ttl_s
        put_json({"token": token, "expires_s": int(expires_s)})
    else:
        put(token)
    return 0


def parse_scopes(texts: Iterable[str]) -> Scopes:
    """Return scopes from texts like `publish=orders.>` and `tokens`; raises CommandFailed."""
    patterns: dict[str, list[str]] = {}
    for text in texts:
        scope, equals, listed = text.partition("=")
        if scope in WIDE_SCOPES and equals:
            raise CommandFailed(f"--scope {text}: {scope} takes no pattern; write --scope {scope}")
        patterns.setdefault(scope, []).extend(part.strip() for part in listed.split(",") if part)
    try:
        return check_scopes(
            {scope: True if scope in WIDE_SCOPES else found for scope, found in patterns.items()}
        )
    except ValueError as error:
        raise CommandFailed(f"--scope: {error} (such as --scope 'publish=orders.>')") from None


def make_key(name: str, scopes: Sequence[str], *, as_json: bool) -> int:
    """Write a new API key and the table for the settings that puts it in force."""
    granted = parse_scopes(scopes)
    try:
        check_key_name(name)
    except ValueError as error:
        raise CommandFailed(f"{name!a}: {error}: 1 to 255 bytes of printable text") from None
    key = new_key()
    table = key_table(name, key, granted)
    if as_json:
        entry = {"name": name, "id": key.id, "hash": key.hash, "scopes": granted}
        put_json({"key": key.text, "entry": entry, "toml": table})
        return 0
    put("The key. It is not shown again; only its hash is kept:")
    put("")
    put(f"  {key.text}")
    put("")
    put("Add this to the settings file, then send the server SIGHUP:")
    put("")
    for line in table.splitlines():
        put(line)
    return 0


def key_table(name: str, key: NewKey, scopes: Scopes) -> str:
    """Return the TOML table of a key; it holds no secret."""
    # Printable text differs between JSON and TOML in nothing.
    values = ", ".join(f"{scope} = {_toml(value)}" for scope, value in scopes.items())
    lines = (
        "[[keys]]",
        f"name = {_toml(name)}",
        f"id = {_toml(key.id)}",
        f"hash = {_toml(key.hash)}",
        f"scopes = {{ {values} }}",
    )
    return "\n".join(lines) + "\n"


def _toml(value: str | bool | tuple[str, ...]) -> str:
    return json.dumps(value, ensure_ascii=False)
