"""Quantiles read off histogram buckets, as PromQL's `histogram_quantile` does.

The rule is that of prometheus/promql/quantile.go. Simulator and live collector share it, so that a
trained policy meets the same coarseness in production.
"""

from __future__ import annotations

import numpy as np

from tuner.core.protocols import FloatArray, IntArray


def histogram_quantile(q: float, bounds: FloatArray, counts: IntArray | FloatArray) -> FloatArray:
    """The q-quantile of n histograms, linear inside a bucket.

    Args:
        q: 0-1.
        bounds: `(buckets,)` upper bounds, rising; the lower bound of the first bucket is 0.
        counts: `(n, buckets + 1)` observations per bucket, the last one above every bound.

    Returns:
        `(n,)`; NaN without observations, the last bound for a rank beyond it.
    """
    cumulative = np.cumsum(counts, axis=1)
    rank = q * cumulative[:, -1]
    bucket = np.minimum((cumulative < rank[:, None]).sum(axis=1), len(bounds))
    rows = np.arange(len(counts))
    edges = np.concatenate(([0.0], bounds))
    inside = np.minimum(bucket, len(bounds) - 1)
    before = cumulative[rows, inside] - counts[rows, inside]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (rank - before) / counts[rows, inside]
        value = edges[inside] + (edges[inside + 1] - edges[inside]) * share
    value = np.where(bucket == len(bounds), bounds[-1], value)
    return np.where(cumulative[:, -1] > 0, value, np.nan)
