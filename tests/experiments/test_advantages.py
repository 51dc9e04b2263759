import sys
from dataclasses import replace

import numpy as np
import pytest

from experiments.advantages import advantages
from experiments.oracles import CLAIRVOYANT, Frontier, Oracles
from experiments.oracles.result import OraclePoint
from policies import POLICIES
from policies.oracle import Plan
from tests.experiments import toy
from tests.experiments.test_notes import ticks
from tests.experiments.test_verdict import FIGURES, comparison
from tuner.core.profile import Stage, Stages, Startup


def of(*names, **options):
    value = comparison()
    mine = value.policies[1]
    outcomes = [replace(mine, name=name, policy=name, options=options) for name in names]
    return replace(value, policies=(value.policies[0], *outcomes))


@pytest.mark.parametrize("name", POLICIES)
def test_who_has_a_model_of_a_replica_says_so(name):
    module = sys.modules[POLICIES[name].build.__module__]
    assert POLICIES[name].modelled == hasattr(module, "PerfModel")


def test_rules_whose_model_is_what_is_simulated_are_named():
    (said,) = advantages(of("planner", "dynamo-sla"))
    assert said.startswith("planner and dynamo-sla reckon with a performance model of a replica")
    assert "their model is the very profile that is simulated: their best case" in said


def test_a_rule_with_another_profile_has_no_advantage():
    assert advantages(of("planner", profile="my-fleet.yaml")) == []
    assert advantages(of("keda")) == []


def test_the_oracle_is_said_to_have_looked_at_its_runs():
    (said,) = advantages(known(comparison(), 0.995))
    # Two prices gave the same plan.
    assert said.startswith(
        "Of 2 plans of oracle-b, each checked in the simulator on the compared seeds, the cheapest "
        "that holds the goal is shown"
    )


def known(value, attainment, ticks=None):
    """The comparison with oracle B, whose plans serve so many."""
    run = replace(value["hpa"].runs[0], figures=replace(FIGURES, slo_attainment=attainment))
    points = [
        OraclePoint(price, Plan(np.array(wanted), np.array(wanted)), (run,))
        for price, wanted in ((1.0, [2, 3]), (2.0, [2, 3]), (4.0, [4, 4]))
    ]
    oracles = Oracles((0.99,), 0.99, (1,), 15.0, {CLAIRVOYANT: Frontier(tuple(points))})
    mine = replace(value["hpa"], name=CLAIRVOYANT, runs=(replace(run, ticks=ticks),))
    return replace(value, oracles=oracles, policies=(*value.policies, mine))


# Without a spread every cold start takes these ten minutes.
SLOW = replace(toy.PROFILE, startup=Startup(Stages(weights=Stage(600.0))))
SHORT = "oracle-b could not reach the goal of 99.0 %: of 2 plans, each checked"


def test_an_oracle_that_misses_the_goal_says_so():
    (said,) = advantages(known(comparison(), 0.95))
    assert said.startswith(SHORT)
    assert "the one that comes closest is shown, with 95.00 %; it has seen the runs" in said


def test_where_no_replica_starts_in_time_that_is_why():
    load = comparison(trace=toy.toy_trace(minutes=8), profile=SLOW)
    said = advantages(known(load, 0.95))
    assert said[0].startswith(SHORT)
    assert said[1:] == [
        "Its fleet begins as everybody's, with 3 replicas, and what it starts is ready after 10 "
        "min at the soonest, after the last arrival: no replica starts in time."
    ]


def test_what_is_missed_before_a_replica_is_ready_is_why_too():
    # 600 requests in ten hours; ticks of a minute, of which ten end before the first start does
    load = comparison(trace=toy.toy_trace(minutes=600, per_minute=1), profile=SLOW)

    def missed(early, late):
        table = ticks([0] * 600, [3] * 600)
        return replace(table, missed=np.array([early] * 10 + [late] * 590))

    (_, why) = advantages(known(load, 0.95, missed(3, 0)))
    assert why.endswith("at the soonest; until then 5.0 % of all requests have missed already.")
    # as many misses, but later: the start does not explain them
    assert len(advantages(known(load, 0.95, missed(0, 1)))) == 1
