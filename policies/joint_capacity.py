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
from tuner.core.protocols import BoolArray, FloatArray
from tuner.core.slo import Slo

FULL = 0.85
"""Mean share (0-1) of slots and of KV cache at which queues begin. Lengths differ, so of a fleet
with an even number of requests on each replica some still have no room. Steady simulated loads on
4 and 12 replicas lose their objectives with 0.75 to 0.85 taken of what runs out first."""
LATE = 0.01
"""Share (0-1) of the requests whose first token may be late."""
FEWEST = 0.1
"""Fewest sequences at once, in the mean, that are tried: a replica that idles nine tenths of its
time."""
POINTS, PASSES = 24, 2
"""Batches tried per pass, evenly spaced by ratio, and passes, each between two neighbours of the
one before: to 1.5 % of the batch at a ceiling of 128."""
ROUNDS = 5
"""Of `paid` from the rate and of the rate from `paid`. One more moves the rate by less than 1 %
even where launches are most of the work."""


@dataclass(frozen=True)
class Carried:
    """The most that a replica carries, for n mixes of requests; NaN where a mix is not known."""

    qps: FloatArray
    """`(n,)` requests/s."""
    batch: FloatArray
    """`(n,)` sequences at once, in the mean."""
    room: FloatArray
    """`(n,)` sequences that fit, in the mean, whatever the objectives say; at least `batch`."""
    tpot_s: FloatArray
    """`(n,)` s/token."""


@dataclass(frozen=True)
class JointCapacity:
    """One replica under objectives."""

    model: PerfModel
    slo: Slo

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
        slots = np.minimum(batch_size, self.model.batch_size_max)
        cap = np.maximum(FULL * np.minimum(slots, self.model.kv_tokens / held_tokens), FEWEST)
        prompt_s = self.prefill_extra_s(prompt_tokens)[:, None]
        mix = (prompt_s, output_tokens[:, None], held_tokens[:, None])
        low, high = np.full_like(cap, FEWEST), cap
        rows = np.arange(len(cap))
        for _ in range(PASSES):
            batch = low[:, None] * (high / low)[:, None] ** np.linspace(0, 1, POINTS)
            *_, meets = self._at(batch, *mix)
            last = np.where(meets, np.arange(POINTS), 0).max(axis=1)
            low, high = batch[rows, last], batch[rows, np.minimum(last + 1, POINTS - 1)]
        *_, meets = self._at(low[:, None], *mix)
        best = np.where(meets[:, 0], low, cap)
        qps, tpot_s, _ = self._at(best[:, None], *mix)
        return Carried(qps[:, 0], best, cap, tpot_s[:, 0])

    def _at(
        self, batch: FloatArray, prompt_s: FloatArray, output: FloatArray, held: FloatArray
    ) -> tuple[FloatArray, FloatArray, BoolArray]:
        """Requests/s with so many sequences at once, TPOT, and whether the objectives are met.

        All are `(n, batches)`, or `(n, 1)` where a mix has one; prompt_s is what a prompt adds.
        """
        step_s = self.model.itl_s(np.maximum(batch, 1.0), held)
        decode_s = output * step_s / batch
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
        return qps, tpot_s, (tpot_s <= self.slo.tpot_s) & (late <= LATE)
