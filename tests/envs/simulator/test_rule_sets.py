"""What holds under every rule-set: nothing is lost, nothing made up, and the bits are the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest

from envs.config import ScrapeConfig
from envs.simulator import SCHEDULERS, EnvFactors, Fleet, FleetSettings, ReplicaState, Window
from tests.envs.simulator import small
from tests.envs.simulator.test_determinism import assert_same_bits, busy_case, settings_at

Applied = Literal["hot", "restart"]

STEP_S = 0.25
STEPS = 100
END_S = 20_000.0
SCRAPE = ScrapeConfig(interval_s=0.4, window_s=1.7, lag_s=0.1, loss=0.2)
OUTCOMES = ("ttft_s", "e2e_s", "tpot_s", "replica", "preemptions", "rejected", "failed")

PREEMPTING = {"sglang": {"max_new_tokens": 1, "schedule_conservativeness": 0.01}}
"""Options under which a rule-set that guards against it takes in more than it can hold."""

every_rule_set = pytest.mark.parametrize("scheduler", sorted(SCHEDULERS))
both_caps = pytest.mark.parametrize("applied", ["hot", "restart"])
"""A cap that moves while the engine runs, or needs a start: one of 8 then finds no memory."""


def busy_fleet(
    scheduler: str,
    applied: Applied,
    n: int = 1,
    first: int = 0,
    *,
    threads: int = 1,
    scrape: ScrapeConfig | None = SCRAPE,
) -> Fleet:
    """Envs with all that can happen, under more load than their blocks hold: hits and cold caches,
    a frontend that streams, a ramp, crashes, cut drains, slow slots, closed loops, scrapes; env e
    is number first + e, and no two are alike."""
    case = busy_case(count=600)
    prompts = case.trace.prompt_tokens.copy()
    prompts[::97] = 700  # more than a replica can hold
    trace = replace(case.trace, prompt_tokens=prompts, prefix_hit_tokens=prompts // 3)
    limits = replace(case.profile.limits, batch_size_applied=applied)
    if applied == "restart":
        limits = replace(limits, batch_size_oom=7)
    profile = replace(
        small.with_frontend(case.profile, per_output_token_s=0.000123, ingress_s=0.0156),
        scheduler=scheduler,
        limits=limits,
        kv=replace(case.profile.kv, prefix_cache=True),
        scheduler_options=PREEMPTING.get(scheduler, {}),
    )
    env = np.arange(first, first + n)
    seeds = env.astype(np.uint64) * np.uint64(977)
    fleet = Fleet(
        trace,
        profile,
        seeds=seeds,
        slots=4,
        jitter=0.2,
        drain_timeout_s=0.5,
        crash_per_hour=720.0,
        record=True,
        scrape=scrape,
        threads=threads,
    )
    factors = replace(
        EnvFactors.none(n),
        cold_start=np.full(n, 0.3),
        output_tokens=1.0 + 0.1 * (env % 3),
        prefix_hits=1.0 + 0.2 * (env % 2),
        slow_slot=env % 5 - 1,
        slow=np.full(n, 1.7321),
    )
    fleet.reset(
        slice(None),
        start_s=0.05 * env,
        seeds=seeds,
        settings=settings_of(fleet, 0, first),
        factors=factors,
        clients=np.array([0, 5, 40])[env % 3],
    )
    return fleet


def settings_of(fleet: Fleet, step: int, first: int = 0) -> FleetSettings:
    """Others at every step; where they restart replicas, every 2 s."""
    restarts = fleet.profile.limits.batch_size_applied == "restart"
    return settings_at(step // 8 if restarts else step, fleet.n, first)


def run(fleet: Fleet, first: int = 0, between: int = 0) -> list[np.ndarray]:
    """Drive the fleet through changing settings to its end; all that can be read off it on the
    way. With stops at so many more moments between two readings."""
    seen = []
    for step in range(STEPS):
        for part in range(1, between + 1):
            fleet.advance(STEP_S * (step + 2 + part / (between + 1)))
        fleet.advance(STEP_S * (step + 3))
        seen.extend(fleet.window())
        seen.extend(fleet.gauges())
        seen.extend(fleet.counters())
        seen.extend(fleet.seen()[:-1])  # the last is working space
        fleet.apply(settings_of(fleet, step, first))
    fleet.advance(END_S)
    seen.extend(fleet.window())
    for name in OUTCOMES:
        seen.append(np.array([getattr(fleet.requests(env), name) for env in range(fleet.n)]))
    return seen


@every_rule_set
@both_caps
def test_conserves_requests_tokens_and_blocks(scheduler: str, applied: Applied) -> None:
    n = 3
    fleet = busy_fleet(scheduler, applied, n)
    trace = busy_case(count=600).trace
    totals = {name: np.zeros(n) for name in Window._fields}
    now_s = fleet.gauges().now_s
    for step in range(STEPS + 1):
        fleet.advance(STEP_S * (step + 1) if step < STEPS else END_S)
        window, gauges = fleet.window(), fleet.gauges()
        for name, total in totals.items():
            assert np.all(getattr(window, name) >= 0), name
            total += getattr(window, name)
        assert np.all(gauges.now_s >= now_s)
        now_s = gauges.now_s
        assert np.all(window.busy_s <= window.replica_s + 1e-9)
        usage = gauges.replica_kv_cache_usage
        assert np.all(np.isnan(usage) | ((usage >= 0.0) & (usage <= 1.0))), "blocks out of nothing"
        assert np.all(gauges.replica_kv_tokens >= 0)
        assert np.all(gauges.replica_running <= 8)
        np.testing.assert_array_equal(gauges.in_flight, gauges.queue_depth + gauges.running)
        ended = totals["finished"] + totals["rejected"] + totals["failed"]
        np.testing.assert_array_equal(totals["arrivals"], ended + gauges.in_flight)
        # The last settings are such that replicas can start.
        fleet.apply(settings_of(fleet, step if step < STEPS - 1 else 0))
    assert np.all(fleet.done())
    assert np.all(totals["starts"] > 4)
    assert totals["preemptions"].sum() > 0
    gauges = fleet.gauges()
    usage = gauges.replica_kv_cache_usage
    assert np.all(np.isnan(usage) | (usage == 0.0)), "blocks that nobody gave back"
    for name in ("running", "queue_depth", "in_flight"):
        assert not getattr(gauges, name).any(), name
    assert gauges.replica_kv_tokens.sum() == gauges.replica_queued_prompt_tokens.sum() == 0
    for env in range(n):
        seen = fleet.requests(env)
        served = np.isfinite(seen.e2e_s)
        ends = served.astype(int) + seen.rejected + seen.failed
        came = trace.arrival_s >= 0.05 * env
        np.testing.assert_array_equal(ends, came)
        assert np.all(seen.e2e_s[served] >= seen.ttft_s[served])
        begun = np.isfinite(seen.ttft_s)
        assert np.all(seen.ttft_s[begun] > 0)
        assert not np.any(begun & seen.rejected)
        total = {name: column[env] for name, column in totals.items()}
        assert total["length_s"] == pytest.approx(END_S - 0.05 * env)
        assert total["arrivals"] == np.count_nonzero(came)
        assert total["rejected"] == np.count_nonzero(seen.rejected) > 0
        assert total["failed"] == np.count_nonzero(seen.failed) > 0
        assert total["finished"] == np.count_nonzero(served) > 50
        assert total["preemptions"] == seen.preemptions.sum()
        outputs = np.floor(trace.output_tokens * (1.0 + 0.1 * (env % 3)) + 0.5)
        cut = begun & seen.failed  # it was given its first token, and not its last
        whole = outputs[served].sum()
        least, most = whole + np.count_nonzero(cut), whole + (outputs[cut] - 1).sum()
        assert least <= total["output_tokens"] <= most


@every_rule_set
def test_gives_the_same_bits_beside_others_and_on_two_threads(scheduler: str) -> None:
    together = run(busy_fleet(scheduler, "restart", 8))
    assert_same_bits(run(busy_fleet(scheduler, "restart", 8, threads=2)), together)
    for first, n in ((3, 1), (0, 3)):
        apart = run(busy_fleet(scheduler, "restart", n, first=first), first)
        assert_same_bits([column[first : first + n] for column in together], apart)


@every_rule_set
@both_caps
def test_stopping_in_between_changes_no_bit(scheduler: str, applied: Applied) -> None:
    straight, stopped = (
        run(busy_fleet(scheduler, applied, 3), between=between) for between in (0, 3)
    )
    assert_same_bits(stopped, straight)


@every_rule_set
def test_a_scrape_reads_what_is_there_at_its_time(scheduler: str) -> None:
    scraped = busy_fleet(scheduler, "hot", scrape=replace(SCRAPE, loss=0.0))
    stopped = busy_fleet(scheduler, "hot", scrape=None)
    compared = 0
    for step in range(STEPS):
        since_s, to_s = STEP_S * step, STEP_S * (step + 1)
        scraped.advance(to_s)
        scrapes = scraped._memory.scrapes
        of_slot = np.arange(len(scrapes)) // (len(scrapes) // 4)
        new = np.flatnonzero((scrapes["at_s"] > since_s) & (scrapes["answered"] == 1))
        for place in new[np.argsort(scrapes["at_s"][new])]:
            scrape, slot = scrapes[place], of_slot[place]
            stopped.advance(scrape["at_s"])
            gauges, counters = stopped.gauges(), stopped.counters()
            for name in ("prompt_tokens", "output_tokens", "finished", "preemptions"):
                assert scrape[name] == getattr(counters, name)[0, slot], name
            assert scrape["running"] == gauges.replica_running[0, slot]
            assert scrape["waiting"] == gauges.replica_queue_depth[0, slot]
            if gauges.replica_state[0, slot] != ReplicaState.WARMING:
                usage = gauges.replica_kv_cache_usage[0, slot]
                assert scrape["kv_cache_usage"] == pytest.approx(usage, abs=1e-12)
            compared += 1
        stopped.advance(to_s)
        for fleet in (scraped, stopped):
            fleet.apply(settings_of(fleet, step))
    assert compared > 50
    for name in OUTCOMES:
        np.testing.assert_array_equal(
            getattr(scraped.requests(), name), getattr(stopped.requests(), name)
        )


@every_rule_set
def test_an_idle_replica_computes_a_prompt_and_then_token_by_token(scheduler: str) -> None:
    # 100 prompt tokens in chunks of 64: 10 + 6.4, 10 + 3.6 ms; four decodes of 10.
    law = replace(
        small.PROFILE.step_time,
        base_s=0.01,
        per_prefill_token_s=1e-4,
        per_sequence_s=0.0,
        per_kv_token_s=0.0,
        prefill_base_s=0.0,
    )
    profile = replace(small.PROFILE, scheduler=scheduler, step_time=law)
    case = small.Case(small.trace([(1.0, 100, 5)]), profile, (small.tick(),))
    fleet = small.fleet(case)
    fleet.advance(10.0)
    assert fleet.requests().ttft_s[0] == pytest.approx(0.030, abs=1e-12)
    assert fleet.requests().e2e_s[0] == pytest.approx(0.070, abs=1e-12)
