"""Why a policy wants what it wants: one line, of the numbers that it used."""

# A row of a table is a line, however long the sentence.
# ruff: noqa: E501

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from policies import HpaRule, LearnedRule, StaticRule, build_policy, empty_memory, propose_one
from policies.codec import Codec
from policies.hpa_spec import Behavior, HpaConfig, MetricSpec, ScalingPolicy, ScalingRules
from policies.rule import RulePolicy
from tests.envs import worlds
from tests.policies import bundles
from tests.policies.test_contract import observations
from tests.policies.test_hpa import KNOBS, NOW_S, at_fleet, at_pods, observation
from tuner.core.history import History
from tuner.core.knobs import KnobSettings
from tuner.core.observation import Observation, ObservationArrays, ReplicaState

READY, PENDING = ReplicaState.READY, ReplicaState.PENDING
TOKENS = MetricSpec("output_tokens_per_s", 1600.0)
IN_FLIGHT = MetricSpec("in_flight", 10.0)
HPA = HpaConfig((TOKENS,))
PODS = HpaConfig((MetricSpec("running", 10.0, "Pods"),))
WHOLE = HpaConfig((MetricSpec("in_flight", 100.0, target_type="Value"),))
ALL_TOKENS = HpaConfig((MetricSpec("prompt_tokens_per_s+output_tokens_per_s", 1600.0),))
INSIDE = HpaConfig((MetricSpec("running+queue_depth", 10.0),))
BOTH = HpaConfig((TOKENS, IN_FLIGHT))
SLOW_UP = HpaConfig(
    (TOKENS,), behavior=Behavior(scale_up=ScalingRules(policies=(ScalingPolicy("Pods", 2, 60.0),)))
)
KEEPS = HpaConfig(
    (TOKENS,),
    behavior=Behavior(scale_down=ScalingRules(select_policy="Disabled")),
    downscale_stabilization_s=0.0,
)


def fleet(n: int = 23, tokens: float | None = 42161.0, **fields: float | None) -> Observation:
    return observation(n, **{"output_tokens_per_s": tokens, "status_replicas": float(n), **fields})


def why(config: HpaConfig, now: Observation) -> str:
    return propose_one(HpaRule(config), History(KNOBS).observed(now)).why


AT_23 = "42,161 output tokens/s over 23 replicas is 1,833 each, target 1,600: 27"


