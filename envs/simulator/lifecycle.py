"""Replicas that start, warm up, get ready, drain, and restart one by one."""

from __future__ import annotations

import math

from envs.simulator import draws
from envs.simulator.compiled import inlined
from envs.simulator.layout import NO_REQUEST, Engine, Env, Memory, Replica, ReplicaState

_OFF = int(ReplicaState.OFF)
_STARTING = int(ReplicaState.STARTING)
_WARMING = int(ReplicaState.WARMING)
_READY = int(ReplicaState.READY)
_DRAINING = int(ReplicaState.DRAINING)

PAST_THE_RAMP = 2**62
"""Admitted requests of a replica that was warm when the env was reset."""


@inlined
def reconcile(memory: Memory, engine: Engine, env: Env, at_s: float) -> None:
    """Start, drain and restart replicas until the cluster is on its way to the env's settings."""
    wanted = _wanted_now(memory, engine, env)
    while wanted > env.replicas:
        _remove_one(memory, engine, env, at_s)
        wanted -= 1
    while wanted < env.replicas:
        slot = _lowest_off(memory, engine, env)
        if slot < 0:  # goes on when a draining replica is gone
            break
        replica = memory.replicas[env.index * engine.slots + slot]
        _hold(env, replica, at_s)
        start(memory, engine, env, replica, at_s)
        wanted += 1
    if engine.has_frontend:
        _go_on_restarting(memory, engine, env, at_s)


@inlined
def start(memory: Memory, engine: Engine, env: Env, replica: Replica, at_s: float) -> None:
    """Start the engine in a held slot, cold, with the settings in force."""
    _clear(memory, engine, env, replica)
    replica.threads = env.threads
    replica.warmups = env.warmup_requests
    replica.started_s = at_s
    number = env.starts
    env.starts += 1
    env.window_starts += 1
    if not engine.has_startup:
        _get_ready(memory, env, replica, at_s)
        return
    draw = draws.truncated_normal(env.seed, draws.COLD_START, number)
    replica.state = _STARTING
    memory.due_s[replica.index] = at_s + engine.cold_start_s * math.exp(engine.spread * draw)


@inlined
def stage_ended(memory: Memory, engine: Engine, env: Env, replica: Replica, at_s: float) -> None:
    """Next stage of a replica that starts or warms up."""
    if replica.state == _STARTING and replica.warmups > 0:
        replica.state = _WARMING
        memory.due_s[replica.index] = at_s + replica.warmups * engine.warmup_request_s
        return
    _get_ready(memory, env, replica, at_s)
    if engine.has_frontend:
        _go_on_restarting(memory, engine, env, at_s)


@inlined
def leave_if_drained(
    memory: Memory, engine: Engine, env: Env, replica: Replica, at_s: float
) -> None:
    """End a draining replica that has nothing left to serve."""
    if replica.state != _DRAINING or replica.running > 0 or replica.queue_depth > 0:
        return
    if replica.restarting:
        start(memory, engine, env, replica, at_s)
        if replica.state == _READY:
            _go_on_restarting(memory, engine, env, at_s)
    else:
        _turn_off(memory, engine, env, replica, at_s)
        reconcile(memory, engine, env, at_s)


@inlined
def place_ready(memory: Memory, engine: Engine, env: Env, slot: int, at_s: float) -> None:
    """A replica that has been serving for long: READY, past its ramp. For resets."""
    replica = memory.replicas[env.index * engine.slots + slot]
    _hold(env, replica, at_s)
    _clear(memory, engine, env, replica)
    replica.threads = env.threads
    replica.warmups = env.warmup_requests
    replica.started_s = at_s
    _get_ready(memory, env, replica, at_s)
    replica.admitted = PAST_THE_RAMP


@inlined
def switch_off(memory: Memory, engine: Engine, env: Env, slot: int) -> None:
    """Empty a slot whatever it held. For resets."""
    index = env.index * engine.slots + slot
    replica = memory.replicas[index]
    replica.index = index
    replica.slot = slot
    replica.lane = index * engine.batch_size_max
    replica.residue_base = index * engine.block_tokens
    replica.worker_base = index * engine.workers
    replica.state = _OFF
    replica.restarting = 0
    replica.runs = 0
    _clear(memory, engine, env, replica)


