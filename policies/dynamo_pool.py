"""A pool of replicas as NVIDIA Dynamo's planner sees it, and what bounds its wishes.

What `dynamo-easy` and `dynamo-sla` share: ai-dynamo 1.6.1, dynamo/planner/core/state_machine.py
(inventory), load_scaling.py (what a decision is while replicas start) and budget.py
(`guard_single_scaling_budget`), over n targets. The planner's workers are our ready replicas.

The planner listens to every iteration of every worker and counts every request; here it sees what
all policies see.

- Cache in use: a replica's `kv_tokens`, else its `kv_cache_usage` of what the cache holds.
- Queued prompts: its `queued_prompt_tokens`, else its `queue_depth` times the mean prompt. What a
  decoding replica has preempted waits in the same queue and is counted there; in front of a replica
  that only decodes, all that waits is of that kind.
- Sizes of requests: tokens/s over the requests/s that were let in, which are those that arrived
  less what the queue grew by. A fleet that cannot keep up serves fewer tokens than are asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from policies.options import Options
from policies.tokens import tokens_each
from tuner.core.errors import ConfigError
from tuner.core.knobs import KnobSpec
from tuner.core.observation import REPLICA_FIELDS, REPLICA_STATES, ObservationArrays, ReplicaState
from tuner.core.protocols import BoolArray, FloatArray

TICK_S = 5.0
"""`load_adjustment_interval_seconds` of the planner."""
POOLS = ("aggregated", "decode", "prefill")

_READY = REPLICA_STATES.index(ReplicaState.READY)
_MEAN_S = 300.0
"""Over how long the sizes of requests are averaged, about: rates cover a window of a minute, and
the queue is read at its end. The planner averages 64 iterations, but sees each."""


@dataclass(frozen=True)
class Sizes:
    """Rates of late, decaying; `(n,)` each, 0 before the first measurement."""

    SIZE = 4

    most: int
    """Tokens of the largest request, see `tokens_each`."""
    let_in_qps: FloatArray
    """Requests/s."""
    prompt: FloatArray
    """Tokens/s."""
    output: FloatArray
    queue: FloatArray
    """Requests that waited at the latest measurement."""

    @classmethod
    def updated(cls, memory: FloatArray, now: ObservationArrays, tick_s: float, most: int) -> Sizes:
        """From the `(n, SIZE)` numbers of the tick before and what is seen now."""
        queue = now.column("queue_depth")
        before = memory[:, 3]
        with np.errstate(invalid="ignore"):
            growth = np.where(np.isnan(before), 0.0, queue - before)
            let_in = now.column("qps") - growth / tick_s
        seen = [let_in, now.column("prompt_tokens_per_s"), now.column("output_tokens_per_s")]
        rates = np.stack(seen, axis=1)
        known = np.isfinite(rates).all(axis=1, keepdims=True)
        kept = np.nan_to_num(memory[:, :3])
        share = min(tick_s / _MEAN_S, 1.0)
        with np.errstate(invalid="ignore"):
            kept = np.where(known, kept + share * (rates - kept), kept)
        let_in, prompt, output = kept.T
        return cls(most, let_in, prompt, output, np.where(np.isfinite(queue), queue, before))

    @property
    def memory(self) -> FloatArray:
        """`(n, SIZE)`."""
        return np.stack([self.let_in_qps, self.prompt, self.output, self.queue], axis=1)

    @property
    def prompt_tokens(self) -> FloatArray:
        """`(n,)` mean of a request; NaN before the first."""
        return tokens_each(self.prompt, self.let_in_qps, self.most)

    @property
    def prompt_per_output(self) -> FloatArray:
        """`(n,)` prompt tokens per generated token; NaN before the first."""
        return tokens_each(self.prompt, self.output, self.most)


@dataclass(frozen=True)
class Workers:
    """The ready replicas of n targets and what each has to do."""

    n: FloatArray
    """`(n,)` replicas wanted."""
    ready: FloatArray
    """`(n,)` that serve."""
    starting: FloatArray
    """`(n,)` that start while nothing else changes; 0 otherwise."""
    draining: FloatArray
    """`(n,)` that finish and leave."""
    reporting: FloatArray
    """`(n,)` ready ones with a sample of all that is needed."""
    moving: BoolArray
    """`(n,)` where replicas drain, or what is there is not what is wanted."""
    seen: BoolArray
    """`(n, replicas)` which of the columns below count."""
    running: FloatArray
    """`(n, replicas)` requests; as the ones below, 0 where not seen."""
    waiting: FloatArray
    """`(n, replicas)` requests."""
    kv_tokens: FloatArray
    """`(n, replicas)` in the cache."""
    queued_tokens: FloatArray
    """`(n, replicas)` prompt tokens that wait."""

    @classmethod
    def of(cls, now: ObservationArrays, kv_tokens: int, prompt_tokens: FloatArray) -> Workers:
        """What is there.

        Args:
            now: what was observed.
            kv_tokens: that a replica's cache holds.
            prompt_tokens: `(n,)` mean of a request, NaN where not known.
        """
        n = now.settings[:, now.knobs.column("replicas")]
        ready = now.column("ready_replicas")
        starting = now.column("starting_replicas")
        # Not seen means none: the count is optional, as it is for HPA.
        draining = np.nan_to_num(now.column("draining_replicas"))
        settled = (draining == 0) & (ready + starting == n)

        running, waiting, queued, usage, held = (
            now.replicas.values[:, :, REPLICA_FIELDS.index(name)]
            for name in (
                *("running", "queue_depth", "queued_prompt_tokens"),
                *("kv_cache_usage", "kv_tokens"),
            )
        )
        held = np.where(np.isnan(held), usage * kv_tokens, held)
        with np.errstate(invalid="ignore"):
            guessed = np.where(waiting == 0, 0.0, waiting * prompt_tokens[:, None])
        queued = np.where(np.isnan(queued), guessed, queued)
        told = (running, waiting, held, queued)
        seen = (now.replicas.state == _READY) & np.isfinite(np.stack(told)).all(axis=0)
        return cls(
            n,
            ready,
            np.where(settled, starting, 0.0),
            draining,
            seen.sum(axis=1).astype(np.float64),
            ~settled,
            seen,
            *(np.where(seen, column, 0.0) for column in told),
        )

    @property
    def known(self) -> BoolArray:
        """`(n,)` where the planner has what it needs: every ready replica reports."""
        return np.asarray((self.n > 0) & (self.ready > 0) & (self.reporting == self.ready))

    @property
    def decide(self) -> BoolArray:
        """`(n,)` where the planner looks at the load: nothing moves but what starts."""
        return np.asarray(self.known & ~(self.moving & (self.starting == 0)))

    def worst(self, values: FloatArray) -> FloatArray:
        """`(n,)` the largest over the replicas seen, -inf without any."""
        return np.asarray(np.where(self.seen, values, -np.inf).max(axis=1, initial=-np.inf))

    def least(self, values: FloatArray) -> FloatArray:
        """`(n,)` the smallest over the replicas seen, inf without any."""
        return np.asarray(np.where(self.seen, values, np.inf).min(axis=1, initial=np.inf))

    def missing(self, row: int, *, silent_counts: bool = True) -> str:
        """What the planner lacks for a decision, in words; empty where nothing.

        Args:
            row: of the target.
            silent_counts: whether it decides by what each replica reports.
        """
        n, ready = float(self.n[row]), float(self.ready[row])
        if np.isnan(n):
            return "the replicas in force are not known"
        if n <= 0:
            return "scaled to 0 by hand, which it leaves"
        if np.isnan(ready):
            return "the ready replicas are not known"
        if silent_counts and ready == 0:
            return "no replica is ready"
        if silent_counts and self.reporting[row] != ready:
            return f"{self.reporting[row]:.0f} of {ready:.0f} ready replicas report: no decision"
        return ""

    def moves(self, row: int) -> str:
        """What it waits for until it looks at the load again, in words; empty where nothing."""
        if not self.moving[row] or self.starting[row]:
            return ""
        ready, n, leaving = (float(each[row]) for each in (self.ready, self.n, self.draining))
        if leaving:
            who = "1 replica drains" if leaving == 1 else f"{leaving:.0f} replicas drain"
            return f"{who}, no decision until then"
        return f"{ready:.0f} of {n:.0f} replicas serve, no decision until all do"


@dataclass(frozen=True)
class Limits:
    """What the planner may ask for."""

    min_endpoint: int
    """Fewest replicas, >= 1."""
    most: int
    """Most replicas that fit into the budget of GPUs."""
    low: int
    high: int
    """Range of the knob."""

    @classmethod
    def build(cls, policy: str, options: Options, spec: KnobSpec, gpus: int) -> Limits:
        """Options: `min_endpoint` (1) and `max_gpu_budget` (the planner's 8 hold a fleet of 8-GPU
        replicas at one for ever, and cut a larger one; so what the knob's range takes).

        Args:
            policy: its name, for errors.
            options: as given.
            spec: of the knob `replicas`.
            gpus: of a replica.
        Raises:
            ConfigError: the budget is too small for the fewest replicas.
        """
        least = options.whole("min_endpoint", max(spec.low, 1))
        if not max(spec.low, 1) <= least <= spec.high:
            raise ConfigError(
                f"{policy}: min_endpoint {least} is outside {max(spec.low, 1)}..{spec.high}, the "
                "range of the knob replicas; widen that range or change the option"
            )
        budget = options.whole("max_gpu_budget", spec.high * gpus)
        if budget < least * gpus:
            raise ConfigError(
                f"{policy}: max_gpu_budget {budget} is less than the {least * gpus} GPUs of "
                f"{least} replica{'' if least == 1 else 's'}; raise it"
            )
        return cls(least, budget // gpus, spec.low, spec.high)

    def guard(self, ready: FloatArray, wish: FloatArray) -> FloatArray:
        """`(n,)` the wish within the budget; a fleet beyond it is cut, whatever the load."""
        return np.asarray(np.where(ready > self.most, self.most, np.minimum(wish, self.most)))

    def settle(self, workers: Workers, wish: FloatArray, cancels: BoolArray) -> FloatArray:
        """`(n,)` replicas to ask for, as `replicas` of the target: starting ones included.

        While replicas start the planner only reduces: a wish above the ready ones waits, one for
        as many as are ready, or fewer, cancels the starts.

        Args:
            workers: what is there.
            wish: `(n,)` replicas that the load asks for; NaN is none: n stays.
            cancels: `(n,)` whether a wish for as many as are ready is a decision.
        """
        ready, starting = workers.ready, workers.starting
        target = self.guard(ready, np.maximum(wish, self.min_endpoint))
        rises = np.fmax(wish, target) > ready
        stays = np.isnan(wish) | ((starting > 0) & rises)
        stays |= (target == ready) & ~(cancels & (starting > 0))
        return np.clip(np.where(stays, workers.n, target), self.low, self.high)
