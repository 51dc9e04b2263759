"""The plot of what happened when: load, replicas, batch size and latency over the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.best import ranked
from experiments.comparison import Comparison
from experiments.report.colours import Colour, token
from experiments.result import Bools, Floats, TickTable

POINTS = 2000
"""Points of a line, so that a week stays as light as a day: two per pixel of a wide page, and ten
minutes of a day have more than ten of them when they are zoomed to."""
MARKS = 300
"""Guardrail marks shown per policy; a policy that trips at every tick needs no more to be seen."""


@dataclass
class Panel:
    """One panel of the figure; `timelines.js` puts them together."""

    title: str
    height: int
    axis: dict[str, Any] = field(default_factory=dict)
    traces: list[dict[str, Any]] = field(default_factory=list)
    objective: float | None = None
    """Where to draw one."""
    most: float | None = None
    """Largest count of the panel. Panels that have one share a scale, which follows the largest of
    those shown, since areas are costs and compared by eye; heights of marks are shares of it."""


@dataclass(frozen=True, eq=False)
class _Buckets:
    """Ticks gathered into at most POINTS buckets of equal length."""

    x: Mapping[str, float]
    """Start of the first bucket and step to the next one, on the plot's axis."""
    count: int
    of: NDArray[np.int64]
    """`(ticks,)` bucket of each tick."""
    length_s: float

    def mean(self, values: Floats) -> list[float | None]:
        return self._gathered(values, lambda part: float(np.mean(part)))

    def last(self, values: Floats) -> list[float | None]:
        return self._gathered(values, lambda part: float(part[-1]))

    def worst(self, values: Floats) -> list[float | None]:
        return self._gathered(values, lambda part: float(np.max(part)))

    def per_minute(self, counts: NDArray[np.int64]) -> list[float]:
        sums = np.bincount(self.of, weights=counts, minlength=self.count)
        return [_short(value) for value in sums * 60 / self.length_s]

    def _gathered(self, values: Floats, take: Any) -> list[float | None]:
        gathered: list[float | None] = [None] * self.count
        known = ~np.isnan(values)
        if not known.any():
            return gathered
        places, starts = np.unique(self.of[known], return_index=True)
        for place, part in zip(places, np.split(values[known], starts[1:]), strict=True):
            gathered[int(place)] = _short(take(part))
        return gathered


@dataclass(frozen=True)
class TimeAxis:
    """The horizontal axis of the timelines."""

    end_s: float

    @property
    def unit_s(self) -> float:
        return 3600.0 if self.end_s > 2 * 3600 else 60.0

    @property
    def title(self) -> str:
        unit = "hours" if self.unit_s == 3600 else "minutes"
        return f"{unit} since the first second of the trace"


def time_axis(comparison: Comparison) -> TimeAxis:
    """Up to the last tick of any first run."""
    runs = [outcome.runs[0].ticks for outcome in comparison.policies]
    ends_s = [float(run.at_s[-1]) for run in runs if run is not None and len(run)]
    return TimeAxis(max(ends_s, default=0.0))


def timelines(comparison: Comparison, colours: Mapping[str, Colour]) -> dict[str, Any]:
    """Panels of the first seed's runs; colours are names of CSS variables.

    Each trace holds its policy in `meta`; that of the load, which is everyone's, has none.
    """
    runs = {o.name: o.runs[0].ticks for o in ranked(comparison)}
    ticks = {name: run for name, run in runs.items() if run is not None and len(run)}
    axis = time_axis(comparison)
    end_s, unit_s = axis.end_s, axis.unit_s
    if not ticks:
        return {"data": [], "layout": {"height": 40}}
    buckets = {name: _buckets(run, end_s, unit_s) for name, run in ticks.items()}
    slo = comparison.config.run.slo
    panels = [
        _load_panel(next(iter(ticks.values())), next(iter(buckets.values()))),
        *(_replica_panel(name, ticks[name], buckets[name], colours, unit_s) for name in ticks),
        _lines(
            "Batch size, sequences",
            80,
            {n: b.last(ticks[n].batch_size) for n, b in buckets.items()},
            buckets,
            colours,
            step=True,
        ),
        _lines(
            "Queue, requests waiting",
            110,
            {n: b.worst(ticks[n].queue_depth) for n, b in buckets.items()},
            buckets,
            colours,
        ),
        _lines(
            "TTFT p99, s (log scale)",
            150,
            {n: b.worst(ticks[n].ttft_p99_s) for n, b in buckets.items()},
            buckets,
            colours,
            log=True,
            objective=slo.ttft_s,
        ),
        _lines(
            "TPOT p99, s per token",
            120,
            {n: b.worst(ticks[n].tpot_p99_s) for n, b in buckets.items()},
            buckets,
            colours,
            objective=slo.tpot_s,
        ),
        _lines(
            "Missed requests per minute",
            110,
            {n: b.per_minute(ticks[n].missed) for n, b in buckets.items()},
            buckets,
            colours,
        ),
    ]
    return {
        "panels": [asdict(panel) for panel in panels],
        "x_title": axis.title,
        "end": _short(end_s / unit_s),
    }


