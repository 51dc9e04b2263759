"""The event loop of one env, and what happens to it from outside: reset and new settings.

At one moment, in this order: runs and stages of life end, lowest slot first; replicas are killed,
lowest slot first; what waits at the router is dispatched; the trace's requests arrive; metrics are
scraped; settings change.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from envs.simulator import draws
from envs.simulator.compiled import entry, inlined
from envs.simulator.failing import kill_next
from envs.simulator.fields import Seen, read_fields
from envs.simulator.frontend import stream_ended_run
from envs.simulator.layout import NO_REQUEST, Engine, Env, Memory, ReplicaState
from envs.simulator.lifecycle import (
    leave_if_drained,
    place_ready,
    reconcile,
    restart_starting,
    stage_ended,
    switch_off,
)
from envs.simulator.outcomes import forget_outcomes
from envs.simulator.places import nth, replica_in
from envs.simulator.queueing import has_room
from envs.simulator.routing import arrive, dispatch, next_arrival_s, next_kept
from envs.simulator.rules import cap_changed, end_run, start_iteration
from envs.simulator.scraping import begin_gateway_scrapes, scrape_next

_STARTING = int(ReplicaState.STARTING)
_WARMING = int(ReplicaState.WARMING)


@entry
def advance(
    memory: Memory,
    first: int,
    last: int,
    until_s: NDArray[np.float64],
    window_s: float,
    silent_intervals: float,
    seen: Seen,
) -> int:
    """Bring envs first..last - 1 to their times, and write what is seen of them then.

    The look is taken here, env by env, because the env's memory is in the processor's cache now.

    Args:
        until_s: `(n,)`.
        window_s, silent_intervals, seen: of `read_fields`; not used where nothing is scraped.

    Returns:
        -1 when all are there; else the first env whose pool is full: give it more room and call
        again, nothing is lost.
    """
    engine = memory.engine[0]
    for index in range(first, last):
        env = memory.envs[nth(index)]
        if not _advance_env(memory, engine, env, until_s[index]):
            return index
        if engine.scrape_interval_s < math.inf:
            read_fields(memory, engine, env, window_s, silent_intervals, seen)
    return -1


@entry
def reset(
    memory: Memory,
    rows: NDArray[np.intp],
    start_s: NDArray[np.float64],
    first_request: NDArray[np.int64],
    seeds: NDArray[np.uint64],
    keep: NDArray[np.float64],
    replicas: NDArray[np.int64],
    batch_size: NDArray[np.int64],
    threads: NDArray[np.int64],
    warmup_requests: NDArray[np.int64],
) -> None:
    """Start the envs of these rows afresh; all arrays `(k,)`."""
    engine = memory.engine[0]
    for i in range(len(rows)):
        env = memory.envs[nth(rows[i])]
        env.index = rows[i]
        env.seed = seeds[i]
        env.jitter_stream = draws.stream_of(env.seed, draws.JITTER)
        env.keep = keep[i]
        env.replicas = replicas[i]
        env.batch_size = batch_size[i]
        env.threads = threads[i]
        env.warmup_requests = warmup_requests[i]
        _empty(memory, engine, env, start_s[i])
        for slot in range(replicas[i]):
            place_ready(memory, engine, env, slot, start_s[i])
        env.next_request = next_kept(memory, env, first_request[i])
        if engine.recording:
            forget_outcomes(memory, env)


@inlined
def clear_window(env: Env) -> None:
    """Sums of the window back to nothing."""
    env.window_arrivals = 0
    env.window_prompt_tokens = 0
    env.window_output_tokens = 0
    env.window_finished = 0
    env.window_met = 0
    env.window_missed = 0
    env.window_rejected = 0
    env.window_failed = 0
    env.window_preemptions = 0
    env.window_starts = 0
    env.window_busy_s = 0.0
    env.window_replica_s = 0.0


@entry
def apply(
    memory: Memory,
    replicas: NDArray[np.int64],
    batch_size: NDArray[np.int64],
    threads: NDArray[np.int64],
    warmup_requests: NDArray[np.int64],
) -> None:
    """Put settings in force, each env at its own time; arrays `(n,)`."""
    engine = memory.engine[0]
    for index in range(len(memory.envs)):
        env = memory.envs[nth(index)]
        resized = batch_size[index] != env.batch_size
        restart = threads[index] != env.threads
        if engine.restarts_for_batch_size:
            restart = restart or resized
        elif resized:
            _tell_batch_size(memory, engine, env, batch_size[index])
        env.batch_size = batch_size[index]
        env.threads = threads[index]
        env.warmup_requests = warmup_requests[index]
        if restart or replicas[index] != env.replicas:
            env.replicas = replicas[index]
            reconcile(memory, engine, env, env.clock_s)
        if restart:
            restart_starting(memory, engine, env, env.clock_s)


@inlined
def _tell_batch_size(memory: Memory, engine: Engine, env: Env, batch_size: int) -> None:
    """Move the cap of engines that run."""
    for slot in range(env.top):
        replica = replica_in(memory, engine, env, slot)
        replica.batch_size = batch_size
        cap_changed(memory, engine, env, replica, env.clock_s)


@inlined
def _empty(memory: Memory, engine: Engine, env: Env, at_s: float) -> None:
    """No replica, no request, nothing counted."""
    env.clock_s = at_s
    env.window_start_s = at_s
    env.top = 0
    env.ready = 0
    env.held = 0
    env.held_since_s = at_s
    env.starts = 0
    env.served = 0
    env.kill_s = math.inf
    env.cursor = 0
    env.router_waiting = 0
    env.in_flight = 0
    env.flight_used = 0
    env.flight_free = NO_REQUEST
    env.window_early_tokens = 0
    clear_window(env)
    begin_gateway_scrapes(memory, engine, env, at_s)
    for slot in range(engine.slots):
        switch_off(memory, engine, env, slot)


@inlined
def _advance_env(memory: Memory, engine: Engine, env: Env, until_s: float) -> bool:
    """Bring one env to `until_s`; False: its pool is full."""
    if env.router_waiting > 0 and env.ready > 0 and not dispatch(memory, engine, env, env.clock_s):
        return False
    while True:
        index = _earliest(memory, engine, env)
        due_s = memory.due_s[nth(index)] if index >= 0 else math.inf
        event_s = min(due_s, env.kill_s)
        arrival_s = next_arrival_s(memory, env)
        if env.scrape_s <= until_s and env.scrape_s < min(event_s, arrival_s):
            scrape_next(memory, engine, env)
            continue
        if event_s <= arrival_s:
            if event_s > until_s or event_s == math.inf:
                break
            env.clock_s = event_s
            if due_s <= event_s:
                _replica_event(memory, engine, env, index, event_s)
            else:
                kill_next(memory, engine, env, event_s)
            if env.router_waiting > 0 and env.ready > 0:
                index = _earliest(memory, engine, env)
                if env.kill_s <= event_s or (index >= 0 and memory.due_s[nth(index)] <= event_s):
                    continue
                if not dispatch(memory, engine, env, event_s):
                    return False
        else:
            if arrival_s > until_s:
                break
            if not has_room(env):
                return False
            env.clock_s = arrival_s
            arrive(memory, engine, env, env.next_request, arrival_s)
            env.next_request = next_kept(memory, env, env.next_request + 1)
    env.clock_s = until_s
    return True


@inlined
def _earliest(memory: Memory, engine: Engine, env: Env) -> int:
    """Row of the replica whose event is due first, the lowest slot of equals; -1: none is held."""
    first = env.index * engine.slots
    earliest = -1
    earliest_s = math.inf
    for index in range(first, first + env.top):
        if memory.due_s[nth(index)] < earliest_s:
            earliest = index
            earliest_s = memory.due_s[nth(index)]
    return earliest


@inlined
def _replica_event(memory: Memory, engine: Engine, env: Env, index: int, at_s: float) -> None:
    replica = memory.replicas[nth(index)]
    if replica.state == _STARTING or replica.state == _WARMING:
        stage_ended(memory, engine, env, replica, at_s)
        return
    before = env.window_output_tokens
    if replica.running > 0:
        stream_ended_run(memory, engine, replica)
        end_run(memory, engine, env, replica, at_s)
    start_iteration(memory, engine, env, replica, at_s)
    # Rule-sets count tokens for the window only, and only here: the replica's are the same.
    replica.output_tokens += env.window_output_tokens - before
    leave_if_drained(memory, engine, env, replica, at_s)
