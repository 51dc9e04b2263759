"""What is written about a decision is the decision: it can be read back whole."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.core.audit import AuditRecord
from tuner.core.decision import Decision, Proposal, Reason, Receipt, Source, Verdict
from tuner.core.faults import Fault, FaultReason
from tuner.core.knobs import KnobSettings
from tuner.core.observation import (
    FIELD_NAMES,
    REPLICA_FIELDS,
    Observation,
    ReplicaObservation,
    ReplicaState,
)

KNOBS = ("batch_size", "replicas", "threads", "warmup_requests")
finite = st.floats(allow_nan=False, allow_infinity=False)
text = st.text(max_size=8)
settings = st.dictionaries(st.sampled_from(KNOBS), st.integers(0, 10**6)).map(KnobSettings)
faults = st.lists(
    st.builds(Fault, text, st.sampled_from(FaultReason), text, st.none() | st.sampled_from(KNOBS)),
    max_size=3,
).map(tuple)
# NaN stands for an empty place in a memory; elsewhere nobody means anything by it.
empty = st.just(math.nan)
numbers = st.floats(allow_nan=False)
proposals = st.builds(
    Proposal,
    settings=st.dictionaries(st.sampled_from(KNOBS), finite),
    memory=st.lists(numbers | empty, max_size=8).map(tuple),
    raw=st.none() | numbers,
    log_prob=st.none() | numbers,
    why=text,
)
verdicts = st.builds(
    Verdict, text, st.sampled_from(Reason), text, st.none() | st.sampled_from(KNOBS)
)
decisions = st.builds(
    Decision,
    at_s=finite,
    proposal=st.none() | proposals,
    fallback=st.none() | proposals,
    settings=settings,
    target=settings,
    source=st.sampled_from(Source),
    verdicts=st.lists(verdicts, max_size=3).map(tuple),
)
replicas = st.builds(
    ReplicaObservation,
    name=text,
    state=st.sampled_from(ReplicaState),
    age_s=finite,
    **{name: st.none() | finite for name in REPLICA_FIELDS},
)
observations = st.builds(
    Observation,
    at_s=finite,
    window_s=finite,
    age_s=st.none() | finite,
    settings=settings,
    replicas=st.lists(replicas, max_size=2).map(tuple),
    ages_s=st.dictionaries(st.sampled_from(FIELD_NAMES), finite, max_size=3),
    estimates=st.lists(st.sampled_from(FIELD_NAMES), max_size=3).map(tuple),
    faults=faults,
    **{name: st.none() | finite for name in FIELD_NAMES[:4]},
)
records = st.builds(
    AuditRecord,
    mode=st.sampled_from(("shadow", "active")),
    observation=observations,
    decision=decisions,
    receipt=st.none() | st.builds(Receipt, finite, settings, faults),
)


@given(records)
def test_a_record_read_back_from_its_json_is_the_record(record):
    text = json.dumps(record.to_json(), allow_nan=False)
    again = AuditRecord.from_json(json.loads(text))
    # repr, because an empty place in a memory is NaN, which equals nothing.
    assert repr(again) == repr(record)
    assert again.to_json() == record.to_json()
    assert again.observation == record.observation
    assert again.decision.settings == record.decision.settings
    assert again.decision.sentence() == record.decision.sentence()


def test_a_record_of_before_rules_said_why_is_read_without_a_word():
    made = decision_with_words()
    data = json.loads(json.dumps(made.to_json()))
    assert data["decision"]["proposal"].pop("why") == "fixed settings"
    again = AuditRecord.from_json(data)
    assert again.decision.proposal.why == ""
    assert again.decision == made.decision  # other words do not make another decision


def decision_with_words() -> AuditRecord:
    decision = Decision(
        1.0,
        Proposal({"replicas": 2.0}, why="fixed settings"),
        None,
        KnobSettings(replicas=1),
        KnobSettings(replicas=2),
        Source.POLICY,
    )
    return AuditRecord("shadow", Observation(at_s=1.0, window_s=15.0), decision)


def small() -> dict:
    decision = Decision(
        1.0, None, None, KnobSettings(replicas=1), KnobSettings(replicas=2), Source.POLICY
    )
    return AuditRecord("shadow", Observation(at_s=1.0, window_s=15.0), decision).to_json()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda data: data.pop("receipt"), KeyError),
        (lambda data: data["decision"].update(source="nobody"), ValueError),
        (
            lambda data: data["decision"]["verdicts"].append(
                {"guardrail": "g", "reason": "NoSuchReason", "sentence": "", "knob": None}
            ),
            KeyError,
        ),
        (lambda data: data["observation"].update(colour="red"), TypeError),
    ],
    ids=["key missing", "source unknown", "reason unknown", "field unknown"],
)
def test_what_is_no_record_is_refused(change, error):
    data = small()
    change(data)
    with pytest.raises(error):
        AuditRecord.from_json(data)
