"""What the simulator refuses, and loads that do not fit its first memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from envs.simulator import ROUTERS, SCHEDULERS, Fleet, FleetSettings
from envs.simulator.rules import MEMORIES
from tests.envs.simulator import small
from tests.envs.simulator.small import PROFILE, Case
from tests.envs.simulator.test_exactness import assert_same_requests
from tuner.core.errors import ProfileError
from tuner.core.profile import EngineLimits, KvCache, Startup, StepTime

ONE = small.trace([(0.0, 5, 3)])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scheduler": "vllm-v9"}, "scheduler is 'vllm-v9'; expected one of: .*vidur-sarathi"),
        ({"limits": EngineLimits(16, 8)}, "batch_size_max is 16, above limits.chunk_tokens 8"),
        ({"step_time": StepTime()}, "0.0 s for an iteration of 1 sequences"),
        (
            {"step_time": StepTime(batch_table=((1, 0.1), (4, 0.01)))},
            "for an iteration of 5 sequences",
        ),
        ({"startup": Startup(ramp=((5, 0.0),))}, "startup.ramp has speed 0.0"),
    ],
    ids=["scheduler", "chunk", "no time", "falling table", "ramp"],
)
def test_refuses_a_profile_it_cannot_run(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ProfileError, match=words):
        small.fleet(Case(ONE, replace(PROFILE, **changes), (small.tick(),)))


@pytest.mark.parametrize(
    "changes",
    [
        {"router": "random"},
        {"slots": 0},
        {"threads": 0},
        {"jitter": -0.1},
        {"jitter": np.nan},
        {"seeds": np.zeros(0, np.uint64)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_refuses_arguments_out_of_range(changes: dict[str, object]) -> None:
    usual = {"seeds": np.zeros(1, np.uint64), "slots": 2}
    with pytest.raises(ValueError, match="expected"):
        Fleet(ONE, PROFILE, **{**usual, **changes})


@pytest.mark.parametrize(
    "changes",
    [{"replicas": 4}, {"replicas": -1}, {"batch_size": 0}, {"threads": 0}, {"warmup_requests": -1}],
    ids=str,
)
def test_refuses_settings_out_of_range(changes: dict[str, int]) -> None:
    fleet = small.fleet(Case(ONE, PROFILE, (small.tick(),), slots=3))
    with pytest.raises(ValueError, match=next(iter(changes))):
        fleet.apply(small.settings(small.tick(**changes)))


def test_refuses_settings_for_another_number_of_envs() -> None:
    fleet = small.fleet(Case(ONE, PROFILE, (small.tick(),)), n=2)
    with pytest.raises(ValueError, match=r"settings.replicas has shape \(1,\); expected \(2,\)"):
        fleet.apply(small.settings(small.tick(), 1))


@pytest.mark.parametrize("until_s", [0.5, np.inf, np.nan])
def test_refuses_to_go_back_or_to_no_time(until_s: float) -> None:
    fleet = small.fleet(Case(ONE, PROFILE, (small.tick(),)))
    fleet.advance(1.0)
    with pytest.raises(ValueError, match="until_s"):
        fleet.advance(until_s)


def test_refuses_a_share_of_nothing() -> None:
    fleet = small.fleet(Case(ONE, PROFILE, (small.tick(),)))
    with pytest.raises(ValueError, match="keep"):
        fleet.reset(
            slice(None),
            start_s=0.0,
            seeds=np.zeros(1, np.uint64),
            settings=small.settings(small.tick()),
            keep=0.0,
        )


def test_keeps_no_requests_unless_told() -> None:
    fleet = Fleet(ONE, PROFILE, seeds=np.zeros(1, np.uint64), slots=1)
    with pytest.raises(ValueError, match="record=True"):
        fleet.requests()


def test_starts_with_one_replica_and_the_full_batch() -> None:
    fleet = Fleet(ONE, PROFILE, seeds=np.zeros(2, np.uint64), slots=2, record=True)
    fleet.advance(np.array([1.0, 2.0]))
    gauges = fleet.gauges()
    assert gauges.ready.tolist() == [1, 1]
    assert gauges.now_s.tolist() == [1.0, 2.0]
    assert fleet.done().all()


def test_a_batch_size_above_the_ceiling_is_the_ceiling() -> None:
    case = Case(small.trace([(0.0, 2, 50)] * 12), PROFILE, (small.tick(batch_size=8),))
    fleet = small.fleet(case)
    fleet.apply(FleetSettings(*(np.array([value], dtype=np.int64) for value in (1, 1000, 1, 0))))
    fleet.advance(0.1)
    assert fleet.gauges().running[0] == 8


@pytest.mark.parametrize(
    ("prompt", "output", "rejected"),
    [(152, 8, False), (152, 9, True), (144, 1, False), (145, 1, True)],
    ids=["fills the cache", "exceeds the cache", "leaves the watermark", "takes the watermark"],
)
def test_rejects_on_arrival_what_no_replica_can_hold(
    prompt: int, output: int, rejected: bool
) -> None:
    # 10 blocks of 16 tokens; one must stay free at admission where the watermark is tested.
    watermark = 0.1 if output == 1 else 0.0
    profile = replace(
        PROFILE, kv=KvCache(16, blocks=10, watermark=watermark), limits=EngineLimits(8, 512)
    )
    case = Case(small.trace([(0.0, prompt, output), (0.001, 5, 1)]), profile, (small.tick(),))
    fleet = small.fleet(case)
    fleet.advance(10.0)
    seen = fleet.requests()
    window = fleet.window()
    assert seen.rejected.tolist() == [rejected, False]
    assert window.rejected[0] == rejected
    if rejected:
        assert window.missed[0] == 1
    assert (seen.replica[0] == -1) == rejected
    assert np.isnan(seen.ttft_s[0]) == rejected
    assert fleet.done()[0]


@pytest.mark.parametrize("replicas", [0, 2], ids=["at the router", "at the replicas"])
def test_overload_grows_the_memory_of_the_env_that_needs_it(replicas: int) -> None:
    rng = np.random.default_rng(1)
    count = 4000
    rows = zip(
        np.sort(rng.uniform(0.0, 1.0, count)),
        rng.integers(1, 60, count),
        rng.integers(1, 5, count),
        strict=True,
    )
    case = Case(small.trace(list(rows)), PROFILE, (small.tick(replicas=replicas),), slots=2)
    fleet, oracle = small.fleet(case, n=3), small.oracle(case)
    fleet.reset(
        np.array([1]),
        start_s=1.0,
        seeds=np.zeros(1, np.uint64),
        settings=small.settings(small.tick()),
    )
    fleet.advance(np.array([1.5, 1.5, 1.5]))
    assert fleet.gauges().in_flight[0] > 2000
    fleet.apply(small.settings(small.tick(replicas=2), 3))
    fleet.advance(100.0)
    oracle.advance(1.5)
    oracle.apply(replicas=2, batch_size=8, threads=1, warmup_requests=0)
    oracle.advance(100.0)
    assert fleet.done().all()
    assert_same_requests(fleet, oracle)
    np.testing.assert_array_equal(fleet.requests(2).e2e_s, fleet.requests(0).e2e_s)
    assert np.isnan(fleet.requests(1).e2e_s).all()


def test_registries_name_what_exists() -> None:
    assert {"vidur-sarathi", "vllm-v1"} <= set(SCHEDULERS)
    assert set(SCHEDULERS) == set(MEMORIES)
    assert set(ROUTERS) == {"round_robin", "least_pending", "least_loaded"}
