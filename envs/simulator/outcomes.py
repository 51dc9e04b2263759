"""What a request's milestones leave behind: sums of the window, the counters and histograms of the
replica that has it, and its record."""

from __future__ import annotations

import math

import numpy as np

from envs.simulator.buckets import BOUNDS, BUCKETS, E2E, FIRST_BUCKET, TPOT, TTFT
from envs.simulator.compiled import inlined
from envs.simulator.frontend import first_token_delivered_s, last_token_delivered_s
from envs.simulator.layout import Engine, Env, Flight, Memory, Replica
from envs.simulator.places import nth, replica_in
from envs.simulator.queueing import give_back

_STEP = math.ceil(math.sqrt(max(len(bounds) for bounds in BOUNDS) + 1))
_BOUNDS = np.concatenate(
    [np.pad(bounds, (0, _STEP * _STEP - len(bounds)), constant_values=np.inf) for bounds in BOUNDS]
)
"""Bounds of each histogram, then infinities."""


@inlined
def count_first_token(
    env: Env, memory: Memory, engine: Engine, flight: Flight, at_s: float
) -> None:
    """The engine gives the request's first token at `at_s`."""
    flight.ttft_s = first_token_delivered_s(memory, engine, flight, at_s) - flight.arrival_s
    env.window_prompt_tokens += flight.prompt_tokens
    _replica(memory, engine, env, flight).prompt_tokens += flight.prompt_tokens
    if flight.ttft_s > engine.slo_ttft_s:
        env.window_missed += 1
    _count(memory, engine, env, flight, TTFT, flight.ttft_s)
    if engine.recording:
        memory.outcomes[nth(_row(memory, env, flight.request))].ttft_s = flight.ttft_s


@inlined
def finish(
    memory: Memory, engine: Engine, env: Env, flight: Flight, entry: int, at_s: float
) -> None:
    """The engine gives the last token at `at_s`; the request's entry goes back to the pool."""
    e2e_s = last_token_delivered_s(memory, engine, flight, at_s) - flight.arrival_s
    output_tokens = flight.total_tokens - flight.prompt_tokens
    tpot_s = 0.0
    if output_tokens > 1:
        tpot_s = (e2e_s - flight.ttft_s) / (output_tokens - 1)
        _count(memory, engine, env, flight, TPOT, tpot_s)
    _count(memory, engine, env, flight, E2E, e2e_s)
    env.window_finished += 1
    _replica(memory, engine, env, flight).finished += 1
    if flight.ttft_s <= engine.slo_ttft_s:  # else it was counted as missed at its first token
        if tpot_s <= engine.slo_tpot_s:
            env.window_met += 1
        else:
            env.window_missed += 1
    if engine.recording:
        outcome = memory.outcomes[nth(_row(memory, env, flight.request))]
        outcome.e2e_s = e2e_s
        outcome.tpot_s = tpot_s
    give_back(env, flight, entry)


@inlined
def count_preemption(memory: Memory, engine: Engine, env: Env, flight: Flight) -> None:
    env.window_preemptions += 1
    _replica(memory, engine, env, flight).preemptions += 1
    if engine.recording:
        memory.outcomes[nth(_row(memory, env, flight.request))].preemptions = flight.preemptions


@inlined
def reject(memory: Memory, engine: Engine, env: Env, request: int) -> None:
    env.window_rejected += 1
    env.window_missed += 1
    if engine.recording:
        memory.outcomes[nth(_row(memory, env, request))].rejected = 1


@inlined
def fail(memory: Memory, engine: Engine, env: Env, flight: Flight, entry: int) -> None:
    """The request's replica is gone; its entry goes back to the pool."""
    env.window_failed += 1
    if not flight.ttft_s > engine.slo_ttft_s:  # else it was counted as missed at its first token
        env.window_missed += 1
    if engine.recording:
        memory.outcomes[nth(_row(memory, env, flight.request))].failed = 1
    give_back(env, flight, entry)


@inlined
def record_replica(memory: Memory, engine: Engine, env: Env, request: int, slot: int) -> None:
    if engine.recording:
        memory.outcomes[nth(_row(memory, env, request))].replica = slot


@inlined
def forget_outcomes(memory: Memory, env: Env) -> None:
    """As if no request of the trace had been seen."""
    for request in range(len(memory.trace)):
        outcome = memory.outcomes[nth(_row(memory, env, request))]
        outcome.ttft_s = math.nan
        outcome.e2e_s = math.nan
        outcome.tpot_s = math.nan
        outcome.replica = -1
        outcome.preemptions = 0
        outcome.rejected = 0
        outcome.failed = 0


@inlined
def _row(memory: Memory, env: Env, request: int) -> int:
    return env.index * len(memory.trace) + request


@inlined
def _replica(memory: Memory, engine: Engine, env: Env, flight: Flight) -> Replica:
    replica: Replica = replica_in(memory, engine, env, flight.slot)
    return replica


@inlined
def _count(
    memory: Memory, engine: Engine, env: Env, flight: Flight, kind: int, seconds: float
) -> None:
    """Count in the bucket of the smallest bound >= seconds, as Prometheus' `le` does."""
    first = kind * _STEP * _STEP
    below = 0
    for step in range(1, _STEP):  # so many of the bounds in whole steps, then of the rest
        below += _STEP * (seconds > _BOUNDS[nth(first + step * _STEP - 1)])
    first += below
    for rest in range(_STEP - 1):
        below += seconds > _BOUNDS[nth(first + rest)]
    replica = env.index * engine.slots + flight.slot
    memory.counts[nth(replica * BUCKETS + FIRST_BUCKET[kind] + below)] += 1
