"""The load that is measured with where no trace is given."""

from __future__ import annotations

import numpy as np

from tuner.core.trace import Trace
from tuner.data import read_trace


def poisson_load(qps: float, seconds: float, seed: int) -> Trace:
    """Poisson arrivals with the lengths of the reference workload: lognormal prompts (median 400,
    sigma 0.8, 16..3000 tokens) and outputs (median 150, sigma 0.7, 4..1000 tokens)."""
    rng = np.random.default_rng(seed)
    count = int(qps * seconds)
    prompts = rng.lognormal(np.log(400), 0.8, count).clip(16, 3000)
    outputs = rng.lognormal(np.log(150), 0.7, count).clip(4, 1000)
    return Trace(
        arrival_s=np.cumsum(rng.exponential(1 / qps, count)),
        prompt_tokens=prompts.astype(np.int32),
        output_tokens=outputs.astype(np.int32),
        name=f"poisson, {qps:g} requests/s, seed {seed}",
    )


def trace_or_poisson(path: str | None, *, qps: float = 10.0, hours: float = 12.0) -> Trace:
    """The trace in that file, or `poisson_load` if there is none."""
    return read_trace(path) if path else poisson_load(qps, hours * 3600.0, 0)
