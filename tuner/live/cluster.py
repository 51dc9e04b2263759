"""A running target: reads its state, and carries decisions out on it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf

from tuner.core.clock import Clock
from tuner.core.decision import Decision, Receipt, Source
from tuner.core.faults import Fault, FaultError, FaultReason
from tuner.core.knobs import KnobSettings, KnobSpace
from tuner.core.observation import Observation, ReplicaObservation, ReplicaState
from tuner.engines.engine import Capability, Engine, EngineState, KnobState, Replica
from tuner.live.metrics.measured import Measuring
from tuner.live.pool import Fenced, Member, Noting, Pool, PoolState
from tuner.live.steering.fan_out import FanOut, Phase, Silence
from tuner.live.steering.hot_writes import Known, Stuck, Write, plan, strangers
from tuner.live.steering.in_force import most_common, settings_in_force
from tuner.live.steering.many_faults import joined

HANDS_OFF_S = 900.0
"""How long a knob is left alone after somebody else set it, s. A person in an incident needs
longer than one tick and shorter than one shift; the next change starts the time anew."""
LAPSE_S = 900.0
"""Once the policy has been kept out for so long, s, its hot values are no longer renewed: they were
fitted to a load that nobody sees any more. Shorter trips do not shake the engines."""
LATE_S = 1.0
"""A phase lasts so much longer than one call may, s: the call's own, more exact word on why it
failed comes first."""
STARTING = frozenset({ReplicaState.PENDING, ReplicaState.STARTING, ReplicaState.WARMING})
POOL = "pool"
"""`where` of a fault that names no better place, and the key of the pool's waiting time."""


@dataclass(frozen=True)
class Seen:
    """What one look found; the only ground on which anything is written."""

    at_s: float
    pool: PoolState | None
    replicas: Mapping[str, Replica]
    """Ready ones with an address."""
    states: Mapping[str, EngineState]
    """Those of them that could be read."""
    unread: Mapping[str, FaultReason]
    """The others, and why not."""
    warmup: int | None


