"""The simulator's quantiles are those of `tuner.core.histograms`, to the bit."""

from __future__ import annotations

import numpy as np

from envs.simulator.buckets import BOUNDS, BUCKETS, E2E, FIRST_BUCKET, TPOT, TTFT
from envs.simulator.compiled import entry
from envs.simulator.quantiles import write_quantiles
from tuner.core.histograms import histogram_quantile
from tuner.core.protocols import FloatArray, IntArray
from tuner.core.scrapes import QUANTILES

KINDS = {"ttft_s": TTFT, "tpot_s": TPOT, "e2e_s": E2E}


@entry
def quantiles_of(counts: IntArray, out: FloatArray) -> None:
    for row in range(len(counts)):
        write_quantiles(counts[row], out[row])


def test_same_bits_as_the_rule_that_the_live_collector_follows() -> None:
    rng = np.random.default_rng(0)
    # From histograms with a request or none to such that fill every bucket, the last ones too.
    counts = rng.poisson(np.geomspace(0.01, 300.0, 400)[:, None], (400, BUCKETS))
    counts[1::4, : FIRST_BUCKET[E2E]] = 0
    counts[2::4] *= rng.random((100, BUCKETS)) < 0.1
    found = np.empty((len(counts), len(QUANTILES)))
    quantiles_of(counts, found)
    for column, (histogram, share) in enumerate(QUANTILES.values()):
        first, bounds = FIRST_BUCKET[KINDS[histogram]], BOUNDS[KINDS[histogram]]
        of_kind = counts[:, first : first + len(bounds) + 1]
        expected = histogram_quantile(share, bounds, of_kind)
        assert np.isnan(expected).any()
        assert (expected == bounds[-1]).any()
        np.testing.assert_array_equal(found[:, column], expected)
