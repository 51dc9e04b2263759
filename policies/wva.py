"""llm-d's Workload Variant Autoscaler (WVA): what its two versions share.

WVA does not scale. Every 60 s it analyses the replicas and writes a gauge, the replicas that it
wants; a plain HPA on that gauge (External, AverageValue 1) follows at its own 15 s syncs, with its
tolerance, its step limit and its window. That chain is the default here, and the HPA in it is
`policies.hpa`. With one variant of one model there is no choice of what to add or remove.

`internal/engines/saturation` and `internal/collector` in
llm-d/llm-d-workload-variant-autoscaler@b08b1c77c8. Where this differs:

- WVA reads the *peak* of the last minute of each replica; an observation holds its newest sample.
- The gauge is held to the knob's range. WVA's own may lie above the HPA's most replicas, and V1
  then waits for ever for replicas that will never come.

**Missing.** A replica that tells one of KV cache and queue counts with 0 for the other, as WVA has
it. When no replica tells anything, the analysis is skipped and the gauge stays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from policies.entries import GRID_SLACK_S
from policies.entry import Load, Parameter, Target
from policies.hpa import HpaRule
from policies.hpa_metrics import status_replicas
from policies.hpa_spec import HpaConfig, MetricSpec
from policies.options import Options
from policies.rule import RulePolicy, RuleResult, replica_bounds
from tuner.core.observation import (
    COLUMN,
    REPLICA_FIELDS,
    REPLICA_STATES,
    ObservationArrays,
    ReplicaState,
)
from tuner.core.protocols import BoolArray, FloatArray

PERIOD_S = 60.0
"""Seconds between two analyses."""
HPA_SYNC_S = 15.0
"""Seconds between two looks of the HPA at the gauge."""
LEAST_KV_USAGE = 0.01
"""Where a search begins when the load says less, or nothing."""
APPLY = ("hpa", "direct")

GAUGE = "business"
"""The field in which the HPA finds the gauge: one value from anywhere, which is what it is."""
_DRAINING = REPLICA_STATES.index(ReplicaState.DRAINING)


@dataclass(frozen=True)
class Pods:
    """What WVA's collector sees of n targets; replicas that drain are no longer theirs."""

    reports: BoolArray
    """`(n, replicas)` where there is a sample of KV cache or queue."""
    kv_usage: FloatArray
    """`(n, replicas)` 0-1; 0 where not told."""
    kv_tokens: FloatArray
    """`(n, replicas)` tokens in the KV cache, NaN where not told."""
    queue: FloatArray
    """`(n, replicas)` requests waiting; 0 where not told."""
    exist: FloatArray
    """`(n,)` replicas that exist, those that start included; NaN: not known."""
    ready: FloatArray
    """`(n,)` those of them that serve; NaN: not known."""

    @classmethod
    def of(cls, now: ObservationArrays) -> Pods:
        state = now.replicas.state
        here = (state >= 0) & (state != _DRAINING)

        def told(name: str) -> FloatArray:
            values = now.replicas.values[:, :, REPLICA_FIELDS.index(name)]
            return np.where(here & np.isfinite(values), values, np.nan)

        kv_usage, queue, kv_tokens = told("kv_cache_usage"), told("queue_depth"), told("kv_tokens")
        exist = status_replicas(now)
        return cls(
            reports=~(np.isnan(kv_usage) & np.isnan(kv_tokens) & np.isnan(queue)),
            kv_usage=np.nan_to_num(kv_usage),
            kv_tokens=kv_tokens,
            queue=np.nan_to_num(queue),
            exist=np.where(np.isfinite(exist), exist, np.nan),
            ready=np.minimum(now.column("ready_replicas"), exist),
        )


@dataclass(frozen=True)
class Analysis:
    """What one analysis says about n targets."""

    wanted: FloatArray
    """`(n,)` replicas, whole; NaN where it is skipped."""
    need: FloatArray
    """`(n,)` see `RuleResult`."""
    memory: FloatArray
    """`(n, memory_size)` of the analyzer."""
    why: Callable[[int], str]
    """From a row to how `wanted` came about, in words that end with it."""


class Analyzer(Protocol):
    """V1 or V2: from replicas to the gauge."""

    @property
    def memory_size(self) -> int:
        """Numbers that it remembers of a target."""

    def analyse(
        self, pods: Pods, now: ObservationArrays, gauge: FloatArray, memory: FloatArray
    ) -> Analysis:
        """The gauge for n targets.

        Args:
            pods: the replicas.
            now: what else was observed.
            gauge: `(n,)` as it stands; NaN: never written.
            memory: `(n, memory_size)` as returned at the analysis before; NaN in an empty place.
        """


