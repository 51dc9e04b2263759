"""WVA V1 (saturation): one replica more or fewer, by what the unsaturated ones have to spare.

`internal/saturation/analyzer.go` in llm-d/llm-d-workload-variant-autoscaler@b08b1c77c8. A replica
is saturated from `kv_threshold` of its KV cache or `queue_threshold` waiting on. Of the others the
mean distance to both is what there is to spare. Saturated ones are not looked at when the fleet
shrinks, so hot spots do not keep a replica.

V1 waits while the gauge, the replicas that exist and those that report differ. So it never moves
while a replica starts; and behind an HPA whose tolerance swallows one replica (10 % from n = 10
on) it waits for ever: set `tolerance` below 1 / n, or `apply` direct.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from policies.entry import Entry, Load, Parameter, Target
from policies.hpa_words import replicas
from policies.options import Options
from policies.rule import RulePolicy
from policies.wva import HPA_SYNC_S, Analysis, Pods, kv_search, wva_policy
from tuner.core.errors import ConfigError
from tuner.core.figures import figure
from tuner.core.observation import ObservationArrays
from tuner.core.protocols import FloatArray

NAME = "wva-v1"


@dataclass(frozen=True)
class WvaV1:
    """The analyzer; defaults as shipped."""

    kv_threshold: float = 0.80
    """0-1; a replica is saturated from here on."""
    queue_threshold: float = 5.0
    """Requests waiting; likewise."""
    kv_spare: float = 0.10
    """Below so much to spare, 0-1, one more is wanted."""
    queue_spare: float = 3.0
    """Requests; likewise."""

    def __post_init__(self) -> None:
        if not 0 < self.kv_spare < self.kv_threshold <= 1:
            raise ConfigError(
                f"{NAME}: kv_spare is {self.kv_spare:g} and kv_threshold {self.kv_threshold:g}; "
                "expected 0 < kv_spare < kv_threshold <= 1, or every replica asks for one more"
            )
        if not 0 < self.queue_spare < self.queue_threshold < np.inf:
            raise ConfigError(
                f"{NAME}: queue_spare is {self.queue_spare:g} and queue_threshold "
                f"{self.queue_threshold:g}; expected 0 < queue_spare < queue_threshold, or every "
                "replica asks for one more"
            )

    @property
    def memory_size(self) -> int:
        return 0

    def analyse(
        self, pods: Pods, now: ObservationArrays, gauge: FloatArray, memory: FloatArray
    ) -> Analysis:
        saturated = (pods.kv_usage >= self.kv_threshold) | (pods.queue >= self.queue_threshold)
        free = pods.reports & ~saturated
        count, reporting = free.sum(axis=1), pods.reports.sum(axis=1)
        kv = np.where(free, pods.kv_usage, 0.0).sum(axis=1)
        queue = np.where(free, pods.queue, 0.0).sum(axis=1)
        # With all saturated there is nothing to spare.
        kv_spare, queue_spare = self._spare(kv, queue, count, otherwise=0.0)
        up = (kv_spare < self.kv_spare) | (queue_spare < self.queue_spare)
        # The last unsaturated one has nobody to take over what it holds.
        kv_after, queue_after = self._spare(kv, queue, count - 1, otherwise=-np.inf)
        safe = (kv_after >= self.kv_spare) & (queue_after >= self.queue_spare)
        down = ~up & safe

        moving = ~np.isnan(gauge) & (gauge != pods.exist)
        partial = reporting != pods.exist
        step = np.where(up, 1.0, 0.0) - np.where(down, 1.0, 0.0)
        wanted = np.where(partial, pods.exist, reporting + step)
        wanted = np.where(moving, gauge, wanted)
        wanted = np.where((reporting > 0) & ~np.isnan(pods.exist), wanted, np.nan)

        def why(row: int) -> str:
            told, left, exist = int(reporting[row]), int(count[row]), pods.exist[row]
            if told == 0:
                return "no replica reports its KV cache or queue"
            if np.isnan(exist):
                return "no value for status_replicas"
            last = f"{wanted[row]:.0f}"
            if moving[row]:
                return (
                    f"waits, as it asked for {replicas(gauge[row])} and {exist:.0f} exist: {last}"
                )
            if partial[row]:
                return f"waits, as {replicas(exist)} exist and {told} report: {last}"
            if left == 0:
                limits = f"{_percent(self.kv_threshold)} KV or {self.queue_threshold:g} waiting"
                return f"all {replicas(told)} are saturated, by {limits}: {last}"
            spare = f"{_room(kv_spare[row], queue_spare[row])} to spare{' each' * (left > 1)}"
            said = f"{left} of {replicas(told)} unsaturated, with {spare}"
            if up[row]:
                low_kv = [f"{_percent(self.kv_spare)} KV"] * bool(kv_spare[row] < self.kv_spare)
                low_queue = [f"{self.queue_spare:g} waiting"] * bool(
                    queue_spare[row] < self.queue_spare
                )
                return f"{said}, less than {' and '.join([*low_kv, *low_queue])}: {last}"
            if left == 1:
                return f"{said}: {last}"
            after = _room(kv_after[row], queue_after[row])
            return f"{said}, {'still' if down[row] else 'only'} {after} with one fewer: {last}"

        return Analysis(wanted, np.full(len(gauge), np.nan), memory, why)

    def _spare(
        self, kv: FloatArray, queue: FloatArray, over: FloatArray, otherwise: float
    ) -> tuple[FloatArray, FloatArray]:
        """Mean distance to both thresholds, were the sums spread over so many replicas."""
        some = over > 0
        share = np.where(some, over, 1)
        return (
            np.where(some, self.kv_threshold - kv / share, otherwise),
            np.where(some, self.queue_threshold - queue / share, otherwise),
        )


def _percent(ratio: float) -> str:
    return f"{100 * ratio:.3g} %"


def _room(kv: float, queue: float) -> str:
    return f"{_percent(kv)} KV and {figure(float(queue))} waiting"


def build(options: Options, target: Target) -> RulePolicy:
    """Policy `wva-v1`.

    Options: `kv_threshold`, `queue_threshold`, `kv_spare`, `queue_spare`, and those of
    `policies.wva`.

    Raises:
        ConfigError: an option is unknown or does not fit.
    """
    analyzer = WvaV1(
        kv_threshold=options.number("kv_threshold", WvaV1.kv_threshold),
        queue_threshold=options.number("queue_threshold", WvaV1.queue_threshold),
        kv_spare=options.number("kv_spare", WvaV1.kv_spare),
        queue_spare=options.number("queue_spare", WvaV1.queue_spare),
    )
    return wva_policy(NAME, analyzer, options, target)


def search(load: Load) -> tuple[Parameter, ...]:
    """The thresholds, and the tolerance of the HPA that would swallow a step of one."""
    kv_threshold, queue_threshold = kv_search(load)
    low = kv_threshold.low
    return (
        kv_threshold,
        Parameter("kv_spare", low / 10, 0.9 * low, "0-1", log=True),
        queue_threshold,
        Parameter("tolerance", 0.0, 0.1, ""),
    )


ENTRY = Entry(build, search, tick_s=HPA_SYNC_S)
