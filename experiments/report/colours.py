"""Colour, symbol and dash of policies: the same policy looks the same in every report.

No palette holds twenty colours that everyone can tell apart, so none of the signs stands alone:
each policy has a symbol of its own, and its lines a dash. The colours were searched for the largest
distance in OKLab (Ottosson, 2020) between any two, as seen with full colour vision and with each of
the three dichromacies (Machado, Oliveira and Fernandes, 2009); relatives share a hue. Every one of
them has a contrast of 3 and more against its background (WCAG 2.2, 1.4.11). Tests compute both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Dash = Literal["solid", "dot", "dash", "longdash", "dashdot", "longdashdot"]


@dataclass(frozen=True)
class Colour:
    """How a policy looks, in both themes."""

    light: str
    dark: str
    symbol: str
    """Marker in plots, by plotly's name."""
    dash: Dash
    """Of lines, see DASHES."""

    @property
    def pixels(self) -> str:
        """The dash as plotly takes it."""
        if self.dash == "solid":
            return "solid"
        return ",".join(f"{length}px" for length in DASHES[self.dash].split())


FIXED: Mapping[str, Colour] = {
    "static": Colour("#b86e00", "#f0a830", "square", "solid"),
    "static-best": Colour("#5f4b0b", "#a16a12", "diamond-tall", "dash"),
    "hpa": Colour("#0072b2", "#56b4e9", "circle", "solid"),
    "keda": Colour("#4a99d9", "#bcdbfd", "triangle-up", "dash"),
    "kpa": Colour("#1f1988", "#7582c7", "triangle-down", "dashdot"),
    "aibrix-apa": Colour("#bd75b2", "#edb4ce", "pentagon", "longdash"),
    "aibrix-kpa": Colour("#500d5b", "#8663a0", "hexagon", "dot"),
    "wva-v1": Colour("#5a9380", "#75f4bd", "cross", "dashdot"),
    "wva-v2": Colour("#205d6d", "#0f877a", "x", "longdash"),
    "dynamo-easy": Colour("#9e0452", "#e17f72", "triangle-left", "dashdot"),
    "dynamo-sla": Colour("#935d52", "#bf5066", "triangle-right", "longdashdot"),
    "ray-serve": Colour("#5f47cc", "#adc2fb", "hourglass", "longdashdot"),
    "schedule": Colour("#64631b", "#bac67d", "bowtie", "longdash"),
    "planner": Colour("#184e3c", "#8cbc9c", "diamond", "solid"),
    "oracle-a": Colour("#6b7480", "#8d96a1", "star-triangle-up", "dot"),
    "oracle-b": Colour("#16191d", "#e8eaed", "octagon", "longdashdot"),
}
"""Policies with a name of their own."""

OTHERS: tuple[Colour, ...] = (
    Colour("#ea5d5b", "#cc6d4b", "star", "solid"),
    Colour("#9377fe", "#db8ed0", "star-diamond", "longdash"),
    Colour("#2e3801", "#d8e175", "hexagram", "dash"),
    Colour("#56309f", "#6c65c6", "star-square", "dash"),
)
"""For the rest, which are trained bundles, in the order of the comparison."""

DASHES: Mapping[Dash, str] = {
    "solid": "none",
    "dot": "2 2",
    "dash": "6 2",
    "longdash": "12 2",
    "dashdot": "6 2 2 2",
    "longdashdot": "12 2 2 2",
}
"""As SVG's `stroke-dasharray`. Gaps are short: a long one in a jagged line looks like no data."""


def colours_of(policies: Iterable[str]) -> dict[str, Colour]:
    """The look of each policy, those with a name of their own first."""
    names = list(dict.fromkeys(policies))
    rest = [name for name in names if name not in FIXED]
    given = {name: OTHERS[place % len(OTHERS)] for place, name in enumerate(rest)}
    return {**{name: look for name, look in FIXED.items() if name in names}, **given}


def token(policy: str, policies: Mapping[str, Colour]) -> str:
    """Name of the CSS variable that holds the policy's colour."""
    return f"--policy-{list(policies).index(policy)}"


def outline(symbol: str) -> str:
    """The symbol as an SVG path around the origin, about 14 units across.

    Raises:
        KeyError: no policy has it.
    """
    points = _OUTLINES[symbol]
    return "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in points) + "Z"


Points = Sequence[tuple[float, float]]


def _regular(corners: int, *, turn: float = 0.0, size: float = 7.5) -> Points:
    """Corners on a circle, the first one at the top."""
    angles = [2 * math.pi * place / corners + turn for place in range(corners)]
    return [(size * math.sin(angle), -size * math.cos(angle)) for angle in angles]


def _star(tips: int, *, turn: float = 0.0, inner: float = 0.45, size: float = 8.5) -> Points:
    """Tips on a circle, notches on a smaller one."""
    outside = _regular(tips, turn=turn, size=size)
    inside = _regular(tips, turn=turn + math.pi / tips, size=inner * size)
    return [point for pair in zip(outside, inside, strict=True) for point in pair]


def _turned(points: Points, quarters: int) -> Points:
    """Turned clockwise by quarters."""
    for _ in range(quarters):
        points = [(-y, x) for x, y in points]
    return points


_TRIANGLE: Points = [(0, -7), (7.5, 6), (-7.5, 6)]
_PLUS: Points = [
    *((-2.5, -7), (2.5, -7), (2.5, -2.5), (7, -2.5), (7, 2.5), (2.5, 2.5)),
    *((2.5, 7), (-2.5, 7), (-2.5, 2.5), (-7, 2.5), (-7, -2.5), (-2.5, -2.5)),
]
_HOURGLASS: Points = [(-6.5, -6.5), (6.5, -6.5), (-6.5, 6.5), (6.5, 6.5)]

_OUTLINES: Mapping[str, Points] = {
    "circle": _regular(24, size=6.8),
    "square": _regular(4, turn=math.pi / 4, size=8.6),
    "diamond": _regular(4, size=8.5),
    "diamond-tall": [(0, -9), (5, 0), (0, 9), (-5, 0)],
    "triangle-up": _TRIANGLE,
    "triangle-right": _turned(_TRIANGLE, 1),
    "triangle-down": _turned(_TRIANGLE, 2),
    "triangle-left": _turned(_TRIANGLE, 3),
    "pentagon": _regular(5),
    "hexagon": _regular(6),
    "octagon": _regular(8, turn=math.pi / 8),
    "cross": _PLUS,
    "x": [((x - y) * math.sqrt(0.5), (x + y) * math.sqrt(0.5)) for x, y in _PLUS],
    "hourglass": _HOURGLASS,
    "bowtie": _turned(_HOURGLASS, 1),
    "star": _star(5),
    "star-diamond": _star(4),
    "star-square": _star(4, turn=math.pi / 4),
    "star-triangle-up": _star(3),
    "hexagram": _star(6, inner=0.58),
}
