"""The plot of cost against attainment: policies with their intervals, rules as whole curves."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import chain
from statistics import median
from typing import Any

from experiments.comparison import Comparison, PolicyOutcome
from experiments.curve import envelope
from experiments.eligible import BOUNDS
from experiments.oracles import CLAIRVOYANT
from experiments.readable import figure, listed
from experiments.report.colours import Colour, token
from experiments.sweep import Sweep

LOWEST = 0.9
"""Attainment at which the plot begins, unless a policy lies lower: nobody operates below it."""
DEAR = 2.0
"""Cost, in the median of those of note, beyond which a policy is left outside the first view."""
ROOM = 0.15
"""Room beside the outermost, as a share of the range."""
CURVES = 1.25
"""How much further frontiers are shown, in the costs of the outermost."""
_TICKS = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999, 0.99999)


@dataclass(frozen=True)
class CostView:
    """What the cost axis shows at first."""

    low: float
    """GPU hours."""
    high: float
    outside: tuple[str, ...]
    """Policies that lie beyond either end, in the comparison's order."""


def cost_view(comparison: Comparison, usual: Collection[str]) -> CostView:
    """Who reaches the goal, the bounds and the usual ones, with room; one policy that costs many
    times what the others do would push them into a corner.

    Args:
        usual: policies that are inside in any case.
    """
    goal = comparison.config.sweep.goal
    costs = {o.name: o.mean("gpu_hours") for o in comparison.policies}
    of_note = [
        outcome.name
        for outcome in comparison.policies
        if outcome.name in (*usual, *BOUNDS) or outcome.mean("slo_attainment") >= goal
    ] or list(costs)
    dear = DEAR * median(costs[name] for name in of_note)
    inside = [costs[name] for name in of_note if name in usual or costs[name] <= dear]
    least, most = min(inside), max(inside)
    room = ROOM * max(most - least, 0.05 * most)
    low, high = max(0.0, least - room), most + room
    tried = [
        point.figures.gpu_hours
        for sweep in comparison.tuning.curves.values()
        for point in sweep.points
        if point.figures.slo_attainment >= LOWEST
    ]
    # Whoever is hardly further is let in, and the frontiers up to there.
    near = [
        *(cost for cost in costs.values() if low - room <= cost <= high + room),
        *(cost for cost in tried if least / CURVES <= cost <= most * CURVES),
    ]
    low, high = min(low, min(near) - room / 3), max(high, max(near) + room / 3)
    outside = tuple(name for name, cost in costs.items() if not low <= cost <= high)
    return CostView(low, high, outside)


def outside_words(comparison: Comparison, view: CostView) -> str:
    """Who lies outside the first view, and at what cost; empty where nobody does."""
    if not view.outside:
        return ""
    said = [
        f"{name} at {figure('gpu_hours', comparison[name].mean('gpu_hours'))}"
        for name in view.outside
    ]
    verb = "lies" if len(said) == 1 else "lie"
    return f"Outside this view, in GPU hours, {verb} {listed(said)}."


def frontier(
    comparison: Comparison, colours: Mapping[str, Colour], view: CostView
) -> dict[str, Any]:
    """A plotly figure; colours are names of CSS variables.

    The vertical axis counts nines: it is the share of missed requests on a logarithmic scale,
    upside down. A run without a miss lies on the top line.
    """
    top = 0.5 / len(comparison.trace)
    shown = [o.mean("slo_attainment") for o in comparison.policies]
    lowest = min(LOWEST, max(0.0, min(shown) - 0.15))
    goal = comparison.config.sweep.goal
    data = [
        *chain.from_iterable(
            _curve(sweep, top, colours) for sweep in comparison.tuning.curves.values()
        ),
        *(_seeds(outcome, top, colours) for outcome in comparison.policies),
        *(_mean(outcome, top, colours) for outcome in comparison.policies),
    ]
    return {
        "data": data,
        "layout": {
            "height": 460,
            "xaxis": {
                "title": {"text": "cost, GPU hours to the last arrival"},
                "range": [view.low, view.high],
            },
            "yaxis": {
                "title": {"text": "SLO attainment, share of requests"},
                "range": [_height(lowest, top), _height(1.0, top) + 0.15],
                "tickvals": [_height(t, top) for t in (*_TICKS, 1.0) if 1 - t > 2 * top or t == 1],
                "ticktext": [f"{100 * t:g} %" for t in (*_TICKS, 1.0) if 1 - t > 2 * top or t == 1],
            },
            "shapes": [
                {
                    "type": "line",
                    "xref": "paper",
                    "x0": 0,
                    "x1": 1,
                    "y0": _height(goal, top),
                    "y1": _height(goal, top),
                    "line": {"color": "--goal", "width": 1.2, "dash": "dash"},
                }
            ],
            "annotations": [
                {
                    "xref": "paper",
                    # Beside the plot: inside it, a mark may lie anywhere.
                    "x": 1,
                    "xanchor": "left",
                    "xshift": 4,
                    "y": _height(goal, top),
                    "yanchor": "middle",
                    "text": f"goal<br>{100 * goal:g} %",
                    "showarrow": False,
                    "font": {"color": "--goal", "size": 12},
                }
            ],
            "hovermode": "closest",
            "showlegend": False,
            "margin": {"l": 72, "r": 48, "t": 16, "b": 52},
        },
    }


