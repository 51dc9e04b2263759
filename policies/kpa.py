"""Knative's pod autoscaler (KPA): a stable window of a minute, and a panic window of seconds.

The rules of `pkg/autoscaler/scaling/autoscaler.go` of knative/serving, commit 98e5ef90aa; defaults
from `config/core/configmaps/autoscaler.yaml` and `pkg/reconciler/autoscaling/resources/target.go`.
Everything counts from the replicas that are ready, not from those that are wanted: while replicas
start, the panic goes on.

**Averages.** Knative averages second by second; here each tick is one sample, and an average is the
mean of the samples younger than its window. Where ticks are further apart than the panic window it
holds the newest sample alone. Ticks without a measurement leave no sample; with none in the stable
window there is no change, with none in the panic window that average is 0, both as in Knative.

**Left out.** The activator's buffer in front of the replicas (target-burst-capacity), and the
activation scale, whose default changes nothing. Scale to zero: once 0 has been wanted for the grace
period; until then 1 replica stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from policies.entries import GRID_SLACK_S, Entries, places
from policies.entry import Entry, Load, Parameter, Target
from policies.ongoing import ongoing
from policies.options import Options
from policies.rule import RulePolicy, RuleResult
from tuner.core.errors import ConfigError
from tuner.core.figures import figure
from tuner.core.observation import ObservationArrays
from tuner.core.protocols import BoolArray, FloatArray

KpaMetric = Literal["concurrency", "rps"]
METRICS: tuple[KpaMetric, ...] = ("concurrency", "rps")
UNITS: dict[KpaMetric, str] = {"concurrency": "open requests", "rps": "requests/s"}

UTILIZATION = 0.7
"""Share of what a replica can take that is its target (container-concurrency-target-percentage)."""
RPS_TARGET = 200.0
"""Requests/s that a replica can take, unless told (requests-per-second-target-default). Far above
any LLM replica: give a target of your own."""
PANIC_SHARE = 0.1
"""The panic window is so much of the stable one (panic-window-percentage)."""
SHORTEST_WINDOW_S = 6.0
"""Shortest stable window that Knative accepts."""
LONGEST_WINDOW_S = 3600.0
"""Longest stable window, and longest delay, that it accepts."""

# Own memory, in front of the rings: whether it began, times in s, and a count.
_BEGAN, _PANIC_AT, _PANIC_MOST, _ZERO_AT = range(4)
_OWN = 4


@dataclass(frozen=True)
class KpaConfig:
    """What a revision's annotations say."""

    target: float
    """Of the metric per replica, > 0; the utilisation is in it already."""
    metric: KpaMetric = "concurrency"
    """Requests that are open (`ongoing`), or arrivals per second (`qps`)."""
    stable_window_s: float = 60.0
    panic_window_s: float = 6.0
    panic_threshold: float = 2.0
    """Replicas that the panic window asks for, over ready ones, from which on it is a panic."""
    max_scale_up_rate: float = 1000.0
    """Most wanted replicas over ready ones, > 1."""
    max_scale_down_rate: float = 2.0
    """Ready replicas over fewest wanted ones, > 1."""
    scale_down_delay_s: float = 0.0
    """How long a lower count must have been wanted; the largest of that time counts."""
    scale_to_zero_grace_s: float = 30.0
    """How long 0 must have been wanted."""
    tick_s: float = 2.0
    """Time between two calls, > 0; it sizes the memory."""


@dataclass(frozen=True)
class KpaWish:
    """What the averages ask for, before delay and bounds; `(n,)` each."""

    stable: FloatArray
    """Mean of the metric over the stable window, NaN where there is no sample."""
    panic: FloatArray
    """Mean over the panic window."""
    ready: FloatArray
    """Replicas counted from, at least 1."""
    least: FloatArray
    """Fewest replicas that one tick goes down to."""
    most: FloatArray
    """Most replicas that one tick goes up to."""
    computed: FloatArray
    """Replicas of the averages alone, within least and most; NaN where nothing is known."""
    wanted: FloatArray
    """The same, or in a panic the most that the panic has wanted."""
    panicking: BoolArray
    panic_at_s: FloatArray
    """Since when it panics or went on to; NaN where it does not."""
    panic_most: FloatArray
    """Most replicas that this panic has wanted."""


