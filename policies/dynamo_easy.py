"""`dynamo-easy`: the rule that NVIDIA Dynamo's planner runs by default, thresholds on each replica.

ai-dynamo 1.6.1, dynamo/planner/core/load_scaling.py (`_agg_easy_decision`, `_decode_easy_decision`,
`_prefill_easy_decision`): one replica more if any is above its threshold, one less if all are below
another and the survivors would not cross the first at once. No model, no window, no forecast: it
adds when a replica already has more to do than fits into its cache, and from four replicas it is at
one within 15 s of no load. `dynamo_pool` says what it sees and what holds it.

| load of a replica | `throughput`, up / down | `latency` | `load`: as given |
| --- | --- | --- | --- |
| (cache in use + queued prompts) / cache | > 1 / < 0.6 | > 0.4 / < 0.1 | >= / <= |
| prefill pool: queued prompts / longest request | >= 1 / < 0.1 | >= 0.1 / <= 0 | tokens, >= / <= |
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from policies.dynamo_pool import POOLS, TICK_S, Limits, Sizes, Workers
from policies.entry import Entry, Load, Parameter, Target
from policies.options import Options
from policies.rule import RulePolicy, RuleResult
from tuner.core.errors import ConfigError
from tuner.core.figures import figure
from tuner.core.observation import ObservationArrays
from tuner.core.protocols import BoolArray, FloatArray

TARGETS = ("throughput", "latency", "load")
THRESHOLDS = {
    ("cache", "throughput"): (1.0, 0.6),
    ("cache", "latency"): (0.4, 0.1),
    ("prefill", "throughput"): (1.0, 0.1),
    ("prefill", "latency"): (0.1, 0.0),
}
"""(up, down) by what is measured and the target."""
CONTEXT_TOKENS = 131_072
"""Longest request of DeepSeek-V3 and R1."""


@dataclass(frozen=True)
class Thresholds:
    """When a replica has too much to do, and when all have little."""

    up: float
    down: float
    up_at: bool
    """Whether a load equal to `up` is too much."""
    down_at: bool
    """Whether a load equal to `down` is little."""

    def above(self, worst: FloatArray) -> BoolArray:
        """Where the largest load is too much."""
        return np.asarray((worst >= self.up) if self.up_at else (worst > self.up))

    def below(self, worst: FloatArray) -> BoolArray:
        """Where the largest load is little, so all are."""
        return np.asarray((worst <= self.down) if self.down_at else (worst < self.down))


@dataclass(frozen=True)
class EasyRule:
    """Dynamo's easy mode over n targets.

    NaN where it makes no decision for want of data; n where it stays.
    """

    prefill: bool
    """Whether the load is the queue alone."""
    unit_tokens: float
    """Tokens that are a load of 1."""
    kv_tokens: int
    """That a replica's cache holds."""
    thresholds: Thresholds
    limits: Limits
    tick_s: float

    @property
    def memory_size(self) -> int:
        return Sizes.SIZE

    def decide(self, now: ObservationArrays, memory: FloatArray) -> RuleResult:
        sizes = Sizes.updated(memory, now, self.tick_s, self.kv_tokens)
        workers = Workers.of(now, self.kv_tokens, sizes.prompt_tokens)
        tokens = workers.queued_tokens + (0.0 if self.prefill else workers.kv_tokens)
        worst = workers.worst(tokens / self.unit_tokens)
        ready, limits = workers.ready, self.limits

        fewer = np.maximum(ready - 1, limits.min_endpoint)
        worst = np.where(workers.known, worst, np.nan)
        after = worst * ready / fewer
        # The survivors of a move down that would call for one up at once stay.
        fewer = np.where((fewer < ready) & (after >= self.thresholds.up), ready, fewer)
        may_fall = (ready > 1) | (workers.starting > 0)
        down = may_fall & self.thresholds.below(worst)
        up = self.thresholds.above(worst)
        decides = workers.decide
        wish = np.where(up, ready + 1, np.where(down, fewer, np.nan))
        wish = np.where(decides, wish, np.nan)

        target = limits.settle(workers, wish, np.ones(len(wish), dtype=bool))
        target = np.where(workers.known, target, np.nan)
        settings = np.full(now.settings.shape, np.nan)
        settings[:, now.knobs.column("replicas")] = target
        need = worst * ready / self.thresholds.up
        words = EasyWords(self, workers, worst, after, wish, target)
        raw = np.where(decides & np.isnan(wish), ready, wish)
        return RuleResult(settings, raw, need, sizes.memory, words)


