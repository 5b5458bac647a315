import pytest

from server.cli_output import columns, plain, put, put_json, put_json_text, tell

Capture = pytest.CaptureFixture[str]


def test_what_a_terminal_would_obey_is_escaped(capsys: Capture) -> None:
    text = "a \u00e9 \U0001f600 \x1b[2J \x9b \u202e \n"
    shown = "a \u00e9 \U0001f600 \\u001b[2J \\u009b \\u202e \\u000a"
    assert plain(text) == shown
    put(text)
    tell(text)
    assert capsys.readouterr() == (f"{shown}\n", f"galecast: {shown}\n")


def test_json_stays_as_it_is(capsys: Capture) -> None:
    put_json({"a": ["\u00e9\x9b"]})
    put_json_text('{"a": "\u202e"}')
    assert capsys.readouterr().out == '{"a":["\u00e9\x9b"]}\n{"a": "\u202e"}\n'


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert columns([("a", "bbb", "c"), ("aaa", "b", "")]) == ["a    bbb  c", "aaa  b"]
    assert columns([]) == []
