"""Exact counts per window out of raw samples, carried over from chunk to chunk.

A counter's rise between two samples is booked in the window where the later one lies, however far
they are apart: the windows add up to what the counter rose by, across restarts of the engine (a
value that fell counts whole) and of the server (a gap books its rise at its end). A series that
first appears once the recording runs began at zero.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tuner.core.protocols import BoolArray, FloatArray, IntArray
from tuner.engines.engine import Metrics, Series
from tuner.live.metrics.fields import (
    Page,
    Samples,
    Traffic,
    bound_of,
    common_bounds,
    page_of,
    specs,
    steps,
)
from tuner.live.metrics.samples import SampleSeries

PROCESS_START = "process_start_time_seconds"
"""Gauge of the Prometheus client libraries: a process younger than the recording began at zero."""

COUNTERS: Mapping[str, str] = {
    "requests_finished": "finished",
    "requests_failed": "failed",
    "prompt_tokens": "prompt_tokens",
    "output_tokens": "output_tokens",
    "preemptions": "preemptions",
}
"""Count of a telemetry row -> counters of `Metrics`."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Windows that follow each other."""

    start_s: float
    every_s: float
    count: int

    @property
    def ends_s(self) -> FloatArray:
        """`(count,)`."""
        return self.start_s + self.every_s * np.arange(1, self.count + 1, dtype=np.float64)

    def of(self, at_s: FloatArray) -> IntArray:
        """`(samples,)` which window each time lies in; they are open at their start."""
        return np.ceil((at_s - self.start_s) / self.every_s - 1e-9).astype(np.int64) - 1


def series_key(series: SampleSeries) -> str:
    """A series' identity as text."""
    return json.dumps([series.name, sorted(series.labels.items())])


class Counting:
    """Counters over one chunk of windows.

    Args:
        grid: the windows.
        carry: last value of each series before them.
        baseline_s: a series that is not carried, and whose first sample is not later than this,
            was there before the recording; what it had counted by then is not ours.
        process_start_s: when the process behind each page began, where pages say so.
        since_s: start of the recording.
    """

    def __init__(
        self,
        grid: Grid,
        carry: Mapping[str, float],
        *,
        baseline_s: float,
        process_start_s: Mapping[Page, float],
        since_s: float,
    ) -> None:
        self._grid = grid
        self._before = carry
        self._baseline_s = baseline_s
        self._process_start_s = process_start_s
        self._since_s = since_s
        self.carry = dict(carry)
        """Last value of each series, these windows included."""

    def rises(self, rows: Sequence[SampleSeries]) -> FloatArray:
        """`(rows, windows)` how far each series rose in each window."""
        found = np.zeros((len(rows), self._grid.count))
        for index, row in enumerate(rows):
            key = series_key(row)
            start = int(np.searchsorted(row.at_s, self._grid.start_s, side="right"))
            times, values = row.at_s[start:], row.values[start:]
            if not len(times):
                self.carry.setdefault(key, float(row.values[-1]))
                continue
            before = self._before.get(key)
            if before is None:
                before = row.values[start - 1] if start else self._first(row)
            rise = steps(np.concatenate(([before], values)))
            np.add.at(found[index], self._grid.of(times), rise)
            self.carry[key] = float(values[-1])
        return found

    def _first(self, row: SampleSeries) -> float:
        """What a series that was never seen stood at before its first sample."""
        began_s = self._process_start_s.get(page_of(row))
        young = began_s is not None and began_s >= self._since_s
        return 0.0 if young or row.at_s[0] > self._baseline_s else float(row.values[0])

    def count(self, samples: Samples, series: Iterable[Series]) -> FloatArray | None:
        """`(windows,)` rises summed; None where there is no such series."""
        total, found = np.zeros(self._grid.count), False
        for one in series:
            rows = samples.named(one)
            found |= bool(rows)
            total += one.unit * self.rises(rows).sum(axis=0)
        return total if found else None

    def buckets(self, samples: Samples, series: Series) -> tuple[FloatArray, FloatArray] | None:
        """Bounds `(buckets,)` and `(windows, buckets + 1)` observations; None without any series.

        Raises:
            HistogramError: replicas have different buckets. Their last values are carried all the
                same.
        """
        rows = samples.named(series, "_bucket")
        if not rows:
            return None
        rises = self.rises(rows)
        bounds = common_bounds(series, rows)
        column = {bound: index for index, bound in enumerate(bounds)}
        cumulative = np.zeros((len(bounds), self._grid.count))
        np.add.at(cumulative, [column[bound_of(row)] for row in rows], rises)
        counts = np.maximum(np.diff(cumulative, axis=0, prepend=0.0), 0.0).T
        return series.unit * np.array(bounds[:-1]), counts


def process_starts(samples: Samples) -> dict[Page, float]:
    """When the process behind each page began, as its oldest sample says."""
    return {page_of(row): float(row.values[0]) for row in samples.named(Series(PROCESS_START))}


def seen_windows(grid: Grid, series: Iterable[SampleSeries]) -> BoolArray:
    """`(windows,)` whether any sample lies in it."""
    seen = np.zeros(grid.count, dtype=np.bool_)
    for page_times in {id(row.at_s): row.at_s for row in series}.values():
        inside = page_times[page_times > grid.start_s]
        seen[grid.of(inside)] = True
    return seen


def all_counts(
    counting: Counting,
    samples: Samples,
    metrics: Metrics,
    outside: Samples,
    traffic: Traffic | None,
) -> dict[str, FloatArray]:
    """Every count of a telemetry row that something counts, by its name."""
    found = {name: counting.count(samples, specs(metrics, of)) for name, of in COUNTERS.items()}
    if traffic is not None:
        found["requests_arrived"] = counting.count(outside, (traffic.arrivals,))
    else:
        found["requests_arrived"] = counting.count(samples, metrics.arrived)
    return {name: counts for name, counts in found.items() if counts is not None}