class LiveCluster:
    """A target in production behind the same face as a simulated one.

    A write rests on what was read in the same tick: where nothing could be read, nothing is
    written, and a write whose answer was lost is settled by the next reading, never by writing it
    again. Not safe for several threads at once.

    Args:
        pool: who runs the replicas.
        engine: what runs in each of them.
        collector: where the measurements come from.
        knobs: the target's knobs.
        clock: time of observations, waiting times and ages.
        move: knobs that may be written.
        ttl_s: life of a hot value, s; renewed at every tick.
        concurrency: most replicas talked to at once.
        window_s: seconds that the collector's rates cover.
        call_s: longest wait for one call to an engine, s.
        hands_off_s: how long a knob rests after somebody else set it, s.
        lapse_s: how long hot values outlive the trust in the policy that set them, s.
        closers: called by `close`, last.
    """

    def __init__(
        self,
        pool: Pool,
        engine: Engine,
        collector: Measuring,
        knobs: KnobSpace,
        clock: Clock,
        *,
        move: Collection[str],
        ttl_s: float,
        concurrency: int,
        window_s: float = 60.0,
        call_s: float = 10.0,
        hands_off_s: float = HANDS_OFF_S,
        lapse_s: float = LAPSE_S,
        closers: Iterable[Callable[[], None]] = (),
    ) -> None:
        self._pool = pool
        self._engine = engine
        self._collector = collector
        self._knobs = knobs
        self._clock = clock
        self._move = tuple(name for name in knobs.names if name in move)
        self._ttl_s = ttl_s
        self._window_s = window_s
        self._phase_s = call_s + LATE_S
        # A write and its read-back.
        self._write_s = 2 * call_s + LATE_S
        self._hands_off_s = hands_off_s
        self._lapse_s = lapse_s
        self._out_since_s: float | None = None
        self._closers = tuple(closers)
        self._fan_out = FanOut(concurrency, "replica")
        self._members: tuple[Member, ...] = ()
        self._seen: Seen | None = None
        self._known: dict[str, Known] = {}
        self._wanted: frozenset[int] | None = None
        self._first_warmup: int | None = None
        self._foreign: dict[str, _Foreign] = {}
        self._not_before: dict[str, float] = {}
        self._stuck: set[Stuck] = set()
        self._told: set[str] = set()
        self._at_s = -inf

    # Reading

    def observe(self) -> Observation:
        """One window of measurements and the state of every replica; troubles are its faults."""
        at_s = self._clock.now_s()
        self._follow_clock(at_s)
        faults: list[Fault] = []
        pool = self._look(faults)
        members = self._members
        reading = self._start_reading(members)
        measured = self._collector.collect(members, at_s=at_s)
        states, unread = self._states(reading, faults)
        # An orchestrator that is away costs one time-out and not two.
        warmup = None if pool is None else self._warmup(faults)
        settings, disagreements = settings_in_force(states, self._engine_knobs(warmup))
        faults += [*disagreements, *_unwell(states), *measured.faults]
        if pool is not None:
            settings = settings.with_(replicas=pool.wanted)
        if warmup is not None:
            settings = settings.with_(warmup_requests=warmup)
        addresses = {m.name: m.replica for m in _ready(members) if m.replica is not None}
        self._seen = Seen(at_s, pool, addresses, states, unread, warmup)
        return Observation(
            at_s=at_s,
            window_s=self._window_s,
            age_s=measured.age_s,
            settings=settings,
            ages_s=dict(measured.ages_s),
            estimates=tuple(measured.estimates),
            faults=joined(faults, {member.name for member in members}),
            replicas=() if pool is None else _observed(members, measured.replicas),
            **{**measured.values, **({} if pool is None else _counts(members))},
        )

    def _follow_clock(self, at_s: float) -> None:
        """Waits that are under way do not grow because the clock is set back."""
        back_s = self._at_s - at_s
        if back_s > 0:
            self._not_before = {n: until_s - back_s for n, until_s in self._not_before.items()}
            self._foreign = {
                knob: replace(foreign, until_s=foreign.until_s - back_s)
                for knob, foreign in self._foreign.items()
            }
        self._at_s = at_s

    def _look(self, faults: list[Fault]) -> PoolState | None:
        """The pool now, or None and a fault; then the last known members stay."""
        try:
            pool = self._pool.look()
        except FaultError as error:
            self._noted(POOL, error, faults)
            return None
        faults += pool.faults
        self._members = pool.members
        present = {member.name for member in pool.members}
        self._known = {name: known for name, known in self._known.items() if name in present}
        self._stuck = {stuck for stuck in self._stuck if stuck[0] in present}
        waiting = present | {POOL}
        self._not_before = {n: at_s for n, at_s in self._not_before.items() if n in waiting}
        return pool

    def _start_reading(self, members: Iterable[Member]) -> Phase[EngineState]:
        calls = {
            member.name: partial(self._engine.read, member.replica)
            for member in _ready(members)
            if member.replica is not None
        }
        return self._fan_out.start(calls, timeout_s=self._phase_s)

    def _states(
        self, reading: Phase[EngineState], faults: list[Fault]
    ) -> tuple[dict[str, EngineState], dict[str, FaultReason]]:
        """What each replica says, and for those that do not say it, why not."""
        states, unread = {}, {}
        for name, answer in self._fan_out.gather(reading).items():
            if isinstance(answer, FaultError):
                self._noted(name, answer, faults)
                unread[name] = answer.fault.reason
            elif isinstance(answer, Silence):
                faults.append(_not_read(name, answer, self._phase_s))
                unread[name] = FaultReason.TIMED_OUT
            else:
                states[name] = answer
        return states, unread

    def _warmup(self, faults: list[Fault]) -> int | None:
        try:
            warmup = self._pool.warmup()
        except FaultError as error:
            self._noted(POOL, error, faults)
            return None
        if self._first_warmup is None:
            self._first_warmup = warmup
        return warmup

    def _engine_knobs(self, warmup: int | None) -> tuple[str, ...]:
        """Knobs that the engines answer for; warm-up is the pool's where the pool has it, or has
        had it when it could be asked."""
        theirs = warmup is None and self._first_warmup is None
        pool = {"replicas"} if theirs else {"replicas", "warmup_requests"}
        return tuple(name for name in self._knobs.names if name not in pool)

    # Writing

    def apply(self, decision: Decision) -> Receipt:
        """Move towards the target: hot knobs first, the number of replicas last.

        `applied` holds what was written and read back; every replica or knob that was not brought
        to its target has a fault. A hold writes nothing and renews what is temporary, until the
        policy has been out for `lapse_s`: then hot knobs go back to their base by themselves, but
        for those that the fallback itself asks for.
        """
        seen, self._seen = self._seen, None
        now_s = self._clock.now_s()
        if seen is None:
            sentence = "nothing was written: a decision needs an observation of the same tick"
            return Receipt(now_s, KnobSettings(), (Fault(POOL, FaultReason.REFUSED, sentence),))
        if (fenced := self._fenced_off()) is not None:
            return Receipt(now_s, KnobSettings(), (fenced,))
        faults = self._notice_strangers(seen, now_s)
        # Who answers at the last known addresses while the orchestrator is silent, nobody knows.
        held = decision.source is Source.HOLD or seen.pool is None
        wanted = {} if held else self._free(decision.target)
        kept = self._kept(decision, now_s)
        hot = {knob: value for knob, value in wanted.items() if knob in kept}
        applied = self._write_hot(hot, kept, seen, now_s, faults)
        applied |= self._write_warmup(wanted, seen, now_s, faults)
        applied |= self._write_replicas(wanted, seen, now_s, faults)
        if decision.changes.keys() & applied.keys() and isinstance(self._pool, Noting):
            # By its time, which the audit log holds as well: it has no other name here.
            self._pool.note(f"{decision.at_s:.3f}", decision.sentence())
        return Receipt(now_s, KnobSettings(applied), self._once(joined(faults, seen.replicas)))

    def _fenced_off(self) -> Fault | None:
        """Why nothing may be written or renewed: another controller may be doing so."""
        if not isinstance(self._pool, Fenced):
            return None
        try:
            self._pool.require()
        except FaultError as error:
            # What the other one turns is no stranger's work, should we follow it.
            self._known, self._wanted, self._foreign = {}, None, {}
            return error.fault
        return None

    def _kept(self, decision: Decision, now_s: float) -> frozenset[str]:
        """Hot knobs that are written and renewed in this tick; the others may run out."""
        if decision.source is Source.POLICY:
            self._out_since_s = None
        elif self._out_since_s is None or self._out_since_s > now_s:
            self._out_since_s = now_s
        if self._out_since_s is None or now_s - self._out_since_s < self._lapse_s:
            return frozenset(self._move)
        return frozenset(decision.fallback.settings if decision.fallback else ())

    def _free(self, target: KnobSettings) -> dict[str, int]:
        """The part of a target that may be written now."""
        return {
            knob: value
            for knob, value in target.items()
            if knob in self._move and knob not in self._foreign
        }

    def _notice_strangers(self, seen: Seen, now_s: float) -> list[Fault]:
        """Take our hands off every knob that somebody else has turned since the last tick."""
        self._foreign = {k: f for k, f in self._foreign.items() if f.until_s > now_s}
        until_s = now_s + self._hands_off_s
        hot = self._hot(seen)
        for stranger in strangers(self._known, seen.states, hot):
            before = self._foreign.get(stranger.knob)
            names = {stranger.replica} | (before.replicas if before else frozenset())
            what = f"on {stranger.replica} from {stranger.ours} to {stranger.theirs}"
            self._foreign[stranger.knob] = _Foreign(until_s, what, frozenset(names))
        self._known.update({name: Known.of(state) for name, state in seen.states.items()})
        if seen.pool is not None and "replicas" in self._move:
            wanted, ours = seen.pool.wanted, self._wanted
            if ours is not None and wanted not in ours:
                what = f"from {min(ours)} to {wanted}"
                self._foreign["replicas"] = _Foreign(until_s, what, frozenset())
            self._wanted = frozenset({wanted})
        return [
            _hands_off(knob, foreign, foreign.until_s - now_s)
            for knob, foreign in self._foreign.items()
        ]

    def _hot(self, seen: Seen) -> tuple[str, ...]:
        """Knobs that may be written on the engines."""
        return tuple(knob for knob in self._engine_knobs(seen.warmup) if knob in self._move)

    def _write_hot(
        self,
        wanted: Mapping[str, int],
        kept: Collection[str],
        seen: Seen,
        now_s: float,
        faults: list[Fault],
    ) -> dict[str, int]:
        foreign = {knob: foreign.replicas for knob, foreign in self._foreign.items()}
        hot = [knob for knob in self._hot(seen) if knob in kept]
        planned = plan(wanted, seen.states, hot, foreign, self._stuck)
        faults += planned.faults
        if any(write.changed for write in planned.writes):
            faults += [_blind(name, reason) for name, reason in seen.unread.items()]
        writes = {w.replica: w for w in planned.writes if not self._waits(w, now_s, faults)}
        calls = {name: partial(self._set, write, seen) for name, write in writes.items()}
        found: dict[str, list[int]] = {}
        for name, answer in self._fan_out.each(calls, timeout_s=self._write_s).items():
            write = writes[name]
            if isinstance(answer, EngineState):
                self._known[name] = Known.of(answer)
                _read_back(write, answer, found, faults)
            elif isinstance(answer, FaultError):
                self._known[name] = Known.of(write.seen, write.wanted)
                if answer.fault.reason is FaultReason.NOT_MOVABLE and answer.fault.knob:
                    self._stuck.add((name, write.seen.instance, answer.fault.knob))
                self._noted(name, answer, faults)
            else:
                self._known[name] = Known.of(write.seen, write.wanted)
                faults.append(_not_written(write, answer, self._write_s))
        return {knob: most_common(values) for knob, values in found.items()}

    def _set(self, write: Write, seen: Seen) -> EngineState:
        return self._engine.set(
            seen.replicas[write.replica],
            write.wanted,
            write.seen,
            ttl_s=self._ttl_s if write.seen.ttl else None,
            reason="decision" if write.changed else "renewal",
        )

    def _waits(self, write: Write, now_s: float, faults: list[Fault]) -> bool:
        """Whether the replica asked not to be written to yet."""
        left_s = self._not_before.get(write.replica, now_s) - now_s
        if left_s <= 0:
            return False
        faults.append(_rate_limited(write.replica, left_s, min(write.wanted)))
        return True

    def _write_warmup(
        self, wanted: Mapping[str, int], seen: Seen, now_s: float, faults: list[Fault]
    ) -> dict[str, int]:
        value = wanted.get("warmup_requests", seen.warmup)
        if value is None or seen.warmup is None or value == seen.warmup:
            return {}
        if self._pool_waits("warmup_requests", now_s, faults):
            return {}
        try:
            self._pool.set_warmup(value)
            found = self._pool.warmup()
        except FaultError as error:
            self._noted(POOL, error, faults)
            return {}
        if found != value:
            faults.append(_refused(POOL, "warmup_requests", value, found))
        return {} if found is None or found == seen.warmup else {"warmup_requests": found}

    def _write_replicas(
        self, wanted: Mapping[str, int], seen: Seen, now_s: float, faults: list[Fault]
    ) -> dict[str, int]:
        value = wanted.get("replicas")
        if value is None or seen.pool is None or value == seen.pool.wanted:
            return {}
        if value < 1:
            faults.append(_no_replica(value))
            return {}
        if self._pool_waits("replicas", now_s, faults):
            return {}
        try:
            found = self._pool.scale(value, seen.pool)
        except FaultError as error:
            if error.fault.reason is not FaultReason.CONFLICT:
                self._wanted = frozenset({seen.pool.wanted, value})
            self._noted(POOL, error, faults)
            return {}
        self._wanted = frozenset({found})
        if found != value:
            faults.append(_refused(POOL, "replicas", value, found))
        return {} if found == seen.pool.wanted else {"replicas": found}

    def _pool_waits(self, knob: str, now_s: float, faults: list[Fault]) -> bool:
        left_s = self._not_before.get(POOL, now_s) - now_s
        if left_s <= 0:
            return False
        faults.append(_rate_limited(POOL, left_s, knob))
        return True

    def _noted(self, name: str, error: FaultError, faults: list[Fault]) -> None:
        """Keep the fault, and for how long the other side wants to be left alone."""
        faults.append(error.fault)
        if error.retry_after_s is not None:
            self._not_before[name] = self._clock.now_s() + error.retry_after_s

    def _once(self, faults: tuple[Fault, ...]) -> tuple[Fault, ...]:
        """The faults without those that say again that a knob cannot be moved at all."""
        kept = []
        for fault in faults:
            if fault.reason is FaultReason.NOT_MOVABLE and fault.knob is not None:
                if fault.knob in self._told:
                    continue
                self._told.add(fault.knob)
            kept.append(fault)
        return tuple(kept)

    # Telling

    def capabilities(self) -> tuple[Capability, ...]:
        """What one ready replica lets us move, knob by knob; empty while none is ready.

        Raises:
            FaultError: the orchestrator or that replica gave no usable answer.
        """
        for member in _ready(self._pool.look().members):
            if member.replica is not None:
                return self._engine.capabilities(member.replica)
        return ()

    # Leaving

    def release(self) -> Receipt:
        """Every hot knob back to its base on every ready replica; the replicas stay as many.

        A knob that is not ours to move, or that somebody else has set, stays as it is.
        """
        faults: list[Fault] = []
        self._look(faults)
        if (fenced := self._fenced_off()) is not None:
            return Receipt(self._clock.now_s(), KnobSettings(), (*faults, fenced))
        replicas = {m.name: m.replica for m in _ready(self._members) if m.replica is not None}
        states, _ = self._states(self._start_reading(self._members), faults)
        warmup = self._warmup(faults)
        hot = [knob for knob in self._engine_knobs(warmup) if knob in self._move]
        theirs = {(s.replica, s.knob) for s in strangers(self._known, states, hot)}
        theirs |= {(name, knob) for knob, f in self._foreign.items() for name in f.replicas}
        ours = {
            name: replace(state, knobs=_taken(name, state, hot, theirs))
            for name, state in states.items()
        }
        calls = {
            name: partial(self._engine.release, replicas[name], state)
            for name, state in ours.items()
            if state.knobs
        }
        found: dict[str, list[int]] = {}
        for name, answer in self._fan_out.each(calls, timeout_s=self._write_s).items():
            if isinstance(answer, EngineState):
                for knob in ours[name].knobs:
                    if knob in answer.knobs:
                        found.setdefault(knob, []).append(answer.knobs[knob].value)
            elif isinstance(answer, FaultError):
                self._noted(name, answer, faults)
            else:
                faults.append(_not_released(name, self._write_s))
        applied = {knob: most_common(values) for knob, values in found.items()}
        if "warmup_requests" in self._move and self._first_warmup is not None:
            applied |= self._release_warmup(warmup, self._first_warmup, faults)
        self._seen, self._known, self._wanted = None, {}, None
        at_s = self._clock.now_s()
        return Receipt(at_s, KnobSettings(applied), joined(faults, replicas))

    def _release_warmup(self, now: int | None, first: int, faults: list[Fault]) -> dict[str, int]:
        if now is None or now == first:
            return {}
        try:
            self._pool.set_warmup(first)
        except FaultError as error:
            self._noted(POOL, error, faults)
            return {}
        return {"warmup_requests": first}

    def close(self) -> None:
        """Let go of threads and connections. Changes nothing on the target."""
        self._fan_out.close()
        self._collector.close()
        self._pool.close()
        for closer in self._closers:
            closer()


