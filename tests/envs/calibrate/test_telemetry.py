"""A fit to telemetry alone: what it recovers of a fleet whose step times are known."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

from envs.calibrate.cautions import cautions
from envs.calibrate.telemetry import (
    TelemetryFit,
    _mean_inside,
    fit_telemetry,
    ready_for_fit,
    simulated_blocks,
)
from tests.envs import worlds
from tests.envs.recordings import recorded
from tuner.core.errors import InputError
from tuner.core.profile import StepTime
from tuner.core.trace import Trace

TRUTH = replace(worlds.PROFILE, startup=None)
BASE = replace(
    TRUTH,
    name="guess",
    step_time=StepTime(base_s=0.005, per_prefill_token_s=2e-4, per_sequence_s=3e-4),
)
"""Four times too fast at its base, and wrong in each term."""
TRIALS = 80


def load(seconds: float = 700.0) -> Trace:
    """Many short requests: what single ones did matters little beside their counts."""
    many = worlds.trace(seconds, qps=8.0, seed=3)
    return replace(
        many, prompt_tokens=many.prompt_tokens // 3 + 1, output_tokens=many.output_tokens // 4 + 1
    )


@pytest.fixture(scope="module")
def fit() -> TelemetryFit:
    recording = ready_for_fit(recorded(load(), TRUTH), "known.parquet")
    return fit_telemetry(recording, BASE, terms=("sequences", "prefill"), trials=TRIALS, seed=1)


def test_known_step_times_are_found_by_a_base_that_is_four_times_too_fast(fit):
    true, found = TRUTH.step_time, fit.profile.step_time
    assert found.base_s == pytest.approx(true.base_s, rel=0.1)
    for sequences in (4, 8):
        true_s = true.base_s + sequences * true.per_sequence_s
        assert found.base_s + sequences * found.per_sequence_s == pytest.approx(true_s, rel=0.1)
    assert found.per_prefill_token_s == pytest.approx(true.per_prefill_token_s, rel=0.4)
    base = next(c for c in fit.coefficients if c.key == "step_time.base_s")
    assert base.low < base.value < base.high < 1.3 * base.low


def test_spans_that_a_fit_did_not_see_are_met(fit):
    for name in ("tpot_p50", "ttft_p50"):
        assert abs(fit.errors[f"{name}_left_out"]) < 0.15, name
    # Lengths inside a bucket are not known, and E2E is a length times TPOT.
    assert abs(fit.errors["e2e_p50_left_out"]) < 0.25


def test_what_the_recording_cannot_tell_has_the_width_of_the_prior():
    """Requests one at a time never share a batch: what a second sequence costs is not in them."""
    arrival_s = np.arange(200) * 10.0
    lengths = np.random.default_rng(0).integers(20, 200, (2, 200), dtype=np.int32)
    alone = recorded(Trace(arrival_s, *lengths), TRUTH)
    found = fit_telemetry(ready_for_fit(alone, "t"), BASE, terms=("sequences", "kv"), trials=15)
    width = {c.key: c.high / c.low for c in found.coefficients}
    assert width["step_time.per_kv_token_s"] > 20


def test_one_rate_and_quantiles_below_the_first_bound_are_told():
    rng = np.random.default_rng(5)
    steady = replace(load(), arrival_s=np.cumsum(rng.exponential(1 / 8.0, len(load()))))
    assert cautions(ready_for_fit(recorded(load(), TRUTH), "swings")) == []
    (one,) = cautions(ready_for_fit(recorded(steady, TRUTH), "steady"))
    assert one.startswith("the recording holds one rate only")
    fast = replace(TRUTH, step_time=StepTime(base_s=0.004, per_prefill_token_s=1e-6))
    told = cautions(ready_for_fit(recorded(load(), fast), "fast"))
    assert "TPOT p50, p95, p99: in the first bucket of" in told[0]
    assert "(0 to 10 ms), so interpolated" in told[0]
    assert not any(sentence.startswith("TTFT") for sentence in told)


def test_the_same_seed_gives_the_same_bits(fit):
    recording = ready_for_fit(recorded(load(60.0), TRUTH), "t")
    one, again = (fit_telemetry(recording, BASE, terms=(), trials=10, seed=4) for _ in range(2))
    assert one.coefficients == again.coefficients
    assert one.errors == again.errors


def test_a_fleet_simulated_by_its_own_profile_has_its_own_histograms():
    """Counts by block and bucket are those of the recording, where the arrivals are known."""
    trace = load(300.0)
    recording = ready_for_fit(recorded(trace, TRUTH), "t")
    own = simulated_blocks(recording, trace, TRUTH, replicas=1, router="round_robin")
    for kind, counts in recording.measured.counts.items():
        np.testing.assert_array_equal(own.counts[kind], counts)
    # Sampled every 15 s on one side, and exact on the other.
    assert own.in_flight.mean() == pytest.approx(recording.measured.in_flight.mean(), rel=0.1)


def test_mean_in_flight_counts_each_request_for_as_long_as_it_is_there():
    found = _mean_inside(
        np.array([0.0, 5.0, 12.0]), np.array([10.0, 15.0, np.inf]), np.array([0.0, 10.0, 20.0])
    )
    np.testing.assert_allclose(found, [(10 + 5) / 10, (5 + 8) / 10])


def test_a_short_recording_and_a_term_of_another_name_are_refused(fit):
    with pytest.raises(InputError, match=r"short: \d+ requests finished .* expected at least 180"):
        ready_for_fit(recorded(load(15.0), TRUTH), "short")
    with pytest.raises(InputError, match="term 'magic' is not known; expected of: sequences"):
        fit_telemetry(fit.recording, BASE, terms=("magic",))


def test_without_optuna_the_extra_is_named(fit, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r"install deepseek-tuner\[train\]"):
        fit_telemetry(fit.recording, BASE)
