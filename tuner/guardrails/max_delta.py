"""Limit `max_delta`: the largest step of a knob in one tick."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from tuner.core.decision import Reason, Tick
from tuner.core.protocols import BoolArray, FloatArray


@dataclass(frozen=True)
class Step:
    """Largest change in one tick, by who decides; None is no limit."""

    __pydantic_config__: ClassVar[Mapping[str, object]] = {
        "extra": "forbid",
        "use_attribute_docstrings": True,
    }

    up: int | None = None
    """Largest rise where the policy decides."""
    down: int | None = None
    """Largest fall where the policy decides."""
    fallback_up: int | None = None
    """Largest rise where the fallback decides."""
    fallback_down: int | None = None
    """Largest fall where the fallback decides."""


DEFAULT_STEPS: Mapping[str, Step] = {
    # A surge needs capacity at once, and an idle replica costs money only: up is wider than down.
    "replicas": Step(up=4, down=2),
    # Halving admission in one tick would look like an outage to whoever waits.
    "batch_size": Step(up=64, down=16),
    "threads": Step(up=4, down=4),
    "warmup_requests": Step(up=512, down=512),
}


@dataclass(frozen=True)
class MaxDelta:
    """Steps start from the settings in force, not from what was wanted before.

    The fallback is unlimited unless told otherwise: it is the user's own rule, which may need to
    make up in one step for what the policy left behind.
    """

    steps: Mapping[str, Step] = field(default_factory=lambda: DEFAULT_STEPS)
    name: str = "max_delta"
    reason: Reason = Reason.StepTooLarge

    def interval(self, tick: Tick, fallback: BoolArray) -> tuple[FloatArray, FloatArray]:
        steps = [self.steps.get(name, Step()) for name in tick.now.knobs.names]
        up = np.where(
            fallback[:, None],
            np.array([_width(step.fallback_up) for step in steps]),
            np.array([_width(step.up) for step in steps]),
        )
        down = np.where(
            fallback[:, None],
            np.array([_width(step.fallback_down) for step in steps]),
            np.array([_width(step.down) for step in steps]),
        )
        return tick.now.settings - down, tick.now.settings + up

    def explain(self, tick: Tick, row: int, knob: int, wanted: float, allowed: float) -> str:
        now = tick.now.settings[row, knob]
        return (
            f"{tick.now.knobs.names[knob]} {now:.0f} -> {wanted:.0f} is too large a step "
            f"for one tick: {allowed:.0f}"
        )


def _width(step: int | None) -> float:
    return np.inf if step is None else float(step)