@dataclass(frozen=True)
class _Foreign:
    """A knob that somebody else has set, and that rests for a while."""

    until_s: float
    what: str
    replicas: frozenset[str]
    """Where it was set; empty for the number of replicas."""


def _ready(members: Iterable[Member]) -> list[Member]:
    return [member for member in members if member.state is ReplicaState.READY]


def _counts(members: Sequence[Member]) -> dict[str, float]:
    states = [member.state for member in members]
    draining = states.count(ReplicaState.DRAINING)
    return {
        "ready_replicas": float(states.count(ReplicaState.READY)),
        "starting_replicas": float(sum(state in STARTING for state in states)),
        "draining_replicas": float(draining),
        "status_replicas": float(len(states) - draining),
    }


def _observed(
    members: Iterable[Member], measured: Mapping[str, Mapping[str, float]]
) -> tuple[ReplicaObservation, ...]:
    return tuple(
        ReplicaObservation(member.name, member.state, member.age_s, **measured.get(member.name, {}))
        for member in members
    )


def _taken(
    name: str, state: EngineState, hot: Iterable[str], theirs: Collection[tuple[str, str]]
) -> dict[str, KnobState]:
    """The knobs of a replica that are ours to give back."""
    return {
        knob: state.knobs[knob]
        for knob in hot
        if _off_base(state, knob) and (name, knob) not in theirs
    }


