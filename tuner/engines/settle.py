"""Before a write and after it: what may be asked for, and what became of it.

A reply is not an effect and a lost reply is not a failure: every write is read back, and none is
ever repeated blindly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from tuner.core.faults import Fault, FaultError, FaultReason
from tuner.core.knobs import KnobSettings
from tuner.engines.engine import EngineState, Replica
from tuner.engines.http import MAY_HAVE_LANDED

_LIVE = frozenset({"hot", "reload"})


def fault(replica: Replica, reason: FaultReason, sentence: str, knob: str | None) -> FaultError:
    """A fault of this replica; its name comes before the sentence."""
    return FaultError(Fault(replica.name, reason, f"{replica.name}: {sentence}", knob))


def about(trouble: FaultError, knob: str) -> FaultError:
    """The same fault, said of a knob."""
    return FaultError(replace(trouble.fault, knob=knob), retry_after_s=trouble.retry_after_s)


@contextmanager
def speaking_of(knob: str) -> Iterator[None]:
    """Faults of anything done for a knob carry its name."""
    try:
        yield
    except FaultError as trouble:
        raise (about(trouble, knob) if trouble.fault.knob is None else trouble) from None


def in_force(state: EngineState, wanted: KnobSettings) -> bool:
    """Whether every wanted value stands."""
    return all(
        name in state.knobs and state.knobs[name].value == value for name, value in wanted.items()
    )


def moving(state: EngineState, wanted: KnobSettings) -> str:
    """The wanted knob to name in messages: the first that does not stand yet."""
    behind = (
        name for name, value in wanted.items() if not in_force(state, KnobSettings({name: value}))
    )
    return next(behind, next(iter(wanted), ""))


def check_wanted(replica: Replica, wanted: KnobSettings, seen: EngineState) -> None:
    """Refuse what cannot be moved or lies outside the range; nothing is ever clamped.

    Raises:
        FaultError: NOT_MOVABLE or INVALID, with `knob`.
    """
    for name, value in wanted.items():
        knob = seen.knobs.get(name)
        if knob is None or knob.applied not in _LIVE:
            how = "is not known here" if knob is None else f"is moved by {knob.applied}"
            sentence = f"{name} {how}; expected a knob that moves while the engine runs"
            raise fault(replica, FaultReason.NOT_MOVABLE, sentence, name)
        if not knob.low <= value <= knob.high:
            sentence = f"{name} {value} is outside {knob.low}..{knob.high}; nothing was sent"
            raise fault(replica, FaultReason.INVALID, sentence, name)


def check_unmoved(
    replica: Replica, wanted: KnobSettings, seen: EngineState, now: EngineState
) -> None:
    """For engines that count no revisions: whether anybody moved what we are about to move.

    Raises:
        FaultError: CONFLICT.
    """
    for name in wanted:
        then = seen.knobs[name].value
        if name not in now.knobs or now.knobs[name].value != then:
            found = now.knobs[name].value if name in now.knobs else "gone"
            sentence = f"{name} is {found}, and was {then} when last read; read and decide again"
            raise fault(replica, FaultReason.CONFLICT, sentence, name)


def settle(
    replica: Replica,
    wanted: KnobSettings,
    seen: EngineState,
    write: Callable[[], object],
    read: Callable[[], EngineState],
) -> EngineState:
    """Write once, read back, and say what came of it.

    Returns:
        The state read back, with every wanted value in force.

    Raises:
        FaultError: with `knob`. What `write` raised, where that means that nothing was changed, or
            where reading back shows it; OUTCOME_UNKNOWN where the answer was lost and reading back
            did not settle it; CONFLICT where the engine started anew; REFUSED where it agreed and
            did not do it.
    """
    knob = moving(seen, wanted)
    lost: FaultError | None = None
    try:
        write()
    except FaultError as trouble:
        if trouble.fault.reason not in MAY_HAVE_LANDED:
            raise about(trouble, knob) from None
        lost = trouble
    now = _read_back(replica, knob, read, lost)
    if now.instance != seen.instance:
        sentence = f"{knob}: the engine started anew meanwhile; read and decide again"
        raise fault(replica, FaultReason.CONFLICT, sentence, knob)
    if in_force(now, wanted):
        return now
    knob = moving(now, wanted)
    found = now.knobs[knob].value if knob in now.knobs else "gone"
    if lost is None:
        sentence = f"{knob} is {found} after it agreed to {wanted[knob]}; something else holds it"
        raise fault(replica, FaultReason.REFUSED, sentence, knob)
    sentence = f"{lost}; reading back shows {knob} {found}, not {wanted[knob]}"
    if lost.fault.reason is FaultReason.OUTCOME_UNKNOWN:
        sentence += ", which may still change; not repeated"
    raise about(FaultError(replace(lost.fault, sentence=sentence)), knob)


def _read_back(
    replica: Replica, knob: str, read: Callable[[], EngineState], lost: FaultError | None
) -> EngineState:
    try:
        return read()
    except FaultError as blind:
        first = "the change was answered" if lost is None else str(lost)
        sentence = f"{knob}: {first}, and reading back failed ({blind}); not repeated"
        raise fault(replica, FaultReason.OUTCOME_UNKNOWN, sentence, knob) from None
