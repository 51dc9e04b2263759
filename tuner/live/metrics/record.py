"""Recording a target's past from Prometheus: chunk by chunk, resumable, with exact totals.

Finished chunks lie beside the file, in FILE.parts, each whole with what the next one needs to go
on; a killed recording asks for none of them again. At the end they become one file. Recording onto
a finished file goes on where it ends.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from tuner.config import ControllerConfig, PrometheusConfig, TargetConfig
from tuner.core.errors import ConfigError, InputError
from tuner.core.faults import FaultError, FaultReason
from tuner.core.protocols import FloatArray
from tuner.data.telemetry import (
    HISTOGRAMS,
    Buckets,
    Telemetry,
    TelemetryHeader,
    TelemetryRow,
    joined,
    read_telemetry,
    table_of,
    write_telemetry,
)
from tuner.engines.engine import Metrics
from tuner.live.metrics.counting import (
    PROCESS_START,
    Counting,
    Grid,
    all_counts,
    process_starts,
    seen_windows,
)
from tuner.live.metrics.extras import DCGM_UTILISATION, mean_utilisation, traffic_of
from tuner.live.metrics.fields import (
    Fields,
    HistogramError,
    Samples,
    fields_of,
    specs,
    wanted_names,
)
from tuner.live.metrics.prometheus import PrometheusSource
from tuner.live.metrics.samples import SampleSeries

FIRST_CHUNK_S = 900.0
"""Small enough for a large fleet; the next ones follow from how many samples came."""

CHUNK_SAMPLES = 400_000
"""Wanted per chunk: some 12 MB of answer, some 60 MB in memory while it is read."""

LONGEST_CHUNK_S = 6 * 3600.0

TIMEOUT_S = 60.0
"""For one chunk; nobody waits for a decision here."""

LOOKBACK_S = 300.0
"""Before the start, to find out where each counter stood: Prometheus' own look-back."""

GRACE_WINDOWS = 2
"""Where the server itself is younger than the start: pages are first scraped within so many
windows, and what stands on them then is taken for their past."""

Progress = Callable[[float, float], None]
"""Told the seconds done and the seconds to do."""


@dataclass(frozen=True)
class RecordRequest:
    """What to record."""

    target: TargetConfig
    metrics: Metrics
    since_s: float
    until_s: float
    """Unix s; the windows are the whole multiples of `every_s` in between."""
    every_s: float
    out: Path


@dataclass(frozen=True)
class Recorded:
    """What came of it."""

    telemetry: Telemetry
    asked_from_s: float
    """Where this run went on: windows before that were there already."""
    warnings: tuple[str, ...]


def chosen_target(config: ControllerConfig, name: str | None) -> TargetConfig:
    """The target of that name, or the only one.

    Raises:
        ConfigError: there is none of that name, or there are several and none is named.
    """
    names = [target.name for target in config.targets]
    if name is None and len(names) == 1:
        return config.targets[0]
    for target in config.targets:
        if target.name == name:
            return target
    found = "is not given" if name is None else f"is {name!r}"
    raise ConfigError(f"--target {found}; expected one of {', '.join(names)}")


def record(request: RecordRequest, progress: Progress = lambda done_s, all_s: None) -> Recorded:
    """Record into `request.out`; finished chunks are kept whatever happens.

    Raises:
        ConfigError: the target has no Prometheus, or the span is empty.
        InputError: what lies at `out` is another recording.
        FaultError: the server cannot answer; the same call goes on later.
    """
    server = request.target.prometheus
    if server is None:
        raise ConfigError(
            f"target {request.target.name}: tuner record reads the past from Prometheus; "
            "add the section prometheus"
        )
    if request.every_s <= 0 or not math.isfinite(request.every_s):
        raise ConfigError(f"--every is {request.every_s:g} s; expected more than 0")
    header = _header(request, server)
    parts = _Parts(request.out)
    done = parts.read(header)
    start_s = done[-1].header.until_s if done else header.since_s
    if not done and header.until_s - start_s < request.every_s:
        raise ConfigError(
            f"from {_utc(start_s)} until {_utc(header.until_s)} there is no whole window of "
            f"{request.every_s:g} s; set --since earlier, or --until later"
        )
    warnings: dict[str, None] = {}
    source = PrometheusSource(server)
    try:
        recorder = _Recorder(request, source, warnings)
        # The parts that are there may be many; only the last one says how to go on.
        last = done[-1] if done else None
        for part in recorder.chunks(header, last):
            parts.add(part)
            progress(part.header.until_s - start_s, header.until_s - start_s)
    finally:
        source.close()
    whole = parts.finish(header)
    if not whole.carry:
        warnings[
            f"no series of target {request.target.name} was found; check prometheus.selector"
        ] = None
    return Recorded(whole, start_s, tuple(warnings))


