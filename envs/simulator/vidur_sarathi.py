"""Rule-set `vidur-sarathi`: how one replica forms and ends its iterations.

The Sarathi scheduler of microsoft/vidur@7d47513
(vidur/scheduler/replica_scheduler/sarathi_replica_scheduler.py), quirks included: decodes take
their blocks before admission, a decode needs a free block even if it takes none, the whole
prompt's blocks are taken at admission, the watermark guards admission only, a preemption shortens
a prompt that is half done, and admission goes on in an iteration that preempted. It holds while
batch_size_max <= chunk_tokens; then at most one request, the last of the batch, is half-way
through its prompt at a border.

With a watermark the rules can lock a replica for good: a request whose tokens nearly fill the cache
and that is preempted late comes back with its output as prompt, and no longer fits under it.
"""

from __future__ import annotations

import math

from envs.simulator.batch import count_decode, flight_at, rest, smallest_end, uncount_decode
from envs.simulator.blocks import blocks_for, in_block
from envs.simulator.compiled import inlined
from envs.simulator.iteration_time import time_run
from envs.simulator.layout import Engine, Env, Flight, Memory, Replica
from envs.simulator.outcomes import count_first_token, count_preemption, finish
from envs.simulator.places import flight_in, nth
from envs.simulator.queueing import pop_front, push_front
from envs.simulator.run import border_s, cut_at, iterations_that_fit, new_blocks


@inlined
def start_iteration(
    memory: Memory, engine: Engine, env: Env, replica: Replica, at_s: float
) -> None:
    """Form the batch of the iteration that starts at `at_s`, or leave the replica idle."""
    replica.start_s = at_s
    replica.prefill_tokens = 0
    replica.context_tokens = 0
    replica.context_pairs = 0
    if replica.decoding > 0:
        _take_decode_blocks(memory, engine, env, replica)
    if replica.running > replica.decoding:
        flight = flight_at(memory, env, replica, replica.decoding)
        budget = engine.chunk_tokens - replica.decoding
        flight.chunk = min(flight.target - flight.done, budget)
        replica.prefill_tokens = flight.chunk
        replica.context_tokens = flight.done
        replica.context_pairs = flight.chunk * flight.done
    if replica.queue_depth > 0:
        _admit(memory, engine, env, replica)
    if replica.running == 0:
        rest(memory, env, replica)
        return
    if replica.busy_since_s < 0.0:
        replica.busy_since_s = at_s
    replica.runs += 1
    _time_run(memory, engine, env, replica)


@inlined
def end_run(memory: Memory, engine: Engine, env: Env, replica: Replica, at_s: float) -> None:
    """Account for the run's iterations, the last of which ends at `at_s`."""
    k = replica.iterations
    if k > 1:
        replica.free_blocks -= new_blocks(memory, engine, replica, replica.steps + 1, k - 1)
    replica.steps += k
    env.window_output_tokens += k * (replica.decoding - replica.repeating)
    if replica.decoding > 0 and replica.steps == replica.next_end:
        _end_decodes(memory, engine, env, replica, at_s)
    if replica.prefill_tokens > 0:
        _end_prefills(memory, engine, env, replica, at_s)


@inlined
def request_entered(
    memory: Memory, engine: Engine, env: Env, replica: Replica, at_s: float
) -> None:
    """Let a request that joined the queue at `at_s` in, at once or at the border it ends."""
    if replica.queue_depth > 1:
        return  # behind a head that is blocked, or not through the frontend yet
    if replica.running == 0:
        start_iteration(memory, engine, env, replica, at_s)
        return
    if replica.running >= replica.batch_size:
        return
    head = flight_in(memory, env, replica.queue_head)
    if replica.start_s == at_s and head.visible_s <= at_s:
        # The iteration has started this very moment: whoever is here by its start is in it.
        if _admit(memory, engine, env, replica):
            _time_run(memory, engine, env, replica)
    elif replica.prefill_tokens == 0 and _fits(engine, replica, head):
        cut_at(memory, replica, head.visible_s, replica.start_s)


