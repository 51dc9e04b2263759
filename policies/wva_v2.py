"""WVA V2 (tokens): demand and capacity of the fleet, counted in tokens of KV cache.

`internal/engines/analyzers/saturation_v2/analyzer.go` and
`internal/engines/pipeline/cost_aware_optimizer.go` in
llm-d/llm-d-workload-variant-autoscaler@b08b1c77c8, where the demand of the scheduler's own queue is
defined and not yet wired.

Per replica: demand = tokens in use + waiting x mean input. Capacity = the smaller of k1, a share of
its KV cache, and k2, what it can compute: the tokens in use while its queue is saturated, else the
mean of the last ten of those (of all replicas, kept by mean output length), else a figure from the
engine's arguments, else k1. So a replica that is throttled by a small batch teaches a low capacity
to the whole fleet. The fleet's capacity per replica is the median.

What no observation holds as such: tokens in use are KV usage x the cache's size, where the engine
does not tell them; mean input and output are token rates / arrivals, all replicas alike. Where they
are not known they count as 0, as in the original. Replicas saturated at one look are remembered
before the others read the mean; the original takes them in the order in which they come.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

import numpy as np

from policies.entry import Entry, Load, Parameter, Target
from policies.hpa_words import replicas
from policies.options import Options
from policies.rule import RulePolicy
from policies.tokens import tokens_each
from policies.wva import HPA_SYNC_S, Analysis, Pods, kv_search, wva_policy
from tuner.core.errors import ConfigError
from tuner.core.figures import figure
from tuner.core.observation import ObservationArrays
from tuner.core.profile import ServingProfile
from tuner.core.protocols import BoolArray, FloatArray, IntArray

NAME = "wva-v2"
SHORT_OUTPUT, MEDIUM_OUTPUT = 100.0, 500.0
"""Mean output tokens at which the next bucket of the history begins."""
BUCKETS = 3
REMEMBERED = 10
"""Capacities kept per bucket."""


@dataclass(frozen=True)
class Lengths:
    """Mean tokens per request of n targets, 0 where not known."""

    input: FloatArray
    """`(n,)`."""
    output: FloatArray
    """`(n,)`."""

    @classmethod
    def of(cls, now: ObservationArrays, most: float) -> Lengths:
        """Token rates over arrivals, each at most `most`."""
        qps = now.column("qps")
        return cls(
            *(
                np.nan_to_num(tokens_each(now.column(rate), qps, most))
                for rate in ("prompt_tokens_per_s", "output_tokens_per_s")
            )
        )

    @property
    def bucket(self) -> IntArray:
        """`(n,)` which part of the history is theirs."""
        return np.digitize(self.output, (SHORT_OUTPUT, MEDIUM_OUTPUT))


@dataclass(frozen=True)
class EngineArguments:
    """What k2 can be worked out from before any queue was seen."""

    max_batched_tokens: int
    max_sequences: int

    def capacity(self, lengths: Lengths) -> FloatArray:
        """`(n,)` tokens in use in a steady state, whole; 0 where no output is known.

        Sequences = batched tokens x output / (input + output), at most max_sequences; each holds
        its input and half its output.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            share = lengths.output / (lengths.input + lengths.output)
        sequences = np.minimum(self.max_batched_tokens * share, self.max_sequences)
        held = np.floor(sequences * (lengths.input + lengths.output / 2))
        return np.where(lengths.output > 0, held, 0.0)


