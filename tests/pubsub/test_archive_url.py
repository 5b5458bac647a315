"""Addresses of an archive: what they say, what is refused, and that no password is told."""

import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pubsub.archive_url import ArchiveTarget, parse_archive_url
from pubsub.errors import ArchiveUrlRejected

MONGO = "mongodb://u:s%40cret@a:1,b/ev%C3%A9nements?replicaSet=rs0"


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("none", ArchiveTarget("none")),
        ("sqlite:///a.db", ArchiveTarget("sqlite", path="a.db")),
        ("sqlite:///data/a%20b.db", ArchiveTarget("sqlite", path="data/a%20b.db")),
        ("sqlite:////var/a b.db", ArchiveTarget("sqlite", path="/var/a b.db")),
        ("mongodb://a/e", ArchiveTarget("mongodb", url="mongodb://a/e", database="e")),
        (MONGO, ArchiveTarget("mongodb", url=MONGO, database="evénements")),
        (
            "mongodb+srv://c.example.net/e?w=1",
            ArchiveTarget("mongodb", url="mongodb+srv://c.example.net/e?w=1", database="e"),
        ),
    ],
)
def test_what_an_address_says(text: str, target: ArchiveTarget) -> None:
    assert parse_archive_url(text) == target


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("postgresql://u:s3cret@a/b", "unknown scheme"),
        ("s3cret", "unknown scheme"),
        ("sqlite://s3cret", "sqlite:///relative/path or sqlite:////absolute/path"),
        ("sqlite:///", "path is missing"),
        ("mongodb://u:s3cret@a", "database is missing: mongodb://host/database"),
        ("mongodb://u:s3cret@a/b.c", "no valid name"),
        ("mongodb://u:s3cret/x@a/b", "password encoded"),
        ("mongodb://u:s3cret:x@a/b", "not encoded"),
        ("mongodb://u:s3cret@a:99999/b", "port"),
        ("mongodb://u:s3cret@/b", "host"),
        ("mongodb+srv://u:s3cret@a:1/b", "one host and no port"),
    ],
)
def test_what_is_wrong_is_named_and_no_password_told(text: str, reason: str) -> None:
    with pytest.raises(ArchiveUrlRejected, match=reason) as caught:
        parse_archive_url(text)
    assert "s3cret" not in "".join(traceback.format_exception_only(caught.value))
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("none", "none"),
        ("sqlite:////var/a.db", "sqlite:////var/a.db"),
        (MONGO, "mongodb://u:***@a:1,b/ev%C3%A9nements?***"),
    ],
)
def test_a_target_shows_no_password(text: str, shown: str) -> None:
    target = parse_archive_url(text)
    assert str(target) == shown
    assert repr(target) == f"<ArchiveTarget {shown}>"


@given(st.text() | st.text().map("sqlite:///{}".format) | st.text().map("mongodb://{}".format))
def test_any_text_is_an_address_or_is_refused(text: str) -> None:
    try:
        target = parse_archive_url(text)
    except ArchiveUrlRejected:
        return
    assert target.kind == "none" or target.path or target.database
