"""Figures of a trace against values derived by hand."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from tuner.core.trace import Gap, Trace
from tuner.data.summary import summarise, window_counts


def even(requests: int, every_s: float, **extra: object) -> Trace:
    return Trace(
        arrival_s=np.arange(requests) * every_s,
        prompt_tokens=np.full(requests, 10, np.int32),
        output_tokens=np.full(requests, 20, np.int32),
        **extra,  # type: ignore[arg-type]
    )


def test_an_even_trace_has_one_rate_and_no_burstiness() -> None:
    summary = summarise(even(1201, 1.0))
    assert summary.span_s == 1200
    assert summary.mean_qps == pytest.approx(1201 / 1200)
    assert summary.peak_qps_15s == 1
    assert summary.peak_qps_60s == 1
    assert summary.gap_cv == 0
    assert summary.dispersion == {"15s": 0, "60s": 0, "600s": 0}
    assert summary.largest_rise_10min == 1
    assert summary.output.tokens_per_s == pytest.approx(20 * 1201 / 1200)
    assert summary.output.quantiles == {"p5": 20, "p50": 20, "p95": 20, "p99": 20}


def test_poisson_arrivals_have_a_variation_and_a_dispersion_of_one() -> None:
    arrival_s = np.cumsum(np.random.default_rng(1).exponential(0.1, 200_000))
    tokens = np.ones(200_000, np.int32)
    summary = summarise(Trace(arrival_s, tokens, tokens.copy()))
    assert summary.gap_cv == pytest.approx(1, rel=0.02)
    assert summary.dispersion["15s"] == pytest.approx(1, rel=0.1)


def test_the_steepest_rise_is_between_neighbouring_ten_minutes() -> None:
    arrival_s = np.concatenate([np.arange(0, 600, 6.0), np.arange(600, 1201, 2.0)])
    tokens = np.ones(len(arrival_s), np.int32)
    summary = summarise(Trace(arrival_s, tokens, tokens.copy()))
    assert summary.largest_rise_10min == pytest.approx(3)


@pytest.mark.parametrize("gap", [Gap(599.0, 1201.0), Gap(610.0, 1200.0)], ids=str)
def test_masked_time_is_in_no_figure(gap: Gap) -> None:
    whole = even(2001, 1.0)
    kept = (whole.arrival_s < 600) | (whole.arrival_s > 1200)
    trace = Trace(
        arrival_s=whole.arrival_s[kept],
        prompt_tokens=whole.prompt_tokens[kept],
        output_tokens=whole.output_tokens[kept],
        gaps=(gap,),
    )
    summary = summarise(trace)
    assert summary.masked_s == gap.length_s
    assert summary.mean_qps == pytest.approx(len(trace) / (2000 - gap.length_s))
    assert summary.gap_cv == 0
    assert summary.dispersion["60s"] == 0
    counts = window_counts(trace, 60.0)
    masked = range(int(gap.start_s // 60), int(gap.end_s // 60) + 1)
    assert np.flatnonzero(np.isnan(counts)).tolist() == list(masked)


def test_a_gap_that_is_kept_is_named_and_counts_as_idle() -> None:
    whole = even(2001, 1.0)
    kept = (whole.arrival_s < 600) | (whole.arrival_s > 1200)
    trace = Trace(whole.arrival_s[kept], whole.prompt_tokens[kept], whole.output_tokens[kept])
    summary = summarise(trace)
    assert summary.gaps == (Gap(599.0, 1201.0),)
    assert summary.masked == ()
    assert summary.mean_qps == pytest.approx(0.7, rel=0.01)


@pytest.mark.parametrize("requests", [1, 2])
def test_a_tiny_trace_has_what_can_be_known(requests: int) -> None:
    summary = summarise(even(requests, 0.0))
    assert summary.requests == requests
    assert summary.mean_qps == 0
    assert summary.peak_qps_15s is None
    assert summary.gap_cv is None
    assert summary.dispersion == {"15s": None, "60s": None, "600s": None}


def test_clients_and_prefix_reuse_are_shares() -> None:
    trace = even(
        4,
        1.0,
        client_id=np.array([1, 1, 1, 2], np.int32),
        prefix_hit_tokens=np.array([10, 0, 0, 0], np.int32),
    )
    summary = summarise(trace)
    assert summary.clients is not None
    assert (summary.clients.clients, summary.clients.largest_share) == (2, 0.75)
    assert summary.prefix_hit_share == 0.25


def test_the_summary_is_plain_enough_for_json() -> None:
    trace = even(100, 1.0, client_id=np.zeros(100, np.int32), gaps=(Gap(200.0, 300.0),))
    assert json.loads(json.dumps(asdict(summarise(trace)), allow_nan=False))["requests"] == 100