@inlined
def cap_changed(memory: Memory, engine: Engine, env: Env, replica: Replica, at_s: float) -> None:
    """If it was raised, let a head in that only the old cap kept out, from the next iteration on.

    After a cut of the cap a head that fits was let in long ago, or its run is cut already.
    """
    if replica.queue_depth == 0 or replica.running == 0 or replica.prefill_tokens > 0:
        return
    head = flight_in(memory, env, replica.queue_head)
    if replica.running < replica.batch_size and _fits(engine, replica, head):
        cut_at(memory, replica, max(at_s, head.visible_s), at_s)


@inlined
def _fits(engine: Engine, replica: Replica, head: Flight) -> bool:
    """Whether admission leaves the watermark free. False stays so while the batch only decodes."""
    left = replica.free_blocks - blocks_for(engine, head.target)
    return left >= engine.watermark_blocks


@inlined
def _take_decode_blocks(memory: Memory, engine: Engine, env: Env, replica: Replica) -> None:
    residue = in_block(engine, 1 - replica.steps)
    need = memory.residues[nth(replica.residue_base + residue)]
    if need < replica.free_blocks:  # then every decode sees a free block at its turn
        replica.free_blocks -= need
        return
    position = 0
    while position < replica.decoding:
        while replica.free_blocks < 1 and replica.running - 1 > position:
            _preempt_last(memory, engine, env, replica)
        if replica.free_blocks < 1:
            _preempt_last(memory, engine, env, replica)
            break
        flight = flight_at(memory, env, replica, position)
        offset = _offset(memory, replica, flight, position)
        if in_block(engine, offset + replica.steps - 1) == 0:
            replica.free_blocks -= 1
        position += 1


@inlined
def _offset(memory: Memory, replica: Replica, flight: Flight, position: int) -> int:
    """Tokens that the decoding request in that position has done, less the replica's steps."""
    end: int = memory.batch_ends[nth(replica.lane + position)]
    if flight.done < flight.known_tokens:
        return flight.known_tokens - end
    return flight.total_tokens - end


@inlined
def _preempt_last(memory: Memory, engine: Engine, env: Env, replica: Replica) -> None:
    """Put the last request of the batch back to the front of the queue, to prefill it anew."""
    position = replica.running - 1
    entry = memory.batch[nth(replica.lane + position)]
    flight = flight_in(memory, env, entry)
    if position < replica.decoding:
        offset = _offset(memory, replica, flight, position)
        uncount_decode(memory, engine, replica, offset)
        if flight.done < flight.known_tokens:
            replica.repeating -= 1
        flight.done = replica.steps + offset
        replica.free_blocks += blocks_for(engine, flight.done - 1)
    else:
        replica.free_blocks += blocks_for(engine, flight.target)
    flight.known_tokens = max(flight.known_tokens, flight.done)
    flight.target = flight.done
    flight.done = 0
    flight.preemptions += 1
    count_preemption(memory, engine, env, flight)
    replica.running -= 1
    push_front(replica, flight, entry)


@inlined
def _admit(memory: Memory, engine: Engine, env: Env, replica: Replica) -> bool:
    """Admit from the queue's head while it may; whether any was."""
    before = replica.running
    while replica.queue_depth > 0 and replica.running < replica.batch_size:
        budget = engine.chunk_tokens - replica.decoding - replica.prefill_tokens
        entry = replica.queue_head
        head = flight_in(memory, env, entry)
        if budget < 1 or head.visible_s > replica.start_s or not _fits(engine, replica, head):
            break
        pop_front(replica, head)
        replica.free_blocks -= blocks_for(engine, head.target)
        head.chunk = min(head.target, budget)
        replica.prefill_tokens += head.chunk
        memory.batch[nth(replica.lane + replica.running)] = entry
        replica.running += 1
        if head.preemptions == 0:
            replica.admitted += 1
    return replica.running > before


