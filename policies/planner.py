"""Planner: a forecast of the load one cold start ahead, over what the profile says a replica takes.

Our own rival, and as strong as a model without learning gets here. Rules that follow one measured
signal cannot know that a replica takes minutes to start, nor that the same tokens per second are a
light load as long answers and a heavy one as long prompts. This one is told both by the serving
profile: the rates of one cold start ahead (`forecast`) over what one replica carries of that mix
within the objectives (`joint_capacity`), times a headroom. Where requests already wait it asks for
the replicas that hold all of them at once. It goes up at once, and down to the most that it asked
for within a window, which at the beginning is what is in force.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from policies.entries import Entries, places
from policies.entry import Entry, Load, Parameter, Target
from policies.forecast import OUTPUT, PROMPT, QPS, RATES, TINY, Forecast
from policies.joint_capacity import Carried, JointCapacity
from policies.options import Options
from policies.perf_model import PerfModel
from policies.rule import RulePolicy, RuleResult
from policies.tokens import tokens_each
from tuner.core.figures import figure
from tuner.core.knobs import KnobSpace
from tuner.core.observation import ObservationArrays
from tuner.core.profile import ServingProfile
from tuner.core.protocols import FloatArray
from tuner.data.profiles import load_profile

HEADROOM = 1.2
"""The dial. The model leaves no reserve beyond what steady loads need, so this is all for loads
that are not steady: what a jump may bring before the replicas come that it calls for."""
HOLD_S = 1800.0
"""A start is paid for and serves slowly at first, so a replica given up has to stay away for a
while to pay."""
TREND = 0.5
"""Half of a rise goes on. With all of it the fleet overshoots every jump of the DeepSeek-R1 day,
with none it needs more headroom for the same attainment, at about the same cost."""
LONGEST_S = 14_400.0
"""Of horizon and window: beyond four hours they are slips, and a window is remembered look by look.
"""
HELD_S = 300.0
"""Length of the mean, s, of what a sequence holds in the cache: it changes with the mix of
requests, not with their rate."""


@dataclass(frozen=True)
class Mix:
    """Requests of n targets."""

    qps: FloatArray
    """`(n,)` requests/s, > 0."""
    prompt_tokens: FloatArray
    """`(n,)` mean of a request, at least 1."""
    output_tokens: FloatArray
    """`(n,)` the same."""


def _mix(rates: FloatArray) -> Mix:
    """Of `(n, 3)` rates."""
    # Where no request comes, those under way go on: their tokens are few very long requests.
    qps = np.maximum(rates[:, QPS], TINY)
    prompt, output = (np.maximum(rates[:, column] / qps, 1.0) for column in (PROMPT, OUTPUT))
    return Mix(qps, prompt, output)


def _held(measured: FloatArray, usual: Mix) -> FloatArray:
    """`(n,)` tokens that a running sequence has in the cache: of the usual mix, not of a forecast
    one, its prompt and half its output where it is not measured."""
    halfway = usual.prompt_tokens + usual.output_tokens / 2
    return np.where(np.isnan(measured), halfway, np.maximum(measured, 1.0))


@dataclass(frozen=True)
class PlannerRule:
    """The planner over n targets.

    Settings are NaN where one of the forecast rates is not measured. Without the queue there is no
    catching up, and without the cache's use its share is taken from the mean lengths.
    """

    capacity: JointCapacity
    forecast: Forecast
    headroom: float = HEADROOM
    """Factor on what the forecast needs."""
    hold_s: float = HOLD_S
    """Window, s, over which the most that was asked for stays."""

    @cached_property
    def _borders(self) -> tuple[int, ...]:
        """Where the parts of the memory end: forecast, tokens held, times and counts asked for."""
        first = self.forecast.memory_size
        window = places(self.hold_s, self.forecast.tick_s)
        return (0, first, first + 1, first + 1 + window, first + 1 + 2 * window)

    @property
    def memory_size(self) -> int:
        return self._borders[-1]

    def decide(self, now: ObservationArrays, memory: FloatArray) -> RuleResult:
        memory = memory.copy()
        parts = [memory[:, start:stop] for start, stop in pairwise(self._borders)]
        state, held, asked = self.forecast.views(parts[0]), parts[1], Entries(parts[2], parts[3])

        rates = np.stack([_finite(now, name) for name in RATES], axis=1)
        before_s = state.at_s[:, 0].copy()
        known = self.forecast.see(state, now.at_s, rates)
        coming = self.forecast.ahead(state, now.at_s)
        self._see_held(held, now, before_s)
        mix = _mix(coming)
        carried = self._carried(now, mix, _held(held[:, 0], _mix(state.mean)))
        need = np.where(known, self.headroom * mix.qps / carried.qps, np.nan)

        waiting, running = _finite(now, "queue_depth"), _finite(now, "running")
        in_flight = np.where(waiting > 0, waiting + running, np.nan)
        backlog = np.where(known, in_flight / carried.room, np.nan)
        raw = _whole(np.fmax(need, backlog))
        n = now.settings[:, now.knobs.column("replicas")]
        # A controller that begins has seen no load yet: what is in force stays for a window.
        asked.add(np.isnan(asked.at_s).all(axis=1) & ~np.isnan(n), now.at_s, n)
        asked.add(known, now.at_s, raw)
        held_at = asked.largest(now.at_s, self.hold_s, raw)
        low, high = _bounds(now.knobs)
        column = now.knobs.column("replicas")
        settings = np.full(now.settings.shape, np.nan)
        settings[:, column] = np.where(known, np.clip(held_at, low, high), np.nan)
        words = PlannerWords(self, rates, mix, carried, in_flight, need, raw, held_at, low, high)
        return RuleResult(settings=settings, raw=raw, need=need, memory=memory, why=words)

    def _see_held(self, held: FloatArray, now: ObservationArrays, before_s: FloatArray) -> None:
        """Follow the tokens that a running sequence has in the cache; `held (n, 1)` is written."""
        running = _finite(now, "running")
        in_cache = np.minimum(_finite(now, "kv_cache_usage"), 1.0) * _finite(now, "ready_replicas")
        cache = self.capacity.model.kv_tokens
        measured = tokens_each(in_cache * cache, running, cache)
        share = -np.expm1((before_s - now.at_s) / HELD_S)
        moved = held[:, 0] + share * (measured - held[:, 0])
        moved = np.where(np.isnan(moved), measured, moved)
        held[:, 0] = np.where(np.isnan(measured), held[:, 0], moved)

    def _carried(self, now: ObservationArrays, mix: Mix, held: FloatArray) -> Carried:
        """What one replica takes of the mix that is coming."""
        most = np.full_like(held, float(self.capacity.model.batch_size_max))
        if "batch_size" in now.knobs.names:
            knob = now.settings[:, now.knobs.column("batch_size")]
            most = np.where(np.isnan(knob), most, np.minimum(knob, most))
        return self.capacity.carried(mix.prompt_tokens, mix.output_tokens, held, most)


@dataclass(frozen=True)
class PlannerWords:
    """What one call of PlannerRule worked with; called with a row, it tells that row."""

    rule: PlannerRule
    rates: FloatArray
    mix: Mix
    carried: Carried
    in_flight: FloatArray
    """`(n,)` requests waiting and running; NaN where none waits."""
    need: FloatArray
    raw: FloatArray
    held_at: FloatArray
    """`(n,)` the most of `raw` inside the window."""
    low: float
    high: float

    def __call__(self, row: int) -> str:
        """See `RuleResult.why`."""
        silent = [name for name, rate in zip(RATES, self.rates[row], strict=True) if np.isnan(rate)]
        if silent:
            return f"no value for {', '.join(silent)}"
        return ", ".join([self._asked(row), *self._pace(row)])

    def _asked(self, row: int) -> str:
        """What forecast or backlog ask for."""
        raw = float(self.raw[row])
        if raw > _whole(self.need[row]):
            return (
                f"{self.in_flight[row]:,.0f} requests wait or run, room for "
                f"{figure(self.carried.room[row])} on a replica: {raw:.0f}"
            )
        headroom = self.rule.headroom
        return (
            f"in {self.rule.forecast.horizon_s:.0f} s {figure(self.mix.qps[row])} requests/s of "
            f"{self.mix.prompt_tokens[row]:,.0f} prompt and {self.mix.output_tokens[row]:,.0f} "
            f"output tokens, {figure(self.carried.qps[row])} to a replica, is "
            f"{figure(self.need[row] / headroom)} x {headroom:g} headroom: {raw:.0f}"
        )

    def _pace(self, row: int) -> list[str]:
        """What the window and the bounds did to it; empty where nothing."""
        raw, held_at = float(self.raw[row]), float(self.held_at[row])
        words = []
        if held_at > raw:
            words.append(f"held at {held_at:.0f} by the window of {self.rule.hold_s:g} s")
        if held_at > self.high:
            words.append(f"at most {self.high:.0f} allowed")
        if held_at < self.low:
            words.append(f"at least {self.low:.0f} allowed")
        return words


def _whole(replicas: FloatArray) -> FloatArray:
    """Rounded up, but for a rounding error."""
    return np.asarray(np.ceil(np.maximum(replicas - 1e-6, 0.0)))


def _finite(now: ObservationArrays, name: str) -> FloatArray:
    """`(n,)` a scalar field; NaN where it is no number."""
    values = now.column(name)
    return np.where(np.isfinite(values), values, np.nan)


def _bounds(knobs: KnobSpace) -> tuple[float, float]:
    """Fewest and most replicas, never 0."""
    spec = knobs["replicas"]
    low = max(spec.low, 1)
    return float(low), float(max(low, spec.high))


def cold_start_s(profile: ServingProfile) -> float:
    """Median seconds from the wish for a replica until it serves, without warm-up requests."""
    return profile.startup.stages.sum_s if profile.startup else 0.0


def build(options: Options, target: Target) -> RulePolicy:
    """Policy `planner`.

    Options: `profile`, a built-in one or a file, in place of the target's; `headroom`; `horizon_s`
    (else one cold start of the profile and one tick); `hold_s`; `trend`; `season`.

    Raises:
        ConfigError: an option is unknown or does not fit, or there is no profile.
        ProfileError: the profile cannot be used.
    """
    named = options.text("profile", "")
    profile = load_profile(named) if named else target.serving("planner")
    horizon_s = cold_start_s(profile) + target.tick_s
    forecast = Forecast(
        horizon_s=options.span("horizon_s", horizon_s, most=LONGEST_S),
        tick_s=target.tick_s,
        trend=options.share("trend", TREND),
        season=options.share("season", 0.0),
    )
    rule = PlannerRule(
        capacity=JointCapacity(PerfModel(profile), target.slo),
        forecast=forecast,
        headroom=options.above("headroom", HEADROOM),
        hold_s=options.span("hold_s", HOLD_S, most=LONGEST_S),
    )
    options.finish()
    return RulePolicy("planner", rule)


def search(load: Load) -> tuple[Parameter, ...]:
    """Headroom, then what else moves the curve of cost against attainment.

    The horizon is not searched: the cold start is known, and without a season a longer horizon is
    the same as more trend.
    """
    return (
        Parameter("headroom", 0.6, 2.5, "", log=True),
        Parameter("hold_s", 0.0, 7200.0, "s"),
        Parameter("trend", 0.0, 1.0, ""),
    )


ENTRY = Entry(build, search, tick_s=15.0, modelled=True)
