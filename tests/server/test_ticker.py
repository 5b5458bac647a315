"""What is done at regular times, and how late it was."""

from delivery_rig import HandLoop, as_loop
from server.metrics import Metrics
from server.ticker import LoopLag, Ticker


def test_it_calls_every_interval_until_closed() -> None:
    loop = HandLoop()
    came: list[float] = []
    begin = loop.now
    ticker = Ticker(as_loop(loop), 2.0, lambda: came.append(loop.now - begin))
    loop.advance(7)
    assert came == [2.0, 4.0, 6.0]
    ticker.close()
    ticker.close()
    loop.advance(7)
    assert len(came) == 3


def test_a_loop_that_was_held_up_gets_one_call_not_all_that_it_missed() -> None:
    loop = HandLoop()
    came: list[float] = []
    Ticker(as_loop(loop), 2.0, lambda: came.append(loop.now))
    loop.now += 9
    loop.turn()
    assert len(came) == 1
    loop.advance(2)
    assert len(came) == 2


def test_it_may_be_closed_from_its_own_call() -> None:
    loop = HandLoop()
    came: list[int] = []
    tickers: list[Ticker] = []

    def call() -> None:
        came.append(1)
        tickers[0].close()

    tickers.append(Ticker(as_loop(loop), 2.0, call))
    loop.advance(9)
    assert came == [1]
    assert loop.waiting() == 0


def test_loop_lag_is_how_late_the_loop_called() -> None:
    loop = HandLoop()
    metrics = Metrics(version="0")
    lag = LoopLag(as_loop(loop), metrics)
    loop.advance(0.25)
    assert b"galecast_loop_lag_last_seconds 0.0\n" in metrics.exposition(None)[0]
    loop.now += 0.75
    loop.turn()
    assert b"galecast_loop_lag_last_seconds 0.5\n" in metrics.exposition(None)[0]
    lag.close()
    lag.close()
    assert loop.waiting() == 0
