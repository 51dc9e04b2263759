"""What a profile says one replica can do: seconds of its work, requests/s within objectives.

The model that rules with a model of the fleet share. Its seconds are the law of
`tuner.core.profile.StepTime`, without what only a simulated fleet has: jitter, the ramp after a
start, slow replicas, the CPU work in front of the engine. So a rule that asks it knows the fleet as
well as anybody can: its best case, which a model fitted while serving does not reach.

The searches for a capacity are those of NVIDIA Dynamo's planner (ai-dynamo 1.6.1,
dynamo/planner/core/perf_model/engine_query.py) over every batch size. One token per sequence and
iteration: no speculative decoding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tuner.core.profile import ServingProfile
from tuner.core.protocols import BoolArray, FloatArray
from tuner.core.step_time import seconds_by_batch, seconds_by_prefill, straggler_by_batch

MOST_HITS = 0.95
"""Of a prompt, at least a twentieth is computed, whatever the prefix cache is said to give."""


@dataclass(frozen=True)
class Capacity:
    """The best that one replica does with requests of some size, for n sizes.

    NaN where a size is not known or not one request of it fits into the cache.
    """

    qps: FloatArray
    """`(n,)` requests/s. Where no batch size meets the objectives: the most it does without."""
    batch: FloatArray
    """`(n,)` sequences at once."""
    ttft_s: FloatArray
    """`(n,)` s; NaN from `decode_capacity`."""
    itl_s: FloatArray
    """`(n,)` s; NaN from `prefill_capacity`."""
    meets: BoolArray
    """`(n,)` whether the objectives are met."""


@dataclass(frozen=True)
class PerfModel:
    """One replica of this profile.

    Arguments are arrays that broadcast, or numbers; fractions lie on the line between whole ones.
    """

    profile: ServingProfile

    @property
    def kv_tokens(self) -> int:
        """Tokens that the cache of a replica holds."""
        return self.profile.kv.tokens

    @property
    def batch_size_max(self) -> int:
        """Most sequences of a replica at once."""
        return self.profile.limits.batch_size_max

    @property
    def chunk_tokens(self) -> int:
        """Most tokens of one iteration."""
        return self.profile.limits.chunk_tokens

    @cached_property
    def _tables(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Seconds by sequences, factor by sequences, seconds by prompt tokens."""
        by_batch, by_prefill = seconds_by_batch(self.profile), seconds_by_prefill(self.profile)
        return by_batch, straggler_by_batch(self.profile), by_prefill

    def iteration_s(
        self, sequences: FloatArray, prompt_tokens: FloatArray, kv_tokens: FloatArray
    ) -> FloatArray:
        """Seconds of one iteration.

        Args:
            sequences: in the batch, those that prefill included; more than batch_size_max count
                as that many: the others wait.
            prompt_tokens: of the iteration, 0 to chunk_tokens; attention of a later chunk over
                its prompt's earlier ones is not in here (`prefill_s` has it).
            kv_tokens: in the cache, summed over the batch.
        """
        by_batch, straggler, by_prefill = self._tables
        law = self.profile.step_time
        seconds = _between(by_batch, sequences) + law.per_kv_token_s * kv_tokens
        seconds = seconds + _between(by_prefill, prompt_tokens)
        seconds = seconds + np.where(prompt_tokens > 0, law.prefill_base_s, 0.0)
        return np.asarray(seconds * _between(straggler, sequences))

    def mixed_s(
        self,
        decodes: FloatArray,
        kv_tokens: FloatArray,
        arriving_tokens: FloatArray,
        prompt_tokens: FloatArray,
    ) -> FloatArray:
        """Seconds of an iteration of decodes that prompts come into, in the mean.

        Where less than a prompt arrives per iteration, most iterations hold none and some a whole
        one: what an iteration with prompt tokens costs, however few they are, is paid by the share
        of iterations that have any.

        Args:
            decodes: sequences.
            kv_tokens: what they have in the cache.
            arriving_tokens: prompt tokens per iteration, in the mean.
            prompt_tokens: mean of one prompt.
        """
        one = np.minimum(prompt_tokens, self.chunk_tokens)
        share = np.minimum(arriving_tokens / one, 1.0)
        without_s = self.iteration_s(decodes, np.zeros(1), kv_tokens)
        tokens = np.maximum(np.minimum(arriving_tokens, self.chunk_tokens), one)
        with_s = self.iteration_s(decodes + 1.0, tokens, kv_tokens)
        return np.asarray(without_s + share * (with_s - without_s))

    def itl_s(self, batch: FloatArray, context_tokens: FloatArray) -> FloatArray:
        """Seconds of one iteration of decodes: the gap between two tokens.

        Args:
            batch: sequences.
            context_tokens: mean tokens of a sequence in the cache.
        """
        return self.iteration_s(batch, np.zeros(1), batch * context_tokens)

    def queue_s(
        self, queued_tokens: FloatArray, decodes: FloatArray, kv_tokens: FloatArray
    ) -> FloatArray:
        """Seconds until so many prompt tokens are prefilled, in chunks of the iteration's budget.

        Args:
            queued_tokens: prompt tokens, of one prompt or of many.
            decodes: sequences that get a token in each of these iterations too.
            kv_tokens: what those have in the cache.
        """
        tokens = np.asarray(queued_tokens, dtype=np.float64)
        whole, rest = np.divmod(tokens, self.chunk_tokens)
        sequences = decodes + 1.0
        full_s = self.iteration_s(sequences, np.full(1, float(self.chunk_tokens)), kv_tokens)
        rest_s = np.where(rest == 0, 0.0, self.iteration_s(sequences, rest, kv_tokens))
        # No chunk takes 0 s, even where there is no telling what one takes.
        return np.asarray(np.where(whole == 0, 0.0, whole * full_s) + rest_s)

    def prefill_s(self, prompt_tokens: FloatArray) -> FloatArray:
        """Seconds until one prompt is prefilled on an idle replica.

        Chunk after chunk of the iteration's budget; each reads the cache of those before it.
        """
        tokens = np.asarray(prompt_tokens, dtype=np.float64)
        whole, rest = np.divmod(tokens, self.chunk_tokens)
        before_rest = np.where(rest == 0, 0.0, whole * self.chunk_tokens)
        # Tokens before each whole chunk, summed: 0, 1, 2 ... chunks.
        before_whole = self.chunk_tokens * whole * (whole - 1) / 2
        law = self.profile.step_time
        extra_s = law.per_kv_token_s * (before_whole + before_rest)
        pairs = self.chunk_tokens * before_whole + rest * before_rest
        extra_s = (extra_s + law.per_context_s * pairs) * self._tables[1][1]
        return np.asarray(self.queue_s(tokens, np.zeros(1), np.zeros(1)) + extra_s)

    def prefill_capacity(
        self, prompt_tokens: FloatArray, ttft_s: float, hits: FloatArray | float = 0.0
    ) -> Capacity:
        """Requests/s that a replica prefills when it does nothing else.

        b / T(b prompts together), over all b whose prompts fit into one iteration; 1 where not even
        one does.

        Args:
            prompt_tokens: `(n,)` mean of a request.
            ttft_s: objective.
            hits: `(n,)` share (0-1) of the prompt that the prefix cache has.
        """
        each = self._computed(prompt_tokens, hits)
        batch = self._batches()
        fits = (batch * each <= self.chunk_tokens) | (batch == 1)
        seconds = np.where(
            batch == 1, self.prefill_s(each), self.queue_s(batch * each, np.zeros(1), np.zeros(1))
        )
        qps = np.where(fits & ~np.isnan(each), batch / seconds, np.nan)
        return _best(qps, batch, seconds, np.full_like(qps, np.nan), seconds <= ttft_s)

    def decode_capacity(
        self,
        prompt_tokens: FloatArray,
        output_tokens: FloatArray,
        itl_s: float,
        batch_size: FloatArray | float = np.inf,
    ) -> Capacity:
        """Requests/s that a replica decodes when it does nothing else.

        b / (output tokens x ITL(b)), over all b whose contexts fit into the cache; the context is
        the prompt and half the output.

        Args:
            prompt_tokens, output_tokens: `(n,)` means of a request.
            itl_s: objective.
            batch_size: `(n,)` most sequences at once, where the knob says less than the engine.
        """
        batch = self._batches(batch_size)
        output = _column(output_tokens)
        context = _context(prompt_tokens, output)
        gap_s = self.itl_s(batch, context)
        with np.errstate(divide="ignore"):
            qps = batch / (output * gap_s)
        qps = np.where(self._fits(batch, context) & (output > 0), qps, np.nan)
        return _best(qps, batch, np.full_like(qps, np.nan), gap_s, gap_s <= itl_s)

    def capacity(
        self,
        prompt_tokens: FloatArray,
        output_tokens: FloatArray,
        *,
        ttft_s: float,
        itl_s: float,
        hits: FloatArray | float = 0.0,
        batch_size: FloatArray | float = np.inf,
    ) -> Capacity:
        """Requests/s of a replica that prefills and decodes, as those of our fleets do.

        With b decodes an iteration also takes the prompt tokens that arrive at their rate,
        b x prompt / output in the mean, while these fit into its budget. b / (output tokens x mean
        iteration) is the rate; TTFT is the time for one iteration's prompt tokens and one prompt
        more. The planner asks its model for one iteration with the mean of the prompt tokens;
        `mixed_s` is what a model that was fitted to both kinds of iterations would answer.

        Args:
            prompt_tokens, output_tokens: `(n,)` means of a request.
            ttft_s, itl_s: objectives.
            hits: `(n,)` share (0-1) of the prompt that the prefix cache has.
            batch_size: `(n,)` most sequences at once, where the knob says less than the engine.
        """
        batch = self._batches(batch_size)
        each, output = self._computed(prompt_tokens, hits), _column(output_tokens)
        context = _context(prompt_tokens, output)
        held = batch * context
        with np.errstate(divide="ignore", invalid="ignore"):
            beside = np.ceil(batch * each / np.maximum(output, 1.0))
            budget = self.chunk_tokens - batch
            fits = self._fits(batch, context) & (budget > 0) & (beside <= budget) & (output > 0)
            gap_s = self.mixed_s(batch, held, beside, each)
            first_s = self.queue_s(beside + each, batch, held)
            qps = np.where(fits, batch / (output * gap_s), np.nan)
        return _best(qps, batch, first_s, gap_s, (first_s <= ttft_s) & (gap_s <= itl_s))

    def _batches(self, batch_size: FloatArray | float = np.inf) -> FloatArray:
        """`(n or 1, batch_size_max)` sequences, from 1; NaN above the knob's."""
        batch = np.arange(1.0, self.batch_size_max + 1)[None, :]
        most = np.atleast_1d(np.asarray(batch_size, dtype=np.float64))[:, None]
        return np.where(batch > most, np.nan, batch)

    def _fits(self, batch: FloatArray, context: FloatArray) -> BoolArray:
        """Where so many contexts fit into the cache; not where the context is not known."""
        return np.asarray(batch * context <= self.kv_tokens)

    def _computed(self, prompt_tokens: FloatArray, hits: FloatArray | float) -> FloatArray:
        """`(n, 1)` tokens of a prompt that are computed."""
        missed = 1.0 - np.clip(hits, 0.0, MOST_HITS)
        return _column(np.maximum(1.0, np.ceil(prompt_tokens * missed)))


