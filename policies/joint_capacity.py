"""What a replica carries that prefills and decodes at once, within the objectives.

Requests compete for seconds of a replica. With b sequences in its batch one request costs

    output tokens x step(b) / b    its share of the steps, each of which gives b tokens
    + launch x paid + rest         what its prompt adds to the steps that prefill it

and a replica carries one request over that. `launch` is what a prefill adds however short it is.
Prompts that arrive while one runs share the next: with x arrivals in the seconds of a prefill, and
arrivals that are Poisson, a prefill begins every x + exp(-x) arrivals (it lasts x of them, and with
exp(-x) nobody came meanwhile, which costs a wait for the next), so each prompt has paid =
1 / (x + exp(-x)) of a launch. Prefills take a share of the time, and stretch the gap between two
tokens to step(b) / (1 - share). A first token waits for the prefills before it: longer than t with
chance share x exp(-t (1 - share) / prefill), as in a queue M/M/1 (Kleinrock, Queueing Systems 1,
section 3.2).

A larger batch carries more. So the most is carried by the largest that fits (`FULL` of the slots
and of the KV cache) and meets both objectives.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from policies.perf_model import PerfModel
from tuner.core.protocols import FloatArray
from tuner.core.slo import Slo

FULL = 0.85
"""Mean share (0-1) of slots and of KV cache at which queues begin. Lengths differ, so of a fleet
with an even number of requests on each replica some still have no room. Steady simulated loads on
4 and 12 replicas lose their objectives with 0.75 to 0.85 taken of what runs out first."""
LATE = 0.01
"""Share (0-1) of the requests whose first token may be late."""
FEWEST, POINTS = 0.1, 128
"""Mean sequences at once that are tried, evenly spaced by ratio: from a replica that idles nine
tenths of its time up to the ceiling, neighbours 6 % apart at a ceiling of 128."""
ROUNDS = 3
"""Of `paid` from the rate and of the rate from `paid`; a fourth moves the rate by less than 1 %."""


@dataclass(frozen=True)
class Carried:
    """The most that a replica carries, for n mixes of requests; NaN where a mix is not known."""

    qps: FloatArray
    """`(n,)` requests/s."""
    batch: FloatArray
    """`(n,)` sequences at once, in the mean."""
    tpot_s: FloatArray
    """`(n,)` s/token."""


@dataclass(frozen=True)
class JointCapacity:
    """One replica under objectives."""

    model: PerfModel
    slo: Slo

    @cached_property
    def _batches(self) -> FloatArray:
        """`(1, POINTS)` sequences."""
        return np.geomspace(FEWEST, self.model.batch_size_max, POINTS)[None, :]

    @cached_property
    def _steps(self) -> tuple[FloatArray, FloatArray]:
        """`(1, POINTS)` seconds of a step with nothing in the cache, and seconds more for each
        token that a sequence holds there: the law is linear in these."""
        batch = np.maximum(self._batches, 1.0)
        empty_s = self.model.itl_s(batch, np.zeros(1))
        return empty_s, self.model.itl_s(batch, np.ones(1)) - empty_s

    @cached_property
    def _launch_s(self) -> float:
        return float(self.prefill_extra_s(np.ones(1))[0])

    def prefill_extra_s(self, prompt_tokens: FloatArray) -> FloatArray:
        """Seconds that a prompt adds to the steps that prefill it, chunk by chunk."""
        chunks = np.ceil(prompt_tokens / self.model.chunk_tokens)
        alone_s = self.model.itl_s(np.ones(1), np.zeros(1))
        extra_s: FloatArray = self.model.prefill_s(prompt_tokens) - chunks * alone_s
        return np.maximum(extra_s, 0.0)

    def carried(
        self,
        prompt_tokens: FloatArray,
        output_tokens: FloatArray,
        held_tokens: FloatArray,
        batch_size: FloatArray,
    ) -> Carried:
        """The most within the objectives; what fits, where no batch meets them.

        Args:
            prompt_tokens, output_tokens: `(n,)` means of a request, at least 1.
            held_tokens: `(n,)` tokens that a running sequence has in the cache, mean over those
                that run: more than prompt + output / 2, because long answers run longer.
            batch_size: `(n,)` most sequences at once.
        """
        batch, held = self._batches, held_tokens[:, None]
        empty_s, per_held_s = self._steps
        step_s = empty_s + per_held_s * held
        decode_s = output_tokens[:, None] * step_s / batch
        prompt_s = self.prefill_extra_s(prompt_tokens)[:, None]
        launch_s = np.minimum(self._launch_s, prompt_s)
        prefill_s = prompt_s + step_s
        extra_s = prompt_s + np.zeros_like(decode_s)
        for _ in range(ROUNDS):
            arrivals = prefill_s / (decode_s + extra_s)
            paid = 1.0 / (arrivals + np.exp(-arrivals))
            extra_s = prompt_s - launch_s * (1.0 - paid)
        qps = 1.0 / (decode_s + extra_s)
        left = qps * decode_s
        tpot_s = step_s / left
        patience = np.maximum(self.slo.ttft_s / prefill_s - 1.0, 0.0)
        late = (1.0 - left) * np.exp(-patience * left)
        fits = batch <= FULL * batch_size[:, None]
        fits &= batch * held <= FULL * self.model.kv_tokens
        meets = fits & (tpot_s <= self.slo.tpot_s) & (late <= LATE)
        allowed = np.where(meets.any(axis=1, keepdims=True), meets, fits)
        column = np.where(allowed, np.arange(POINTS), 0).max(axis=1)
        rows = np.arange(len(qps))
        return Carried(qps[rows, column], batch[0, column], tpot_s[rows, column])
