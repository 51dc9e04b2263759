"""Cases of one replica with times worked out by hand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tests.envs.simulator import small
from tests.envs.simulator.small import Case
from tests.envs.simulator.test_exactness import assert_same_requests, run_both
from tuner.core.profile import ServingProfile, StepTime

TEN_MS = StepTime(base_s=0.01, per_prefill_token_s=1e-4)
"""10 ms per step and 0.1 ms per prompt token in it."""


@dataclass(frozen=True)
class Worked:
    """Requests on one replica, and what becomes of them; times in ms from the start."""

    rows: tuple[tuple[float, int, int], ...]
    """Arrival in ms, prompt, output."""
    first_ms: tuple[float, ...]
    """When each first token comes, not from its arrival."""
    end_ms: tuple[float, ...]
    profile: ServingProfile
    preemptions: tuple[int, ...] | None = None
    hits: tuple[int, ...] | None = None
    batch_size: int = 4


def check(worked: Worked) -> None:
    """The compiled rules and the naive loop both give these times."""
    rows = [(at_ms / 1e3, prompt, output) for at_ms, prompt, output in worked.rows]
    tick = small.tick(batch_size=worked.batch_size)
    case = Case(small.trace(rows, worked.hits), worked.profile, (tick,), slots=1, end_s=10.0)
    fleet, oracle = run_both(case)
    assert_same_requests(fleet, oracle)
    seen = fleet.requests()
    arrival_ms = 1e3 * case.trace.arrival_s
    np.testing.assert_allclose(arrival_ms + 1e3 * seen.ttft_s, worked.first_ms, atol=1e-9)
    np.testing.assert_allclose(arrival_ms + 1e3 * seen.e2e_s, worked.end_ms, atol=1e-9)
    if worked.preemptions is not None:
        assert seen.preemptions.tolist() == list(worked.preemptions)
