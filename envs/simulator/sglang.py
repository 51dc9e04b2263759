"""Rule-set `sglang`: how one replica forms and ends its iterations.

The scheduler of SGLang 0.5.23 under its FCFS policy: `event_loop_overlap`,
`_get_new_batch_prefill_raw` and `update_running_batch` (sglang/srt/managers/scheduler.py),
`PrefillAdder` (schedule_policy.py), `retract_decode` (schedule_batch.py), `NewTokenRatioTracker`
(scheduler_components/new_token_ratio_tracker.py), `PrefillBudget` (mem_cache/prefill_budget.py).
A text model on one rank, one KV pool, pages of `kv.block_tokens` tokens:

- An iteration prefills, if anything can be prefilled; else all running requests decode. Decodes
  stand still while others prefill.
- A prefill takes the one request that is half-way through its prompt, then the queue from its head,
  until the tokens of `limits.chunk_tokens` or `max_prefill_tokens`, the cap or the cache run out.
  The first request that does not fit ends it. All count in whole pages.
- A request fits if its tokens, those it may still ask for (at most 4,096) and a page are less than
  what is free, less what the running ones may still ask for (at most 4,096 each) x the *new-token
  ratio*. The ratio starts at 0.7 x `schedule_conservativeness`, at most 1, and falls in 600 decode
  iterations to 14 % of that; it starts anew when the engine idles.
- Nobody asks again once the answer was no: the engine notes that it is *full*, until a request
  leaves it, half a prompt is behind it or nothing decodes any more. The falling ratio and a raised
  cap let nobody in by themselves, so a run of decodes goes on until a request ends.
- Decodes that do not find their pages: requests are *retracted*, at least one, until the others do;
  those with the fewest output tokens first, of these the longest prompt, of these the last. They go
  to the end of the queue and prefill anew, output included. The ratio becomes (output tokens + 20
  per request) / (tokens that may be asked for + 1) of those that stay.
- `overlap`: a batch is formed while the one before it runs. So an arrival during iteration m joins
  m + 2, and a request that has ended holds place and pages for one more batch. A retracted
  request's token on the way is thrown away. A batch that finds nothing to compute is formed anew
  when the one before it has ended.

`max_new_tokens` is the output that every request asks for, as far as it is not longer: traces hold
what was generated, not what was asked for. 4,096, the default, stands for all that is more, and for
clients that ask for nothing, because the engine reserves no more than that. As in the engine, a
request never asks for more than an empty cache can hold; so a last one never fails to fit, and the
engine's abort of such a request cannot happen. A request that comes within two pages of the whole
cache is refused: the engine would cut its output short.

What a controller sees lags by one iteration: a batch counts from its start, not from when it was
formed. A request that comes at the very moment at which an idle replica starts a prefill joins it.

Prefix hits come from the trace, in whole pages, and leave at least one token to compute. They save
computing, not room: every request holds pages of its own for what it hits. A retracted request hits
the same again.

Not modelled: mixed chunks, policies other than FCFS, priorities, prefill delays and intervals,
LoRA, speculation, sliding windows, hierarchical caches, pipeline and data-parallel attention,
disaggregation, the context length, `ignore_eos`. The engine foresees every end: one by an EOS token
is computed once more, in vain, with `overlap`. The ratio's sums are those of exact arithmetic, the
engine adds up rounded floats.
"""

from __future__ import annotations

import math

from envs.simulator.batch import count_decode, flight_at, rest, smallest_end, uncount_decode
from envs.simulator.blocks import blocks_for, full_blocks, in_block
from envs.simulator.compiled import inlined
from envs.simulator.iteration_time import time_run
from envs.simulator.layout import NO_REQUEST, Engine, Env, Flight, Memory, Replica
from envs.simulator.outcomes import count_first_token, count_preemption, finish
from envs.simulator.places import flight_in, nth
from envs.simulator.queueing import pop_front, push_behind_visible
from envs.simulator.run import (
    border_s,
    cut_to,
    first_border,
    iterations_that_fit,
    new_blocks,
)

RESERVED_TOKENS_MAX = 4096
"""Most tokens kept free for what one request may still ask for (`CLIP_MAX_NEW_TOKENS`)."""

STEPS_AFTER_RETRACTION = 20
"""Tokens per request that a ratio after a retraction allows for (`RETRACT_DECODE_STEPS`)."""


