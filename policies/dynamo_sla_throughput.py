"""The throughput loop of `dynamo-sla`: a forecast over what one replica carries.

ai-dynamo 1.6.1, dynamo/planner/core/throughput_scaling.py and plugins/builtins/local_planner.py
(`_observe_load`). Every interval adds one point to the forecasts of requests, prompt tokens and
output tokens per request (`dynamo_pool` says how these are known); one without a request repeats
the sizes of the last that had any. An interval in which nothing was measured adds none, and decides
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np

from policies.dynamo_pool import Limits
from policies.entries import GRID_SLACK_S
from policies.perf_model import Capacity, PerfModel
from policies.predictors import Predictor
from policies.tokens import tokens_each
from tuner.core.observation import ObservationArrays
from tuner.core.protocols import BoolArray, FloatArray

INTERVAL_S = 180.0
"""`throughput_adjustment_interval_seconds` of the planner."""

_RATES = ("qps", "prompt_tokens_per_s", "output_tokens_per_s")


@dataclass(frozen=True)
class Forecast:
    """What the loop says now; `(n,)` each, NaN where it is silent but for the last two."""

    qps: FloatArray
    """Requests/s of the next interval."""
    prompt_tokens: FloatArray
    """Of a request, in the mean."""
    output_tokens: FloatArray
    capacity_qps: FloatArray
    """Requests/s that one replica carries; NaN also where the model has no answer."""
    needed: FloatArray
    """Replicas, not rounded; NaN likewise."""
    wish: FloatArray
    """Replicas, within the largest step and the floor; as many as serve where the model has no
    answer."""
    bound: FloatArray
    """Replicas that the latest forecast asked for within the budget; 1 before the first."""
    next_s: FloatArray
    """Seconds until the next one."""


@dataclass(frozen=True)
class _Memory:
    """Named parts of `(n, Throughput.size)` that share its storage."""

    since_s: FloatArray
    """`(n, 1)` when the interval began."""
    looks: FloatArray
    """`(n, 1)` ticks of it with a measurement."""
    sums: FloatArray
    """`(n, 3)` the rates at those ticks, added up."""
    queue: FloatArray
    """`(n, 1)` requests that waited when the interval began."""
    sizes: FloatArray
    """`(n, 2)` prompt and output tokens of a request, of the last interval that had any."""
    bound: FloatArray
    """`(n, 1)` see `Forecast`."""
    requests: FloatArray
    """States of the forecasts."""
    prompts: FloatArray
    outputs: FloatArray


@dataclass(frozen=True)
class Throughput:
    """The loop's rule."""

    model: PerfModel
    pool: str
    """aggregated, decode or prefill."""
    ttft_s: float
    """Objectives."""
    itl_s: float
    predictor: Predictor
    max_delta: int
    """Most replicas up or down at once."""
    limits: Limits

    @property
    def _widths(self) -> tuple[int, ...]:
        return (1, 1, 3, 1, 2, 1, *(self.predictor.size,) * 3)

    @property
    def size(self) -> int:
        """Numbers that it remembers of a target."""
        return sum(self._widths)

    def step(
        self, memory: FloatArray, now: ObservationArrays, ready: FloatArray, queue: FloatArray
    ) -> Forecast:
        """One tick.

        Args:
            memory: `(n, size)`, changed in place.
            now: what was observed.
            ready: `(n,)` replicas that serve.
            queue: `(n,)` requests that wait, as last seen; NaN where never.
        """
        edges = pairwise(accumulate(self._widths, initial=0))
        kept = _Memory(*(memory[:, start:stop] for start, stop in edges))
        first = np.isnan(kept.since_s[:, 0])
        kept.since_s[first, 0] = now.at_s[first]
        kept.bound[first] = 1.0
        kept.looks[first], kept.sums[first], kept.queue[first, 0] = 0.0, 0.0, queue[first]

        rates = np.stack([now.column(name) for name in _RATES], axis=1)
        heard = np.isfinite(rates).all(axis=1)
        kept.looks[heard] += 1
        kept.sums[heard] += rates[heard]
        waited_s = now.at_s - kept.since_s[:, 0]
        over = waited_s >= INTERVAL_S - GRID_SLACK_S
        speaks = over & (kept.looks[:, 0] > 0)
        said = np.full((6, len(over)), np.nan)
        if speaks.any():
            said = np.where(speaks, self._speak(kept, speaks, now, ready, queue), np.nan)

        fits = self.limits.guard(ready, said[-1])
        kept.bound[:, 0] = np.where(np.isnan(fits), kept.bound[:, 0], fits)
        kept.since_s[over, 0] = now.at_s[over]
        kept.looks[over], kept.sums[over], kept.queue[over, 0] = 0.0, 0.0, queue[over]
        next_s = INTERVAL_S - np.where(over, 0.0, waited_s)
        qps, prompt, output, one, needed, wish = said
        bound = kept.bound[:, 0].copy()
        return Forecast(qps, prompt, output, one, needed, wish, bound, next_s)

    def _speak(
        self,
        kept: _Memory,
        speaks: BoolArray,
        now: ObservationArrays,
        ready: FloatArray,
        queue: FloatArray,
    ) -> FloatArray:
        """`(6, n)` the fields of `Forecast` up to `wish`, of the rows at an interval's end."""
        with np.errstate(divide="ignore", invalid="ignore"):
            qps, *tokens_per_s = (kept.sums / kept.looks).T
            let_in_qps = qps - np.nan_to_num(queue - kept.queue[:, 0]) / INTERVAL_S
        most = self.model.kv_tokens
        sizes = np.stack([tokens_each(each, let_in_qps, most) for each in tokens_per_s], axis=1)
        had = speaks & (qps > 0) & (let_in_qps > 0)
        kept.sizes[had] = sizes[had]
        points = (qps * INTERVAL_S, *kept.sizes.T)
        states = (kept.requests, kept.prompts, kept.outputs)
        for state, point in zip(states, points, strict=True):
            state[speaks] = self.predictor.added(state, point)[speaks]
        requests, prompt, output = (self.predictor.forecast(state) for state in states)

        qps = requests / INTERVAL_S
        one = self._capacity(np.ceil(prompt), np.ceil(output), now).qps
        needed = qps / one
        step, floor = self.max_delta, self.limits.min_endpoint
        wish = np.where(np.isnan(needed), ready, np.maximum(np.ceil(needed), floor))
        wish = np.clip(wish, np.maximum(ready - step, 0.0), ready + step)
        return np.stack([qps, prompt, output, one, needed, np.maximum(wish, floor)])

    def _capacity(self, prompt: FloatArray, output: FloatArray, now: ObservationArrays) -> Capacity:
        """Of a replica of the pool; requests of no size have none."""
        prompt = np.where(prompt > 0, prompt, np.nan)
        if self.pool == "prefill":
            return self.model.prefill_capacity(prompt, self.ttft_s)
        batch_size = np.full(len(prompt), np.inf)
        if "batch_size" in now.knobs.names:
            batch_size = now.settings[:, now.knobs.column("batch_size")]
        if self.pool == "decode":
            return self.model.decode_capacity(prompt, output, self.itl_s, batch_size)
        return self.model.capacity(
            prompt, output, ttft_s=self.ttft_s, itl_s=self.itl_s, batch_size=batch_size
        )
