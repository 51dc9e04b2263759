"""Engine states of engines that say little, and the health that a state implies."""

from __future__ import annotations

from tuner.core.faults import FaultError
from tuner.engines.engine import EngineState, Health, Replica
from tuner.engines.runtime_config import RuntimeConfig


def silent(engine: str, replica: Replica) -> EngineState:
    """The state of an engine that says nothing of itself: no knobs, no revision, no flags."""
    return EngineState(
        engine=engine,
        version="",
        model=replica.model,
        instance=None,
        revision=None,
        paused=False,
        sleeping=False,
        draining=False,
        running=None,
        waiting=None,
        knobs={},
        ttl=False,
    )


def health_of(replica: Replica, state: EngineState) -> Health:
    """Ready unless paused, asleep or draining; it lives, or it would not have said so."""
    standing = ((state.paused, "paused"), (state.sleeping, "asleep"), (state.draining, "draining"))
    # All of them: vLLM pauses its scheduler when it goes to sleep.
    so = " and ".join(word for is_so, word in standing if is_so)
    return Health(live=True, ready=not so, why=f"{replica.name}: it is {so}" if so else "")


def health_by_sidecar(sidecar: RuntimeConfig, replica: Replica) -> Health:
    """Ready unless the sidecar knows of a pause; a sidecar that is away says nothing."""
    try:
        return health_of(replica, sidecar.read(replica))
    except FaultError:
        return Health(live=True, ready=True)
