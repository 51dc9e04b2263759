"""Limit `bounds`: no knob leaves the range that the operator set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tuner.core.decision import Reason, Tick
from tuner.core.protocols import BoolArray, FloatArray


@dataclass(frozen=True)
class Bounds:
    """The range of each knob, the same for policy and fallback."""

    name: str = "bounds"
    reason: Reason = Reason.OutOfBounds

    def interval(self, tick: Tick, fallback: BoolArray) -> tuple[FloatArray, FloatArray]:
        shape = tick.now.settings.shape
        return np.full(shape, tick.now.knobs.low), np.full(shape, tick.now.knobs.high)

    def explain(self, tick: Tick, row: int, knob: int, wanted: float, allowed: float) -> str:
        spec = tick.now.knobs.specs[knob]
        return f"{spec.name} {wanted:.0f} is outside {spec.low}..{spec.high}: {allowed:.0f}"
