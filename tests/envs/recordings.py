"""Telemetry of a simulated fleet, as `tuner record` would have written it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs.simulator import Fleet, FleetSettings
from envs.simulator.buckets import BOUNDS, FIRST_BUCKET
from tuner.core.profile import ServingProfile
from tuner.core.trace import Trace
from tuner.data.telemetry import Buckets, Telemetry, TelemetryHeader, TelemetryRow, table_of

SINCE_S = 1_800_000_000.0
LENGTH_BOUNDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000)
"""vLLM's, in tokens."""
OVERTIME_S = 300.0


def recorded(
    trace: Trace,
    profile: ServingProfile,
    *,
    replicas: int = 1,
    every_s: float = 15.0,
    until_s: float | None = None,
) -> Telemetry:
    """What the fleet's metrics say while it serves the trace, row by row; until OVERTIME_S after
    the last arrival if not told otherwise."""
    one = np.ones(1, np.int64)
    seeds = np.zeros(1, np.uint64)
    fleet = Fleet(trace, profile, seeds=seeds, slots=replicas, router="round_robin")
    fleet.reset(
        slice(None),
        start_s=0.0,
        seeds=seeds,
        settings=FleetSettings(replicas * one, profile.limits.batch_size_max * one, one, 0 * one),
    )
    rows = []
    before = _counted(fleet)
    last_s = trace.last_arrival_s + OVERTIME_S if until_s is None else until_s
    for number in range(1, int(last_s / every_s) + 1):
        fleet.advance(number * every_s)
        now = _counted(fleet)
        rows.append(_row(fleet, trace, number, every_s, now - before))
        before = now
    end_s = SINCE_S + len(rows) * every_s
    header = TelemetryHeader("r1", "vllm", "http://p:9090", {}, SINCE_S, end_s, every_s, 60.0)
    return Telemetry(header, table_of(rows), {})


def _counted(fleet: Fleet) -> NDArray[np.int64]:
    """`(BUCKETS,)` since the start, over the replicas."""
    return np.asarray(fleet.counters().counts[0].sum(axis=0))


def _row(
    fleet: Fleet, trace: Trace, number: int, every_s: float, counts: NDArray[np.int64]
) -> TelemetryRow:
    window, gauges = fleet.window(), fleet.gauges()
    came = np.ceil(trace.arrival_s / every_s) == number
    lengths = {
        f"{kind}_length": Buckets(
            LENGTH_BOUNDS,
            np.bincount(
                np.searchsorted(LENGTH_BOUNDS, trace.columns()[f"{kind}_tokens"][came]),
                minlength=len(LENGTH_BOUNDS) + 1,
            ).tolist(),
        )
        for kind in ("prompt", "output")
    }
    return TelemetryRow(
        at_s=SINCE_S + number * every_s,
        window_s=60.0,
        counted_s=every_s,
        values={
            "running": float(gauges.running[0]),
            "queue_depth": float(gauges.queue_depth[0]),
        },
        counts={
            "requests_arrived": int(window.arrivals[0]),
            "requests_finished": int(window.finished[0]),
            "requests_failed": int(window.failed[0]),
            "prompt_tokens": int(window.prompt_tokens[0]),
            "output_tokens": int(window.output_tokens[0]),
        },
        histograms={
            **{
                name: Buckets(bounds.tolist(), counts[first : first + len(bounds) + 1].tolist())
                for name, bounds, first in zip(
                    ("ttft_s", "tpot_s", "e2e_s"), BOUNDS, FIRST_BUCKET, strict=True
                )
            },
            **lengths,
        },
    )
