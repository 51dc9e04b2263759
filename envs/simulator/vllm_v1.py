"""Rule-set `vllm-v1`: how one replica forms and ends its iterations.

The scheduler of vLLM 0.33.0 under its FCFS policy: `Scheduler.schedule` and `update_from_output`
(vllm/v1/core/sched/scheduler.py), `AsyncScheduler` (async_scheduler.py beside it), `allocate_slots`
(vllm/v1/core/kv_cache_manager.py), `EngineCore.step` and `step_with_batch_queue`
(vllm/v1/engine/core.py). A text model on one data-parallel rank. `tests/real/test_vllm_rules.py`
holds it against those classes of 0.32.0, request by request.

- Running requests first, in order of admission; then the queue, unless a request was preempted in
  this step. Every token counts against `limits.chunk_tokens`. The budget reaches every running
  request: each was let in with a token left for it, and those before it never ask for more.
- A prompt takes its blocks chunk by chunk, so a later chunk can preempt too. A request that finds
  no block preempts the last of the running ones, in the end itself; the victim gives up all blocks,
  goes to the front of the queue, and computes its prompt and its output so far anew.
- A request is let in if blocks for all its tokens are free (`reserve_full_isl`), or for its first
  chunk, and with them the watermark while something runs. The first that does not fit ends it.
- `long_prefill_token_threshold` cuts every request's chunk, unless it is the only request.
- `async`: a batch is formed while the one before it runs. So an arrival during iteration m joins
  m + 2, and a request that has ended keeps its place and blocks for one more batch; that batch may
  even preempt it.
- A first chunk starts behind the whole blocks of the request's prefix hits, at most all tokens but
  one. A hit saves computing, not room: every request holds blocks of its own for what it hits.
  After a preemption it hits the same again; its own blocks are taken to be evicted, because a
  preemption means that there was no free one.

What a controller sees lags by one iteration, as the engine's metrics do: a batch counts from its
start, not from when it was formed. A request that comes at the very moment at which an idle replica
starts joins that first batch.

Not modelled: priorities, LoRA, KV connectors, speculation, encoders, pipeline parallelism,
`max_model_len`, `prefill_schedule_interval` and balancing over ranks, the adaptive prefill
threshold, `max_num_queued_tokens`, chunked prefill switched off. Every request ends by length: one
that ends by an EOS token would be computed once more, in vain, with `async`.
"""

from __future__ import annotations

import math

from envs.simulator.batch import count_decode, flight_at, rest, uncount_decode
from envs.simulator.blocks import blocks_for, full_blocks, in_block
from envs.simulator.compiled import inlined
from envs.simulator.iteration_time import time_run
from envs.simulator.layout import Engine, Env, Flight, Memory, Replica
from envs.simulator.outcomes import count_first_token, count_preemption, finish
from envs.simulator.places import flight_in, nth
from envs.simulator.queueing import pop_front, push_front
from envs.simulator.run import (
    border_s,
    cut_to,
    first_border,
    iterations_that_fit,
    new_blocks,
)

PREFILLING = 2**31 - 1
"""In `batch_ends`: the request has tokens to prefill. An end of `steps` means that it has ended."""


@inlined
def start_iteration(
    memory: Memory, engine: Engine, env: Env, replica: Replica, at_s: float
) -> None:
    """Form the batch of the iteration that starts at `at_s`, or leave the replica idle."""
    formed_s = at_s
    cap = replica.batch_size
    if engine.async_scheduling and replica.running > 0:  # formed when the last iteration started
        formed_s = border_s(replica, replica.iterations - 1)
        cap = replica.cap
    replica.start_s = at_s
    while True:
        _form(memory, engine, env, replica, formed_s, cap)
        _let_go(memory, replica)
        if replica.running > 0 or formed_s == at_s:
            break
        formed_s = at_s  # nothing to compute: the next batch is formed and started at once
        cap = replica.batch_size
    replica.cap = replica.batch_size
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
    env.window_output_tokens += k * replica.decoding
    if replica.decoding > 0 and replica.steps == replica.next_end:
        _end_decodes(memory, engine, env, replica, at_s)
    if replica.prefill_tokens > 0:
        _end_prefills(memory, engine, env, replica, at_s)
    if not engine.async_scheduling:
        _let_go(memory, replica)


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
    head = flight_in(memory, env, replica.queue_head)
    if replica.formed_s == at_s and head.visible_s <= at_s:
        limit = _chunk_limit(memory, engine, env, replica, at_s)
        if _admit(memory, engine, env, replica, limit, replica.batch_size):
            _time_run(memory, engine, env, replica)
    else:
        _cut_for_head(memory, engine, env, replica)


