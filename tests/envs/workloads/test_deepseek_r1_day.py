"""The built-in day against the figures it was made from."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from envs.workloads.deepseek_r1_day import (
    CHAT,
    DAY_S,
    GRID_S,
    NODES,
    TRAFFIC,
    day_shape,
    generate,
    output_tokens_per_request,
    parts,
)
from tuner.core.errors import ConfigError
from tuner.core.trace import Trace


@pytest.fixture(scope="module")
def days() -> list[Trace]:
    return [generate(hours=24, seed=seed) for seed in range(4)]


def counts(trace: Trace, window_s: float) -> np.ndarray:
    return np.bincount((trace.arrival_s // window_s).astype(int))


def test_the_published_steps_have_their_published_mean() -> None:
    starts, nodes = np.array(NODES).T
    assert np.sum(np.diff([*starts, 24.0]) * nodes) / 24 == pytest.approx(226.75)


def test_the_shape_is_lowest_in_the_early_morning_and_flat_through_the_day() -> None:
    shape = day_shape()
    hour = np.arange(0, DAY_S, GRID_S) / 3600
    assert shape.mean() == pytest.approx(1)
    assert 3.5 < hour[shape.argmin()] < 6.5
    assert shape.min() == pytest.approx(68 / 226.75, rel=1e-6)
    np.testing.assert_allclose(shape[(hour > 10) & (hour < 22)], 278 / 226.75)


def test_the_shape_joins_itself_at_midnight() -> None:
    shape = day_shape()
    steps = np.abs(np.diff([*shape, shape[0]]))
    assert steps[-1] < 2 * np.median(steps[:30])


def test_every_length_table_rises_and_starts_at_a_token() -> None:
    for traffic in TRAFFIC:
        for table in (traffic.prompt_tokens, traffic.output_tokens):
            assert table[0] >= 1
            assert all(low <= high for low, high in pairwise(table))
    assert sum(traffic.share for traffic in TRAFFIC) == pytest.approx(1)


@pytest.mark.parametrize(
    ("column", "quantile", "measured", "tolerance"),
    [
        ("prompt_tokens", 0.5, 120, 0.45),
        ("prompt_tokens", 0.75, 407, 0.15),
        ("prompt_tokens", 0.99, 24_008, 0.1),
        ("output_tokens", 0.05, 238, 0.1),
        ("output_tokens", 0.5, 1_119, 0.1),
        ("output_tokens", 0.99, 13_713, 0.06),
    ],
)
def test_lengths_have_the_quantiles_of_the_recorded_profile(
    days: list[Trace], column: str, quantile: float, measured: float, tolerance: float
) -> None:
    lengths = np.concatenate([day.columns()[column] for day in days])
    assert np.quantile(lengths, quantile) == pytest.approx(measured, rel=tolerance)


def test_load_varies_as_much_as_the_recorded_one(days: list[Trace]) -> None:
    # ServeGen's day: standard deviation of the steps of log counts in 10 minutes 0.22, variation of
    # the counts 0.49, largest rise in 10 minutes 2.25.
    for day in days:
        ten_minutes = counts(day, 600.0)
        steps = np.diff(np.log(ten_minutes))
        assert 0.1 < steps.std() < 0.3
        assert 0.3 < ten_minutes.std() / ten_minutes.mean() < 0.7
        assert 1.3 < np.exp(steps.max()) < 3.5


def test_gaps_are_burstier_than_poisson(days: list[Trace]) -> None:
    for day in days:
        gaps = np.diff(day.arrival_s)
        assert 1.2 < gaps.std() / gaps.mean() < 1.8


def test_the_second_day_repeats_the_shape_of_the_first() -> None:
    trace = generate(hours=48, seed=1)
    chat = trace.arrival_s[trace.client_id == TRAFFIC.index(CHAT)]
    by_hour = np.bincount((chat // 3600).astype(int), minlength=48)
    night, day = by_hour[[4, 5, 28, 29]], by_hour[[15, 16, 39, 40]]
    assert day.min() > night.max()


@pytest.mark.parametrize(
    ("hours", "part_hours", "mean_qps"),
    [(5.0, 1.0, 15.0), (5.0, 0.37, 15.0), (26.0, 6.0, 2.0), (3.0, 1 / 60, 40.0), (2.0, 9.0, 1.0)],
    ids=["hours", "odd spans", "over midnight", "minutes", "one part"],
)
def test_parts_behind_each_other_are_the_whole(
    hours: float, part_hours: float, mean_qps: float
) -> None:
    whole = generate(hours, 7, mean_qps)
    drawn = list(parts(hours, 7, mean_qps, part_hours=part_hours))
    for name, column in whole.columns().items():
        joined = np.concatenate([part.columns()[name] for part in drawn])
        assert joined.tobytes() == column.tobytes()
    for part in drawn:
        # Each lies in its own span, on the clock of the whole.
        spans = np.floor(part.arrival_s / (part_hours * 3600))
        assert np.unique(spans).size == 1


def test_a_fleets_day_is_drawn_an_hour_at_a_time() -> None:
    """A thousand requests per second: what the first hour takes is an hour's, not the day's."""
    first = next(parts(24, 1, 1000.0))
    assert first.last_arrival_s < 3600
    assert len(first) == pytest.approx(1000 * 3600, rel=0.4)
    assert first.header["part"] == "1 of 24"


def test_output_tokens_per_request_are_those_that_are_drawn(days: list[Trace]) -> None:
    outputs = np.concatenate([day.output_tokens for day in days])
    assert output_tokens_per_request() == pytest.approx(outputs.mean(), rel=0.03)


def test_a_trace_that_would_not_fit_is_refused_and_its_parts_are_not() -> None:
    with pytest.raises(ConfigError, match="expected at most 200,000,000 requests"):
        generate(24, 1, 5000.0)
    assert parts(24, 1, 5000.0) is not None
    with pytest.raises(ConfigError, match="part_hours is 0"):
        parts(24, 1, part_hours=0)