@dataclass(frozen=True)
class WvaV2:
    """The analyzer; defaults as shipped."""

    kv_tokens: float
    """Tokens that the KV cache of a replica holds, > 0."""
    arguments: EngineArguments | None = None
    kv_threshold: float = 0.80
    """Share of the KV cache, 0-1, that counts as capacity."""
    queue_threshold: float = 5.0
    """Requests waiting, from which on a replica shows what it can compute."""
    scale_up_threshold: float = 0.85
    """Demand / capacity above which more is wanted, 0-1."""
    scale_down_boundary: float = 0.70
    """Demand / capacity below which replicas are to spare, 0-1."""

    def __post_init__(self) -> None:
        if not 0 < self.kv_threshold <= 1:
            raise ConfigError(
                f"{NAME}: kv_threshold is {self.kv_threshold:g}; expected above 0, at most 1"
            )
        if not (isfinite(self.kv_tokens) and self.kv_tokens * self.kv_threshold >= 1):
            raise ConfigError(
                f"{NAME}: kv_tokens is {self.kv_tokens:g}; expected so many that "
                f"{100 * self.kv_threshold:g} % of them is 1 or more"
            )
        if not 1 <= self.queue_threshold < np.inf:
            raise ConfigError(
                f"{NAME}: queue_threshold is {self.queue_threshold:g}; expected 1 or more"
            )
        if not 0 < self.scale_down_boundary <= self.scale_up_threshold <= 1:
            raise ConfigError(
                f"{NAME}: scale_down_boundary is {self.scale_down_boundary:g} and "
                f"scale_up_threshold {self.scale_up_threshold:g}; expected "
                "0 < scale_down_boundary <= scale_up_threshold <= 1"
            )

    @property
    def memory_size(self) -> int:
        return BUCKETS * REMEMBERED

    def analyse(
        self, pods: Pods, now: ObservationArrays, gauge: FloatArray, memory: FloatArray
    ) -> Analysis:
        lengths = Lengths.of(now, self.kv_tokens)
        used = np.where(np.isnan(pods.kv_tokens), pods.kv_usage * self.kv_tokens, pods.kv_tokens)
        used = np.floor(used)
        waiting = np.floor(lengths.input)[:, None] * pods.queue
        demand = np.where(pods.reports, used + waiting, 0.0).sum(axis=1)

        saturated = pods.reports & (pods.queue >= np.floor(self.queue_threshold)) & (used > 0)
        history = _remember(memory, saturated, lengths.bucket, used)
        k1 = np.floor(self.kv_tokens * self.kv_threshold)
        k2 = np.where(saturated, used, self._k2(history, lengths, k1)[:, None])
        capacity = _median(np.minimum(k1, k2), pods.reports)

        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            short = demand / self.scale_up_threshold - pods.exist * capacity
            spare = pods.ready * capacity - demand / self.scale_down_boundary
            more = np.where(short > 0, np.ceil(short / capacity), 0.0)
            fewer = np.where((short <= 0) & (spare > 0), np.floor(spare / capacity), 0.0)
            need = demand / self.scale_up_threshold / capacity
        # The last replica stays.
        fewer = np.minimum(fewer, np.maximum(pods.exist - 1, 0))
        known = pods.reports.any(axis=1) & ~np.isnan(pods.exist) & ~np.isnan(pods.ready)
        wanted = np.where(known, pods.exist + more - fewer, np.nan)

        def why(row: int) -> str:
            if not pods.reports[row].any():
                return "no replica reports its KV cache or queue"
            if not known[row]:
                return "no value for status_replicas or ready_replicas"
            tokens, each = figure(float(demand[row])), f"{figure(float(capacity[row]))} tokens"
            exist, left = pods.exist[row], pods.ready[row] - max(fewer[row], 1)
            up = f"{100 * self.scale_up_threshold:.3g} %"
            down = f"{100 * self.scale_down_boundary:.3g} %"
            if more[row]:
                limit = f"more than {up} of {replicas(exist)} of {each}"
            elif fewer[row]:
                limit = f"at most {down} of {replicas(left)} of {each}"
            else:
                limit = f"at most {up} of {replicas(exist)} of {each}"
                limit += f", more than {down} of {left:.0f}" if left > 0 else ""
            return f"{tokens} tokens in use or waiting, {limit}: {wanted[row]:.0f}"

        return Analysis(wanted, np.where(known, need, np.nan), history, why)

    def _k2(self, history: FloatArray, lengths: Lengths, k1: float) -> FloatArray:
        """`(n,)` tokens that a replica without a saturated queue can compute."""
        k2 = np.floor(_remembered(history, lengths.bucket))
        if self.arguments is not None:
            k2 = np.where(k2 > 0, k2, self.arguments.capacity(lengths))
        return np.where(k2 > 0, k2, k1)


