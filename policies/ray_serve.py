"""Ray Serve's default autoscaling: open requests over a target, after a delay, no dead band.

The rules of `python/ray/serve/autoscaling_policy.py` of ray-project/ray, commit 00590c456b; what is
counted, as in `serve/_private/autoscaling_state.py`; defaults as documented for AutoscalingConfig.

**Delays.** Ray decides every 0.1 s and applies the newest count once more than `delay / 0.1`
decisions in a row pointed the same way: for 30 s the 301st of them, which comes 30 s after the
first. Between two metrics nothing changes, so here the way is looked at once per tick, and a count
is applied at the first tick that lies the delay or more after the one where the way began. A tick
that agrees with the replicas in force ends the wait.

**Following.** Ray's own target is what it applied last. Here a guardrail may narrow a proposal, and
a fallback is not followed at all: then the count goes on to be asked for, until the replicas in
force are what was asked or the way turns.

**Averages.** Ray averages what replicas and handles push every 10 s; here each tick is a sample,
and the load is the mean of those younger than `look_back_s`. With no sample there Ray counts 0
requests, and so does this.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from policies.entries import GRID_SLACK_S, Entries, places
from policies.entry import Entry, Load, Parameter, Target
from policies.ongoing import ongoing
from policies.options import Options
from policies.rule import RulePolicy, RuleResult
from tuner.core.figures import figure
from tuner.core.observation import ObservationArrays
from tuner.core.protocols import BoolArray, FloatArray

LONGEST_S = 3600.0
"""Longest window and longest delay that are accepted here; Ray has no limit."""

# Own memory, in front of the ring: which way the count is to go (1 up, -1 down), since when, and
# what was applied at the tick before.
_WAY, _SINCE, _APPLIED = range(3)
_OWN = 3


@dataclass(frozen=True)
class RayServeConfig:
    """AutoscalingConfig of a deployment, without its bounds: those are the knob's range."""

    target: float = 2.0
    """target_ongoing_requests per replica, > 0."""
    look_back_s: float = 30.0
    """look_back_period_s."""
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0
    upscaling_factor: float = 1.0
    """Share of the way up that is gone at once, > 0."""
    downscaling_factor: float = 1.0
    tick_s: float = 10.0
    """Time between two calls, > 0; it sizes the memory."""


@dataclass(frozen=True)
class RayServeWish:
    """What the load asks for, and how long that has to wait; `(n,)` each."""

    total: FloatArray
    """Open requests, mean of the window; NaN where there is no sample, which counts as 0."""
    scaled: FloatArray
    """Replicas asked for; NaN where the replicas in force or ready are not known."""
    bounded: FloatArray
    """The same within the knob's range, and not 0 from more than 1."""
    held_s: FloatArray
    """How long the count has been asked to go this way; NaN where it agrees."""
    delay_s: FloatArray
    """How long it has to."""
    to: FloatArray
    """Replicas to set."""


@dataclass(frozen=True)
class RayServeRule:
    """Ray Serve over n targets. Settings are NaN where the fleet itself is not seen."""

    config: RayServeConfig

    @cached_property
    def _samples(self) -> int:
        return places(self.config.look_back_s, self.config.tick_s)

    @property
    def memory_size(self) -> int:
        return _OWN + 2 * self._samples

    def decide(self, now: ObservationArrays, memory: FloatArray) -> RuleResult:
        config, at_s = self.config, now.at_s
        memory = memory.copy()
        middle = _OWN + self._samples
        samples = Entries(memory[:, _OWN:middle], memory[:, middle:])
        requests = ongoing(now)
        samples.add(~np.isnan(requests), at_s, requests)

        column = now.knobs.column("replicas")
        n, ready = now.settings[:, column], now.column("ready_replicas")
        total = samples.mean(at_s, config.look_back_s)
        load = np.nan_to_num(total)
        scaled = np.where(ready > 0, self.scaled(ready, load), np.nan)
        # With none ready there is nothing to divide by: the first step, without a wait.
        cold = ready == 0
        first = np.where(load > 0, np.maximum(np.ceil(config.upscaling_factor), n), n)
        asked = np.where(np.isnan(n), np.nan, np.where(cold, first, scaled))

        spec = now.knobs["replicas"]
        bounded = np.clip(asked, spec.low, spec.high)
        bounded = np.where((bounded < n) & (n != 1), np.maximum(bounded, 1), bounded)
        wish = self._paced(at_s, n, cold, total, asked, bounded, memory)
        settings = np.full(now.settings.shape, np.nan)
        settings[:, column] = np.clip(wish.to, spec.low, spec.high)
        return RuleResult(
            settings=settings,
            raw=asked,
            need=np.where(np.isnan(asked), np.nan, load / config.target),
            memory=memory,
            why=RayServeWords(config, n, cold, wish, float(spec.low), float(spec.high)),
        )

    def scaled(self, ready: FloatArray, load: FloatArray) -> FloatArray:
        """`(n,)` replicas for `load` open requests, where `ready` serve them."""
        config = self.config
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            # In Ray's own order: what is rounded up depends on the last bit.
            desired = ready * (load / (config.target * ready))
        step = desired - ready
        factor = np.where(step > 0, config.upscaling_factor, config.downscaling_factor)
        scaled = np.ceil(ready + factor * step)
        stuck = (np.ceil(desired) < ready) & (scaled == ready)
        return np.where(stuck, scaled - 1, scaled)

    def _paced(
        self,
        at_s: FloatArray,
        n: FloatArray,
        cold: BoolArray,
        total: FloatArray,
        asked: FloatArray,
        bounded: FloatArray,
        memory: FloatArray,
    ) -> RayServeWish:
        """The count once it has waited; keeps the wait in `memory`, in place."""
        config = self.config
        way = np.sign(bounded - n)
        waits = ~cold & ~np.isnan(way)
        followed = n == memory[:, _APPLIED]
        turned = waits & ((way != memory[:, _WAY]) | followed)
        memory[turned, _SINCE] = at_s[turned]
        memory[waits, _WAY] = way[waits]
        moves = waits & (way != 0)

        held_s = np.where(moves, at_s - memory[:, _SINCE], np.nan)
        delay_s = np.where(way > 0, config.upscale_delay_s, config.downscale_delay_s)
        applied = moves & ~(held_s < delay_s - GRID_SLACK_S)
        memory[~np.isnan(n), _APPLIED] = np.nan
        memory[applied, _APPLIED] = bounded[applied]
        return RayServeWish(
            total=total,
            scaled=asked,
            bounded=bounded,
            held_s=held_s,
            delay_s=delay_s,
            to=np.where(applied | cold, bounded, np.where(np.isnan(asked), np.nan, n)),
        )