@dataclass(frozen=True)
class KpaRule:
    """KPA over n targets. Settings are NaN where Knative would not change the count."""

    config: KpaConfig

    @cached_property
    def _samples(self) -> int:
        return places(self.config.stable_window_s, self.config.tick_s)

    @cached_property
    def _wishes(self) -> int:
        delay_s = self.config.scale_down_delay_s
        return places(delay_s, self.config.tick_s) if delay_s > 0 else 0

    @property
    def memory_size(self) -> int:
        return _OWN + 2 * (self._samples + self._wishes)

    def decide(self, now: ObservationArrays, memory: FloatArray) -> RuleResult:
        config, at_s = self.config, now.at_s
        memory = memory.copy()
        samples, wishes = self._rings(memory)
        measured = ongoing(now) if config.metric == "concurrency" else now.column("qps")
        ready = now.column("ready_replicas")
        samples.add(np.isfinite(measured), at_s, measured)
        begin(memory, at_s, ready)

        stable = samples.mean(at_s, config.stable_window_s)
        panic = samples.mean(at_s, config.panic_window_s)
        panic = np.where(np.isnan(panic), 0.0, panic)
        wish = self.wish(at_s, ready, stable, panic, memory)
        known = ~np.isnan(wish.wanted)
        memory[known, _PANIC_AT] = wish.panic_at_s[known]
        memory[known, _PANIC_MOST] = wish.panic_most[known]

        delayed = wish.wanted
        if self._wishes:
            delayed = wishes.largest(at_s, config.scale_down_delay_s, wish.wanted)
            wishes.add(known, at_s, wish.wanted)
        kept = self._without_grace(at_s, delayed, memory)

        spec = now.knobs["replicas"]
        settings = np.full(now.settings.shape, np.nan)
        settings[:, now.knobs.column("replicas")] = np.clip(kept, spec.low, spec.high)
        load = np.where(wish.panicking, np.maximum(stable, panic), stable)
        return RuleResult(
            settings=settings,
            raw=wish.computed,
            need=np.where(known, load / config.target, np.nan),
            memory=memory,
            why=KpaWords(config, wish, delayed, kept, float(spec.low), float(spec.high)),
        )

    def wish(
        self,
        at_s: FloatArray,
        ready: FloatArray,
        stable: FloatArray,
        panic: FloatArray,
        memory: FloatArray,
    ) -> KpaWish:
        """From the two averages, `(n,)` each, to replicas."""
        config = self.config
        counted = np.maximum(ready, 1.0)
        least = np.floor(counted / config.max_scale_down_rate)
        most = np.ceil(counted * config.max_scale_up_rate)
        asked = np.ceil(panic / config.target)
        over = asked / counted >= config.panic_threshold

        since = memory[:, _PANIC_AT]
        past = at_s - since > config.stable_window_s + GRID_SLACK_S
        panic_at = np.where(over, at_s, np.where(past, np.nan, since))
        panicking = ~np.isnan(panic_at)
        calm = np.clip(np.ceil(stable / config.target), least, most)
        computed = np.where(panicking, np.maximum(calm, np.clip(asked, least, most)), calm)
        panic_most = np.where(panicking, np.fmax(memory[:, _PANIC_MOST], computed), 0.0)
        return KpaWish(
            stable=stable,
            panic=panic,
            ready=counted,
            least=least,
            most=most,
            computed=computed,
            wanted=np.where(np.isnan(computed) | ~panicking, computed, panic_most),
            panicking=panicking,
            panic_at_s=panic_at,
            panic_most=panic_most,
        )

    def _rings(self, memory: FloatArray) -> tuple[Entries, Entries]:
        """The samples of the metric, and the wanted counts that the delay looks back over."""
        first, second = _OWN + self._samples, _OWN + 2 * self._samples
        third = second + self._wishes
        return (
            Entries(memory[:, _OWN:first], memory[:, first:second]),
            Entries(memory[:, second:third], memory[:, third:]),
        )

    def _without_grace(
        self, at_s: FloatArray, wanted: FloatArray, memory: FloatArray
    ) -> FloatArray:
        """`wanted`, and 1 where 0 has not been wanted for the grace period; counts that in
        `memory`, in place."""
        begins = (wanted == 0) & np.isnan(memory[:, _ZERO_AT])
        memory[begins, _ZERO_AT] = at_s[begins]
        memory[wanted > 0, _ZERO_AT] = np.nan
        waits = at_s - memory[:, _ZERO_AT] < self.config.scale_to_zero_grace_s - GRID_SLACK_S
        return np.where(waits & (wanted == 0), 1.0, wanted)


def begin(memory: FloatArray, at_s: FloatArray, ready: FloatArray) -> None:
    """The first call that sees more than one ready replica as the autoscaler starts is a panic that
    keeps them: it has no history to scale down on. In place."""
    first = np.isnan(memory[:, _BEGAN]) & ~np.isnan(ready)
    memory[first, _BEGAN] = 1.0
    many = first & (ready > 1)
    memory[many, _PANIC_AT] = at_s[many]
    memory[many, _PANIC_MOST] = ready[many]


