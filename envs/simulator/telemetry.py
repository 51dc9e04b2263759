"""The truth of a fleet: sums of a window, the state now, the counters of each replica's engine, and
the outcome of each request."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from envs.simulator.buckets import BUCKETS
from envs.simulator.compiled import entry, inlined
from envs.simulator.events import clear_window
from envs.simulator.layout import Engine, Env, Memory, Replica, ReplicaState
from envs.simulator.places import nth, replica_in
from envs.simulator.run import ended_by, tokens_so_far
from envs.simulator.scraping import kv_cache_usage

_STARTING = int(ReplicaState.STARTING)
_WARMING = int(ReplicaState.WARMING)
_READY = int(ReplicaState.READY)
_DRAINING = int(ReplicaState.DRAINING)


class Window(NamedTuple):
    """Sums since the window before, one entry per env; counts int64, seconds float64."""

    length_s: NDArray[np.float64]
    """Seconds since the last window, or since the reset."""
    arrivals: NDArray[np.int64]
    """Requests that arrived, rejected ones included."""
    prompt_tokens: NDArray[np.int64]
    """Prompts of the requests that gave their first token."""
    output_tokens: NDArray[np.int64]
    """Tokens generated, exact at the window's border; each counts once, also if a preemption makes
    the engine decode it again."""
    finished: NDArray[np.int64]
    met: NDArray[np.int64]
    """Requests that finished within every objective."""
    missed: NDArray[np.int64]
    """Requests that came to be known to miss: late first token, finish with TPOT above its
    objective, rejection or failure. Each request counts once."""
    rejected: NDArray[np.int64]
    """Requests that no replica can hold."""
    failed: NDArray[np.int64]
    """Requests whose replica was killed. Each arrival ends as finished, rejected or failed."""
    preemptions: NDArray[np.int64]
    busy_s: NDArray[np.float64]
    """Replica-seconds in which an iteration ran."""
    replica_s: NDArray[np.float64]
    """Replica-seconds held: starting, warming, ready or draining."""
    starts: NDArray[np.int64]
    """Replicas started; rolling restarts and restarts after a crash included, successful or not."""


class Gauges(NamedTuple):
    """State now, one entry per env; those of single replicas are `(n, slots)`, 0 where OFF."""

    now_s: NDArray[np.float64]
    queue_depth: NDArray[np.int64]
    """Requests waiting at the router and the replicas."""
    running: NDArray[np.int64]
    in_flight: NDArray[np.int64]
    """Waiting and running requests."""
    kv_cache_usage: NDArray[np.float64]
    """Mean of the ready and draining replicas, 0-1; NaN where there is none."""
    ready: NDArray[np.int64]
    starting: NDArray[np.int64]
    """Replicas in a cold start, answering warm-up requests, or waiting to restart."""
    draining: NDArray[np.int64]
    replica_state: NDArray[np.int64]
    """Codes of ReplicaState."""
    replica_started_s: NDArray[np.float64]
    """NaN where OFF; the reset's time for replicas that were warm then."""
    replica_running: NDArray[np.int64]
    replica_queue_depth: NDArray[np.int64]
    replica_queued_prompt_tokens: NDArray[np.int64]
    """Tokens that the waiting requests have to prefill, after a preemption what they had done."""
    replica_kv_cache_usage: NDArray[np.float64]
    """0-1; NaN where neither ready nor draining."""
    replica_kv_tokens: NDArray[np.int64]
    """Tokens done of the running requests."""


class Counters(NamedTuple):
    """What each replica's engine has counted since it started, `(n, slots)` int64; 0 where OFF."""

    prompt_tokens: NDArray[np.int64]
    """Prompts of the requests that gave their first token."""
    output_tokens: NDArray[np.int64]
    """Exact at the env's time."""
    finished: NDArray[np.int64]
    preemptions: NDArray[np.int64]
    counts: NDArray[np.int64]
    """`(n, slots, BUCKETS)` requests by bucket; `buckets.FIRST_BUCKET` says where each histogram
    begins: TTFT of first tokens, TPOT of finished requests of two or more output tokens, E2E
    latency of finished requests."""


@dataclass(frozen=True, eq=False)
class RequestColumns:
    """Outcome of every request of the trace, in its order; NaN where it has not come to pass."""

    ttft_s: NDArray[np.float64]
    e2e_s: NDArray[np.float64]
    tpot_s: NDArray[np.float64]
    """Seconds per output token after the first; 0 of a request with one."""
    replica: NDArray[np.int32]
    """Slot that served it; -1: none has."""
    preemptions: NDArray[np.int32]
    rejected: NDArray[np.bool_]
    failed: NDArray[np.bool_]


def empty_window(n: int) -> Window:
    """For `close_windows` to fill."""
    count, seconds = np.int64, np.float64
    return Window(
        length_s=np.empty(n, seconds),
        arrivals=np.empty(n, count),
        prompt_tokens=np.empty(n, count),
        output_tokens=np.empty(n, count),
        finished=np.empty(n, count),
        met=np.empty(n, count),
        missed=np.empty(n, count),
        rejected=np.empty(n, count),
        failed=np.empty(n, count),
        preemptions=np.empty(n, count),
        busy_s=np.empty(n, seconds),
        replica_s=np.empty(n, seconds),
        starts=np.empty(n, count),
    )


