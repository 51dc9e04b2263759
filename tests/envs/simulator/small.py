"""Small workloads and profiles for comparing the simulator with the oracle."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from envs.simulator import EnvFactors, Fleet, FleetSettings
from tests.envs.simulator.oracle import Oracle
from tests.envs.simulator.oracle_sglang import SglangOracle
from tests.envs.simulator.oracle_vllm import VllmOracle
from tuner.core.profile import (
    EngineLimits,
    Frontend,
    KvCache,
    ServingProfile,
    Stage,
    Stages,
    Startup,
    StepTime,
)
from tuner.core.slo import Slo
from tuner.core.trace import Trace

PROFILE = ServingProfile(
    schema="tuner.profile/1",
    name="small",
    scheduler="vidur-sarathi",
    gpus_per_replica=1,
    kv=KvCache(block_tokens=16, blocks=64, watermark=0.01),
    limits=EngineLimits(batch_size_max=8, chunk_tokens=64),
    step_time=StepTime(
        base_s=math.sqrt(5) * 1e-3,
        per_prefill_token_s=math.sqrt(2) * 1e-4,
        per_sequence_s=math.sqrt(3) * 1e-4,
        per_kv_token_s=math.sqrt(7) * 1e-7,
        prefill_base_s=math.sqrt(11) * 1e-4,
    ),
)
"""Irrational coefficients: no arrival falls on the border of an iteration by accident."""
SLO = Slo(ttft_s=0.1, tpot_s=0.005)


@dataclass(frozen=True)
class Tick:
    """Settings from a time on."""

    at_s: float
    replicas: int
    batch_size: int
    threads: int
    warmup_requests: int


@dataclass(frozen=True)
class Case:
    """A whole run."""

    trace: Trace
    profile: ServingProfile
    ticks: tuple[Tick, ...]
    """The first holds from the start, at its time; the others from theirs."""
    router: str = "least_loaded"
    slots: int = 3
    seed: int = 7
    end_s: float = 1000.0
    clients: int = 0
    """Of a closed loop; 0: the trace's own arrivals."""
    factors: Mapping[str, float] = field(default_factory=dict)
    """Of `EnvFactors`; 1 where not named."""
    drain_timeout_s: float | None = None
    crash_per_hour: float = 0.0


def trace(rows: Sequence[tuple[float, int, int]], hits: Sequence[int] | None = None) -> Trace:
    """From (arrival_s, prompt_tokens, output_tokens), and prefix_hit_tokens."""
    arrival_s, prompt, output = zip(*rows, strict=True)
    return Trace(
        np.array(arrival_s, np.float64),
        np.array(prompt, np.int32),
        np.array(output, np.int32),
        prefix_hit_tokens=None if hits is None else np.array(hits, np.int32),
    )


def settings(tick: Tick, n: int = 1) -> FleetSettings:
    return FleetSettings(
        replicas=np.full(n, tick.replicas),
        batch_size=np.full(n, tick.batch_size),
        threads=np.full(n, tick.threads),
        warmup_requests=np.full(n, tick.warmup_requests),
    )


def tick(at_s: float = 0.0, **changes: int) -> Tick:
    """One replica that runs eight sequences, with changes."""
    usual = {"replicas": 1, "batch_size": 8, "threads": 1, "warmup_requests": 0}
    return Tick(at_s, **{**usual, **changes})


def fleet(case: Case, *, n: int = 1, threads: int = 1, jitter: float = 0.0) -> Fleet:
    """Ready at the case's start; every env is the same run."""
    made = Fleet(
        case.trace,
        case.profile,
        seeds=np.full(n, case.seed, np.uint64),
        slots=case.slots,
        router=case.router,
        slo=SLO,
        jitter=jitter,
        drain_timeout_s=case.drain_timeout_s,
        crash_per_hour=case.crash_per_hour,
        record=True,
        threads=threads,
    )
    first = case.ticks[0]
    made.reset(
        slice(None),
        start_s=np.full(n, first.at_s),
        seeds=np.full(n, case.seed, np.uint64),
        settings=settings(first, n),
        clients=case.clients,
        factors=replace(
            EnvFactors.none(n), **{name: np.full(n, value) for name, value in case.factors.items()}
        ),
    )
    return made


ORACLES: dict[str, type[Oracle]] = {
    "sglang": SglangOracle,
    "vidur-sarathi": Oracle,
    "vllm-v1": VllmOracle,
}


def oracle(case: Case) -> Oracle:
    first = case.ticks[0]
    return ORACLES[case.profile.scheduler](
        case.trace,
        case.profile,
        seed=case.seed,
        slots=case.slots,
        router=case.router,
        replicas=first.replicas,
        batch_size=first.batch_size,
        threads=first.threads,
        warmup_requests=first.warmup_requests,
        start_s=first.at_s,
        clients=case.clients,
        factors=case.factors,
        slo=SLO,
        drain_timeout_s=case.drain_timeout_s,
        crash_per_hour=case.crash_per_hour,
    )


def with_frontend(profile: ServingProfile = PROFILE, **changes: float) -> ServingProfile:
    usual = Frontend(cores=2, per_request_s=0.0123, per_token_s=0.000321)
    return replace(profile, frontend=replace(usual, **changes))


def with_startup(profile: ServingProfile = PROFILE, **changes: object) -> ServingProfile:
    usual = Startup(Stages(weights=Stage(1.7, 0.3)), warmup_request_s=0.11)
    return replace(profile, startup=replace(usual, **changes))
