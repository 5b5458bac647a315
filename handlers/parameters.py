"""How do bytes come in and go out? This file: parameters that many operations share, described."""

from typing import Any, Final

from handlers.operations import path, query

TEXT: Final[dict[str, Any]] = {"type": "string"}
COUNT: Final[dict[str, Any]] = {"type": "integer", "minimum": 1, "maximum": 999_999_999}
NAME: Final[dict[str, Any]] = {
    "type": "string",
    "pattern": r"^[A-Za-z0-9_~@:=-]+(\.[A-Za-z0-9_~@:=-]+)*$",
    "minLength": 1,
    "maxLength": 255,
}
POSITION: Final[dict[str, Any]] = {
    "type": "string",
    "pattern": "^[0-9a-f]{16}-(0|[1-9][0-9]{0,17})-[0-9a-f]{16}$",
}

CHANNEL: Final = path("channel", "Name of the channel.", NAME)
CURSOR: Final = query("cursor", "`cursor` of the page before.", TEXT)
TIME: Final = {"type": "integer", "minimum": 0, "maximum": 999_999_999_999_999}
LIMIT: Final = query("limit", "Most items wanted; cut to what the settings allow.", COUNT)
