"""How an error of the step times shows in latency, by load: small where queues are short, and many
times larger near capacity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from experiments.fidelity.distribution import Distance, distance
from experiments.fidelity.runs import at_rate, capacity_qps, simulate
from tuner.core.profile import ServingProfile
from tuner.core.trace import Trace

LOADS = (0.4, 0.65, 0.875, 0.97)
"""Shares of capacity, one in each band: below 0.5, to 0.8, to 0.95, and above."""


@dataclass(frozen=True)
class Band:
    """One load, and how far one simulation of it is off another."""

    load: float
    """Share (0-1) of the fleet's capacity."""
    qps: float
    distance: Distance


def bands(
    trace: Trace,
    truth: ServingProfile,
    other: ServingProfile,
    *,
    replicas: int,
    router: str,
    loads: Sequence[float] = LOADS,
    progress: Callable[[str, float], None],
) -> tuple[float, tuple[Band, ...]]:
    """Capacity of the fleet in requests/s, and the distance at each share of it.

    Args:
        trace: the requests; their rate is set, their pattern kept.
        truth: what is taken for real.
        other: what is judged.
        progress: told what runs and the share (0-1) that is done.
    """
    capacity = capacity_qps(trace, truth, replicas=replicas)
    found = []
    for number, load in enumerate(loads):
        progress("load bands", number / len(loads))
        paced = at_rate(trace, load * capacity)
        sides = [simulate(paced, one, replicas=replicas, router=router) for one in (truth, other)]
        found.append(Band(load, load * capacity, distance(*sides)))
    progress("load bands", 1.0)
    return capacity, tuple(found)