def _buckets(ticks: TickTable, end_s: float, unit_s: float) -> _Buckets:
    count = min(POINTS, len(ticks))
    length_s = end_s / count
    # A tick describes the time before it.
    start_s = np.maximum(ticks.at_s - ticks.length_s, 0.0)
    of = np.minimum((start_s / length_s + 1e-9).astype(np.int64), count - 1)
    return _Buckets({"x0": 0, "dx": length_s / unit_s}, count, of, length_s)


def _load_panel(ticks: TickTable, buckets: _Buckets) -> Panel:
    """The load, which is the same for every policy."""
    panel = Panel("Load, arrivals per second", 120, {"rangemode": "tozero"})
    panel.traces.append(
        {
            "name": "arrivals/s",
            **buckets.x,
            "y": buckets.mean(ticks.qps),
            "line": {"color": "--ink-soft", "width": 1.3},
            "fill": "tozeroy",
            "fillcolor": "--wash",
            "hovertemplate": "%{y:.3g}/s",
        }
    )
    return panel


def _replica_panel(
    name: str,
    ticks: TickTable,
    buckets: _Buckets,
    colours: Mapping[str, Colour],
    unit_s: float,
) -> Panel:
    """Replicas of one policy: ready and starting as areas, wanted as a line, guardrail marks."""
    colour = token(name, colours)
    panel = Panel(f"Replicas of {name}", 110)
    held = ticks.ready_replicas + ticks.starting_replicas
    panel.most = float(np.nanmax(np.append(ticks.wanted_replicas, held)))
    ready, starting = buckets.mean(ticks.ready_replicas), buckets.mean(ticks.starting_replicas)
    area = {**buckets.x, "line": {"width": 0, "shape": "hv"}, "stackgroup": name}
    panel.traces += [
        {
            **area,
            "name": "ready",
            "y": ready,
            "fillcolor": f"{colour}/0.45",
            "hovertemplate": "%{y:.3g}",
        },
        {
            **area,
            "name": "starting",
            "y": starting,
            "fillcolor": f"{colour}/0.18",
            "hovertemplate": "%{y:.3g}",
        },
        {
            "name": "wanted",
            **buckets.x,
            "y": buckets.last(ticks.wanted_replicas),
            "text": _moves(ticks, buckets),
            "line": {"color": colour, "width": 1.5, "shape": "hv"},
            "hovertemplate": "%{y:.0f} %{text}",
        },
        _marks("a guardrail tripped", ticks.tripped, ticks, unit_s, 1.2, "--bad"),
        _marks("a limit clamped", ticks.clamped, ticks, unit_s, 1.1, "--ink-soft"),
    ]
    for trace in panel.traces:
        trace["meta"] = name
    return panel


def _moves(ticks: TickTable, buckets: _Buckets) -> list[str]:
    """Per bucket the last decision in it that moved something, in its own words."""
    texts = [""] * buckets.count
    for place, sentence in zip(buckets.of, ticks.sentence, strict=True):
        if not sentence.startswith("no change"):
            texts[int(place)] = f"({sentence})"
    return texts


def _marks(
    label: str, where: Bools, ticks: TickTable, unit_s: float, height: float, colour: str
) -> dict[str, Any]:
    """A stroke at the top of the panel for each tick where a guardrail spoke."""
    places = np.flatnonzero(where)
    if len(places) > MARKS:
        places = places[np.linspace(0, len(places) - 1, MARKS).astype(np.int64)]
    return {
        "name": label,
        "mode": "markers",
        "x": [_short(value) for value in ticks.at_s[places] / unit_s],
        "y": [_short(height)] * len(places),
        "text": [ticks.sentence[place] for place in places],
        "hovertemplate": "%{text}",
        "marker": {
            "symbol": "line-ns-open",
            "size": 7,
            "color": colour,
            "line": {"width": 1.2, "color": colour},
        },
    }


def _lines(
    title: str,
    height: int,
    series: Mapping[str, Sequence[float | None]],
    buckets: Mapping[str, _Buckets],
    colours: Mapping[str, Colour],
    *,
    step: bool = False,
    log: bool = False,
    objective: float | None = None,
) -> Panel:
    """One line per policy."""
    panel = Panel(title, height, {"type": "log", "dtick": 1} if log else {"rangemode": "tozero"})
    panel.objective = objective
    for name, values in series.items():
        panel.traces.append(
            {
                "name": name,
                "meta": name,
                **buckets[name].x,
                "y": list(values),
                "line": {
                    "color": token(name, colours),
                    "width": 1.4,
                    "dash": colours[name].pixels,
                    "shape": "hv" if step else "linear",
                },
                "hovertemplate": "%{y:.3g}",
            }
        )
    return panel


def _short(value: float) -> float:
    """To four digits: a pixel shows three, and the page stays small."""
    return float(f"{value:.4g}")
