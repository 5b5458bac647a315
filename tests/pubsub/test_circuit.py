"""When a broker that is away is let be, and how often it is tried."""

from pubsub.circuit import Circuit


def test_some_failures_in_a_row_open_it_and_one_success_closes_it() -> None:
    circuit = Circuit(lambda: 7.0)
    assert [circuit.failed(), circuit.failed()] == [False, False]
    circuit.succeeded()
    assert [circuit.failed(), circuit.failed(), circuit.open] == [False, False, False]
    assert circuit.failed()
    assert circuit.open
    assert circuit.opened_at == 7.0
    assert not circuit.failed()
    assert circuit.openings == 1
    circuit.succeeded()
    assert not circuit.open


def test_pauses_grow_up_to_a_bound_and_are_jittered() -> None:
    asked: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        asked.append((low, high))
        return high

    circuit = Circuit(lambda: 0.0, uniform)
    pauses = [circuit.pause() for _ in range(8)]
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.0, 3.0, 3.0]
    assert set(asked) == {(0.5, 1)}
    circuit.succeeded()
    assert circuit.pause() == 0.1
