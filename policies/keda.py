"""KEDA: a Prometheus trigger, the HPA that KEDA makes of it, and the step between 0 and not 0.

KEDA itself owns the step from 0 and to 0; everything between is that HPA, here `hpa` itself. The
rules of kedacore/keda commit 8b4f083ca8: `pkg/scaling/executor/scale_scaledobjects.go` (waking and
sleeping), `pkg/fallback/fallback.go` (the fallback), `pkg/scalers/prometheus_scaler.go` (what an
answer counts as). What the user sets is in `keda_spec`.

**What is read.** The query is answered when a field of it is measured, or when anything at all is
(`age_s`): then a missing field is an empty answer, which counts as 0 unless `ignore_null` is off.
With no sample of anything the query has failed. The engines' own gauges are silent while there is
no replica: only `in_flight`, seen by a gateway, can wake a fleet from 0.

**Grid.** KEDA looks every `polling_s` at its own pace, the HPA every 15 s; here both look at our
ticks, KEDA at the first one that is due. Failures are counted per HPA sync, as in KEDA. A cool-down
that is exactly over counts as over: KEDA's looks lie a little more than their interval apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from policies.entries import GRID_SLACK_S
from policies.entry import Entry, Load, Parameter, Target
from policies.hpa import HpaRule
from policies.hpa_metrics import measured
from policies.hpa_spec import TARGET_TYPES, Behavior
from policies.hpa_words import amount
from policies.keda_spec import (
    DEFAULT_METRIC,
    DEFAULT_SHARE,
    FALLBACK_BEHAVIORS,
    Fallback,
    KedaConfig,
)
from policies.options import Options
from policies.rule import RulePolicy, RuleResult
from tuner.core.errors import ConfigError
from tuner.core.figures import figure
from tuner.core.observation import COLUMN, ObservationArrays
from tuner.core.protocols import BoolArray, FloatArray

# Own memory, in front of the HPA's: times in s, and failures in a row.
_LOOKED_AT, _ACTIVE_AT, _FAILURES = range(3)
_OWN = 3

MILLI = 1000.0
"""KEDA hands values on in thousandths, cut off; digits beyond nine are a float's own error."""


@dataclass(frozen=True)
class Reading:
    """What the trigger says about n targets."""

    value: FloatArray
    """`(n,)` in the metric's unit; NaN where the query failed."""
    empty: BoolArray
    """`(n,)` where nothing, NaN or infinity was taken for 0."""
    failures: FloatArray
    """`(n,)` failed queries in a row, this one included."""
    stand_in: FloatArray
    """`(n,)` replicas that the fallback stands in for; NaN where it does not."""
    metric: FloatArray
    """`(n,)` what the HPA is given: the value, or the load of `stand_in` replicas."""


@dataclass(frozen=True)
class Switch:
    """What KEDA itself does about n targets: the step between 0 and not 0."""

    to: FloatArray
    """`(n,)` replicas it sets; NaN where it leaves them to the HPA."""
    active: BoolArray
    """`(n,)` where the trigger is above its activation."""
    quiet_s: FloatArray
    """`(n,)` since it was seen active, where 0 waits for the cool-down; NaN elsewhere."""
    looked_at_s: FloatArray
    active_at_s: FloatArray
    """`(n,)` when KEDA last looked, and last saw it active; NaN for never."""


