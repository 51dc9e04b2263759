"""Memory layout of a fleet: arrays over [env], [env, slot] and [env, slot, position].

Compiled functions get them flat and one-dimensional in one `Memory` tuple: replica r of env e is
row e x slots + r. What belongs to one env, replica or request is one record of a structured array,
so that a compiled function is handed a pointer to it: forty plain arrays in a tuple cost 30 times
as much per call tree (419 against 13 ns), because Numba copies every array's descriptor into every
call. Read from Python, `array["field"]` is still one column over [env, slot].
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Any, NamedTuple, get_type_hints

import numpy as np
from numpy.typing import NDArray

Int64 = Annotated[int, np.int64]
Int32 = Annotated[int, np.int32]
Float64 = Annotated[float, np.float64]
UInt64 = Annotated[np.uint64, np.uint64]

NO_REQUEST = -1
"""End of a linked list of requests in flight."""


class ReplicaState(IntEnum):
    """Life of a replica's slot. All states but OFF hold GPUs."""

    OFF = 0
    STARTING = 1
    """Cold start: schedule, image, weights, compilation; or a wait before another try of it."""
    WARMING = 2
    """Answering its warm-up requests."""
    READY = 3
    DRAINING = 4
    """Takes no requests, serves what it has, queue included, up to its time-out."""


class Engine:
    """What a profile and the objectives fix for every replica of a fleet."""

    block_tokens: Int64
    block_shift: Int64
    """Power of two that block_tokens is; -1: of none."""
    blocks: Int64
    """KV blocks that requests can hold."""
    watermark_blocks: Int64
    prompt_blocks_max: Int64
    """Most blocks of a prompt that an empty replica admits."""
    total_tokens_max: Int64
    """Most prompt and output tokens of a request that an empty replica can finish."""
    max_queued_requests: Int64
    """A replica refuses a request that finds so many waiting and running ones."""
    chunk_tokens: Int64
    batch_size_max: Int64
    async_scheduling: Int64
    """Whether a batch is formed while the one before it runs."""
    long_prefill_tokens: Int64
    """Most prompt tokens of one request in an iteration; 0: no limit."""
    reserve_full_isl: Int64
    """Whether admission asks for blocks for all tokens of a request, not only its first chunk."""
    prefills_alone: Int64
    """Whether decodes stand still in an iteration that prefills."""
    max_new_tokens: Int64
    """sglang: output tokens that a request asks for, as far as it is not longer."""
    max_prefill_tokens: Int64
    """sglang: no request is added to an iteration that prefills so many tokens."""
    ratio_first: Float64
    """sglang: the new-token ratio of an engine that was idle."""
    ratio_least: Float64
    ratio_decay: Float64
    """sglang: what the ratio falls by per decode iteration."""
    prefill_base_s: Float64
    per_kv_token_s: Float64
    per_context_s: Float64
    jitter: Float64
    has_startup: Int64
    warmup_request_s: Float64
    restarts_for_batch_size: Int64
    """1 where a replica has the batch size that it was started with; 0 where it is told while it
    runs, and each is started with batch_size_max."""
    batch_size_oom: Int64
    """A start with a higher ceiling runs out of memory."""
    drain_timeout_s: Float64
    crash_per_s: Float64
    """Crashes per second of a serving replica."""
    has_frontend: Int64
    cores: Int64
    per_request_s: Float64
    per_token_s: Float64
    per_output_token_s: Float64
    ingress_s: Float64
    router: Int64
    slots: Int64
    workers: Int64
    """Frontend workers that a replica has room for."""
    slo_ttft_s: Float64
    slo_tpot_s: Float64
    recording: Int64
    scrape_interval_s: Float64
    """Infinite: nothing is scraped."""
    scrapes_kept: Int64
    """Newest scrapes that are remembered of a replica, and of the gateway."""


