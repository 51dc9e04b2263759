"""How a policy is trained: every number that steers it, with its unit and its reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from envs.config import EnvConfig
from policies import POLICIES
from policies.codec import CodecConfig
from tuner.core.errors import ConfigError
from tuner.data.bundles import BaseRule, Section


@dataclass(frozen=True)
class PpoConfig:
    """Proximal policy optimisation (Schulman et al., arXiv 1707.06347), by stable-baselines3."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    steps: int = 400_000
    """Environment steps in all, rounded up to whole updates."""
    envs: int = 64
    """Simulated targets side by side. The simulation costs the same per step for any number; with
    more the network's part is cheaper still, but the same steps give fewer updates: on the
    DeepSeek-R1 day 400 k steps of 64 came as far as 600 k of 256."""
    rollout_ticks: int = 128
    """Ticks of each target between two updates; several times the reach of gae_lambda x gamma."""
    minibatch_size: int = 2048
    """Transitions of one gradient step, at most all of an update. Misses come in a few jumps a day:
    a small batch holds none of them."""
    epochs: int = 6
    """Passes over the transitions of an update."""
    learning_rate: float = 1e-3
    """Of Adam at the start; falls linearly to 0 at the last step."""
    gamma: float = 0.99
    """Discount per tick: at 15 s the horizon is 25 minutes. What a replica is worth shows a whole
    cold start after it is paid for; a shorter sight teaches to save."""
    gae_lambda: float = 0.98
    """Decay of advantage estimates: with gamma a reach of 33 ticks, one cold start."""
    clip_range: float = 0.2
    """Largest change of a probability ratio that pays."""
    target_kl: float = 0.03
    """An update stops where the policy has moved this far."""
    value_weight: float = 0.5
    """Of the value loss beside the policy loss."""
    max_grad_norm: float = 0.5
    """Gradients are scaled down to this norm."""
    hidden: tuple[int, ...] = (64, 64)
    """Units of the hidden layers, tanh, of policy and value each."""
    noise_log_std: float = -2.5
    """Log of the exploration's scale per hidden unit: actions begin with a sigma of about 0.3."""
    noise_ticks: int = 32
    """Ticks that exploration noise is held (gSDE, Raffin et al., arXiv 2005.05719): one cold start.
    Fresh noise each tick would turn into hidden headroom through the down hold."""

    def problems(self) -> Iterator[str]:
        counts = ("steps", "envs", "rollout_ticks", "epochs", "noise_ticks")
        for name in counts:
            if getattr(self, name) < 1:
                yield f"ppo.{name} is {getattr(self, name)}; expected at least 1"
        transitions = self.envs * self.rollout_ticks
        if transitions == 1:  # advantages are normalised over those of an update
            yield "ppo.envs x rollout_ticks is 1; expected at least 2 transitions an update"
        if self.minibatch_size < 2:
            yield f"ppo.minibatch_size is {self.minibatch_size}; expected at least 2"
        for name in ("gamma", "gae_lambda"):
            if not 0 < getattr(self, name) <= 1:
                yield f"ppo.{name} is {getattr(self, name)}; expected above 0, at most 1"
        for name in ("learning_rate", "clip_range", "target_kl", "max_grad_norm"):
            if not getattr(self, name) > 0:
                yield f"ppo.{name} is {getattr(self, name)}; expected above 0"
        if not self.hidden or min(self.hidden) < 1:
            yield f"ppo.hidden is {list(self.hidden)}; expected at least one layer of 1 or more"


@dataclass(frozen=True)
class ValidationConfig:
    """How the best network is found, and how it is told from luck."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    share: float | None = None
    """Share (0-1) of the trace's span, its end, that is held out for validation. 0: validation runs
    on the training load with other draws, and says nothing about other load. None: a quarter of a
    trace of four days or more, else 0, because the end of a day is not like the rest of it."""
    scenarios: int = 24
    """Episodes of one evaluation; the same ones each time, so that differences are paired. They
    differ among each other far more than policies do: a few hold all the surges."""
    every_updates: int = 7
    """Updates between two evaluations. Each is followed by a checkpoint and new episodes, so with
    warm-up and rollouts a stretch should be about one episode."""
    confirm_scenarios: int = 48
    """Episodes, none of them used before, on which the best network meets the base rule once."""

    def problems(self) -> Iterator[str]:
        if self.share is not None and not 0 <= self.share < 1:
            yield f"validation.share is {self.share}; expected 0 to below 1"
        for name in ("scenarios", "every_updates", "confirm_scenarios"):
            if getattr(self, name) < 1:
                yield f"validation.{name} is {getattr(self, name)}; expected at least 1"


@dataclass(frozen=True)
class TrainConfig:
    """One training run. The same configuration, seed and machine give the same bits."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    seed: int = 0
    """Of network, exploration, minibatches and episodes."""
    base: BaseRule = field(default_factory=lambda: BaseRule("hpa"))
    """The rule whose headroom is learned, tuned beforehand; it is also the fallback."""
    ppo: PpoConfig = field(default_factory=PpoConfig)
    codec: CodecConfig = field(default_factory=CodecConfig)
    """Heads and features; tick and objectives are taken from `env`."""
    env: EnvConfig = field(default_factory=EnvConfig)
    """Scenario family and reward."""
    warm_up_ticks: int = 64
    """Ticks at the start of a stretch of training, or of an evaluation, that the base rule runs and
    nobody learns from or counts: two cold starts. Misses of a fleet that was drawn too small are
    nobody's fault, come all at once, and would drown all others."""
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    @property
    def codec_config(self) -> CodecConfig:
        """The codec's configuration with the environment's tick and objectives."""
        return replace(
            self.codec,
            tick_s=self.env.tick_s,
            ttft_objective_s=self.env.slo.ttft_s,
            tpot_objective_s=self.env.slo.tpot_s,
        )

    @property
    def section(self) -> Section:
        """This configuration as plain values."""
        plain = _plain(asdict(self))
        assert isinstance(plain, dict)
        return plain

    def problems(self) -> Iterator[str]:
        """One sentence per value out of range or at odds with another."""
        if not 0 <= self.seed < 2**31:
            yield f"seed is {self.seed}; expected 0 to {2**31 - 1}"
        if self.warm_up_ticks < 0:
            yield f"warm_up_ticks is {self.warm_up_ticks}; expected at least 0"
        if "/" in self.base.policy or Path(self.base.policy).is_dir():
            yield f"base.policy is '{self.base.policy}', a folder; expected {', '.join(POLICIES)}"
        yield from self.ppo.problems()
        yield from self.validation.problems()
        try:
            self.env.validate()
        except ConfigError as error:
            yield str(error)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(inner) for inner in value]
    return value
