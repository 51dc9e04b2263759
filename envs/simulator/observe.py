"""What a controller sees of a simulated fleet: the truth, through a scrape.

Percentiles are read off the engine's own histogram buckets as PromQL's `histogram_quantile` does
(prometheus/promql/quantile.go), so that a trained policy meets the same coarseness in production.
A lost scrape leaves every measured field empty and the sample's age growing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs.draws import uniform
from envs.reward import Outcome
from envs.simulator.buckets import E2E_BOUNDS_S, TPOT_BOUNDS_S, TTFT_BOUNDS_S
from envs.simulator.fleet import EnvFactors, Fleet, FleetSettings
from envs.simulator.layout import ReplicaState
from envs.simulator.telemetry import Gauges, Window
from tuner.core.histograms import histogram_quantile
from tuner.core.knobs import KnobSpace
from tuner.core.observation import COLUMN, FIELDS, REPLICA_FIELDS, ObservationArrays, ReplicaArrays
from tuner.core.protocols import BoolArray, FloatArray


def values_of(window: Window, gauges: Gauges) -> FloatArray:
    """`(n, len(FIELDS))` the scalar state of n fleets; NaN where nothing was measured."""
    values = np.full((len(gauges.now_s), len(FIELDS)), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        span_s = np.where(window.length_s > 0, window.length_s, np.nan)
        failed = window.rejected + window.failed
        ended = window.finished + failed
        columns = {
            "qps": window.arrivals / span_s,
            "prompt_tokens_per_s": window.prompt_tokens / span_s,
            "output_tokens_per_s": window.output_tokens / span_s,
            "ttft_p50_s": histogram_quantile(0.50, TTFT_BOUNDS_S, window.ttft_hist),
            "ttft_p95_s": histogram_quantile(0.95, TTFT_BOUNDS_S, window.ttft_hist),
            "ttft_p99_s": histogram_quantile(0.99, TTFT_BOUNDS_S, window.ttft_hist),
            "tpot_p50_s": histogram_quantile(0.50, TPOT_BOUNDS_S, window.tpot_hist),
            "tpot_p99_s": histogram_quantile(0.99, TPOT_BOUNDS_S, window.tpot_hist),
            "e2e_p99_s": histogram_quantile(0.99, E2E_BOUNDS_S, window.e2e_hist),
            "gpu_util": np.where(window.replica_s > 0, window.busy_s / window.replica_s, np.nan),
            "kv_cache_usage": gauges.kv_cache_usage,
            "queue_depth": gauges.queue_depth,
            "running": gauges.running,
            "in_flight": gauges.in_flight,
            "error_rate": np.where(ended > 0, failed / ended, np.nan),
            "preemptions_per_s": window.preemptions / span_s,
            "ready_replicas": gauges.ready,
            "starting_replicas": gauges.starting,
            "draining_replicas": gauges.draining,
            "status_replicas": gauges.ready + gauges.starting,
        }
    for name, column in columns.items():
        values[:, COLUMN[name]] = column
    return values


class ObservedFleet:
    """n simulated fleets as a controller meets them: looked at once a tick, through a scrape.

    Both the single cluster of the control loop and the vector environment stand on it, so that
    one seed shows both the same numbers.

    Args:
        fleet: the truth.
        knobs: the order of the settings columns.
    """

    def __init__(self, fleet: Fleet, knobs: KnobSpace) -> None:
        n = fleet.n
        self.fleet = fleet
        self._knobs = knobs
        self._scrape_loss = np.zeros(n)
        self._seeds = np.zeros(n, dtype=np.uint64)
        self._looks = np.zeros(n, dtype=np.int64)
        self._age_s = np.full(n, np.nan)
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
        scrape_loss: FloatArray | float = 0.0,
    ) -> None:
        """Start some fleets afresh: empty, `settings` in force, their replicas ready.

        Args:
            rows: `(k,)` which fleets.
            start_s: `(k,)` place in the trace, s.
            seeds: `(k,)` of everything random in them.
            settings: `(k, knobs)`.
            keep: `(k,)` share (0-1] of the trace's requests.
            factors: k entries, what sets their worlds apart; None: nothing.
            scrape_loss: `(k,)` chance (0-1) that a look finds no sample.
        """
        self._seeds[rows] = seeds
        self._looks[rows] = 0
        self._age_s[rows] = np.nan
        self._settings[rows] = settings
        self._scrape_loss[rows] = scrape_loss
        self.fleet.reset(
            rows,
            start_s=start_s,
            seeds=seeds,
            settings=self._fleet_settings(rows),
            keep=keep,
            factors=factors,
        )

    def apply(self, target: FloatArray) -> None:
        """Bring about `(n, knobs)` settings; NaN leaves a knob as it is."""
        self._settings = np.where(np.isnan(target), self._settings, target)
        self.fleet.apply(self._fleet_settings(slice(None)))

    def _fleet_settings(self, rows: NDArray[np.intp] | slice) -> FleetSettings:
        settings = self._settings[rows].astype(np.int64)
        return FleetSettings(
            **{name: settings[:, column] for column, name in enumerate(self._knobs.names)}
        )

    def look(self) -> tuple[ObservationArrays, Outcome]:
        """What is seen now, and what truly happened since the last look."""
        gauges, window = self.fleet.gauges(), self.fleet.window()
        values = values_of(window, gauges)
        lost = uniform(self._seeds, self._looks) < self._scrape_loss
        self._looks += window.length_s > 0
        values[lost] = np.nan
        self._age_s = np.where(lost, self._age_s + window.length_s, 0.0)
        now = ObservationArrays(
            knobs=self._knobs,
            at_s=gauges.now_s,
            age_s=self._age_s,
            values=values,
            settings=self._settings,
            replicas=_replicas(gauges, lost),
        )
        return now, Outcome(
            arrivals=window.arrivals.astype(np.float64),
            finished=window.finished.astype(np.float64),
            met=window.met.astype(np.float64),
            missed=window.missed.astype(np.float64),
            replica_s=window.replica_s,
            business=np.full(len(values), np.nan),
        )


def _replicas(gauges: Gauges, lost: BoolArray) -> ReplicaArrays:
    values = np.stack(
        [getattr(gauges, f"replica_{name}").astype(np.float64) for name in REPLICA_FIELDS], axis=2
    )
    # A replica has a metrics page once its engine runs, and no sample where the scrape was lost.
    silent = (gauges.replica_state < ReplicaState.READY) | lost[:, None]
    values[silent] = np.nan
    # The fleet's codes are one ahead: its OFF is no replica, and no simulated one is ever PENDING.
    off = gauges.replica_state == ReplicaState.OFF
    return ReplicaArrays(
        state=np.where(off, -1, gauges.replica_state),
        age_s=gauges.now_s[:, None] - gauges.replica_started_s,
        values=values,
    )
