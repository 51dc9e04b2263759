"""One simulated target behind the same face as a live one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import overload

import numpy as np
from numpy.typing import NDArray

from envs.config import FailureConfig, ScrapeConfig
from envs.failures import with_failures
from envs.reward import Outcome
from envs.simulator.fleet import EnvFactors, Fleet
from envs.simulator.observe import ObservedFleet
from envs.simulator.telemetry import RequestColumns
from tuner.core.clock import Clock
from tuner.core.decision import Decision, Receipt
from tuner.core.knobs import KnobSettings, KnobSpace
from tuner.core.observation import (
    REPLICA_FIELDS,
    REPLICA_STATES,
    Observation,
    ReplicaArrays,
    ReplicaObservation,
)
from tuner.core.profile import ServingProfile
from tuner.core.slo import Slo
from tuner.core.trace import Trace

NO_FAILURES = FailureConfig()


class SimulatedCluster:
    """A cluster whose time is the clock that it is given; it catches up when looked at.

    Args:
        trace: the load.
        profile: how fast a replica serves.
        knobs: the target's knobs.
        clock: whose time the cluster follows.
        initial: settings in force at the start; these replicas are ready then.
        seed: of cold starts, jitter and scrapes.
        start_s: place in the trace at which the simulation begins.
        keep: share (0-1] of the trace's requests.
        slots: most replicas held at once, draining ones included.
        router, slo, jitter, scrape, drain_timeout_s, failures: as in `envs.config.EnvConfig`.
        factors: what sets this world apart from profile and trace, one entry; None: nothing.
        record: keep what became of each request.
    """

    def __init__(
        self,
        trace: Trace,
        profile: ServingProfile,
        knobs: KnobSpace,
        clock: Clock,
        *,
        initial: KnobSettings,
        seed: int,
        start_s: float = 0.0,
        keep: float = 1.0,
        slots: int | None = None,
        router: str = "least_loaded",
        slo: Slo | None = None,
        jitter: float = 0.0,
        scrape: ScrapeConfig | None = None,
        factors: EnvFactors | None = None,
        drain_timeout_s: float | None = None,
        failures: FailureConfig = NO_FAILURES,
        record: bool = False,
    ) -> None:
        seeds = np.array([seed], dtype=np.uint64)
        scrape = scrape or ScrapeConfig()
        self._knobs = knobs
        self._clock = clock
        self._window_s = scrape.window_s
        self._fleet = Fleet(
            trace,
            profile,
            seeds=seeds,
            slots=slots or knobs["replicas"].high + 8,
            router=router,
            slo=slo or Slo(),
            jitter=jitter,
            drain_timeout_s=drain_timeout_s,
            crash_per_hour=failures.crash_per_hour,
            record=record,
            scrape=scrape,
        )
        self._observed = ObservedFleet(self._fleet, knobs, outage=scrape.outage)
        settings = knobs.row({**knobs.defaults(), **initial})[None, :]
        self._observed.reset(
            np.array([0]),
            start_s=np.array([start_s]),
            seeds=seeds,
            settings=settings,
            keep=np.array([keep]),
            factors=with_failures(
                factors or EnvFactors.none(1),
                failures,
                seeds,
                settings[:, knobs.column("replicas")],
            ),
        )
        self._last_arrival_s = trace.last_arrival_s
        self._looked_s = start_s
        self.outcome: Outcome | None = None
        """What truly happened between the last two looks; None before the first."""
        self.billed_s = 0.0
        """Replica-seconds held between the last two looks, as far as the last arrival: what comes
        after belongs to the end of the recording, not to the policy."""

    @property
    def done(self) -> bool:
        """Every request of the trace has ended."""
        return bool(self._fleet.done()[0])

    def requests(self) -> RequestColumns:
        """What became of each request of the trace, if recorded."""
        return self._fleet.requests()

    def observe(self) -> Observation:
        now_s = self._clock.now_s()
        self.billed_s = 0.0
        if self._looked_s < self._last_arrival_s:
            self._fleet.advance(min(now_s, self._last_arrival_s))
            self.billed_s = float(self._fleet.replica_seconds()[0])
        if now_s > self._last_arrival_s:
            self._fleet.advance(now_s)
        seen, self.outcome = self._observed.look()
        self._looked_s = now_s
        slots = np.flatnonzero(seen.replicas.state[0] >= 0)
        seen = replace(seen, replicas=seen.replicas.at(slots))
        return seen.observation(self._window_s, SimulatedReplicas(slots, seen.replicas))

    def apply(self, decision: Decision) -> Receipt:
        self._observed.apply(self._knobs.row(decision.target)[None, :])
        return Receipt(at_s=self._clock.now_s(), applied=decision.target)


class SimulatedReplicas(Sequence[ReplicaObservation]):
    """The replicas of a simulated target, made for who looks: a tick that computes on columns
    needs none, and making them took a seventh of its time."""

    def __init__(self, slots: NDArray[np.intp], columns: ReplicaArrays) -> None:
        """
        Args:
            slots: `(replicas,)` the fleet's slot of each.
            columns: theirs, a batch of one target.
        """
        self._slots = slots
        self._columns = columns

    @cached_property
    def _made(self) -> tuple[ReplicaObservation, ...]:
        # Plain numbers before the loop: one by one out of an array they take five times as long.
        columns = self._columns
        return tuple(
            ReplicaObservation(
                name=f"replica-{slot}",
                state=REPLICA_STATES[code],
                age_s=age_s,
                **{
                    name: None if math.isnan(value) else value
                    for name, value in zip(REPLICA_FIELDS, values, strict=True)
                },
            )
            for slot, code, age_s, values in zip(
                self._slots.tolist(),
                columns.state[0].tolist(),
                columns.age_s[0].tolist(),
                columns.values[0].tolist(),
                strict=True,
            )
        )

    @overload
    def __getitem__(self, place: int) -> ReplicaObservation: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[ReplicaObservation, ...]: ...
    def __getitem__(
        self, place: int | slice
    ) -> ReplicaObservation | tuple[ReplicaObservation, ...]:
        return self._made[place]

    def __len__(self) -> int:
        return len(self._slots)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._made == tuple(other)

    def __repr__(self) -> str:
        return repr(self._made)
