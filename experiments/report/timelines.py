"""The plot of what happened when: load, replicas, batch size and latency over the run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.comparison import Comparison
from experiments.report.colours import Colour, token
from experiments.result import Bools, Floats, TickTable

POINTS = 480
"""Points of a line: about one per two pixels of a wide page, so that a week stays as light as an
hour."""
MARKS = 300
"""Guardrail marks shown per policy; a policy that trips at every tick needs no more to be seen."""
GAP = 40
"""Pixels between two panels; the title of the lower one stands there."""


@dataclass
class _Panel:
    """One panel of the figure, top to bottom."""

    title: str
    height: int
    axis: dict[str, Any] = field(default_factory=dict)
    traces: list[dict[str, Any]] = field(default_factory=list)
    line: float | None = None
    """Where to draw the objective."""


@dataclass(frozen=True, eq=False)
class _Buckets:
    """Ticks gathered into at most POINTS buckets of equal length."""

    x: Floats
    """`(buckets,)` start of each bucket on the plot's axis."""
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
        sums = np.bincount(self.of, weights=counts, minlength=len(self.x))
        return [_short(value) for value in sums * 60 / self.length_s]

    def _gathered(self, values: Floats, take: Any) -> list[float | None]:
        gathered: list[float | None] = [None] * len(self.x)
        known = ~np.isnan(values)
        if not known.any():
            return gathered
        places, starts = np.unique(self.of[known], return_index=True)
        for place, part in zip(places, np.split(values[known], starts[1:]), strict=True):
            gathered[int(place)] = _short(take(part))
        return gathered


def timelines(comparison: Comparison, colours: Mapping[str, Colour]) -> dict[str, Any]:
    """A plotly figure of the first seed's runs; colours are names of CSS variables."""
    runs = {o.name: o.runs[0].ticks for o in comparison.policies}
    ticks = {name: run for name, run in runs.items() if run is not None and len(run)}
    if not ticks:
        return {"data": [], "layout": {"height": 40}}
    end_s = max(float(run.at_s[-1]) for run in ticks.values())
    unit_s, unit = (3600.0, "hours") if end_s > 2 * 3600 else (60.0, "minutes")
    buckets = {name: _buckets(run, end_s, unit_s) for name, run in ticks.items()}
    slo = comparison.config.run.slo
    most = max(
        float(np.nanmax(np.append(run.wanted_replicas, run.ready_replicas + run.starting_replicas)))
        for run in ticks.values()
    )
    panels = [
        _load_panel(next(iter(ticks.values())), next(iter(buckets.values()))),
        *(
            _replica_panel(name, ticks[name], buckets[name], colours, unit_s, most)
            for name in ticks
        ),
        _lines(
            "Batch size, sequences",
            80,
            {n: b.last(ticks[n].batch_size) for n, b in buckets.items()},
            buckets,
            colours,
            step=True,
        ),
        _lines(
            "TTFT p99, s (log scale)",
            150,
            {n: b.worst(ticks[n].ttft_p99_s) for n, b in buckets.items()},
            buckets,
            colours,
            log=True,
            line=slo.ttft_s,
        ),
        _lines(
            "TPOT p99, s per token",
            120,
            {n: b.worst(ticks[n].tpot_p99_s) for n, b in buckets.items()},
            buckets,
            colours,
            line=slo.tpot_s,
        ),
        _lines(
            "Missed requests per minute",
            110,
            {n: b.per_minute(ticks[n].missed) for n, b in buckets.items()},
            buckets,
            colours,
        ),
    ]
    return _stacked(panels, f"{unit} since the first second of the trace", end_s / unit_s)


def _buckets(ticks: TickTable, end_s: float, unit_s: float) -> _Buckets:
    count = min(POINTS, len(ticks))
    length_s = end_s / count
    # A tick describes the time before it.
    start_s = np.maximum(ticks.at_s - ticks.length_s, 0.0)
    of = np.minimum((start_s / length_s + 1e-9).astype(np.int64), count - 1)
    x = np.round(np.arange(count) * length_s / unit_s, 5)
    return _Buckets(x, of, length_s)