def _remember(
    memory: FloatArray, saturated: BoolArray, bucket: IntArray, used: FloatArray
) -> FloatArray:
    """`memory` with what the saturated replicas use at the end of their bucket, newest last."""
    history = memory.reshape(len(memory), BUCKETS, REMEMBERED).copy()
    for replica in np.flatnonzero(saturated.any(axis=0)):
        rows = np.flatnonzero(saturated[:, replica])
        kept = history[rows, bucket[rows], 1:]
        newest = used[rows, replica]
        history[rows, bucket[rows]] = np.concatenate([kept, newest[:, None]], axis=1)
    return history.reshape(memory.shape)


def _remembered(memory: FloatArray, bucket: IntArray) -> FloatArray:
    """`(n,)` mean of what is remembered in a bucket, 0 without anything."""
    rows = np.arange(len(memory))
    kept = memory.reshape(len(memory), BUCKETS, REMEMBERED)[rows, bucket]
    count = (~np.isnan(kept)).sum(axis=1)
    mean: FloatArray = np.nansum(kept, axis=1) / np.maximum(count, 1)
    return mean


def _median(values: FloatArray, chosen: BoolArray) -> FloatArray:
    """`(n,)` median of the chosen whole numbers of each row, rounded down; 0 without any."""
    count = chosen.sum(axis=1)
    if not values.shape[1]:
        return np.zeros(len(values))
    rising = np.sort(np.where(chosen, values, np.inf), axis=1)
    rows, middle = np.arange(len(values)), count // 2
    upper = rising[rows, np.minimum(middle, values.shape[1] - 1)]
    lower = rising[rows, np.maximum((count - 1) // 2, 0)]
    return np.where(count > 0, np.floor((lower + upper) / 2), 0.0)


def build(options: Options, target: Target) -> RulePolicy:
    """Policy `wva-v2`.

    Options: `kv_tokens`, which a serving profile tells; `kv_threshold`, `queue_threshold`,
    `scale_up_threshold`, `scale_down_boundary`, and those of `policies.wva`. Without a profile, k2
    is not worked out from the engine's arguments.

    Raises:
        ConfigError: an option is unknown or does not fit, or nothing tells the size of the cache.
    """
    profile = target.profile
    if profile is None and not options.gives("kv_tokens"):
        raise ConfigError(
            f"{NAME}: it counts in tokens of KV cache, and neither a serving profile nor kv_tokens "
            "says how many a replica holds; name a profile (`tuner profile list`), or set "
            "kv_tokens to what the engine logs at its start"
        )
    analyzer = WvaV2(
        kv_tokens=options.number("kv_tokens", float(profile.kv.tokens) if profile else np.nan),
        arguments=_arguments(profile),
        kv_threshold=options.number("kv_threshold", WvaV2.kv_threshold),
        queue_threshold=options.number("queue_threshold", WvaV2.queue_threshold),
        scale_up_threshold=options.number("scale_up_threshold", WvaV2.scale_up_threshold),
        scale_down_boundary=options.number("scale_down_boundary", WvaV2.scale_down_boundary),
    )
    return wva_policy(NAME, analyzer, options, target)


def _arguments(profile: ServingProfile | None) -> EngineArguments | None:
    if profile is None:
        return None
    limits = profile.limits
    return EngineArguments(limits.chunk_tokens, limits.batch_size_max)


def search(load: Load) -> tuple[Parameter, ...]:
    """The thresholds, the distance between adding and removing, and the HPA's tolerance."""
    kv_threshold, queue_threshold = kv_search(load)
    return (
        kv_threshold,
        Parameter("scale_down_boundary", 0.4, 0.85, "0-1"),
        queue_threshold,
        Parameter("tolerance", 0.0, 0.1, ""),
    )


ENTRY = Entry(build, search, tick_s=HPA_SYNC_S)
