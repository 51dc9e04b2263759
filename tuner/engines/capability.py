"""What can be moved on a replica, in the words of the probe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tuner.core.faults import FaultError, FaultReason
from tuner.core.knobs import Applied, KnobSettings
from tuner.engines.engine import Capability, EngineState
from tuner.engines.runtime_config import ROUTE

_PASSING = frozenset({FaultReason.NOT_READY, FaultReason.RATE_LIMITED, FaultReason.CONFLICT})
"""Refusals that say nothing about what the engine can do."""

REPLICAS = Capability(
    knob="replicas",
    movable=True,
    applied="scale",
    route="the pool",
    sentence="replicas are scaled by whoever runs them; the engine has no part in it",
)
WARMUP = Capability(
    knob="warmup_requests",
    movable=True,
    applied="client",
    route="requests",
    sentence="sent to a replica before it takes traffic; the engine has no part in it",
)


@dataclass(frozen=True)
class StartUp:
    """How a knob is set where it cannot be moved while the engine runs."""

    argument: str
    """Start-up argument, or several: `--max-num-seqs`."""
    hint: str
    """What would make it movable, if anything."""

    def fixed(self, knob: str, why: str) -> Capability:
        """The knob as one that needs a rolling restart."""
        sentence = f"{why}; change {self.argument} by a rolling restart"
        sentence += f", or {self.hint}" if self.hint else ""
        return Capability(knob, False, "restart", self.argument, sentence)


def from_contract(
    state: EngineState, start_up: dict[str, StartUp], check: Callable[[KnobSettings], None]
) -> tuple[Capability, ...]:
    """Every knob of KNOBS, by what a run-time configuration endpoint says.

    Args:
        start_up: `batch_size` and `threads`, for where they cannot be moved.
        check: asks whether the values in force would be taken; changes nothing.
    """
    batch, threads = (
        _asked(state, name, start_up[name], check) for name in ("batch_size", "threads")
    )
    return batch, REPLICAS, threads, WARMUP


def movable(knob: str, applied: Applied, route: str, low: int, high: int, note: str) -> Capability:
    """A knob that moves while the engine runs."""
    return Capability(knob, True, applied, route, f"{low}..{high} while it runs; {note}")


def _asked(
    state: EngineState, name: str, start_up: StartUp, check: Callable[[KnobSettings], None]
) -> Capability:
    knob = state.knobs.get(name)
    if knob is None or knob.applied not in ("hot", "reload"):
        how = "does not name it" if knob is None else f"says '{knob.applied}'"
        return start_up.fixed(name, f"the run-time configuration {how}")
    note = "temporary values return by themselves (ttl)"
    if not state.ttl:
        note = "ttl: unsupported, so nothing returns by itself when the controller is gone"
    try:
        check(KnobSettings({name: knob.value}))
    except FaultError as trouble:
        if trouble.fault.reason not in _PASSING:
            return start_up.fixed(name, str(trouble))
        note += f"; not just now ({trouble})"
    return movable(name, knob.applied, ROUTE, knob.low, knob.high, note)
