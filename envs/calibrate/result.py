"""What a calibration gives, whatever it was made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tuner.core.profile import ServingProfile

DIGITS = 5
"""Significant digits of a fitted figure: more than its interval bears, and the file stays short."""


@dataclass(frozen=True)
class Coefficient:
    """A fitted figure of a profile with its interval; what kind that is depends on the fit."""

    key: str
    """Its place in the profile, a table's point as `step_time.batch_table[64]`."""
    value: float
    low: float
    high: float


def rounded(value: float) -> float:
    """To DIGITS significant digits, as it is written."""
    return float(f"{value:.{DIGITS}g}")


def calibrated(
    profile: ServingProfile,
    coefficients: Sequence[Coefficient],
    errors: Mapping[str, float],
    origin: Mapping[str, str],
) -> ServingProfile:
    """The profile with intervals, errors and origins of a fit; those of its old step time go."""
    kept = {
        key: text
        for key, text in profile.origin.items()
        if key.partition(".")[0] not in ("step_time", "error") and key not in origin
    }
    return replace(
        profile,
        origin={**kept, **origin},
        error={name: float(f"{value:.3g}") for name, value in errors.items()},
        interval={c.key: (rounded(c.low), rounded(c.high)) for c in coefficients},
    )