def empty_gauges(n: int, slots: int) -> Gauges:
    """For `read_gauges` to fill."""
    count, real = np.int64, np.float64
    return Gauges(
        now_s=np.empty(n, real),
        queue_depth=np.empty(n, count),
        running=np.empty(n, count),
        in_flight=np.empty(n, count),
        kv_cache_usage=np.empty(n, real),
        ready=np.empty(n, count),
        starting=np.empty(n, count),
        draining=np.empty(n, count),
        replica_state=np.empty((n, slots), count),
        replica_started_s=np.empty((n, slots), real),
        replica_running=np.empty((n, slots), count),
        replica_queue_depth=np.empty((n, slots), count),
        replica_queued_prompt_tokens=np.empty((n, slots), count),
        replica_kv_cache_usage=np.empty((n, slots), real),
        replica_kv_tokens=np.empty((n, slots), count),
    )


def empty_counters(n: int, slots: int) -> Counters:
    """For `read_counters` to fill."""
    return Counters(
        prompt_tokens=np.empty((n, slots), np.int64),
        output_tokens=np.empty((n, slots), np.int64),
        finished=np.empty((n, slots), np.int64),
        preemptions=np.empty((n, slots), np.int64),
        counts=np.empty((n, slots, BUCKETS), np.int64),
    )


@entry
def read_counters(memory: Memory, out: Counters) -> None:
    """Write what every replica's engine has counted."""
    engine = memory.engine[0]
    for index in range(len(memory.envs)):
        now_s = memory.envs[nth(index)].clock_s
        for slot in range(engine.slots):
            row = index * engine.slots + slot
            replica = memory.replicas[nth(row)]
            tokens = replica.output_tokens + tokens_so_far(replica, now_s)
            out.output_tokens[index, slot] = tokens
            out.prompt_tokens[index, slot] = replica.prompt_tokens
            out.finished[index, slot] = replica.finished
            out.preemptions[index, slot] = replica.preemptions
            for bucket in range(BUCKETS):
                out.counts[index, slot, bucket] = memory.counts[nth(row * BUCKETS + bucket)]


@entry
def close_windows(memory: Memory, out: Window) -> None:
    """Write every env's sums and begin its next window."""
    engine = memory.engine[0]
    for index in range(len(memory.envs)):
        env = memory.envs[nth(index)]
        early_tokens = _bring_sums_to_now(memory, engine, env)
        out.length_s[index] = env.clock_s - env.window_start_s
        out.arrivals[index] = env.window_arrivals
        out.prompt_tokens[index] = env.window_prompt_tokens
        out.output_tokens[index] = env.window_output_tokens + early_tokens - env.window_early_tokens
        out.finished[index] = env.window_finished
        out.met[index] = env.window_met
        out.missed[index] = env.window_missed
        out.rejected[index] = env.window_rejected
        out.failed[index] = env.window_failed
        out.preemptions[index] = env.window_preemptions
        out.busy_s[index] = env.window_busy_s
        out.replica_s[index] = env.window_replica_s
        out.starts[index] = env.window_starts
        clear_window(env)
        env.window_early_tokens = early_tokens
        env.window_start_s = env.clock_s


@entry
def read_gauges(memory: Memory, out: Gauges) -> None:
    """Write every env's state."""
    engine = memory.engine[0]
    for index in range(len(memory.envs)):
        env = memory.envs[nth(index)]
        running = 0
        starting = 0
        draining = 0
        usage = 0.0
        for slot in range(engine.slots):
            replica = replica_in(memory, engine, env, slot)
            _read_replica(memory, engine, replica, env.clock_s, index, out)
            running += replica.running
            starting += replica.state == _STARTING or replica.state == _WARMING
            draining += replica.state == _DRAINING
            if replica.state == _READY or replica.state == _DRAINING:
                usage += out.replica_kv_cache_usage[index, slot]
        serving = env.ready + draining
        out.now_s[index] = env.clock_s
        out.running[index] = running
        out.in_flight[index] = env.in_flight + env.router_waiting
        out.queue_depth[index] = out.in_flight[index] - running
        out.kv_cache_usage[index] = usage / serving if serving > 0 else math.nan
        out.ready[index] = env.ready
        out.starting[index] = starting
        out.draining[index] = draining


@inlined
def _read_replica(
    memory: Memory, engine: Engine, replica: Replica, now_s: float, index: int, out: Gauges
) -> None:
    slot = replica.slot
    out.replica_state[index, slot] = replica.state
    out.replica_started_s[index, slot] = replica.started_s
    out.replica_running[index, slot] = replica.running
    out.replica_queue_depth[index, slot] = replica.queue_depth
    out.replica_queued_prompt_tokens[index, slot] = replica.queued_tokens
    out.replica_kv_cache_usage[index, slot] = math.nan
    out.replica_kv_tokens[index, slot] = 0
    if replica.state != _READY and replica.state != _DRAINING:
        return
    ended = ended_by(replica, now_s) if replica.running > 0 else 0
    out.replica_kv_cache_usage[index, slot] = kv_cache_usage(memory, engine, replica, ended)
    out.replica_kv_tokens[index, slot] = (
        replica.offsets + replica.decoding * (replica.steps + ended) + replica.context_tokens
    )


@inlined
def _bring_sums_to_now(memory: Memory, engine: Engine, env: Env) -> int:
    """Count the seconds up to now; return the output tokens of the runs that still go on."""
    now_s = env.clock_s
    env.window_replica_s += env.held * (now_s - env.held_since_s)
    env.held_since_s = now_s
    tokens = 0
    first = env.index * engine.slots
    for row in range(first, first + env.top):
        replica = memory.replicas[nth(row)]
        if replica.running > 0:
            env.window_busy_s += now_s - replica.busy_since_s
            replica.busy_since_s = now_s
            tokens += tokens_so_far(replica, now_s)
    return tokens
