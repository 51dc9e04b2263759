"""The closed loop against the compiled simulator, the fit against a known law, and the profile."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from envs import calibrate
from envs.calibrate import Point, closed_loop, errors, fit_step_time, read_points, simulate_point
from envs.simulator.fleet import Fleet
from tuner.core.errors import InputError
from tuner.core.profile import EngineLimits, KvCache, ServingProfile, StepTime
from tuner.core.trace import Trace
from tuner.data import load_profile

LAW = StepTime(
    per_prefill_token_s=2e-5,
    per_kv_token_s=2e-8,
    prefill_base_s=0.05,
    batch_table=((1, 0.0085), (4, 0.0096), (16, 0.013), (64, 0.0186)),
)


def profile_of(step_time: StepTime = LAW, blocks: int = 31_000) -> ServingProfile:
    return ServingProfile(
        schema="tuner.profile/1",
        name="test",
        scheduler="vidur-sarathi",
        gpus_per_replica=8,
        kv=KvCache(block_tokens=16, blocks=blocks),
        limits=EngineLimits(batch_size_max=64, chunk_tokens=2048),
        step_time=step_time,
    )


@pytest.mark.parametrize(
    ("step_time", "blocks"),
    [
        (LAW, 31_000),
        (replace(LAW, per_kv_token_s=0.0), 31_000),
        (StepTime(base_s=0.01, per_sequence_s=1e-3, per_prefill_token_s=1e-4), 31_000),
        (LAW, 400),  # preempts
    ],
    ids=["all terms", "no KV term", "affine", "starved of KV"],
)
def test_requests_sent_at_once_are_served_as_the_simulator_serves_them(
    step_time: StepTime, blocks: int
) -> None:
    rng = np.random.default_rng(1)
    prompts, outputs = rng.integers(50, 1500, 60), rng.integers(2, 300, 60)
    profile = profile_of(step_time, blocks)
    ttft_s, tpot_s = closed_loop(profile, len(prompts), prompts, outputs)
    trace = Trace(
        arrival_s=np.zeros(60),
        prompt_tokens=prompts.astype(np.int32),
        output_tokens=outputs.astype(np.int32),
    )
    fleet = Fleet(trace, profile, seeds=np.array([1], np.uint64), slots=1, record=True)
    fleet.advance(3600.0)
    served = fleet.requests()
    if blocks == 400:
        assert served.preemptions.sum() > 0
    np.testing.assert_allclose(ttft_s, served.ttft_s, rtol=0, atol=1e-9)
    np.testing.assert_allclose(tpot_s, served.tpot_s, rtol=0, atol=1e-9)


def test_one_client_waits_for_its_own_prompt_only() -> None:
    prompts, outputs = np.array([100, 3000]), np.array([3, 2])
    ttft_s, tpot_s = closed_loop(profile_of(), 1, prompts, outputs)
    alone = 0.0085
    first = alone + 0.05 + 100 * 2e-5
    # 3,000 tokens take two iterations of 2,048 at most; the second reads what the first left.
    second = 2 * (alone + 0.05) + 3000 * 2e-5 + 2048 * 2e-8
    assert ttft_s == pytest.approx([first, second], rel=1e-12)
    decodes = [alone + 101 * 2e-8, alone + 102 * 2e-8]
    assert tpot_s == pytest.approx([np.mean(decodes), alone + 3001 * 2e-8], rel=1e-12)


def test_a_client_sends_its_next_request_when_the_last_is_answered() -> None:
    prompts, outputs = np.full(6, 100), np.full(6, 50)
    one, _ = closed_loop(profile_of(), 1, prompts, outputs)
    two, _ = closed_loop(profile_of(), 2, prompts, outputs)
    np.testing.assert_allclose(one, one[0])  # never more than one in the replica
    np.testing.assert_allclose(two, two[0])  # always the same pair
    assert two[0] > one[0]


def test_refuses_a_request_that_exceeds_the_cache() -> None:
    with pytest.raises(InputError, match="exceeds the KV cache of 16000"):
        closed_loop(profile_of(blocks=1000), 1, np.array([15_990]), np.array([10]))


def test_the_fit_finds_the_law_that_made_the_points() -> None:
    law = calibrate._step_time(np.array([8e-3, 1.1e-2, 2.5e-5, 1.5e-8, 0.15]))
    profile = profile_of(law)
    nominal = [Point(isl, 512, c, 1.0, 1.0) for isl in (512, 4096) for c in (2, 8, 32)]
    made = [simulate_point(profile, point, draws=1) for point in nominal]
    points = [replace(m.point, ttft_s=m.ttft_s, tpot_s=m.tpot_s) for m in made]
    fitted = replace(profile, step_time=fit_step_time(profile, points))
    found = errors([simulate_point(fitted, point, draws=1) for point in points])
    # The fit averages two draws of the lengths, the points hold one.
    assert found["tpot_worst"] < 0.02
    assert fitted.step_time.prefill_base_s == pytest.approx(0.15, rel=0.15)


def points_file(folder: Path, **columns: object) -> Path:
    row = {
        "model_path": "M",
        "system": "S",
        "backend": "E",
        "backend_version": "1",
        "mode": "agg",
        "isl": 1024,
        "osl": 512,
        "concurrency": 4.0,
        "ttft_ms": 250.0,
        "tpot_ms": 10.0,
    } | columns
    path = folder / "points.parquet"
    pq.write_table(pa.table({name: [value] for name, value in row.items()}), path)
    return path


def test_reads_points_in_seconds(tmp_path: Path) -> None:
    points = read_points(
        points_file(tmp_path), model="M", system="S", engine="E", engine_version="1"
    )
    assert points == [Point(1024, 512, 4, 0.25, 0.01)]


def test_says_when_no_point_is_of_that_engine(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="name a measured engine"):
        read_points(
            points_file(tmp_path), model="M", system="S", engine="other", engine_version="1"
        )


def test_leaves_points_of_split_serving_out(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no point"):
        read_points(
            points_file(tmp_path, mode="disagg"),
            model="M",
            system="S",
            engine="E",
            engine_version="1",
        )


def test_a_mistake_is_one_sentence_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "none.parquet"
    assert calibrate.main(["reference-affine", "--points", str(missing)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.out == ""


def test_prints_a_line_per_point_and_the_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["reference-affine", "--points", str(points_file(tmp_path)), "--model", "M"]
    arguments += ["--system", "S", "--engine", "E", "--engine-version", "1"]
    assert calibrate.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "1024/512" in printed
    assert "all points: TPOT mean" in printed


def measured_points() -> list[Point]:
    folder = os.environ.get("TUNER_DATA")
    if not folder:
        pytest.skip("TUNER_DATA is not set: the measured points are not at hand")
    return read_points(
        Path(folder) / "traces/engine/inferencex_e2e_calibration.parquet",
        model="deepseek-ai/DeepSeek-R1",
        system="h200_sxm",
        engine="sglang",
        engine_version="0.5.9",
    )


def test_the_default_profile_has_the_error_that_it_states() -> None:
    points = measured_points()
    profile = load_profile("deepseek-r1-8xh200-sglang")
    assert len(points) == 10
    found = errors([simulate_point(profile, point) for point in points])
    for name, error in found.items():
        assert error == pytest.approx(profile.error[name], abs=1e-3), name


def test_a_constant_per_prefill_iteration_is_what_the_measured_ttft_asks_for() -> None:
    points = measured_points()
    profile = load_profile("deepseek-r1-8xh200-sglang")
    square_root = StepTime(
        per_prefill_token_s=3.8e-5,
        batch_table=tuple((b, 3.1e-3 + 3.3e-3 * math.sqrt(b)) for b in (1, 4, 8, 16, 32, 64)),
    )
    plain = errors([simulate_point(replace(profile, step_time=square_root), p) for p in points])
    fitted = errors([simulate_point(profile, point) for point in points])
    assert plain["ttft_mean"] > 5 * fitted["ttft_mean"]
    assert plain["tpot_mean"] > 3 * fitted["tpot_mean"]