def _header(request: RecordRequest, server: PrometheusConfig) -> TelemetryHeader:
    every_s = request.every_s
    return TelemetryHeader(
        target=request.target.name,
        engine=request.target.engine.kind,
        source=server.url,
        selector=dict(server.selector),
        since_s=math.ceil(request.since_s / every_s) * every_s,
        until_s=math.floor(request.until_s / every_s) * every_s,
        every_s=every_s,
        window_s=request.target.window_s,
    )


def _utc(at_s: float) -> str:
    return f"{datetime.fromtimestamp(at_s, tz=UTC):%Y-%m-%dT%H:%M:%SZ}"


class _Parts:
    """The chunks on disk, beside the file that they will become."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._folder = out.with_name(f"{out.name}.parts")

    def read(self, header: TelemetryHeader) -> list[Telemetry]:
        """What is there already, in order.

        Raises:
            InputError: it is something else, or there is no folder to write to.
        """
        if not self._out.parent.is_dir():
            raise InputError(f"{self._out}: folder {self._out.parent} does not exist; create it")
        found: list[Telemetry] = []
        for path in self._paths():
            part = read_telemetry(path)
            difference = part.header.mismatch(header)
            if difference is not None:
                raise InputError(
                    f"{path} holds another recording: {difference}; record as before, or name "
                    "another --out"
                )
            # A part that is in the file already was left behind by a kill while tidying up.
            if not found or part.header.until_s > found[-1].header.until_s:
                found.append(part)
        return found

    def add(self, part: Telemetry) -> None:
        try:
            self._folder.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{self._out} cannot be written ({error.strerror}); name another --out"
            ) from error
        # Unix seconds sort as text for the next centuries.
        write_telemetry(part, self._folder / f"{part.header.until_s:015.3f}.parquet")

    def finish(self, header: TelemetryHeader) -> Telemetry:
        """All parts as one file, and the parts gone."""
        found = self.read(header)
        whole = joined(found)
        if self._folder.is_dir():
            write_telemetry(whole, self._out)
            shutil.rmtree(self._folder)
        return whole

    def _paths(self) -> list[Path]:
        finished = [self._out] if self._out.exists() else []
        return finished + sorted(self._folder.glob("*.parquet"))


@dataclass(frozen=True, eq=False)
class _Chunk:
    """Everything asked of the server for some windows."""

    grid: Grid
    engine: list[SampleSeries]
    traffic: list[SampleSeries]
    cards: list[SampleSeries]

    @property
    def size(self) -> int:
        """Samples."""
        return sum(len(one.at_s) for one in (*self.engine, *self.traffic, *self.cards))


class _Recorder:
    """Turns chunks of raw samples into rows."""

    def __init__(
        self, request: RecordRequest, source: PrometheusSource, warnings: dict[str, None]
    ) -> None:
        self._target = request.target
        self._metrics = request.metrics
        self._source = source
        self._warnings = warnings
        self._traffic = traffic_of(request.target.traffic, {}) if request.target.traffic else None

    def chunks(self, header: TelemetryHeader, last: Telemetry | None) -> Iterator[Telemetry]:
        """The parts from where `last` ends up to the header's end."""
        start_s = last.header.until_s if last else header.since_s
        state = last or Telemetry(header, table_of(()), {})
        chunk_s = FIRST_CHUNK_S
        while header.until_s - start_s >= header.every_s:
            count = max(round(min(chunk_s, header.until_s - start_s) / header.every_s), 1)
            grid = Grid(start_s, header.every_s, count)
            try:
                chunk = self._ask(grid, first=last is None and start_s == header.since_s)
            except FaultError as error:
                chunk_s = _smaller(count * header.every_s, header.every_s, error)
                continue
            state = self._part(header, state, chunk)
            yield state
            start_s = state.header.until_s
            chunk_s = _next_chunk_s(count * header.every_s, chunk.size)

    def _ask(self, grid: Grid, *, first: bool) -> _Chunk:
        end_s = float(grid.ends_s[-1])
        before_s = max(self._target.window_s, LOOKBACK_S if first else 0.0)
        span_s = end_s - grid.start_s + before_s
        names = (*wanted_names(self._metrics), PROCESS_START)
        target = self._target

        def matching(wanted: Sequence[str], selector: dict[str, str]) -> list[SampleSeries]:
            try:
                return self._source.matching(
                    wanted, selector, at_s=end_s, window_s=span_s, timeout_s=TIMEOUT_S
                )
            except FaultError as error:
                if error.fault.reason is FaultReason.NO_SERIES:
                    return []
                raise

        selector = dict(target.prometheus.selector) if target.prometheus else {}
        engine = matching(names, selector)
        traffic: list[SampleSeries] = []
        if target.traffic is not None and self._traffic is not None:
            both = (self._traffic.arrivals, self._traffic.in_flight)
            traffic = matching(
                [one.name for one in both if one is not None], dict(target.traffic.selector)
            )
        cards: list[SampleSeries] = []
        if target.gpu is not None and target.gpu.source == "dcgm":
            cards = matching([DCGM_UTILISATION.name], dict(target.gpu.selector))
        return _Chunk(grid, engine, traffic, cards)

    def _part(self, header: TelemetryHeader, before: Telemetry, chunk: _Chunk) -> Telemetry:
        """One chunk's rows, and the state behind it."""
        grid = chunk.grid
        engine, outside = Samples(chunk.engine), Samples(chunk.traffic)
        baseline_s = before.header.baseline_s
        if baseline_s is None:
            baseline_s = _baseline_s(grid, [*chunk.engine, *chunk.traffic])
        counting = Counting(
            grid,
            before.carry,
            baseline_s=grid.start_s if baseline_s is None else baseline_s,
            process_start_s=process_starts(engine),
            since_s=header.since_s,
        )
        counts = all_counts(counting, engine, self._metrics, outside, self._traffic)
        histograms = self._histograms(counting, engine)
        seen = seen_windows(grid, chunk.engine) | seen_windows(grid, chunk.traffic)
        rows = [
            _row(grid, index, self._fields(chunk, end_s), header, counts, histograms, seen[index])
            for index, end_s in enumerate(grid.ends_s.tolist())
        ]
        return Telemetry(
            replace(
                header,
                since_s=grid.start_s,
                until_s=float(grid.ends_s[-1]),
                baseline_s=baseline_s,
            ),
            table_of(rows),
            counting.carry,
        )

    def _histograms(
        self, counting: Counting, engine: Samples
    ) -> dict[str, tuple[FloatArray, FloatArray]]:
        found = {}
        for name in HISTOGRAMS:
            for series in specs(self._metrics, name):
                try:
                    buckets = counting.buckets(engine, series)
                except HistogramError as error:
                    self._warnings[f"buckets left out: {error}"] = None
                    continue
                if buckets is not None:
                    found[name] = buckets
        return found

    def _fields(self, chunk: _Chunk, end_s: float) -> Fields:
        """What a controller would have seen at the end of a window."""
        window_s = self._target.window_s

        def cut(series: Sequence[SampleSeries]) -> list[SampleSeries]:
            return [one for row in series if (one := _cut(row, end_s - window_s, end_s))]

        seen = fields_of(
            cut(chunk.engine),
            self._metrics,
            at_s=end_s,
            source="prometheus",
            traffic=self._traffic,
            traffic_series=cut(chunk.traffic),
        )
        cards = mean_utilisation(Samples(cut(chunk.cards)))
        if cards is None:
            return seen
        value, newest_s = cards
        return replace(
            seen,
            values={**seen.values, "gpu_util": value},
            ages_s={**seen.ages_s, "gpu_util": end_s - newest_s},
        )


