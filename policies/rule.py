"""Rules: policies whose arithmetic is written once, over n targets.

The vector environment calls `decide` with all its targets at once; `propose_one` makes a policy of
the same arithmetic for the control loop, as the batch of one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tuner.core.decision import Proposal
from tuner.core.history import History
from tuner.core.knobs import KnobSpace
from tuner.core.observation import ObservationArrays
from tuner.core.protocols import FloatArray


def _silent(row: int) -> str:
    """A rule that does not say why."""
    return ""


@dataclass(frozen=True)
class RuleResult:
    """What a rule wants for n targets."""

    settings: FloatArray
    """`(n, knobs)` wanted values, NaN where the rule leaves the knob alone or cannot tell."""
    raw: FloatArray
    """`(n,)` replicas as computed before windows and rate limits, NaN where it cannot tell."""
    need: FloatArray
    """`(n,)` replicas that the load asks for, not rounded, before any tolerance; NaN likewise."""
    memory: FloatArray
    """`(n, memory_size)` to hand back at the next tick; NaN in an empty place."""
    why: Callable[[int], str] = _silent
    """From a row to how the rule came to it, in one line, of the numbers it used. Never raises.
    Words cost more than the arithmetic, so they are made for who asks: never in training."""


class Rule(Protocol):
    """A policy over arrays. Pure: the same inputs give the same result."""

    @property
    def memory_size(self) -> int:
        """Numbers that the rule remembers between ticks."""

    def decide(self, now: ObservationArrays, memory: FloatArray) -> RuleResult:
        """Settings wanted for n targets.

        Args:
            now: the latest observations.
            memory: `(n, memory_size)`, as returned at the tick before; all NaN at the first.
        """


def empty_memory(rule: Rule, n: int) -> FloatArray:
    """`(n, memory_size)` of NaN: a rule that has seen nothing yet."""
    return np.full((n, rule.memory_size), np.nan)


def replica_bounds(knobs: KnobSpace) -> tuple[float, float]:
    """Fewest and most replicas that a rule may ask for: the knob's range, never 0."""
    spec = knobs["replicas"]
    return float(max(spec.low, 1)), float(max(spec.high, 1))


def propose_one(rule: Rule, history: History) -> Proposal:
    """The rule's word on one target."""
    now = ObservationArrays.of(history.knobs, history.now)
    memory = np.array([history.memory]) if history.memory else empty_memory(rule, 1)
    result = rule.decide(now, memory)
    wanted = {
        name: value
        for name, value in zip(history.knobs.names, result.settings[0].tolist(), strict=True)
        if not math.isnan(value)
    }
    raw = float(result.raw[0])
    return Proposal(
        settings=wanted,
        memory=tuple(result.memory[0].tolist()),
        raw=None if math.isnan(raw) else raw,
        why=result.why(0),
    )


@dataclass(frozen=True)
class RulePolicy:
    """A rule as the control loop's policy."""

    name: str
    rule: Rule

    def propose(self, history: History) -> Proposal:
        return propose_one(self.rule, history)
