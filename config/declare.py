"""What may an operator set? This file answers: how one setting is declared, and how all are listed.

A setting is a field of a frozen struct, annotated with `says(...)`: type, default, bounds, meaning,
unit and what zero does stand in one place. Reading, checking and describing all walk `declared()`.
"""

from collections.abc import Callable, Iterator
from typing import Any, Final, get_type_hints

import msgspec

ENVIRONMENT_PREFIX: Final = "GALECAST_"
NO_LIMIT: Final = "no limit"
DAY_S: Final = 86_400
MOST: Final = 1_000_000_000


class Declared(msgspec.Struct, frozen=True, kw_only=True):
    """One setting: where it stands, what it may be, and what it means.

    `path` is the key in the TOML file (`token.secret`). `check` takes a value of the right type
    and returns the value to keep; it raises ValueError whose text says what is wrong. `mask` takes
    a text, valid or not, and returns what may be shown of it. `allowed` says in words what may be
    set.
    """

    path: str
    type: Any
    default: Any
    meaning: str
    unit: str
    zero: str
    low: float | None
    high: float | None
    secret: bool
    mask: Callable[[str], str] | None
    check: Callable[[Any], Any] | None
    allowed: str

    @property
    def variable(self) -> str:
        """The environment variable that sets this."""
        return ENVIRONMENT_PREFIX + self.path.replace(".", "_").upper()

    @property
    def flag(self) -> str:
        """The command line flag that would set this; commands offer some of them."""
        return "--" + self.path.replace(".", "-").replace("_", "-")


def says(
    meaning: str,
    *,
    unit: str = "",
    zero: str = "",
    low: float | None = None,
    high: float | None = None,
    secret: bool = False,
    mask: Callable[[str], str] | None = None,
    check: Callable[[Any], Any] | None = None,
    allowed: str = "",
) -> msgspec.Meta:
    """Declare a setting, as `name: Annotated[type, says(...)] = default`.

    `low` and `high` are inclusive. `zero` says what the value 0 does, where that is special.
    """
    more = {
        "unit": unit,
        "zero": zero,
        "low": low,
        "high": high,
        "secret": secret,
        "mask": mask,
        "check": check,
        "allowed": allowed,
    }
    return msgspec.Meta(description=meaning, ge=low, le=high, extra=more)


def declared(struct: type[msgspec.Struct], prefix: str = "") -> Iterator[Declared]:
    """Yield every setting declared in `struct` and the sections in it, in order of declaration."""
    hints = get_type_hints(struct, include_extras=True)
    for field in msgspec.structs.fields(struct):
        hint = hints[field.name]
        path = prefix + field.name
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
            yield from declared(hint, path + ".")
            continue
        meta = next(each for each in hint.__metadata__ if isinstance(each, msgspec.Meta))
        default = field.default
        if default is msgspec.NODEFAULT and field.default_factory is not msgspec.NODEFAULT:
            default = field.default_factory()
        yield Declared(
            path=path,
            type=hint,
            default=default,
            meaning=meta.description or "",
            **(meta.extra or {}),
        )