def _cut(row: SampleSeries, after_s: float, until_s: float) -> SampleSeries | None:
    """The samples of (after_s, until_s]; None without any."""
    start, stop = np.searchsorted(row.at_s, (after_s, until_s), side="right")
    if start == stop:
        return None
    return SampleSeries(
        row.name, row.labels, row.replica, row.at_s[start:stop], row.values[start:stop]
    )


def _row(
    grid: Grid,
    index: int,
    seen: Fields,
    header: TelemetryHeader,
    counts: dict[str, FloatArray],
    histograms: dict[str, tuple[FloatArray, FloatArray]],
    counted: bool,
) -> TelemetryRow:
    """One window; nothing was counted where no sample lies."""
    return TelemetryRow(
        at_s=float(grid.ends_s[index]),
        window_s=header.window_s,
        counted_s=grid.every_s,
        age_s=seen.age_s,
        values=seen.values,
        ages_s=seen.ages_s,
        estimates=seen.estimates,
        counts={name: round(float(row[index])) for name, row in counts.items()} if counted else {},
        histograms={
            name: Buckets(bounds.tolist(), [round(count) for count in rows[index].tolist()])
            for name, (bounds, rows) in histograms.items()
        }
        if counted
        else {},
    )


def _baseline_s(grid: Grid, series: Sequence[SampleSeries]) -> float | None:
    """When what stands on a page is no longer its past; None while there is no page."""
    if not series:
        return None
    first_s = min(float(one.at_s[0]) for one in series)
    return (
        max(grid.start_s, first_s + GRACE_WINDOWS * grid.every_s)
        if (first_s > grid.start_s)
        else grid.start_s
    )


def _smaller(chunk_s: float, every_s: float, error: FaultError) -> float:
    """Half the chunk, if it was too large for the server.

    Raises:
        FaultError: it is another trouble, or the chunk is one window already.
    """
    too_large = error.fault.reason in (FaultReason.TIMED_OUT, FaultReason.INVALID)
    if not too_large or chunk_s < 2 * every_s:
        raise error
    return chunk_s / 2


def _next_chunk_s(chunk_s: float, samples: int) -> float:
    """A chunk that brings CHUNK_SAMPLES, at most four times as long as the last one."""
    fit_s = chunk_s * CHUNK_SAMPLES / max(samples, 1)
    return min(fit_s, 4 * chunk_s, LONGEST_CHUNK_S)
