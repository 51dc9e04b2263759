"""Observation fields from raw samples: pure arithmetic, the same for every metrics source.

Counters: the increase over the samples of the window, where a value below the one before is a
restart and counts whole (the rule of Prometheus' `increase`, promql/functions.go, without its
extrapolation), divided by the time between the first and the last sample, not by the nominal
window. Gauges: the newest sample. Quantiles: bucket increases summed over the replicas, read as
`histogram_quantile` reads them.

A *page* is what is scraped at once: all its series share their sample times. That tells apart what
single series cannot: a series that begins after its page did was born at zero, a page that begins
after the other pages belongs to a replica that was not there before.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

import numpy as np

from tuner.core.errors import TunerError
from tuner.core.faults import Fault, FaultReason
from tuner.core.histograms import histogram_quantiles
from tuner.core.protocols import FloatArray
from tuner.core.scrapes import QUANTILES, SILENT_INTERVALS
from tuner.engines.engine import Metrics, Series
from tuner.live.metrics.samples import SampleSeries

HISTOGRAMS = ("ttft_s", "tpot_s", "e2e_s", "prompt_length", "output_length")
"""The histograms of `Metrics`."""

COUNTERS = ("arrived", "finished", "failed", "prompt_tokens", "output_tokens", "preemptions")
"""The counters of `Metrics`."""

GAUGES = ("running", "waiting", "kv_cache_usage", "e2e_p99_s")
"""The gauges of `Metrics`."""

Page = tuple[str, str, str]
"""Replica, and the labels `instance` and `job` that Prometheus gives to each scrape target."""


@dataclass(frozen=True)
class Traffic:
    """Requests as a gateway or the client side counts them."""

    arrivals: Series
    """Counter."""
    in_flight: Series | None = None
    """Gauge."""


@dataclass(frozen=True)
class Fields:
    """What one look at the samples gives; what is absent was not measured."""

    values: Mapping[str, float] = field(default_factory=dict)
    """By names of FIELDS."""
    ages_s: Mapping[str, float] = field(default_factory=dict)
    """Field -> age of its newest sample."""
    estimates: tuple[str, ...] = ()
    replicas: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Replica -> values by names of REPLICA_FIELDS."""
    age_s: float | None = None
    """Age of the engines' newest sample."""
    heard: frozenset[str] = frozenset()
    """Replicas that have a page which is not silent."""
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True, eq=False)
class Histogram:
    """Increases of one histogram, summed over replicas."""

    bounds: FloatArray
    """`(buckets,)` upper bounds in our unit, rising, without infinity."""
    counts: FloatArray
    """`(buckets + 1,)` observations per bucket, the last above every bound."""


def wanted_names(metrics: Metrics) -> tuple[str, ...]:
    """Every sample name that the fields of this engine are made from, sorted."""
    names = {series.name for kind in (*COUNTERS, *GAUGES) for series in specs(metrics, kind)}
    names |= {f"{series.name}_bucket" for kind in HISTOGRAMS for series in specs(metrics, kind)}
    return tuple(sorted(names))


def specs(metrics: Metrics, kind: str) -> tuple[Series, ...]:
    """The series behind one member of `Metrics`, none where the engine does not have it."""
    found = getattr(metrics, kind)
    if found is None:
        return ()
    return found if isinstance(found, tuple) else (found,)


def page_of(series: SampleSeries) -> Page:
    """The page that a series stands on."""
    return (series.replica, series.labels.get("instance", ""), series.labels.get("job", ""))