@pytest.mark.parametrize(
    ("config", "now", "words"),
    [
        (HPA, fleet(), AT_23),
        (HPA, fleet(1), "42,161 output tokens/s over 1 replica is 42,161, target 1,600: 27, at most 4 in one step"),
        (HPA, fleet(tokens=39e3), "39,000 output tokens/s over 23 replicas is 1,696 each, within 10 % of the target 1,600: 23"),
        (HPA, fleet(tokens=3e4), "30,000 output tokens/s over 23 replicas is 1,304 each, target 1,600: 19, held at 23 by the window of 300 s"),
        (HPA, fleet(4, status_replicas=0.0), "42,161 output tokens/s and no replica yet, target 1,600 each: 27, at most 8 in one step"),
        (replace(HPA, max_replicas=25), fleet(), f"{AT_23}, at most 25 allowed"),
        (replace(HPA, min_replicas=5, downscale_stabilization_s=0.0), fleet(tokens=10.0), "10 output tokens/s over 23 replicas is 0.4348 each, target 1,600: 1, at least 5 allowed"),
        (replace(HPA, max_replicas=20), fleet(), "23 is above the most replicas allowed: 20"),
        (replace(HPA, min_replicas=30), fleet(), "23 is below the fewest replicas allowed: 30"),
        (SLOW_UP, fleet(), f"{AT_23}, at most 25 in one step"),
        (KEEPS, fleet(tokens=3e4), "30,000 output tokens/s over 23 replicas is 1,304 each, target 1,600: 19, at least 23 in one step"),
        (HPA, fleet(tokens=None), "no value for output_tokens_per_s"),
        (HPA, fleet(tokens=float("inf")), "no value for output_tokens_per_s"),
        (HPA, fleet(status_replicas=None), "no value for status_replicas"),
        (HPA, observation(None), "the replicas in force are not known"),
        (HPA, fleet(0), "scaled to 0 by hand, which hpa leaves"),
        (BOTH, fleet(in_flight=250.0), AT_23),
        (BOTH, fleet(in_flight=280.0), "in_flight 280 over 23 replicas is 12.17 each, target 10: 28"),
        (BOTH, fleet(), f"{AT_23}; no value for in_flight"),
        (BOTH, fleet(tokens=None, in_flight=30.0), "in_flight 30 over 23 replicas is 1.304 each, target 10: 3; not followed down: no value for output_tokens_per_s"),
        (BOTH, fleet(tokens=None), "no value for output_tokens_per_s, no value for in_flight"),
        (ALL_TOKENS, fleet(prompt_tokens_per_s=8e3), "50,161 prompt tokens + output tokens/s over 23 replicas is 2,181 each, target 1,600: 32"),
        (ALL_TOKENS, fleet(), "no value for prompt_tokens_per_s + output_tokens_per_s"),
        (INSIDE, fleet(running=250.0, queue_depth=30.0), "running + queue_depth 280 over 23 replicas is 12.17 each, target 10: 28"),
        (WHOLE, at_fleet(4, 150.0, 4), "in_flight 150 with 4 replicas ready, target 100 for all together: 6"),
        (WHOLE, at_fleet(4, 95.0, 4), "in_flight 95 with 4 replicas ready, within 10 % of the target 100 for all together: 4"),
        (WHOLE, observation(4, in_flight=95.0), "in_flight 95, within 10 % of the target 100 for all together: 4"),
        (WHOLE, observation(4, in_flight=150.0), "no value for ready_replicas"),
        (PODS, at_pods(4, (4, READY, 12.0)), "running is 12 each on 4 replicas that report, target 10: 5"),
        (PODS, at_pods(4, (4, READY, 10.5)), "running is 10.5 each on 4 replicas that report, within 10 % of the target 10: 4"),
        (PODS, at_pods(5, (4, READY, 15.0), (1, PENDING, None)), "running is 15 each on 4 replicas that report, target 10; with 1 more guessed: 6"),
        (PODS, at_pods(6, (3, READY, 12.0), (1, READY, None), (2, PENDING, None)), "running is 12 each on 3 replicas that report, target 10; with 3 more guessed, no move: 6"),
        (PODS, at_pods(2, (2, READY, None)), "no replica reports running"),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else "",
)  # fmt: skip
def test_hpa_tells_its_numbers_and_what_its_windows_did(config, now, words):
    assert why(config, now) == words


@pytest.mark.parametrize(
    "config", [BOTH, WHOLE, PODS, SLOW_UP], ids=["both", "whole", "pods", "slow"]
)
@given(now=observations)
@settings(max_examples=60, deadline=None)
def test_hpa_has_a_word_for_anything_it_may_see(config, now):
    said = why(config, now)
    assert said
    assert len(said.splitlines()) == 1
    assert "nan" not in said


def test_hpa_s_last_count_is_what_it_proposes():
    rule, memory = HpaRule(HPA), ()
    rng = np.random.default_rng(0)
    n, seen = 23, set()
    for tick in range(200):
        now = replace(fleet(n, float(rng.gamma(2, 20_000))), at_s=NOW_S + 15.0 * tick)
        proposal = propose_one(rule, replace(History(KNOBS).observed(now), memory=memory))
        last = proposal.why.split(": ", 1)[1].split(", ")[-1]
        told = [int(word) for word in last.split() if word.isdigit() and word != "300"]
        assert told == [proposal.settings["replicas"]], proposal.why
        seen.add(last.rstrip("0123456789 "))
        memory, n = proposal.memory, int(proposal.settings["replicas"])
    assert len(seen) > 1  # windows and limits really spoke


@pytest.mark.parametrize(
    ("fixed", "words"),
    [
        ({"replicas": 4}, "fixed settings"),
        ({}, "no settings of its own: all stays as it is"),
    ],
    ids=["some", "none"],
)
def test_static_says_that_it_is_static(fixed, words):
    rule = StaticRule(KnobSettings(fixed))
    assert propose_one(rule, History(KNOBS).observed(fleet())).why == words


# A bundle ------------------------------------------------------------------------------------

SMALL = worlds.knobs()
LOW, HIGH = 0.7, 1.6


def small(replicas: int = 3, tokens: float | None = 450.0) -> Observation:
    return Observation(
        at_s=0.0,
        window_s=15.0,
        settings=KnobSettings(batch_size=32, replicas=replicas, threads=4, warmup_requests=0),
        output_tokens_per_s=tokens,
        status_replicas=float(replicas),
        ready_replicas=float(replicas),
    )


def bundle(folder: Path, bias: float, **config: object) -> RulePolicy:
    """A bundle whose network answers `bias` whatever it sees, on hpa with 150 tokens/s."""
    made: Codec = bundles.codec(factor_low=LOW, factor_high=HIGH, **config)
    content = bundles.linear_network(len(made.features), 4, weight=0.0, bias=bias)
    path = bundles.write(folder, made=made, content=content)
    return build_policy(str(path), {}, SMALL, tick_s=worlds.TICK_S)


@pytest.mark.parametrize(
    ("bias", "config", "now", "words"),
    [
        (1.0, {}, small(), "x1.60 on hpa's need of 3: 5"),
        (0.0, {}, small(tokens=400.0), "x1.00 on hpa's need of 2.667: 3"),
        (-1.0, {}, small(), "x0.70 on hpa's need of 3: 3"),
        (-1.0, {}, small(5), "x0.70 on hpa's need of 3: 3, held at 5 by the window of 300 s"),
        (-1.0, {"hold_s": 0.0}, small(5), "x0.70 on hpa's need of 3: 3"),
        (1.0, {}, small(tokens=900.0), "x1.60 on hpa's need of 6: 10, at most 6 allowed"),
        (1.0, {}, small(tokens=None), "hpa cannot tell the need: no value for output_tokens_per_s"),
        (1.0, {"replica_action": "step", "max_step": 2}, small(), "+2 on the 3 in force: 5"),
        (-1.0, {"replica_action": "step", "max_step": 4}, small(), "-4 on the 3 in force: -1, at least 1 allowed"),
        (1.0, {"move": ("batch_size",)}, small(), "hpa: 450 output tokens/s over 3 replicas is 150 each, within 10 % of the target 150: 3; batch_size 32 by its head"),
    ],
    ids=["up", "as it is", "down", "held", "not held", "bound", "blind", "step", "step bound", "no head"],
)  # fmt: skip
def test_a_bundle_tells_its_factor_and_the_need_of_its_base_rule(
    tmp_path, bias, config, now, words
):
    policy = bundle(tmp_path, bias, **config)
    assert policy.propose(History(SMALL).observed(now)).why == words


def test_deciding_over_arrays_makes_no_words(tmp_path, monkeypatch):
    rule = bundle(tmp_path, 0.0).rule
    assert isinstance(rule, LearnedRule)

    def refuse(*_: object) -> str:
        raise AssertionError("words were made")

    monkeypatch.setattr(Codec, "why", refuse)
    now = ObservationArrays.of(SMALL, small())
    result = rule.decide(now, empty_memory(rule, 1))
    with pytest.raises(AssertionError, match="words were made"):
        result.why(0)
