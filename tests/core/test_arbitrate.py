"""What is decided, by whom and why: rules as a table, and what must never happen as properties."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.core.decision import (
    SOURCES,
    Decision,
    Guardrails,
    PolicyFault,
    Proposal,
    Reason,
    Source,
    Tick,
    Verdict,
    arbitrate,
    arbitrate_arrays,
    propose,
)
from tuner.core.history import History
from tuner.core.knobs import KnobSettings
from tuner.core.observation import FIELDS, Observation, ObservationArrays, ReplicaArrays
from tuner.guardrails import Bounds, MaxDelta, default_guardrails
from tuner.guardrails.max_delta import Step
from tuner.knobs import knob_space

KNOBS = knob_space(replicas=(1, 24), batch_size=(1, 128))
HEALTHY = Observation(
    at_s=15.0,
    window_s=15.0,
    age_s=1.0,
    settings=KnobSettings(replicas=4, batch_size=128),
    qps=10.0,
    output_tokens_per_s=4000.0,
    in_flight=40.0,
    ready_replicas=4.0,
)


@dataclass(frozen=True)
class Says:
    """A policy that proposes what it was given, or raises it."""

    wish: dict[str, float] | Exception
    name: str = "says"

    def propose(self, history: History) -> Proposal:
        if isinstance(self.wish, Exception):
            raise self.wish
        return Proposal(self.wish, memory=(*history.memory, 1.0))


def decide(
    wish: dict[str, float] | Exception,
    observation: Observation = HEALTHY,
    fallback: dict[str, float] | Exception | None = None,
    guardrails: Guardrails | None = None,
) -> Decision:
    history = History(KNOBS).observed(observation)
    return arbitrate(
        propose(Says(wish), history),
        history,
        guardrails or default_guardrails(),
        Says({"replicas": 6.0} if fallback is None else fallback),
    )


CASES = {
    # name: (wish, observation, expected target, source, reasons)
    "trusted": ({"replicas": 5.0}, HEALTHY, {"replicas": 5}, Source.POLICY, []),
    "a knob left out stays": ({"batch_size": 120.0}, HEALTHY, {"replicas": 4}, Source.POLICY, []),
    "too large a step": (
        {"replicas": 20.0},
        HEALTHY,
        {"replicas": 8},
        Source.POLICY,
        [Reason.StepTooLarge],
    ),
    "too large a step and out of bounds": (
        {"replicas": 99.0},
        HEALTHY,
        {"replicas": 8},
        Source.POLICY,
        [Reason.OutOfBounds, Reason.StepTooLarge],
    ),
    "never below the lower bound": (
        {"replicas": 0.0},
        replace(HEALTHY, settings=KnobSettings(replicas=2, batch_size=128)),
        {"replicas": 1},
        Source.POLICY,
        [Reason.OutOfBounds],
    ),
    "raised": (
        RuntimeError("boom"),
        HEALTHY,
        {"replicas": 6},
        Source.FALLBACK,
        [Reason.PolicyRaised],
    ),
    "not a number": (
        {"replicas": float("nan")},
        HEALTHY,
        {"replicas": 6},
        Source.FALLBACK,
        [Reason.ProposalNotFinite],
    ),
    "infinite": (
        {"replicas": float("inf")},
        HEALTHY,
        {"replicas": 6},
        Source.FALLBACK,
        [Reason.ProposalNotFinite],
    ),
    "unknown knob": (
        {"repliccas": 5.0},
        HEALTHY,
        {"replicas": 6},
        Source.FALLBACK,
        [Reason.ProposalUnknownKnob],
    ),
    "missing field": (
        {"replicas": 5.0},
        replace(HEALTHY, qps=None),
        {"replicas": 6},
        Source.FALLBACK,
        [Reason.MetricsMissing],
    ),
    "no sample at all": (
        {"replicas": 5.0},
        replace(HEALTHY, age_s=None),
        {"replicas": 6},
        Source.FALLBACK,
        [Reason.MetricsMissing],
    ),
    "old sample": (
        {"replicas": 5.0},
        replace(HEALTHY, age_s=61.0),
        {"replicas": 6},
        Source.FALLBACK,
        [Reason.MetricsStale],
    ),
    # Exactly as old as allowed is still trusted.
    "just young enough": (
        {"replicas": 5.0},
        replace(HEALTHY, age_s=60.0),
        {"replicas": 5},
        Source.POLICY,
        [],
    ),
    # Zero traffic is a valid observation, not a missing one.
    "zero traffic": (
        {"replicas": 3.0},
        replace(HEALTHY, qps=0.0, output_tokens_per_s=0.0, in_flight=0.0),
        {"replicas": 3},
        Source.POLICY,
        [],
    ),
    # 40 replicas in force, 24 allowed, steps of 2 down: no value satisfies both.
    "limits contradict": (
        {"replicas": 24.0},
        replace(HEALTHY, settings=KnobSettings(replicas=40, batch_size=128)),
        {"replicas": 40},
        Source.HOLD,
        [Reason.StepTooLarge, Reason.LimitsContradict],
    ),
}


@pytest.mark.parametrize(
    ("wish", "observation", "target", "source", "reasons"), CASES.values(), ids=CASES.keys()
)
def test_decides(wish, observation, target, source, reasons):
    decision = decide(wish, observation)
    assert {knob: decision.target[knob] for knob in target} == target
    assert decision.source == source
    assert [verdict.reason for verdict in decision.verdicts] == reasons
    assert all(verdict.sentence for verdict in decision.verdicts)


def test_does_not_touch_a_knob_whose_value_in_force_is_unknown():
    decision = decide({"replicas": 5.0}, replace(HEALTHY, settings=KnobSettings(batch_size=128)))
    assert "replicas" not in decision.target
    assert [v.reason for v in decision.verdicts] == [Reason.SettingsUnknown]


def test_holds_when_policy_and_fallback_both_fail():
    decision = decide(RuntimeError("boom"), fallback=ValueError("no metric"))
    assert decision.target == HEALTHY.settings
    assert decision.source == Source.HOLD
    assert decision.fallback is None


def test_fallback_is_asked_and_remembers_while_the_policy_is_trusted():
    history = History(KNOBS)
    for _ in range(3):
        history = history.observed(HEALTHY)
        proposal = propose(Says({"replicas": 4.0}), history)
        decision = arbitrate(proposal, history, default_guardrails(), Says({"replicas": 6.0}))
        history = history.decided(decision)
    assert decision.source == Source.POLICY
    assert history.fallback_memory == (1.0, 1.0, 1.0)


def test_failed_policy_keeps_its_memory():
    history = History(KNOBS, memory=(7.0,)).observed(HEALTHY)
    fault = propose(Says(RuntimeError("boom")), history)
    decision = arbitrate(fault, history, default_guardrails(), Says({"replicas": 6.0}))
    assert history.decided(decision).memory == (7.0,)


def test_policy_failure_names_the_exception_and_its_message():
    (verdict,) = decide(RuntimeError("boom")).trips
    assert "RuntimeError: boom" in verdict.sentence


def test_a_fault_without_any_trip_configured_holds():
    decision = decide(RuntimeError("boom"), guardrails=Guardrails())
    assert decision.target == HEALTHY.settings


def test_sentence_tells_from_what_to_what_who_and_why():
    sentence = decide({"replicas": 20.0}).sentence()
    assert sentence == (
        "replicas 4 -> 8 (policy): replicas 4 -> 20 is too large a step for one tick: 8"
    )


VERDICT = Verdict("max_delta", Reason.StepTooLarge, "too large a step", "replicas")


@pytest.mark.parametrize(
    ("source", "verdicts", "why"),
    [
        (Source.POLICY, (), "the policy's word"),
        (Source.FALLBACK, (), "the fallback's word"),
        (Source.HOLD, (), ""),
        (Source.POLICY, (VERDICT,), "too large a step"),
    ],
    ids=["policy", "fallback", "nobody decided", "a guardrail spoke"],
)
def test_the_why_is_the_guardrails_or_that_of_who_decided(source, verdicts, why):
    decision = Decision(
        at_s=0.0,
        proposal=Proposal({}, why="the policy's word"),
        fallback=Proposal({}, why="the fallback's word"),
        settings=KnobSettings(replicas=4),
        target=KnobSettings(replicas=5),
        source=source,
        verdicts=verdicts,
    )
    assert decision.why == why
    said = f": {why}" if why else ""
    assert decision.sentence() == f"replicas 4 -> 5 ({source}){said}"


def test_fallback_has_its_own_width():
    guardrails = Guardrails(
        trips=default_guardrails().trips,
        limits=(MaxDelta({"replicas": Step(up=1, fallback_up=3)}),),
    )
    assert decide({"replicas": 9.0}, guardrails=guardrails).target["replicas"] == 5
    stale = replace(HEALTHY, age_s=999.0)
    by_fallback = decide({"replicas": 9.0}, stale, {"replicas": 9.0}, guardrails)
    assert by_fallback.target["replicas"] == 7


def ticks_of(n: int, rng: np.random.Generator) -> tuple[Tick, np.ndarray]:
    """n random targets: missing fields, unknown settings, faults, absurd wishes."""

    def some(low: float, high: float, missing: float) -> np.ndarray:
        values = rng.integers(low, high, (n, len(KNOBS.specs))).astype(np.float64)
        values[rng.random(values.shape) < missing] = np.nan
        return values

    fields = rng.random((n, len(FIELDS)))
    fields[rng.random(fields.shape) < 0.02] = np.nan
    faults = np.where(rng.random(n) < 0.1, Reason.PolicyRaised, 0).astype(np.int64)
    now = ObservationArrays(
        knobs=KNOBS,
        at_s=np.zeros(n),
        age_s=rng.uniform(0, 90, n),
        values=fields,
        settings=some(0, 200, 0.1),
        replicas=ReplicaArrays.of(()),
    )
    return Tick(now=now, proposed=some(-50, 300, 0.2), fault=faults), some(-50, 300, 0.2)


@given(st.integers(0, 2**32 - 1))
def test_target_is_inside_every_limit_or_held(seed):
    tick, fallback = ticks_of(50, np.random.default_rng(seed))
    result = arbitrate_arrays(tick, fallback, default_guardrails())
    known = ~np.isnan(tick.now.settings)
    held = result.contradiction[:, None]
    assert (np.isnan(result.target) == ~known).all()
    assert ((result.target == tick.now.settings) | ~held | ~known).all()
    inside = (result.target >= result.low) & (result.target <= result.high)
    assert (inside | held | ~known).all()
    assert ((result.target >= 1) | held | ~known | (KNOBS.low < 1)).all()


@given(st.integers(0, 2**32 - 1))
def test_a_batch_decides_as_its_rows_one_by_one(seed):
    tick, fallback = ticks_of(20, np.random.default_rng(seed))
    together = arbitrate_arrays(tick, fallback, default_guardrails())
    for row in range(20):
        now = tick.now
        alone = arbitrate_arrays(
            Tick(
                now=ObservationArrays(
                    knobs=KNOBS,
                    at_s=now.at_s[[row]],
                    age_s=now.age_s[[row]],
                    values=now.values[[row]],
                    settings=now.settings[[row]],
                    replicas=now.replicas,
                ),
                proposed=tick.proposed[[row]],
                fault=tick.fault[[row]],
            ),
            fallback[[row]],
            default_guardrails(),
        )
        np.testing.assert_array_equal(alone.target[0], together.target[row])
        assert alone.source[0] == together.source[row]


@given(st.integers(0, 2**32 - 1))
def test_clamping_what_was_clamped_changes_nothing(seed):
    tick, fallback = ticks_of(20, np.random.default_rng(seed))
    guardrails = Guardrails(limits=(Bounds(), MaxDelta()))
    once = arbitrate_arrays(tick, fallback, guardrails).target
    twice = arbitrate_arrays(replace(tick, proposed=once), fallback, guardrails).target
    np.testing.assert_array_equal(once, twice)


@given(
    st.builds(
        Observation,
        at_s=st.floats(0, 1e6),
        window_s=st.just(15.0),
        age_s=st.none() | st.floats(0, 1e4),
        settings=st.dictionaries(st.sampled_from(KNOBS.names), st.integers(0, 300)).map(
            KnobSettings
        ),
        **{spec.name: st.none() | st.floats(0, 1e6) for spec in FIELDS},
    ),
    st.dictionaries(st.sampled_from((*KNOBS.names, "nonsense")), st.floats()),
)
def test_no_guardrail_raises_and_the_same_history_gives_the_same_decision(observation, wish):
    first, second = decide(wish, observation), decide(wish, observation)
    assert first.target == second.target
    assert first.verdicts == second.verdicts
    assert first.source in SOURCES
    assert first.sentence()


def test_proposal_of_a_healthy_policy_is_handed_on_unchanged():
    history = History(KNOBS).observed(HEALTHY)
    assert propose(Says({"replicas": 5.0}), history) == Proposal({"replicas": 5.0}, memory=(1.0,))
    assert isinstance(propose(Says({"x": 5.0}), history), PolicyFault)
