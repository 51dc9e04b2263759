"""Figures as people read them: percent, milliseconds, thousands."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from experiments.statistics import Interval

NOTHING = "n/a"
MINUS = "\N{MINUS SIGN}"


def figure(metric: str, value: float) -> str:
    """A metric's value with its unit; `n/a` where there is none."""
    return f"{number(metric, value)}{unit(metric, value)}"


def interval(metric: str, bounds: Interval | None, around: float) -> str:
    """Both bounds in the unit in which `around`, the figure itself, is shown; `n/a` for none."""
    if bounds is None:
        return NOTHING
    return f"{number(metric, bounds[0], around)} to {number(metric, bounds[1], around)}"


def shown_interval(metric: str, bounds: Interval | None, around: float) -> str:
    """The interval for a table: empty where there is none, or it is narrower than the digits."""
    if bounds is None or number(metric, bounds[0], around) == number(metric, bounds[1], around):
        return ""
    return interval(metric, bounds, around)


def unit(metric: str, value: float) -> str:
    """The unit that a value of this size is read in, with a space in front."""
    if not math.isfinite(value):
        return ""
    if metric == "slo_attainment":
        return " %"
    if metric.endswith("_s"):
        return " ms" if _in_ms(metric, value) else " s"
    # Hours of GPUs and replicas and counts are named where they stand: their unit is their name.
    return " /s" if metric == "goodput_qps" else ""


def number(metric: str, value: float, scale: float | None = None) -> str:
    """A metric's value without its unit.

    Args:
        scale: size that decides on unit and digits; None: the value itself.
    """
    if not math.isfinite(value):
        return NOTHING
    size = abs(value if scale is None else scale)
    if metric == "slo_attainment":
        return _signed(_percentage(value))
    if metric.endswith("_s"):
        if _in_ms(metric, size):
            return _signed(f"{1000 * value:.{0 if size >= 0.1 else 1}f}")
        return _signed(f"{value:,.{_digits(size)}f}")
    if metric in ("goodput_qps", "gpu_hours", "replica_hours"):
        return _signed(f"{value:,.{_digits(size)}f}")
    if metric.endswith("_tokens") and size >= 1e6:
        return _signed(f"{value / 1e6:,.{_digits(size / 1e6)}f} M")
    whole = float(value).is_integer()
    return _signed(f"{value:,.0f}" if whole else f"{value:,.1f}")


def difference(metric: str, value: float) -> str:
    """A difference with its sign; shares in points."""
    if not math.isfinite(value):
        return NOTHING
    sign = "+" if value > 0 else ""
    text = f"{sign}{number(metric, value)}"
    return f"{text} points" if metric == "slo_attainment" else f"{text}{unit(metric, value)}"


def difference_interval(metric: str, bounds: Interval | None) -> str:
    """Bounds of a difference with their signs."""
    if bounds is None:
        return NOTHING
    low, high = bounds
    scale = max(abs(low), abs(high))
    texts = [("+" if bound > 0 else "") + number(metric, bound, scale) for bound in (low, high)]
    end = " points" if metric == "slo_attainment" else unit(metric, scale)
    return f"{texts[0]} to {texts[1]}{end}"


def percent(share: float, digits: int = 1) -> str:
    """A ratio as percent: 0.123 is 12.3 %."""
    return _signed(f"{100 * share:.{digits}f}") + " %"


def signed_percent(share: float) -> str:
    """A change with its sign: 0.123 is +12.3 %."""
    return ("+" if share > 0 else "") + percent(share)


def setting_text(value: object) -> str:
    """The value of an option or of a configuration's key."""
    if value is None:
        return "not set"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str | Mapping | tuple | list) and not value:
        return "none"
    return str(value)


def brief(value: float) -> str:
    """A setting in a sentence: four digits, more only of whole thousands."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def duration(seconds: float, digits: int = 3) -> str:
    """A span in the unit that reads best."""
    for unit_s, name, least in ((86400, "days", 2), (3600, "h", 1), (60, "min", 1)):
        if seconds >= least * unit_s:
            return f"{seconds / unit_s:.{digits}g} {name}"
    return f"{seconds:.{digits}g} s"


def listed(names: Sequence[str], word: str = "and") -> str:
    """`a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {word} {names[-1]}"


def clock(seconds: float) -> str:
    """A moment of the trace: 3725 is 1:02:05."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def _percentage(share: float) -> str:
    """Two decimals, and more where they would call nearly all all: 0.99998 is 99.998."""
    digits = 2
    while 0.99 < share < 1 and round(100 * share, digits) == 100 and digits < 6:
        digits += 1
    return f"{100 * share:.{digits}f}"


def _in_ms(metric: str, value: float) -> bool:
    return metric.startswith("tpot") or abs(value) < 1


def _digits(size: float) -> int:
    """Decimals that leave four digits of a value of this size, two decimals at most."""
    if size >= 1000:
        return 0
    return 1 if size >= 100 else 2


def _signed(text: str) -> str:
    return text.replace("-", MINUS) if text.startswith("-") else text
