"""A planned fleet in the simulator, and what became of each tick's requests."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from experiments.config import RunConfig
from experiments.fanout import Progress
from experiments.result import Floats, Ints, TickTable
from experiments.run import run
from policies import RulePolicy, StaticRule
from policies.oracle import Counts, PlanRule
from tuner.core.profile import ServingProfile
from tuner.core.trace import Trace

HOLD = RulePolicy("hold", StaticRule({}))
"""Fallback of a plan: where a guardrail trips, the fleet stays as it is."""


@dataclass(frozen=True, eq=False)
class FleetRun:
    """One plan, run once."""

    seed: int
    attainment: float
    """Share of all requests (0-1) that met every objective."""
    gpu_hours: float
    """GPUs held x hours to the last arrival, ready or not."""
    missed: Ints
    """`(ticks,)` requests by the tick of their arrival that missed an objective."""
    drain_s: float
    """Mean seconds that a dropped replica was still held; 0 where none was dropped."""


@dataclass(frozen=True)
class FleetTask:
    """A plan with its load; gives a `FleetRun`."""

    trace: Trace = field(repr=False)
    profile: ServingProfile = field(repr=False)
    wanted: Counts = field(repr=False)
    """`(ticks,)` replicas wanted."""
    config: RunConfig
    """With the start count filled in."""
    seed: int
    label: str

    def __call__(self, progress: Progress) -> FleetRun:
        config = self.config
        result = run(
            self.trace,
            self.profile,
            RulePolicy("oracle", PlanRule(self.wanted, config.tick_s)),
            config=config,
            seed=self.seed,
            fallback=HOLD,
            progress=progress,
        )
        missed = ~result.requests.met(config.slo)
        return FleetRun(
            seed=self.seed,
            attainment=1.0 - float(missed.mean()),
            gpu_hours=result.gpu_hours,
            missed=by_tick(result.requests.arrival_s[missed], config.tick_s, len(self.wanted)),
            drain_s=_drain_s(result.ticks),
        )


def ticks_of(trace: Trace, tick_s: float) -> int:
    """Ticks from the trace's start to its last arrival, the last one included."""
    return int(trace.last_arrival_s // tick_s) + 1


def by_tick(at_s: Floats, tick_s: float, ticks: int) -> Ints:
    """`(ticks,)` how many of these moments lie in each tick."""
    tick = np.minimum((at_s / tick_s).astype(np.int64), ticks - 1)
    return np.bincount(tick, minlength=ticks)


def _drain_s(ticks: TickTable) -> float:
    dropped = np.maximum(-np.diff(ticks.wanted_replicas), 0).sum()
    return float((ticks.draining_replicas * ticks.length_s).sum() / dropped) if dropped else 0.0