@inlined
def _time_run(memory: Memory, engine: Engine, env: Env, replica: Replica) -> None:
    """Length of the run that the batch allows, and when it ends."""
    replica.iterations = 1
    if replica.prefill_tokens == 0:
        most = replica.next_end - replica.steps
        # Each decode must see a free block at its turn even if it takes none: with one block beyond
        # those that are taken it does. A lower bound that costs no walk over the batch.
        spare = replica.free_blocks - 1
        replica.iterations = iterations_that_fit(memory, engine, replica, most, spare)
    time_run(
        memory,
        engine,
        env,
        replica,
        replica.running,
        replica.prefill_tokens,
        replica.context_pairs,
        replica.offsets + replica.decoding * replica.steps + replica.context_tokens,
        replica.iterations,
    )
    memory.due_s[nth(replica.index)] = border_s(replica, replica.iterations)
    if replica.prefill_tokens == 0 and replica.queue_depth > 0:
        head = flight_in(memory, env, replica.queue_head)
        coming = head.visible_s > replica.start_s
        if coming and replica.running < replica.batch_size and _fits(engine, replica, head):
            cut_at(memory, replica, head.visible_s, replica.start_s)


@inlined
def _end_decodes(memory: Memory, engine: Engine, env: Env, replica: Replica, at_s: float) -> None:
    """Finish the decoding requests that end with this step and close the gaps they leave."""
    position = 0
    while position < replica.decoding:
        if memory.batch_ends[nth(replica.lane + position)] != replica.steps:
            position += 1
            continue
        entry = memory.batch[nth(replica.lane + position)]
        flight = flight_in(memory, env, entry)
        if flight.done < flight.known_tokens:  # what it decodes from now on is new
            flight.done = flight.known_tokens
            replica.repeating -= 1
            left = flight.total_tokens - flight.known_tokens
            memory.batch_ends[nth(replica.lane + position)] = replica.steps + left
            continue
        uncount_decode(memory, engine, replica, flight.total_tokens - replica.steps)
        replica.free_blocks += blocks_for(engine, flight.total_tokens - 1)
        replica.running -= 1
        for i in range(replica.lane + position, replica.lane + replica.running):
            memory.batch[nth(i)] = memory.batch[nth(i + 1)]
            memory.batch_ends[nth(i)] = memory.batch_ends[nth(i + 1)]
        finish(memory, engine, env, flight, entry, at_s)
    replica.next_end = smallest_end(memory, replica, replica.decoding)


@inlined
def _end_prefills(memory: Memory, engine: Engine, env: Env, replica: Replica, at_s: float) -> None:
    """Turn the prompts that are done to decoding; only the last may need another iteration."""
    last = replica.running
    replica.running = replica.decoding
    for position in range(replica.decoding, last):
        entry = memory.batch[nth(replica.lane + position)]
        flight = flight_in(memory, env, entry)
        flight.done += flight.chunk
        if flight.done < flight.target:
            memory.batch[nth(replica.lane + replica.running)] = entry
            replica.running += 1
            continue
        flight.done = flight.target + 1
        if math.isnan(flight.ttft_s):
            count_first_token(env, memory, engine, flight, at_s)
        if flight.done > flight.known_tokens:
            env.window_output_tokens += 1
        if flight.done == flight.total_tokens:
            replica.free_blocks += blocks_for(engine, flight.target)
            finish(memory, engine, env, flight, entry, at_s)
        else:
            _start_decoding(memory, engine, replica, flight, entry)


@inlined
def _start_decoding(
    memory: Memory, engine: Engine, replica: Replica, flight: Flight, entry: int
) -> None:
    if flight.done < flight.known_tokens:
        replica.repeating += 1
        end = replica.steps + flight.known_tokens - flight.done
    else:
        end = replica.steps + flight.total_tokens - flight.done
    offset = flight.done - replica.steps
    if replica.decoding == 0 or end < replica.next_end:
        replica.next_end = end
    memory.batch[nth(replica.lane + replica.running)] = entry
    memory.batch_ends[nth(replica.lane + replica.running)] = end
    count_decode(memory, engine, replica, offset)
    replica.running += 1
