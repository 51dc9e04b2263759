"""Closed-loop points of a known law, fitted; and the measured ones, held to the bars."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from envs.calibrate import Point, errors, fit_points, law_of, read_points, simulate_point
from tuner.core.errors import InputError
from tuner.core.profile import EngineLimits, Frontend, KvCache, ServingProfile
from tuner.data import load_profile

PROFILE = ServingProfile(
    schema="tuner.profile/1",
    name="test",
    scheduler="vidur-sarathi",
    gpus_per_replica=8,
    kv=KvCache(block_tokens=16, blocks=31_000),
    limits=EngineLimits(batch_size_max=64, chunk_tokens=8192),
    step_time=load_profile("deepseek-r1-8xh200-sglang").step_time,
)
NOMINAL = [Point(isl, 512, c, 1.0, 1.0) for isl in (512, 4096) for c in (2, 8, 32)]


def measured(profile: ServingProfile, points: Sequence[Point]) -> list[Point]:
    """The points as that profile would be measured, with other requests than the fit draws."""
    made = [simulate_point(profile, point, seed=99) for point in points]
    return [replace(m.point, ttft_s=m.ttft_s, tpot_s=m.tpot_s) for m in made]


def test_the_fit_finds_the_law_that_made_the_points() -> None:
    law = law_of(NOMINAL, PROFILE, system="h200_sxm")
    true = np.log([8e-3, 1.1e-2, 2.5e-5, 1.5e-8, 0.15])
    points = measured(law.apply(PROFILE, true), NOMINAL)
    fit = fit_points(points, PROFILE, law, hold_out=lambda point: point.clients == 8)
    assert fit.errors["tpot_worst"] < 0.03
    assert fit.errors["tpot_worst_held_out_left_out"] < 0.03
    for coefficient, value in zip(fit.coefficients, np.exp(true), strict=True):
        assert coefficient.low <= value <= coefficient.high, coefficient.key
    assert fit.profile.step_time.prefill_base_s == pytest.approx(0.15, rel=0.15)


def test_ingress_explains_what_work_in_the_engine_cannot() -> None:
    terms = ("kv", "prefill-base", "ingress")
    law = law_of(NOMINAL, PROFILE, system="h200_sxm", terms=terms)
    true = np.log([8e-3, 1.1e-2, 2.5e-5, 1.5e-8, 0.02, 0.3])
    points = measured(law.apply(PROFILE, true), NOMINAL)
    fits = [
        fit_points(points, PROFILE, one, hold_out=lambda point: point.clients == 2)
        for one in (law, law_of(NOMINAL, PROFILE, system="h200_sxm"))
    ]
    assert fits[0].errors["ttft_mean"] < 0.5 * fits[1].errors["ttft_mean"]
    assert fits[0].profile.frontend is not None
    assert fits[0].profile.frontend.ingress_s > 0.1
    assert "threads" in fits[0].profile.unmodelled_knobs()


def test_each_number_of_clients_and_each_shape_is_left_out_in_turn() -> None:
    points = [Point(isl, 64, c, 0.3, 0.012) for isl in (256, 512) for c in (1, 2)]
    fit = fit_points(points, PROFILE, law_of(points, PROFILE, system="h200_sxm", terms=()))
    assert list(fit.left_out) == ["clients", "shape"]
    for results in fit.left_out.values():
        assert sorted(r.point.clients for r in results) == [1, 1, 2, 2]
    in_fit = [r.tpot_s for r in sorted(fit.results, key=lambda r: str(r.point))]
    unseen = [r.tpot_s for r in sorted(fit.left_out["shape"], key=lambda r: str(r.point))]
    assert in_fit != unseen


def test_points_that_are_held_out_take_no_part() -> None:
    law = law_of(NOMINAL, PROFILE, system="h200_sxm", terms=())
    spoiled = [replace(p, tpot_s=9.0) if p.clients == 32 else p for p in NOMINAL]
    fits = [
        fit_points(points, PROFILE, law, hold_out=lambda point: point.clients == 32)
        for points in (NOMINAL, spoiled)
    ]
    assert fits[0].profile == fits[1].profile
    assert {r.point.clients for r in fits[0].left_out["held_out"]} == {32}


def test_decode_workers_share_the_clients_and_prefill_nothing() -> None:
    points = [Point(1024, 512, c, 0.2, 1.0, replicas=4, decode_only=True) for c in (4, 32)]
    law = law_of(points, PROFILE, system="gb200", batch_law="power")
    assert list(law.priors) == ["base_s", "rise_s", "exponent", "per_kv_token_s"]
    profile = law.apply(PROFILE, np.log([5e-3, 1e-3, 0.5, 1e-12]))
    one, eight = (simulate_point(profile, point).tpot_s for point in points)
    assert one == pytest.approx(6e-3, rel=1e-3)  # a client each
    assert one < eight <= 5e-3 + 1e-3 * 8**0.5


def test_says_which_system_has_no_prior() -> None:
    with pytest.raises(InputError, match="system 'abacus' has no known memory bandwidth"):
        law_of(NOMINAL, PROFILE, system="abacus")


def test_refuses_a_shape_that_exceeds_the_cache() -> None:
    small = replace(PROFILE, kv=KvCache(block_tokens=16, blocks=100))
    with pytest.raises(InputError, match=r"exceed the KV cache of 1600; raise kv\.blocks"):
        simulate_point(small, Point(4096, 512, 2, 1.0, 1.0))


def points_file(folder: Path, *rows: dict[str, object]) -> Path:
    usual = {
        "model_path": "M",
        "system": "h200_sxm",
        "backend": "E",
        "backend_version": "1",
        "mode": "agg",
        "isl": 1024,
        "osl": 512,
        "concurrency": 4.0,
        "ttft_ms": 250.0,
        "tpot_ms": 10.0,
        "gpus_suspect": False,
        "ttft_saturated": False,
        "decode_num_workers": None,
    }
    table = pa.Table.from_pylist([usual | row for row in rows])
    pq.write_table(table, folder / "points.parquet")
    return folder / "points.parquet"


def test_reads_points_in_seconds_and_leaves_marked_ones_out(tmp_path: Path) -> None:
    path = points_file(
        tmp_path,
        {},
        {"concurrency": 8.0, "gpus_suspect": True},
        {"concurrency": 16.0, "ttft_saturated": True},
        {"concurrency": 2.0, "backend": "other"},
        {"mode": "disagg", "decode_num_workers": 3.0},
    )
    assert read_points(path, {"engine": "E"}) == [Point(1024, 512, 4, 0.25, 0.01)]
    (split,) = read_points(path, {"mode": "disagg"})
    assert (split.replicas, split.decode_only) == (3, True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ttft_ms": None}, "ttft_ms is nan in row 2; expected milliseconds from 0.1"),
        ({"ttft_ms": 0.0}, r"ttft_ms is 0 in row 2; .*3,600,000$"),
        ({"tpot_ms": -3.0}, "tpot_ms is -3 in row 2"),
        ({"tpot_ms": float("inf")}, "tpot_ms is inf in row 2"),
        ({"tpot_ms": 0.01}, r"tpot_ms is 0.01 in row 2; .* \(another unit\?\)"),
        ({"isl": None}, "isl is nan in row 2; expected whole tokens"),
        ({"osl": 0}, "osl is 0 in row 2"),
        ({"concurrency": 4.5}, "concurrency is 4.5 in row 2; expected whole clients"),
        ({"concurrency": 1e7}, "concurrency is 10000000 in row 2; .* to 100,000"),
        ({"concurrency": float("nan")}, "concurrency is nan in row 2"),
    ],
)
def test_says_which_value_of_a_point_cannot_be(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    # The other engine's row is not asked for, so that it may hold anything.
    other = {"backend": "other", "ttft_ms": -1.0}
    path = points_file(tmp_path, other, changes)
    with pytest.raises(InputError, match=rf"points\.parquet: {message}"):
        read_points(path, {"engine": "E"})


@pytest.mark.parametrize(
    ("changes", "filters", "message"),
    [
        ({"ttft_ms": "fast"}, {}, "ttft_ms is 'fast' in row 1; expected a number"),
        ({"backend": 7}, {"engine": "E"}, "column 'backend' holds int64; expected text, as 'E'"),
        ({"gpus_suspect": "no"}, {}, "column 'gpus_suspect' holds string; expected true and false"),
        ({"concurrency": None}, {}, "is marked as unusable or lacks its clients"),
        (
            {"mode": "disagg", "decode_num_workers": 0.5},
            {"mode": "disagg"},
            "decode_num_workers is 0.5 in row 1; expected whole workers",
        ),
    ],
)
def test_says_which_column_of_points_cannot_be(
    tmp_path: Path, changes: dict[str, object], filters: dict[str, str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_points(points_file(tmp_path, changes), filters)


def test_every_core_of_a_frontend_works_as_in_a_replay() -> None:
    """Four clients at once and a second of CPU each: one worker would make them wait in line."""
    point = Point(512, 8, 4, 1.0, 1.0)
    one, four = (
        simulate_point(replace(PROFILE, frontend=Frontend(cores=cores, per_request_s=1.0)), point)
        for cores in (1, 4)
    )
    assert four.ttft_s < 0.5 * one.ttft_s


def test_says_when_no_point_is_of_that_engine(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no point of mode agg, engine other: engine is one"):
        read_points(points_file(tmp_path, {}), {"engine": "other"})


def shared_points(**filters: str | float | None) -> list[Point]:
    folder = os.environ.get("TUNER_DATA")
    if not folder:
        pytest.skip("TUNER_DATA is not set: the measured points are not at hand")
    path = Path(folder) / "traces/engine/inferencex_e2e_calibration.parquet"
    return read_points(path, filters)


def test_predicts_h200_shapes_that_it_has_not_seen() -> None:
    profile = load_profile("deepseek-r1-8xh200-sglang")
    points = shared_points(
        model="deepseek-ai/DeepSeek-R1", system="h200_sxm", engine="sglang", engine_version="0.5.9"
    )
    assert len(points) == 10
    law = law_of(points, profile, system="h200_sxm")
    for shape in ("1024/1024", "8192/1024"):
        fit = fit_points(points, profile, law, hold_out=lambda point, s=shape: point.shape == s)
        assert fit.errors["tpot_mean_held_out_left_out"] <= 0.05, shape


@pytest.mark.parametrize(
    ("name", "filters", "ranks"),
    [
        ("deepseek-r1-8xh200-sglang", {"engine": "sglang", "engine_version": "0.5.9"}, None),
        (
            "deepseek-r1-8xh200-trtllm",
            {"engine": "trtllm", "engine_version": "1.1.0rc2.post2", "dp": 8.0},
            8,
        ),
    ],
)
def test_a_shipped_profile_has_the_error_that_it_states(
    name: str, filters: dict[str, str | float | None], ranks: int | None
) -> None:
    profile = load_profile(name)
    points = shared_points(model="deepseek-ai/DeepSeek-R1", system="h200_sxm", **filters)
    if ranks is not None:
        points = [replace(point, budget_tokens=point.one_prompt_budget(ranks)) for point in points]
    found = errors([simulate_point(profile, point) for point in points])
    for figure, error in found.items():
        assert error == pytest.approx(profile.error[figure], abs=1e-3), figure
