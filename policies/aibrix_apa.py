"""AIBrix APA: n times how far the mean pod is from its target.

`pkg/controller/podautoscaler/algorithm/apa.go` in vllm-project/aibrix@e3e10f9e4a. Two variants:
`as-written` reads the cool-down window the wrong way round, so that scale-downs are not delayed at
all; `hpa-style` reads it as HPA does (`policies.aibrix.cooled`). Neither knows of replicas that
still start: they count in n while the load stays on the others, so a slow start runs away, 2, 4, 8.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from policies.aibrix import (
    DOWN_RATE,
    RESYNC_S,
    STABLE_WINDOW_S,
    TOLERANCE,
    UP_RATE,
    AibrixRule,
    Metric,
    Recommendation,
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
from tuner.core.protocols import FloatArray

NAME = "aibrix-apa"
VARIANTS = ("as-written", "hpa-style")


@dataclass(frozen=True)
class Apa:
    """Scales n by the mean over the window, outside a dead band and at most twofold a step."""

    tolerance: float = TOLERANCE
    window_s: float = STABLE_WINDOW_S

    def recommend(
        self, metric: Metric, samples: Entries, at_s: FloatArray, n: FloatArray
    ) -> Recommendation:
        mean = samples.mean(at_s, self.window_s)
        ratio = mean / metric.target
        need = n * ratio
        up, down = ratio > 1.0 + self.tolerance, ratio < 1.0 - self.tolerance
        raw = np.where(up | down, np.ceil(need), n)
        replicas = np.where(up, np.minimum(raw, np.ceil(UP_RATE * n)), raw)
        replicas = np.where(down, np.maximum(raw, np.floor(n / DOWN_RATE)), replicas)

        def why(row: int) -> str:
            seen = f"{amount(metric.spec, float(mean[row]))} each over {self.window_s:g} s"
            target = f"target {figure(metric.target)}"
            if not (up[row] or down[row]):
                target = f"within {100 * self.tolerance:.3g} % of the {target}"
            return f"{seen}, {target}: {raw[row]:.0f}"

        return Recommendation(raw, replicas, need, why)


def build(options: Options, target: Target) -> RulePolicy:
    """Policy `aibrix-apa` on a pod metric.

    Options: `variant` as-written (default) or hpa-style; `metric`, of each replica, and `target`;
    `tolerance`; `window_s`, over which the metric is averaged; `cooldown_s`.

    Raises:
        ConfigError: an option is unknown or does not fit.
    """
    variant = options.choice("variant", VARIANTS, "as-written")
    metric = metric_of(options, NAME, source="pod", name=DEFAULT_METRIC, target=DEFAULT_TARGET)
    windows = windows_of(options, NAME, target.tick_s)
    apa = Apa(tolerance_of(options, NAME), windows.stable_s)
    options.finish()
    return RulePolicy(NAME, AibrixRule(metric, apa, windows, hpa_style=variant == "hpa-style"))


def search(load: Load) -> tuple[Parameter, ...]:
    """The target of the default metric, and what the annotations of a PodAutoscaler set."""
    around = load.output_tokens_per_s
    return (
        Parameter("target", around / 2, 3 * around, "output tokens/s per replica", log=True),
        Parameter("tolerance", 0.0, 0.3, ""),
        Parameter("window_s", 30.0, 600.0, "s", log=True),
        Parameter("cooldown_s", 0.0, 1800.0, "s"),
    )


ENTRY = Entry(build, search, tick_s=RESYNC_S)
