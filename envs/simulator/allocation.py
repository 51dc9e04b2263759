"""Makes the memory of a fleet, and makes room in it."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from envs.config import ScrapeConfig
from envs.simulator.blocks import shift_of
from envs.simulator.buckets import BUCKETS
from envs.simulator.iteration_time import jitter_by_iterations
from envs.simulator.layout import (
    ARRIVAL,
    ENGINE,
    ENV,
    FLIGHT,
    GATEWAY_SCRAPE,
    OUTCOME,
    REPLICA,
    SCRAPE,
    STAGE,
    Memory,
)
from envs.simulator.routing import ROUTERS
from envs.simulator.rules import MEMORIES
from envs.simulator.schedulers import options_of, room_of
from envs.simulator.sglang import new_token_ratios
from tuner.core.profile import ServingProfile, Startup
from tuner.core.slo import Slo
from tuner.core.step_time import (
    ramp_table,
    seconds_by_batch,
    seconds_by_prefill,
    straggler_by_batch,
)
from tuner.core.trace import Trace

_SHARED = {
    "engine",
    "batch_s",
    "prefill_s",
    "straggler",
    "jitter",
    "stages",
    "ramp_requests",
    "ramp_speed",
    "trace",
}
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
    scrape: ScrapeConfig | None,
) -> Memory:
    """Memory of a fleet whose envs are yet to be reset."""
    ramp_requests, ramp_speed = ramp_table(profile)
    envs = np.zeros(n, ENV)
    envs["flight_base"] = np.arange(n) * _FIRST_POOL
    envs["flight_capacity"] = _FIRST_POOL
    if scrape is not None:
        envs["scrape_lag_s"] = scrape.lag_s
        envs["scrape_loss"] = scrape.loss
    kept = scrape.kept if scrape is not None else 1
    replicas = n * slots
    cap = profile.limits.batch_size_max
    return MEMORIES[profile.scheduler](
        engine=_engine(profile, slots, router, slo, jitter, record, scrape),
        batch_s=seconds_by_batch(profile),
        prefill_s=seconds_by_prefill(profile),
        straggler=straggler_by_batch(profile),
        jitter=jitter_by_iterations(jitter),
        stages=_stages(profile),
        ramp_requests=ramp_requests,
        ramp_speed=ramp_speed,
        trace=arrivals_of(trace, profile),
        envs=envs,
        replicas=np.zeros(replicas, REPLICA),
        due_s=np.full(replicas, np.inf),
        batch=np.zeros(replicas * cap, np.int32),
        batch_ends=np.zeros(replicas * cap, np.int32),
        residues=np.zeros(replicas * profile.kv.block_tokens, np.int32),
        workers=np.zeros(0),
        flights=np.zeros(n * _FIRST_POOL, FLIGHT),
        outcomes=np.zeros(n * len(trace) if record else 0, OUTCOME),
        counts=np.zeros(replicas * BUCKETS, np.int32),
        scrapes=np.zeros(replicas * kept, SCRAPE),
        scraped_counts=np.zeros(replicas * kept * BUCKETS, np.int32),
        gateway_scrapes=np.zeros(n * kept, GATEWAY_SCRAPE),
    )


def arrivals_of(trace: Trace, profile: ServingProfile) -> NDArray[np.void]:
    """The trace as the kernel reads it."""
    rows = np.zeros(len(trace), ARRIVAL)
    rows["arrival_s"] = trace.arrival_s
    rows["prompt_tokens"] = trace.prompt_tokens
    rows["output_tokens"] = trace.output_tokens
    if profile.kv.prefix_cache and trace.prefix_hit_tokens is not None:
        rows["hit_tokens"] = trace.prefix_hit_tokens
    return rows


def _engine(
    profile: ServingProfile,
    slots: int,
    router: str,
    slo: Slo,
    jitter: float,
    record: bool,
    scrape: ScrapeConfig | None,
) -> NDArray[np.void]:
    engine = np.zeros(1, ENGINE)
    row = engine[0]
    row["block_tokens"] = profile.kv.block_tokens
    row["block_shift"] = shift_of(profile.kv.block_tokens)
    room = room_of(profile)
    row["blocks"] = room.blocks
    row["watermark_blocks"] = profile.kv.watermark_blocks
    row["prompt_blocks_max"] = room.prompt_blocks_max
    row["total_tokens_max"] = room.total_tokens_max
    options = options_of(profile)
    row["max_queued_requests"] = options.get("max_queued_requests") or UNLIMITED
    row["async_scheduling"] = options.get("async", options.get("overlap", False))
    row["long_prefill_tokens"] = options.get("long_prefill_token_threshold", 0)
    row["reserve_full_isl"] = options.get("reserve_full_isl", False)
    if profile.scheduler == "sglang":
        row["prefills_alone"] = 1
        row["max_new_tokens"] = options["max_new_tokens"]
        row["max_prefill_tokens"] = options["max_prefill_tokens"]
        conservativeness = float(options["schedule_conservativeness"] or 0.0)
        first, least, decay = new_token_ratios(conservativeness)
        row["ratio_first"] = first
        row["ratio_least"] = least
        row["ratio_decay"] = decay
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
    row["scrape_interval_s"] = np.inf if scrape is None else scrape.interval_s
    row["scrapes_kept"] = 1 if scrape is None else scrape.kept
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


def bytes_of_envs(memory: Memory) -> int:
    """Bytes of the arrays that grow with the envs; what they share (trace, tables) is left out."""
    own = set(Memory._fields) - _SHARED
    return sum(getattr(memory, name).nbytes for name in own)


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