class Samples:
    """Series of one window, indexed, with what their pages say about time.

    Args:
        series: of one source; each with at least one sample.
    """

    def __init__(self, series: Iterable[SampleSeries]) -> None:
        self._by_name: dict[str, list[SampleSeries]] = defaultdict(list)
        self._longest: dict[Page, SampleSeries] = {}
        self._first: dict[Page, float] = {}
        self._last: dict[Page, float] = {}
        for one in series:
            if not len(one.at_s):
                continue
            self._by_name[one.name].append(one)
            page = page_of(one)
            seen = self._longest.get(page)
            if seen is None or len(one.at_s) > len(seen.at_s):
                self._longest[page] = one
            first, last = float(one.at_s[0]), float(one.at_s[-1])
            self._first[page] = min(first, self._first.get(page, first))
            self._last[page] = max(last, self._last.get(page, last))
        intervals = [
            (self._last[page] - self._first[page]) / (len(one.at_s) - 1)
            for page, one in self._longest.items()
            if len(one.at_s) > 1
        ]
        self.interval_s = float(np.median(intervals)) if intervals else np.inf
        """Between two scrapes of a page; infinite where no page has two samples."""
        self.newest_s = max(self._last.values(), default=None)
        """Time of the newest sample; None without any."""
        self._oldest_s = min(self._first.values(), default=0.0)

    def named(self, series: Series, suffix: str = "") -> list[SampleSeries]:
        """Series of that name whose labels fit."""
        found = self._by_name.get(series.name + suffix, [])
        if not series.labels:
            return found
        return [
            one
            for one in found
            if all(one.labels.get(label) == value for label, value in series.labels.items())
        ]

    def risers(self, series: Series) -> list[SampleSeries]:
        """Counters of that name that can be seen to rise, or not to."""
        return [row for row in self.named(series) if len(row.at_s) > 1 or self.born(row)]

    def span_s(self, page: Page) -> float:
        """Seconds that increases of this page are spread over.

        From its first to its last sample, and for a replica that came or went within the window
        the time that it was away: its mean over the window is what adds up with the others'.
        """
        first_s, last_s = self._first[page], self._last[page]
        lead_s, trail_s = first_s - self._oldest_s, (self.newest_s or last_s) - last_s
        away_s = sum(gap for gap in (lead_s, trail_s) if gap > SILENT_INTERVALS * self.interval_s)
        return last_s - first_s + away_s

    def born(self, series: SampleSeries) -> bool:
        """Whether a series begins after its page: a counter that was zero before.

        Only where the page was read both before and at its first sample: series that merely share
        a page's labels, and not its sample times, prove nothing.
        """
        first_s, times = series.at_s[0], self._longest[page_of(series)].at_s
        return bool(first_s > times[0] and first_s in times)

    def fresh(self, series: SampleSeries) -> bool:
        """Whether the newest sample of a series still says how things are."""
        return self._is_fresh(float(series.at_s[-1]))

    def heard(self) -> set[str]:
        """Replicas that have a page which is not silent."""
        return {page[0] for page, last_s in self._last.items() if self._is_fresh(last_s)}

    def _is_fresh(self, last_s: float) -> bool:
        silent_s = (self.newest_s or last_s) - last_s
        return silent_s <= SILENT_INTERVALS * self.interval_s

    def increases(self, rows: Sequence[SampleSeries]) -> FloatArray:
        """`(rows,)` how far each counter rose within the window, restarts counted whole."""
        risen = np.zeros(len(rows))
        by_length: dict[int, list[int]] = defaultdict(list)
        for index, row in enumerate(rows):
            by_length[len(row.values)].append(index)
            if self.born(row):
                risen[index] = row.values[0]
        for length, indices in by_length.items():
            if length > 1:
                values = np.stack([rows[index].values for index in indices])
                risen[indices] += steps(values).sum(axis=1)
        return risen


def steps(values: FloatArray) -> FloatArray:
    """`(..., samples - 1)` rises of counters between samples; a value that fell counts whole."""
    rise = np.diff(values, axis=-1)
    return np.where(rise < 0, values[..., 1:], rise)