class Env:
    """One simulated cluster: settings, the state of its router, and the sums of its window."""

    index: Int64
    seed: UInt64
    jitter_stream: UInt64
    """See `draws.stream_of`."""
    keep: Float64
    # factors, see `EnvFactors`
    step_time: Float64
    prefill: Float64
    kv: Float64
    cold_start: Float64
    output_tokens: Float64
    prefix_hits: Float64
    slow_slot: Int64
    slow: Float64
    clients: Int64
    """Closed loop: a request arrives whenever fewer than so many are in flight; 0: by the trace."""
    # how the metrics source sees it
    scrape_lag_s: Float64
    scrape_loss: Float64
    scrape_s: Float64
    """When the next scrape is due, of the gateway or of a replica; or earlier."""
    gateway_phase: Float64
    gateway_number: Int64
    gateway_scrape_s: Float64
    gateway_oldest: Int64
    """Place of its oldest scrape in the ring."""
    gateway_arrivals: Int64
    """Since the reset."""
    pages: Int64
    """Metrics pages that there have been: one per replica, whose restarts keep it."""
    clock_s: Float64
    """Time of the last event or border; nothing happens before it any more."""
    window_start_s: Float64
    # settings
    replicas: Int64
    batch_size: Int64
    threads: Int64
    warmup_requests: Int64
    # cluster
    top: Int64
    """One more than the highest slot that is not OFF."""
    ready: Int64
    held: Int64
    held_since_s: Float64
    starts: Int64
    """Replicas started since the reset, container restarts included; numbers the draws of cold
    starts."""
    served: Int64
    """Replicas that got READY since the reset; numbers the draws of crashes."""
    kill_s: Float64
    """No replica is killed before."""
    cursor: Int64
    """Slot at which round robin goes on."""
    # requests
    next_request: Int64
    """First request of the trace that has not arrived, thinned ones skipped."""
    router_first: Int64
    """First request that waits at the router, where any does."""
    router_waiting: Int64
    in_flight: Int64
    """Requests at the replicas."""
    flight_base: Int64
    flight_capacity: Int64
    flight_used: Int64
    """Entries of the pool that were ever used; those above are free."""
    flight_free: Int64
    """Head of the list of entries given back."""
    # sums of the window
    window_arrivals: Int64
    window_prompt_tokens: Int64
    window_output_tokens: Int64
    window_early_tokens: Int64
    """Output tokens of runs still going on that earlier windows have counted."""
    window_finished: Int64
    window_met: Int64
    window_missed: Int64
    window_rejected: Int64
    window_failed: Int64
    window_preemptions: Int64
    window_starts: Int64
    window_busy_s: Float64
    window_replica_s: Float64