def _load_panel(ticks: TickTable, buckets: _Buckets) -> _Panel:
    """The load, which is the same for every policy."""
    panel = _Panel("Load, arrivals per second", 120, {"rangemode": "tozero"})
    panel.traces.append(
        {
            "name": "arrivals/s",
            "x": buckets.x.tolist(),
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
    most: float,
) -> _Panel:
    """Replicas of one policy: ready and starting as areas, wanted as a line, guardrail marks."""
    colour = token(name, colours)
    panel = _Panel(f"Replicas of {name}", 110)
    # One scale for all policies: areas are costs, and are compared by eye.
    panel.axis = {"range": [0, 1.25 * most]}
    x = buckets.x.tolist()
    ready, starting = buckets.mean(ticks.ready_replicas), buckets.mean(ticks.starting_replicas)
    area = {"x": x, "line": {"width": 0, "shape": "hv"}, "stackgroup": name}
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
            "x": x,
            "y": buckets.last(ticks.wanted_replicas),
            "text": _moves(ticks, buckets),
            "line": {"color": colour, "width": 1.5, "shape": "hv"},
            "hovertemplate": "%{y:.0f} %{text}",
        },
        _marks("a guardrail tripped", ticks.tripped, ticks, unit_s, 1.2 * most, "--bad"),
        _marks("a limit clamped", ticks.clamped, ticks, unit_s, 1.1 * most, "--ink-soft"),
    ]
    return panel


def _moves(ticks: TickTable, buckets: _Buckets) -> list[str]:
    """Per bucket the last decision in it that moved something, in its own words."""
    texts = [""] * len(buckets.x)
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
    line: float | None = None,
) -> _Panel:
    """One line per policy."""
    panel = _Panel(title, height, {"type": "log", "dtick": 1} if log else {"rangemode": "tozero"})
    panel.line = line
    for name, values in series.items():
        panel.traces.append(
            {
                "name": name,
                "x": buckets[name].x.tolist(),
                "y": list(values),
                "line": {
                    "color": token(name, colours),
                    "width": 1.4,
                    "shape": "hv" if step else "linear",
                },
                "hovertemplate": "%{y:.3g}",
            }
        )
    return panel


def _stacked(panels: Sequence[_Panel], x_title: str, end: float) -> dict[str, Any]:
    """The panels one below the other on one horizontal axis, so that zooming moves all."""
    top, bottom = 24, 50
    inner = sum(panel.height for panel in panels) + GAP * (len(panels) - 1)
    data: list[dict[str, Any]] = []
    shapes: list[dict[str, Any]] = []
    titles: list[dict[str, Any]] = []
    layout: dict[str, Any] = {}
    offset = 0
    for number, panel in enumerate(panels, start=1):
        high, low = 1 - offset / inner, 1 - (offset + panel.height) / inner
        offset += panel.height + GAP
        suffix = "" if number == 1 else str(number)
        layout[f"yaxis{suffix}"] = {
            "domain": [max(low, 0.0), high],
            "anchor": "x",
            "nticks": 4,
            **panel.axis,
        }
        titles.append(_title(panel.title, high))
        data += [
            {"type": "scatter", "mode": "lines", **trace, "yaxis": f"y{suffix}"}
            for trace in panel.traces
        ]
        if panel.line is not None:
            shapes.append(_objective(panel.line, f"y{suffix}"))
            layout[f"yaxis{suffix}"] |= _range_with(panel)
    layout |= {
        "height": inner + top + bottom,
        "xaxis": {
            "title": {"text": x_title},
            "range": [0, end],
            "anchor": f"y{len(panels)}" if len(panels) > 1 else "y",
            "showspikes": True,
            "spikemode": "across",
            "spikethickness": 1,
            "spikedash": "solid",
            "spikecolor": "--rule",
        },
        "shapes": shapes,
        "annotations": titles,
        "hovermode": "x unified",
        "showlegend": False,
        "margin": {"l": 56, "r": 16, "t": top, "b": bottom},
    }
    return {"data": data, "layout": layout}


def _title(text: str, y: float) -> dict[str, Any]:
    return {
        "text": text,
        "xref": "paper",
        "yref": "paper",
        "x": 0,
        "xanchor": "left",
        "y": y,
        "yanchor": "bottom",
        "showarrow": False,
        "align": "left",
        "font": {"size": 13, "color": "--ink"},
    }


def _objective(value: float, axis: str) -> dict[str, Any]:
    return {
        "type": "line",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "yref": axis,
        "y0": value,
        "y1": value,
        "line": {"color": "--bad", "width": 1.3, "dash": "dash"},
    }


def _range_with(panel: _Panel) -> dict[str, Any]:
    """A range that shows the objective as well as the lines."""
    line = panel.line
    values = [v for trace in panel.traces for v in trace["y"] if v is not None]
    if line is None or not values:
        return {}
    if panel.axis.get("type") == "log":
        positive = [v for v in (*values, line) if v > 0]
        low, high = math.log10(min(positive) / 1.3), math.log10(max(positive) * 1.3)
        return {"range": [low, high]}
    return {"range": [0, 1.1 * max(*values, line)]}


def _short(value: float) -> float:
    """To four digits: a pixel shows three, and the page stays small."""
    return float(f"{value:.4g}")
