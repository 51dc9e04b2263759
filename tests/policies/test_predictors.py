"""The load predictors: what they forecast, against filters and fits written the long way."""

from __future__ import annotations

import numpy as np
import pytest

from policies.predictors import AR_WINDOW, PREDICTORS, Ar, Constant, Kalman, Predictor


def forecast(predictor: Predictor, *series: list[float]) -> list[float]:
    """After these points, all series at once."""
    state = np.full((len(series), predictor.size), np.nan)
    for values in zip(*series, strict=True):
        state = predictor.added(state, np.array(values))
    return predictor.forecast(state).tolist()


def filtered(points: list[float]) -> float:
    """The textbook filter in matrices, as filterpy writes it."""
    move, look = np.array([[1.0, 1.0], [0.0, 1.0]]), np.array([[1.0, 0.0]])
    noise, spread = np.diag([1.0, 0.1]), 1000 * np.eye(2)
    x = np.array([[points[0]], [0.0]])
    for value in points[1:]:
        x, spread = move @ x, move @ spread @ move.T + noise
        gain = spread @ look.T / (look @ spread @ look.T + 10.0)
        x = x + gain * (value - look @ x)
        keep = np.eye(2) - gain @ look
        spread = keep @ spread @ keep.T + gain @ gain.T * 10.0
    return float((move @ x)[0, 0])


RISING = [100.0, 120.0, 130.0, 160.0, 155.0, 190.0, 210.0]


def test_kalman_is_the_filter_of_a_level_and_a_trend():
    falling = [50.0, 41.0, 28.0, 22.0, 9.0, 4.0, 1.0]
    assert forecast(Kalman(), RISING, falling) == pytest.approx([filtered(RISING), 0.0])
    assert filtered(falling) < 0
    assert forecast(Kalman(), RISING[:5]) == pytest.approx([filtered(RISING[:5])])


def test_ar_continues_what_the_changes_repeat():
    # Changes of +10 and -10 in turn: the fit sees the alternation, a little damped by its edges.
    saw = [100.0, 110.0] * 15
    [next_value] = forecast(Ar(), saw)
    assert 100 <= next_value < 101
    # A walk by fives: about five more.
    [next_value] = forecast(Ar(), [5.0 * i for i in range(1, 31)])
    assert 154 < next_value <= 155


def test_ar_solves_the_equations_of_yule_and_walker():
    change = np.diff(RISING)
    r = [float(change[lag:] @ change[: len(change) - lag]) for lag in range(3)]
    first, second = np.linalg.solve([[r[0], r[1]], [r[1], r[0]]], r[1:])
    expected = RISING[-1] + first * change[-1] + second * change[-2]
    assert forecast(Ar(), RISING) == pytest.approx([expected])


def test_ar_forgets_what_left_its_window():
    old = [float(value) for value in np.random.default_rng(0).uniform(0, 1e4, 30)]
    long = old + RISING * 8
    assert forecast(Ar(), long) == forecast(Ar(), long[-AR_WINDOW:])


@pytest.mark.parametrize("name", PREDICTORS)
class TestEvery:
    def test_repeats_the_last_of_a_few_points(self, name):
        assert forecast(PREDICTORS[name](), [3.0, 7.0, 4.0, 9.0]) == [9.0]

    def test_repeats_what_never_changes(self, name):
        assert forecast(PREDICTORS[name](), [7.0] * 12) == pytest.approx([7.0])

    def test_knows_nothing_before_the_first_load(self, name):
        assert forecast(PREDICTORS[name](), [0.0, 0.0, 0.0]) == [0.0]

    def test_skips_the_zeros_before_the_first_load(self, name):
        late = forecast(PREDICTORS[name](), [0.0, 0.0, *RISING])
        assert late == forecast(PREDICTORS[name](), RISING)

    def test_a_later_zero_counts_and_so_does_a_gap(self, name):
        idle = [*RISING, 0.0]
        gap = [*RISING, float("nan")]
        assert forecast(PREDICTORS[name](), idle) == forecast(PREDICTORS[name](), gap)
        assert forecast(PREDICTORS[name](), idle) != forecast(PREDICTORS[name](), RISING)

    def test_is_never_below_zero(self, name):
        assert forecast(PREDICTORS[name](), [90.0, 70.0, 50.0, 30.0, 10.0, 1.0])[0] >= 0


def test_constant_is_the_last_value():
    assert forecast(Constant(), RISING) == [210.0]