@dataclass(frozen=True)
class KedaRule:
    """KEDA and its HPA over n targets. Settings are NaN where neither writes."""

    config: KedaConfig

    @cached_property
    def hpa(self) -> HpaRule:
        """The HPA that KEDA makes."""
        return HpaRule(self.config.hpa)

    @property
    def memory_size(self) -> int:
        return _OWN + self.hpa.memory_size

    def decide(self, now: ObservationArrays, memory: FloatArray) -> RuleResult:
        column = now.knobs.column("replicas")
        n = now.settings[:, column]
        reading = self.read(now, n, memory[:, _FAILURES])
        switch = self.switch(reading, now.at_s, n, memory)
        scaled = self.hpa.decide(self._given(now, reading.metric), memory[:, _OWN:])

        switched = ~np.isnan(switch.to)
        settings = scaled.settings.copy()
        settings[switched, column] = switch.to[switched]
        own = np.stack([switch.looked_at_s, switch.active_at_s, reading.failures], axis=1)
        return RuleResult(
            settings=settings,
            raw=np.where(switched & np.isnan(scaled.raw), switch.to, scaled.raw),
            need=scaled.need,
            memory=np.concatenate([own, scaled.memory], axis=1),
            why=KedaWords(self.config, n, reading, switch, scaled.why),
        )

    def read(self, now: ObservationArrays, n: FloatArray, failures: FloatArray) -> Reading:
        """The trigger, and what the HPA is given in its place where it cannot be read."""
        config, fallback = self.config, self.config.fallback
        found = measured(config.trigger, now)
        usable = np.isfinite(found)
        answered = ~np.isnan(found) | ~np.isnan(now.age_s)
        empty = ~usable & answered & config.ignore_null
        value = np.where(usable, _cut(found), np.where(empty, 0.0, np.nan))
        failures = np.where(np.isnan(value), np.nan_to_num(failures) + 1, 0.0)
        if fallback is None:
            return Reading(value, empty, failures, np.full(len(n), np.nan), value)

        ready = now.column("ready_replicas")
        with np.errstate(invalid="ignore"):
            stands = (failures > fallback.failures) & (ready > 0)
        stand_in = np.where(stands, _stand_in(fallback, n), np.nan)
        share = stand_in if config.target_type == "AverageValue" else _over(stand_in, ready)
        metric = np.where(stands, _cut(config.threshold * share), value)
        return Reading(value, empty, failures, stand_in, metric)

    def switch(
        self, reading: Reading, at_s: FloatArray, n: FloatArray, memory: FloatArray
    ) -> Switch:
        """Waking, sleeping, and the fewest replicas of a fleet that someone set below them."""
        config, fallback = self.config, self.config.fallback
        looked_at, active_at = memory[:, _LOOKED_AT], memory[:, _ACTIVE_AT]
        due = ~(at_s - looked_at < config.polling_s - GRID_SLACK_S)
        looks = due & ~np.isnan(n)
        active = reading.value > config.activation
        # A failed query keeps what is, except where the fallback itself is 0 replicas.
        holds = np.isnan(reading.value) & (fallback is None or fallback.replicas > 0)
        quiet = looks & ~active & ~holds

        few = n < config.min_replicas
        wakes = looks & active & ((n == 0) | (few & config.idle))
        may_sleep = quiet & (n > 0) & (config.idle or config.min_replicas == 0)
        # Never seen active means that others scaled it: no cool-down then.
        cooling = may_sleep & (at_s - active_at < config.cooldown_s - GRID_SLACK_S)
        lifts = quiet & few & (not config.idle)
        to = np.where(wakes, config.woken, np.where(may_sleep & ~cooling, 0.0, np.nan))
        return Switch(
            to=np.where(lifts, config.min_replicas, to),
            active=active,
            quiet_s=np.where(cooling, at_s - active_at, np.nan),
            looked_at_s=np.where(due, at_s, looked_at),
            active_at_s=np.where(looks & active, at_s, active_at),
        )

    def _given(self, now: ObservationArrays, metric: FloatArray) -> ObservationArrays:
        """What was observed, with the metric as KEDA hands it on."""
        values = now.values.copy()
        first, *others = (COLUMN[name] for name in self.config.trigger.fields)
        values[:, others] = 0.0
        values[:, first] = metric
        return replace(now, values=values)


def _stand_in(fallback: Fallback, n: FloatArray) -> FloatArray:
    """`(n,)` replicas of the fallback."""
    fixed = np.full(len(n), float(fallback.replicas))
    if fallback.behavior == "static":
        return fixed
    if fallback.behavior == "currentReplicas":
        return n
    choose = np.maximum if fallback.behavior == "currentReplicasIfHigher" else np.minimum
    chosen: FloatArray = choose(fixed, n)
    return chosen


def _over(count: FloatArray, ready: FloatArray) -> FloatArray:
    """`count / ready`, NaN where none is ready."""
    over: FloatArray = np.divide(count, ready, out=np.full(len(count), np.nan), where=ready > 0)
    return over


def _cut(values: FloatArray) -> FloatArray:
    """Whole thousandths, the rest cut off."""
    cut: FloatArray = np.trunc(np.round(values * MILLI, 6)) / MILLI
    return cut


