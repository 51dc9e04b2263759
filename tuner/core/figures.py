"""Numbers as people read them; `--json` has them raw."""

from __future__ import annotations

WHOLE_FROM = 9999.5
"""Above it four significant digits would hide whole units, or end in an exponent."""
SMALL_BELOW = 1e-4
"""Below it they would end in an exponent too."""
SMALL_DIGITS = 8


def figure(value: float | None) -> str:
    """About four significant digits, thousands apart; empty where there is no value."""
    if value is None:
        return ""
    if 0 < abs(value) < SMALL_BELOW:
        return f"{value:.{SMALL_DIGITS}f}".rstrip("0").rstrip(".")
    return f"{value:,.4g}" if abs(value) < WHOLE_FROM else f"{value:,.0f}"
