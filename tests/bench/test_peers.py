"""Who is not there says so, and is named in what a benchmark finds."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest

import _installed
from _case import beside, claim_ratio, ours, take_turns
from _peers import PEERS
from _results import OURS, Figure, Result, Rounds
from _servers import NotStarted, Server
from server.load_target import LoadFailed


def result() -> Result:
    return Result(case="a", title="a", command="a", options={})


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which nothing is installed."""
    monkeypatch.setattr(_installed, "INSTALLED", tmp_path)
    monkeypatch.setattr(_installed, "PROGRAMS", tmp_path)
    monkeypatch.setattr(_installed, "PYTHON", tmp_path / "python")
    monkeypatch.setattr(_installed, "_NCHAN", ())
    monkeypatch.setattr(_installed, "_SBIN", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("NGINX", "NCHAN_MODULE", "CC"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("nowhere")
def test_every_peer_that_is_missing_says_so() -> None:
    found = result()
    there = beside(Namespace(peers=[peer.name for peer in PEERS]), found)
    # It needs nothing but what the product needs.
    assert [peer.name for peer in there] == ["write_message"]
    assert set(found.left_out) == {peer.name for peer in PEERS} - {"write_message"}
    assert all(found.left_out.values())


@pytest.mark.usefixtures("nowhere")
def test_nginx_without_nchan_is_told_from_no_nginx(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (nchan,) = (peer for peer in PEERS if peer.name == "nchan")
    assert nchan.missing() == "there is no nginx"
    nginx = tmp_path / "nginx"
    nginx.write_text("")
    nginx.chmod(0o700)
    assert "no nchan" in nchan.missing()
    module = tmp_path / "module.so"
    module.write_text("")
    monkeypatch.setenv("NCHAN_MODULE", str(module))
    assert nchan.missing() == ""


def test_who_has_one_channel_to_a_session_is_left_out_where_it_takes_more() -> None:
    found = result()
    there = beside(Namespace(peers=["write_message"]), found, several=True)
    assert there == []
    assert "one channel" in found.left_out["write_message"]


def test_names_are_unique_and_every_program_is_there() -> None:
    assert len({peer.name for peer in PEERS}) == len(PEERS)
    assert OURS not in {peer.name for peer in PEERS}
    for name in ("nchan.conf", "package-lock.json", "requirements.lock", "mercure/go.sum"):
        assert (_installed.PROGRAMS / name).is_file()


def test_turns_alternate_and_a_peer_that_fails_is_left_out() -> None:
    seen: list[str] = []

    def turn(who: str, fails_at: int = -1) -> Callable[[], Figure]:
        def measure() -> Figure:
            if seen.count(who) == fails_at:
                raise LoadFailed("session 3: 2 events did not come")
            seen.append(who)
            return Figure(who=who, values={"rate_per_s": 2.0})

        return measure

    found, rounds = result(), Rounds()
    turns = [(OURS, turn(OURS)), ("good", turn("good")), ("bad", turn("bad", fails_at=1))]
    take_turns(rounds, found, 3, turns)
    assert seen == [OURS, "good", "bad", "good", OURS, OURS, "good"]
    assert found.left_out == {"bad": "session 3: 2 events did not come"}
    assert [each.who for each in rounds.figures()] == [OURS, "good"]
    for other in ("good", "bad"):
        claim_ratio(found, rounds, other, "rate", "rate_per_s", OURS, other)
    assert [claim.key for claim in found.claims] == ["good"]


def test_our_own_failure_ends_it() -> None:
    def turn() -> Figure:
        raise LoadFailed("events are missing")

    with pytest.raises(LoadFailed, match="missing"):
        take_turns(Rounds(), result(), 1, [(OURS, turn)])


def test_a_server_that_does_not_start_says_what_it_said() -> None:
    with pytest.raises(NotStarted, match=r"sh did not start:\nno such luck"):
        Server(["sh", "-c", "echo no such luck; exit 3"])


def test_a_server_ends_with_all_of_its_processes() -> None:
    script = "sleep 600 & echo listening on http://127.0.0.1:1; sleep 600"
    with Server(["sh", "-c", script]) as server:
        server.await_processes(3)
        assert len(server.pids()) == 3
    assert server.pids() == []
    server.stop()


def test_ours_is_never_missing() -> None:
    assert ours().missing() == ""
    assert ours(encoding="mixed").wires == 2