@dataclass(frozen=True)
class KpaWords:
    """What one call of KpaRule worked with; called with a row, it tells that row."""

    config: KpaConfig
    wish: KpaWish
    delayed: FloatArray
    kept: FloatArray
    low: float
    high: float

    def __call__(self, row: int) -> str:
        """See `RuleResult.why`."""
        wish, config = self.wish, self.config
        computed = float(wish.computed[row])
        if np.isnan(wish.stable[row]):
            return f"{UNITS[config.metric]} not measured for {config.stable_window_s:g} s"
        if np.isnan(computed):
            return "ready replicas are not known"
        stable, panic = float(wish.stable[row]), float(wish.panic[row])
        said = f"{figure(stable)} {UNITS[config.metric]} over {config.stable_window_s:g} s"
        if wish.panicking[row]:
            said = f"panic: {said}, {figure(panic)} over {config.panic_window_s:g} s"
        said += f", target {figure(config.target)} each: {computed:.0f}"
        return ", ".join([said, *self._limits(row)])

    def _limits(self, row: int) -> list[str]:
        """What kept the count of the averages from being the answer; empty where nothing."""
        wish, config = self.wish, self.config
        computed, wanted = float(wish.computed[row]), float(wish.wanted[row])
        delayed, kept = float(self.delayed[row]), float(self.kept[row])
        words = []
        ready = f"{wish.ready[row]:.0f} ready"
        if computed == wish.least[row] and computed > self._asked(row):
            words.append(f"the least in one tick from {ready}")
        if computed == wish.most[row] and computed < self._asked(row):
            words.append(f"the most in one tick from {ready}")
        if wanted > computed:
            words.append(f"{wanted:.0f} while the panic lasts")
        if delayed > wanted:
            words.append(f"held at {delayed:.0f} by the delay of {config.scale_down_delay_s:g} s")
        if kept > delayed:
            words.append(f"1 until 0 is wanted for {config.scale_to_zero_grace_s:g} s")
        if kept < self.low:
            words.append(f"at least {self.low:.0f} allowed")
        if kept > self.high:
            words.append(f"at most {self.high:.0f} allowed")
        return words

    def _asked(self, row: int) -> float:
        """Replicas of the averages before the limits of one tick."""
        load = float(self.wish.stable[row])
        if self.wish.panicking[row]:
            load = max(load, float(self.wish.panic[row]))
        return float(np.ceil(load / self.config.target))


def build(options: Options, target: Target) -> RulePolicy:
    """Policy `kpa`.

    Options: `metric` concurrency (default) or rps; `target` per replica (default: 0.7 of
    `batch_size`, or of 200 requests/s); `stable_window_s`, `panic_window_s`, `panic_threshold`;
    `max_scale_up_rate`, `max_scale_down_rate`; `scale_down_delay_s`.

    Raises:
        ConfigError: an option is unknown or does not fit.
    """
    metric = options.choice("metric", METRICS, "concurrency")
    takes = RPS_TARGET if metric == "rps" else float(target.knobs["batch_size"].default)
    stable_s = options.span(
        "stable_window_s", KpaConfig.stable_window_s, LONGEST_WINDOW_S, SHORTEST_WINDOW_S
    )
    panic_s = options.above("panic_window_s", PANIC_SHARE * stable_s)
    if not panic_s <= stable_s:
        raise ConfigError(
            f"kpa: panic_window_s is {figure(panic_s)}, longer than stable_window_s "
            f"{figure(stable_s)}; make it a part of it, such as a tenth"
        )
    config = KpaConfig(
        target=options.above("target", UTILIZATION * takes),
        metric=metric,
        stable_window_s=stable_s,
        panic_window_s=panic_s,
        panic_threshold=options.above("panic_threshold", KpaConfig.panic_threshold, 1.0),
        max_scale_up_rate=options.above("max_scale_up_rate", KpaConfig.max_scale_up_rate, 1.0),
        max_scale_down_rate=options.above(
            "max_scale_down_rate", KpaConfig.max_scale_down_rate, 1.0
        ),
        scale_down_delay_s=options.span(
            "scale_down_delay_s", KpaConfig.scale_down_delay_s, LONGEST_WINDOW_S
        ),
        tick_s=target.tick_s,
    )
    options.finish()
    return RulePolicy("kpa", KpaRule(config))


def search(load: Load) -> tuple[Parameter, ...]:
    """The target of the default metric, the window, and what tames it: delay and panic."""
    around = load.in_flight
    return (
        Parameter("target", around / 2, 3 * around, "open requests per replica", log=True),
        Parameter("stable_window_s", 30.0, 600.0, "s", log=True),
        Parameter("scale_down_delay_s", 0.0, 1800.0, "s"),
        Parameter("panic_threshold", 1.1, 10.0, "", log=True),
    )


ENTRY = Entry(build, search, tick_s=2.0)
