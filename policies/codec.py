"""Between observations and a network: features in, settings out.

Description
    A learned policy does not count replicas: it moves the headroom of a base rule. The codec turns
    the observations of n targets into a row of features relative to what that rule says the load
    needs, and turns the network's answer into settings. The vector environment and the live policy
    call the same arrays, so what is trained is what acts. Everything is a pure function; averages
    and the hold-down live in `memory`, which travels from tick to tick.

Actions
    One number per knob of the space, in its order, float32. A knob that no head moves, or that the
    profile does not model, has the range 0..0 and follows the base rule.

    | head | at -1 | at 0 | at +1 | between |
    | --- | --- | --- | --- | --- |
    | replicas, `factor` | need x factor_low | need x 1 | need x factor_high | geometric, then up |
    | replicas, `step` | in force - max_step | in force | in force + max_step | linear, rounded |
    | any other knob | its low | its default | its high | linear in log(1 + value), rounded |

    Need is the base rule's `need`: the load over the rule's target, before any tolerance. What the
    factor head wants is rounded up, and never falls below what it wanted within the last `hold_s`;
    the window starts with the replicas in force. Where the rule cannot tell the need, replicas are
    left alone.

Features
    Ranges are those of the encoded float32 value. A feature whose field is not measured takes the
    value in the last column; the flags tell it from a measurement. `vs` is a log2 ratio.

    | feature | low | high | missing |
    | --- | --- | --- | --- |
    | need_known | 0 | 1 | 0 |
    | latency_known | 0 | 1 | 0 |
    | in_flight_known | 0 | 1 | 0 |
    | need_log2 | -3 | 7 | 0 |
    | need_to_next | 0 | 1 | 0 |
    | need_vs_1m | -2 | 2 | 0 |
    | need_vs_5m | -2 | 2 | 0 |
    | need_vs_15m | -3 | 3 | 0 |
    | need_vs_60m | -3 | 3 | 0 |
    | need_vs_peak | -4 | 0 | 0 |
    | need_swing | 0 | 2 | 0 |
    | qps_vs_1m | -2 | 2 | 0 |
    | qps_vs_15m | -3 | 3 | 0 |
    | prompt_tokens_vs_15m | -3 | 3 | 0 |
    | in_flight_vs_5m | -3 | 3 | 0 |
    | in_flight_per_ready | 0 | 12 | 0 |
    | in_flight_per_slot | 0 | 3 | 0 |
    | queue_per_ready | 0 | 12 | 0 |
    | kv_cache_usage | 0 | 1 | 0 |
    | preemptions | 0 | 8 | 0 |
    | ttft_p50_vs_objective | -8 | 4 | -8 |
    | ttft_p95_vs_objective | -8 | 4 | -8 |
    | ttft_p99_vs_objective | -8 | 4 | -8 |
    | tpot_p50_vs_objective | -4 | 3 | -4 |
    | tpot_p99_vs_objective | -4 | 3 | -4 |
    | ready_vs_need | -3 | 3 | 0 |
    | present_vs_need | -3 | 3 | 0 |
    | wanted_vs_need | -3 | 3 | 0 |
    | base_vs_need | -3 | 3 | 0 |
    | held_vs_need | -3 | 3 | 0 |
    | starting_share | 0 | 1 | 0 |
    | starting_oldest | 0 | 3 | 0 |
    | starting_youngest | 0 | 3 | 0 |
    | last_action | -1 | 1 | 0 |
    | day_sin | -1 | 1 | 0 |
    | day_cos | -1 | 1 | 0 |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from policies.rule import Rule, RuleResult
from tuner.core.errors import ConfigError
from tuner.core.figures import figure
from tuner.core.knobs import KnobSpace
from tuner.core.observation import COLUMN, REPLICA_STATES, ObservationArrays, ReplicaState
from tuner.core.protocols import FloatArray
from tuner.core.slo import Slo

Float32Array = NDArray[np.float32]

DAY_S = 86_400.0
AGE_UNIT_S = 600.0
"""Ages of starting replicas are told in ten minutes, about one cold start of a 671B model."""
LARGEST = 1e12
"""Measurements are cut here, so that a broken exporter cannot overflow an average."""

LEAST_REPLICAS = 0.25
"""Smallest need and replica count that a ratio uses: below, a fleet of one is all there is."""


@dataclass(frozen=True)
class FeatureSpec:
    """One number of the observation vector."""

    name: str
    low: float
    """Smallest encoded value; what lies below is cut."""
    high: float
    """Largest encoded value."""
    unit: str
    meaning: str
    missing: float = 0.0
    """Encoded value where the field behind it is not measured."""


@dataclass(frozen=True)
class _Average:
    """An exponential average the codec keeps, irregular ticks allowed."""

    signal: str
    tau_s: float
    floor: float
    """Added to both sides of a ratio, so that silence divided by silence is no news."""


_AVERAGES = (
    _Average("need", 60.0, 0.05),
    _Average("need", 300.0, 0.05),
    _Average("need", 900.0, 0.05),
    _Average("need", 3600.0, 0.05),
    _Average("qps", 60.0, 0.02),
    _Average("qps", 900.0, 0.02),
    _Average("prompt_tokens_per_s", 900.0, 20.0),
    _Average("in_flight", 300.0, 1.0),
)
_TAU_S = np.array([average.tau_s for average in _AVERAGES])
_FLOOR = np.array([average.floor for average in _AVERAGES])
_NEED_5M = 1
_SWING_TAU_S = 900.0
_PEAK_TAU_S = 3600.0

# Own memory, behind the base rule's: scalars, averages, then the hold-down's ring.
_LAST_AT, _NEED, _PEAK, _SWING, _LAST_ACTION, _BUCKET = range(6)
_SCALARS = 6
_RING = _SCALARS + len(_AVERAGES)

_LATENCIES = ("ttft_p50_s", "ttft_p95_s", "ttft_p99_s", "tpot_p50_s", "tpot_p99_s")
_STARTING_CODES = tuple(
    REPLICA_STATES.index(state)
    for state in (ReplicaState.PENDING, ReplicaState.STARTING, ReplicaState.WARMING)
)


def _vs(name: str, meaning: str, width: float, missing: float = 0.0) -> FeatureSpec:
    return FeatureSpec(name, -width, width, "log2", meaning, missing)


def _latency(name: str, low: float, high: float) -> FeatureSpec:
    metric = name.removesuffix("_vs_objective").replace("_", " ")
    return FeatureSpec(name, low, high, "log2", f"{metric} over its objective", low)


FEATURES: tuple[FeatureSpec, ...] = (
    FeatureSpec("need_known", 0, 1, "flag", "the base rule can tell the need now"),
    FeatureSpec("latency_known", 0, 1, "flag", "a request got its first token in the window"),
    FeatureSpec("in_flight_known", 0, 1, "flag", "in-flight requests are measured"),
    FeatureSpec("need_log2", -3, 7, "log2 replicas", "need; the last one known while unknown"),
    FeatureSpec("need_to_next", 0, 1, "replicas", "room that rounding the need up leaves"),
    _vs("need_vs_1m", "need over its average of 1 min", 2),
    _vs("need_vs_5m", "need over its average of 5 min", 2),
    _vs("need_vs_15m", "need over its average of 15 min", 3),
    _vs("need_vs_60m", "need over its average of 60 min", 3),
    FeatureSpec("need_vs_peak", -4, 0, "log2", "need over its peak, forgotten within about 1 h"),
    FeatureSpec("need_swing", 0, 2, "log2", "root mean square of need_vs_5m over 15 min"),
    _vs("qps_vs_1m", "arrivals over their average of 1 min", 2),
    _vs("qps_vs_15m", "arrivals over their average of 15 min", 3),
    _vs("prompt_tokens_vs_15m", "prompt tokens/s over their average of 15 min", 3),
    _vs("in_flight_vs_5m", "requests in flight over their average of 5 min", 3),
    FeatureSpec("in_flight_per_ready", 0, 12, "log2(1 + requests)", "in flight per ready replica"),
    FeatureSpec("in_flight_per_slot", 0, 3, "ratio", "in flight over ready x batch_size"),
    FeatureSpec("queue_per_ready", 0, 12, "log2(1 + requests)", "waiting per ready replica"),
    FeatureSpec("kv_cache_usage", 0, 1, "0-1", "mean share of KV blocks in use"),
    FeatureSpec("preemptions", 0, 8, "log2(1 + 1/s)", "requests put back per second"),
    _latency("ttft_p50_vs_objective", -8, 4),
    _latency("ttft_p95_vs_objective", -8, 4),
    _latency("ttft_p99_vs_objective", -8, 4),
    _latency("tpot_p50_vs_objective", -4, 3),
    _latency("tpot_p99_vs_objective", -4, 3),
    _vs("ready_vs_need", "ready replicas over need", 3),
    _vs("present_vs_need", "ready and starting replicas over need", 3),
    _vs("wanted_vs_need", "replicas setting in force over need", 3),
    _vs("base_vs_need", "what the base rule wants, with its windows, over need", 3),
    _vs("held_vs_need", "largest wish within the hold-down over need", 3),
    FeatureSpec("starting_share", 0, 1, "0-1", "starting replicas among ready and starting"),
    FeatureSpec("starting_oldest", 0, 3, "10 min", "age of the oldest starting replica"),
    FeatureSpec("starting_youngest", 0, 3, "10 min", "age of the youngest starting replica"),
    FeatureSpec("last_action", -1, 1, "action", "the replicas action of the tick before"),
    FeatureSpec("day_sin", -1, 1, "-", "sine of the clock's time within 24 h"),
    FeatureSpec("day_cos", -1, 1, "-", "cosine of the clock's time within 24 h"),
)
"""Every feature, in the order of the observation vector."""

_LOW = np.array([spec.low for spec in FEATURES], dtype=np.float64)
_HIGH = np.array([spec.high for spec in FEATURES], dtype=np.float64)
_MISSING = np.array([spec.missing for spec in FEATURES], dtype=np.float64)
_AT = {spec.name: column for column, spec in enumerate(FEATURES)}
_DAY_FEATURES = ("day_sin", "day_cos")


@dataclass(frozen=True)
class CodecConfig:
    """How the network's answer is read, and what it is told. Part of a policy bundle."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    replica_action: Literal["factor", "step"] = "factor"
    """`factor` on the base rule's need, or `step` from the replicas in force. A factor starts at
    the rule and cannot drift from it; steps learned from scratch end in holding still."""
    factor_low: float = 0.7
    """Factor at action -1, above 0 and below 1."""
    factor_high: float = 1.6
    """Factor at action +1, above 1."""
    max_step: int = 4
    """Replicas that the step head adds at action +1."""
    move: tuple[str, ...] = ("replicas",)
    """Knobs that have a head; the others follow the base rule."""
    hold_s: float = 300.0
    """Down hold of the factor head, s; HPA's default window. 0 holds nothing."""
    tick_s: float = 15.0
    """Resolution of the down hold, s: the controller's period. Other periods only make the hold
    up to this much longer."""
    ttft_objective_s: float = Slo.ttft_s
    """What TTFT features are relative to, s."""
    tpot_objective_s: float = Slo.tpot_s
    """What TPOT features are relative to, s/token."""
    time_of_day: bool = False
    """Whether the network sees the clock. For traces of many days whose clock is the target's: the
    time stamps of a single day would only be learned by heart."""

    def __post_init__(self) -> None:
        if self.replica_action not in ("factor", "step"):
            raise ConfigError(
                f"codec.replica_action is '{self.replica_action}'; expected factor or step"
            )
        if not 0 < self.factor_low < 1 < self.factor_high < np.inf:
            raise ConfigError(
                f"codec.factor_low is {self.factor_low} and factor_high {self.factor_high}; "
                "expected 0 < factor_low < 1 < factor_high"
            )
        if self.max_step < 1:
            raise ConfigError(f"codec.max_step is {self.max_step}; expected at least 1")
        if not (0 <= self.hold_s < np.inf and 0 < self.tick_s < np.inf):
            raise ConfigError(
                f"codec.hold_s is {self.hold_s} and tick_s {self.tick_s}; "
                "expected hold_s >= 0 and tick_s > 0"
            )
        if not (0 < self.ttft_objective_s < np.inf and 0 < self.tpot_objective_s < np.inf):
            raise ConfigError(
                f"codec objectives are {self.ttft_objective_s} s and {self.tpot_objective_s} "
                "s/token; expected both above 0"
            )


