"""Sums, histograms and gauges against the requests they are made of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from envs.simulator import (
    E2E_BOUNDS_S,
    FIRST_BUCKET,
    TPOT_BOUNDS_S,
    TTFT_BOUNDS_S,
    Fleet,
    Window,
)
from tests.envs.simulator import small
from tests.envs.simulator.small import PROFILE, Case
from tests.envs.simulator.test_determinism import busy_case, settings_at
from tuner.core.profile import KvCache, StepTime
from tuner.core.slo import Slo

SLO = Slo(ttft_s=0.1, tpot_s=0.005)


@pytest.fixture(scope="module")
def run() -> tuple[Case, Fleet, list[Window]]:
    """A run to its end with windows of half a second, and one long last one."""
    case = busy_case()
    prompt = case.trace.prompt_tokens.copy()
    prompt[::97] = 700  # more than a replica can hold
    case = replace(case, trace=replace(case.trace, prompt_tokens=prompt))
    fleet = small.fleet(case)
    windows = []
    for step in range(60):
        fleet.advance(0.5 * (step + 1))
        windows.append(fleet.window())
        fleet.apply(settings_at(step, 1))
    fleet.advance(2000.0)
    windows.append(fleet.window())
    return case, fleet, windows


def total(windows: list[Window], name: str) -> np.ndarray:
    return np.sum([getattr(window, name)[0] for window in windows], axis=0)


def test_every_request_ends_once(run: tuple[Case, Fleet, list[Window]]) -> None:
    case, fleet, windows = run
    seen = fleet.requests()
    assert fleet.done()[0]
    assert np.all(np.isfinite(seen.e2e_s) != seen.rejected)
    assert np.all((seen.replica >= 0) != seen.rejected)
    assert total(windows, "arrivals") == len(case.trace)
    assert total(windows, "rejected") == seen.rejected.sum() > 0
    assert total(windows, "finished") + total(windows, "rejected") == len(case.trace)
    assert total(windows, "met") + total(windows, "missed") == len(case.trace)


def test_windows_sum_up_to_the_requests(run: tuple[Case, Fleet, list[Window]]) -> None:
    case, fleet, windows = run
    seen = fleet.requests()
    served = ~seen.rejected
    assert total(windows, "prompt_tokens") == case.trace.prompt_tokens[served].sum()
    assert total(windows, "output_tokens") == case.trace.output_tokens[served].sum()
    assert total(windows, "preemptions") == seen.preemptions.sum() > 0
    assert total(windows, "length_s") == pytest.approx(2000.0)
    assert 0 < total(windows, "met") == SLO.met(seen.ttft_s, seen.tpot_s).sum() < served.sum()
    for window in windows:
        assert 0.0 <= window.busy_s[0] <= window.replica_s[0] + 1e-9
        assert window.replica_s[0] <= 4 * window.length_s[0] + 1e-9


def test_everything_is_free_when_all_requests_have_ended(
    run: tuple[Case, Fleet, list[Window]],
) -> None:
    gauges = run[1].gauges()
    for name in ("running", "queue_depth", "in_flight", "kv_cache_usage"):
        assert getattr(gauges, name)[0] == 0, name
    assert gauges.replica_kv_tokens.sum() == 0
    assert gauges.replica_queued_prompt_tokens.sum() == 0


@pytest.fixture(scope="module")
def steady() -> tuple[Case, Fleet]:
    """The same load on four replicas that stay, to its end."""
    case = replace(busy_case(), ticks=(small.tick(replicas=4, threads=2),))
    fleet = small.fleet(case)
    fleet.advance(2000.0)
    return case, fleet


def test_each_engine_counts_the_requests_of_its_replica(steady: tuple[Case, Fleet]) -> None:
    case, fleet = steady
    seen, counters = fleet.requests(), fleet.counters()
    for slot in range(case.slots):
        mine = seen.replica == slot
        assert counters.finished[0, slot] == mine.sum() > 0
        assert counters.prompt_tokens[0, slot] == case.trace.prompt_tokens[mine].sum()
        assert counters.output_tokens[0, slot] == case.trace.output_tokens[mine].sum()
        assert counters.preemptions[0, slot] == seen.preemptions[mine].sum() > 0


@pytest.mark.parametrize(
    ("kind", "column", "bounds_s"),
    [(0, "ttft_s", TTFT_BOUNDS_S), (1, "tpot_s", TPOT_BOUNDS_S), (2, "e2e_s", E2E_BOUNDS_S)],
)
def test_histograms_count_the_requests(
    steady: tuple[Case, Fleet], kind: int, column: str, bounds_s: np.ndarray
) -> None:
    case, fleet = steady
    seen, counts = fleet.requests(), fleet.counters().counts[0]
    for slot in range(case.slots):
        counted = seen.replica == slot
        if column == "tpot_s":
            counted &= case.trace.output_tokens > 1
        expected, _ = np.histogram(getattr(seen, column)[counted], bins=[0.0, *bounds_s, np.inf])
        first = FIRST_BUCKET[kind]
        np.testing.assert_array_equal(counts[slot, first : first + len(expected)], expected)


def test_a_replica_that_starts_anew_counts_from_zero() -> None:
    fleet = small.fleet(Case(small.trace([(0.0, 5, 9)]), PROFILE, (small.tick(),), slots=1))
    fleet.advance(10.0)
    assert fleet.counters().output_tokens[0, 0] == 9
    for replicas in (0, 1):
        fleet.apply(small.settings(small.tick(replicas=replicas)))
    for values in fleet.counters():
        assert not values.any()


def test_a_value_on_a_bound_counts_below_it() -> None:
    # Prometheus' `le`: the first token comes after exactly 0.01 s.
    profile = replace(PROFILE, step_time=StepTime(base_s=0.01))
    fleet = small.fleet(Case(small.trace([(0.0, 5, 1)]), profile, (small.tick(),)))
    fleet.advance(1.0)
    assert fleet.requests().ttft_s[0] == 0.01
    assert np.flatnonzero(fleet.counters().counts[0, 0, : FIRST_BUCKET[1]]) == [2]
    assert TTFT_BOUNDS_S[2] == 0.01


def test_a_late_first_token_is_missed_when_it_comes_and_not_again_at_the_end() -> None:
    profile = replace(PROFILE, step_time=StepTime(base_s=0.2))
    fleet = small.fleet(Case(small.trace([(0.0, 5, 3)]), profile, (small.tick(),)))
    missed = []
    for at_s in (0.1, 0.25, 0.7):  # before the first token, after it, after the last
        fleet.advance(at_s)
        missed.append(int(fleet.window().missed[0]))
    assert missed == [0, 1, 0]
    assert fleet.done()[0]


def test_a_request_of_one_token_has_no_tpot_and_meets_it() -> None:
    fleet = small.fleet(Case(small.trace([(0.0, 5, 1)]), PROFILE, (small.tick(),)))
    fleet.advance(1.0)
    window = fleet.window()
    counts = fleet.counters().counts[0, 0]
    tpot, e2e = FIRST_BUCKET[1:]
    assert (window.met[0], counts[tpot:e2e].sum(), counts[e2e:].sum()) == (1, 0, 1)
    assert fleet.requests().tpot_s[0] == 0.0


def test_tokens_of_a_run_count_in_the_window_in_which_they_come() -> None:
    # Prompt of 5: first token at 0.01 s, then one every 0.01 s.
    profile = replace(PROFILE, step_time=StepTime(base_s=0.01))
    fleet = small.fleet(Case(small.trace([(0.0, 5, 10)]), profile, (small.tick(),)))
    tokens, busy_s, counted = [], [], []
    for at_s in (0.035, 0.036, 0.085, 0.2):
        fleet.advance(at_s)
        counted.append(int(fleet.counters().output_tokens[0, 0]))
        window = fleet.window()
        tokens.append(int(window.output_tokens[0]))
        busy_s.append(window.busy_s[0])
    assert tokens == [3, 0, 5, 2]
    assert counted == [3, 3, 8, 10]
    np.testing.assert_allclose(busy_s, [0.035, 0.001, 0.049, 0.015], atol=1e-12)


def test_gauges_see_the_blocks_of_the_iteration_that_runs() -> None:
    # 16 tokens of prompt take one block; the iteration after the first token takes the second.
    profile = replace(PROFILE, step_time=StepTime(base_s=0.01), kv=KvCache(16, blocks=10))
    fleet = small.fleet(Case(small.trace([(0.0, 16, 40)]), profile, (small.tick(),)))
    used, tokens = [], []
    for at_s in (0.005, 0.015, 0.165, 0.175):
        fleet.advance(at_s)
        gauges = fleet.gauges()
        used.append(round(gauges.kv_cache_usage[0] * 10))
        tokens.append(int(gauges.replica_kv_tokens[0, 0]))
    assert used == [1, 2, 2, 3]
    assert tokens == [0, 17, 32, 33]


def test_no_serving_replica_gives_no_kv_usage() -> None:
    fleet = small.fleet(Case(small.trace([(5.0, 5, 1)]), PROFILE, (small.tick(replicas=0),)))
    assert np.isnan(fleet.gauges().kv_cache_usage[0])