def new_token_ratios(conservativeness: float) -> tuple[float, float, float]:
    """The new-token ratio of an idle engine, its least, and what it falls by per decode iteration.

    `SGLANG_INIT_NEW_TOKEN_RATIO`, `SGLANG_MIN_NEW_TOKEN_RATIO_FACTOR` and
    `SGLANG_NEW_TOKEN_RATIO_DECAY_STEPS` (sglang/srt/environ.py).
    """
    first = min(0.7 * conservativeness, 1.0)
    least = 0.14 * first
    return first, least, (first - least) / 600


@inlined
def start_iteration(
    memory: Memory, engine: Engine, env: Env, replica: Replica, at_s: float
) -> None:
    """Form the batch of the iteration that starts at `at_s`, or leave the replica idle."""
    joined = replica.joined
    overlapped = engine.async_scheduling and replica.iterations > 0 and not joined
    formed_s = at_s
    cap = replica.batch_size
    if overlapped:  # formed when the last iteration started
        formed_s = border_s(replica, replica.iterations - 1)
        cap = replica.cap
    while True:
        formed = _form(memory, engine, env, replica, formed_s, cap)
        if not overlapped:
            break
        _handle_results(memory, engine, env, replica, at_s)
        if formed:
            break
        overlapped = False
        formed_s = at_s
        cap = replica.batch_size
    replica.start_s = at_s
    replica.cap = replica.batch_size
    replica.joined = 0
    replica.prefill_tokens = 0
    replica.context_tokens = 0
    replica.context_pairs = 0
    if not formed:
        replica.iterations = 0
        replica.ratio = engine.ratio_first
        replica.decays = 0
        rest(memory, env, replica)
        return
    if replica.busy_since_s < 0.0:
        replica.busy_since_s = at_s
    replica.runs += not joined
    if replica.running == replica.decoding:
        replica.free_blocks -= _decode_blocks(memory, engine, replica)
    _time_run(memory, engine, env, replica)


@inlined
def end_run(memory: Memory, engine: Engine, env: Env, replica: Replica, at_s: float) -> None:
    """Account for the run's iterations, the last of which ends at `at_s`."""
    if replica.joined:
        return
    if replica.prefill_tokens > 0:
        _end_prefills(memory, engine, env, replica, at_s)
    else:
        k = replica.iterations
        if k > 1:
            replica.free_blocks -= new_blocks(memory, engine, replica, replica.steps + 1, k - 1)
            replica.decays += k - 1
        replica.steps += k
        env.window_output_tokens += k * replica.decoding
        if replica.steps == replica.next_end:
            _end_decodes(memory, engine, env, replica, at_s)
        replica.late = replica.decoding
    if not engine.async_scheduling:
        _handle_results(memory, engine, env, replica, at_s)


@inlined
def request_entered(
    memory: Memory, engine: Engine, env: Env, replica: Replica, at_s: float
) -> None:
    """Let a request that joined the queue at `at_s` in, at once or at the border it ends.

    At once means by an event of this moment: to start here too would compile all the rules again
    in each place that sends requests, and take three times as long.
    """
    if replica.iterations == 0:
        if replica.queue_depth == 1:  # else its head is still in the frontend
            memory.due_s[nth(replica.index)] = at_s
    elif replica.prefill_tokens == 0:
        _cut_for_head(memory, engine, env, replica)
    elif replica.formed_s == at_s:
        replica.joined = 1
        memory.due_s[nth(replica.index)] = at_s


@inlined
def cap_changed(memory: Memory, engine: Engine, env: Env, replica: Replica, at_s: float) -> None:
    """Cut the run, so that with `overlap` the next batch is formed with the cap of its moment."""
    if engine.async_scheduling and replica.iterations > 1:
        cut_to(memory, replica, first_border(replica, at_s, at_s))


@inlined
def _form(
    memory: Memory, engine: Engine, env: Env, replica: Replica, formed_s: float, cap: int
) -> bool:
    """Choose the next batch with what was known at `formed_s`; whether there is one."""
    replica.formed_s = formed_s
    if not replica.joined:
        if replica.decoding + replica.leaving == 0:
            replica.full = 0
        if replica.running > replica.decoding:
            _go_on_prefilling(memory, engine, env, replica)
    if replica.queue_depth > 0 and not replica.full:
        _admit(memory, engine, env, replica, cap)
    if replica.running > replica.decoding:
        return True
    if replica.decoding == 0:
        replica.full = 0
        return False
    if _decode_blocks(memory, engine, replica) <= replica.free_blocks:
        replica.decays += 1
        return True
    replica.full = 0
    if replica.leaving > 0:  # their pages are free when their last token has been handled
        return False
    _retract(memory, engine, env, replica)
    return True