class Replica:
    """One slot. A run is one iteration, or `iterations` identical ones of decodes only."""

    index: Int64
    slot: Int64
    lane: Int64
    """Its first position in `batch` and `batch_ends`."""
    residue_base: Int64
    worker_base: Int64
    state: Int64
    restarting: Int64
    """1 from the drain of a rolling restart until the replica is READY again."""
    batch_size: Int64
    """Most sequences that it runs at once."""
    threads: Int64
    """Frontend workers it was started with."""
    warmups: Int64
    """Warm-up requests it was started with."""
    out_of_memory: Int64
    """1: this start ends in a crash."""
    crashes: Int64
    """In a row; see `startup.back_off_s`."""
    container_s: Float64
    """When its container began to run."""
    kill_s: Float64
    """When it crashes, or its time to drain is up; inf: never."""
    started_s: Float64
    ready_s: Float64
    # run
    start_s: Float64
    iterations: Int64
    step_s: Float64
    """Seconds of the run's first iteration."""
    half_slope_s: Float64
    """Each iteration of the run takes twice this longer than the one before."""
    streamed: Int64
    """Iterations of the run whose tokens the frontend has been given; see `frontend.py`."""
    prefill_tokens: Int64
    """Prompt tokens of the run's one iteration; 0 in a run of decodes."""
    context_tokens: Int64
    """Tokens that the request half-way through its prompt had done before this iteration."""
    context_pairs: Int64
    """Prompt tokens of the run's one iteration x tokens that their request had done before it,
    summed over the prefilling requests."""
    runs: Int64
    """Runs since the reset; numbers the draws of jitter."""
    noise: Float64
    """Standard normal draw of the run of number `noise_of`, made ahead; see `iteration_time.py`."""
    noise_of: Int64
    """-1: none is made."""
    busy_since_s: Float64
    # batch: under sglang and vidur-sarathi the first `decoding` positions decode and the others
    # prefill; under vllm-v1 they are in order of admission, and a prefilling one has `PREFILLING`
    # as its end
    running: Int64
    decoding: Int64
    leaving: Int64
    """Not vidur-sarathi: requests that have ended, and keep place and blocks until the next batch
    is formed; 0 between events."""
    leaving_blocks: Int64
    leaving_tokens: Int64
    """sglang: tokens kept free for what those that have ended might have asked for."""
    late: Int64
    """sglang: the last so many decodes have a token that was not known when the batch was formed;
    0 between events."""
    full: Int64
    """sglang: 1 from the time a request was refused until one leaves; nobody asks till then."""
    joined: Int64
    """sglang: 1 while a request has come at the very moment at which a prefill has started."""
    ratio: Float64
    """sglang: the new-token ratio when it was last set."""
    decays: Int64
    """sglang: decode iterations that have made it fall since."""
    formed_s: Float64
    """The batch was formed with the requests and the cap of that moment; not vidur-sarathi."""
    cap: Int64
    """`batch_size` when the run started; not vidur-sarathi."""
    steps: Int64
    """Iterations finished. A decoding request has done `steps + offset` tokens."""
    offsets: Int64
    """Sum of the offsets of the decoding requests."""
    next_end: Int64
    """No decoding request ends before this step; a lower bound once one was preempted."""
    repeating: Int64
    """Decoding requests that decode tokens they have had before; see `Flight.known_tokens`."""
    free_blocks: Int64
    admitted: Int64
    """Requests admitted, warm-up requests included; gives the stage of the ramp."""
    # queue
    queue_head: Int64
    queue_tail: Int64
    queue_seen: Int64
    """sglang: a request behind which all is that the engine came to know later; NO_REQUEST: none
    is."""
    queue_depth: Int64
    queued_tokens: Int64
    """Tokens to prefill of the waiting requests."""
    taken_tokens: Int64
    """Prompt tokens that it has been sent since its start; tells how warm its prefix cache is."""
    # what its engine has counted since it started; the histograms are in `counts`
    prompt_tokens: Int64
    output_tokens: Int64
    """Without those of the run that goes on."""
    finished: Int64
    preemptions: Int64
    # scrapes
    page: Int64
    """Number of its metrics page."""
    process: Int64
    """Changes with every start of the engine, and the counters begin at zero."""
    phase: Float64
    """Its scrapes come at (number + phase) x interval, 0-1."""
    scrape_number: Int64
    scrape_s: Float64
    """When its next scrape is due; infinite where OFF."""
    oldest_scrape: Int64
    """Place in the ring of its oldest scrape, which the next one takes."""


class Flight:
    """A request at a replica, waiting or running."""

    request: Int32
    next: Int32
    """Behind it in its replica's queue or in the free list."""
    prompt_tokens: Int32
    total_tokens: Int32
    hit_tokens: Int32
    """Prompt tokens that a prefix cache would hold."""
    known_tokens: Int32
    """Prompt and output tokens that exist. A preemption in the middle of a prefill forgets those
    behind it, and the request decodes them again, which gives no new output."""
    target: Int32
    """Tokens to prefill."""
    done: Int32
    """Tokens prefilled; a decoding request's progress follows from the replica's steps."""
    chunk: Int32
    """Tokens it prefills in the iteration that is running."""
    preemptions: Int32
    worker: Int32
    """Row of `workers` of the frontend worker that took it in, if there is a frontend."""
    slot: Int32
    """Of the replica that has it."""
    arrival_s: Float64
    visible_s: Float64
    """When the engine knows it."""
    ttft_s: Float64
    """NaN before the first token."""


class Outcome:
    """What became of a request of the trace."""

    ttft_s: Float64
    e2e_s: Float64
    tpot_s: Float64
    replica: Int32
    preemptions: Int32
    rejected: Int32
    failed: Int32


class Arrival:
    """A request of the trace."""

    arrival_s: Float64
    prompt_tokens: Int32
    output_tokens: Int32
    hit_tokens: Int32
    """Prompt tokens that an endless prefix cache would hold; 0 if the replicas have none."""


