"""CPU work in front of the engine: workers that take requests in and stream tokens out.

A replica has `threads` workers on `cores` cores. A worker does its work in the order in which it
comes, and every piece takes max(1, threads / cores) times its CPU seconds, as on cores that are
shared fairly. Of that work there are two kinds, and each delays the other:

* A request goes to the worker that is free first, occupies it for per_request_s + per_token_s x
  prompt tokens, and stays with it. Then it is `ingress_s` on its way, and the engine knows it.
* An output token costs per_output_token_s, and the client has it when that work is done. The tokens
  of an iteration's decodes are spread evenly over the workers; a first token goes to the worker of
  its request.

The engine waits for no worker: a slot and its blocks are free when the engine is done, and a
request is counted then, with the times that its client will see. Streaming that lasts longer than
the iterations piles up, and shows as latency only.

In a run, iteration j ends at the border e_j and gives every worker the work a. A worker that was
free at F_0 is free at F_k = max(F_0 + k a, max over j of e_j + (k - j + 1) a). No iteration of a
run is shorter than the one before, so e_j is convex in j, and only the first and the last border
can matter: F_k = max(F_0 + k a, e_1 + k a, e_k + a). Thus a run of any length is exact in one step.
A request that arrives during a run finds the tokens of the iterations that have ended by then in
front of it.

No measurement of a serving frontend stands behind this model.
"""

from __future__ import annotations

from envs.simulator.compiled import inlined
from envs.simulator.layout import Engine, Flight, Memory, Replica
from envs.simulator.places import nth
from envs.simulator.run import border_s, ended_by


@inlined
def take_in(memory: Memory, engine: Engine, replica: Replica, flight: Flight, at_s: float) -> None:
    """Give the request that comes at `at_s` to a worker; sets when the engine knows it.

    The engine takes its queue from the head, so a request that overtakes another in the frontend
    still enters behind it.
    """
    if engine.per_output_token_s > 0.0 and replica.running > 0:
        stream_run(memory, engine, replica, ended_by(replica, at_s))
    free = replica.worker_base
    for worker in range(replica.worker_base, replica.worker_base + replica.threads):
        if memory.workers[nth(worker)] < memory.workers[nth(free)]:
            free = worker
    cpu_s = engine.per_request_s + engine.per_token_s * flight.prompt_tokens
    memory.workers[nth(free)] = max(at_s, memory.workers[nth(free)]) + cpu_s * _contention(
        engine, replica
    )
    flight.worker = free
    flight.visible_s = memory.workers[nth(free)] + engine.ingress_s


@inlined
def stream_run(memory: Memory, engine: Engine, replica: Replica, iterations: int) -> None:
    """Hand the tokens of the run's decodes to the workers, up to so many of its iterations."""
    new = iterations - replica.streamed
    tokens = replica.decoding - replica.repeating
    if engine.prefills_alone and replica.prefill_tokens > 0:
        tokens = 0
    if new <= 0 or tokens == 0:
        return
    cpu_s = engine.per_output_token_s * tokens / replica.threads
    share_s = cpu_s * _contention(engine, replica)
    first_s = border_s(replica, replica.streamed + 1)
    last_s = border_s(replica, iterations)
    for worker in range(replica.worker_base, replica.worker_base + replica.threads):
        busy_s = max(memory.workers[nth(worker)], first_s) + new * share_s
        memory.workers[nth(worker)] = max(busy_s, last_s + share_s)
    replica.streamed = iterations


@inlined
def stream_ended_run(memory: Memory, engine: Engine, replica: Replica) -> None:
    """Hand on what is left of the run that ends now, before its requests are accounted for."""
    if engine.per_output_token_s > 0.0:
        stream_run(memory, engine, replica, replica.iterations)
        replica.streamed = 0


@inlined
def first_token_delivered_s(memory: Memory, engine: Engine, flight: Flight, at_s: float) -> float:
    """When the client has the first token, which the engine gives at `at_s`."""
    if engine.per_output_token_s == 0.0:
        return at_s
    replica = memory.replicas[nth(flight.worker // engine.workers)]
    cpu_s = engine.per_output_token_s * _contention(engine, replica)
    memory.workers[nth(flight.worker)] = max(at_s, memory.workers[nth(flight.worker)]) + cpu_s
    delivered_s: float = memory.workers[nth(flight.worker)]
    return delivered_s


@inlined
def last_token_delivered_s(memory: Memory, engine: Engine, flight: Flight, at_s: float) -> float:
    """When the client has the last token, which the engine gives at `at_s`."""
    if engine.per_output_token_s == 0.0:
        return at_s
    delivered_s: float = max(at_s, memory.workers[nth(flight.worker)])
    return delivered_s


@inlined
def _contention(engine: Engine, replica: Replica) -> float:
    """How many times longer work takes because the workers share the cores."""
    return max(1.0, replica.threads / engine.cores)
