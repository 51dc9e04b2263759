"""What each replica has counted since its start, as its own metrics page must tell it.

Counters and the buckets of the latency histograms are the simulator's own, exact at any time. It
keeps no lengths, no gaps between tokens and no sums of seconds: these are counted from the outcome
of each request, at the replica that served it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from envs.simulator import E2E_BOUNDS_S, FIRST_BUCKET, TPOT_BOUNDS_S, TTFT_BOUNDS_S
from envs.simulator import Counters as FleetCounters
from tuner.core.protocols import FloatArray, IntArray

ITL_BOUNDS_S = TPOT_BOUNDS_S
"""vLLM gives both histograms the same buckets."""


def length_bounds(most: int) -> FloatArray:
    """1, 2, 5, 10, 20, ... up to `most`: vLLM's buckets of token counts.

    Source: `build_1_2_5_buckets` in vllm/v1/metrics/loggers.py of vllm-project/vllm@v0.33.0.
    """
    bounds = [m * 10**e for e in range(12) for m in (1, 2, 5)]
    return np.array([bound for bound in bounds if bound <= most], dtype=np.float64)


class Histogram:
    """Cumulative since the start: observations per bucket, and their sum."""

    def __init__(self, bounds: FloatArray) -> None:
        self.bounds = bounds
        self.counts = np.zeros(len(bounds) + 1, np.int64)
        """`(buckets + 1,)`, the last one above every bound; not yet summed up."""
        self.sum = 0.0

    def observe(self, values: FloatArray, times: IntArray | None = None) -> None:
        """Count each value in the bucket of the smallest bound that is not below it.

        Args:
            values: `(n,)`.
            times: `(n,)` how often each is observed; None: once.
        """
        bucket = np.searchsorted(self.bounds, values, side="left")
        weights = np.ones(len(values), np.int64) if times is None else times
        np.add.at(self.counts, bucket, weights)
        self.sum += float(np.sum(values * weights))


@dataclass(eq=False)
class Counters:
    """One replica's, since its start."""

    lengths: FloatArray
    """Bounds of the histograms of token counts."""
    prompt_tokens: int = 0
    """Of the requests that gave their first token."""
    output_tokens: int = 0
    finished: int = 0
    preemptions: int = 0
    ttft_s: Histogram = field(init=False)
    tpot_s: Histogram = field(init=False)
    itl_s: Histogram = field(init=False)
    """Every gap of a request counts as its mean one, when it ends: the simulator keeps no gaps."""
    e2e_s: Histogram = field(init=False)
    prompt_length: Histogram = field(init=False)
    output_length: Histogram = field(init=False)

    def __post_init__(self) -> None:
        self.ttft_s = Histogram(TTFT_BOUNDS_S)
        self.tpot_s = Histogram(TPOT_BOUNDS_S)
        self.itl_s = Histogram(ITL_BOUNDS_S)
        self.e2e_s = Histogram(E2E_BOUNDS_S)
        self.prompt_length = Histogram(self.lengths)
        self.output_length = Histogram(self.lengths)

    def read(self, fleet: FleetCounters, slot: int) -> None:
        """Take over what the simulator has counted for the replica in that slot of its env 0."""
        self.prompt_tokens = int(fleet.prompt_tokens[0, slot])
        self.output_tokens = int(fleet.output_tokens[0, slot])
        self.finished = int(fleet.finished[0, slot])
        self.preemptions = int(fleet.preemptions[0, slot])
        latencies = (self.ttft_s, self.tpot_s, self.e2e_s)
        for latency, first in zip(latencies, FIRST_BUCKET, strict=True):
            latency.counts = fleet.counts[0, slot, first : first + len(latency.bounds) + 1]

    def first_tokens(self, ttft_s: FloatArray) -> None:
        """Requests that gave their first token."""
        self.ttft_s.sum += float(ttft_s.sum())

    def ended(
        self,
        prompt_tokens: IntArray,
        output_tokens: IntArray,
        e2e_s: FloatArray,
        tpot_s: FloatArray,
    ) -> None:
        """Requests that gave their last token."""
        several = output_tokens > 1
        self.e2e_s.sum += float(e2e_s.sum())
        self.tpot_s.sum += float(tpot_s[several].sum())
        self.itl_s.observe(tpot_s[several], output_tokens[several] - 1)
        self.prompt_length.observe(prompt_tokens.astype(np.float64))
        self.output_length.observe(output_tokens.astype(np.float64))


@dataclass(eq=False)
class OpenRequests:
    """Requests of the trace that have arrived and not ended, one row each."""

    request: NDArray[np.intp] = field(default_factory=lambda: np.zeros(0, np.intp))
    """Row of the trace."""
    owner: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Number of the instance that has it; -1: still at the router."""
    begun: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    """Whether its first token has been counted."""

    def arrived(self, first: int, count: int) -> None:
        """Add the trace's rows from `first` on."""
        self.request = np.append(self.request, np.arange(first, first + count, dtype=np.intp))
        self.owner = np.append(self.owner, np.full(count, -1, np.int64))
        self.begun = np.append(self.begun, np.zeros(count, np.bool_))

    def keep(self, which: NDArray[np.bool_]) -> None:
        """Drop the others."""
        self.request, self.owner, self.begun = (
            self.request[which],
            self.owner[which],
            self.begun[which],
        )