@inlined
def _decode_blocks(memory: Memory, engine: Engine, replica: Replica) -> int:
    """Pages that one more iteration of all decoding requests takes."""
    residue = in_block(engine, 1 - replica.steps)
    blocks: int = memory.residues[nth(replica.residue_base + residue)]
    return blocks


# What a request may ask for


@inlined
def _asked_tokens(engine: Engine, flight: Flight) -> int:
    """Output tokens that the request asks for, cut to what an empty cache can hold."""
    pages = engine.blocks - blocks_for(engine, flight.prompt_tokens) - 1
    output_tokens = flight.total_tokens - flight.prompt_tokens
    return min(max(engine.max_new_tokens, output_tokens), pages * engine.block_tokens - 1)


@inlined
def _output_tokens(memory: Memory, env: Env, replica: Replica, position: int) -> int:
    """Output tokens of a decoding request that were known when the batch was formed."""
    flight = flight_at(memory, env, replica, position)
    end: int = memory.batch_ends[nth(replica.lane + position)]
    done = replica.steps + flight.total_tokens - end
    late = position >= replica.decoding - replica.late
    return done - flight.prompt_tokens - late


@inlined
def _reserved_tokens(memory: Memory, engine: Engine, env: Env, replica: Replica) -> float:
    """Tokens kept free for what the running requests may still ask for."""
    tokens = replica.leaving_tokens
    for position in range(replica.decoding):
        asked = _asked_tokens(engine, flight_at(memory, env, replica, position))
        left = asked - _output_tokens(memory, env, replica, position)
        tokens += min(left, RESERVED_TOKENS_MAX)
    ratio = replica.ratio
    if replica.decays > 0:
        ratio = max(ratio - replica.decays * engine.ratio_decay, engine.ratio_least)
    return tokens * ratio


# Prefills


@inlined
def _in_pages(engine: Engine, tokens: int) -> int:
    """Tokens, rounded up to whole pages."""
    return blocks_for(engine, tokens) * engine.block_tokens


@inlined
def _go_on_prefilling(memory: Memory, engine: Engine, env: Env, replica: Replica) -> None:
    """Give the request that is half-way through its prompt its next chunk."""
    flight = flight_at(memory, env, replica, replica.decoding)
    reserved = _reserved_tokens(memory, engine, env, replica)
    chunk = min(engine.chunk_tokens, int(replica.free_blocks * engine.block_tokens - reserved))
    if chunk <= 0:  # it holds pages, so it must go on
        chunk = engine.chunk_tokens
    flight.chunk = min(flight.target - flight.done, chunk)
    replica.free_blocks -= blocks_for(engine, flight.done + flight.chunk)
    replica.free_blocks += blocks_for(engine, flight.done)


@inlined
def _charged_tokens(engine: Engine, flight: Flight) -> int:
    """What the batch's prefill counts for, beyond the pages that it has taken."""
    end = flight.done + flight.chunk
    taken = (blocks_for(engine, end) - blocks_for(engine, flight.done)) * engine.block_tokens
    charged = _in_pages(engine, flight.chunk) - taken + engine.block_tokens
    if end == flight.target:
        charged += min(_asked_tokens(engine, flight), RESERVED_TOKENS_MAX)
    return charged


@inlined
def _admit(memory: Memory, engine: Engine, env: Env, replica: Replica, cap: int) -> None:
    """Admit from the queue's head while it may; note if the replica is full."""
    size = engine.block_tokens
    chunk_left = engine.chunk_tokens
    input_left = engine.max_prefill_tokens
    charged = 0
    for position in range(replica.decoding, replica.running):
        flight = flight_at(memory, env, replica, position)
        chunk_left -= _in_pages(engine, flight.chunk)
        input_left -= _in_pages(engine, flight.chunk)
        charged += _charged_tokens(engine, flight)
    reserved = -1.0
    while replica.queue_depth > 0 and not replica.full:
        entry = replica.queue_head
        head = flight_in(memory, env, entry)
        if head.visible_s > replica.formed_s:
            break
        spent = chunk_left <= 0 or input_left <= 0
        if replica.running + replica.leaving >= cap and not spent:
            replica.full = 1
            break
        if reserved < 0.0:
            reserved = _reserved_tokens(memory, engine, env, replica)
        room = replica.free_blocks * size - charged - reserved
        if spent and room > 0.0:
            break
        output_tokens = head.target - head.prompt_tokens
        left = min(_asked_tokens(engine, head) - output_tokens, RESERVED_TOKENS_MAX)
        if head.target + left + size >= room:
            replica.full = int(replica.running + replica.leaving > 0)
            break
        hit = full_blocks(engine, min(head.hit_tokens, head.target - 1)) * size
        chunk = head.target - hit
        if _in_pages(engine, chunk) > chunk_left:
            chunk = full_blocks(engine, chunk_left) * size
        if chunk <= 0:
            break
        if replica.queue_seen == entry:
            replica.queue_seen = NO_REQUEST
        pop_front(replica, head)
        head.done = hit
        head.chunk = chunk
        replica.free_blocks -= blocks_for(engine, hit + chunk)
        memory.batch[nth(replica.lane + replica.running)] = entry
        replica.running += 1
        if head.preemptions == 0:
            replica.admitted += 1
        chunk_left -= _in_pages(engine, chunk)
        input_left -= _in_pages(engine, chunk)
        charged += _charged_tokens(engine, head)
        if replica.free_blocks * size - charged - reserved <= 0.0:
            replica.full = 1