def _height(attainment: float, top: float) -> float:
    """Number of nines: -log10 of the share missed, at most that of half a request."""
    return -math.log10(max(1 - attainment, top))


def _curve(
    sweep: Sweep, top: float, colours: Mapping[str, Colour]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The frontier as a line, and every setting that was tried as small open marks."""
    look, colour = colours[sweep.policy], token(sweep.policy, colours)
    useful = envelope(sweep.points)
    line = {
        "type": "scatter",
        "mode": "lines",
        "name": f"{sweep.policy}, frontier",
        "meta": sweep.policy,
        "x": [point.figures.gpu_hours for point in useful],
        "y": [_height(point.figures.slo_attainment, top) for point in useful],
        "hoverinfo": "skip",
        "line": {
            "color": colour,
            "width": 2.6 if sweep.policy == CLAIRVOYANT else 1.4,
            "dash": look.pixels,
        },
    }
    tried = {
        "type": "scatter",
        "mode": "markers",
        "name": f"{sweep.policy}, every setting tried",
        "meta": sweep.policy,
        "x": [point.figures.gpu_hours for point in sweep.points],
        "y": [_height(point.figures.slo_attainment, top) for point in sweep.points],
        "text": [
            f"{sweep.setting(point.value)}<br>"
            f"{figure('slo_attainment', point.figures.slo_attainment)} at "
            f"{figure('gpu_hours', point.figures.gpu_hours)} GPU hours"
            for point in sweep.points
        ],
        "hovertemplate": "%{text}<extra>one run</extra>",
        "marker": {"color": colour, "size": 6, "opacity": 0.6, "symbol": f"{look.symbol}-open"},
    }
    return line, tried


def _seeds(outcome: PolicyOutcome, top: float, colours: Mapping[str, Colour]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": f"{outcome.name}, each seed",
        "meta": outcome.name,
        "x": [run.figures.gpu_hours for run in outcome.runs],
        "y": [_height(run.figures.slo_attainment, top) for run in outcome.runs],
        "text": [
            f"{outcome.name}, seed {run.seed}<br>"
            f"{figure('slo_attainment', run.figures.slo_attainment)} at "
            f"{figure('gpu_hours', run.figures.gpu_hours)} GPU hours"
            for run in outcome.runs
        ],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {
            "color": token(outcome.name, colours),
            "size": 6,
            "opacity": 0.45,
            "symbol": colours[outcome.name].symbol,
        },
    }


def _mean(outcome: PolicyOutcome, top: float, colours: Mapping[str, Colour]) -> dict[str, Any]:
    attainment, cost = outcome.estimates["slo_attainment"], outcome.estimates["gpu_hours"]
    colour, y = token(outcome.name, colours), _height(attainment.mean, top)
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "markers",
        "cliponaxis": False,
        "name": outcome.name,
        "meta": outcome.name,
        "x": [cost.mean],
        "y": [y],
        "text": [
            f"{outcome.name}, mean over {len(outcome.runs)} seeds<br>"
            f"{figure('slo_attainment', attainment.mean)} at "
            f"{figure('gpu_hours', cost.mean)} GPU hours"
        ],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {
            "color": colour,
            "size": 14,
            "symbol": colours[outcome.name].symbol,
            "line": {"color": "--paper", "width": 1.5},
        },
    }
    if attainment.ci95 is not None:
        low, high = attainment.ci95
        trace["error_y"] = _bar(_height(high, top) - y, y - _height(low, top), colour)
    if cost.ci95 is not None:
        low, high = cost.ci95
        trace["error_x"] = _bar(high - cost.mean, cost.mean - low, colour)
    return trace


def _bar(above: float, below: float, colour: str) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [above],
        "arrayminus": [below],
        "color": colour,
        "thickness": 1.3,
        "width": 5,
    }