@dataclass(frozen=True)
class WvaRule:
    """An analyzer every 60 s, and an HPA that follows its gauge at every tick.

    Memory: when the last analysis was, the gauge, then the analyzer's, then the HPA's.
    """

    analyzer: Analyzer
    hpa: HpaRule | None
    """None: the gauge is applied as it is."""

    @property
    def memory_size(self) -> int:
        return 2 + self.analyzer.memory_size + (self.hpa.memory_size if self.hpa else 0)

    def decide(self, now: ObservationArrays, memory: FloatArray) -> RuleResult:
        border = 2 + self.analyzer.memory_size
        analysed_at_s, gauge, own = memory[:, 0], memory[:, 1], memory[:, 2:border]
        due = ~(now.at_s - analysed_at_s < PERIOD_S - GRID_SLACK_S)
        found = self.analyzer.analyse(Pods.of(now), now, gauge, own)
        told = due & ~np.isnan(found.wanted)
        low, high = replica_bounds(now.knobs)
        gauge = np.where(told, np.clip(found.wanted, low, high), gauge)
        after = memory.copy()
        after[due, 0] = now.at_s[due]
        after[:, 1] = gauge
        after[due, 2:border] = found.memory[due]
        applied = self._apply(now, gauge, memory[:, border:])
        after[:, border:] = applied.memory

        def why(row: int) -> str:
            said = found.why(row)
            if not due[row]:
                said = f"as analysed {now.at_s[row] - analysed_at_s[row]:.0f} s ago"
            if np.isnan(gauge[row]):
                return said
            if not told[row]:
                said += f"{', so the last word stands' * bool(due[row])}: {gauge[row]:.0f}"
            elif gauge[row] != found.wanted[row]:
                end = "most" if gauge[row] < found.wanted[row] else "least"
                said += f", at {end} {gauge[row]:.0f} allowed"
            return said + applied.why(row)

        return RuleResult(
            settings=applied.settings,
            raw=applied.raw,
            need=found.need,
            memory=after,
            why=why,
        )

    def _apply(self, now: ObservationArrays, gauge: FloatArray, memory: FloatArray) -> RuleResult:
        """What becomes of the gauge; its `why` goes on where a sentence ends with the gauge."""
        column = now.knobs.column("replicas")
        n = now.settings[:, column]
        if self.hpa is None:
            settings = np.full(now.settings.shape, np.nan)
            settings[:, column] = np.where(n == 0, np.nan, gauge)

            def stays(row: int) -> str:
                return ", not applied to what was scaled to 0 by hand" if n[row] == 0 else ""

            return RuleResult(settings, gauge, gauge, memory, stays)
        values = now.values.copy()
        values[:, COLUMN[GAUGE]] = gauge
        followed = self.hpa.decide(replace(now, values=values), memory)
        window_s, to = self.hpa.config.down_window_s, followed.settings[:, column]
        percent = 100 * self.hpa.config.tolerance

        def why(row: int) -> str:
            raw, last = followed.raw[row], to[row]
            if np.isnan(raw):
                return f", which hpa does not follow: {followed.why(row)}"
            words = ""
            if raw != gauge[row]:
                words = f", but hpa stays at {raw:.0f}, within its {percent:.3g} %"
            if last > raw:
                words += f", held at {last:.0f} by hpa's window of {window_s:g} s"
            if last < raw:
                words += f", at most {last:.0f} in one step of hpa"
            return words

        return replace(followed, why=why)


def wva_policy(name: str, analyzer: Analyzer, options: Options, target: Target) -> RulePolicy:
    """The policy of an analyzer, with the options that both versions take.

    Options: `apply` hpa (default) or direct; with hpa its `tolerance` and
    `downscale_stabilization_s`.

    Raises:
        ConfigError: an option is unknown or does not fit.
    """
    hpa = None
    if options.choice("apply", APPLY, "hpa") == "hpa":
        low, high = replica_bounds(target.knobs)
        config = HpaConfig(
            metrics=(MetricSpec(GAUGE, 1.0),),
            min_replicas=int(low),
            max_replicas=int(high),
            tolerance=options.number("tolerance", HpaConfig.tolerance),
            downscale_stabilization_s=options.number(
                "downscale_stabilization_s", HpaConfig.downscale_stabilization_s
            ),
            sync_period_s=target.tick_s,
        )
        hpa = HpaRule(config)
    options.finish()
    return RulePolicy(name, WvaRule(analyzer, hpa))


def kv_search(load: Load) -> tuple[Parameter, Parameter]:
    """`kv_threshold`, the dial of both versions, and the `queue_threshold` that people change.

    A latent KV cache (MLA) is so small per token that it stands at 10-15 % when latency already
    breaks: the shipped threshold of 80 % would never be met, so the search begins at what the best
    fixed fleet uses.
    """
    used = min(max(load.kv_cache_usage, LEAST_KV_USAGE), 0.5)
    return (
        Parameter("kv_threshold", used / 2, min(4 * used, 1.0), "0-1", log=True),
        Parameter("queue_threshold", 4.0, 64.0, "requests per replica", log=True),
    )
