"""How an episode is set up."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from envs.randomise import RandomiseConfig
from envs.reward import RewardWeights
from tuner.core.errors import ConfigError
from tuner.core.slo import Slo

MOST_CRASHES_PER_HOUR = 3600.0
MOST_SLOW = 100.0
"""Beyond these a value is a slip: a crash a second, a replica that has stopped."""


@dataclass(frozen=True)
class FailureConfig:
    """What goes wrong in a simulated fleet. By default nothing does."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    crash_per_hour: float = 0.0
    """Crashes per hour of a serving replica, exponential. What the replica has fails, and the
    engine restarts in place: weights and compilation, after the kubelet's pause."""
    slow_replica: float = 0.0
    """Chance (0-1) that one slot of the fleet is slow from the start to the end."""
    slow: tuple[float, float] = (1.2, 2.0)
    """Range of the factor on its iterations, drawn."""

    def problems(self, prefix: str) -> Iterator[str]:
        """One sentence for each value that is out of its range."""
        if not 0 <= self.crash_per_hour <= MOST_CRASHES_PER_HOUR:
            yield (
                f"{prefix}crash_per_hour is {self.crash_per_hour}; "
                f"expected 0 to {MOST_CRASHES_PER_HOUR:g}"
            )
        if not 0 <= self.slow_replica <= 1:
            yield f"{prefix}slow_replica is {self.slow_replica}; expected a chance from 0 to 1"
        low, high = self.slow
        if not 1 <= low <= high <= MOST_SLOW:
            yield (
                f"{prefix}slow is {low}..{high}; expected factors 1 <= low <= high <= {MOST_SLOW:g}"
            )


LEAST_SCRAPES, MOST_SCRAPES = 4, 240
"""In a window. Fewer, and one lost scrape leaves nothing to take a rate of; more is a slip."""


@dataclass(frozen=True)
class ScrapeConfig:
    """How the metrics source sees a fleet.

    The defaults are those of the live controller: Prometheus at 15 s, `window_s` of `tuner.yaml`.
    """

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    interval_s: float = 15.0
    """Seconds between two scrapes of a replica, and of the gateway; each has its own phase."""
    window_s: float = 60.0
    """Seconds that rates and percentiles cover; at least four intervals."""
    lag_s: float = 0.0
    """Age at which a scrape can first be seen, s: of a Prometheus that is fed from afar."""
    loss: float = 0.0
    """Chance (0-1) that one scrape of one replica, or of the gateway, is lost."""
    outage: float = 0.0
    """Chance (0-1) that a look gets no answer from the metrics source at all."""

    @property
    def kept(self) -> int:
        """Most scrapes of one page in a window."""
        return math.ceil(self.window_s / self.interval_s)

    def mistakes(self) -> Iterator[str]:
        """One sentence, from the name of the field on, for each value out of its range."""
        if not 0 < self.interval_s < math.inf:
            yield f"interval_s is {self.interval_s}; expected seconds > 0"
            return
        least, most = LEAST_SCRAPES * self.interval_s, MOST_SCRAPES * self.interval_s
        if not least <= self.window_s <= most:
            yield (
                f"window_s is {self.window_s}; expected {LEAST_SCRAPES} to {MOST_SCRAPES} times "
                f"interval_s ({least:g} to {most:g})"
            )
        oldest_s = max(self.window_s, least) - 2 * self.interval_s
        if not 0 <= self.lag_s <= oldest_s:
            yield (
                f"lag_s is {self.lag_s}; expected 0 to {oldest_s:g}: a rate needs two scrapes "
                "within window_s"
            )
        for name in ("loss", "outage"):
            if not 0 <= getattr(self, name) < 1:
                yield f"{name} is {getattr(self, name)}; expected 0 <= chance < 1"


@dataclass(frozen=True)
class EnvConfig:
    """One scenario family; what is drawn per episode is drawn from the episode's own seed."""

    tick_s: float = 15.0
    """Seconds between decisions; the period of HPA's sync and of a usual scrape."""
    episode_ticks: int = 960
    """Ticks of an episode: four hours, long enough for several cold starts and a change of load."""
    slo: Slo = field(default_factory=Slo)
    """Objectives behind `met` and `missed`."""
    router: str = "least_loaded"
    """How requests reach replicas: round_robin, least_pending or least_loaded."""
    jitter: float = 0.05
    """Sigma of the multiplicative noise on one iteration's time; 0 is none."""
    scrape: ScrapeConfig = field(default_factory=ScrapeConfig)
    """What of the truth is seen: scrapes, their window, lag and losses."""
    drain_timeout_s: float | None = None
    """Longest time that a leaving replica may serve what it has, s (Kubernetes'
    terminationGracePeriodSeconds); what has not ended by then fails. None: as long as it takes."""
    failures: FailureConfig = field(default_factory=FailureConfig)
    """What goes wrong."""
    start_replicas: tuple[int, int] = (4, 20)
    """Range of the ready replicas at the start, drawn: a fixed start would teach holding."""
    keep: tuple[float, float] = (0.5, 1.0)
    """Range of the share of the trace's requests that is kept, drawn: other levels of load."""
    randomise: RandomiseConfig = field(default_factory=RandomiseConfig)
    """How far an episode's world may lie from profile and trace; off, and in training only."""
    weights: RewardWeights = field(default_factory=RewardWeights)
    """Weights of the reward."""
    reference_replicas: float = 12.0
    """Replicas that the cost term is relative to."""

    @property
    def nominal(self) -> EnvConfig:
        """The same without randomisation: what policies are evaluated in."""
        return replace(self, randomise=replace(self.randomise, enabled=False))

    def validate(self) -> None:
        """Check what no single field shows.

        Raises:
            ConfigError: naming the field, its value and what was expected.
        """
        if not self.tick_s > 0:
            raise ConfigError(f"env.tick_s is {self.tick_s}; expected seconds > 0")
        if self.episode_ticks < 1:
            raise ConfigError(f"env.episode_ticks is {self.episode_ticks}; expected at least 1")
        low, high = self.start_replicas
        if not 1 <= low <= high:
            raise ConfigError(f"env.start_replicas is {low}..{high}; expected 1 <= low <= high")
        if not 0 < self.keep[0] <= self.keep[1] <= 1:
            raise ConfigError(f"env.keep is {self.keep}; expected 0 < low <= high <= 1")
        for mistake in self.scrape.mistakes():
            raise ConfigError(f"env.scrape.{mistake}")
        if self.jitter < 0:
            raise ConfigError(f"env.jitter is {self.jitter}; expected a sigma >= 0")
        for mistake in self.randomise.mistakes():
            raise ConfigError(f"env.randomise.{mistake}")
        if self.drain_timeout_s is not None and not self.drain_timeout_s >= 0:
            raise ConfigError(
                f"env.drain_timeout_s is {self.drain_timeout_s}; expected seconds >= 0"
            )
        for problem in self.failures.problems("env.failures."):
            raise ConfigError(problem)