def _between(table: FloatArray, at: FloatArray) -> FloatArray:
    """The table at places that need not be whole; its last value beyond it."""
    return np.asarray(np.interp(at, np.arange(len(table)), table))


def _column(values: FloatArray) -> FloatArray:
    return np.asarray(values, dtype=np.float64)[:, None]


def _context(prompt_tokens: FloatArray, output: FloatArray) -> FloatArray:
    """`(n, 1)` tokens of a sequence in the cache, halfway through its output."""
    return np.asarray(np.maximum(1.0, _column(prompt_tokens) + np.floor(output / 2)))


def _best(
    qps: FloatArray, batch: FloatArray, ttft_s: FloatArray, itl_s: FloatArray, meets: BoolArray
) -> Capacity:
    """Of each row the batch size with the highest rate, of those that meet the objectives if any
    does. All arrays are `(n, batch_size_max)`; a rate of NaN cannot be."""
    possible = ~np.isnan(qps)
    meets = meets & possible
    allowed = np.where(meets.any(axis=1, keepdims=True), meets, possible)
    column = np.where(allowed, qps, -np.inf).argmax(axis=1)
    rows = np.arange(len(qps))
    known = possible.any(axis=1)

    def chosen(values: FloatArray) -> FloatArray:
        picked = np.broadcast_to(values, qps.shape)[rows, column]
        return np.where(known, picked, np.nan)

    return Capacity(chosen(qps), chosen(batch), chosen(ttft_s), chosen(itl_s), meets[rows, column])