def fields_of(
    series: Iterable[SampleSeries],
    metrics: Metrics,
    *,
    at_s: float,
    source: str = "metrics",
    current: Collection[str] | None = None,
    traffic: Traffic | None = None,
    traffic_series: Iterable[SampleSeries] = (),
) -> Fields:
    """The fields that samples tell of, except replica counts and settings.

    Args:
        series: the engines' samples of one window.
        metrics: what the engine calls things.
        at_s: now; ages count from here.
        source: name of the metrics source, for faults.
        current: replicas whose gauges count; None takes all that are seen. Counters of a replica
            that has left within the window count all the same.
        traffic: names at the gateway or client, if there is one.
        traffic_series: its samples.
    """
    engine = Samples(series)
    draft = _Draft(at_s)
    _rates(draft, engine, metrics)
    replicas = _levels(draft, engine, metrics, current)
    _latencies(draft, engine, metrics, source)
    _reckoned_latency(draft, engine, metrics, current)
    _arrivals(draft, engine, metrics, Samples(traffic_series), traffic)
    age_s = None if engine.newest_s is None else at_s - engine.newest_s
    return Fields(
        values=draft.values,
        ages_s=draft.ages_s,
        estimates=tuple(draft.estimates),
        replicas=replicas,
        age_s=age_s,
        heard=frozenset(engine.heard()),
        faults=tuple(draft.faults),
    )


@dataclass
class _Draft:
    """Fields under way."""

    at_s: float
    values: dict[str, float] = field(default_factory=dict)
    ages_s: dict[str, float] = field(default_factory=dict)
    estimates: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def put(self, name: str, value: float | None, rows: Sequence[SampleSeries]) -> None:
        """Note a field read off these rows; None and NaN leave it absent."""
        if value is None or not np.isfinite(value) or not rows:
            return
        self.values[name] = float(value)
        self.ages_s[name] = self.at_s - max(float(row.at_s[-1]) for row in rows)

    def estimate(self, name: str, value: float, ages_of: Collection[str]) -> None:
        """Note a field worked out from others; it is as old as the oldest of them."""
        self.values[name] = value
        self.ages_s[name] = max(self.ages_s[other] for other in ages_of)
        self.estimates.append(name)


class HistogramError(TunerError):
    """Buckets that cannot be read or added; the text says which."""


def histogram(samples: Samples, series: Series) -> Histogram | None:
    """Observations of the window by bucket, summed over replicas and ranks.

    Returns:
        None where no page has the histogram.

    Raises:
        HistogramError: replicas have different buckets, or a bound is not a number.
    """
    rows = samples.named(series, "_bucket")
    if not rows:
        return None
    bounds = common_bounds(series, rows)
    column = {bound: index for index, bound in enumerate(bounds)}
    cumulative = np.zeros(len(bounds))
    np.add.at(cumulative, [column[bound_of(row)] for row in rows], samples.increases(rows))
    # A page that is written while it is read may show one bucket ahead of the next.
    counts = np.maximum(np.diff(cumulative, prepend=0.0), 0.0)
    return Histogram(series.unit * np.array(bounds[:-1]), counts)


def common_bounds(series: Series, rows: Sequence[SampleSeries]) -> tuple[float, ...]:
    """The bounds that every page has, rising, infinity last."""
    by_page: dict[Page, set[float]] = defaultdict(set)
    for row in rows:
        by_page[page_of(row)].add(bound_of(row))
    by_bounds: dict[tuple[float, ...], str] = {}
    for page, bounds in by_page.items():
        by_bounds.setdefault(tuple(sorted(bounds)), page[0])
    if len(by_bounds) > 1:
        (one, a), (other, b) = list(by_bounds.items())[:2]
        raise HistogramError(
            f"{series.name}: {a or 'one page'} has {_spelled(one)} and {b or 'another'} has "
            f"{_spelled(other)}; buckets must be alike to be added, so run one engine version "
            "with one configuration"
        )
    (found,) = by_bounds
    if len(found) < 2 or not np.isfinite(found[:-1]).all() or found[-1] != np.inf:
        raise HistogramError(
            f"{series.name}: bucket bounds are {_spelled(found)}; expected numbers and +Inf"
        )
    return found


@lru_cache(maxsize=4096)
def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return np.nan


def bound_of(row: SampleSeries) -> float:
    return _number(row.labels.get("le", ""))


def _spelled(bounds: Sequence[float]) -> str:
    head = ", ".join(f"{bound:g}" for bound in bounds[:4])
    return f"{len(bounds)} buckets ({head}{', ...' if len(bounds) > 4 else ''})"


