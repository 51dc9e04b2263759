"""How a run and a comparison are set up: every number that steers them, with its reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import ClassVar, Literal

from envs.config import FailureConfig, ScrapeConfig
from tuner.core.decision import Guardrails
from tuner.core.errors import ConfigError
from tuner.core.slo import Slo
from tuner.core.trace import LONGEST_S
from tuner.data.startups import StartupName
from tuner.data.strict import build, parse_yaml, read_text
from tuner.guardrails import StaleMetrics, guardrails_with
from tuner.guardrails.max_delta import Step
from tuner.knobs import KNOBS

LARGEST_JITTER = 2.0
LONGEST_TICK_S = 86_400.0
MOST_REPLICAS = 10_000
MOST_TRIALS = 10_000
"""Beyond these a value is a slip, and a simulation of it would take the machine down."""
Router = Literal["round_robin", "least_pending", "least_loaded"]
Authority = Literal["direct", "hold", "floor"]


@dataclass(frozen=True)
class GuardrailConfig:
    """Widths of the guardrails; the same for every policy of a comparison."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    max_age_s: float = StaleMetrics.max_age_s
    """Oldest sample, s, on which a policy is trusted."""
    steps: Mapping[str, Step] = field(default_factory=dict)
    """Knob -> largest step in one tick, in place of the guardrail's default for that knob."""

    def build(self) -> Guardrails:
        """Every guardrail of the project, these widths in place of the defaults."""
        return guardrails_with(max_age_s=self.max_age_s, steps=self.steps)


@dataclass(frozen=True)
class RunConfig:
    """One simulated run, whatever the policy."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    slo: Slo = field(default_factory=Slo)
    """Objectives that each request meets or misses."""
    router: Router = "least_loaded"
    """How requests are spread over ready replicas; least_loaded is what gateways for language
    models do by default, because requests differ in length by orders of magnitude."""
    tick_s: float = 15.0
    """Seconds between two decisions; HPA's own sync period
    (--horizontal-pod-autoscaler-sync-period)."""
    jitter: float = 0.05
    """Sigma of the lognormal factor on each iteration's time. An assumption, not a measurement:
    small against the error of any profile, and enough that no two replicas move in lockstep."""
    startup: StartupName | None = None
    """Named start of a replica in place of the profile's own: warm (about 2 minutes), normal (8) or
    cold (20). None: the profile's. See `tuner.data.startups`."""
    drain_timeout_s: float | None = None
    """Longest time that a leaving replica may serve what it has, s (Kubernetes'
    terminationGracePeriodSeconds); what has not ended by then fails. None: as long as it takes,
    which is what an operator who sets it long enough gets."""
    failures: FailureConfig = field(default_factory=FailureConfig)
    """What goes wrong; nothing unless asked for."""
    scrape: ScrapeConfig = field(default_factory=ScrapeConfig)
    """How the policy sees the fleet: through scrapes, as a live controller does. What a run reports
    of requests and money is the truth, whatever was seen."""
    max_replicas: int = 32
    """Most replicas that any policy may ask for."""
    initial_replicas: int | None = None
    """Replicas that are ready at the first arrival. None: a comparison starts every policy with
    the count that the sweep found for static, so that nobody pays for another's start."""
    overtime_s: float = 3600.0
    """Longest time after the last arrival in which requests may still end, s. Past an hour a
    request has missed every objective anyone sets."""
    fallback_target: float | None = None
    """Output tokens/s per ready replica that the fallback (HPA) aims for. None: a comparison takes
    what the sweep found for hpa, a single run holds its settings where a guardrail trips."""
    authority: Authority = "direct"
    """Who owns the replicas. direct: the policy. hold: the policy too, with the native HPA paused
    and inside its bounds, which in simulation are the knob's range, so its figures are those of
    direct. floor: the native HPA (output tokens/s per replica, `fallback_target`), whose minimum
    the policy raises: it can add replicas and never take one away."""
    guardrails: GuardrailConfig = field(default_factory=GuardrailConfig)
    """Widths of the guardrails."""
    price_per_gpu_hour_usd: float | None = None
    """What one GPU costs per hour, USD, whether it serves or waits. None: the profile's price;
    where that has none either, costs are GPU hours only."""


@dataclass(frozen=True)
class SweepConfig:
    """How the rules come by their settings."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    goal: float = 0.99
    """Share of requests (0-1) that must meet every objective; of the settings that reach it the
    cheapest is taken. 0.99 is what such fleets commonly promise."""
    static_counts: tuple[int, ...] = ()
    """Replica counts to try; empty: narrowed down from 1..max_replicas, and its neighbours."""
    trials: int = 24
    """Settings of each rule that are tried, the rule as shipped among them: the same budget for all
    rules. Eight walk the dial, sixteen turn everything else too."""
    hpa_targets: tuple[float, ...] = ()
    """Output tokens/s per replica that hpa is tried with in place of a search; empty: it is
    searched as any rule. Training tries its base rule with them, or with a grid around the load of
    one replica of the best static fleet, refined around the best."""


@dataclass(frozen=True)
class StatisticsConfig:
    """How sure a figure is."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    block_s: float = 3600.0
    """Length of the blocks of load that are drawn anew, s. Must be longer than what one surge
    leaves behind: a cold start, a queue and a scale-down window are about half an hour."""
    resamples: int = 2000
    """Draws of the block bootstrap; 2000 settle a 95 % bound to about a tenth of its width."""