class Stage:
    """A stage of a cold start."""

    median_s: Float64
    spread: Float64


class Scrape:
    """What one scrape of a replica read; its histograms are in `scraped_counts`."""

    at_s: Float64
    """-inf: it was lost, or has not been."""
    page: Int64
    process: Int64
    prompt_tokens: Int64
    output_tokens: Int64
    kv_cache_usage: Float64
    finished: Int64
    preemptions: Int32
    running: Int32
    waiting: Int32
    answered: Int32
    """1 where the engine was up; the others are of nothing then."""
    busy: Int32
    """1 where the GPU ran an iteration."""


class GatewayScrape:
    """What one scrape of the gateway read."""

    at_s: Float64
    """-inf: it was lost, or has not been."""
    arrivals: Int64
    in_flight: Int64


def dtype_of(record: type) -> np.dtype[np.void]:
    """Structured dtype of the annotated fields of a record class."""
    hints = get_type_hints(record, include_extras=True)
    return np.dtype([(name, hint.__metadata__[0]) for name, hint in hints.items()], align=True)


ENGINE = dtype_of(Engine)
ENV = dtype_of(Env)
REPLICA = dtype_of(Replica)
FLIGHT = dtype_of(Flight)
OUTCOME = dtype_of(Outcome)
ARRIVAL = dtype_of(Arrival)
STAGE = dtype_of(Stage)
SCRAPE = dtype_of(Scrape)
GATEWAY_SCRAPE = dtype_of(GatewayScrape)


class Memory(NamedTuple):
    """Everything a compiled function may touch; all arrays one-dimensional and C-contiguous."""

    engine: NDArray[Any]
    """`(1,)` ENGINE."""
    batch_s: NDArray[np.float64]
    """`(batch_size_max + 1,)` seconds of an iteration by sequences."""
    prefill_s: NDArray[np.float64]
    """`(chunk_tokens + 1,)` seconds more by prompt tokens, without prefill_base_s."""
    straggler: NDArray[np.float64]
    """`(batch_size_max + 1,)` factor on all seconds of an iteration by sequences."""
    jitter: NDArray[np.float64]
    """Sigma of the logarithm of a run's random factor by iterations, as far as it goes."""
    stages: NDArray[Any]
    """`(4,)` STAGE: schedule, image, weights, compile."""
    ramp_requests: NDArray[np.int64]
    """`(stages,)` admitted requests up to which a stage of the ramp lasts."""
    ramp_speed: NDArray[np.float64]
    trace: NDArray[Any]
    """`(requests,)` ARRIVAL."""
    envs: NDArray[Any]
    """`(n,)` ENV."""
    replicas: NDArray[Any]
    """`(n x slots,)` REPLICA."""
    due_s: NDArray[np.float64]
    """`(n x slots,)` when the replica's run or stage of life ends; inf: it waits for a request."""
    batch: NDArray[np.int32]
    """`(n x slots x batch_size_max,)` entry of `flights` by position, in the batch's order."""
    batch_ends: NDArray[np.int32]
    """Same shape: value of `steps` at which the decoding request in that position ends."""
    residues: NDArray[np.int32]
    """`(n x slots x block_tokens,)` decoding requests by offset modulo block_tokens."""
    workers: NDArray[np.float64]
    """`(n x slots x workers,)` when each frontend worker is free."""
    flights: NDArray[Any]
    """FLIGHT; env e owns `flight_capacity` entries from `flight_base` on."""
    outcomes: NDArray[Any]
    """`(n x requests,)` OUTCOME if recording, else empty."""
    counts: NDArray[np.int32]
    """`(n x slots x BUCKETS,)` what each engine's histograms have counted since it started."""
    scrapes: NDArray[Any]
    """`(n x slots x scrapes_kept,)` SCRAPE, a ring per slot."""
    scraped_counts: NDArray[np.int32]
    """`(n x slots x scrapes_kept x BUCKETS,)` `counts` at those scrapes."""
    gateway_scrapes: NDArray[Any]
    """`(n x scrapes_kept,)` GATEWAY_SCRAPE, a ring per env."""
