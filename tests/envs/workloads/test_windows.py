"""Load from counts: exactly what was counted, where it was counted, shaped as was fitted."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from envs.workloads.deepseek_r1_day import TRAFFIC
from envs.workloads.lengths import MeasuredLengths, given_out
from envs.workloads.windows import generate
from tuner.core.errors import ConfigError
from tuner.core.gaps import find_gaps, unmasked
from tuner.core.trace import Gap, Trace
from tuner.data.counts import (
    WINDOW_S,
    ClientCounts,
    ClientLengths,
    Distribution,
    read_counts,
    read_lengths,
)
from tuner.data.summary import summarise


def counts_of(
    table: np.ndarray, *, shape: float = 1.0, weibull: bool = False, name: str = "pool"
) -> ClientCounts:
    """Counts as a table `(windows, clients)`; a zero is a missing row."""
    window, client = np.nonzero(table)
    rows = len(window)
    return ClientCounts(
        name=name,
        client_id=client,
        window=window,
        requests=table[window, client],
        weibull=np.full(rows, weibull),
        shape=np.full(rows, shape),
    )


def pool(windows: int = 60, clients: int = 5, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.poisson(200.0 * (1 + np.arange(clients)), (windows, clients))


def by_window_and_client(trace: Trace, shape: tuple[int, int]) -> np.ndarray:
    found = np.zeros(shape, int)
    assert trace.client_id is not None
    np.add.at(found, ((trace.arrival_s // WINDOW_S).astype(int), trace.client_id), 1)
    return found


@pytest.mark.parametrize(
    ("shape", "weibull"), [(1.0, False), (0.02, False), (0.3, True), (30.0, True)], ids=str
)
def test_every_client_sends_as_many_in_each_window_as_were_counted(shape, weibull):
    table = pool()
    trace = generate(counts_of(table, shape=shape, weibull=weibull), seed=3)
    np.testing.assert_array_equal(by_window_and_client(trace, table.shape), table)


@pytest.mark.parametrize(
    ("shape", "weibull", "cv"),
    [(1.0, False, 1.0), (0.25, False, 2.0), (4.0, False, 0.5), (0.5, True, 5**0.5)],
    ids=["Poisson", "bursty", "even", "Weibull"],
)
def test_gaps_vary_as_the_fitted_distribution_says(shape, weibull, cv):
    """Gamma: CV^2 = 1 / shape; Weibull of shape 1/2: gaps are squares of exponentials, CV^2 = 5."""
    table = np.full((20, 1), 3000)
    trace = generate(counts_of(table, shape=shape, weibull=weibull), seed=1)
    gaps = np.diff(trace.arrival_s)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.06)


def test_equal_windows_have_their_own_instants_and_both_edges_are_free():
    trace = generate(counts_of(np.full((50, 1), 100)), seed=1)
    inside_s = (trace.arrival_s % WINDOW_S).reshape(50, 100)
    assert len(np.unique(inside_s)) == inside_s.size
    # 100 requests are the borders of 101 gaps, each of 600 / 101 s in the mean.
    for edge in (inside_s[:, 0], WINDOW_S - inside_s[:, -1]):
        assert edge.mean() == pytest.approx(WINDOW_S / 101, rel=0.5)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others():
    counts = counts_of(pool())
    one, again, other = (generate(counts, seed=seed) for seed in (5, 5, 6))
    for name, column in one.columns().items():
        assert column.tobytes() == again.columns()[name].tobytes()
    assert not np.array_equal(one.arrival_s, other.arrival_s)


def test_fewer_hours_are_the_beginning_of_more():
    counts = counts_of(pool())
    whole, part = (
        generate(counts, seed=5),
        generate(counts, seed=5, hours=3.1),
    )
    kept = whole.arrival_s < 3.1 * 3600
    assert len(part) == kept.sum()
    for name, column in part.columns().items():
        np.testing.assert_array_equal(column, whole.columns()[name][kept])


@pytest.mark.parametrize("mean_qps", [0.01, 1.0, 40.0], ids=str)
def test_scaled_counts_lose_nobody(mean_qps):
    table = pool()
    trace = generate(counts_of(table), seed=2, mean_qps=mean_qps)
    factor = mean_qps * 60 * WINDOW_S / table.sum()
    found = by_window_and_client(trace, table.shape)
    assert np.abs(found.sum(axis=0) - factor * table.sum(axis=0)).max() <= 1
    assert np.abs(np.cumsum(found, axis=0) - factor * np.cumsum(table, axis=0)).max() <= 1


@pytest.mark.parametrize("hours", [2.0, 3.1, 20.0], ids=str)
def test_the_part_that_is_written_has_the_rate_that_was_asked_for(hours):
    """A load that doubles half-way, and a gap in the first part, another in the second."""
    table = pool()
    table[30:] *= 2
    table[[4, 50]] = 0
    table[5] = [0, 2, 0, 0, 5]
    trace = generate(counts_of(table), seed=3, mean_qps=4.0, hours=hours)
    seconds = min(hours, 10.0) * 3600 - sum(gap.length_s for gap in trace.gaps)
    assert len(trace) / seconds == pytest.approx(4.0, rel=0.01)
    windows = 2 if hours < 8 else 3
    assert trace.header["gaps"] == f"{windows} windows with 7 counted requests"


def test_windows_without_rows_or_nearly_so_are_gaps_and_not_zero_load():
    table = pool()
    table[10:13] = 0
    table[13] = [0, 3, 0, 0, 20]
    table[40] = 0
    trace = generate(counts_of(table), seed=1, mean_qps=5.0)
    assert trace.gaps == (Gap(6000.0, 8400.0), Gap(24000.0, 24600.0))
    assert not by_window_and_client(trace, table.shape)[[10, 11, 12, 13, 40]].any()
    assert summarise(trace).mean_qps == pytest.approx(5.0, rel=0.01)
    assert trace.header["gaps"] == "5 windows with 23 counted requests"
    found = find_gaps(trace.arrival_s)
    assert len(found) == 2
    assert unmasked(found, trace.gaps) == ()


def test_a_gap_ends_with_the_trace():
    table = pool(windows=30)
    table[10:20] = 0
    trace = generate(counts_of(table), seed=1, hours=2.5)
    assert trace.gaps == (Gap(6000.0, 9000.0),)


def test_kinds_of_traffic_keep_their_shares():
    rng = np.random.default_rng(1)
    table = rng.poisson(1000 / (1 + np.arange(80)), (40, 80))
    counts = counts_of(table)
    weights = np.array([traffic.share for traffic in TRAFFIC])
    kinds = given_out(counts, weights)
    shares = np.bincount(kinds, weights=counts.requests) / counts.requests.sum()
    np.testing.assert_allclose(shares, weights / weights.sum(), atol=0.01)
    for client in range(80):
        assert len(set(kinds[counts.client_id == client])) == 1


def test_where_one_client_is_most_of_all_the_others_keep_their_proportions():
    table = np.full((10, 41), 10)
    table[:, 0] = 800
    counts = counts_of(table)
    kinds = given_out(counts, np.array([0.5, 0.3, 0.2]))
    shares = np.bincount(kinds, weights=counts.requests, minlength=3) / counts.requests.sum()
    np.testing.assert_allclose(shares, [2 / 3, 0.2, 2 / 15], atol=0.01)


def measured(client_id: int, start_s: float, tokens: list[int], requests: float) -> ClientLengths:
    some = Distribution(np.array(tokens, np.int32), np.full(len(tokens), 1 / len(tokens)))
    return ClientLengths(client_id, start_s, requests, some, some)


def test_the_same_clients_keep_their_own_lengths_in_their_own_time():
    lengths = MeasuredLengths(
        [
            measured(0, 0.0, [10, 11], 100.0),
            measured(0, 1200.0, [20, 21], 100.0),
            measured(1, 1200.0, [30], 100.0),
            measured(7, 0.0, [70], 1.0),
        ],
        "own",
        same_clients=True,
    )
    trace = generate(counts_of(np.full((4, 2), 500)), seed=1, lengths=lengths)
    early = trace.arrival_s < 1200
    first = trace.client_id == 0
    for tokens in (trace.prompt_tokens, trace.output_tokens):
        assert set(tokens[first & early]) == {10, 11}
        assert set(tokens[first & ~early]) == {20, 21}
        assert set(tokens[~first]) == {30}
    shares = np.bincount(trace.prompt_tokens[first & early])[10:] / (first & early).sum()
    np.testing.assert_allclose(shares, 0.5, atol=0.05)


def test_other_clients_get_lengths_over_all_time_in_their_proportions():
    lengths = MeasuredLengths(
        [measured(0, 0.0, [10], 300.0), measured(0, 9e3, [20], 100.0), measured(1, 0.0, [30], 100)],
        "others",
    )
    trace = generate(counts_of(np.full((4, 10), 200)), seed=1, lengths=lengths)
    shares = np.bincount(trace.output_tokens)[[10, 20, 30]] / len(trace)
    np.testing.assert_allclose(shares, [0.6, 0.2, 0.2], atol=0.02)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"seed": -1}, "seed is -1"),
        ({"seed": 1, "mean_qps": 0.0}, "mean_qps is 0.0"),
        ({"seed": 1, "hours": float("nan")}, "hours is nan"),
        ({"seed": 1, "mean_qps": 1e6}, "expected at most"),
        ({"seed": 1, "mean_qps": 1e-7}, "holds no request"),
    ],
    ids=["seed", "rate", "hours", "too many", "none"],
)
def test_refuses_arguments_out_of_range(arguments, sentence):
    with pytest.raises(ConfigError, match=sentence):
        generate(counts_of(pool()), **arguments)


POOLS = {
    "servegen_m_large_d00_10": (0, 17_280_000),
    "servegen_m_mid_d00_10": (78, 16_344_000),
}


def windows_folder() -> Path:
    folder = os.environ.get("TUNER_DATA")
    if not folder:
        pytest.skip("TUNER_DATA is not set: the counted windows are not at hand")
    return Path(folder) / "traces/windows"


@pytest.mark.parametrize("name", POOLS)
def test_ten_days_of_a_real_pool_are_drawn_in_seconds(name):
    """At a tenth of the 20 requests/s that the documentation gives figures for."""
    missed, requests = POOLS[name]
    counts = read_counts(windows_folder() / f"{name}.parquet")
    before = time.perf_counter()
    trace = generate(counts, seed=1, mean_qps=2.0)
    assert time.perf_counter() - before < 20
    assert len(trace) == pytest.approx(requests / 10, abs=200)
    assert sum(gap.length_s for gap in trace.gaps) == missed * WINDOW_S
    outside = np.ones(1440, bool)
    for gap in trace.gaps:
        outside[int(gap.start_s // WINDOW_S) : int(gap.end_s // WINDOW_S)] = False
    drawn = np.bincount((trace.arrival_s // WINDOW_S).astype(int), minlength=1440)
    factor = 2.0 * outside.sum() * WINDOW_S / counts.totals()[outside].sum()
    np.testing.assert_allclose(drawn[outside], factor * counts.totals()[outside], atol=20)


def test_the_real_r1_windows_come_out_as_counted_with_their_own_lengths():
    folder = windows_folder()
    counts = read_counts(folder / "servegen_deepseek_r1_h00_16.parquet")
    name = "servegen_deepseek_r1_tokens_w0_w2.parquet"
    lengths = MeasuredLengths(read_lengths(folder / name), name, same_clients=True)
    trace = generate(counts, seed=1, lengths=lengths)
    drawn = np.bincount((trace.arrival_s // WINDOW_S).astype(int))
    np.testing.assert_array_equal(drawn, counts.totals())
    # The recorded profile's own quantiles, as in the battery of the built-in day.
    assert np.quantile(trace.prompt_tokens, 0.99) == pytest.approx(24_008, rel=0.02)
    assert np.quantile(trace.output_tokens, [0.05, 0.5, 0.99]) == pytest.approx(
        [238, 1_119, 13_713], rel=0.02
    )
