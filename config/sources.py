"""What may an operator set? This file answers: which value holds, and where it came from.

Defaults < TOML file < environment < command line. This is the only place that reads any of them.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from config.declare import ENVIRONMENT_PREFIX, Declared, declared
from config.errors import SettingsRejected
from config.settings import Settings, conflicts, dev_changes
from config.values import REFUSED, accept, flatten, parse, refusal, shown, unknown

CONFIG_VARIABLE: Final = ENVIRONMENT_PREFIX + "CONFIG"
# What SIGHUP applies; all else needs a restart.
RELOADED: Final = ("channels", "keys", "log.level", "broker.rules_revision")
_FILE_SETTINGS: Final = {
    "token.secret": "token.secret_file",
    "token.public_key": "token.public_key_file",
}
_SERVICE_LINK: Final = "GALECAST_SERVICE_"
_MOST_TOML_BYTES: Final = 1 << 24
_MOST_SECRET_BYTES: Final = 1 << 16


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """The settings in force, and where each one came from."""

    settings: Settings
    origins: dict[str, str]

    def origin(self, path: str) -> str:
        """Return `default`, `file PATH`, `env VARIABLE`, `flag --name` or `dev` for a setting."""
        return self.origins.get(path, "default")


class Reload(msgspec.Struct, frozen=True, kw_only=True):
    """What a reload does: the settings then in force, and the paths of what changed."""

    settings: Settings
    applied: tuple[str, ...]
    needs_restart: tuple[str, ...]


def all_settings() -> dict[str, Declared]:
    """Return every setting by its path, in order of declaration."""
    return {setting.path: setting for setting in declared(Settings)}


def load(
    argv_overrides: Mapping[str, str], environ: Mapping[str, str], path: Path | None
) -> Loaded:
    """Read, check and join all sources.

    `argv_overrides` holds text by a setting's path (`broker.url`); `path` is the TOML file, else
    GALECAST_CONFIG names it. Raises SettingsRejected with every problem found.
    """
    reading = _Reading()
    if path is None and environ.get(CONFIG_VARIABLE):
        path = Path(environ[CONFIG_VARIABLE])
    # In this order, since a later source overrides; what is overridden has to be valid too.
    if path is not None:
        reading.toml(path)
    reading.environment(environ)
    reading.command_line(argv_overrides)
    reading.named_files()

    settings = changed(Settings(), reading.values)
    if settings.dev:
        changes = dev_changes(settings, frozenset(reading.values))
        settings = changed(settings, changes)
        reading.origins.update(dict.fromkeys(changes, "dev"))
    reading.conflicts(settings)
    if reading.problems:
        raise SettingsRejected(tuple(reading.problems))
    return Loaded(settings=settings, origins=reading.origins)


def value_of(settings: Settings, path: str) -> Any:
    """Return the value at a path such as `token.leeway_s`."""
    value: Any = settings
    for name in path.split("."):
        value = getattr(value, name)
    return value


def changed(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """Return `settings` with the values in `changes`, which are valid, at their paths."""
    top: dict[str, Any] = {}
    sections: dict[str, dict[str, Any]] = {}
    for path, value in changes.items():
        section, dot, name = path.partition(".")
        if dot:
            sections.setdefault(section, {})[name] = value
        else:
            top[section] = value
    for section, inner in sections.items():
        top[section] = msgspec.structs.replace(getattr(settings, section), **inner)
    return msgspec.structs.replace(settings, **top)


def reloadable(old: Settings, new: Settings) -> Reload:
    """Say what of `new` can be put in force while running: channel rules, keys and log level.

    When `dev` itself changed nothing is applied, since development mode brings an open key.
    """
    differ = [path for path in all_settings() if value_of(old, path) != value_of(new, path)]
    applied = () if old.dev != new.dev else tuple(path for path in differ if path in RELOADED)
    return Reload(
        settings=changed(old, {path: value_of(new, path) for path in applied}),
        applied=applied,
        needs_restart=tuple(path for path in differ if path not in applied),
    )


class _Reading:
    """What was read so far: valid values by path, where they came from, and problems."""

    def __init__(self) -> None:
        self.known = all_settings()
        self.values: dict[str, Any] = {}
        self.origins: dict[str, str] = {}
        self.problems: list[str] = []
        self._refused: set[str] = set()

    def toml(self, path: Path) -> None:
        """Take what the TOML file at `path` sets."""
        source = f"file {path}"
        text = self._text_of(path, str(path), _MOST_TOML_BYTES)
        if text is None:
            return
        try:
            document = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            self.problems.append(f"{path}: is not TOML: {error}")
            return
        except (ValueError, RecursionError):
            # TOML sets no such bound, but Python does: to digits and to depth.
            self.problems.append(f"{path}: has a number that is too long, or is nested too deeply")
            return
        for key, raw in flatten(document, self.known, source, self.problems).items():
            self._take(key, raw, source)

    def environment(self, environ: Mapping[str, str]) -> None:
        """Take what variables that begin with GALECAST_ set."""
        by_variable = {setting.variable: setting for setting in self.known.values()}
        for variable, text in environ.items():
            if not variable.startswith(ENVIRONMENT_PREFIX) or variable == CONFIG_VARIABLE:
                continue
            setting = by_variable.get(variable)
            if setting is not None:
                self._take_text(setting, text, f"env {variable}")
            elif text.startswith("tcp://") or variable.startswith(_SERVICE_LINK):
                self.problems.append(
                    f"{variable}: unknown setting; Kubernetes sets it for a service named "
                    "galecast: set enableServiceLinks: false (environment)"
                )
            else:
                self.problems.append(unknown(variable, variable, by_variable, "environment"))

    def command_line(self, overrides: Mapping[str, str]) -> None:
        """Take what flags set, given by the paths of settings."""
        for path, text in overrides.items():
            setting = self.known.get(path)
            if setting is None:
                self.problems.append(unknown(path, path, self.known, "command line"))
            else:
                self._take_text(setting, text, f"flag {setting.flag}")

    def named_files(self) -> None:
        """Take the contents of the files that settings name, as the settings they stand for."""
        for path, file_path in _FILE_SETTINGS.items():
            name = self.values.get(file_path)
            if not name:
                continue
            source = f"{self.origins[file_path]}, {file_path}"
            if self.values.get(path):
                self.problems.append(f"{file_path}: {path} is set too; set only one ({source})")
                continue
            text = self._text_of(Path(name), f'{file_path} = "{name}"', _MOST_SECRET_BYTES)
            if text is not None and not text.strip():
                self.problems.append(f'{file_path} = "{name}": is empty ({source})')
                text = None
            if text is None:
                self._refused.add(path)
            else:
                self._take(path, text.strip(), source)

    def conflicts(self, settings: Settings) -> None:
        """Add what cannot hold together to the problems."""
        for path, other, message in conflicts(settings, frozenset(self.values)):
            # What was refused stands at its default here: no ground for a second problem.
            if path in self._refused or other in self._refused:
                continue
            setting = self.known.get(path)
            if setting is None:
                self.problems.append(f"{path}: {message}")
                continue
            value = shown(value_of(settings, path), setting)
            origin = self.origins.get(path, "default")
            self.problems.append(f"{path} = {value}: {message} ({origin})")

    def _take_text(self, setting: Declared, text: str, source: str) -> None:
        try:
            raw = parse(text, setting)
        except ValueError as error:
            self.problems.append(refusal(setting, text, error, source))
            self._refused.add(setting.path)
        else:
            self._take(setting.path, raw, source)

    def _take(self, path: str, raw: Any, source: str) -> None:
        value = accept(raw, self.known[path], source, self.problems)
        if value is REFUSED:
            self._refused.add(path)
        else:
            self.values[path], self.origins[path] = value, source

    def _text_of(self, path: Path, name: str, most_bytes: int) -> str | None:
        try:
            with path.open("rb") as file:
                content = file.read(most_bytes + 1)
            if len(content) > most_bytes:
                self.problems.append(f"{name}: is larger than {most_bytes} bytes")
                return None
            return content.decode()
        except OSError as error:
            self.problems.append(f"{name}: cannot be read: {error.strerror}")
        except ValueError:
            # Not UTF-8 inside, or a NUL in the path.
            self.problems.append(f"{name}: is not UTF-8")
        return None
