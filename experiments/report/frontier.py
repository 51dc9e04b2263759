"""The plot of cost against attainment: policies with their intervals, rules as whole curves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import chain
from typing import Any

from experiments.comparison import Comparison, PolicyOutcome
from experiments.curve import envelope
from experiments.oracles import CLAIRVOYANT
from experiments.readable import figure
from experiments.report.colours import Colour, token
from experiments.sweep import Sweep

LOWEST = 0.9
"""Attainment at which the plot begins, unless a policy lies lower: nobody operates below it."""
_TICKS = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999, 0.99999)


def frontier(comparison: Comparison, colours: Mapping[str, Colour]) -> dict[str, Any]:
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
    costs = [o.mean("gpu_hours") for o in comparison.policies] + [
        point.figures.gpu_hours
        for sweep in comparison.tuning.curves.values()
        for point in sweep.points
        if point.figures.slo_attainment >= lowest
    ]
    dearest = 1.3 * max(o.mean("gpu_hours") for o in comparison.policies)
    right = min(max(costs), dearest)
    margin = 0.06 * max(right - min(costs), 0.05 * right)
    return {
        "data": data,
        "layout": {
            "height": 460,
            "xaxis": {
                "title": {"text": "cost, GPU hours to the last arrival"},
                "range": [min(costs) - margin, right + margin],
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
