import sys
from dataclasses import replace

import numpy as np
import pytest

from experiments.advantages import advantages
from experiments.oracles import CLAIRVOYANT, Frontier, Oracles
from experiments.oracles.result import OraclePoint
from policies import POLICIES
from policies.oracle import Plan
from tests.experiments.test_verdict import comparison


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
    points = [
        OraclePoint(price, Plan(np.array(wanted), np.array(wanted)), ())
        for price, wanted in ((1.0, [2, 3]), (2.0, [2, 3]), (4.0, [4, 4]))
    ]
    oracles = Oracles((0.99,), 0.99, (1,), 15.0, {CLAIRVOYANT: Frontier(tuple(points))})
    (said,) = advantages(replace(comparison(), oracles=oracles))
    # Two prices gave the same plan.
    assert said.startswith(
        "Of 2 plans of oracle-b, each checked in the simulator on the compared seeds"
    )
