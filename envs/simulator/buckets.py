"""Bucket bounds of the latency histograms: vLLM's own, so that a live fleet's can stand beside.

Source: vllm/v1/metrics/loggers.py of vllm-project/vllm@v0.33.0 (`time_to_first_token_seconds`,
`request_time_per_output_token_seconds`, `e2e_request_latency_seconds`). A value counts in the
bucket of the smallest bound that is not below it; one more bucket (+Inf) takes the rest.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def _bounds(*seconds: float) -> NDArray[np.float64]:
    bounds = np.array(seconds, dtype=np.float64)
    bounds.flags.writeable = False
    return bounds


TTFT_BOUNDS_S = _bounds(
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
TPOT_BOUNDS_S = _bounds(
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5),
    *(0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
E2E_BOUNDS_S = _bounds(
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0),
    *(30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)

BOUNDS = (TTFT_BOUNDS_S, TPOT_BOUNDS_S, E2E_BOUNDS_S)
TTFT, TPOT, E2E = 0, 1, 2
"""Places of the histograms in BOUNDS."""
FIRST_BUCKET = tuple(sum(len(bounds) + 1 for bounds in BOUNDS[:kind]) for kind in range(3))
"""Place of each histogram's first bucket where all three stand in a row."""
BUCKETS = sum(len(bounds) + 1 for bounds in BOUNDS)