@inlined
def cap_changed(memory: Memory, engine: Engine, env: Env, replica: Replica, at_s: float) -> None:
    """Cut the run, so that the next batch is formed with the cap of its moment."""
    if replica.running > 0 and replica.prefill_tokens == 0:
        cut_to(memory, replica, first_border(replica, at_s, at_s))


@inlined
def _form(
    memory: Memory, engine: Engine, env: Env, replica: Replica, formed_s: float, cap: int
) -> None:
    """Choose what the next iteration computes, with what was there at `formed_s`."""
    replica.formed_s = formed_s
    replica.prefill_tokens = 0
    replica.context_tokens = 0
    replica.context_pairs = 0
    limit = _chunk_limit(memory, engine, env, replica, formed_s)
    preempted = False
    if replica.running > replica.leaving:
        preempted = _schedule_running(memory, engine, env, replica, limit)
    if replica.queue_depth > 0 and not preempted:
        _admit(memory, engine, env, replica, limit, cap)


@inlined
def _chunk_limit(
    memory: Memory, engine: Engine, env: Env, replica: Replica, formed_s: float
) -> int:
    """Most tokens of one request in this iteration."""
    if engine.long_prefill_tokens == 0:
        return engine.chunk_tokens
    requests = replica.running
    waiting = replica.queue_depth
    entry = replica.queue_head
    while requests < 2 and waiting > 0:
        flight = flight_in(memory, env, entry)
        if flight.visible_s > formed_s:
            break
        requests += 1
        waiting -= 1
        entry = flight.next
    return engine.long_prefill_tokens if requests > 1 else engine.chunk_tokens


@inlined
def _schedule_running(
    memory: Memory, engine: Engine, env: Env, replica: Replica, limit: int
) -> bool:
    """Give the running requests tokens and blocks; whether any was preempted.

    Where all find their blocks it costs no walk over the batch: the decodes take one token each,
    and without a limit at most one request, the last admitted, is half-way through its prompt.
    """
    residue = in_block(engine, 1 - replica.steps)
    need = int(memory.residues[nth(replica.residue_base + residue)])
    prefilling = replica.running - replica.leaving - replica.decoding
    if prefilling == 0:
        if need <= replica.free_blocks:
            replica.free_blocks -= need
            return False
    elif engine.long_prefill_tokens == 0:
        flight = flight_at(memory, env, replica, replica.running - 1)
        tokens = min(flight.target - flight.done, engine.chunk_tokens - replica.decoding)
        need += _more_blocks(engine, flight, tokens)
        if need <= replica.free_blocks:
            replica.free_blocks -= need
            _prefill(replica, flight, tokens)
            return False
    return _walk(memory, engine, env, replica, limit)


@inlined
def _walk(memory: Memory, engine: Engine, env: Env, replica: Replica, limit: int) -> bool:
    """The same, request by request; whether any was preempted."""
    before = replica.running
    budget = engine.chunk_tokens
    position = 0
    while position < replica.running:
        end = memory.batch_ends[nth(replica.lane + position)]
        if end == replica.steps:
            position += 1
            continue
        flight = flight_at(memory, env, replica, position)
        tokens = 1
        if end == PREFILLING:
            tokens = min(flight.target - flight.done, limit, budget)
            need = _more_blocks(engine, flight, tokens)
        else:
            computed = replica.steps + flight.total_tokens - end - 1
            need = int(in_block(engine, computed) == 0)
        while need > replica.free_blocks and replica.running > position:
            _preempt_last(memory, engine, env, replica)
        if replica.running == position:
            break
        replica.free_blocks -= need
        budget -= tokens
        if end == PREFILLING:
            _prefill(replica, flight, tokens)
        position += 1
    return replica.running < before


