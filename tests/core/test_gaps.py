"""When silence is a gap in the recording, and when it is the traffic."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from tuner.core.errors import TraceError
from tuner.core.gaps import find_gaps, treat_gaps, unmasked
from tuner.core.trace import Gap, Trace


def gamma_arrivals(mean_s: float, cv: float, requests: int, seed: int) -> NDArray[np.float64]:
    shape = cv**-2
    gaps = np.random.default_rng(seed).standard_gamma(shape, requests) / shape
    return np.cumsum(gaps) * mean_s


def cut(arrival_s: NDArray[np.float64], start_s: float, end_s: float) -> NDArray[np.float64]:
    return arrival_s[(arrival_s < start_s) | (arrival_s > end_s)]


@pytest.mark.parametrize("mean_s", [0.05, 1.0, 20.0, 900.0], ids=str)
@pytest.mark.parametrize("cv", [1.0, 3.0], ids=["Poisson", "bursty"])
def test_finds_nothing_in_steady_traffic_of_any_rate(mean_s: float, cv: float) -> None:
    for seed in range(3):
        assert find_gaps(gamma_arrivals(mean_s, cv, 50_000, seed)) == ()


@pytest.mark.parametrize(
    ("mean_s", "outage_s"),
    [(0.1, 70.0), (1.0, 300.0), (60.0, 3 * 3600.0)],
    ids=["10 requests/s, 70 s", "1 request/s, 5 min", "1 request/min, 3 h"],
)
def test_finds_an_outage(mean_s: float, outage_s: float) -> None:
    arrival_s = gamma_arrivals(mean_s, 1.0, 20_000, seed=1)
    start_s = float(arrival_s[10_000])
    (gap,) = find_gaps(cut(arrival_s, start_s, start_s + outage_s))
    assert gap.start_s < start_s + mean_s
    assert gap.end_s >= start_s + outage_s


def test_finds_two_outages_in_a_row() -> None:
    arrival_s = gamma_arrivals(1.0, 1.0, 20_000, seed=1)
    twice = cut(cut(arrival_s, 5_000, 5_600), 5_650, 6_500)
    assert len(find_gaps(twice)) == 2


def test_a_night_with_a_hundredth_of_the_load_is_no_gap() -> None:
    at_s = np.arange(0, 3 * 86_400.0, 60.0)
    rate = 0.5 * (1.02 + np.sin(at_s / 86_400 * 2 * np.pi))
    expected = np.cumsum(rate * 60.0)
    drawn = np.cumsum(np.random.default_rng(2).exponential(size=int(expected[-1] * 0.98)))
    assert find_gaps(np.interp(drawn, expected, at_s)) == ()


def test_less_than_a_minute_is_no_gap() -> None:
    arrival_s = gamma_arrivals(0.01, 1.0, 20_000, seed=1)
    assert find_gaps(cut(arrival_s, 100.0, 158.0)) == ()


def test_says_nothing_at_the_edges_where_little_is_known() -> None:
    arrival_s = np.concatenate([np.arange(50.0), 10_000 + np.arange(500.0)])
    assert find_gaps(arrival_s) == ()


@pytest.mark.parametrize("requests", [1, 2, 3])
def test_a_handful_of_requests_has_no_gap(requests: int) -> None:
    assert find_gaps(1000.0 * np.arange(requests)) == ()


def recording_with_a_gap() -> Trace:
    arrival_s = cut(np.arange(2000.0), 700.5, 1300.5)
    tokens = np.ones(len(arrival_s), np.int32)
    return Trace(arrival_s, tokens, tokens.copy(), name="t")


def test_keep_leaves_the_trace_alone_and_tells_of_the_gap() -> None:
    trace = recording_with_a_gap()
    treated, found = treat_gaps(trace, "keep")
    assert treated is trace
    assert found == (Gap(700.0, 1301.0),)


def test_mask_notes_the_gap_and_moves_no_arrival() -> None:
    trace = recording_with_a_gap()
    treated, found = treat_gaps(trace, "mask")
    assert treated.gaps == found == (Gap(700.0, 1301.0),)
    np.testing.assert_array_equal(treated.arrival_s, trace.arrival_s)


def test_error_refuses_a_trace_with_a_gap() -> None:
    with pytest.raises(TraceError, match="1 gap in the recording, the first from 700 s to 1301 s"):
        treat_gaps(recording_with_a_gap(), "error")


def test_error_lets_a_trace_without_gap_pass() -> None:
    arrival_s = np.arange(500.0)
    tokens = np.ones(500, np.int32)
    _, found = treat_gaps(Trace(arrival_s, tokens, tokens.copy()), "error")
    assert found == ()


def test_silence_before_the_first_request_is_a_gap_where_traffic_does_not_explain_it() -> None:
    rng = np.random.default_rng(0)
    arrival_s = 1e6 + np.cumsum(rng.exponential(0.5, 2000))
    (gap,) = find_gaps(arrival_s)
    assert gap == Gap(0.0, float(arrival_s[0]))
    assert find_gaps(arrival_s - 1e6) == ()


def test_a_gap_that_the_trace_masks_is_not_found_again() -> None:
    trace = replace(recording_with_a_gap(), gaps=(Gap(720.0, 1290.0),))
    assert treat_gaps(trace, "error") == (trace, ())
    # More than a minute of it is open.
    assert unmasked((Gap(700.0, 1301.0),), (Gap(750.0, 1280.0),)) == (Gap(700.0, 1301.0),)


def test_masking_keeps_the_gaps_that_are_there() -> None:
    trace = replace(recording_with_a_gap(), gaps=(Gap(10.0, 20.0), Gap(690.0, 710.0)))
    masked, found = treat_gaps(trace, "mask")
    assert found == (Gap(700.0, 1301.0),)
    assert masked.gaps == (Gap(10.0, 20.0), Gap(690.0, 1301.0))