@dataclass(frozen=True)
class Seen:
    """What `observe` made of one tick of n targets; `act` takes it."""

    features: Float32Array
    """`(n, features)` float32 within the features' ranges, always finite."""
    base: RuleResult
    """What the base rule wants."""
    memory: FloatArray
    """`(n, memory_size)`, on its way to the next tick."""


@dataclass(frozen=True)
class Codec:
    """Features and heads of one target's knobs over one base rule. Pure; the memory is all state.

    Raises:
        ConfigError: when `config.move` or `pinned` names a knob that the space lacks, or the space
            has no `replicas`.
    """

    knobs: KnobSpace
    base: Rule
    """The rule whose headroom the replicas head moves; HPA on output tokens/s by default."""
    config: CodecConfig = CodecConfig()
    pinned: Mapping[str, str] = field(default_factory=dict)
    """Knob -> why it must not move here, e.g. because the profile does not model it."""

    def __post_init__(self) -> None:
        for name in ("replicas", *self.config.move, *self.pinned):
            self.knobs.column(name)

    @cached_property
    def features(self) -> tuple[FeatureSpec, ...]:
        """The observation vector, in order."""
        return FEATURES if self.config.time_of_day else FEATURES[: -len(_DAY_FEATURES)]

    @cached_property
    def moves(self) -> tuple[str, ...]:
        """Knobs that really have a head, in the order of the space."""
        asked = set(self.config.move) - set(self.pinned)
        return tuple(name for name in self.knobs.names if name in asked)

    @cached_property
    def still(self) -> Mapping[str, str]:
        """Knob without a head -> why."""
        reasons = {name: "no head: not among codec.move" for name in self.knobs.names}
        reasons |= self.pinned
        return {name: why for name, why in reasons.items() if name not in self.moves}

    @cached_property
    def action_high(self) -> Float32Array:
        """`(knobs,)` float32: 1 for a knob with a head, else 0."""
        high = np.array([name in self.moves for name in self.knobs.names], dtype=np.float32)
        high.flags.writeable = False
        return high

    @property
    def action_low(self) -> Float32Array:
        """`(knobs,)` float32: -1 for a knob with a head, else 0."""
        return -self.action_high

    @cached_property
    def observation_low(self) -> Float32Array:
        """`(features,)` float32."""
        return np.array([spec.low for spec in self.features], dtype=np.float32)

    @cached_property
    def observation_high(self) -> Float32Array:
        """`(features,)` float32."""
        return np.array([spec.high for spec in self.features], dtype=np.float32)

    @cached_property
    def memory_size(self) -> int:
        """Numbers per target between ticks: the base rule's, then the codec's own."""
        return self.base.memory_size + _RING + self._ring_slots

    @cached_property
    def _ring_slots(self) -> int:
        """Buckets of the hold-down; none where nothing is held."""
        if self.config.replica_action != "factor" or "replicas" not in self.moves:
            return 0
        # On an exact grid the wish of hold_s ago is out, as a sync of HPA's is.
        return int(np.ceil(self.config.hold_s / self.config.tick_s))

    @cached_property
    def _replicas(self) -> int:
        return self.knobs.column("replicas")

    def empty_memory(self, n: int) -> FloatArray:
        """`(n, memory_size)` of NaN: nothing seen yet."""
        return np.full((n, self.memory_size), np.nan)

    def observe(self, now: ObservationArrays, memory: FloatArray) -> Seen:
        """Features of n targets, and the memory brought up to now.

        Args:
            now: the latest observations; anything in them may be missing or not finite.
            memory: `(n, memory_size)` from `act` at the tick before; all NaN at the first.
        """
        split = self.base.memory_size
        base = self.base.decide(now, memory[:, :split])
        own = np.array(memory[:, split:])
        # An exporter's infinity says as little as its silence.
        values = np.where(np.isfinite(now.values), np.clip(now.values, 0.0, LARGEST), np.nan)
        need_now = np.where(np.isfinite(base.need), np.clip(base.need, 0.0, LARGEST), np.nan)
        self._remember(own, now, values, need_now)
        raw = self._encode(own, now, values, need_now, base)
        features = np.clip(np.where(np.isnan(raw), _MISSING, raw), _LOW, _HIGH)
        return Seen(
            features=features[:, : len(self.features)].astype(np.float32),
            base=base,
            memory=np.concatenate([base.memory, own], axis=1),
        )

    def act(
        self, action: NDArray[np.floating], now: ObservationArrays, seen: Seen
    ) -> tuple[FloatArray, FloatArray]:
        """Settings wanted for n targets, and the memory for the next tick.

        Args:
            action: `(n, knobs)`; cut to the action range, so a pinned knob's column is ignored.
            now: the observations that `seen` was made of.
            seen: what `observe` returned.

        Returns:
            `(n, knobs)` whole numbers within the knob space, NaN where a knob is left alone, and
            `(n, memory_size)`.
        """
        cut = np.clip(np.asarray(action, dtype=np.float64), self.action_low, self.action_high)
        settings = self._bounded(seen.base.settings)
        memory = np.array(seen.memory)
        own = memory[:, self.base.memory_size :]
        for name in self.moves:
            column = self.knobs.column(name)
            if name != "replicas":
                settings[:, column] = self._absolute(cut[:, column], column)
            elif self.config.replica_action == "factor":
                settings[:, column] = self._held(own, self._factored(cut[:, column], seen.base))
            else:
                step = np.rint(cut[:, column] * self.config.max_step)
                settings[:, column] = now.settings[:, column] + step
        own[:, _LAST_ACTION] = cut[:, self._replicas]
        return self._bounded(settings), memory

    def why(
        self, row: int, action: NDArray[np.floating], now: ObservationArrays, seen: Seen, base: str
    ) -> str:
        """How `act` came to the settings of one row, in one line, of the numbers it used.

        Args:
            row: the target.
            action: as given to `act`.
            now: as given to `act`.
            seen: as given to `act`.
            base: the name of the base rule.
        """
        one = slice(row, row + 1)
        cut = np.clip(np.asarray(action[one], dtype=np.float64), self.action_low, self.action_high)
        said = []
        if "replicas" not in self.moves:
            said.append(f"{base}: {seen.base.why(row)}")
        elif self.config.replica_action == "factor":
            said.append(self._why_factor(row, cut[:, self._replicas], seen, base))
        else:
            said.append(self._why_step(float(cut[0, self._replicas]), now.settings[row]))
        for name in self.moves:
            if name != "replicas":
                column = self.knobs.column(name)
                said.append(f"{name} {self._absolute(cut[:, column], column)[0]:.0f} by its head")
        return "; ".join(said)

    def _why_factor(self, row: int, action: FloatArray, seen: Seen, base: str) -> str:
        need = float(seen.base.need[row])
        if not np.isfinite(need):
            return f"{base} cannot tell the need: {seen.base.why(row)}"
        factor = float(self._factor(action)[0])
        spec = self.knobs.specs[self._replicas]
        asked = float(np.ceil(need * factor))
        wanted = float(np.clip(asked, spec.low, spec.high))
        said = f"x{factor:.2f} on {base}'s need of {figure(need)}: {figure(asked)}"
        if wanted != asked:
            said += f", {'at most' if wanted < asked else 'at least'} {wanted:.0f} allowed"
        held = self._held_now(seen.memory[row : row + 1, self.base.memory_size :])[0]
        if held > wanted:
            said += f", held at {held:.0f} by the window of {self.config.hold_s:g} s"
        return said

    def _why_step(self, action: float, in_force: FloatArray) -> str:
        replicas = float(in_force[self._replicas])
        if np.isnan(replicas):
            return "the replicas in force are not known"
        step = float(np.rint(action * self.config.max_step))
        asked = replicas + step
        spec = self.knobs.specs[self._replicas]
        wanted = float(np.clip(asked, spec.low, spec.high))
        said = f"{step:+.0f} on the {replicas:.0f} in force: {asked:.0f}"
        if wanted != asked:
            said += f", {'at most' if wanted < asked else 'at least'} {wanted:.0f} allowed"
        return said

    # Memory ----------------------------------------------------------------------------------

    def _remember(
        self, own: FloatArray, now: ObservationArrays, values: FloatArray, need: FloatArray
    ) -> None:
        """Bring averages, peak and the hold-down's ring up to `now`, in place."""
        first = np.isnan(own[:, _LAST_AT])
        passed_s = np.where(first, 0.0, np.maximum(now.at_s - own[:, _LAST_AT], 0.0))
        own[:, _LAST_AT] = now.at_s
        own[:, _NEED] = np.where(np.isnan(need), own[:, _NEED], need)

        averages = own[:, _SCALARS:_RING]
        five = averages[:, _NEED_5M]
        square = np.log2((need + 0.05) / (np.where(np.isnan(five), need, five) + 0.05)) ** 2
        own[:, _SWING] = _follow(own[:, _SWING], square, passed_s / _SWING_TAU_S)
        faded = own[:, _PEAK] * np.exp(-passed_s / _PEAK_TAU_S)
        own[:, _PEAK] = np.fmax(faded, need)
        signals = _signals(values, need)
        averages[:] = _follow(averages, signals, passed_s[:, None] / _TAU_S)

        if self._ring_slots:
            self._roll(own, now, first)

    def _roll(self, own: FloatArray, now: ObservationArrays, first: NDArray[np.bool_]) -> None:
        """Empty the ring's places whose time has passed; the place of `now` is written by `act`.

        A place is one bucket of `tick_s`; buckets and not ticks, so that the hold does not depend
        on the controller's period.
        """
        slots = self._ring_slots
        ring = own[:, _RING:]
        bucket = np.floor(now.at_s / self.config.tick_s)
        last = np.where(first, bucket - 1, np.minimum(own[:, _BUCKET], bucket))
        place_age = (bucket[:, None] - np.arange(slots)) % slots
        ring[bucket[:, None] - place_age > last[:, None]] = np.nan
        own[:, _BUCKET] = bucket
        # As HPA seeds its history with the replicas it finds.
        start = (bucket % slots).astype(np.int64)[first]
        ring[np.flatnonzero(first), start] = now.settings[first, self._replicas]

    # Features --------------------------------------------------------------------------------

    def _encode(
        self,
        own: FloatArray,
        now: ObservationArrays,
        values: FloatArray,
        need_now: FloatArray,
        base: RuleResult,
    ) -> FloatArray:
        """`(n, len(FEATURES))` float64, NaN where not measured, not cut yet."""
        raw = np.full((len(now.at_s), len(FEATURES)), np.nan)

        def put(name: str, column: FloatArray) -> None:
            raw[:, _AT[name]] = column

        def get(name: str) -> FloatArray:
            return values[:, COLUMN[name]]

        need = own[:, _NEED]
        load = np.maximum(need, LEAST_REPLICAS)
        ready = get("ready_replicas")
        starting = np.where(np.isnan(get("starting_replicas")), 0.0, get("starting_replicas"))
        serving = np.maximum(ready, 1.0)
        wanted = now.settings[:, self._replicas]
        batch = now.settings[:, self.knobs.column("batch_size")] if self._has_batch else np.nan
        in_flight = get("in_flight")

        put("need_known", np.where(np.isnan(need_now), 0.0, 1.0))
        put("latency_known", np.where(np.isnan(get("ttft_p50_s")), 0.0, 1.0))
        put("in_flight_known", np.where(np.isnan(in_flight), 0.0, 1.0))
        put("need_to_next", np.ceil(need) - need)
        put("need_swing", np.sqrt(own[:, _SWING]))
        put("in_flight_per_slot", in_flight / (serving * np.maximum(batch, 1.0)))
        put("kv_cache_usage", get("kv_cache_usage"))
        put("starting_share", starting / np.maximum(ready + starting, 1.0))
        put("last_action", own[:, _LAST_ACTION])
        oldest, youngest = _starting_ages(now)
        put("starting_oldest", oldest / AGE_UNIT_S)
        put("starting_youngest", youngest / AGE_UNIT_S)
        phase = now.at_s % DAY_S * (2 * np.pi / DAY_S)
        put("day_sin", np.sin(phase))
        put("day_cos", np.cos(phase))

        averages = own[:, _SCALARS:_RING]
        ratios = {
            "need_log2": load,
            "need_vs_peak": load / np.maximum(own[:, _PEAK], LEAST_REPLICAS),
            "in_flight_per_ready": 1 + in_flight / serving,
            "queue_per_ready": 1 + get("queue_depth") / serving,
            "preemptions": 1 + get("preemptions_per_s"),
            "ready_vs_need": _positive(ready) / load,
            "present_vs_need": _positive(ready + starting) / load,
            "wanted_vs_need": _positive(wanted) / load,
            "base_vs_need": _positive(base.settings[:, self._replicas]) / load,
            "held_vs_need": _positive(self._held_now(own)) / load,
        }
        for metric in _LATENCIES:
            objective = (
                self.config.ttft_objective_s
                if metric.startswith("ttft")
                else self.config.tpot_objective_s
            )
            ratios[f"{metric.removesuffix('_s')}_vs_objective"] = np.maximum(
                get(metric) / objective, 1e-9
            )
        trends = (_signals(values, need_now) + _FLOOR) / (averages + _FLOOR)
        for column, name in enumerate(_TRENDS):
            ratios[name] = trends[:, column]
        # One call on contiguous memory: numpy's SIMD and scalar logarithms differ in the last bit.
        logs = np.log2(np.stack(list(ratios.values()), axis=1))
        raw[:, [_AT[name] for name in ratios]] = logs
        return raw

    @cached_property
    def _has_batch(self) -> bool:
        return "batch_size" in self.knobs.names

    # Heads -----------------------------------------------------------------------------------

    def _factored(self, action: FloatArray, base: RuleResult) -> FloatArray:
        """`(n,)` replicas that need x factor asks for, NaN where the need is not known."""
        factor = self._factor(action)
        need = np.where(np.isfinite(base.need), base.need, np.nan)
        spec = self.knobs.specs[self._replicas]
        wanted: FloatArray = np.clip(np.ceil(need * factor), spec.low, spec.high)
        return wanted

    def _factor(self, action: FloatArray) -> FloatArray:
        """`(n,)` what the action multiplies the need by."""
        low, high = np.log(self.config.factor_low), np.log(self.config.factor_high)
        factor: FloatArray = np.exp(np.where(action < 0, -action * low, action * high))
        return factor

    def _held(self, own: FloatArray, wanted: FloatArray) -> FloatArray:
        """`wanted`, written into the ring, raised to the largest wish of the last `hold_s`."""
        if not self._ring_slots:
            return wanted
        ring = own[:, _RING:]
        place = (own[:, _BUCKET] % self._ring_slots).astype(np.int64)
        rows = np.arange(len(wanted))
        ring[rows, place] = np.fmax(ring[rows, place], wanted)
        held: FloatArray = np.where(np.isnan(wanted), np.nan, np.fmax.reduce(ring, axis=1))
        return held

    def _held_now(self, own: FloatArray) -> FloatArray:
        """`(n,)` largest wish in the ring, NaN where it is empty."""
        if not self._ring_slots:
            return np.full(len(own), np.nan)
        held: FloatArray = np.fmax.reduce(own[:, _RING:], axis=1)
        return held

    def _absolute(self, action: FloatArray, column: int) -> FloatArray:
        """`(n,)` values of a knob: low, default, high at -1, 0, 1, linear in log(1 + value)."""
        spec = self.knobs.specs[column]
        points = np.log1p([spec.low, spec.default, spec.high])
        values: FloatArray = np.rint(np.expm1(np.interp(action, [-1.0, 0.0, 1.0], points)))
        return values

    def _bounded(self, settings: FloatArray) -> FloatArray:
        """Whole numbers within the knob space; NaN stays, infinities become NaN."""
        finite = np.where(np.isfinite(settings), settings, np.nan)
        bounded: FloatArray = np.clip(np.rint(finite), self.knobs.low, self.knobs.high)
        return bounded


