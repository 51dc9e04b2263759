"""What each replica has counted since its start, as its own metrics page must tell it.

The simulator keeps sums of the whole fleet and the outcome of each request. What ended is counted
from the outcomes, at the replica that served it. Output tokens of requests that still run are known
for the whole fleet only: they are divided among the replicas by how long each one's requests have
been decoding, and what a replica was given too much or too little is made up for as its requests
end. So a replica's own token counter is right within the tokens of its running requests, and the
sum over the replicas is exact at any time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from envs.simulator import E2E_BOUNDS_S, TPOT_BOUNDS_S, TTFT_BOUNDS_S
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
    ended_output_tokens: int = 0
    """Of the requests that ended here; `output_tokens` follows it."""
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

    def first_tokens(self, prompt_tokens: IntArray, ttft_s: FloatArray) -> None:
        """Requests that gave their first token."""
        self.prompt_tokens += int(prompt_tokens.sum())
        self.ttft_s.observe(ttft_s)

    def ended(
        self,
        prompt_tokens: IntArray,
        output_tokens: IntArray,
        e2e_s: FloatArray,
        tpot_s: FloatArray,
    ) -> None:
        """Requests that gave their last token."""
        several = output_tokens > 1
        self.finished += len(output_tokens)
        self.ended_output_tokens += int(output_tokens.sum())
        self.e2e_s.observe(e2e_s)
        self.tpot_s.observe(tpot_s[several])
        self.itl_s.observe(tpot_s[several], output_tokens[several] - 1)
        self.prompt_length.observe(prompt_tokens.astype(np.float64))
        self.output_length.observe(output_tokens.astype(np.float64))


def divided(total: int, weights: FloatArray) -> IntArray:
    """`total` in whole shares as near to the weights as can be; they sum up to it.

    Args:
        total: >= 0.
        weights: `(n,)` >= 0, n >= 1; where all are 0, they count as equal.
    """
    if not weights.sum() > 0:
        weights = np.ones(len(weights))
    exact = total * (weights / weights.sum())
    shares: IntArray = np.floor(exact).astype(np.int64)
    left = total - int(shares.sum())
    shares[np.argsort(shares - exact, kind="stable")[:left]] += 1
    return shares


def give_output_tokens(
    tokens: int, counters: Sequence[Counters], decoding_s: FloatArray, running_tokens: int
) -> None:
    """Divide the tokens that the fleet generated since the last look; no counter ever falls.

    Args:
        tokens: since the last look, all replicas.
        counters: of the replicas that may have generated them.
        decoding_s: `(replicas,)` seconds for which their running requests have been decoding.
        running_tokens: output tokens so far of all requests that have not ended.
    """
    total_s = decoding_s.sum()
    running = running_tokens * decoding_s / total_s if total_s > 0 else decoding_s
    behind = [
        max(one.ended_output_tokens + share - one.output_tokens, 0.0)
        for one, share in zip(counters, running, strict=True)
    ]
    for one, share in zip(counters, divided(tokens, np.array(behind)), strict=True):
        one.output_tokens += int(share)


@dataclass(eq=False)
class OpenRequests:
    """Requests of the trace that have arrived and not ended, one row each."""

    request: NDArray[np.intp] = field(default_factory=lambda: np.zeros(0, np.intp))
    """Row of the trace."""
    owner: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Number of the instance that has it; -1: still at the router."""
    begun: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    """Whether its first token has been counted."""
    preemptions: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Counted so far."""

    def arrived(self, first: int, count: int) -> None:
        """Add the trace's rows from `first` on."""
        self.request = np.append(self.request, np.arange(first, first + count, dtype=np.intp))
        self.owner = np.append(self.owner, np.full(count, -1, np.int64))
        self.begun = np.append(self.begun, np.zeros(count, np.bool_))
        self.preemptions = np.append(self.preemptions, np.zeros(count, np.int64))

    def keep(self, which: NDArray[np.bool_]) -> None:
        """Drop the others."""
        self.request, self.owner = self.request[which], self.owner[which]
        self.begun, self.preemptions = self.begun[which], self.preemptions[which]
