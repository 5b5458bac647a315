"""Where is an event kept? This file: what the address of an archive says (pure).

    none
    sqlite:///relative/path
    sqlite:////absolute/path
    mongodb://[user[:password]@]host[:port][,host...]/database[?options]
    mongodb+srv://[user[:password]@]host/database[?options]

What an operator may write is checked in `config.checks`. The options are those of MongoDB.
"""

from typing import Final, Literal
from urllib.parse import unquote

import msgspec

from config.checks import NO_ARCHIVE, SQLITE_SCHEME, check_archive_url, mask_url
from pubsub.errors import ArchiveUrlRejected

Kind = Literal["none", "sqlite", "mongodb"]

_SQLITE_PATH: Final = len(SQLITE_SCHEME) + 1


class ArchiveTarget(msgspec.Struct, frozen=True):
    """Where an archive is; `str` and `repr` show no password.

    `path` is the file of an SQLite database, `url` the address of a MongoDB as it was written,
    and `database` the name in it, percent-decoded.
    """

    kind: Kind
    path: str = ""
    url: str = ""
    database: str = ""

    def __str__(self) -> str:
        """Return the address for people: no options, `***` for a password."""
        if self.kind == "sqlite":
            return f"{SQLITE_SCHEME}/{self.path}"
        return mask_url(self.url) if self.url else NO_ARCHIVE

    def __repr__(self) -> str:
        """Return the same in angle brackets, lest a traceback tells the password."""
        return f"<ArchiveTarget {self}>"


def parse_archive_url(text: str) -> ArchiveTarget:
    """Read the address of an archive.

    Raises ArchiveUrlRejected, whose text says what is wrong and never repeats the address, since
    that may hold a password.
    """
    try:
        check_archive_url(text)
    except ValueError as error:
        raise ArchiveUrlRejected(str(error)) from None
    if text == NO_ARCHIVE:
        return ArchiveTarget("none")
    if text.startswith(SQLITE_SCHEME):
        return ArchiveTarget("sqlite", path=text[_SQLITE_PATH:])
    database = text.partition("?")[0].rpartition("/")[2]
    return ArchiveTarget("mongodb", url=text, database=unquote(database))
