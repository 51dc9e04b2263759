"""Trip `stale_metrics`: the policy is not trusted on data that is old or missing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tuner.core.decision import Reason, Tick
from tuner.core.observation import COLUMN, Observation
from tuner.core.protocols import IntArray

REQUIRED = ("qps", "output_tokens_per_s", "in_flight", "ready_replicas")
"""Fields that exist on every healthy fleet, idle ones too. Latency is not among them: without
traffic there is none, and that is a valid observation."""

RATES = frozenset({"qps", "output_tokens_per_s"})
"""Of those, what is a difference of two looks at counters: the first look of a controller that
reads pages itself has none."""


def lacks_only_rates(observation: Observation) -> bool:
    """Whether nothing is missing but what needs two looks, as after a start."""
    absent = {field for field in REQUIRED if getattr(observation, field) is None}
    return bool(absent) and absent <= RATES and observation.age_s is not None


@dataclass(frozen=True)
class StaleMetrics:
    """Trips when a required field is missing or the newest sample is too old."""

    max_age_s: float = 60.0
    """Four scrapes of 15 s: one lost scrape is normal, four in a row are not."""
    required: tuple[str, ...] = REQUIRED
    name: str = "stale_metrics"

    def check(self, tick: Tick) -> IntArray:
        columns = [COLUMN[field] for field in self.required]
        missing = np.isnan(tick.now.values[:, columns]).any(axis=1) | np.isnan(tick.now.age_s)
        stale = tick.now.age_s > self.max_age_s
        return np.where(
            missing, Reason.MetricsMissing, np.where(stale, Reason.MetricsStale, Reason.Trusted)
        ).astype(np.int64)

    def explain(self, reason: Reason, tick: Tick, row: int) -> str:
        if reason is Reason.MetricsStale:
            return (
                f"the newest sample is {tick.now.age_s[row]:.0f} s old, allowed are "
                f"{self.max_age_s:.0f} s; is the metrics source up?"
            )
        absent = [field for field in self.required if np.isnan(tick.now.values[row, COLUMN[field]])]
        ask = "is every pod scraped?"
        if absent and RATES.issuperset(absent):
            ask = f"a rate needs two looks, so the first tick has none; if it goes on, {ask}"
        return f"no value for {', '.join(absent) or 'any field'}; {ask}"
