"""Requests that a proxy in front of the replicas holds open: what serverless autoscalers count."""

from __future__ import annotations

import numpy as np

from tuner.core.observation import ObservationArrays
from tuner.core.protocols import FloatArray


def ongoing(now: ObservationArrays) -> FloatArray:
    """`(n,)` requests sent and not answered, served or waiting anywhere; NaN where not known.

    `in_flight`, which a gateway sees; without one the engines' own `running + queue_depth`, which
    misses what waits in front of them.
    """
    seen = now.column("in_flight")
    inside = now.column("running") + now.column("queue_depth")
    found = np.where(np.isfinite(seen), seen, inside)
    return np.where(np.isfinite(found), found, np.nan)
