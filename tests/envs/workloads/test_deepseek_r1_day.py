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
)
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
