"""What a request says that its body is."""

import pytest

from handlers.media import check_encoding, is_json, media_type
from server.errors import UnsupportedMediaType


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, "application/json"),
        ("", "application/json"),
        ("application/json", "application/json"),
        ("Application/JSON; charset=UTF-8", "application/json"),
        ('application/json;charset="utf-8"', "application/json"),
        ("application/json; profile=x", "application/json"),
        ("application/x-www-form-urlencoded", "application/json"),  # curl -d
        ("text/plain", "text/plain"),
        ("application/cloudevents+json; charset=utf8", "application/cloudevents+json"),
    ],
)
def test_media_types(header: str | None, expected: str) -> None:
    assert media_type(header) == expected


@pytest.mark.parametrize("charset", ["latin-1", "utf-16", "utf-8x"])
def test_only_utf_8(charset: str) -> None:
    with pytest.raises(UnsupportedMediaType):
        media_type(f"application/json; charset={charset}")


def test_what_is_json() -> None:
    assert is_json("application/json")
    assert is_json("application/vnd.x+json")
    assert not is_json("text/plain")
    assert not is_json("application/xml")


def test_only_bodies_as_they_are() -> None:
    check_encoding(None)
    check_encoding("identity")
    with pytest.raises(UnsupportedMediaType):
        check_encoding("gzip")
