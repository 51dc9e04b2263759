"""What the two scalers of AIBrix share: the metric, its windows, and the cool-down.

Rules of pkg/controller/podautoscaler in vllm-project/aibrix@e3e10f9e4a (`metrics/client.go`,
`metrics/collector.go`, `context/context.go`, `podautoscaler_controller.go`).

**Metric.** A `pod` source is the mean over the pods that answer, draining ones too, as nothing
takes them off the list; an `external` source is the one value of the fleet. Engines tell rates of a
replica that no ReplicaObservation holds: the fleet's rate, shared evenly among the replicas that
serve (ready or draining), stands in for their mean.

**No answer.** When nothing answers, AIBrix reports an error and leaves the count, although its
windows still hold older values. Zero is an answer.

**Replicas.** n is `spec.replicas`, with those that still load weights. At n = 0 scaling is off.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from math import isfinite
from typing import Literal, Protocol

import numpy as np

from policies.entries import Entries, places
from policies.hpa_metrics import measured
from policies.hpa_spec import MetricSpec
from policies.options import Options
from policies.rule import RuleResult, replica_bounds
from tuner.core.errors import ConfigError
from tuner.core.observation import FIELD_NAMES, REPLICA_FIELDS, ObservationArrays
from tuner.core.protocols import FloatArray

Source = Literal["external", "pod"]
SHARED = ("qps", "prompt_tokens_per_s", "output_tokens_per_s", "in_flight", "preemptions_per_s")
"""Fields of the fleet that add up over replicas, so that a replica's share of them is a mean."""

TOLERANCE = 0.1
"""Both ways."""
UP_RATE = 2.0
"""At most so many times n in one step."""
DOWN_RATE = 2.0
"""At least n divided by this in one step."""
STABLE_WINDOW_S = 180.0
COOLDOWN_S = 300.0
"""Of scale-downs; scale-ups have none."""
SHORTEST_WINDOW_S = 1.0
"""AIBrix counts in whole seconds."""
LONGEST_WINDOW_S = 3600.0
"""Longest window offered here: a window is remembered sample by sample."""
RESYNC_S = 10.0
"""Seconds between two looks."""


@dataclass(frozen=True)
class Metric:
    """What is looked at, and the target of one replica."""

    spec: MetricSpec
    source: Source
    summed: bool = False
    """A pod source as the sum of its pods in place of their mean; AIBrix has no such thing."""

    @property
    def target(self) -> float:
        """> 0, in the metric's own unit."""
        return self.spec.target

    def value(self, now: ObservationArrays) -> FloatArray:
        """`(n,)` the value of this look; NaN where nothing answers."""
        if self.source == "external":
            value, pods = measured(self.spec, now), np.ones(len(now.at_s))
        else:
            value, pods = self._pods(now)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            mean = value / pods
        return np.where(np.isfinite(mean), value if self.summed else mean, np.nan)

    def _pods(self, now: ObservationArrays) -> tuple[FloatArray, FloatArray]:
        """Sum over the pods that answer, and their number."""
        if self.spec.type == "Pods":
            values = now.replicas.values[:, :, REPLICA_FIELDS.index(self.spec.name)]
            answers = np.isfinite(values)
            return np.where(answers, values, 0.0).sum(axis=1), answers.sum(axis=1).astype(float)
        serving = now.column("ready_replicas") + np.nan_to_num(now.column("draining_replicas"))
        return measured(self.spec, now), serving

    @property
    def silence(self) -> str:
        """What to say where nothing answers."""
        name = " + ".join(self.spec.fields)
        return f"no {'replica reports' if self.spec.type == 'Pods' else 'value for'} {name}"


@dataclass(frozen=True)
class Windows:
    """How long AIBrix remembers, and where that stands in a target's memory."""

    stable_s: float
    cooldown_s: float
    tick_s: float
    """Seconds between two looks: it sizes the memory. Looks that come faster shorten the windows,
    slower ones do no harm."""

    @property
    def size(self) -> int:
        """Numbers per target."""
        return 2 * sum(self._places)

    @property
    def _places(self) -> tuple[int, int]:
        """Of samples, and of recommendations."""
        return places(self.stable_s, self.tick_s), places(self.cooldown_s, self.tick_s)

    def views(self, memory: FloatArray) -> tuple[Entries, Entries]:
        """Samples and recommendations of `memory (n, size)`, sharing its storage."""
        samples, recommended = self._places
        borders = np.cumsum([samples, samples, recommended])
        at_s, value, told_at_s, told = np.split(memory, borders, axis=1)
        return Entries(at_s, value), Entries(told_at_s, told)


def cooled(
    recommended: Entries,
    at_s: FloatArray,
    window_s: float,
    n: FloatArray,
    wanted: FloatArray,
    *,
    hpa_style: bool,
) -> FloatArray:
    """`(n,)` replicas after the cool-down of scale-downs.

    As written, AIBrix goes down to the *lowest* recommendation of the window, so that a longer
    window goes down further, and never later. `hpa_style` goes down to the highest one, and never
    up: HPA with `behavior`.
    """
    if hpa_style:
        down = np.minimum(n, recommended.largest(at_s, window_s, wanted))
    else:
        down = recommended.smallest(at_s, window_s, wanted)
    return np.where(wanted < n, down, wanted)


