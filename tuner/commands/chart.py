"""A small chart for the terminal: filled columns over time, with both axes."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

BLOCKS = " ▁▂▃▄▅▆▇█"
ASCII = " .:-=+*#@"

UNKNOWN = {BLOCKS: "░", ASCII: "?"}
"""Fills a column without a value, the whole height."""


def columns(
    values: NDArray[np.float64],
    *,
    width: int,
    height: int,
    span_s: float,
    axis: str,
    ascii_only: bool = False,
) -> list[str]:
    """Lines of a chart of `values` over 0 to span_s, the mean of its part in each column.

    Args:
        values: `(points,)` >= 0; NaN is drawn as unknown.
        width: of the lines, in characters.
        height: of the plot, in lines; two lines of axis come below.
        axis: what the values are, with the unit; heads the chart.
    """
    marks = ASCII if ascii_only else BLOCKS
    top = _round_up(float(np.nanmax(values)) if np.isfinite(values).any() else 1.0)
    labels = [f"{top:g}", "0"]
    margin = max(map(len, labels))
    cells = max(1, min(width - margin - 2, len(values)))
    means = _means(values, cells)
    lines = [axis]
    for row in range(height):
        floor = top * (height - 1 - row) / height
        label = labels[0] if row == 0 else labels[1] if row == height - 1 else ""
        line = "".join(_mark(mean, floor, top / height, marks) for mean in means)
        lines.append(f"{label:>{margin}} {'|' if ascii_only else '│'}{line}")
    corner = "+" if ascii_only else "└"
    rule = "-" if ascii_only else "─"
    lines.append(f"{'':>{margin}} {corner}{rule * cells}")
    lines.append(f"{'':>{margin}}  {_time_labels(span_s, cells)}")
    return lines


def duration(seconds: float) -> str:
    """A length of time as people say it: 45 s, 12 min, 16 h 0 min, 3 d 4 h."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 72:
        return f"{hours} h {minutes} min"
    days, hours = divmod(round(seconds / 3600), 24)
    return f"{days} d {hours} h"


def _mark(mean: float, floor: float, step: float, marks: str) -> str:
    if np.isnan(mean):
        return UNKNOWN[marks]
    eighths = int(np.clip(np.ceil((mean - floor) / step * 8 - 1e-9), 0, 8))
    return marks[eighths]


def _means(values: NDArray[np.float64], cells: int) -> list[float]:
    """Mean of the known values in each of `cells` equal parts; NaN where none is known."""
    edges = np.linspace(0, len(values), cells + 1).round().astype(int)
    parts = [values[start:end] for start, end in pairwise(edges)]
    return [float(np.nanmean(part)) if np.isfinite(part).any() else np.nan for part in parts]


def _round_up(value: float) -> float:
    """The next round number."""
    if value <= 0:
        return 1.0
    power = 10.0 ** np.floor(np.log10(value))
    steps = (1, 1.2, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9, 10)
    return float(next(step for step in steps if step * power >= value * (1 - 1e-9)) * power)


def _time_labels(span_s: float, cells: int) -> str:
    """Round times under the axis, each starting at its place."""
    unit, seconds = ("s", 1.0)
    for name, length in (("min", 60.0), ("h", 3600.0), ("d", 86_400.0)):
        if span_s >= 3 * length:
            unit, seconds = name, length
    whole = span_s / seconds
    step = next(s for s in (1, 2, 3, 4, 6, 12, 24, 48, 96, 10**6) if whole / s <= 8)
    line = ""
    for at in np.arange(0, whole + 1e-9, step):
        place = round(at / whole * cells) if whole else 0
        label = f"{at:g} {unit}"
        if not line or len(line) + 2 <= place <= cells + 1 - len(label):
            line = f"{line:<{place}}{label}"
    return line
