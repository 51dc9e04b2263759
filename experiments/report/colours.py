"""Colours of policies: the same policy has the same colour in every report.

The palette is Okabe and Ito's (Color Universal Design, 2008), which people with any common colour
blindness can tell apart, in a darker shade for text on paper and a lighter one for dark screens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Colour:
    """One colour for both themes."""

    light: str
    dark: str
    symbol: str
    """Marker in plots, so that colour is not the only sign."""


FIXED: Mapping[str, Colour] = {
    "static": Colour("#b86e00", "#f0a830", "square"),
    "hpa": Colour("#0072b2", "#56b4e9", "circle"),
}
"""Policies that are in nearly every comparison."""

OTHERS: tuple[Colour, ...] = (
    Colour("#007d5b", "#2fcf9f", "diamond"),
    Colour("#b0447f", "#e793bd", "triangle-up"),
    Colour("#c24a00", "#ff8a4c", "star"),
    Colour("#5a5fc0", "#a5a9ff", "cross"),
    Colour("#6b6b00", "#d6d155", "hexagon"),
)
"""For the rest, in the order of the comparison."""


def colours_of(policies: Iterable[str]) -> dict[str, Colour]:
    """A colour for each policy."""
    rest = [name for name in dict.fromkeys(policies) if name not in FIXED]
    given = {name: OTHERS[place % len(OTHERS)] for place, name in enumerate(rest)}
    return {**FIXED, **given}


def token(policy: str, policies: Mapping[str, Colour]) -> str:
    """Name of the CSS variable that holds the policy's colour."""
    return f"--policy-{list(policies).index(policy)}"