@inlined
def _end_prefills(memory: Memory, engine: Engine, env: Env, replica: Replica, at_s: float) -> None:
    """Turn the prompts that are done to decoding; at most one needs another iteration.

    Their first tokens are given when the result is handled; a request that ends with it has no
    more to lose.
    """
    if replica.decoding == 0:
        replica.full = 0
    half_way = NO_REQUEST
    replica.late = 0
    for position in range(replica.decoding, replica.running):
        entry = memory.batch[nth(replica.lane + position)]
        flight = flight_in(memory, env, entry)
        flight.done += flight.chunk
        if flight.done < flight.target:
            half_way = entry
            continue
        flight.done = flight.target + 1
        if flight.done == flight.total_tokens:
            _give_first_token(memory, engine, env, flight, at_s)
            _leave(memory, engine, env, replica, flight, entry, at_s)
            continue
        end = replica.steps + flight.total_tokens - flight.done
        if replica.decoding == 0 or end < replica.next_end:
            replica.next_end = end
        memory.batch[nth(replica.lane + replica.decoding)] = entry
        memory.batch_ends[nth(replica.lane + replica.decoding)] = end
        count_decode(memory, engine, replica, flight.done - replica.steps)
        replica.late += 1
    replica.running = replica.decoding
    if half_way != NO_REQUEST:
        memory.batch[nth(replica.lane + replica.running)] = half_way
        replica.running += 1
        replica.full = 0


# Decodes


@inlined
def _end_decodes(memory: Memory, engine: Engine, env: Env, replica: Replica, at_s: float) -> None:
    """Finish the requests that end with this step and close the gaps they leave."""
    kept = replica.lane
    for i in range(replica.lane, replica.lane + replica.running):
        entry = memory.batch[nth(i)]
        if memory.batch_ends[nth(i)] != replica.steps:
            memory.batch[nth(kept)] = entry
            memory.batch_ends[nth(kept)] = memory.batch_ends[nth(i)]
            kept += 1
            continue
        flight = flight_in(memory, env, entry)
        uncount_decode(memory, engine, replica, flight.total_tokens - replica.steps)
        _leave(memory, engine, env, replica, flight, entry, at_s)
    replica.running = kept - replica.lane
    replica.next_end = smallest_end(memory, replica, replica.running)


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
    """A request's last token came: it is gone, but counts until the result is handled."""
    left = _asked_tokens(engine, flight) - flight.total_tokens + flight.prompt_tokens + 1
    replica.leaving += 1
    replica.leaving_blocks += blocks_for(engine, flight.total_tokens - 1)
    replica.leaving_tokens += min(left, RESERVED_TOKENS_MAX)
    finish(memory, engine, env, flight, entry, at_s)


@inlined
def _handle_results(
    memory: Memory, engine: Engine, env: Env, replica: Replica, at_s: float
) -> None:
    """Give the first tokens of the prompts that are done, and free what has ended."""
    if replica.prefill_tokens > 0:
        for position in range(replica.decoding - replica.late, replica.decoding):
            flight = flight_at(memory, env, replica, position)
            _give_first_token(memory, engine, env, flight, at_s)
    replica.late = 0
    if replica.leaving > 0:
        replica.free_blocks += replica.leaving_blocks
        replica.leaving = 0
        replica.leaving_blocks = 0
        replica.leaving_tokens = 0
        replica.full = 0


