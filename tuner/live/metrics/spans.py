"""Lengths of time and moments as people write them: `15s`, `7d`, `2026-11-01T00:00:00Z`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime

from tuner.core.errors import ConfigError

_UNITS_S: Mapping[str, float] = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_SPAN = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhdw])")


def span_s(option: str, text: str) -> float:
    """Seconds in `90s`, `15m`, `1.5h`, `7d`, `2w`.

    Raises:
        ConfigError: it is none of them, or no time at all.
    """
    found = _SPAN.fullmatch(text.strip())
    seconds = float(found[1]) * _UNITS_S[found[2]] if found else 0.0
    if seconds <= 0:
        raise ConfigError(f"{option} is {text!r}; expected a length such as 15s, 90m, 12h or 7d")
    return seconds


def moment_s(option: str, text: str, now_s: float) -> float:
    """Unix s of an ISO time with a zone, or of a length back from now.

    Raises:
        ConfigError: it is neither.
    """
    if _SPAN.fullmatch(text.strip()):
        return now_s - span_s(option, text)
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ConfigError(
            f"{option} is {text!r}; expected a length back from now such as 7d, or a time such as "
            "2026-11-01T00:00:00Z"
        ) from None
    if moment.tzinfo is None:
        raise ConfigError(
            f"{option} is {text!r}, a time without a zone; add one, such as {text.strip()}Z"
        )
    return moment.timestamp()