@inlined
def _more_blocks(engine: Engine, flight: Flight, tokens: int) -> int:
    """KV blocks that so many more tokens of a prefilling request take."""
    return blocks_for(engine, flight.done + tokens) - blocks_for(engine, flight.done)


@inlined
def _prefill(replica: Replica, flight: Flight, tokens: int) -> None:
    """A running request computes so many more of its tokens."""
    flight.chunk = tokens
    replica.prefill_tokens += tokens
    replica.context_tokens += flight.done
    replica.context_pairs += tokens * flight.done


@inlined
def _preempt_last(memory: Memory, engine: Engine, env: Env, replica: Replica) -> None:
    """Take the last of the running requests out, back to the front of the queue."""
    position = replica.running - 1
    entry = memory.batch[nth(replica.lane + position)]
    end = memory.batch_ends[nth(replica.lane + position)]
    flight = flight_in(memory, env, entry)
    replica.running -= 1
    flight.preemptions += 1
    count_preemption(memory, engine, env, flight)
    if end == replica.steps:  # its last token is on the way: it does not come back
        blocks = blocks_for(engine, flight.total_tokens - 1)
        replica.free_blocks += blocks
        replica.leaving_blocks -= blocks
        replica.leaving -= 1
        return
    if end == PREFILLING:
        replica.free_blocks += blocks_for(engine, flight.done)
    else:
        offset = flight.total_tokens - end
        uncount_decode(memory, engine, replica, offset)
        flight.target = replica.steps + offset
        replica.free_blocks += blocks_for(engine, flight.target - 1)
    flight.done = 0
    push_front(replica, flight, entry)


@inlined
def _hit_tokens(engine: Engine, head: Flight) -> int:
    """Tokens of the waiting request that it need not compute: whole blocks, not its last token."""
    return full_blocks(engine, min(head.hit_tokens, head.target - 1)) * engine.block_tokens


@inlined
def _budget(engine: Engine, replica: Replica) -> int:
    """Tokens of the iteration that nobody has."""
    return engine.chunk_tokens - replica.decoding - replica.prefill_tokens


@inlined
def _may_enter(
    engine: Engine, replica: Replica, head: Flight, limit: int, budget: int, cap: int
) -> bool:
    """Whether place, budget and blocks let the head in.

    If not, it stays so while the batch only decodes: blocks only get fewer.
    """
    if replica.running >= cap or budget < 1:
        return False
    tokens = head.target
    if not engine.reserve_full_isl:
        hit = _hit_tokens(engine, head)
        tokens = hit + min(head.target - hit, limit, budget)
    need = blocks_for(engine, tokens)
    if replica.running > 0:
        need += engine.watermark_blocks
    return need <= replica.free_blocks


@inlined
def _admit(
    memory: Memory, engine: Engine, env: Env, replica: Replica, limit: int, cap: int
) -> bool:
    """Admit from the queue's head while it may; whether any was."""
    before = replica.running
    while replica.queue_depth > 0:
        budget = _budget(engine, replica)
        entry = replica.queue_head
        head = flight_in(memory, env, entry)
        if head.visible_s > replica.formed_s or not _may_enter(
            engine, replica, head, limit, budget, cap
        ):
            break
        pop_front(replica, head)
        hit = _hit_tokens(engine, head)
        tokens = min(head.target - hit, limit, budget)
        head.done = hit
        replica.free_blocks -= blocks_for(engine, hit + tokens)
        _prefill(replica, head, tokens)
        memory.batch[nth(replica.lane + replica.running)] = entry
        memory.batch_ends[nth(replica.lane + replica.running)] = PREFILLING
        replica.running += 1
        if head.preemptions == 0:
            replica.admitted += 1
    return replica.running > before


@inlined
def _let_go(memory: Memory, replica: Replica) -> None:
    """Take the requests that have ended out of the batch, and their blocks back."""
    if replica.leaving == 0:
        return
    kept = replica.lane
    for i in range(replica.lane, replica.lane + replica.running):
        if memory.batch_ends[nth(i)] != replica.steps:
            memory.batch[nth(kept)] = memory.batch[nth(i)]
            memory.batch_ends[nth(kept)] = memory.batch_ends[nth(i)]
            kept += 1
    replica.running = kept - replica.lane
    replica.free_blocks += replica.leaving_blocks
    replica.leaving = 0
    replica.leaving_blocks = 0


