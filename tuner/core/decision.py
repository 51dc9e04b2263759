"""From proposals to one decision: guardrails over arrays, and `arbitrate`, the batch of one.

The arithmetic is written once, over n targets, so that the vector environment trains under exactly
the guardrails that act in production. `arbitrate` calls it with n = 1 and builds the verdicts and
sentences that people read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

import numpy as np

from tuner.core.faults import Fault
from tuner.core.history import History, Memory
from tuner.core.knobs import KnobSettings, KnobSpace
from tuner.core.observation import Observation, ObservationArrays
from tuner.core.protocols import BoolArray, FloatArray, IntArray, Limit, Policy, Trip


class Reason(IntEnum):
    """Why a guardrail spoke. The names are stable: they stand in the audit log."""

    # Names as of a Kubernetes condition, so that they read the same in `kubectl describe`.
    Trusted = 0
    PolicyRaised = 1
    ProposalNotFinite = 2
    ProposalUnknownKnob = 3
    MetricsMissing = 4
    MetricsStale = 5
    OutOfBounds = 6
    StepTooLarge = 7
    LimitsContradict = 8
    SettingsUnknown = 9


class Source(StrEnum):
    """Who decided."""

    POLICY = "policy"
    FALLBACK = "fallback"
    HOLD = "hold"


SOURCES: tuple[Source, ...] = (Source.POLICY, Source.FALLBACK, Source.HOLD)
"""Codes of the sources in arrays."""


@dataclass(frozen=True)
class Proposal:
    """What a policy wants, before any guardrail."""

    settings: Mapping[str, float]
    """Knob -> wanted value; knobs left out stay as they are. Not finite: the policy has failed."""
    memory: Memory = ()
    """Handed back by the next History."""
    raw: float | None = None
    """Replicas that the rule itself computed, before its windows; for reports."""
    log_prob: float | None = None
    """Log-probability of the action under the policy; None for deterministic rules."""
    why: str = field(default="", compare=False)
    """How the rule came to it, with the numbers it used, for people; empty where it does not say.
    Not compared: other words do not make another proposal."""


@dataclass(frozen=True)
class PolicyFault:
    """A policy that gave no usable proposal."""

    reason: Reason
    detail: str


@dataclass(frozen=True)
class Verdict:
    """One guardrail's word on one tick."""

    guardrail: str
    reason: Reason
    sentence: str
    knob: str | None = None


@dataclass(frozen=True)
class Decision:
    """What was decided for one target at one tick, and everything that led to it."""

    at_s: float
    proposal: Proposal | None
    """None where the policy failed."""
    fallback: Proposal | None
    """The base rule's proposal, evaluated every tick; None where it could not tell."""
    settings: KnobSettings
    """Settings in force when deciding."""
    target: KnobSettings
    """Settings to bring about; a knob left out is not touched."""
    source: Source
    verdicts: tuple[Verdict, ...] = ()

    @property
    def trips(self) -> tuple[Verdict, ...]:
        return tuple(v for v in self.verdicts if v.reason in _TRIP_REASONS)

    @property
    def clamps(self) -> tuple[Verdict, ...]:
        return tuple(v for v in self.verdicts if v.reason in _CLAMP_REASONS)

    @property
    def changes(self) -> dict[str, tuple[int, int]]:
        """Knob -> (from, to) for every knob that moves."""
        return {
            name: (old, value)
            for name, value in self.target.items()
            if (old := self.settings.get(name)) is not None and old != value
        }

    @property
    def why(self) -> str:
        """What the guardrails said; where they were quiet, what the rule that decided says."""
        if self.verdicts:
            return "; ".join(verdict.sentence for verdict in self.verdicts)
        deciding = {Source.POLICY: self.proposal, Source.FALLBACK: self.fallback}.get(self.source)
        return "" if deciding is None else deciding.why

    def sentence(self) -> str:
        """The decision in one line: from -> to, who decided, and why."""
        moves = ", ".join(f"{knob} {old} -> {new}" for knob, (old, new) in self.changes.items())
        why = self.why
        return f"{moves or 'no change'} ({self.source})" + (f": {why}" if why else "")