@dataclass(frozen=True)
class EasyWords:
    """What one call of EasyRule worked with; called with a row, it tells that row."""

    rule: EasyRule
    workers: Workers
    worst: FloatArray
    after: FloatArray
    wish: FloatArray
    target: FloatArray

    def __call__(self, row: int) -> str:
        """See `RuleResult.why`."""
        workers = self.workers
        if missing := workers.missing(row):
            return missing
        n, ready, starting = (
            float(column[row]) for column in (workers.n, workers.ready, workers.starting)
        )
        if moves := workers.moves(row):
            return f"{moves}: {self.target[row]:.0f}"
        said = self._load(row, ready)
        wish, target = float(self.wish[row]), float(self.target[row])
        if starting and wish > ready:
            start = f"{starting:.0f} still start{'s' if starting == 1 else ''}"
            return f"{said}, {start}: {target:.0f}"
        if starting and target < n:
            return f"{said}, what starts is cancelled: {target:.0f}"
        if target < wish:
            return f"{said}, at most {target:.0f} allowed"
        return f"{said}: {target:.0f}"

    def _load(self, row: int, ready: float) -> str:
        """The fullest replica against the threshold that it crossed, or did not."""
        limits, worst, after = self.rule.thresholds, self.worst[row], float(self.after[row])
        fullest = "the replica" if ready == 1 else f"the fullest of {ready:.0f} replicas"
        what = "prompt tokens queued" if self.rule.prefill else "of its cache to hold"
        said = f"{fullest} has {self._amount(float(worst))} {what}"
        up, down = self._amount(limits.up), self._amount(limits.down)
        if limits.above(worst):
            return f"{said}, {'at or ' if limits.up_at else ''}above {up}"
        if not limits.below(worst):
            return f"{said}, between {down} and {up}"
        said += f", {'at or ' if limits.down_at else ''}below {down}"
        if ready > self.rule.limits.min_endpoint and after >= limits.up:
            return f"{said}, but with one fewer {self._amount(after)}"
        return said

    def _amount(self, load: float) -> str:
        if self.rule.prefill:
            return figure(load * self.rule.unit_tokens)
        return f"{100 * load:.3g} %"


def build(options: Options, target: Target) -> RulePolicy:
    """Policy `dynamo-easy`.

    Options: `optimization_target` throughput (default), latency or load; `pool` aggregated
    (default), decode or prefill; `up` and `down`, thresholds in place of the target's own, which
    load must have; `context_tokens` of a prefill pool; `min_endpoint`, `max_gpu_budget`.

    Raises:
        ConfigError: an option is unknown or does not fit, or there is no profile.
    """
    name = "dynamo-easy"
    profile = target.serving(name)
    aim = options.choice("optimization_target", TARGETS, "throughput")
    prefill = options.choice("pool", POOLS, "aggregated") == "prefill"
    for each in ("up", "down"):
        if not options.gives(each) and aim == "load":
            raise ConfigError(
                f"{name}: optimization_target load needs thresholds of its own; set {each}, in "
                f"{'prompt tokens' if prefill else 'shares of the cache'}"
            )
    up, down = THRESHOLDS.get(("prefill" if prefill else "cache", aim), (1.0, 0.0))
    up, down = options.number("up", up), options.number("down", down)
    if up <= 0 or down < 0:
        raise ConfigError(
            f"{name}: up is {up:g} and down is {down:g}; expected more than 0, and at least 0"
        )
    unit: float = profile.kv.tokens
    if prefill:
        context = options.whole("context_tokens", CONTEXT_TOKENS)
        if context < 1:
            raise ConfigError(f"{name}: context_tokens is {context}; expected at least 1")
        unit = 1.0 if aim == "load" else context
    rule = EasyRule(
        prefill=prefill,
        unit_tokens=unit,
        kv_tokens=profile.kv.tokens,
        thresholds=Thresholds(
            up,
            down,
            up_at=prefill or aim == "load",
            down_at=aim == "load" or (prefill and aim == "latency"),
        ),
        limits=Limits.build(name, options, target.knobs["replicas"], profile.gpus_per_replica),
        tick_s=target.tick_s,
    )
    options.finish()
    return RulePolicy(name, rule)


def search(load: Load) -> tuple[Parameter, ...]:
    """The threshold above which it adds, around what the best fixed fleet's replicas hold, and the
    one below which it takes away."""
    held = min(max(load.kv_cache_usage, 0.01), 1.0)
    return (
        Parameter("up", held / 4, max(1.2, 4 * held), "of the cache", log=True),
        Parameter("down", held / 16, max(0.6, held), "of the cache", log=True),
    )


ENTRY = Entry(build, search, tick_s=TICK_S)
