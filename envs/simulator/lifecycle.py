"""Replicas that start, warm up, get ready, drain, and restart one by one.

The ceiling that a replica is started with is its engine's start-up argument: limits.batch_size_max,
below which the knob moves while the engine runs, or, where the engine takes the knob at its start
only, the batch size in force then. Above limits.batch_size_oom the engine has no memory left once
its weights are loaded: the container ends there, restarts with growing pauses, and ends again,
holding its GPUs, until it is started with a lower ceiling. A cap that moves while the engine runs
can at most preempt.
"""

from __future__ import annotations

import math

from envs.simulator import draws
from envs.simulator.buckets import BUCKETS
from envs.simulator.compiled import called, inlined
from envs.simulator.layout import NO_REQUEST, Engine, Env, Memory, Replica, ReplicaState
from envs.simulator.places import nth, replica_in
from envs.simulator.scraping import begin_scrapes, end_scrapes, forget_scrapes
from envs.simulator.startup import (
    COMPILE,
    SCHEDULE,
    STAGES,
    WEIGHTS,
    back_off_s,
    count_crash,
    stages_s,
    warm_up_s,
)

_OFF = int(ReplicaState.OFF)
_STARTING = int(ReplicaState.STARTING)
_WARMING = int(ReplicaState.WARMING)
_READY = int(ReplicaState.READY)
_DRAINING = int(ReplicaState.DRAINING)

PAST_THE_RAMP = 2**62
"""Admitted requests of a replica that was warm when the env was reset."""


@called
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
        replica = replica_in(memory, engine, env, slot)
        _hold(engine, env, replica, at_s)
        start(memory, engine, env, replica, at_s)
        wanted += 1
    go_on_restarting(memory, engine, env, at_s)


@called
def start(memory: Memory, engine: Engine, env: Env, replica: Replica, at_s: float) -> None:
    """Start the engine in a held slot, cold in every stage, with the settings in force."""
    replica.crashes = 0
    _start_from(memory, engine, env, replica, at_s, SCHEDULE)


@called
def restart_container(
    memory: Memory, engine: Engine, env: Env, replica: Replica, at_s: float
) -> None:
    """Start the engine again where its container ended, after the wait that its crashes cost."""
    count_crash(replica, at_s)
    _start_from(memory, engine, env, replica, at_s, WEIGHTS)


@inlined
def _start_from(
    memory: Memory, engine: Engine, env: Env, replica: Replica, at_s: float, stage: int
) -> None:
    _clear(memory, engine, env, replica)
    _take_settings(engine, env, replica)
    replica.started_s = at_s
    number = env.starts
    env.starts += 1
    env.window_starts += 1
    waited_s = back_off_s(replica.crashes) + stages_s(memory, env, number, stage, WEIGHTS)
    replica.container_s = at_s + waited_s
    if not (engine.has_startup or waited_s > 0.0 or replica.out_of_memory):
        _get_ready(memory, engine, env, replica, at_s)
        return
    last = COMPILE if replica.out_of_memory else STAGES
    replica.state = _STARTING
    memory.due_s[nth(replica.index)] = replica.container_s + stages_s(
        memory, env, number, WEIGHTS, last
    )


@inlined
def stage_ended(memory: Memory, engine: Engine, env: Env, replica: Replica, at_s: float) -> None:
    """Next stage of a replica that starts or warms up."""
    if replica.out_of_memory:
        restart_container(memory, engine, env, replica, at_s)
        return
    if replica.state == _STARTING and replica.warmups > 0:
        replica.state = _WARMING
        memory.due_s[nth(replica.index)] = at_s + warm_up_s(memory, engine, replica.warmups)
        return
    _get_ready(memory, engine, env, replica, at_s)
    go_on_restarting(memory, engine, env, at_s)


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
            go_on_restarting(memory, engine, env, at_s)
    else:
        turn_off(memory, engine, env, replica, at_s)
        reconcile(memory, engine, env, at_s)


@inlined
def place_ready(memory: Memory, engine: Engine, env: Env, slot: int, at_s: float) -> None:
    """A replica that has been serving for long: READY, past its ramp. For resets.

    One that could not have started with these settings begins to start instead.
    """
    replica = replica_in(memory, engine, env, slot)
    _hold(engine, env, replica, at_s)
    _clear(memory, engine, env, replica)
    _take_settings(engine, env, replica)
    if replica.out_of_memory:
        start(memory, engine, env, replica, at_s)
        return
    replica.started_s = at_s
    replica.container_s = -math.inf
    _get_ready(memory, engine, env, replica, at_s)
    replica.admitted = PAST_THE_RAMP
    replica.taken_tokens = engine.blocks * engine.block_tokens


@inlined
def switch_off(memory: Memory, engine: Engine, env: Env, slot: int) -> None:
    """Empty a slot whatever it held. For resets."""
    index = env.index * engine.slots + slot
    replica = memory.replicas[nth(index)]
    replica.index = index
    replica.slot = slot
    replica.lane = index * engine.batch_size_max
    replica.residue_base = index * engine.block_tokens
    replica.worker_base = index * engine.workers
    replica.state = _OFF
    replica.restarting = 0
    replica.runs = 0
    replica.noise_of = -1
    replica.crashes = 0
    forget_scrapes(memory, engine, env, replica)
    _clear(memory, engine, env, replica)


