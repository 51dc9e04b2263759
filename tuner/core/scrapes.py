"""What fields are read off scraped samples, and when a page counts as silent.

Simulator and live collector share it, so that a field means the same in both.
"""

from __future__ import annotations

from collections.abc import Mapping

SILENT_INTERVALS = 2.5
"""A page without a sample for so many scrape intervals is silent: its gauges count no more, and at
the edge of a window its replica was away. One lost scrape on top of the phase is not enough: taken
for absence it would lower every rate by an interval's share of the window."""

QUANTILES: Mapping[str, tuple[str, float]] = {
    "ttft_p50_s": ("ttft_s", 0.50),
    "ttft_p95_s": ("ttft_s", 0.95),
    "ttft_p99_s": ("ttft_s", 0.99),
    "tpot_p50_s": ("tpot_s", 0.50),
    "tpot_p99_s": ("tpot_s", 0.99),
    "e2e_p99_s": ("e2e_s", 0.99),
}
"""Field -> histogram, and the quantile to read off it."""