_TRENDS = (
    "need_vs_1m",
    "need_vs_5m",
    "need_vs_15m",
    "need_vs_60m",
    "qps_vs_1m",
    "qps_vs_15m",
    "prompt_tokens_vs_15m",
    "in_flight_vs_5m",
)
"""Features that compare a signal with its average, in the order of the averages."""


def _signals(values: FloatArray, need: FloatArray) -> FloatArray:
    """`(n, averages)` what each average follows."""
    columns = [
        need if average.signal == "need" else values[:, COLUMN[average.signal]]
        for average in _AVERAGES
    ]
    return np.stack(columns, axis=1)


def _follow(old: FloatArray, new: FloatArray, elapsed: FloatArray) -> FloatArray:
    """Exponential average after `elapsed` time constants; it starts at its first value, and stays
    where nothing is measured."""
    moved = old + (new - old) * -np.expm1(-elapsed)
    followed: FloatArray = np.where(np.isnan(new), old, np.where(np.isnan(old), new, moved))
    return followed


def _positive(replicas: FloatArray) -> FloatArray:
    """Counts fit for a logarithm: 0 replicas read as a quarter."""
    positive: FloatArray = np.maximum(replicas, LEAST_REPLICAS)
    return positive


def _starting_ages(now: ObservationArrays) -> tuple[FloatArray, FloatArray]:
    """`(n,)` ages in s of the oldest and the youngest starting replica, NaN where none is known."""
    if now.replicas.state.shape[1] == 0:
        nothing = np.full(len(now.at_s), np.nan)
        return nothing, nothing
    starting = np.isin(now.replicas.state, _STARTING_CODES)
    ages = np.where(starting, now.replicas.age_s, np.nan)
    return np.fmax.reduce(ages, axis=1), np.fmin.reduce(ages, axis=1)
