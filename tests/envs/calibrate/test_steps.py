"""Step logs of a known law, fitted; and the reference forest's, held to the bars."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from envs.calibrate import fit_steps, read_recording, read_step_log, replay
from envs.calibrate.steps import StepLog
from tuner.core.errors import InputError
from tuner.core.profile import EngineLimits
from tuner.data import load_profile

PROFILE = replace(load_profile("reference-affine"), limits=EngineLimits(128, 512))
BASE_S, PER_SEQUENCE_S, PER_KV_TOKEN_S = 0.02, 3e-4, 4e-8
PREFILL_BASE_S, PER_PREFILL_TOKEN_S, PER_CONTEXT_S = 0.004, 6e-5, 3e-8


def made_log(
    *, steps: int = 6000, noise: float = 0.01, bend: bool = False, runs: int = 0, seed: int = 0
) -> StepLog:
    """Iterations of the law above; prompts in one of four, neighbours alike as in a real log."""
    rng = np.random.default_rng(seed)
    load = 20 + 12 * np.sin(np.arange(steps) / 300)
    batch = np.clip(np.round(load + rng.normal(0, 3, steps)), 1, None)
    prefill = np.where(rng.random(steps) < 0.25, rng.integers(1, 512, steps), 0)
    kv = batch * rng.uniform(300, 900, steps)
    pairs = prefill * rng.integers(0, 4, steps) * 400.0
    seconds = BASE_S + PER_SEQUENCE_S * batch + PER_KV_TOKEN_S * kv + PER_CONTEXT_S * pairs
    seconds += np.where(prefill > 0, PREFILL_BASE_S + PER_PREFILL_TOKEN_S * prefill, 0.0)
    if bend:
        seconds += np.where(prefill > 256, 0.01, 0.0)
    seconds *= np.exp(rng.normal(0, noise, steps))
    run = None if not runs else (np.arange(steps) * runs // steps).astype(np.int64)
    return StepLog(prefill.astype(float), batch, kv, seconds, pairs, run)


def test_the_fit_recovers_the_law_within_its_intervals() -> None:
    fit = fit_steps(made_log(), PROFILE, terms=("context",))
    found = {coefficient.key: coefficient for coefficient in fit.coefficients}
    for key, true in {
        "step_time.per_kv_token_s": PER_KV_TOKEN_S,
        "step_time.per_context_s": PER_CONTEXT_S,
        "step_time.prefill_base_s": PREFILL_BASE_S,
        "step_time.per_prefill_token_s": PER_PREFILL_TOKEN_S,
    }.items():
        assert found[key].low <= true <= found[key].high, key
        assert found[key].high - found[key].low < 0.5 * true, key
    (low, low_s), (high, high_s) = fit.step_time.batch_table
    assert (high_s - low_s) / (high - low) == pytest.approx(PER_SEQUENCE_S, rel=0.05)
    assert low_s == pytest.approx(BASE_S + PER_SEQUENCE_S * low, rel=0.01)
    # The mean of |e^N(0, 0.01) - 1| is 0.8 %: nothing else is left.
    assert fit.errors["step_mean_left_out"] == pytest.approx(0.008, rel=0.1)
    assert abs(fit.errors["busy_time_left_out"]) < 0.002


def test_straight_lines_are_kept_where_tables_gain_nothing() -> None:
    fit = fit_steps(made_log(), PROFILE)
    assert fit.law.name == "straight lines with context"


def test_a_table_is_taken_where_it_pays_on_what_is_left_out() -> None:
    fit = fit_steps(made_log(bend=True), PROFILE)
    assert "prefill table" in fit.law.name
    assert fit.step_time.per_prefill_token_s == 0.0
    table = dict(fit.step_time.prefill_table)
    below, above = (max(at for at in table if at <= 248), min(at for at in table if at >= 272))
    rise_s = 0.01 + PER_PREFILL_TOKEN_S * (above - below)
    assert table[above] - table[below] == pytest.approx(rise_s, rel=0.25)


def test_no_coefficient_is_negative_and_no_table_falls() -> None:
    log = made_log(noise=0.3, steps=1500)
    fit = fit_steps(log, PROFILE, terms=("batch-table", "prefill-table", "context"))
    for table in (fit.step_time.batch_table, fit.step_time.prefill_table):
        seconds = [value for _, value in table]
        assert seconds == sorted(seconds)
        assert seconds[0] >= 0
    assert min(c.low for c in fit.coefficients) >= 0


def test_a_draw_without_small_batches_says_nothing_about_them() -> None:
    """One block of 60 holds all the small batches: a third of the draws are without it."""
    log = made_log()
    small = np.arange(len(log)) < 100
    batch = np.where(small, np.arange(len(log)) % 2 + 1.0, np.maximum(log.batch, 2.0))
    seconds = log.step_s + PER_SEQUENCE_S * (batch - log.batch)
    fit = fit_steps(replace(log, batch=batch, step_s=seconds), PROFILE, terms=("batch-table",))
    first = next(c for c in fit.coefficients if c.key == "step_time.batch_table[1]")
    assert first.value == pytest.approx(BASE_S + PER_SEQUENCE_S, rel=0.05)
    assert first.low > 0.9 * first.value
    assert first.high < 1.1 * first.value


def test_runs_that_are_held_out_take_no_part() -> None:
    log = made_log(runs=3)
    spoiled = replace(log, step_s=np.where(log.run == 2, 3 * log.step_s, log.step_s))
    clean = fit_steps(log, PROFILE, terms=(), hold_out=[2])
    other = fit_steps(spoiled, PROFILE, terms=(), hold_out=[2])
    assert clean.step_time == other.step_time
    assert other.errors["step_mean_left_out"] == pytest.approx(2 / 3, abs=0.05)
    assert np.isnan(other.predicted_s[log.run != 2]).all()


def test_the_same_seed_gives_the_same_intervals() -> None:
    log = made_log(steps=1200)
    first, again = (fit_steps(log, PROFILE, terms=(), seed=4) for _ in range(2))
    other = fit_steps(log, PROFILE, terms=(), seed=5)
    assert first.coefficients == again.coefficients
    assert first.coefficients != other.coefficients


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step_s": None}, "column 'step_s' is missing"),
        ({"step_s": 0.0}, r"step_s is 0 in row 1; expected seconds from 1e-06 to 60$"),
        ({"step_s": 2e10}, r"step_s is 2e\+10 in row 1; .* \(milliseconds, a pause\?\)"),
        ({"step_s": 20.0}, r"half of the iterations have a step_s of 20 .* \(milliseconds\?\)"),
        ({"batch": 0}, "batch is 0 in row 1; expected whole sequences from 1 to 65,536"),
        ({"batch": 4.5}, "batch is 4.5 in row 1; expected whole sequences"),
        ({"kv_tokens": 0.5}, "kv_tokens is 0.5 in row 1; expected whole tokens"),
        ({"kv_tokens": float("nan")}, "row 1 has nan as kv_tokens"),
        ({"prefill_tokens": "12"}, "prefill_tokens is '12' in row 1; expected a number"),
        ({"batch": True}, "batch is True in row 1; expected a number"),
        ({"prefill_tokens": [1, 2]}, r"prefill_tokens is array\(\[1, 2\]\) in row 1"),
    ],
)
def test_says_what_is_wrong_with_a_log(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    row = {"prefill_tokens": 0, "batch": 4, "kv_tokens": 100, "step_s": 0.02} | changes
    table = pa.table({name: [v] * 700 for name, v in row.items() if v is not None})
    pq.write_table(table, tmp_path / "steps.parquet")
    with pytest.raises(InputError, match=message):
        read_step_log(tmp_path / "steps.parquet")


def test_refuses_several_values_per_row(tmp_path: Path) -> None:
    columns = {name: np.ones(700) for name in ("prefill_tokens", "batch", "kv_tokens")}
    np.savez(tmp_path / "s.npz", **columns, step_s=np.ones((700, 2)))
    with pytest.raises(InputError, match="'step_s' is 700 x 2; expected one number per row"):
        read_step_log(tmp_path / "s.npz")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ttft_s": -1.0}, r"ttft_s is -1 in row 2; expected seconds from 1e-06 to 86,400$"),
        ({"e2e_s": 2e5}, r"e2e_s is 200000 in row 2; .* \(milliseconds\?\)"),
        ({"ttft_s": 400.0}, "e2e_s is 3 in row 2, below its ttft_s of 400; .* milliseconds"),
        ({"prompt_tokens": 1.5}, "prompt_tokens is 1.5 in row 2; expected whole tokens"),
        ({"output_tokens": 3e9}, "output_tokens is 3000000000 in row 2; expected whole tokens"),
        ({"arrival_s": 1.8e9}, r"arrival_s is 1800000000 in row 2; .* a clock\?\)"),
    ],
)
def test_says_what_is_wrong_with_requests(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    usual = {"arrival_s": 1.0, "prompt_tokens": 64.0, "output_tokens": 32.0}
    usual |= {"ttft_s": 0.2, "e2e_s": 3.0}
    path = tmp_path / "requests.parquet"
    pq.write_table(pa.Table.from_pylist([usual, usual]), path)
    assert len(read_recording(path).trace) == 2
    pq.write_table(pa.Table.from_pylist([usual, usual | changes]), path)
    with pytest.raises(InputError, match=message):
        read_recording(path)


def test_asks_for_requests_that_have_a_tpot(tmp_path: Path) -> None:
    row = {"arrival_s": 1.0, "prompt_tokens": 9, "output_tokens": 1, "ttft_s": 0.2, "e2e_s": 0.2}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "r.parquet")
    with pytest.raises(InputError, match="no request has two output tokens"):
        read_recording(tmp_path / "r.parquet")


def test_asks_for_enough_iterations(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "s.npz",
        **{n: np.ones(5) for n in ("prefill_tokens", "batch")},
        kv_tokens=np.ones(5),
        step_s=np.ones(5),
    )
    with pytest.raises(InputError, match="holds 5 iterations; expected at least 600"):
        read_step_log(tmp_path / "s.npz")


def test_meets_the_bars_on_the_reference_forest() -> None:
    """The figures of `make proof-calibrate`."""
    folder = os.environ.get("TUNER_DATA")
    if not folder:
        pytest.skip("TUNER_DATA is not set: the reference step log is not at hand")
    data = Path(folder) / "reference/sim_compare"
    fit = fit_steps(read_step_log(data / "vidur_w1_rf_a30qwen7b_rr4.steps.npz"), PROFILE)
    assert fit.errors["step_mean_left_out"] <= 0.01
    assert abs(fit.errors["busy_time_left_out"]) <= 0.005
    recording = read_recording(
        data / "vidur_w1_rf_a30qwen7b_rr4.requests.csv.gz", data / "w1_poisson12.csv.gz"
    )
    profile = replace(PROFILE, step_time=fit.step_time)
    errors = replay(recording, profile, replicas=4, router="round_robin").errors()
    bars = {f"ttft_{figure}": 0.03 for figure in ("mean", "p50", "p95")} | {"ttft_p99": 0.05}
    for name, error in errors.items():
        assert abs(error) <= bars.get(name, 0.01), name
