"""How an episode is set up."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from envs.randomise import RandomiseConfig
from envs.reward import RewardWeights
from tuner.core.errors import ConfigError
from tuner.core.slo import Slo


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
    scrape_loss: float = 0.0
    """Chance (0-1) that a tick sees no metrics at all."""
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
        if not 0 <= self.scrape_loss < 1:
            raise ConfigError(f"env.scrape_loss is {self.scrape_loss}; expected 0 <= chance < 1")
        if self.jitter < 0:
            raise ConfigError(f"env.jitter is {self.jitter}; expected a sigma >= 0")
        for mistake in self.randomise.mistakes():
            raise ConfigError(f"env.randomise.{mistake}")