_TRIP_REASONS = frozenset(
    {
        Reason.PolicyRaised,
        Reason.ProposalNotFinite,
        Reason.ProposalUnknownKnob,
        Reason.MetricsMissing,
        Reason.MetricsStale,
    }
)
_CLAMP_REASONS = frozenset({Reason.OutOfBounds, Reason.StepTooLarge})


@dataclass(frozen=True)
class Receipt:
    """What became of a decision."""

    at_s: float
    applied: KnobSettings
    """Settings that were really asked for; empty when the cluster refuses writes."""
    faults: tuple[Fault, ...] = ()
    """What was not written, or is not known to be, and why."""


@dataclass(frozen=True)
class Tick:
    """What guardrails look at: n targets at one tick, as columns."""

    now: ObservationArrays
    proposed: FloatArray
    """`(n, knobs)`, NaN where the policy leaves the knob alone, and everywhere where it failed."""
    fault: IntArray
    """`(n,)` Reason code of a policy that gave no usable proposal, else 0."""
    fault_detail: tuple[str, ...] = ()
    """`(n,)` what went wrong, in words; empty where nobody reads it."""


@dataclass(frozen=True)
class Guardrails:
    """The guardrails of one target, in the order in which they are reported."""

    trips: tuple[Trip, ...] = ()
    limits: tuple[Limit, ...] = ()


@dataclass(frozen=True)
class Arbitration:
    """Decisions on n targets, as columns."""

    target: FloatArray
    """`(n, knobs)` settings to bring about, NaN where the knob is not to be touched."""
    wanted: FloatArray
    """`(n, knobs)` what policy or fallback asked for, before the limits."""
    trips: IntArray
    """`(trips, n)` Reason codes, 0 where the trip is quiet."""
    outside: BoolArray
    """`(limits, n, knobs)` where the wanted value lies outside a limit's interval."""
    low: FloatArray
    """`(limits, n, knobs)`."""
    high: FloatArray
    """`(limits, n, knobs)`."""
    contradiction: BoolArray
    """`(n,)` where no value satisfies every limit: the settings in force are held."""
    unknown: BoolArray
    """`(n, knobs)` knobs that someone wants to move while their value in force is not known."""
    source: IntArray
    """`(n,)` positions in SOURCES."""

    @property
    def tripped(self) -> BoolArray:
        """`(n,)` where the policy was not trusted."""
        tripped: BoolArray = np.any(self.trips != 0, axis=0)
        return tripped

    @property
    def clamped(self) -> BoolArray:
        """`(n,)` where a limit changed what was wanted."""
        clamped: BoolArray = np.any(self.outside, axis=(0, 2))
        return clamped


def arbitrate_arrays(tick: Tick, fallback: FloatArray, guardrails: Guardrails) -> Arbitration:
    """Decide for n targets at once.

    A target whose trips are all quiet follows its policy, any other its fallback. The result is
    clamped into the intersection of all limits. Limits that contradict each other hold the settings
    in force, as does a knob whose value in force is not known: what cannot be seen is not moved.

    Args:
        tick: what is known and proposed, n rows.
        fallback: `(n, knobs)` the fallback's wish; NaN where it cannot tell or leaves a knob alone.
        guardrails: trips and limits.
    """
    now = tick.now
    n = len(now.at_s)
    trips = np.zeros((len(guardrails.trips), n), dtype=np.int64)
    for row, trip in enumerate(guardrails.trips):
        trips[row] = trip.check(tick)
    tripped = (trips != 0).any(axis=0)

    chosen = np.where(tripped[:, None], fallback, tick.proposed)
    left_alone = np.isnan(chosen)
    silent = left_alone.all(axis=1)
    wanted = np.rint(np.where(left_alone, now.settings, chosen))

    shape = (len(guardrails.limits), *wanted.shape)
    low, high = np.full(shape, -np.inf), np.full(shape, np.inf)
    for row, limit in enumerate(guardrails.limits):
        low[row], high[row] = limit.interval(tick, tripped)
    lowest, highest = low.max(axis=0, initial=-np.inf), high.min(axis=0, initial=np.inf)

    known = ~np.isnan(now.settings)
    contradiction = ((lowest > highest) & known).any(axis=1)
    target = np.minimum(np.maximum(wanted, lowest), highest)
    target = np.where(contradiction[:, None], now.settings, target)
    return Arbitration(
        target=np.where(known, target, np.nan),
        wanted=wanted,
        trips=trips,
        outside=((wanted < low) | (wanted > high)) & known,
        low=low,
        high=high,
        contradiction=contradiction,
        unknown=~known & ~np.isnan(wanted),
        source=np.where(contradiction | (tripped & silent), 2, tripped.astype(np.int64)),
    )


