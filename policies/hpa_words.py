"""Why HPA wants what it wants, in one line, of the numbers that it used."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from policies.hpa_behavior import Paced
from policies.hpa_metrics import MILLI, Evaluation, MetricAnswer
from policies.hpa_spec import HpaConfig, MetricSpec
from tuner.core.figures import figure
from tuner.core.protocols import FloatArray


@dataclass(frozen=True)
class HpaWords:
    """What one call of HpaRule worked with; called with a row, it tells that row."""

    config: HpaConfig
    n: FloatArray
    """`(n,)` replicas in force."""
    low: float
    high: float
    answer: Evaluation
    paced: Paced

    def __call__(self, row: int) -> str:
        """See `RuleResult.why`."""
        n = float(self.n[row])
        if np.isnan(n):
            return "the replicas in force are not known"
        if n <= 0:
            return "scaled to 0 by hand, which hpa leaves"
        if n < self.low:
            return f"{n:.0f} is below the fewest replicas allowed: {self.low:.0f}"
        if n > self.high:
            return f"{n:.0f} is above the most replicas allowed: {self.high:.0f}"
        pairs = list(zip(self.config.metrics, self.answer.answers, strict=True))
        broken = [_missing(m, a, row) for m, a in pairs if np.isnan(a.desired[row])]
        valid = [(m, a) for m, a in pairs if not np.isnan(a.desired[row])]
        if not valid:
            return ", ".join(broken)
        metric, answer = max(valid, key=lambda pair: float(pair[1].desired[row]))
        said = [_metric(metric, answer, self.config, row)]
        if np.isnan(self.answer.desired[row]):
            return "; ".join([*said, f"not followed down: {', '.join(broken)}"])
        return "; ".join([", ".join([*said, *self._pace(row)]), *broken])

    def _pace(self, row: int) -> list[str]:
        """What windows, rates and bounds did to the recommendation; empty where nothing."""
        raw = float(self.answer.desired[row])
        stable, to = float(self.paced.stable[row]), float(self.paced.replicas[row])
        words = []
        if stable != raw:
            window_s = self.config.down_window_s if stable > raw else self.config.up_window_s
            words.append(f"held at {stable:.0f} by the window of {window_s:g} s")
        if to < stable:
            words.append(f"at most {to:.0f} {'allowed' if to == self.high else 'in one step'}")
        if to > stable:
            words.append(f"at least {to:.0f} {'allowed' if to == self.low else 'in one step'}")
        return words


def _missing(metric: MetricSpec, answer: MetricAnswer, row: int) -> str:
    if metric.type == "Pods":
        return f"no replica reports {metric.name}"
    if np.isnan(answer.usage[row]):
        return f"no value for {' + '.join(metric.fields)}"
    per_replica = metric.target_type == "AverageValue"
    return f"no value for {'status_replicas' if per_replica else 'ready_replicas'}"


def _metric(metric: MetricSpec, answer: MetricAnswer, config: HpaConfig, row: int) -> str:
    """One valid metric against its target, up to the count it asks for."""
    usage, over = float(answer.usage[row]) / MILLI, float(answer.over[row])
    target = figure(metric.target)
    asks = f"{max(float(answer.desired[row]), 0.0):.0f}"
    if metric.type == "Pods":
        measured = f"{metric.name} is {figure(usage)} each on {_replicas(over)} that report"
        ratio = usage / metric.target
    elif metric.target_type == "Value":
        measured = amount(metric, usage)
        # Within the tolerance HPA does not look at how many are ready.
        measured += "" if np.isnan(over) else f" with {_replicas(over)} ready"
        target = f"{target} for all together"
        ratio = usage / metric.target
    elif over > 0:
        measured = f"{amount(metric, usage)} over {_replicas(over)} is {figure(usage / over)}"
        measured += " each" if over > 1 else ""
        ratio = usage / over / metric.target
    else:
        measured, ratio = f"{amount(metric, usage)} and no replica yet", 1.0
        target = f"{target} each"
    guessed = int(answer.guessed[row])
    if guessed:
        stays = ", no move" if answer.stays[row] else ""
        return f"{measured}, target {target}; with {guessed} more guessed{stays}: {asks}"
    if answer.stays[row]:
        width = config.up_tolerance if ratio > 1 else config.down_tolerance
        return f"{measured}, within {100 * width:.3g} % of the target {target}: {asks}"
    return f"{measured}, target {target}: {asks}"


def amount(metric: MetricSpec, value: float) -> str:
    """A measurement with its name; a rate reads as one."""
    if all(name.endswith("_per_s") for name in metric.fields):
        rates = [name.removesuffix("_per_s").replace("_", " ") for name in metric.fields]
        return f"{figure(value)} {' + '.join(rates)}/s"
    return f"{' + '.join(metric.fields)} {figure(value)}"


def _replicas(count: float) -> str:
    return f"{count:.0f} replica{'' if count == 1 else 's'}"