@inlined
def _clear(memory: Memory, engine: Engine, env: Env, replica: Replica) -> None:
    """A fresh process: nothing runs, nothing waits, all blocks are free. `runs` counts on."""
    memory.due_s[nth(replica.index)] = math.inf
    replica.kill_s = math.inf
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
    replica.taken_tokens = 0
    replica.prompt_tokens = 0
    replica.output_tokens = 0
    replica.finished = 0
    replica.preemptions = 0
    replica.process += 1
    base = replica.index * BUCKETS
    memory.counts[base : base + BUCKETS] = 0
    base = replica.residue_base
    memory.residues[base : base + engine.block_tokens] = 0
    base = replica.worker_base
    memory.workers[base : base + engine.workers] = -math.inf


@inlined
def _take_settings(engine: Engine, env: Env, replica: Replica) -> None:
    """What the engine is started with."""
    replica.batch_size = env.batch_size
    replica.threads = env.threads
    replica.warmups = env.warmup_requests
    ceiling = env.batch_size if engine.restarts_for_batch_size else engine.batch_size_max
    replica.out_of_memory = ceiling > engine.batch_size_oom


@inlined
def _is_stale(engine: Engine, env: Env, replica: Replica) -> bool:
    """Whether it was started with something else than the setting of a knob that needs a start."""
    if engine.has_frontend and replica.threads != env.threads:
        return True
    return engine.restarts_for_batch_size > 0 and replica.batch_size != env.batch_size


@inlined
def _kill_at(env: Env, replica: Replica, at_s: float) -> None:
    """The replica ends then, if nothing ends it before."""
    replica.kill_s = min(replica.kill_s, at_s)
    env.kill_s = min(env.kill_s, at_s)


@inlined
def _get_ready(memory: Memory, engine: Engine, env: Env, replica: Replica, at_s: float) -> None:
    replica.state = _READY
    replica.ready_s = at_s
    replica.admitted = replica.warmups
    replica.restarting = 0
    memory.due_s[nth(replica.index)] = math.inf
    env.ready += 1
    if engine.crash_per_s > 0.0:
        served_s = draws.exponential(env.seed, draws.CRASH, env.served) / engine.crash_per_s
        _kill_at(env, replica, at_s + served_s)
    env.served += 1


@inlined
def _drain(
    memory: Memory, engine: Engine, env: Env, replica: Replica, restarting: int, at_s: float
) -> None:
    replica.state = _DRAINING
    replica.restarting = restarting
    env.ready -= 1
    if replica.running > 0 or replica.queue_depth > 0:
        _kill_at(env, replica, at_s + engine.drain_timeout_s)
        return
    if restarting:
        start(memory, engine, env, replica, at_s)
    else:
        turn_off(memory, engine, env, replica, at_s)


@inlined
def _hold(engine: Engine, env: Env, replica: Replica, at_s: float) -> None:
    """The slot takes up GPUs from now on."""
    env.window_replica_s += env.held * (at_s - env.held_since_s)
    env.held_since_s = at_s
    env.held += 1
    env.top = max(env.top, replica.slot + 1)
    begin_scrapes(engine, env, replica, at_s)


@inlined
def turn_off(memory: Memory, engine: Engine, env: Env, replica: Replica, at_s: float) -> None:
    env.window_replica_s += env.held * (at_s - env.held_since_s)
    env.held_since_s = at_s
    env.held -= 1
    end_scrapes(replica)
    replica.state = _OFF
    replica.restarting = 0
    _clear(memory, engine, env, replica)
    while env.top > 0 and replica_in(memory, engine, env, env.top - 1).state == _OFF:
        env.top -= 1


@inlined
def _wanted_now(memory: Memory, engine: Engine, env: Env) -> int:
    """Replicas that count towards the setting: all held ones but those that drain for good."""
    count = 0
    for slot in range(env.top):
        replica = replica_in(memory, engine, env, slot)
        if replica.state != _OFF and (replica.state != _DRAINING or replica.restarting):
            count += 1
    return count


@inlined
def _lowest_off(memory: Memory, engine: Engine, env: Env) -> int:
    for slot in range(engine.slots):
        if replica_in(memory, engine, env, slot).state == _OFF:
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
        replica = replica_in(memory, engine, env, slot)
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
    replica = replica_in(memory, engine, env, chosen)
    if chosen_rank == 2:
        turn_off(memory, engine, env, replica, at_s)
    elif chosen_rank == 1:
        replica.restarting = 0
    else:
        _drain(memory, engine, env, replica, 0, at_s)


@called
def restart_starting(memory: Memory, engine: Engine, env: Env, at_s: float) -> None:
    """Begin anew where replicas with old settings start or warm up: they have nothing to lose.

    So does a Deployment: its rollout removes pods that are not ready before all others
    (kubernetes/kubernetes, pkg/controller/deployment/rolling.go, cleanupUnhealthyReplicas).
    """
    for slot in range(env.top):
        replica = replica_in(memory, engine, env, slot)
        begun = replica.state == _STARTING or replica.state == _WARMING
        if begun and _is_stale(engine, env, replica):
            start(memory, engine, env, replica, at_s)
    go_on_restarting(memory, engine, env, at_s)


@called
def go_on_restarting(memory: Memory, engine: Engine, env: Env, at_s: float) -> None:
    """Rolling restart: while none is under way, drain the next ready replica that needs a start."""
    if not (engine.has_frontend or engine.restarts_for_batch_size):
        return
    while True:
        stale = -1
        for slot in range(env.top):
            replica = replica_in(memory, engine, env, slot)
            if replica.restarting:
                return
            if stale < 0 and replica.state == _READY and _is_stale(engine, env, replica):
                stale = slot
        if stale < 0:
            return
        _drain(memory, engine, env, replica_in(memory, engine, env, stale), 1, at_s)