def propose(policy: Policy, history: History) -> Proposal | PolicyFault:
    """The policy's proposal, or what went wrong.

    The one broad `except` of the project: whatever a policy does, the loop goes on with the
    fallback, and the fault becomes a verdict.
    """
    try:
        proposal = policy.propose(history)
    except Exception as error:
        return PolicyFault(Reason.PolicyRaised, f"{type(error).__name__}: {error}")
    unknown = [name for name in proposal.settings if name not in history.knobs.names]
    if unknown:
        known = ", ".join(history.knobs.names)
        return PolicyFault(
            Reason.ProposalUnknownKnob, f"proposed knob '{unknown[0]}'; known knobs: {known}"
        )
    bad = {k: v for k, v in proposal.settings.items() if not math.isfinite(v)}
    if bad:
        knob, value = next(iter(bad.items()))
        return PolicyFault(Reason.ProposalNotFinite, f"proposed {value} for knob '{knob}'")
    return proposal


def arbitrate(
    proposal: Proposal | PolicyFault,
    history: History,
    guardrails: Guardrails,
    fallback: Policy,
) -> Decision:
    """Decide for one target; pure.

    The fallback is evaluated every tick, so that its windows are warm when it takes over.
    """
    knobs, now = history.knobs, history.now
    answer = propose(fallback, history.for_fallback())
    asked = answer if isinstance(answer, Proposal) else None
    tick = tick_of(knobs, now, proposal)
    wish = knobs.row(asked.settings if asked is not None else {})[None, :]
    result = arbitrate_arrays(tick, wish, guardrails)
    return Decision(
        at_s=now.at_s,
        proposal=proposal if isinstance(proposal, Proposal) else None,
        fallback=asked,
        settings=now.settings,
        target=knobs.settings(result.target[0]),
        source=SOURCES[result.source[0]],
        verdicts=verdicts_of(result, tick, guardrails, row=0),
    )


def tick_of(knobs: KnobSpace, now: Observation, proposal: Proposal | PolicyFault) -> Tick:
    """One observation and one proposal as a batch of one."""
    if isinstance(proposal, PolicyFault):
        wish, fault, detail = dict[str, float](), proposal.reason, proposal.detail
    else:
        wish, fault, detail = dict(proposal.settings), Reason.Trusted, ""
    return Tick(
        now=ObservationArrays.of(knobs, now),
        proposed=knobs.row(wish)[None, :],
        fault=np.array([fault], dtype=np.int64),
        fault_detail=(detail,),
    )


def verdicts_of(
    result: Arbitration, tick: Tick, guardrails: Guardrails, row: int
) -> tuple[Verdict, ...]:
    """What the guardrails said about one row, in words: trips first, then limits, then holds."""
    verdicts = []
    for trip, codes in zip(guardrails.trips, result.trips, strict=True):
        if codes[row]:
            reason = Reason(codes[row])
            verdicts.append(Verdict(trip.name, reason, trip.explain(reason, tick, row)))
    for place, limit in enumerate(guardrails.limits):
        for knob in np.flatnonzero(result.outside[place, row]):
            wanted = result.wanted[row, knob]
            allowed = np.clip(wanted, result.low[place, row, knob], result.high[place, row, knob])
            sentence = limit.explain(tick, row, int(knob), float(wanted), float(allowed))
            name = tick.now.knobs.names[knob]
            verdicts.append(Verdict(limit.name, limit.reason, sentence, name))
    if result.contradiction[row]:
        sentence = "the limits contradict each other: the settings in force are held"
        verdicts.append(Verdict("arbitrate", Reason.LimitsContradict, sentence))
    for knob in np.flatnonzero(result.unknown[row]):
        name = tick.now.knobs.names[knob]
        sentence = f"{name} is not moved: its value in force is not known"
        verdicts.append(Verdict("arbitrate", Reason.SettingsUnknown, sentence, name))
    return tuple(verdicts)