def _off_base(state: EngineState, knob: str) -> bool:
    now = state.knobs.get(knob)
    return (
        now is not None
        and now.applied not in ("restart", "unsupported")
        and (now.base is None or now.value != now.base)
    )


def _unwell(states: Mapping[str, EngineState]) -> list[Fault]:
    """Replicas that their orchestrator calls ready and that take no requests."""
    faults = []
    for name, state in states.items():
        told = {"paused": state.paused, "asleep": state.sleeping, "draining": state.draining}
        how = " and ".join(word for word, true in told.items() if true)
        if how:
            sentence = f"{name} counts as ready and is {how}: it takes no requests; resume it"
            faults.append(Fault(name, FaultReason.NOT_READY, sentence))
    return faults


def _read_back(
    write: Write, state: EngineState, found: dict[str, list[int]], faults: list[Fault]
) -> None:
    """Sort what a replica reports after a write into what was applied and what was not."""
    for knob in write.changed:
        now = state.knobs.get(knob)
        if now is not None and now.value != write.seen.knobs[knob].value:
            found.setdefault(knob, []).append(now.value)
        if now is None or now.value != write.wanted[knob]:
            value = None if now is None else now.value
            faults.append(_refused(write.replica, knob, write.wanted[knob], value))


def _refused(where: str, knob: str, wanted: int, found: int | None) -> Fault:
    sentence = (
        f"{where}: {knob} {wanted} was asked for and {'nothing' if found is None else found} "
        "reads back; the next tick decides on what stands"
    )
    return Fault(where, FaultReason.REFUSED, sentence, knob)


