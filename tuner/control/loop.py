"""The control loop: one tick, and a run of them."""

from __future__ import annotations

from collections.abc import Iterator

from tuner.core.clock import Clock
from tuner.core.decision import Guardrails, arbitrate, propose
from tuner.core.history import History
from tuner.core.protocols import Audit, Cluster, Policy


def tick(
    cluster: Cluster,
    history: History,
    policy: Policy,
    guardrails: Guardrails,
    fallback: Policy,
    audit: Audit,
    mode: str,
) -> History:
    """Observe, propose, arbitrate, record, apply, record; the next tick's history.

    A mode is only which `cluster` is handed in; nothing here knows which one it is.
    """
    observation = cluster.observe()
    history = history.observed(observation)
    proposal = propose(policy, history)
    decision = arbitrate(proposal, history, guardrails, fallback)
    audit.intent(mode, observation, decision)
    receipt = cluster.apply(decision)
    audit.receipt(decision, receipt)
    return history.decided(decision)


def ticks(
    cluster: Cluster,
    clock: Clock,
    history: History,
    policy: Policy,
    guardrails: Guardrails,
    fallback: Policy,
    audit: Audit,
    mode: str,
    *,
    every_s: float,
) -> Iterator[History]:
    """Tick for ever, one tick each `every_s` seconds; yields the history after each."""
    for _ in borders(clock, every_s):
        history = tick(cluster, history, policy, guardrails, fallback, audit, mode)
        yield history


def borders(clock: Clock, every_s: float) -> Iterator[float]:
    """When to tick: now, and then every `every_s` seconds; comes back at each.

    What takes longer than its period is followed by the next border, not by a burst. A sleep that
    is woken comes back early: whoever wakes it says how to go on. A clock that is set back begins
    anew from there: waiting until it shows the old time again could take hours.
    """
    at_s = clock.now_s()
    while True:
        yield at_s
        now_s = clock.now_s()
        at_s = min(at_s, now_s)
        at_s += every_s * (1 + (now_s - at_s) // every_s)
        clock.sleep_until(at_s)
