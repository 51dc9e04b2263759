"""What is forecast from what was seen: numbers worked by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from policies.forecast import BIN_S, DAY_S, FAST_S, GROWTH, MEAN_S, OUTPUT, QPS, Forecast

TICK_S = 15.0
HORIZON_S = 480.0
Rates = Callable[[float], tuple[float, float, float]]


def forecast(trend: float = 1.0, season: float = 0.0) -> Forecast:
    return Forecast(horizon_s=HORIZON_S, tick_s=TICK_S, trend=trend, season=season)


def after(model: Forecast, rates: Rates, until_s: float, n: int = 1) -> np.ndarray:
    """The forecast at `until_s` of whoever saw these rates at every tick since 0; `(n, 3)`."""
    memory = np.full((n, model.memory_size), np.nan)
    state = model.views(memory)
    for tick in range(int(until_s / TICK_S) + 1):
        at_s = np.full(n, tick * TICK_S)
        assert model.see(state, at_s, np.tile(rates(tick * TICK_S), (n, 1))).all()
    return model.ahead(state, np.full(n, until_s))


def test_what_stays_the_same_is_forecast_to_stay():
    assert after(forecast(), lambda _: (10.0, 8000.0, 5000.0), 3600.0) == pytest.approx(
        np.array([[10.0, 8000.0, 5000.0]])
    )


def test_a_steady_rise_is_forecast_exactly():
    # 100 + 0.02 t; at 7200 s that is 244, and 480 s later 253.6.
    [[_, prompt, _]] = after(forecast(), lambda t: (1.0, 100 + 0.02 * t, 1.0), 7200.0)
    assert prompt == pytest.approx(253.6, rel=1e-4)


def test_half_the_trend_is_half_the_way():
    # A mean of 60 s at ticks of 15 s is 15 / (exp(15 / 60) - 1) = 52.81 s behind the rise:
    # 100 + 0.02 (7200 - 52.81) = 242.944. Half the way from there to 253.6 is 248.272.
    [[_, prompt, _]] = after(forecast(0.5), lambda t: (1.0, 100 + 0.02 * t, 1.0), 7200.0)
    assert prompt == pytest.approx(248.272, rel=1e-4)


def test_a_fall_is_forecast_as_well_but_never_below_nothing():
    [[_, prompt, _]] = after(forecast(), lambda t: (1.0, 300 - 0.02 * t, 1.0), 7200.0)
    assert prompt == pytest.approx(300 - 0.02 * 7680, rel=1e-4)
    # 6 now, and 9.6 less at the horizon.
    assert after(forecast(), lambda t: (1.0, 150 - 0.02 * t, 1.0), 7200.0)[0, 1] == 0.0


def test_more_than_one_doubling_is_not_believed():
    # From 10 to 1000 within a tick: the trend says 1000 x (1 + 480 / 540) and more at its steepest.
    seen = [
        after(forecast(), lambda t: (1.0, 10.0 if t < 600 else 1000.0, 1.0), at_s)[0, 1]
        for at_s in (600.0, 615.0, 660.0)
    ]
    # Level after one tick: 10 + 990 (1 - exp(-15 / 60)) = 229.0.
    assert seen[0] <= GROWTH * 229.0 + 0.1
    assert max(seen) <= GROWTH * 1000.0


def test_requests_tell_of_output_that_is_still_to_come():
    # 10 requests/s of 500 tokens, then 20 of them. One tick on, the outputs have not moved at all.
    def rates(t: float) -> tuple[float, float, float]:
        return (10.0 if t < 7200 else 20.0, 1.0, 5000.0)

    [[qps, _, output]] = after(forecast(trend=0.0), rates, 7200.0)
    # Level 10 + 10 (1 - exp(-0.25)) = 12.212; ten-minute mean 10 + 10 (1 - exp(-0.025)) = 10.247.
    assert qps == pytest.approx(12.212, abs=1e-3)
    assert output == pytest.approx(12.212 * 5000 / 10.247, rel=1e-3)


def test_output_beyond_what_the_requests_tell_is_not_forgotten():
    # Requests stop; those under way go on generating.
    [[qps, _, output]] = after(
        forecast(trend=0.0), lambda t: (10.0 if t < 3600 else 0.0, 1.0, 5000.0), 4200.0
    )
    assert qps < 0.01
    assert output == pytest.approx(5000.0)


def test_yesterday_says_how_the_hour_goes_on():
    # 100 by day and 300 in the half hour from 12:00 to 12:30, the same every day.
    noon_s = DAY_S / 2

    def rates(t: float) -> tuple[float, float, float]:
        return (1.0, 300.0 if 0 <= t % DAY_S - noon_s < 2 * BIN_S else 100.0, 1.0)

    model, at_s = forecast(trend=1.0, season=1.0), noon_s - TICK_S
    # The first day has no yesterday: the trend of a flat rate.
    assert after(model, rates, at_s)[0, 1] == pytest.approx(100.0)
    # The second knows that it trebles; one doubling is believed.
    assert after(model, rates, DAY_S + at_s)[0, 1] == pytest.approx(200.0)
    # Half the weight is half the way from the trend's 100 to yesterday's 300.
    half = forecast(trend=1.0, season=0.5)
    assert after(half, rates, DAY_S + at_s)[0, 1] == pytest.approx(200.0)
    # And at the end of it, that it falls to a third again.
    down = after(forecast(trend=0.0, season=1.0), rates, DAY_S + noon_s + 2 * BIN_S - TICK_S)
    assert down[0, 1] == pytest.approx(100.0)


def test_a_rate_that_is_not_measured_leaves_all_as_it_was():
    model = forecast()
    memory = np.full((2, model.memory_size), np.nan)
    state = model.views(memory)
    for at_s in (0.0, 15.0):
        model.see(state, np.full(2, at_s), np.array([[5.0, 6.0, 7.0], [np.nan, 6.0, 7.0]]))
    before = memory.copy()
    known = model.see(state, np.full(2, 30.0), np.array([[5.0, np.nan, 7.0], [5.0, 6.0, 7.0]]))
    assert known.tolist() == [False, True]
    np.testing.assert_array_equal(memory[0], before[0])
    assert model.ahead(state, np.full(2, 30.0)) == pytest.approx(np.tile([5.0, 6.0, 7.0], (2, 1)))


def test_means_follow_time_not_ticks():
    # After a gap of ten minutes the fast mean is the new value but for exp(-10), the slow one has
    # gone 1 - 1 / e of the way.
    model = forecast()
    state = model.views(np.full((1, model.memory_size), np.nan))
    model.see(state, np.array([0.0]), np.zeros((1, 3)))
    model.see(state, np.array([MEAN_S]), np.ones((1, 3)))
    assert state.level[0, QPS] == pytest.approx(1 - np.exp(-MEAN_S / FAST_S))
    assert state.mean[0, OUTPUT] == pytest.approx(1 - np.exp(-1))
