"""The oracles on a load with one surge, all of it in the real simulator."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest

from experiments.cells import Cells
from experiments.config import CompareConfig, RunConfig, SweepConfig
from experiments.job import Job
from experiments.oracles import (
    CLAIRVOYANT,
    INSTANT,
    OraclePoint,
    PlanRunner,
    find_oracles,
    oracles_summary,
    regret,
)
from experiments.oracles.misses import by_tick, measure_misses, ticks_of
from experiments.oracles.result import Frontier
from experiments.oracles.runner import HOLD
from experiments.oracles.search import missed_within
from experiments.oracles.start import start_draws_s, start_of
from experiments.oracles.words import oracle_sentences
from experiments.run import run
from policies import RulePolicy, StaticRule
from policies.oracle import PlanRule
from tuner.core.errors import ConfigError
from tuner.core.profile import Stage, Stages, Startup
from tuner.core.slo import Slo
from tuner.core.trace import Trace
from tuner.data import load_profile
from tuner.guardrails import bounds_alone
from tuner.guardrails.max_delta import Step

REFERENCE = load_profile("reference-affine")
PROFILE = replace(
    REFERENCE,
    limits=replace(REFERENCE.limits, batch_size_max=8),
    startup=Startup(Stages(weights=Stage(120.0, 0.2)), ramp=((64, 0.5),)),
)
RUN = RunConfig(max_replicas=6, slo=Slo(ttft_s=1.0, tpot_s=0.03), initial_replicas=3)
CONFIG = CompareConfig(run=RUN)
SEEDS = (1, 2)


def silent(*_):
    pass


def load(*rates_qps, length_s=600.0):
    """Poisson arrivals, each rate for so long."""
    rng = np.random.default_rng(1)
    arrival_s = np.concatenate(
        [
            place * length_s + np.sort(rng.uniform(0, length_s, round(qps * length_s)))
            for place, qps in enumerate(rates_qps)
        ]
    )
    n = len(arrival_s)
    return Trace(
        arrival_s=arrival_s,
        prompt_tokens=rng.integers(50, 400, n).astype(np.int32),
        output_tokens=rng.integers(50, 250, n).astype(np.int32),
        name="surge",
    )


LENGTH_S = 480.0
SURGE = load(1.5, 10.0, 1.5, length_s=LENGTH_S)
BEGIN, END = 32, 64
"""Ticks of the surge."""


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    return Cells(tmp_path_factory.mktemp("cells"))


@pytest.fixture(scope="module")
def oracles(cells):
    return find_oracles(SURGE, PROFILE, CONFIG, seeds=SEEDS, initial_replicas=3, cells=cells)


def simulated(rule, seed, *, initial):
    config = replace(RUN, initial_replicas=initial)
    return run(
        SURGE,
        PROFILE,
        RulePolicy("by hand", rule),
        config=config,
        seed=seed,
        fallback=HOLD,
        guardrails=bounds_alone(),
    )


def test_plans_hold_their_goals_in_the_simulator(oracles):
    for outcome in oracles.outcomes(CLAIRVOYANT):
        assert outcome.reached
        again = [
            simulated(PlanRule(outcome.point.plan.wanted, RUN.tick_s), seed, initial=3)
            for seed in SEEDS
        ]
        served = [float(result.requests.met(RUN.slo).mean()) for result in again]
        assert served == pytest.approx(
            [run.figures.slo_attainment for run in outcome.point.runs], abs=1e-12
        )
        assert np.mean(served) >= outcome.goal
        hours = [result.gpu_hours for result in again]
        assert hours == [run.figures.gpu_hours for run in outcome.point.runs]


def test_no_fixed_fleet_holds_a_goal_for_less_and_instant_starts_cost_no_more(oracles):
    statics = {}
    for count in range(1, 5):
        result = simulated(StaticRule({"replicas": count}), 1, initial=count)
        statics[float(result.requests.met(RUN.slo).mean())] = result.gpu_hours
    pairs = zip(oracles.outcomes(CLAIRVOYANT), oracles.outcomes(INSTANT), strict=True)
    for bound, free in pairs:
        static = min(hours for served, hours in statics.items() if served >= bound.goal)
        assert bound.point.gpu_hours < 0.9 * static
        assert free.point.gpu_hours <= bound.point.gpu_hours
        assert regret(bound.goal, static, oracles) > 1.1


@pytest.mark.parametrize("name", [INSTANT, CLAIRVOYANT])
def test_the_fleet_of_the_start_kept_is_one_of_the_plans(oracles, name):
    # No plan made from a guess may make the bound dearer than a fleet that never moves.
    (held,) = [point for point in oracles.frontiers[name].points if point.price_gpu_s == 0]
    assert (held.plan.wanted == RUN.initial_replicas).all()
    assert held.figures.actions == 0
    assert oracles.frontiers[name].reaching(held.attainment).point.gpu_hours <= held.gpu_hours


def test_orders_before_the_surge_and_leaves_after_it(oracles):
    plan = oracles.outcomes(CLAIRVOYANT)[-1].point.plan
    most = plan.wanted[BEGIN:END].max()
    # A start takes 8 ticks in the median and 14 at the most, and 8 are to spare.
    assert plan.wanted[BEGIN - 8] > plan.wanted[4 : BEGIN - 22].max()
    assert plan.wanted[END + 6 :].max() < most


def test_regret_of_a_plan_is_one_and_beyond_the_plans_there_is_none(oracles):
    for outcome in oracles.outcomes(CLAIRVOYANT):
        point = outcome.point
        assert regret(point.attainment, point.gpu_hours, oracles) == pytest.approx(1.0)
        assert regret(point.attainment, 2 * point.gpu_hours, oracles) == pytest.approx(2.0)
    served = [point.attainment for point in oracles.frontiers[CLAIRVOYANT].points]
    assert regret(min(served) - 0.01, 1.0, oracles) is None
    assert regret(1.0001, 1.0, oracles) is None


def test_the_oracles_runs_are_those_of_their_plans_and_all_else_is_handed_on(oracles):
    class Rest:
        def check(self, profile, job):
            raise ConfigError(job.name)

        def __call__(self, trace, profile, job, progress):
            return "the rest"

    # As another process gets it; what is unpickled was pickled on this very line.
    runner = pickle.loads(pickle.dumps(PlanRunner(oracles.plans())))  # noqa: S301
    runner = replace(runner, others=Rest())
    for name in (CLAIRVOYANT, INSTANT):
        job = Job(name, name, oracles.options()[name], RUN, 1)
        runner.check(PROFILE, job)
        result = runner(SURGE, PROFILE, job, silent)
        point = oracles.frontiers[name].reaching(0.99).point
        assert result.gpu_hours == point.runs[0].figures.gpu_hours
        assert result.settings["price_gpu_s"] == point.price_gpu_s
        assert result.policy == name
    hpa = Job("hpa", "hpa", {}, RUN, 1)
    assert runner(SURGE, PROFILE, hpa, silent) == "the rest"
    with pytest.raises(ConfigError, match="hpa"):
        runner.check(PROFILE, hpa)


def test_only_oracle_a_starts_at_once(oracles):
    plans = oracles.plans()
    starting = {}
    for name in (CLAIRVOYANT, INSTANT):
        again = PlanRunner({name: replace(plans[CLAIRVOYANT], instant=name == INSTANT)})
        ticks = again(SURGE, PROFILE, Job(name, name, {}, RUN, 1), silent).ticks
        starting[name] = ticks.starting_replicas.max()
    assert starting[CLAIRVOYANT] > 0
    assert starting[INSTANT] == 0


def test_a_goal_out_of_reach_is_told_as_such(cells):
    # A request that waits for nobody still needs more than 10 ms.
    hasty = replace(RUN, slo=Slo(ttft_s=0.001), max_replicas=2, initial_replicas=1)
    config = CompareConfig(run=hasty, sweep=SweepConfig(goal=0.5))
    found = find_oracles(
        load(1.0, length_s=120.0), PROFILE, config, seeds=(1,), initial_replicas=1, cells=cells
    )
    outcome = found.outcomes(CLAIRVOYANT)[0]
    assert (outcome.goal, outcome.reached) == (0.5, False)
    first = next(oracle_sentences(found, {}))
    assert "50.0 % of the requests are out of reach: at most 0.00 %" in first


def test_the_summary_is_json_with_goals_and_frontiers(oracles):
    found = json.loads(json.dumps(oracles_summary(oracles), allow_nan=False))
    goals = found[CLAIRVOYANT]["goals"]
    assert [goal["goal"] for goal in goals] == [0.99, 0.995]
    assert goals[0]["replicas"][0] == [0.0, 3]
    assert [run["seed"] for run in goals[0]["per_seed"]] == [1, 2]
    assert [run["seed"] for run in found[INSTANT]["points"][0]["per_seed"]] == [1]
    prices = [point["price_gpu_s"] for point in found[CLAIRVOYANT]["points"]]
    assert prices == sorted(prices)


def test_says_what_was_possible_and_who_is_how_far_from_it(oracles):
    sentences = list(oracle_sentences(oracles, {"static": 1.414, "hpa": None}))
    assert sentences[0].startswith("With the whole load known, 99.0 % of the requests need ")
    assert sentences[-2:] == [
        "Regret, GPU hours over those of oracle-b at the attainment of the policy itself: "
        "static +41.4 %",
        "No plan of oracle-b serves as well or as badly as hpa: no regret",
    ]


def test_of_the_plans_that_reach_a_goal_the_cheapest_is_taken(oracles):
    plan = oracles.frontiers[CLAIRVOYANT].points[0].plan
    template = oracles.frontiers[CLAIRVOYANT].points[0].runs[0]

    def point(attainment, gpu_hours):
        own = replace(template.figures, slo_attainment=attainment, gpu_hours=gpu_hours)
        return OraclePoint(1.0, plan, (replace(template, figures=own),))

    frontier = Frontier((point(0.97, 8.0), point(0.99, 11.0), point(0.994, 10.0)))
    assert frontier.reaching(0.99).point.gpu_hours == 10.0
    assert frontier.reaching(0.999).point.attainment == 0.994
    assert not frontier.reaching(0.999).reached
    curve = frontier.curve("oracle-b", 0.99)
    assert (curve.chosen.figures.gpu_hours, curve.reached) == (10.0, True)
    # 0.99 for 11 is worse than what lies between 0.97 for 8 and 0.994 for 10.
    some = replace(oracles, frontiers={CLAIRVOYANT: frontier})
    assert regret(0.982, 18.0, some) == pytest.approx(2.0)


# ---- the table


def table_of(trace, cells, **changed):
    options = {
        "cells": cells,
        "around": 3,
        "goal": 0.995,
        "seed": 0,
        "jobs": 1,
        "watch": lambda *_: None,
    }
    return measure_misses(trace, PROFILE, RUN, **{**options, **changed})


def test_a_larger_fleet_misses_no_more_and_a_large_one_next_to_nothing(cells):
    table = table_of(SURGE, cells)
    assert table.missed.shape == (96, 6)
    assert table.arrivals.sum() == len(SURGE)
    assert (np.diff(table.missed, axis=1) <= 0).all()
    assert (table.missed <= table.arrivals[:, None]).all()
    assert table.missed[:, -1].sum() < 0.01 * len(SURGE)
    assert table.missed[BEGIN:END, 0].sum() > 0.5 * table.arrivals[BEGIN:END].sum()
    assert (table.need[: BEGIN - 4] == 1).all()
    assert np.median(table.need[BEGIN:END]) >= 2


def test_the_queue_of_the_noon_does_not_reach_the_night(cells):
    """One replica drowns in the first half hour, and serves the second one with ease."""
    noon_and_night = load(10.0, 0.5, length_s=1800.0)
    fixed = run(
        noon_and_night,
        PROFILE,
        RulePolicy("one", StaticRule({"replicas": 1})),
        config=replace(RUN, initial_replicas=1),
        seed=0,
        fallback=HOLD,
    ).requests
    missed = by_tick(fixed.arrival_s[~fixed.met(RUN.slo)], 15.0, 240)
    night = slice(160, 200)  # ten minutes from ten minutes into it
    assert missed[night].sum() > 100
    assert table_of(noon_and_night, cells).missed[night, 0].sum() < 10


def test_what_will_be_missed_soon_counts_as_missed_now():
    missed = np.array([[0.0], [0.0], [5.0], [1.0], [0.0]])
    assert missed_within(missed, 2)[:, 0].tolist() == [5.0, 5.0, 5.0, 1.0, 0.0]
    assert missed_within(missed, 0)[:, 0].tolist() == missed[:, 0].tolist()
    assert missed_within(missed, 99)[:, 0].tolist() == [5.0, 5.0, 5.0, 1.0, 0.0]


def test_silence_needs_nobody(cells):
    """An hour without load between two of them: pieces without a request, and ends of pieces."""
    silent_hour = load(0.5, 0.0, 0.0, 0.0, 0.0, 0.5, length_s=700.0)
    table = table_of(silent_hour, cells, around=1)
    assert table.missed.shape == (280, 6)
    assert table.missed[47:233].sum() == 0
    assert (table.need == 1).all()


def test_moments_are_counted_in_the_tick_they_lie_in():
    assert by_tick(np.array([0.0, 14.9, 15.0, 31.0, 99.0]), 15.0, 3).tolist() == [2, 1, 2]
    assert ticks_of(SURGE, 15.0) == 96


# ---- the cold start


def test_a_start_without_spread_is_known_to_the_tick():
    exact = replace(PROFILE, startup=Startup(Stages(weights=Stage(100.0))))
    start = start_of(exact, 15.0, replica_qps=1.0)
    assert start.ticks == 7
    assert start.absent.size == 0
    assert start_of(replace(PROFILE, startup=None), 15.0, replica_qps=1.0).ticks == 0


def test_a_ramp_is_absence_by_the_speed_that_is_lacking():
    ramped = Startup(Stages(weights=Stage(30.0)), ramp=((30, 0.25), (60, 0.5)))
    start = start_of(replace(PROFILE, startup=ramped), 15.0, replica_qps=2.0)
    assert start.ticks == 2
    assert start.absent.tolist() == [0.75, 0.5, 0.5]  # 30 requests in 15 s, 60 in 30 s


def test_what_is_absent_falls_from_nearly_all_to_nothing():
    start = start_of(PROFILE, 15.0, replica_qps=2.0)
    assert start.ticks < 120 / 15
    assert start.absent[0] > 0.95
    assert start.absent[-1] > 0
    assert (np.diff(start.absent) <= 1e-12).all()
    # Half of the starts take less than the median, and then 64 requests at half speed.
    at_median = start.absent[8 - start.ticks]
    assert 0.5 < at_median < 0.9


def test_the_starts_are_the_simulators():
    """199 replicas are ordered at once: how many are ready by a time is the distribution."""
    startup = Startup(Stages(schedule=Stage(60.0, 0.5), weights=Stage(200.0, 0.3)))
    quiet = load(0.05, length_s=900.0)
    at_once = replace(RUN.guardrails, steps={"replicas": Step(up=200)})
    result = run(
        quiet,
        replace(PROFILE, startup=startup),
        RulePolicy("all", PlanRule(np.full(60, 200), 15.0)),
        config=replace(RUN, max_replicas=200, initial_replicas=1, guardrails=at_once),
        seed=3,
        fallback=HOLD,
    )
    wanted, ready = result.ticks.wanted_replicas, result.ticks.ready_replicas
    ordered_s = result.ticks.at_s[(wanted == 200).argmax()]
    draws_s = start_draws_s(startup)
    for look in np.flatnonzero(result.ticks.at_s > ordered_s)[:40]:
        share = (draws_s <= result.ticks.at_s[look] - ordered_s).mean()
        # 199 draws: three standard deviations of a share are 0.11 at most.
        assert (ready[look] - 1) / 199 == pytest.approx(share, abs=0.11)
    assert ready[-1] > 190
