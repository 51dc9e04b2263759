"""Replicas that are killed: by a crash, or because their time to drain is up.

A request on a replica that is killed fails, waiting or running, as behind a gateway that does not
retry. It is counted as failed once, and as missed unless its first token was late already; tokens
that it was given stay counted. It works under every rule-set, because it touches only what all of
them share: the batch's positions, the queue, and the pool of requests.
"""

from __future__ import annotations

import math

from envs.simulator.compiled import called, inlined
from envs.simulator.layout import Engine, Env, Memory, Replica, ReplicaState
from envs.simulator.lifecycle import go_on_restarting, reconcile, restart_container, start, turn_off
from envs.simulator.outcomes import fail
from envs.simulator.places import flight_in, nth, replica_in
from envs.simulator.run import tokens_so_far

_READY = int(ReplicaState.READY)


@called
def kill_next(memory: Memory, engine: Engine, env: Env, at_s: float) -> None:
    """Kill the replica in the lowest slot whose time has come, if there is one."""
    killed = -1
    env.kill_s = math.inf
    for slot in range(env.top):
        replica = replica_in(memory, engine, env, slot)
        if killed < 0 and replica.kill_s <= at_s:
            killed = slot
        else:
            env.kill_s = min(env.kill_s, replica.kill_s)
    if killed >= 0:
        _kill(memory, engine, env, replica_in(memory, engine, env, killed), at_s)


@inlined
def _kill(memory: Memory, engine: Engine, env: Env, replica: Replica, at_s: float) -> None:
    """End the replica's process. A serving one restarts; one that drains was leaving anyway."""
    drop_requests(memory, engine, env, replica, at_s)
    if replica.state == _READY:
        env.ready -= 1
        restart_container(memory, engine, env, replica, at_s)
    elif replica.restarting:
        start(memory, engine, env, replica, at_s)
        if replica.state == _READY:
            go_on_restarting(memory, engine, env, at_s)
    else:
        turn_off(memory, engine, env, replica, at_s)
        reconcile(memory, engine, env, at_s)


@inlined
def drop_requests(memory: Memory, engine: Engine, env: Env, replica: Replica, at_s: float) -> None:
    """Fail every request that the replica has. What else it holds is as before: clear it next."""
    if replica.running > 0:
        env.window_output_tokens += tokens_so_far(replica, at_s)
        env.window_busy_s += at_s - replica.busy_since_s
    for position in range(replica.running):
        entry = memory.batch[nth(replica.lane + position)]
        fail(memory, engine, env, flight_in(memory, env, entry), entry)
    entry = replica.queue_head
    for _ in range(replica.queue_depth):
        flight = flight_in(memory, env, entry)
        behind = flight.next
        fail(memory, engine, env, flight, entry)
        entry = behind
