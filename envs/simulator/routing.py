"""From the trace to a replica: arrival, rejection, the router and its queue, the frontend."""

from __future__ import annotations

import math

from envs.simulator import draws
from envs.simulator.blocks import blocks_for
from envs.simulator.compiled import inlined
from envs.simulator.frontend import take_in
from envs.simulator.layout import Engine, Env, Memory, ReplicaState
from envs.simulator.outcomes import record_replica, reject
from envs.simulator.places import nth, replica_in
from envs.simulator.queueing import fill_entry, has_room, outputs_of, push_back, take_entry
from envs.simulator.rules import request_entered

ROUND_ROBIN, LEAST_PENDING, LEAST_LOADED = 0, 1, 2
ROUTERS = {
    "round_robin": ROUND_ROBIN,
    "least_pending": LEAST_PENDING,
    "least_loaded": LEAST_LOADED,
}
"""Name -> code. round_robin: the next ready slot; least_pending: fewest waiting requests, those in
the frontend included; least_loaded: fewest waiting and running ones; ties to the lowest slot."""

_READY = int(ReplicaState.READY)


@inlined
def next_arrival_s(memory: Memory, env: Env) -> float:
    """When the next request of the trace arrives; inf: none does, as far as is known now.

    In a closed loop a client sends its next request at the moment its last one ends, so once an
    event has left fewer requests in flight than there are clients, the next one arrives with it.
    """
    if env.next_request >= len(memory.trace):
        return math.inf
    if env.clients == 0:
        arrival_s: float = memory.trace[nth(env.next_request)].arrival_s
        return arrival_s
    if env.ready > 0 and env.in_flight < env.clients:
        clock_s: float = env.clock_s
        return clock_s
    return math.inf


@inlined
def arrive(memory: Memory, engine: Engine, env: Env, request: int, at_s: float) -> None:
    """A request of the trace arrives; the env's pool must have room."""
    env.window_arrivals += 1
    env.gateway_arrivals += 1
    if _is_too_large(memory, engine, env, request):
        reject(memory, engine, env, request)
    elif env.ready > 0:
        _send(memory, engine, env, request, at_s)
    else:
        if env.router_waiting == 0:
            env.router_first = request
        env.router_waiting += 1


@inlined
def dispatch(memory: Memory, engine: Engine, env: Env, at_s: float) -> bool:
    """Send what waits at the router to the ready replicas, first come first; False: pool full.

    The requests that wait are those of the trace from `router_first` on, less the thinned and the
    rejected ones, so the queue needs no memory of its own.
    """
    while env.router_waiting > 0:
        if not has_room(env):
            return False
        request = env.router_first
        if not _is_too_large(memory, engine, env, request):
            env.router_waiting -= 1
            _send(memory, engine, env, request, at_s)
        env.router_first = next_kept(memory, env, request + 1)
    return True


@inlined
def next_kept(memory: Memory, env: Env, request: int) -> int:
    """First request from there on that the env's thinning keeps."""
    if env.keep < 1.0:
        while (
            request < len(memory.trace)
            and draws.uniform(env.seed, draws.THINNING, request) >= env.keep
        ):
            request += 1
    return request


@inlined
def _is_too_large(memory: Memory, engine: Engine, env: Env, request: int) -> bool:
    """Whether no empty replica could admit the request, or hold all of it."""
    arrival = memory.trace[nth(request)]
    if arrival.prompt_tokens + outputs_of(env, arrival) > engine.total_tokens_max:
        return True
    return blocks_for(engine, arrival.prompt_tokens) > engine.prompt_blocks_max


@inlined
def _send(memory: Memory, engine: Engine, env: Env, request: int, at_s: float) -> None:
    replica = replica_in(memory, engine, env, _choose(memory, engine, env))
    if replica.queue_depth + replica.running >= engine.max_queued_requests:
        reject(memory, engine, env, request)
        return
    entry = take_entry(memory, env)
    flight = fill_entry(memory, engine, env, replica, entry, request)
    flight.slot = replica.slot
    flight.visible_s = at_s
    if env.clients > 0:
        flight.arrival_s = at_s
    if engine.has_frontend:
        take_in(memory, engine, replica, flight, at_s)
    push_back(memory, env, replica, flight, entry)
    record_replica(memory, engine, env, request, replica.slot)
    request_entered(memory, engine, env, replica, at_s)


@inlined
def _choose(memory: Memory, engine: Engine, env: Env) -> int:
    """Slot of the ready replica that takes the next request; there is one."""
    if engine.router == ROUND_ROBIN:
        slot = env.cursor if env.cursor < env.top else 0
        while replica_in(memory, engine, env, slot).state != _READY:
            slot = slot + 1 if slot + 1 < env.top else 0
        env.cursor = slot + 1
        return slot
    chosen = -1
    fewest = 0
    for slot in range(env.top):
        replica = replica_in(memory, engine, env, slot)
        if replica.state != _READY:
            continue
        load = replica.queue_depth
        if engine.router == LEAST_LOADED:
            load += replica.running
        if chosen < 0 or load < fewest:
            chosen = slot
            fewest = load
    return chosen
