from server.back_off import BackOff


def test_delays_double_up_to_a_limit_and_begin_anew() -> None:
    back_off = BackOff(jitter=lambda: 1.0)
    assert [back_off.delay_s(0) for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert back_off.delay_s(59) == 30
    assert back_off.delay_s(60) == 0.5
    assert back_off.delay_s(0) == 1
    assert BackOff(jitter=lambda: 0.0).delay_s(0) == 0.25