def _not_read(name: str, silence: Silence, phase_s: float) -> Fault:
    why = {
        Silence.LATE: f"gave no run-time configuration within {phase_s:g} s",
        Silence.UNSENT: f"was not asked: slower replicas used up the {phase_s:g} s of the tick",
        Silence.BUSY: "was not asked: an earlier call to it has not come back",
    }[silence]
    sentence = f"{name} {why}; its settings are not known and it is not written to"
    return Fault(name, FaultReason.TIMED_OUT, sentence)


def _blind(name: str, reason: FaultReason) -> Fault:
    sentence = f"{name} was not written to: its settings could not be read in this tick"
    return Fault(name, reason, sentence)


def _not_written(write: Write, silence: Silence, phase_s: float) -> Fault:
    knob = min(write.changed or write.wanted)
    if silence is Silence.LATE:
        sentence = (
            f"{write.replica}: no answer within {phase_s:g} s to setting {write.wanted!r}; whether "
            "it was done is read at the next tick"
        )
        return Fault(write.replica, FaultReason.OUTCOME_UNKNOWN, sentence, knob)
    sentence = (
        f"{write.replica}: {write.wanted!r} was not sent: slower replicas used up the {phase_s:g} "
        "s of the tick; the next tick tries again"
    )
    return Fault(write.replica, FaultReason.TIMED_OUT, sentence, knob)


def _not_released(name: str, phase_s: float) -> Fault:
    sentence = (
        f"{name} did not say within {phase_s:g} s that it is back to its base values; values with "
        "a time to live end by themselves"
    )
    return Fault(name, FaultReason.OUTCOME_UNKNOWN, sentence)


def _hands_off(knob: str, foreign: _Foreign, left_s: float) -> Fault:
    sentence = (
        f"someone else set {knob} {foreign.what}; it is left alone for {left_s:.0f} s more. One "
        "writer per knob: stop the other one, or take the knob out of `move`"
    )
    return Fault(POOL, FaultReason.CONFLICT, sentence, knob)


def _rate_limited(where: str, left_s: float, knob: str) -> Fault:
    sentence = f"{where} asked to wait; {knob} is not written for {left_s:.0f} s more"
    return Fault(where, FaultReason.RATE_LIMITED, sentence, knob)


def _no_replica(value: int) -> Fault:
    sentence = f"{value} replicas were decided; at least 1 stays, so nothing was written"
    return Fault(POOL, FaultReason.INVALID, sentence, "replicas")
