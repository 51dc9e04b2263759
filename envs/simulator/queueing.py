"""Requests in flight: the pool of an env's entries and the queue of a replica, linked lists."""

from __future__ import annotations

import math

from envs.simulator.compiled import inlined
from envs.simulator.layout import NO_REQUEST, Arrival, Engine, Env, Flight, Memory, Replica
from envs.simulator.places import flight_in, nth


@inlined
def has_room(env: Env) -> bool:
    """Whether the env's pool has an entry left."""
    return env.flight_free != NO_REQUEST or env.flight_used < env.flight_capacity


@inlined
def take_entry(memory: Memory, env: Env) -> int:
    """Entry of the env's pool for a new request; there must be room."""
    entry = env.flight_free
    if entry != NO_REQUEST:
        env.flight_free = flight_in(memory, env, entry).next
    else:
        entry = env.flight_used
        env.flight_used += 1
    env.in_flight += 1
    return entry


@inlined
def give_back(env: Env, flight: Flight, entry: int) -> None:
    flight.next = env.flight_free
    env.flight_free = entry
    env.in_flight -= 1


@inlined
def outputs_of(env: Env, arrival: Arrival) -> int:
    """Output tokens of a request of the trace in this env's world."""
    return max(1, int(arrival.output_tokens * env.output_tokens + 0.5))


@inlined
def prefix_warmth(engine: Engine, replica: Replica) -> float:
    """Share (0-1) of a trace's prefix hits that the replica's cache can give.

    Empty at its start, it fills with the prompts that the replica is sent: the share grows with
    their tokens until they would fill the cache once.
    """
    return min(1.0, replica.taken_tokens / (engine.blocks * engine.block_tokens))


@inlined
def fill_entry(
    memory: Memory, engine: Engine, env: Env, replica: Replica, entry: int, request: int
) -> Flight:
    """A request of the trace that comes to the replica and has done nothing yet."""
    arrival = memory.trace[nth(request)]
    flight: Flight = flight_in(memory, env, entry)
    flight.request = request
    flight.next = NO_REQUEST
    flight.prompt_tokens = arrival.prompt_tokens
    flight.total_tokens = arrival.prompt_tokens + outputs_of(env, arrival)
    hit_tokens = int(env.prefix_hits * arrival.hit_tokens * prefix_warmth(engine, replica))
    flight.hit_tokens = min(hit_tokens, arrival.prompt_tokens)
    replica.taken_tokens += arrival.prompt_tokens
    flight.known_tokens = arrival.prompt_tokens
    flight.target = arrival.prompt_tokens
    flight.done = 0
    flight.chunk = 0
    flight.preemptions = 0
    flight.arrival_s = arrival.arrival_s
    flight.ttft_s = math.nan
    return flight


@inlined
def push_back(memory: Memory, env: Env, replica: Replica, flight: Flight, entry: int) -> None:
    if replica.queue_depth == 0:
        replica.queue_head = entry
    else:
        flight_in(memory, env, replica.queue_tail).next = entry
    replica.queue_tail = entry
    replica.queue_depth += 1
    replica.queued_tokens += flight.target


@inlined
def push_front(replica: Replica, flight: Flight, entry: int) -> None:
    flight.next = replica.queue_head if replica.queue_depth > 0 else NO_REQUEST
    if replica.queue_depth == 0:
        replica.queue_tail = entry
    replica.queue_head = entry
    replica.queue_depth += 1
    replica.queued_tokens += flight.target


@inlined
def push_behind_visible(
    memory: Memory, env: Env, replica: Replica, flight: Flight, entry: int, by_s: float
) -> None:
    """Queue it behind all that the engine knows by `by_s`, before those on their way.

    `by_s` never goes back, so a walk over the queue starts where the last one ended.
    """
    before = NO_REQUEST
    behind = NO_REQUEST
    if replica.queue_depth > 0:
        before = replica.queue_seen
        behind = replica.queue_head
        if before != NO_REQUEST:
            behind = flight_in(memory, env, before).next
    while behind != NO_REQUEST and flight_in(memory, env, behind).visible_s <= by_s:
        before = behind
        behind = flight_in(memory, env, behind).next
    flight.next = behind
    if before == NO_REQUEST:
        replica.queue_head = entry
    else:
        flight_in(memory, env, before).next = entry
    if behind == NO_REQUEST:
        replica.queue_tail = entry
    replica.queue_seen = entry
    replica.queue_depth += 1
    replica.queued_tokens += flight.target


@inlined
def pop_front(replica: Replica, flight: Flight) -> None:
    """Take the head, which is `flight`, out of the queue."""
    replica.queue_head = flight.next
    replica.queue_depth -= 1
    replica.queued_tokens -= flight.target