@dataclass(frozen=True)
class CompareConfig:
    """One comparison."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    run: RunConfig = field(default_factory=RunConfig)
    """What every run shares."""
    seeds: int = 3
    """Runs of each policy; the same seeds for all of them. Three while developing, at least five
    in what is published."""
    sweep: SweepConfig = field(default_factory=SweepConfig)
    """How the rules are tuned."""
    statistics: StatisticsConfig = field(default_factory=StatisticsConfig)
    """How intervals are found."""


def load_compare_config(path: str | Path) -> CompareConfig:
    """The comparison's configuration in a YAML file; a key that is left out has its default.

    Raises:
        ConfigError: the file cannot be read, or one line per mistake in it.
    """
    text = read_text(Path(path), "a configuration in YAML", ConfigError)
    if not text.strip():
        return CompareConfig()
    data = parse_yaml(text, str(path), ConfigError)
    return build(CompareConfig, data, str(path), ConfigError, contradictions=compare_mistakes)


def run_mistakes(config: RunConfig, prefix: str = "") -> Iterator[str]:
    """One sentence for each value of a run's configuration that is out of its range."""
    above_0: dict[str, float | None] = {
        "slo.ttft_s": config.slo.ttft_s,
        "slo.tpot_s": config.slo.tpot_s,
        "fallback_target": config.fallback_target,
        "price_per_gpu_hour_usd": config.price_per_gpu_hour_usd,
        "guardrails.max_age_s": config.guardrails.max_age_s,
    }
    for path, value in above_0.items():
        # What is no number at all was told already.
        if value is not None and value <= 0:
            yield f"{prefix}{path} is {value}; expected above 0"
    for path, value, most in (
        ("jitter", config.jitter, LARGEST_JITTER),
        ("overtime_s", config.overtime_s, LONGEST_S),
        ("drain_timeout_s", config.drain_timeout_s or 0.0, LONGEST_S),
        ("max_replicas", config.max_replicas, MOST_REPLICAS),
    ):
        if not 0 <= value <= most:
            yield f"{prefix}{path} is {value}; expected 0 to {most:g}"
    if not 0 < config.tick_s <= LONGEST_TICK_S:
        yield f"{prefix}tick_s is {config.tick_s}; expected above 0, at most {LONGEST_TICK_S:g}"
    if config.max_replicas < 1:
        yield f"{prefix}max_replicas is {config.max_replicas}; expected at least 1"
    elif config.initial_replicas is not None and not (
        1 <= config.initial_replicas <= config.max_replicas
    ):
        yield (
            f"{prefix}initial_replicas is {config.initial_replicas}; "
            f"expected 1 to max_replicas ({config.max_replicas})"
        )
    yield from config.failures.problems(f"{prefix}failures.")
    for mistake in config.scrape.mistakes():
        yield f"{prefix}scrape.{mistake}"
    yield from _step_mistakes(config.guardrails.steps, f"{prefix}guardrails.steps")


def _step_mistakes(steps: Mapping[str, Step], path: str) -> Iterator[str]:
    for knob, step in steps.items():
        if knob not in KNOBS:
            near = get_close_matches(knob, KNOBS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known knobs: {', '.join(KNOBS)}"
            yield f"{path}.{knob} is not a known knob; {hint}"
        for name in ("up", "down", "fallback_up", "fallback_down"):
            width = getattr(step, name)
            if width is not None and width < 0:
                yield f"{path}.{knob}.{name} is {width}; expected at least 0"


def compare_mistakes(config: CompareConfig) -> Iterator[str]:
    """One sentence for each value of a comparison's configuration that is out of its range."""
    yield from run_mistakes(config.run, "run.")
    if config.seeds < 1:
        yield f"seeds is {config.seeds}; expected at least 1"
    if not 1 <= config.sweep.trials <= MOST_TRIALS:
        yield f"sweep.trials is {config.sweep.trials}; expected 1 to {MOST_TRIALS:,}"
    if not 0 < config.sweep.goal <= 1:
        yield f"sweep.goal is {config.sweep.goal}; expected a share above 0, at most 1"
    for index, count in enumerate(config.sweep.static_counts):
        if not 1 <= count <= config.run.max_replicas:
            yield (
                f"sweep.static_counts[{index}] is {count}; "
                f"expected 1 to run.max_replicas ({config.run.max_replicas})"
            )
    for index, target in enumerate(config.sweep.hpa_targets):
        if not target > 0:
            yield f"sweep.hpa_targets[{index}] is {target}; expected above 0"
    if not config.statistics.block_s > 0:
        yield f"statistics.block_s is {config.statistics.block_s}; expected above 0"
    if config.statistics.resamples < 100:
        yield f"statistics.resamples is {config.statistics.resamples}; expected at least 100"