@inlined
def _time_run(memory: Memory, engine: Engine, env: Env, replica: Replica) -> None:
    """Length of the run that the batch allows, and when it ends."""
    replica.iterations = 1
    if replica.prefill_tokens == 0:
        most = replica.next_end - replica.steps
        spare = replica.free_blocks
        replica.iterations = iterations_that_fit(memory, engine, replica, most, spare)
    time_run(
        memory,
        engine,
        env,
        replica,
        replica.running,
        replica.prefill_tokens,
        replica.context_pairs,
        # A decoding request has computed all its tokens but the last.
        replica.offsets + replica.decoding * (replica.steps - 1) + replica.context_tokens,
        replica.iterations,
    )
    memory.due_s[nth(replica.index)] = border_s(replica, replica.iterations)
    if replica.queue_depth > 0:
        _cut_for_head(memory, engine, env, replica)


@inlined
def _cut_for_head(memory: Memory, engine: Engine, env: Env, replica: Replica) -> None:
    """End a run of decodes where the queue's head can join."""
    if replica.prefill_tokens > 0 or replica.iterations == 1:
        return
    head = flight_in(memory, env, replica.queue_head)
    limit = engine.chunk_tokens
    if engine.long_prefill_tokens > 0:
        limit = engine.long_prefill_tokens
    budget = _budget(engine, replica)
    if not _may_enter(engine, replica, head, limit, budget, replica.batch_size):
        return
    border = 0
    if head.visible_s > replica.start_s:
        border = first_border(replica, head.visible_s, replica.start_s)
    cut_to(memory, replica, border + 1 if engine.async_scheduling else max(border, 1))


@inlined
def _end_decodes(memory: Memory, engine: Engine, env: Env, replica: Replica, at_s: float) -> None:
    """Finish the decoding requests that end with this step; they are to leave."""
    next_end = PREFILLING
    for i in range(replica.lane, replica.lane + replica.running):
        end = memory.batch_ends[nth(i)]
        if end != replica.steps:
            next_end = min(next_end, int(end))
            continue
        entry = memory.batch[nth(i)]
        flight = flight_in(memory, env, entry)
        uncount_decode(memory, engine, replica, flight.total_tokens - replica.steps)
        _leave(memory, engine, env, replica, flight, entry, at_s)
    replica.next_end = next_end


@inlined
def _leave(
    memory: Memory,
    engine: Engine,
    env: Env,
    replica: Replica,
    flight: Flight,
    entry: int,
    at_s: float,
) -> None:
    """A request's last token came; its entry goes back, and is not reused before `_let_go`."""
    replica.leaving += 1
    replica.leaving_blocks += blocks_for(engine, flight.total_tokens - 1)
    finish(memory, engine, env, flight, entry, at_s)


@inlined
def _end_prefills(memory: Memory, engine: Engine, env: Env, replica: Replica, at_s: float) -> None:
    """Turn the requests whose tokens are all computed to decoding, with one token more."""
    for position in range(replica.running):
        if memory.batch_ends[nth(replica.lane + position)] != PREFILLING:
            continue
        entry = memory.batch[nth(replica.lane + position)]
        flight = flight_in(memory, env, entry)
        flight.done += flight.chunk
        if flight.done < flight.target:
            continue
        flight.done = flight.target + 1
        env.window_output_tokens += 1
        if math.isnan(flight.ttft_s):
            count_first_token(env, memory, engine, flight, at_s)
        if flight.done == flight.total_tokens:
            memory.batch_ends[nth(replica.lane + position)] = replica.steps
            _leave(memory, engine, env, replica, flight, entry, at_s)
        else:
            _start_decoding(memory, engine, replica, flight, position)


@inlined
def _start_decoding(
    memory: Memory, engine: Engine, replica: Replica, flight: Flight, position: int
) -> None:
    end = replica.steps + flight.total_tokens - flight.done
    memory.batch_ends[nth(replica.lane + position)] = end
    if replica.decoding == 0 or end < replica.next_end:
        replica.next_end = end
    count_decode(memory, engine, replica, flight.done - replica.steps)