def total_increase(samples: Samples, series: Iterable[Series]) -> float | None:
    """How far counters rose together; None where none has two samples."""
    total, measured = 0.0, False
    for one in series:
        rows = samples.risers(one)
        measured |= bool(rows)
        total += one.unit * float(samples.increases(rows).sum())
    return total if measured else None


def rate(samples: Samples, series: Iterable[Series]) -> float | None:
    """Rise of counters per second, summed; None where none has two samples."""
    total, measured = 0.0, False
    for one in series:
        rows = samples.risers(one)
        measured |= bool(rows)
        spans_s = np.array([samples.span_s(page_of(row)) for row in rows])
        total += one.unit * float((samples.increases(rows) / spans_s).sum())
    return total if measured else None


def _rows(samples: Samples, series: Iterable[Series]) -> list[SampleSeries]:
    return [row for one in series for row in samples.named(one)]


def _rates(draft: _Draft, samples: Samples, metrics: Metrics) -> None:
    for name, kind in (
        ("prompt_tokens_per_s", "prompt_tokens"),
        ("output_tokens_per_s", "output_tokens"),
        ("preemptions_per_s", "preemptions"),
    ):
        found = specs(metrics, kind)
        draft.put(name, rate(samples, found), _rows(samples, found))
    finished = total_increase(samples, metrics.finished)
    if finished is None or not metrics.failed:
        return
    # A counter of failures may come into being with the first failure: absent means none.
    failed = total_increase(samples, metrics.failed) or 0.0
    if finished + failed > 0:
        rows = _rows(samples, (*metrics.finished, *metrics.failed))
        draft.put("error_rate", failed / (finished + failed), rows)


def _levels(
    draft: _Draft, samples: Samples, metrics: Metrics, current: Collection[str] | None
) -> dict[str, dict[str, float]]:
    """Note the gauges; returns them by replica, under the names of REPLICA_FIELDS."""
    replicas: dict[str, dict[str, float]] = defaultdict(dict)
    for name, series in (("running", metrics.running), ("queue_depth", metrics.waiting)):
        rows = _live_rows(samples, series, current)
        for replica, ranks in _by_replica(rows, series).items():
            replicas[replica][name] = sum(ranks)
        draft.put(name, sum(found.get(name, 0.0) for found in replicas.values()), rows)
    rows = _live_rows(samples, metrics.kv_cache_usage, current)
    means = {
        replica: float(np.mean(ranks))
        for replica, ranks in _by_replica(rows, metrics.kv_cache_usage).items()
    }
    for replica, mean in means.items():
        replicas[replica]["kv_cache_usage"] = mean
    draft.put("kv_cache_usage", float(np.mean(list(means.values()))) if means else None, rows)
    return dict(replicas)


def _live_rows(
    samples: Samples, series: Series | None, current: Collection[str] | None
) -> list[SampleSeries]:
    """Rows of a gauge that still hold: of replicas that are there, and not silent."""
    if series is None:
        return []
    return [
        row
        for row in samples.named(series)
        if samples.fresh(row) and (current is None or row.replica in current)
    ]


def _by_replica(rows: Sequence[SampleSeries], series: Series | None) -> dict[str, list[float]]:
    """Newest values of a gauge in our unit, one per rank."""
    ranks: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        ranks[row.replica].append((series.unit if series else 1.0) * float(row.values[-1]))
    return ranks


def _latencies(draft: _Draft, samples: Samples, metrics: Metrics, source: str) -> None:
    for kind in ("ttft_s", "tpot_s", "e2e_s"):
        for series in specs(metrics, kind):
            try:
                found = histogram(samples, series)
            except HistogramError as error:
                draft.faults.append(Fault(source, FaultReason.BAD_ANSWER, str(error)))
                continue
            if found is not None:
                _quantiles(draft, kind, found, samples.named(series, "_bucket"))


def _quantiles(draft: _Draft, kind: str, found: Histogram, rows: Sequence[SampleSeries]) -> None:
    asked = {name: q for name, (of, q) in QUANTILES.items() if of == kind}
    values = histogram_quantiles(tuple(asked.values()), found.bounds, found.counts[None, :])[0]
    for name, value in zip(asked, values, strict=True):
        draft.put(name, value, rows)


