"""The load loop of `dynamo-sla`: what a next request would meet on each replica, and on fewer.

ai-dynamo 1.6.1, dynamo/planner/core/load_scaling.py (`_agg_prefill_scaling`, `_agg_decode_scaling`,
`_prefill_load_decision`, `_decode_load_decision`) with the queries of core/perf_model
(`_synthetic_prefill_fpm`, `_synthetic_decode_fpm`). N - 1 survivors have N / (N - 1) times as much
to do each. TTFT is the time until the queue and one prompt more are prefilled beside the decodes;
only what the queue adds to the prompt's own time must keep a share of the objective. ITL is one
iteration with one request more; survivors must also have room for all of it in their cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from policies.dynamo_pool import Sizes, Workers
from policies.perf_model import PerfModel
from policies.tokens import tokens_each
from tuner.core.protocols import BoolArray, FloatArray


@dataclass(frozen=True)
class Latency:
    """One of the two latencies on the replicas of n targets; all `(n,)`."""

    least_s: FloatArray
    """On the replica where a next request would meet the least."""
    most_s: FloatArray
    above: BoolArray
    """Whether it is above the objective on every replica."""
    safe: BoolArray
    """Whether every survivor of a move down would keep it."""


@dataclass(frozen=True)
class LoadLoop:
    """The loop's rule."""

    model: PerfModel
    pool: str
    """aggregated, decode or prefill."""
    ttft_s: float
    """Objectives."""
    itl_s: float
    sensitivity: float
    """Share of an objective, 0-1, that survivors may use up."""

    def latencies(self, workers: Workers, sizes: Sizes) -> dict[str, Latency]:
        """TTFT and ITL, as far as the pool has them."""
        with np.errstate(divide="ignore", invalid="ignore"):
            fewer = workers.ready / (workers.ready - 1)
        more = np.where(workers.ready > 1, fewer, 1.0)[:, None]
        prompt = np.nan_to_num(sizes.prompt_tokens)[:, None]
        found = {}
        if self.pool != "decode":
            found["TTFT"] = self._ttft(workers, more, prompt)
        if self.pool != "prefill":
            found["ITL"] = self._itl(workers, more, prompt, sizes)
        return found

    def _ttft(self, workers: Workers, more: FloatArray, prompt: FloatArray) -> Latency:
        decodes = 0.0 if self.pool == "prefill" else workers.running
        held = 0.0 if self.pool == "prefill" else workers.kv_tokens
        queued, queue_s = workers.queued_tokens, self.model.queue_s
        now_s = queue_s(queued + prompt, decodes + np.zeros(1), held + np.zeros(1))
        own_s = queue_s(prompt, decodes * more, held * more)
        after_s = queue_s(queued * more + prompt, decodes * more, held * more)
        budget_s = (self.ttft_s - own_s) * self.sensitivity
        safe = (budget_s > 0) & (after_s - own_s < budget_s)
        return _latency(workers, now_s, now_s > self.ttft_s, safe)

    def _itl(self, workers: Workers, more: FloatArray, prompt: FloatArray, sizes: Sizes) -> Latency:
        running, held = workers.running, workers.kv_tokens
        # What waits in front of a replica that only decodes is cache it is about to hold.
        coming = (workers.waiting, workers.queued_tokens)
        waits, waits_tokens = coming if self.pool == "decode" else (0.0, 0.0)
        one = np.nan_to_num(tokens_each(held, running, self.model.kv_tokens))
        all_requests = (running + workers.waiting) * more
        all_tokens = np.floor((held + workers.queued_tokens) * more)

        def gap_s(requests: FloatArray, tokens: FloatArray) -> FloatArray:
            if self.pool == "decode":
                return self.model.iteration_s(requests, np.zeros(1), tokens)
            return self.model.mixed_s(requests, tokens, arriving, np.maximum(prompt, 1.0))

        # Prompt tokens of an iteration, in the mean of the fleet; the planner leaves them as they
        # are when it thinks of fewer replicas.
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            each = workers.running.sum(axis=1) / workers.ready
            arriving = np.nan_to_num(each * sizes.prompt_per_output)[:, None]
        now_s = gap_s(running + waits + 1.0, held + waits_tokens + one)
        after_s = gap_s(all_requests + 1.0, all_tokens + one)
        safe = (all_tokens < self.model.kv_tokens) & (after_s < self.itl_s * self.sensitivity)
        return _latency(workers, now_s, now_s > self.itl_s, safe)


def _latency(workers: Workers, now_s: FloatArray, above: BoolArray, safe: BoolArray) -> Latency:
    """Of each replica to of each target."""
    unseen = ~workers.seen
    return Latency(
        workers.least(now_s),
        workers.worst(now_s),
        np.all(above | unseen, axis=1, keepdims=True)[:, 0],
        np.all(safe | unseen, axis=1, keepdims=True)[:, 0],
    )
