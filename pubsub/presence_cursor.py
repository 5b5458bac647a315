"""Who is present in a channel? This file: the cursors of paged presence sets (pure)."""

from base64 import urlsafe_b64decode, urlsafe_b64encode


def write_cursor(session: str) -> str:
    """Return the cursor of a page that ends at a session."""
    return urlsafe_b64encode(session.encode()).decode().rstrip("=")


def read_cursor(cursor: str) -> str:
    """Return the session at which a page ended; raises ValueError."""
    try:
        session = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
    except ValueError:
        session = ""
    # The decoder passes over strange characters and spare bits.
    if not session or write_cursor(session) != cursor:
        raise ValueError("not a cursor of this list")
    return session
