"""Makes the memory of a fleet, and makes room in it."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from envs.simulator.buckets import KINDS, WIDTH
from envs.simulator.layout import ARRIVAL, ENGINE, ENV, FLIGHT, OUTCOME, REPLICA, STAGE, Memory
from envs.simulator.routing import ROUTERS
from envs.simulator.rules import MEMORIES
from envs.simulator.schedulers import options_of, room_of
from envs.simulator.step_time import (
    ramp_table,
    seconds_by_batch,
    seconds_by_prefill,
    straggler_by_batch,
)
from tuner.core.profile import ServingProfile, Startup
from tuner.core.slo import Slo
from tuner.core.trace import Trace

_FIRST_POOL = 256
"""Requests in flight that an env has room for at first; doubled when full."""

UNLIMITED = 2**62
"""Requests that no replica ever has."""


def allocate(
    trace: Trace,
    profile: ServingProfile,
    n: int,
    slots: int,
    router: str,
    slo: Slo,
    jitter: float,
    record: bool,
) -> Memory:
    """Memory of a fleet whose envs are yet to be reset."""
    ramp_requests, ramp_speed = ramp_table(profile)
    rows = np.zeros(len(trace), ARRIVAL)
    rows["arrival_s"] = trace.arrival_s
    rows["prompt_tokens"] = trace.prompt_tokens
    rows["output_tokens"] = trace.output_tokens
    if profile.kv.prefix_cache and trace.prefix_hit_tokens is not None:
        rows["hit_tokens"] = trace.prefix_hit_tokens
    envs = np.zeros(n, ENV)
    envs["flight_base"] = np.arange(n) * _FIRST_POOL
    envs["flight_capacity"] = _FIRST_POOL
    replicas = n * slots
    cap = profile.limits.batch_size_max
    return MEMORIES[profile.scheduler](
        engine=_engine(profile, slots, router, slo, jitter, record),
        batch_s=seconds_by_batch(profile),
        prefill_s=seconds_by_prefill(profile),
        straggler=straggler_by_batch(profile),
        stages=_stages(profile),
        ramp_requests=ramp_requests,
        ramp_speed=ramp_speed,
        trace=rows,
        envs=envs,
        replicas=np.zeros(replicas, REPLICA),
        due_s=np.full(replicas, np.inf),
        batch=np.zeros(replicas * cap, np.int32),
        batch_ends=np.zeros(replicas * cap, np.int32),
        residues=np.zeros(replicas * profile.kv.block_tokens, np.int32),
        workers=np.zeros(0),
        flights=np.zeros(n * _FIRST_POOL, FLIGHT),
        outcomes=np.zeros(n * len(trace) if record else 0, OUTCOME),
        histograms=np.zeros(n * KINDS * WIDTH, np.int64),
    )


def _engine(
    profile: ServingProfile, slots: int, router: str, slo: Slo, jitter: float, record: bool
) -> NDArray[np.void]:
    engine = np.zeros(1, ENGINE)
    row = engine[0]
    row["block_tokens"] = profile.kv.block_tokens
    room = room_of(profile)
    row["blocks"] = room.blocks
    row["watermark_blocks"] = profile.kv.watermark_blocks
    row["prompt_blocks_max"] = room.prompt_blocks_max
    row["total_tokens_max"] = room.total_tokens_max
    options = options_of(profile)
    row["max_queued_requests"] = options.get("max_queued_requests") or UNLIMITED
    row["async_scheduling"] = options.get("async", False)
    row["long_prefill_tokens"] = options.get("long_prefill_token_threshold", 0)
    row["reserve_full_isl"] = options.get("reserve_full_isl", False)
    row["chunk_tokens"] = profile.limits.chunk_tokens
    row["batch_size_max"] = profile.limits.batch_size_max
    row["prefill_base_s"] = profile.step_time.prefill_base_s
    row["per_kv_token_s"] = profile.step_time.per_kv_token_s
    row["per_context_s"] = profile.step_time.per_context_s
    row["jitter"] = jitter
    row["router"] = ROUTERS[router]
    row["slots"] = slots
    row["slo_ttft_s"] = slo.ttft_s
    row["slo_tpot_s"] = slo.tpot_s
    row["recording"] = record
    row["restarts_for_batch_size"] = profile.limits.batch_size_applied == "restart"
    row["batch_size_oom"] = profile.limits.batch_size_oom or np.iinfo(np.int64).max
    if profile.startup is not None:
        row["has_startup"] = 1
        row["warmup_request_s"] = profile.startup.warmup_request_s
    if profile.frontend is not None:
        row["has_frontend"] = 1
        row["cores"] = profile.frontend.cores
        row["per_request_s"] = profile.frontend.per_request_s
        row["per_token_s"] = profile.frontend.per_token_s
        row["per_output_token_s"] = profile.frontend.per_output_token_s
        row["ingress_s"] = profile.frontend.ingress_s
    return engine


def _stages(profile: ServingProfile) -> NDArray[np.void]:
    startup = profile.startup or Startup()
    stages = [getattr(startup.stages, one.name) for one in fields(startup.stages)]
    return np.array([(stage.median_s, stage.spread) for stage in stages], dtype=STAGE)


def with_workers(memory: Memory, slots: int, workers: int) -> Memory:
    """The same memory with room for so many frontend workers per replica."""
    present = int(memory.engine["workers"][0])
    if workers <= present:
        return memory
    replicas = len(memory.replicas)
    grown = np.full((replicas, workers), -np.inf)
    grown[:, :present] = memory.workers.reshape(replicas, present)
    if present > 0:
        replica, worker = np.divmod(memory.flights["worker"], present)
        memory.flights["worker"] = replica * workers + worker
    memory.engine["workers"] = workers
    memory.replicas["worker_base"] = np.arange(replicas) * workers
    return memory._replace(workers=grown.reshape(-1))


def with_larger_pools(memory: Memory, full: list[int]) -> Memory:
    """The same memory with twice the room for requests in flight in the named envs."""
    envs = memory.envs
    capacity = envs["flight_capacity"].copy()
    capacity[full] *= 2
    base = np.concatenate(([0], np.cumsum(capacity)))
    flights = np.zeros(base[-1], FLIGHT)
    for index in range(len(envs)):
        env = envs[index]
        old, used = int(env["flight_base"]), int(env["flight_used"])
        flights[base[index] : base[index] + used] = memory.flights[old : old + used]
    envs["flight_base"] = base[:-1]
    envs["flight_capacity"] = capacity
    return memory._replace(flights=flights)