@dataclass(frozen=True)
class RayServeWords:
    """What one call of RayServeRule worked with; called with a row, it tells that row."""

    config: RayServeConfig
    n: FloatArray
    cold: BoolArray
    wish: RayServeWish
    low: float
    high: float

    def __call__(self, row: int) -> str:
        """See `RuleResult.why`."""
        n, wish = float(self.n[row]), self.wish
        if np.isnan(n):
            return "the replicas in force are not known"
        if np.isnan(wish.scaled[row]):
            return "ready replicas are not known"
        window = f"{self.config.look_back_s:g} s"
        if np.isnan(wish.total[row]):
            said = f"no sample for {window}, which counts as 0 open requests"
        else:
            said = f"{figure(float(wish.total[row]))} open requests over {window}"
        if self.cold[row]:
            return f"{said}, none ready: {float(wish.to[row]):.0f}"
        said += f", target {figure(self.config.target)} each: {float(wish.scaled[row]):.0f}"
        return ", ".join([said, *self._pace(row)])

    def _pace(self, row: int) -> list[str]:
        """What bounds and delays did; empty where nothing."""
        n, wish = float(self.n[row]), self.wish
        scaled, bounded = float(wish.scaled[row]), float(wish.bounded[row])
        words = []
        if bounded > scaled:
            words.append(f"at least {bounded:.0f} allowed")
        if bounded < scaled:
            words.append(f"at most {bounded:.0f} allowed")
        if not np.isnan(wish.held_s[row]) and wish.to[row] == n:
            held, delay = f"{wish.held_s[row]:.0f} s", f"{wish.delay_s[row]:g} s"
            words.append(f"held at {n:.0f} until it has lasted {delay} ({held} so far)")
        return words


def build(options: Options, target: Target) -> RulePolicy:
    """Policy `ray-serve`.

    Options: `target` open requests per replica; `look_back_s`; `upscale_delay_s`,
    `downscale_delay_s`; `upscaling_factor`, `downscaling_factor`.

    Raises:
        ConfigError: an option is unknown or does not fit.
    """
    default = RayServeConfig()
    config = RayServeConfig(
        target=options.above("target", default.target),
        look_back_s=options.span("look_back_s", default.look_back_s, LONGEST_S, 1.0),
        upscale_delay_s=options.span("upscale_delay_s", default.upscale_delay_s, LONGEST_S),
        downscale_delay_s=options.span("downscale_delay_s", default.downscale_delay_s, LONGEST_S),
        upscaling_factor=options.above("upscaling_factor", default.upscaling_factor),
        downscaling_factor=options.above("downscaling_factor", default.downscaling_factor),
        tick_s=target.tick_s,
    )
    options.finish()
    return RulePolicy("ray-serve", RayServeRule(config))


def search(load: Load) -> tuple[Parameter, ...]:
    """The target, and the delays that stand in for a dead band."""
    around = load.in_flight
    return (
        Parameter("target", around / 2, 3 * around, "open requests per replica", log=True),
        Parameter("upscale_delay_s", 0.0, 120.0, "s"),
        Parameter("downscale_delay_s", 60.0, 1800.0, "s", log=True),
        Parameter("look_back_s", 10.0, 120.0, "s", log=True),
    )


ENTRY = Entry(build, search, tick_s=10.0)
