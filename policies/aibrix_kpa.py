"""AIBrix KPA: Knative's two windows on a metric of the fleet, or of its pods.

`pkg/controller/podautoscaler/algorithm/kpa.go` in vllm-project/aibrix@e3e10f9e4a. Two variants:
`as-written` compares the value with the target of *one* replica, so that a fleet inside that
replica's dead band keeps its count, and the mean of a pod source is taken for a total: it scales
down under overload. `total-based` compares totals with n times the target and sums a pod source.

Panic only picks the larger of the two windows. AIBrix means never to scale down in it, but keeps
that in an object made anew at every look, so it never holds; nor does it here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from policies.aibrix import (
    DOWN_RATE,
    RESYNC_S,
    SHORTEST_WINDOW_S,
    STABLE_WINDOW_S,
    TOLERANCE,
    UP_RATE,
    AibrixRule,
    Metric,
    Recommendation,
    Source,
    metric_of,
    tolerance_of,
    windows_of,
)
from policies.entries import Entries
from policies.entry import Entry, Load, Parameter, Target
from policies.hpa import DEFAULT_METRIC, DEFAULT_TARGET
from policies.hpa_words import amount
from policies.options import Options
from policies.rule import RulePolicy
from tuner.core.figures import figure
from tuner.core.protocols import BoolArray, FloatArray

NAME = "aibrix-kpa"
VARIANTS = ("as-written", "total-based")
SOURCES: tuple[Source, ...] = ("external", "pod")
PANIC_WINDOW_S = 60.0
PANIC_THRESHOLD = 2.0
"""Panic: the short window is above so many times the long one, or the long one holds nothing."""


@dataclass(frozen=True)
class Kpa:
    """The count that each window asks for; the stable one decides, in panic the larger."""

    tolerance: float = TOLERANCE
    stable_window_s: float = STABLE_WINDOW_S
    panic_window_s: float = PANIC_WINDOW_S
    panic_threshold: float = PANIC_THRESHOLD
    total_based: bool = False
    """Compares with n times the target."""

    def recommend(
        self, metric: Metric, samples: Entries, at_s: FloatArray, n: FloatArray
    ) -> Recommendation:
        stable = samples.mean(at_s, self.stable_window_s)
        short = samples.mean(at_s, self.panic_window_s)
        with np.errstate(divide="ignore", invalid="ignore"):
            panic = (stable <= 0) | (short / stable > self.panic_threshold)
        long_asks, short_asks = self._asks(metric, n, stable), self._asks(metric, n, short)
        raw = np.where(panic, np.fmax(long_asks, short_asks), long_asks)
        most, least = np.maximum(1.0, np.ceil(UP_RATE * n)), np.floor(n / DOWN_RATE)

        def why(row: int) -> str:
            seen = amount(metric.spec, float(stable[row]))
            words = f"{seen} over {self.stable_window_s:g} s, target {figure(metric.target)} each"
            if panic[row]:
                words += f"; panic: {figure(float(short[row]))} over {self.panic_window_s:g} s"
            elif not self._outside(metric, n, stable)[row]:
                of = f"{n[row]:.0f} targets" if self.total_based else "one replica's target"
                words += f"; within {100 * self.tolerance:.3g} % of {of}"
            return f"{words}: {raw[row]:.0f}"

        # Limiting both windows and taking the larger is taking the larger and limiting it.
        return Recommendation(raw, np.clip(raw, least, most), stable / metric.target, why)

    def _asks(self, metric: Metric, n: FloatArray, value: FloatArray) -> FloatArray:
        """`(n,)` replicas for this value."""
        return np.where(self._outside(metric, n, value), np.ceil(value / metric.target), n)

    def _outside(self, metric: Metric, n: FloatArray, value: FloatArray) -> BoolArray:
        """`(n,)` where the value lies outside the dead band."""
        target = metric.target * (n if self.total_based else np.ones_like(n))
        most, least = (1.0 + self.tolerance) * target, (1.0 - self.tolerance) * target
        outside: BoolArray = (value > most) | (value < least)
        return outside


def build(options: Options, target: Target) -> RulePolicy:
    """Policy `aibrix-kpa`.

    Options: `variant` as-written (default) or total-based; `source` external (default), the
    fleet's value, or pod; `metric` and `target`, per replica; `tolerance`; `window_s` and
    `panic_window_s`; `panic_threshold`; `cooldown_s`, which reads its window as AIBrix does.

    Raises:
        ConfigError: an option is unknown or does not fit.
    """
    total_based = options.choice("variant", VARIANTS, "as-written") == "total-based"
    source = options.choice("source", SOURCES, "external")
    metric = metric_of(options, NAME, source=source, name=DEFAULT_METRIC, target=DEFAULT_TARGET)
    windows = windows_of(options, NAME, target.tick_s)
    kpa = Kpa(
        tolerance=tolerance_of(options, NAME),
        stable_window_s=windows.stable_s,
        panic_window_s=options.span(
            "panic_window_s",
            min(PANIC_WINDOW_S, windows.stable_s),
            windows.stable_s,
            SHORTEST_WINDOW_S,
        ),
        panic_threshold=options.above("panic_threshold", PANIC_THRESHOLD),
        total_based=total_based,
    )
    options.finish()
    return RulePolicy(NAME, AibrixRule(replace(metric, summed=total_based), kpa, windows))


def search(load: Load) -> tuple[Parameter, ...]:
    """The target of the default metric, and what the annotations of a PodAutoscaler set."""
    around = load.output_tokens_per_s
    return (
        Parameter("target", around / 2, 3 * around, "output tokens/s per replica", log=True),
        Parameter("tolerance", 0.0, 0.3, ""),
        Parameter("window_s", 30.0, 600.0, "s", log=True),
        Parameter("panic_threshold", 1.1, 4.0, ""),
    )


ENTRY = Entry(build, search, tick_s=RESYNC_S)