@dataclass(frozen=True)
class Recommendation:
    """What an algorithm wants for n targets, before cool-down and bounds."""

    raw: FloatArray
    """`(n,)` replicas before the limit of one step."""
    replicas: FloatArray
    """`(n,)` after it."""
    need: FloatArray
    """`(n,)` see `RuleResult`."""
    why: Callable[[int], str]
    """From a row to how `raw` came about, in words that end with it."""


class Algorithm(Protocol):
    """APA or KPA: from windows to a recommendation."""

    def recommend(
        self, metric: Metric, samples: Entries, at_s: FloatArray, n: FloatArray
    ) -> Recommendation:
        """Replicas for n targets.

        Args:
            metric: what the samples are of.
            samples: what was seen, this look included.
            at_s: `(n,)` time of the look.
            n: `(n,)` replicas in `spec.replicas`.
        """


@dataclass(frozen=True)
class AibrixRule:
    """One of AIBrix's scalers over n targets; NaN settings where it leaves the count alone."""

    metric: Metric
    algorithm: Algorithm
    windows: Windows
    hpa_style: bool = False
    """See `cooled`."""

    @property
    def memory_size(self) -> int:
        return self.windows.size

    def decide(self, now: ObservationArrays, memory: FloatArray) -> RuleResult:
        column = now.knobs.column("replicas")
        low, high = replica_bounds(now.knobs)
        n, value = now.settings[:, column], self.metric.value(now)
        memory = memory.copy()
        samples, recommended = self.windows.views(memory)
        decides = (n > 0) & ~np.isnan(value)
        samples.add(decides, now.at_s, value)
        found = self.algorithm.recommend(self.metric, samples, now.at_s, n)
        wanted = np.clip(found.replicas, low, high)
        to = cooled(
            recommended,
            now.at_s,
            self.windows.cooldown_s,
            np.clip(n, low, high),
            wanted,
            hpa_style=self.hpa_style,
        )
        recommended.add(decides, now.at_s, wanted)
        settings = np.full(now.settings.shape, np.nan)
        settings[:, column] = np.where(decides, to, np.nan)

        def why(row: int) -> str:
            if np.isnan(n[row]):
                return "the replicas in force are not known"
            if n[row] <= 0:
                return "scaled to 0 by hand, which AIBrix leaves"
            if np.isnan(value[row]):
                return self.metric.silence
            return ", ".join([found.why(row), *self._after(found, wanted, to, row)])

        return RuleResult(
            settings=settings,
            raw=np.where(decides, found.raw, np.nan),
            need=np.where(decides, found.need, np.nan),
            memory=memory,
            why=why,
        )

    def _after(
        self, found: Recommendation, wanted: FloatArray, to: FloatArray, row: int
    ) -> list[str]:
        """What step, bounds and cool-down made of the recommendation; empty where nothing."""
        raw, step = float(found.raw[row]), float(found.replicas[row])
        bound, last = float(wanted[row]), float(to[row])
        words = []
        if step != raw:
            words.append(f"at {'most' if step < raw else 'least'} {step:.0f} in one step")
        if bound != step:
            words.append(f"at {'most' if bound < step else 'least'} {bound:.0f} allowed")
        window = f"the last {self.windows.cooldown_s:g} s"
        if last > bound:
            words.append(f"held at {last:.0f} by the highest of {window}")
        if last < bound:
            words.append(f"taken to {last:.0f} by the lowest of {window}")
        return words


def metric_of(options: Options, policy: str, *, source: Source, name: str, target: float) -> Metric:
    """The options `metric` and `target`.

    Args:
        options: as given.
        policy: for messages.
        source: where the metric is read.
        name: the metric, if none is given.
        target: likewise.

    Raises:
        ConfigError: the source has no such metric, or the target is not above 0.
    """
    known = FIELD_NAMES if source == "external" else (*REPLICA_FIELDS, *SHARED)
    given = options.text("metric", name)
    for field in given.split("+") if source == "external" else [given]:
        if field.strip() not in known:
            near = get_close_matches(field, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"{policy}: '{field}' is no metric of source {source}; {hint}")
    pods = source == "pod" and given in REPLICA_FIELDS
    value = options.above("target", target)
    return Metric(MetricSpec(given, value, "Pods" if pods else "External"), source)


def windows_of(options: Options, policy: str, tick_s: float) -> Windows:
    """The options `window_s` and `cooldown_s`.

    Raises:
        ConfigError: a window has no length that can be kept, or nobody looks.
    """
    if not (isfinite(tick_s) and tick_s > 0):
        raise ConfigError(f"{policy}: the time between two ticks is {tick_s} s; expected above 0")
    return Windows(
        options.span("window_s", STABLE_WINDOW_S, LONGEST_WINDOW_S, SHORTEST_WINDOW_S),
        options.span("cooldown_s", COOLDOWN_S, LONGEST_WINDOW_S),
        tick_s,
    )


def tolerance_of(options: Options, policy: str) -> float:
    """The option `tolerance`.

    Raises:
        ConfigError: it is below 0.
    """
    tolerance = options.number("tolerance", TOLERANCE)
    if not tolerance >= 0:
        raise ConfigError(f"{policy}: tolerance is {tolerance:g}; expected 0 or more")
    return tolerance