@dataclass(frozen=True)
class KedaWords:
    """What one call of KedaRule worked with; called with a row, it tells that row."""

    config: KedaConfig
    n: FloatArray
    reading: Reading
    switch: Switch
    hpa: Callable[[int], str]

    def __call__(self, row: int) -> str:
        """See `RuleResult.why`."""
        n, to = float(self.n[row]), float(self.switch.to[row])
        if np.isnan(n):
            return "the replicas in force are not known"
        read = self._read(row)
        if not np.isnan(to):
            return f"{read}: {self._switched(row)}"
        if n == 0:
            return f"{read}: 0{' until the next look' if self.switch.active[row] else ''}"
        failures = float(self.reading.failures[row])
        stand_in = float(self.reading.stand_in[row])
        if failures and np.isnan(stand_in):
            return f"{self.hpa(row)}; {self._failing(failures)}"
        if failures:
            return f"{read}, so as if {stand_in:.0f} were needed (fallback); {self.hpa(row)}"
        said = f"{read}; {self.hpa(row)}" if self.reading.empty[row] else self.hpa(row)
        quiet_s = float(self.switch.quiet_s[row])
        if np.isnan(quiet_s):
            return said
        return f"{said}; not active for {quiet_s:.0f} s, 0 after {self.config.cooldown_s:g} s"

    def _read(self, row: int) -> str:
        """What the query said."""
        name = " + ".join(self.config.trigger.fields)
        if self.reading.failures[row]:
            return f"{name} not read for {_syncs(self.reading.failures[row])}"
        if self.reading.empty[row]:
            return f"no value for {name}, which counts as 0"
        value = float(self.reading.value[row])
        side = "above" if self.switch.active[row] else "not above"
        return f"{amount(self.config.trigger, value)} is {side} {figure(self.config.activation)}"

    def _switched(self, row: int) -> str:
        """The step that KEDA itself takes."""
        to = float(self.switch.to[row])
        if self.switch.active[row]:
            return f"woken at {to:.0f}"
        if to > 0:
            return f"at least {to:.0f}"
        never = np.isnan(self.switch.active_at_s[row])
        since = "never seen active" if never else f"for {self.config.cooldown_s:g} s or more"
        return f"{since}, asleep at 0"

    def _failing(self, failures: float) -> str:
        """Why there is no fallback, or not yet."""
        fallback = self.config.fallback
        if fallback is None:
            return f"not read for {_syncs(failures)}, and there is no fallback"
        if failures <= fallback.failures:
            return f"not read for {_syncs(failures)}, fallback after {fallback.failures}"
        return f"not read for {_syncs(failures)}, and no fallback without a ready replica"


def _syncs(count: float) -> str:
    return f"{count:.0f} sync{'' if count == 1 else 's'}"


def build(options: Options, target: Target) -> RulePolicy:
    """Policy `keda` with one Prometheus trigger.

    Options: `metric` (a field, or a sum of fields), `threshold` and `target_type`; `activation`;
    `null_values` zero (default) or error; `min_replicas`, `max_replicas`, `idle_replicas` 0;
    `polling_s`, `cooldown_s`; `fallback_replicas` (without it there is no fallback),
    `fallback_failures`, `fallback_behavior`; `behavior` absent (default) or default, `tolerance`,
    `downscale_stabilization_s`.

    Raises:
        ConfigError: an option is unknown or does not fit.
    """
    spec = target.knobs["replicas"]
    full = target.knobs["batch_size"].default
    idle = options.gives("idle_replicas")
    if idle and options.inside("idle_replicas", 0, spec) != 0:
        raise ConfigError("keda: idle_replicas is not 0, the only count that KEDA supports")
    failures = options.whole("fallback_failures", Fallback.failures)
    replicas = options.inside("fallback_replicas", spec.low, spec)
    behavior = options.choice("fallback_behavior", FALLBACK_BEHAVIORS, "static")
    named = options.choice("behavior", ("absent", "default"), "absent")
    config = KedaConfig(
        threshold=options.number("threshold", DEFAULT_SHARE * full),
        metric=options.text("metric", DEFAULT_METRIC),
        target_type=options.choice("target_type", TARGET_TYPES, "AverageValue"),
        activation=options.number("activation", KedaConfig.activation),
        ignore_null=options.choice("null_values", ("zero", "error"), "zero") == "zero",
        min_replicas=options.inside("min_replicas", spec.low, spec),
        max_replicas=options.inside("max_replicas", spec.high, spec),
        idle=idle,
        polling_s=options.number("polling_s", KedaConfig.polling_s),
        cooldown_s=options.number("cooldown_s", KedaConfig.cooldown_s),
        fallback=Fallback(replicas, failures, behavior)
        if options.gives("fallback_replicas")
        else None,
        behavior=Behavior() if named == "default" else None,
        tolerance=options.number("tolerance", KedaConfig.tolerance),
        downscale_stabilization_s=options.number(
            "downscale_stabilization_s", KedaConfig.downscale_stabilization_s
        ),
        sync_period_s=target.tick_s,
    )
    options.finish()
    return RulePolicy("keda", KedaRule(config))


def search(load: Load) -> tuple[Parameter, ...]:
    """The threshold of the default query, and what people change of the HPA behind it."""
    around = load.in_flight
    return (
        Parameter("threshold", around / 2, 3 * around, "requests per replica", log=True),
        Parameter("tolerance", 0.0, 0.2, ""),
        Parameter("downscale_stabilization_s", 0.0, 1800.0, "s"),
    )


ENTRY = Entry(build, search, tick_s=15.0)