@inlined
def _clear(memory: Memory, engine: Engine, env: Env, replica: Replica) -> None:
    """A fresh process: nothing runs, nothing waits, all blocks are free. `runs` counts on."""
    memory.due_s[replica.index] = math.inf
    replica.started_s = math.nan
    replica.ready_s = math.nan
    replica.start_s = -math.inf
    replica.iterations = 0
    replica.streamed = 0
    replica.prefill_tokens = 0
    replica.context_tokens = 0
    replica.context_pairs = 0
    replica.busy_since_s = -1.0
    replica.running = 0
    replica.decoding = 0
    replica.leaving = 0
    replica.leaving_blocks = 0
    replica.leaving_tokens = 0
    replica.late = 0
    replica.full = 0
    replica.joined = 0
    replica.ratio = engine.ratio_first
    replica.decays = 0
    replica.formed_s = -math.inf
    replica.cap = 0
    replica.steps = 0
    replica.offsets = 0
    replica.next_end = 0
    replica.repeating = 0
    replica.free_blocks = engine.blocks
    replica.admitted = 0
    replica.queue_head = NO_REQUEST
    replica.queue_tail = NO_REQUEST
    replica.queue_seen = NO_REQUEST
    replica.queue_depth = 0
    replica.queued_tokens = 0
    base = replica.residue_base
    memory.residues[base : base + engine.block_tokens] = 0
    base = replica.worker_base
    memory.workers[base : base + engine.workers] = -math.inf


@inlined
def _get_ready(memory: Memory, env: Env, replica: Replica, at_s: float) -> None:
    replica.state = _READY
    replica.ready_s = at_s
    replica.admitted = replica.warmups
    replica.restarting = 0
    memory.due_s[replica.index] = math.inf
    env.ready += 1


@inlined
def _drain(
    memory: Memory, engine: Engine, env: Env, replica: Replica, restarting: int, at_s: float
) -> None:
    replica.state = _DRAINING
    replica.restarting = restarting
    env.ready -= 1
    if replica.running > 0 or replica.queue_depth > 0:
        return
    if restarting:
        start(memory, engine, env, replica, at_s)
    else:
        _turn_off(memory, engine, env, replica, at_s)


@inlined
def _hold(env: Env, replica: Replica, at_s: float) -> None:
    """The slot takes up GPUs from now on."""
    env.window_replica_s += env.held * (at_s - env.held_since_s)
    env.held_since_s = at_s
    env.held += 1
    env.top = max(env.top, replica.slot + 1)


@inlined
def _turn_off(memory: Memory, engine: Engine, env: Env, replica: Replica, at_s: float) -> None:
    env.window_replica_s += env.held * (at_s - env.held_since_s)
    env.held_since_s = at_s
    env.held -= 1
    replica.state = _OFF
    replica.restarting = 0
    _clear(memory, engine, env, replica)
    first = env.index * engine.slots
    while env.top > 0 and memory.replicas[first + env.top - 1].state == _OFF:
        env.top -= 1


@inlined
def _wanted_now(memory: Memory, engine: Engine, env: Env) -> int:
    """Replicas that count towards the setting: all held ones but those that drain for good."""
    count = 0
    for slot in range(env.top):
        replica = memory.replicas[env.index * engine.slots + slot]
        if replica.state != _OFF and (replica.state != _DRAINING or replica.restarting):
            count += 1
    return count


@inlined
def _lowest_off(memory: Memory, engine: Engine, env: Env) -> int:
    for slot in range(engine.slots):
        if memory.replicas[env.index * engine.slots + slot].state == _OFF:
            return slot
    return -1


@inlined
def _remove_one(memory: Memory, engine: Engine, env: Env, at_s: float) -> None:
    """Take away the replica that costs least.

    One that starts or warms up goes at once; then one that drains to restart need not come back;
    then a ready one drains. Newest first, ties to the highest slot.
    """
    chosen = -1
    chosen_rank = -1
    chosen_s = 0.0
    for slot in range(env.top):
        replica = memory.replicas[env.index * engine.slots + slot]
        rank = -1
        since_s = replica.started_s
        if replica.state == _STARTING or replica.state == _WARMING:
            rank = 2
        elif replica.state == _DRAINING and replica.restarting:
            rank = 1
        elif replica.state == _READY:
            rank = 0
            since_s = replica.ready_s
        if rank < 0:
            continue
        if rank > chosen_rank or (rank == chosen_rank and since_s >= chosen_s):
            chosen = slot
            chosen_rank = rank
            chosen_s = since_s
    replica = memory.replicas[env.index * engine.slots + chosen]
    if chosen_rank == 2:
        _turn_off(memory, engine, env, replica, at_s)
    elif chosen_rank == 1:
        replica.restarting = 0
    else:
        _drain(memory, engine, env, replica, 0, at_s)


@inlined
def _go_on_restarting(memory: Memory, engine: Engine, env: Env, at_s: float) -> None:
    """Rolling restart: while none is under way, drain the next replica with another `threads`."""
    while True:
        stale = -1
        for slot in range(env.top):
            replica = memory.replicas[env.index * engine.slots + slot]
            if replica.restarting:
                return
            if stale < 0 and replica.state == _READY and replica.threads != env.threads:
                stale = slot
        if stale < 0:
            return
        _drain(memory, engine, env, memory.replicas[env.index * engine.slots + stale], 1, at_s)
