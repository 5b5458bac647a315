"""What may an operator set? This file answers: what a raw value becomes, or why it is refused.

Raw values come from TOML, or are text from the environment or the command line. Nothing here
raises: problems go to a list, so that all are told at once.
"""

import math
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, Final, get_args, get_origin

import msgspec

from config.declare import Declared, declared

REFUSED: Final = object()
MASK: Final = "***"
_MOST_SHOWN: Final = 80
_TRUE: Final = ("true", "1", "yes", "on")
_FALSE: Final = ("false", "0", "no", "off")


def parse(text: str, setting: Declared) -> Any:
    """Return the raw value that `text` stands for; raises ValueError.

    Lists are separated by commas or written as JSON; tables and lists of tables are JSON.
    """
    text.encode()  # Undecodable bytes of the environment arrive as lone surrogates.
    kind = _bare(setting.type)
    if kind is str:
        return text
    text = text.strip()
    if kind is bool:
        if text.lower() not in _TRUE + _FALSE:
            raise ValueError("not a truth value")
        return text.lower() in _TRUE
    if kind is int or kind is float:
        try:
            return kind(text)
        except ValueError:
            raise ValueError("not a number") from None
    if kind == tuple[str, ...] and not text.startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise ValueError(f"not valid JSON: {error}") from None


def accept(raw: Any, setting: Declared, source: str, problems: list[str]) -> Any:
    """Return the value that `raw` stands for; or say why not in `problems` and return REFUSED."""
    entry = _entry(setting)
    if entry is not None:
        return _accept_tables(raw, entry, setting, source, problems)
    try:
        if isinstance(raw, float) and math.isnan(raw):
            raise ValueError("not a number")
        value = msgspec.convert(raw, setting.type)
        return value if setting.check is None else setting.check(value)
    except ValueError as error:
        problems.append(refusal(setting, raw, error, source))
        return REFUSED


def _accept_tables(
    raw: Any, entry: type[msgspec.Struct], setting: Declared, source: str, problems: list[str]
) -> Any:
    """Accept a list of tables, each with the fields of the struct `entry`."""
    if not isinstance(raw, list) or not all(isinstance(table, dict) for table in raw):
        problems.append(refusal(setting, raw, ValueError("not a list of tables"), source))
        return REFUSED
    before = len(problems)
    kept = []
    for place, table in enumerate(raw):
        fields = {each.path: each for each in declared(entry)}
        prefix = f"{setting.path}[{place}]."
        found: dict[str, Any] = {}
        for name, each in table.items():
            if name in fields:
                field = msgspec.structs.replace(fields[name], path=prefix + name)
                found[name] = accept(each, field, source, problems)
            else:
                problems.append(unknown(prefix + name, name, fields, source))
        for name, field in fields.items():
            if name not in table and field.default is msgspec.NODEFAULT:
                problems.append(
                    f"{prefix}{name}: must be given; allowed: {allowed(field)} ({source})"
                )
        if len(problems) == before:
            kept.append(entry(**found))
    return REFUSED if len(problems) > before else tuple(kept)


def refusal(setting: Declared, raw: Any, error: ValueError, source: str) -> str:
    """Return the problem of a value that is not allowed."""
    # What msgspec says of a value's type or bounds is said better by what is allowed.
    detail = "" if isinstance(error, msgspec.ValidationError) else f"{error}; "
    return f"{setting.path} = {shown(raw, setting)}: {detail}allowed: {allowed(setting)} ({source})"


def unknown(name: str, key: str, known: Iterable[str], source: str) -> str:
    """Return the problem of a key that is not known, with what may have been meant."""
    names = list(known)
    close = [each for each in names if each.endswith("." + key)]
    close += get_close_matches(key, names, n=1, cutoff=0.75)
    meant = " or ".join(dict.fromkeys(close))
    return f"{name}: unknown setting{f'; did you mean {meant}?' if meant else ''} ({source})"


def shown(raw: Any, setting: Declared) -> str:
    """Return `raw` as it may be shown: masked where secret, and not at length."""
    if is_secret(setting):
        return MASK if raw else '""'
    if setting.mask is not None and isinstance(raw, str) and raw:
        raw = setting.mask(raw)
    text = f'"{raw}"' if isinstance(raw, str) and raw.isprintable() else repr(raw)
    return text if len(text) <= _MOST_SHOWN else text[:_MOST_SHOWN] + "..."


def is_secret(setting: Declared) -> bool:
    """Say whether the setting, or any field of its tables, is secret."""
    entry = _entry(setting)
    return setting.secret or (entry is not None and any(each.secret for each in declared(entry)))


def allowed(setting: Declared) -> str:
    """Return in words what may be set."""
    if setting.allowed:
        return setting.allowed
    kind = _bare(setting.type)
    if kind is bool:
        return "true or false"
    if kind is int or kind is float:
        what = "a whole number" if kind is int else "a number"
        return f"{what} from {setting.low:,.10g} to {setting.high:,.10g}".replace(",", "_")
    if kind is str:
        return "text"
    return "a list of tables"


def _bare(kind: Any) -> Any:
    return getattr(kind, "__origin__", kind) if hasattr(kind, "__metadata__") else kind


def _entry(setting: Declared) -> type[msgspec.Struct] | None:
    """Return the struct of a list of tables, None for any other setting."""
    kind = _bare(setting.type)
    if get_origin(kind) is not tuple:
        return None
    first = get_args(kind)[0]
    return first if isinstance(first, type) and issubclass(first, msgspec.Struct) else None


def flatten(
    table: Mapping[str, Any], known: Mapping[str, Declared], source: str, problems: list[str]
) -> dict[str, Any]:
    """Return the raw values in a TOML document by path; unknown keys go to `problems`."""
    sections = {path.partition(".")[0] for path in known if "." in path}
    found: dict[str, Any] = {}
    for name, value in table.items():
        if name in known:
            found[name] = value
        elif name not in sections:
            problems.append(unknown(name, name, [*known, *sections], source))
        elif not isinstance(value, dict):
            problems.append(f"{name}: must be a table ({source})")
        else:
            for key, inner in value.items():
                path = f"{name}.{key}"
                if path in known:
                    found[path] = inner
                else:
                    problems.append(unknown(path, path, known, source))
    return found
