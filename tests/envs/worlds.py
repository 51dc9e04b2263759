"""A small world that the tests of this folder share: minutes, not hours."""

from __future__ import annotations

import numpy as np

from envs.config import EnvConfig, ScrapeConfig
from envs.reward import RewardScale
from policies import build_policy
from policies.codec import Codec, CodecConfig
from policies.rule import RulePolicy
from tuner.core.knobs import KnobSpace
from tuner.core.profile import (
    EngineLimits,
    KvCache,
    ServingProfile,
    Stage,
    Stages,
    Startup,
    StepTime,
)
from tuner.core.trace import Trace
from tuner.knobs import KNOBS, knob_space

TICK_S = 15.0
PROFILE = ServingProfile(
    schema="tuner.profile/1",
    name="small",
    scheduler="vidur-sarathi",
    gpus_per_replica=1,
    kv=KvCache(block_tokens=16, blocks=600),
    limits=EngineLimits(batch_size_max=32, chunk_tokens=512),
    step_time=StepTime(base_s=0.02, per_prefill_token_s=1e-4, per_sequence_s=5e-4),
    startup=Startup(Stages(weights=Stage(40.0, 0.3)), warmup_request_s=0.05, ramp=((20, 0.5),)),
)


def trace(seconds: float = 4000.0, qps: float = 4.0, seed: int = 0) -> Trace:
    """Poisson arrivals whose rate swings by half within ten minutes."""
    rng = np.random.default_rng(seed)
    count = int(seconds * qps)
    steady_s = np.cumsum(rng.exponential(1 / qps, count))
    arrival_s = steady_s + 47.0 * np.sin(2 * np.pi * steady_s / 600.0) + 47.0
    return Trace(
        np.sort(arrival_s),
        rng.integers(20, 900, count, dtype=np.int32),
        rng.integers(1, 300, count, dtype=np.int32),
    )


def knobs(max_replicas: int = 6) -> KnobSpace:
    one = KNOBS["threads"].default
    return knob_space(replicas=(1, max_replicas), batch_size=(1, 32), threads=(one, one))


def hpa(space: KnobSpace) -> RulePolicy:
    return build_policy("hpa", {"target": 150.0}, space, tick_s=TICK_S)


def codec(space: KnobSpace, **config: object) -> Codec:
    return Codec(
        space,
        hpa(space).rule,
        CodecConfig(**config),  # type: ignore[arg-type]
        pinned=PROFILE.unmodelled_knobs(),
    )


SCALE = RewardScale(requests_per_tick=60.0, reference_replicas=3.0, tick_s=TICK_S)


def config(**changes: object) -> EnvConfig:
    defaults: dict[str, object] = {
        "episode_ticks": 40,
        "start_replicas": (1, 5),
        "scrape": ScrapeConfig(outage=0.1),
        "jitter": 0.03,
    }
    return EnvConfig(**{**defaults, **changes})  # type: ignore[arg-type]
