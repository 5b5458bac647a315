"""Bytes cut into lines, however they come."""

from hypothesis import given
from hypothesis import strategies as st

from handlers.lines import LineCutter, LineTooLong


def cut(limit: int, *chunks: bytes) -> list[bytes | None]:
    """The lines of `chunks`; None for one that was too long."""
    cutter = LineCutter(limit)
    found = [line for chunk in chunks for line in cutter.feed(chunk)]
    found += cutter.end()
    return [None if isinstance(line, LineTooLong) else line for line in found]


def test_lines_of_all_kinds() -> None:
    assert cut(10, b"a\nb\r\n\n  \nc") == [b"a", b"b", b"c"]
    assert cut(10, b"a", b"b", b"\nc\n") == [b"ab", b"c"]
    assert cut(10) == []


def test_a_line_at_the_limit_and_beyond() -> None:
    assert cut(4, b"1234\n12345\n1234\n") == [b"1234", None, b"1234"]
    assert cut(4, b"123", b"4\n", b"123", b"45\n", b"1\n") == [b"1234", None, b"1"]
    assert cut(4, b"12345") == [None]


def test_blanks_around_a_line_count_however_it_comes() -> None:
    """A line over the limit only by its blanks was taken whole, but not in pieces."""
    for line in (b" 1234\n", b"1234 \n", b"\r1234\n", b"1234\r\r\n", b"     \n"):
        assert cut(4, line) == cut(4, *(bytes((byte,)) for byte in line)) == [None]
    for line in (b"1234\r\n", b" 12\r\n", b"1234\r", b"    \r\n"):
        assert cut(4, line) == cut(4, *(bytes((byte,)) for byte in line)) != [None]


def test_an_endless_line_takes_no_memory() -> None:
    cutter = LineCutter(100)
    found = [line for _ in range(1_000) for line in cutter.feed(b"x" * 60)]
    assert len(found) == 1
    assert isinstance(found[0], LineTooLong)
    assert list(cutter.feed(b"\nok\n")) == [b"ok"]
    assert list(cutter.end()) == []


@given(st.lists(st.binary(max_size=30)), st.integers(1, 40))
def test_the_cut_does_not_depend_on_the_chunks(chunks: list[bytes], size: int) -> None:
    whole = b"".join(chunks)
    pieces = [whole[at : at + size] for at in range(0, len(whole), size)]
    expected = [line for part in whole.split(b"\n") if (line := part.strip(b" \t\r"))]
    assert cut(10_000, *chunks) == cut(10_000, *pieces) == expected
