"""What a controller sees of a simulated fleet: the truth, through a scrape.

Fields are made of scraped samples as the live collector makes them (`envs.simulator.fields`), and
percentiles are read off the engine's own histogram buckets as PromQL's `histogram_quantile` does
(prometheus/promql/quantile.go), so that a trained policy meets the same coarseness in production.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs.draws import uniform
from envs.reward import Outcome
from envs.simulator.fields import Seen
from envs.simulator.fleet import EnvFactors, Fleet, FleetSettings
from envs.simulator.layout import ReplicaState
from tuner.core.knobs import KnobSpace
from tuner.core.observation import (
    COLUMN,
    FIELDS,
    REPLICA_FIELDS,
    ObservationArrays,
    ReplicaArrays,
    exchanged,
)
from tuner.core.protocols import FloatArray
from tuner.core.scrapes import QUANTILES

_QUANTILES = [COLUMN[name] for name in QUANTILES]
_MEASURED = (
    *("qps", "prompt_tokens_per_s", "output_tokens_per_s", "preemptions_per_s", "gpu_util"),
    *("kv_cache_usage", "queue_depth", "running", "in_flight"),
)
"""Fields that the scrapes give as they are."""
_OF_A_REPLICA = {
    REPLICA_FIELDS.index(name): f"replica_{name}"
    for name in ("running", "queue_depth", "kv_cache_usage")
}
"""What a vLLM page tells of REPLICA_FIELDS: column -> field of Seen."""
_COUNTED = [COLUMN[f"{word}_replicas"] for word in ("ready", "starting", "draining", "status")]
"""Replica counts; the orchestrator knows them, whatever becomes of the metrics source."""
_OFF = int(ReplicaState.OFF)
_SCRAPED = np.setdiff1d(np.arange(len(FIELDS)), _COUNTED)


def values_of(seen: Seen) -> FloatArray:
    """`(n, len(FIELDS))` the scalar state of n fleets; NaN where nothing was measured."""
    values = np.full((len(seen.now_s), len(FIELDS)), np.nan)
    for name in _MEASURED:
        values[:, COLUMN[name]] = getattr(seen, name)
    # An engine's page counts no failure yet: what the router turns away never reached one.
    values[:, COLUMN["error_rate"]] = np.where(seen.finished > 0, 0.0, np.nan)
    values[:, _QUANTILES] = seen.quantiles_s
    values[:, COLUMN["ready_replicas"]] = seen.ready
    values[:, COLUMN["starting_replicas"]] = seen.starting
    values[:, COLUMN["draining_replicas"]] = seen.draining
    values[:, COLUMN["status_replicas"]] = seen.ready + seen.starting
    return values


class ObservedFleet:
    """n simulated fleets as a controller meets them: looked at once a tick, through a scrape.

    Both the single cluster of the control loop and the vector environment stand on it, so that
    one seed shows both the same numbers.

    Args:
        fleet: the truth, with a metrics source.
        knobs: the order of the settings columns.
        outage: chance (0-1) that a look gets no answer from the metrics source.
    """

    def __init__(self, fleet: Fleet, knobs: KnobSpace, *, outage: float = 0.0) -> None:
        n = fleet.n
        self.fleet = fleet
        self._knobs = knobs
        self._outage = outage
        self._seeds = np.zeros(n, dtype=np.uint64)
        self._looks = np.zeros(n, dtype=np.int64)
        self._settings = np.tile(knobs.row(knobs.defaults()), (n, 1))

    def reset(
        self,
        rows: NDArray[np.intp],
        *,
        start_s: FloatArray,
        seeds: NDArray[np.uint64],
        settings: FloatArray,
        keep: FloatArray,
        factors: EnvFactors | None = None,
        scrape_lag_s: FloatArray | None = None,
        scrape_loss: FloatArray | None = None,
    ) -> None:
        """Start some fleets afresh: empty, `settings` in force, their replicas ready.

        Args:
            rows: `(k,)` which fleets.
            start_s: `(k,)` place in the trace, s.
            seeds: `(k,)` of everything random in them.
            settings: `(k, knobs)`.
            keep: `(k,)` share (0-1] of the trace's requests.
            factors: k entries, what sets their worlds apart; None: nothing.
            scrape_lag_s, scrape_loss: see `Fleet.reset`.
        """
        self._seeds[rows] = seeds
        self._looks[rows] = 0
        self._settings = exchanged(self._settings, rows, settings)
        self.fleet.reset(
            rows,
            start_s=start_s,
            seeds=seeds,
            settings=self._fleet_settings(rows),
            keep=keep,
            factors=factors,
            scrape_lag_s=scrape_lag_s,
            scrape_loss=scrape_loss,
        )

    def apply(self, target: FloatArray) -> None:
        """Bring about `(n, knobs)` settings; NaN leaves a knob as it is."""
        settings = np.where(np.isnan(target), self._settings, target)
        if np.array_equal(settings, self._settings):
            return  # as at most ticks; the fleet acts on a change alone
        self._settings = settings
        self.fleet.apply(self._fleet_settings(slice(None)))

    def _fleet_settings(self, rows: NDArray[np.intp] | slice) -> FleetSettings:
        settings = self._settings[rows].astype(np.int64)
        return FleetSettings(
            **{name: settings[:, column] for column, name in enumerate(self._knobs.names)}
        )

    def look(self) -> tuple[ObservationArrays, Outcome]:
        """What is seen now, and what truly happened since the last look."""
        seen, window = self.fleet.seen(), self.fleet.window()
        values, age_s = values_of(seen), seen.age_s
        replicas = _replicas(seen)
        if self._outage > 0:
            lost = uniform(self._seeds, self._looks) < self._outage
            self._looks += window.length_s > 0
            values[np.flatnonzero(lost)[:, None], _SCRAPED] = np.nan
            age_s = np.where(lost, np.nan, age_s)
            replicas.values[lost] = np.nan
        now = ObservationArrays(
            knobs=self._knobs,
            at_s=seen.now_s,
            age_s=age_s,
            values=values,
            settings=self._settings,
            replicas=replicas,
        )
        return now, Outcome(
            arrivals=window.arrivals.astype(np.float64),
            finished=window.finished.astype(np.float64),
            met=window.met.astype(np.float64),
            missed=window.missed.astype(np.float64),
            replica_s=window.replica_s,
            business=np.full(len(values), np.nan),
        )


def _replicas(seen: Seen) -> ReplicaArrays:
    values = np.full((*seen.replica_state.shape, len(REPLICA_FIELDS)), np.nan)
    for column, name in _OF_A_REPLICA.items():
        values[:, :, column] = getattr(seen, name)
    # The fleet's codes are one ahead: its OFF is no replica, and no simulated one is ever PENDING.
    off = seen.replica_state == _OFF
    return ReplicaArrays(
        state=np.where(off, -1, seen.replica_state),
        age_s=seen.now_s[:, None] - seen.replica_started_s,
        values=values,
    )