def _reckoned_latency(
    draft: _Draft, samples: Samples, metrics: Metrics, current: Collection[str] | None
) -> None:
    """Note the quantile that engines without a histogram reckon themselves.

    Quantiles of replicas cannot be added: the highest is an upper bound of the fleet's, and with
    several replicas an estimate.
    """
    rows = _live_rows(samples, metrics.e2e_p99_s, current)
    values = [value for ranks in _by_replica(rows, metrics.e2e_p99_s).values() for value in ranks]
    values = [value for value in values if np.isfinite(value)]
    if values and "e2e_p99_s" not in draft.values:
        draft.put("e2e_p99_s", max(values), rows)
        draft.estimates += ["e2e_p99_s"] if len(values) > 1 else []


def _arrivals(
    draft: _Draft, samples: Samples, metrics: Metrics, outside: Samples, traffic: Traffic | None
) -> None:
    """Note `qps` and `in_flight`, measured where something measures them."""
    if traffic is not None:
        sent = (traffic.arrivals,)
        draft.put("qps", rate(outside, sent), _rows(outside, sent))
        if traffic.in_flight is not None:
            rows = _live_rows(outside, traffic.in_flight, None)
            unit = traffic.in_flight.unit
            draft.put("in_flight", sum(unit * float(row.values[-1]) for row in rows), rows)
    if "qps" not in draft.values and metrics.arrived:
        draft.put("qps", rate(samples, metrics.arrived), _rows(samples, metrics.arrived))
    if "qps" not in draft.values:
        _estimate_arrivals(draft, samples, metrics)
    declared = (("running", metrics.running), ("queue_depth", metrics.waiting))
    levels = [name for name, series in declared if series is not None]
    if "in_flight" not in draft.values and levels and draft.values.keys() >= set(levels):
        draft.estimate("in_flight", sum(draft.values[name] for name in levels), levels)


def _estimate_arrivals(draft: _Draft, samples: Samples, metrics: Metrics) -> None:
    """What came in = what ended + what is there now and was not before.

    Under overload the queue grows by what does not end, so that arrivals stay visible. Where
    requests wait in front of the engine, where no gauge sees them, it is a lower bound.
    """
    ended = (*metrics.finished, *metrics.failed)
    ended_per_s = rate(samples, ended)
    rows = _rows(samples, ended)
    gauges = [series for series in (metrics.running, metrics.waiting) if series is not None]
    levels = [(series.unit, row) for series in gauges for row in samples.named(series)]
    if ended_per_s is None or not levels:
        return
    estimate = max(ended_per_s + _growth_per_s(samples, levels, rows), 0.0)
    draft.put("qps", estimate, [*rows, *(row for _, row in levels)])
    draft.estimates.append("qps")


def _growth_per_s(
    samples: Samples, levels: Sequence[tuple[float, SampleSeries]], ended: Sequence[SampleSeries]
) -> float:
    """Growth of the requests inside the replicas per second, summed.

    A restart loses what was inside; as the counters start from zero again, so does the level.
    """
    restarts: set[tuple[Page, float]] = set()
    for row in ended:
        fell = row.at_s[1:][np.diff(row.values) < 0]
        restarts |= {(page_of(row), float(at_s)) for at_s in fell}
    inside: dict[Page, dict[float, float]] = defaultdict(lambda: defaultdict(float))
    for unit, row in levels:
        level = inside[page_of(row)]
        for at_s, value in zip(row.at_s.tolist(), row.values.tolist(), strict=True):
            level[at_s] += unit * value
    growth = 0.0
    for page, level in inside.items():
        span_s = samples.span_s(page)
        times = sorted(level)
        if span_s > 0:
            before = [0.0 if (page, at_s) in restarts else level[t] for t, at_s in pairwise(times)]
            growth += sum(level[at_s] for at_s in times[1:]) / span_s - sum(before) / span_s
    return growth
