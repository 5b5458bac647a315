"""How do bytes come in? This file: what a request says that its body is (pure)."""

from typing import Final

from server.errors import UnsupportedMediaType

JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
CLOUDEVENT: Final = "application/cloudevents+json"
CLOUDEVENTS: Final = "application/cloudevents-batch+json"

# What `curl -d` sends unless told otherwise. A page of any origin may send such a body without a
# preflight; that gains it nothing here, since Origin is checked, and a browser adds no bearer on
# its own.
FORM: Final = "application/x-www-form-urlencoded"


def media_type(content_type: str | None) -> str:
    """Return the media type of a Content-Type in lower case, JSON where none is given.

    Raises UnsupportedMediaType for a charset other than UTF-8.
    """
    if not content_type or content_type == JSON:
        return JSON
    kind, *parameters = content_type.split(";")
    kind = kind.strip().lower()
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset" and value.strip(' \t"').lower() not in (
            "utf-8",
            "utf8",
        ):
            raise UnsupportedMediaType("only the charset UTF-8 is read")
    return JSON if kind == FORM else kind


def is_json(kind: str) -> bool:
    """Say whether a media type is JSON or built on it (RFC 6839)."""
    return kind in (JSON, "text/json") or kind.endswith("+json")


def check_encoding(content_encoding: str | None) -> None:
    """Return if the body is not compressed; raises UnsupportedMediaType."""
    if content_encoding and content_encoding.strip().lower() != "identity":
        raise UnsupportedMediaType("bodies with a Content-Encoding are not read")
