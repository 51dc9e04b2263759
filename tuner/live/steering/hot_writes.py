"""Which hot knobs to write on which replica, and whether someone else turned them; pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from tuner.core.faults import Fault, FaultReason
from tuner.core.knobs import KnobSettings
from tuner.engines.engine import EngineState, KnobState

RELOADS_AT_ONCE = 1
"""Replicas that may reload their model in one tick: a reload holds the weights twice and may fail,
so the next one waits for the read-back of the first."""


Stuck = tuple[str, str | None, str]
"""Replica, its process, and a knob that cannot be moved there."""


@dataclass(frozen=True)
class Write:
    """One call to one replica: all or nothing."""

    replica: str
    seen: EngineState
    wanted: KnobSettings
    """Changed values, and temporary ones that are renewed."""
    changed: frozenset[str]
    """Knobs of `wanted` that are to move; the others only get a new expiry."""


@dataclass(frozen=True)
class Plan:
    """What is to be written, and why some of it is not."""

    writes: tuple[Write, ...]
    faults: tuple[Fault, ...]


def plan(
    wanted: Mapping[str, int],
    states: Mapping[str, EngineState],
    move: Collection[str],
    foreign: Mapping[str, Collection[str]],
    stuck: Collection[Stuck] = (),
) -> Plan:
    """The calls that bring every replica to `wanted`.

    A replica is compared with what is wanted, not with its neighbours: one that has become ready,
    or has restarted, is set in the same tick as the others. A temporary value that stands is
    renewed, except one that somebody else has set.

    Args:
        wanted: knob -> value; a knob left out keeps its value and is only renewed.
        states: ready replicas that could be read, by name.
        move: knobs that may be written.
        foreign: knob -> replicas on which somebody else has set it.
        stuck: what an engine has refused to move for good; not tried again on that process.
    """
    writes, faults, reloads = [], [], 0
    for name, state in states.items():
        changed: dict[str, int] = {}
        renewed: dict[str, int] = {}
        for knob in move:
            if (name, state.instance, knob) in stuck:
                continue
            now, value = state.knobs.get(knob), wanted.get(knob)
            fault = _obstacle(name, state, knob, value)
            if fault is not None:
                faults.append(fault)
            if now is None:
                continue
            if fault is None and value is not None and value != now.value:
                if now.applied == "reload":
                    reloads += 1
                if now.applied != "reload" or reloads <= RELOADS_AT_ONCE:
                    changed[knob] = value
            elif _temporary(now) and name not in foreign.get(knob, ()):
                renewed[knob] = now.value
        if changed or renewed:
            settings = KnobSettings({**renewed, **changed})
            writes.append(Write(name, state, settings, frozenset(changed)))
    return Plan(tuple(writes), tuple(faults))


def _temporary(knob: KnobState) -> bool:
    return knob.expires_in_s is not None and knob.value != knob.base


def _obstacle(name: str, state: EngineState, knob: str, value: int | None) -> Fault | None:
    """Why this knob cannot be brought to this value on this replica; None where it can."""
    now = state.knobs.get(knob)
    if now is None or now.applied in ("restart", "unsupported"):
        how = "has no way to set it" if now is None else f"applies it by: {now.applied}"
        sentence = (
            f"{knob} cannot be moved on {name} while it runs: {state.engine} {state.version} "
            f"{how}; take it out of `move`, or give the engine the run-time configuration endpoint"
        )
        return Fault(name, FaultReason.NOT_MOVABLE, sentence, knob)
    if value is not None and not now.low <= value <= now.high:
        sentence = (
            f"{knob} {value} is outside what {name} allows, {now.low}..{now.high}; narrow "
            f"`knobs.{knob}` to that range"
        )
        return Fault(name, FaultReason.INVALID, sentence, knob)
    return None


@dataclass(frozen=True)
class Known:
    """Where a replica stood after our last dealings with it."""

    instance: str | None
    values: Mapping[str, frozenset[int]]
    """Knob -> values that are ours to find; two where a write may or may not have been done."""
    bases: Mapping[str, int | None] = field(default_factory=dict)

    @classmethod
    def of(cls, state: EngineState, perhaps: Mapping[str, int] | None = None) -> Known:
        """After seeing `state`, and after a write of `perhaps` with an unknown outcome."""
        unsure = perhaps or {}
        return cls(
            instance=state.instance,
            values={
                knob: frozenset({now.value, unsure.get(knob, now.value)})
                for knob, now in state.knobs.items()
            },
            bases={knob: now.base for knob, now in state.knobs.items()},
        )


@dataclass(frozen=True)
class Stranger:
    """A value that somebody else has set."""

    replica: str
    knob: str
    ours: int
    theirs: int


def strangers(
    known: Mapping[str, Known], states: Mapping[str, EngineState], move: Collection[str]
) -> tuple[Stranger, ...]:
    """Knobs whose value is neither ours nor what the engine goes back to by itself.

    Only within one process of the engine: after a restart everything stands at start-up values. An
    engine that does not tell its processes apart is believed.
    """
    found = []
    for name, state in states.items():
        before = known.get(name)
        if before is None or state.instance is None or state.instance != before.instance:
            continue
        for knob in move:
            now, ours = state.knobs.get(knob), before.values.get(knob)
            if now is None or ours is None:
                continue
            if now.value not in ours and now.value != before.bases.get(knob):
                found.append(Stranger(name, knob, min(ours), now.value))
    return tuple(found)
