"""Quantiles read off histogram buckets, as PromQL's `histogram_quantile` does.

The rule is that of prometheus/promql/quantile.go. Simulator and live collector share it, so that a
trained policy meets the same coarseness in production.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tuner.core.protocols import FloatArray, IntArray


def histogram_quantile(q: float, bounds: FloatArray, counts: IntArray | FloatArray) -> FloatArray:
    """`(n,)` the q-quantile of n histograms; see `histogram_quantiles`."""
    return histogram_quantiles((q,), bounds, counts)[:, 0]


def histogram_quantiles(
    qs: Sequence[float], bounds: FloatArray, counts: IntArray | FloatArray
) -> FloatArray:
    """Some quantiles of n histograms, linear inside a bucket.

    Args:
        qs: 0-1 each.
        bounds: `(buckets,)` upper bounds, rising; the lower bound of the first bucket is 0.
        counts: `(n, buckets + 1)` observations per bucket, the last one above every bound.

    Returns:
        `(n, len(qs))`; NaN without observations, the last bound for a rank beyond it.
    """
    cumulative = np.cumsum(counts, axis=1)
    total = cumulative[:, -1]
    rows = np.arange(len(counts))
    edges = np.concatenate(([0.0], bounds))
    found = np.empty((len(counts), len(qs)))
    with np.errstate(divide="ignore", invalid="ignore"):
        for column, q in enumerate(qs):
            rank = q * total
            bucket = np.minimum((cumulative < rank[:, None]).sum(axis=1), len(bounds))
            inside = np.minimum(bucket, len(bounds) - 1)
            within = counts[rows, inside]
            share = (rank - (cumulative[rows, inside] - within)) / within
            value = edges[inside] + (edges[inside + 1] - edges[inside]) * share
            value = np.where(bucket == len(bounds), bounds[-1], value)
            found[:, column] = np.where(total > 0, value, np.nan)
    return found