@inlined
def _give_first_token(
    memory: Memory, engine: Engine, env: Env, flight: Flight, at_s: float
) -> None:
    """The token that ends a prefill; after a retraction it is not the request's first."""
    env.window_output_tokens += 1
    if math.isnan(flight.ttft_s):
        count_first_token(env, memory, engine, flight, at_s)


@inlined
def _retract(memory: Memory, engine: Engine, env: Env, replica: Replica) -> None:
    """Take requests out until the others find their pages, and estimate the ratio anew."""
    while True:
        _take_out(memory, engine, env, replica, _least_done(memory, env, replica))
        if _decode_blocks(memory, engine, replica) <= replica.free_blocks:
            break
    output_tokens = 0
    asked_tokens = 0
    for position in range(replica.decoding):
        output_tokens += _output_tokens(memory, env, replica, position)
        asked_tokens += _asked_tokens(engine, flight_at(memory, env, replica, position))
    allowed = output_tokens + STEPS_AFTER_RETRACTION * replica.decoding
    replica.ratio = min(1.0, allowed / (asked_tokens + 1))
    replica.decays = 0


@inlined
def _least_done(memory: Memory, env: Env, replica: Replica) -> int:
    """Position of the decoding request that is retracted next."""
    chosen = 0
    fewest = _output_tokens(memory, env, replica, 0)
    longest = flight_at(memory, env, replica, 0).prompt_tokens
    for position in range(1, replica.decoding):
        output_tokens = _output_tokens(memory, env, replica, position)
        prompt_tokens = flight_at(memory, env, replica, position).prompt_tokens
        if output_tokens < fewest or (output_tokens == fewest and prompt_tokens >= longest):
            chosen = position
            fewest = output_tokens
            longest = prompt_tokens
    return chosen


@inlined
def _take_out(memory: Memory, engine: Engine, env: Env, replica: Replica, position: int) -> None:
    """Retract the decoding request in that position; its token on the way is lost."""
    entry = memory.batch[nth(replica.lane + position)]
    flight = flight_in(memory, env, entry)
    offset = flight.total_tokens - memory.batch_ends[nth(replica.lane + position)]
    flight.target = replica.steps + offset
    replica.free_blocks += blocks_for(engine, flight.target - 1)
    if position >= replica.decoding - replica.late:
        replica.late -= 1
        flight.target -= 1
        if replica.prefill_tokens == 0:
            env.window_output_tokens -= 1
    flight.done = 0
    flight.preemptions += 1
    count_preemption(memory, engine, env, flight)
    uncount_decode(memory, engine, replica, offset)
    replica.running -= 1
    for i in range(replica.lane + position, replica.lane + replica.running):
        memory.batch[nth(i)] = memory.batch[nth(i + 1)]
        memory.batch_ends[nth(i)] = memory.batch_ends[nth(i + 1)]
    push_behind_visible(memory, env, replica, flight, entry, replica.formed_s)


# The run


@inlined
def _time_run(memory: Memory, engine: Engine, env: Env, replica: Replica) -> None:
    """Length of the run that the batch allows, and when it ends."""
    replica.iterations = 1
    sequences = replica.running - replica.decoding
    if sequences > 0:
        for position in range(replica.decoding, replica.running):
            flight = flight_at(memory, env, replica, position)
            replica.prefill_tokens += flight.chunk
            replica.context_tokens += flight.done
            replica.context_pairs += flight.chunk * flight.done
        kv_tokens = replica.context_tokens
    else:
        sequences = replica.decoding
        kv_tokens = replica.offsets + replica.decoding * (replica.steps - 1)
        most = replica.next_end - replica.steps
        spare = replica.free_blocks
        replica.iterations = iterations_that_fit(memory, engine, replica, most, spare)
    time_run(
        memory,
        engine,
        env,
        replica,
        sequences,
        replica.prefill_tokens,
        replica.context_pairs,
        kv_tokens,
        replica.iterations,
    )
    memory.due_s[nth(replica.index)] = border_s(replica, replica.iterations)
    if replica.queue_depth > 0:
        _cut_for_head(memory, engine, env, replica)


@inlined
def _cut_for_head(memory: Memory, engine: Engine, env: Env, replica: Replica) -> None:
    """End a run of decodes where the queue's head is tested, unless a no is known."""
    if replica.full or replica.prefill_tokens > 0 or replica.iterations == 1:
        return
    head = flight_in(memory, env, replica.queue_head)
    border = 0
    if head.visible_s > replica.start_s:
        border = first_border(replica, head.visible_s, replica.start_s)
    cut_to(memory, replica, border + 1 if engine.async_scheduling else max(border, 1))
