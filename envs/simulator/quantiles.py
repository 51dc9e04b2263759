"""Latency quantiles of what is seen: the rule of `tuner.core.histograms`, number by number.

Here, because numpy takes longer over a few buckets of many envs than all else that a look costs.
"""

from __future__ import annotations

import math

import numpy as np

from envs.simulator.buckets import BOUNDS, E2E, FIRST_BUCKET, TPOT, TTFT
from envs.simulator.compiled import inlined
from envs.simulator.places import nth
from tuner.core.protocols import FloatArray, IntArray
from tuner.core.scrapes import QUANTILES

_KINDS = {"ttft_s": TTFT, "tpot_s": TPOT, "e2e_s": E2E}
_KIND_OF = tuple(_KINDS[histogram] for histogram, _ in QUANTILES.values())
_FIRST = np.array([FIRST_BUCKET[kind] for kind in _KIND_OF])
_LAST = np.array([FIRST_BUCKET[kind] + len(BOUNDS[kind]) for kind in _KIND_OF])
_SHARE = np.array([share for _, share in QUANTILES.values()])
_LOWER_S = np.concatenate([edge for bounds in BOUNDS for edge in ([0.0], bounds)])
"""Lower bound of each bucket."""


@inlined
def write_quantiles(counts: IntArray, out: FloatArray) -> None:
    """Read all of `QUANTILES` off one env's histograms.

    Args:
        counts: `(BUCKETS,)` observations per bucket.
        out: `(len(QUANTILES),)` takes them, in s; NaN without observations, the last bound for a
            rank beyond it.
    """
    for place in range(len(_SHARE)):
        last = _LAST[nth(place)]
        total = 0
        for bucket in range(_FIRST[nth(place)], last + 1):
            total += counts[nth(bucket)]
        rank = _SHARE[nth(place)] * total
        bucket = _FIRST[nth(place)]
        up_to = counts[nth(bucket)]
        while bucket < last and up_to < rank:
            bucket += 1
            up_to += counts[nth(bucket)]
        if total == 0:
            out[nth(place)] = math.nan
        elif bucket == last:
            out[nth(place)] = _LOWER_S[nth(last)]
        else:
            within = counts[nth(bucket)]
            lower_s = _LOWER_S[nth(bucket)]
            width_s = _LOWER_S[nth(bucket + 1)] - lower_s
            out[nth(place)] = lower_s + width_s * ((rank - (up_to - within)) / within)
