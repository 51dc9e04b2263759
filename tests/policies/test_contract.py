"""What every policy of the registry keeps, whatever it decides."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import POLICIES, Load, RulePolicy, build_policy, empty_memory
from tests.policies.test_hpa import stacked
from tuner.core.decision import Guardrails, arbitrate, propose
from tuner.core.errors import ConfigError
from tuner.core.history import History
from tuner.core.knobs import KnobSettings
from tuner.core.observation import (
    FIELD_NAMES,
    REPLICA_FIELDS,
    Observation,
    ObservationArrays,
    ReplicaObservation,
    ReplicaState,
)
from tuner.data import load_profile
from tuner.knobs import knob_space

# Numbers that a rule did not reckon with show up as such a warning first.
pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

KNOBS = knob_space(replicas=(1, 100))
PROFILE = load_profile("deepseek-r1-8xh200-sglang")
HEALTHY = Observation(
    at_s=30.0,
    window_s=15.0,
    age_s=1.0,
    settings=KNOBS.defaults(),
    replicas=tuple(
        ReplicaObservation(f"r{i}", ReplicaState.READY, 900.0, *[float(i)] * len(REPLICA_FIELDS))
        for i in range(4)
    ),
    **dict.fromkeys(FIELD_NAMES, 3.0),
)

numbers = st.none() | st.floats(0, 1e6) | st.sampled_from([0.0, 5e-324, 1e-300, float("inf")])
replicas = st.builds(
    ReplicaObservation,
    name=st.just("r"),
    state=st.sampled_from(ReplicaState),
    age_s=st.floats(0, 1e5),
    **dict.fromkeys(REPLICA_FIELDS, numbers),
)
observations = st.builds(
    Observation,
    at_s=st.just(0.0),
    window_s=st.just(15.0),
    age_s=st.none() | st.floats(0, 300),
    settings=st.builds(
        lambda n: KnobSettings() if n is None else KNOBS.defaults().with_(replicas=n),
        st.none() | st.integers(0, 120),
    ),
    replicas=st.lists(replicas, max_size=4).map(tuple),
    **dict.fromkeys(FIELD_NAMES, numbers),
)


NEEDED = {
    "schedule": {"times": "00:00=2,00:00:40=5,12:00=70"},
    "static-best": {"replicas": 4},
}
"""Options that a policy cannot do without."""


def built(name: str) -> RulePolicy:
    return build_policy(name, NEEDED.get(name, {}), KNOBS, tick_s=15.0, profile=PROFILE)


@pytest.fixture(params=POLICIES)
def policy(request) -> RulePolicy:
    return built(request.param)


def test_names_itself_as_the_registry_does(policy):
    assert policy.name in POLICIES
    assert policy.rule.memory_size == empty_memory(policy.rule, 3).shape[1]


def test_the_same_history_gives_the_same_proposal(policy):
    history = History(KNOBS).observed(HEALTHY)
    first, second = policy.propose(history), policy.propose(history)
    assert first.settings == second.settings
    assert first.raw == second.raw
    np.testing.assert_array_equal(first.memory, second.memory)


@pytest.mark.parametrize("field", [*FIELD_NAMES, "age_s", "replicas", "settings"])
def test_survives_a_missing_field(policy, field):
    nothing = {"replicas": (), "settings": KnobSettings()}.get(field)
    history = History(KNOBS).observed(replace(HEALTHY, **{field: nothing}))
    for _ in range(3):
        proposal = policy.propose(history)
        assert all(np.isfinite(value) for value in proposal.settings.values())
        history = replace(history, memory=proposal.memory)


def test_knows_only_knobs_of_the_target(policy):
    assert set(policy.propose(History(KNOBS).observed(HEALTHY)).settings) <= set(KNOBS.names)


def test_says_why_in_one_line(policy):
    why = policy.propose(History(KNOBS).observed(HEALTHY)).why
    assert why
    assert len(why.splitlines()) == 1


@given(run=st.lists(observations, min_size=1, max_size=6))
@settings(max_examples=30, deadline=None)
def test_stays_inside_the_ranges_and_its_memory_goes_through_text_and_back(run):
    for name in POLICIES:
        policy = built(name)
        history = History(KNOBS)
        for tick, now in enumerate(run):
            history = history.observed(replace(now, at_s=15.0 * tick))
            proposal = policy.propose(history)
            assert len(proposal.memory) == policy.rule.memory_size
            assert all(
                KNOBS[knob].low <= value <= KNOBS[knob].high
                for knob, value in proposal.settings.items()
            )
            text = json.dumps([None if np.isnan(x) else x for x in proposal.memory])
            restored = tuple(float("nan") if x is None else x for x in json.loads(text))
            np.testing.assert_array_equal(restored, proposal.memory)
            history = replace(history, memory=restored)


@given(
    runs=st.integers(1, 4).flatmap(
        lambda ticks: st.lists(
            st.lists(observations, min_size=ticks, max_size=ticks), min_size=2, max_size=4
        )
    )
)
@settings(max_examples=30, deadline=None)
def test_a_batch_of_n_is_n_batches_of_one(runs):
    for name in POLICIES:
        rule = built(name).rule
        memory = empty_memory(rule, len(runs))
        own = [empty_memory(rule, 1) for _ in runs]
        for tick, column in enumerate(zip(*runs, strict=True)):
            seen = [replace(now, at_s=15.0 * tick) for now in column]
            together = rule.decide(stacked(seen), memory)
            memory = together.memory
            for row, now in enumerate(seen):
                alone = rule.decide(ObservationArrays.of(KNOBS, now), own[row])
                own[row] = alone.memory
                for part in ("settings", "raw", "need", "memory"):
                    np.testing.assert_array_equal(
                        getattr(together, part)[row], getattr(alone, part)[0], f"{name}: {part}"
                    )


@given(run=st.lists(observations, min_size=1, max_size=6))
@settings(max_examples=30, deadline=None)
def test_never_faults_as_policy_or_as_fallback(run):
    for name in POLICIES:
        policy = built(name)
        history = History(KNOBS)
        for tick, now in enumerate(run):
            history = history.observed(replace(now, at_s=15.0 * tick))
            proposal = propose(policy, history)
            decision = arbitrate(proposal, history, Guardrails(), policy)
            assert decision.proposal is not None
            assert decision.fallback is not None
            history = history.decided(decision)


def test_an_unknown_policy_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="did you mean 'static'"):
        build_policy("statik", {}, KNOBS, tick_s=15.0)
    with pytest.raises(ConfigError, match=f"known policies: {', '.join(POLICIES)}"):
        build_policy("x", {}, KNOBS, tick_s=15.0)


def test_an_option_of_an_unknown_policy_is_refused():
    with pytest.raises(ConfigError, match=r"option 'hpaa\.target' is for policy 'hpaa'"):
        build_policy("hpa", {"hpaa.target": 3}, KNOBS, tick_s=15.0)


BEST_STATIC = Load(
    replicas=4,
    qps=2.0,
    prompt_tokens_per_s=4000.0,
    output_tokens_per_s=1500.0,
    in_flight=40.0,
    kv_cache_usage=0.2,
)


@pytest.mark.parametrize("name", POLICIES)
def test_whatever_the_search_may_draw_can_be_built(name):
    parameters = POLICIES[name].search(BEST_STATIC)
    for end in ("low", "high"):
        drawn = {
            each.name: int(getattr(each, end)) if each.whole else getattr(each, end)
            for each in parameters
        }
        options = NEEDED.get(name, {}) | drawn
        build_policy(name, options, KNOBS, tick_s=15.0, profile=PROFILE)
    for each in parameters:
        assert each.low < each.high
        assert each.low > 0 or not each.log
