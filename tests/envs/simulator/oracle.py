"""The simulator's rules as a naive plain-Python loop: one engine iteration at a time.

Written from the rules, not from the compiled code, and slow on purpose: no leaps, no counters kept
lazily, every request carries its own state. The order at one moment is that of the rules: what
ends, ends (lowest slot first); who is killed, is killed (lowest slot first); what waits at the
router is sent out; requests arrive; settings change.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from tests.envs.simulator.oracle_draws import exponential, truncated_normal
from tuner.core.profile import ServingProfile, Startup
from tuner.core.slo import Slo
from tuner.core.trace import Trace

BACK_OFF_S = (0.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0)
"""After the first crash in a row, the second, ..., the seventh and all later ones."""


@dataclass
class Request:
    number: int
    arrival_s: float
    prompt: int
    output: int
    target: int = 0
    done: int = 0
    blocks: int = 0
    decoding: bool = False
    tokens_now: int = 0
    visible_s: float = 0.0
    ttft_s: float = math.nan
    e2e_s: float = math.nan
    replica: int = -1
    preemptions: int = 0
    worker: int = -1
    given: int = 0
    rejected: bool = False
    failed: bool = False
    warmth: float = 1.0

    @property
    def total(self) -> int:
        return self.prompt + self.output


@dataclass
class Replica:
    slot: int
    state: str = "off"
    restarting: bool = False
    batch_size: int = 0
    threads: int = 1
    warmups: int = 0
    crashes: int = 0
    container_s: float = -math.inf
    kill_s: float = math.inf
    started_s: float = math.nan
    ready_s: float = math.nan
    queue: deque[Request] = field(default_factory=deque)
    running: list[Request] = field(default_factory=list)
    batch: list[Request] = field(default_factory=list)
    free: int = 0
    admitted: float = 0
    taken: float = 0
    iteration_s: float = math.nan
    due_s: float = math.inf
    workers: list[float] = field(default_factory=list)
    last_visible_s: float = -math.inf


@dataclass
class Sums:
    """Totals since the start."""

    arrivals: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    finished: int = 0
    rejected: int = 0
    failed: int = 0
    met: int = 0
    missed: int = 0
    preemptions: int = 0
    starts: int = 0
    busy_s: float = 0.0
    replica_s: float = 0.0
    iterations: int = 0


class Oracle:
    """One cluster."""

    own_blocks = 0
    """KV blocks that the engine keeps for itself."""

    def __init__(
        self,
        trace: Trace,
        profile: ServingProfile,
        *,
        seed: int,
        slots: int,
        router: str,
        replicas: int,
        batch_size: int,
        threads: int = 1,
        warmup_requests: int = 0,
        start_s: float = 0.0,
        clients: int = 0,
        factors: Mapping[str, float] | None = None,
        slo: Slo = Slo(),  # noqa: B008 - frozen
        drain_timeout_s: float | None = None,
        crash_per_hour: float = 0.0,
    ) -> None:
        self.slo = slo
        self.drain_timeout_s = math.inf if drain_timeout_s is None else drain_timeout_s
        self.crash_per_hour = crash_per_hour
        self.profile = profile
        self.factors = {"step_time": 1.0, "prefill": 1.0, "kv": 1.0, "slow_slot": -1, "slow": 1.0}
        self.factors |= factors or {}
        self.kv = profile.kv
        self.blocks = profile.kv.blocks - self.own_blocks
        self.seed = seed
        self.router = router
        self.now_s = start_s
        self.clients = clients
        self.replicas = replicas
        self.batch_size = batch_size
        self.threads = threads
        self.warmup_requests = warmup_requests
        columns = zip(trace.arrival_s, trace.prompt_tokens, trace.output_tokens, strict=True)
        self.requests = [
            Request(i, float(arrival_s), int(prompt), int(output), target=int(prompt))
            for i, (arrival_s, prompt, output) in enumerate(columns)
        ]
        self.coming = deque(r for r in self.requests if r.arrival_s >= start_s)
        self.waiting: deque[Request] = deque()
        self.slots = [Replica(slot) for slot in range(slots)]
        self.cursor = 0
        self.starts = 0
        self.served = 0
        self.sums = Sums()
        for replica in self.slots[:replicas]:
            if self._runs_out_of_memory():
                self._start(replica)
                continue
            self._boot(replica)
            self._get_ready(replica)
            replica.admitted = replica.taken = math.inf

    # time

    def advance(self, until_s: float) -> None:
        while True:
            ending = min(self.slots, key=lambda replica: replica.due_s)  # the first of equals
            dying = min(self.slots, key=lambda replica: replica.kill_s)
            arrival_s = self._next_arrival_s()
            next_s = min(ending.due_s, dying.kill_s, arrival_s)
            if next_s > until_s or next_s == math.inf:
                break
            self._pass_time(next_s)
            if next_s in (ending.due_s, dying.kill_s):
                if next_s == ending.due_s:
                    self._event(ending)
                else:
                    self._kill(dying)
                if all(min(replica.due_s, replica.kill_s) > next_s for replica in self.slots):
                    self._send_waiting()
            else:
                self._arrive(self.coming.popleft())
        self._pass_time(until_s)

    def _next_arrival_s(self) -> float:
        if not self.coming:
            return math.inf
        if not self.clients:
            return self.coming[0].arrival_s
        unanswered = sum(r.replica >= 0 and math.isnan(r.e2e_s) for r in self.requests)
        ready = any(replica.state == "ready" for replica in self.slots)
        return self.now_s if ready and unanswered < self.clients else math.inf

    def _pass_time(self, to_s: float) -> None:
        passed_s = to_s - self.now_s
        for replica in self.slots:
            self.sums.replica_s += passed_s if replica.state != "off" else 0.0
            self.sums.busy_s += passed_s if replica.batch else 0.0
        self.now_s = to_s

    def _event(self, replica: Replica) -> None:
        if replica.state == "starting" and self._runs_out_of_memory(replica.batch_size):
            self._restart_container(replica)
        elif replica.state == "starting" and replica.warmups > 0:
            replica.state = "warming"
            each_s = self.profile.startup.warmup_request_s if self.profile.startup else 0.0
            numbers = range(1, replica.warmups + 1)
            replica.due_s = self.now_s + sum(each_s / self._speed(number) for number in numbers)
        elif replica.state in ("starting", "warming"):
            self._get_ready(replica)
            self._restart_next()
        else:
            if replica.batch:
                self._end_iteration(replica)
            self._start_iteration(replica)
            self._leave_if_empty(replica)

    # requests

    def _arrive(self, request: Request) -> None:
        self.sums.arrivals += 1
        if self.clients:
            request.arrival_s = self.now_s
        if self._too_large(request):
            self._reject(request)
            return
        self.waiting.append(request)
        self._send_waiting()

    def _too_large(self, request: Request) -> bool:
        prompt_blocks = math.ceil(request.prompt / self.kv.block_tokens)
        return (
            request.total > self.kv.blocks * self.kv.block_tokens
            or prompt_blocks > self.kv.blocks - self.kv.watermark_blocks
        )

    def _reject(self, request: Request) -> None:
        request.rejected = True
        self.sums.rejected += 1
        self.sums.missed += 1

    def _send_waiting(self) -> None:
        while self.waiting and any(replica.state == "ready" for replica in self.slots):
            self._send(self.waiting.popleft())

    def _send(self, request: Request) -> None:
        ready = [replica for replica in self.slots if replica.state == "ready"]
        if self.router == "round_robin":
            chosen = min(ready, key=lambda r: (r.slot - self.cursor) % len(self.slots))
            self.cursor = chosen.slot + 1
        elif self.router == "least_pending":
            chosen = min(ready, key=lambda r: len(self.queue_of(r)))
        else:
            chosen = min(ready, key=lambda r: len(self.queue_of(r)) + len(self.running_of(r)))
        if self._refuses(chosen):
            self._reject(request)
            return
        request.replica = chosen.slot
        request.warmth = min(1.0, chosen.taken / (self.blocks * self.kv.block_tokens))
        chosen.taken += request.prompt
        request.visible_s = self._through_frontend(chosen, request)
        chosen.queue.append(request)
        self._entered(chosen, request)

    def _refuses(self, replica: Replica) -> bool:
        return False

    def _entered(self, chosen: Replica, request: Request) -> None:
        if not chosen.batch:
            self._start_iteration(chosen)
        elif chosen.iteration_s == self.now_s:  # here by its start: in it, if there is room
            self._admit(chosen)
            chosen.due_s = self.now_s + self._seconds(chosen)

    def _through_frontend(self, replica: Replica, request: Request) -> float:
        frontend = self.profile.frontend
        if frontend is None:
            return self.now_s
        cpu_s = frontend.per_request_s + frontend.per_token_s * request.prompt
        request.worker = replica.workers.index(min(replica.workers))
        out_s = self._work(replica, request.worker, cpu_s) + frontend.ingress_s
        replica.last_visible_s = max(replica.last_visible_s, out_s)
        return replica.last_visible_s

    def _work(self, replica: Replica, worker: int, cpu_s: float) -> float:
        """Give a frontend worker CPU work to do after what it has; when that is done."""
        seconds = cpu_s * max(1.0, replica.threads / self.profile.frontend.cores)
        replica.workers[worker] = max(self.now_s, replica.workers[worker]) + seconds
        return replica.workers[worker]

    def _stream(self, replica: Replica, tokens: int) -> None:
        """Share the tokens of an iteration's decodes out over the workers."""
        frontend = self.profile.frontend
        if frontend is not None and frontend.per_output_token_s and tokens:
            for worker in range(replica.threads):
                self._work(replica, worker, frontend.per_output_token_s * tokens / replica.threads)

    def _delivered_s(self, replica: Replica, request: Request, tokens: int = 0) -> float:
        """When the client has the request's token of now, `tokens` of which are yet to stream."""
        frontend = self.profile.frontend
        if frontend is None or not frontend.per_output_token_s:
            return self.now_s
        return self._work(replica, request.worker, frontend.per_output_token_s * tokens)

    # iterations

    def _start_iteration(self, replica: Replica) -> None:
        replica.iteration_s = self.now_s
        replica.batch = []
        prefilling = self._take_decodes(replica)
        for request in prefilling:
            self._prefill(replica, request)
        self._admit(replica)
        if replica.batch:
            replica.due_s = self.now_s + self._seconds(replica)
        else:
            replica.due_s = math.inf
            if replica.queue and replica.queue[0].visible_s > self.now_s:
                replica.due_s = replica.queue[0].visible_s

    def _take_decodes(self, replica: Replica) -> list[Request]:
        """Put the decodes into the batch; return the requests that still prefill."""
        unwalked = replica.running
        walked, prefilling = [], []
        while unwalked:
            request = unwalked.pop(0)
            if not request.decoding:
                prefilling.append(request)
                continue
            while replica.free < 1 and unwalked:
                self._preempt(replica, unwalked.pop())
            if replica.free < 1:
                self._preempt(replica, request)
                break
            if request.done > self.kv.block_tokens * request.blocks:
                request.blocks += 1
                replica.free -= 1
            request.tokens_now = 1
            walked.append(request)
        replica.batch = list(walked)
        replica.running = walked + prefilling
        return prefilling

    def _prefill(self, replica: Replica, request: Request) -> None:
        request.tokens_now = min(request.target - request.done, self._budget(replica))
        replica.batch.append(request)

    def _budget(self, replica: Replica) -> int:
        used = sum(request.tokens_now for request in replica.batch)
        return self.profile.limits.chunk_tokens - used

    def _preempt(self, replica: Replica, request: Request) -> None:
        replica.free += request.blocks
        request.blocks = 0
        request.target = request.done
        request.done = 0
        request.decoding = False
        request.preemptions += 1
        self.sums.preemptions += 1
        replica.queue.appendleft(request)

    def _admit(self, replica: Replica) -> None:
        while replica.queue and len(replica.running) < replica.batch_size:
            head = replica.queue[0]
            need = math.ceil(head.target / self.kv.block_tokens)
            if (
                head.visible_s > self.now_s
                or replica.free - need < self.kv.watermark_blocks
                or self._budget(replica) < 1
            ):
                break
            replica.queue.popleft()
            head.blocks = need
            replica.free -= need
            self._prefill(replica, head)
            replica.running.append(head)
            replica.admitted += head.preemptions == 0

    def _seconds(self, replica: Replica) -> float:
        law = self.profile.step_time
        batch = replica.batch
        if law.batch_table:
            seconds = _along(law.batch_table, len(batch))
        else:
            seconds = law.base_s + law.per_sequence_s * len(batch)
        seconds += self.factors["prefill"] * self._prefill_seconds(batch)
        seconds += self.factors["kv"] * law.per_kv_token_s * sum(r.done for r in batch)
        if law.straggler:
            seconds *= _along(law.straggler, len(batch))
        seconds *= self.factors["step_time"]
        if replica.slot == self.factors["slow_slot"]:
            seconds *= self.factors["slow"]
        return seconds / self._speed(replica.admitted)

    def _prefill_seconds(self, batch: list[Request]) -> float:
        law = self.profile.step_time
        prefilling = [request for request in batch if not request.decoding]
        tokens = sum(request.tokens_now for request in prefilling)
        if tokens == 0:
            return 0.0
        seconds = law.per_context_s * sum(r.tokens_now * r.done for r in prefilling)
        if law.prefill_table:
            return seconds + _along(law.prefill_table, tokens)
        return seconds + law.prefill_base_s + law.per_prefill_token_s * tokens

    def _speed(self, admitted: float) -> float:
        first = 0
        for requests, speed in self.profile.startup.ramp if self.profile.startup else ():
            first += requests
            if admitted <= first:
                return speed
        return 1.0

    def _end_iteration(self, replica: Replica) -> None:
        self.sums.iterations += 1
        decodes = [request for request in replica.batch if request.decoding]
        self._stream(replica, sum(r.done + 1 - r.prompt > r.given for r in decodes))
        for request in replica.batch:
            request.done += request.tokens_now
            if not request.decoding and request.done == request.target:
                request.decoding = True
                request.done += 1
                if math.isnan(request.ttft_s):
                    delivered_s = self._delivered_s(replica, request, tokens=1)
                    request.ttft_s = delivered_s - request.arrival_s
                    self.sums.prompt_tokens += request.prompt
                    self.sums.missed += request.ttft_s > self.slo.ttft_s
            if request.decoding and request.done - request.prompt > request.given:
                request.given += 1
                self.sums.output_tokens += 1
            if request.decoding and request.done == request.total:
                request.e2e_s = self._delivered_s(replica, request) - request.arrival_s
                replica.free += request.blocks
                request.blocks = 0
                self.sums.finished += 1
                self._judge(request)
                replica.running.remove(request)
        replica.batch = []

    def _judge(self, request: Request) -> None:
        """Count a finished request as met or missed; a late first token was counted already."""
        if request.ttft_s > self.slo.ttft_s:
            return
        tpot_s = 0.0
        if request.output > 1:
            tpot_s = (request.e2e_s - request.ttft_s) / (request.output - 1)
        if tpot_s <= self.slo.tpot_s:
            self.sums.met += 1
        else:
            self.sums.missed += 1

    # replicas

    def apply(self, *, replicas: int, batch_size: int, threads: int, warmup_requests: int) -> None:
        self.batch_size = batch_size
        if not self._restarts_for_batch_size:
            for replica in self.slots:
                replica.batch_size = batch_size
        self.threads = threads
        self.warmup_requests = warmup_requests
        self.replicas = replicas
        self._reconcile()
        for replica in self.slots:
            if replica.state in ("starting", "warming") and self._is_stale(replica):
                self._start(replica)
        self._restart_next()
        self._send_waiting()

    @property
    def _restarts_for_batch_size(self) -> bool:
        return self.profile.limits.batch_size_applied == "restart"

    def _is_stale(self, replica: Replica) -> bool:
        threads = self.profile.frontend is not None and replica.threads != self.threads
        return threads or (self._restarts_for_batch_size and replica.batch_size != self.batch_size)

    def _runs_out_of_memory(self, batch_size: int | None = None) -> bool:
        limits = self.profile.limits
        ceiling = limits.batch_size_max
        if self._restarts_for_batch_size:
            ceiling = self.batch_size if batch_size is None else batch_size
        return limits.batch_size_oom is not None and ceiling > limits.batch_size_oom

    def _reconcile(self) -> None:
        while self._counted() > self.replicas:
            self._remove_one()
        while self._counted() < self.replicas:
            off = [replica for replica in self.slots if replica.state == "off"]
            if not off:
                break
            self._start(off[0])
        self._restart_next()

    def _counted(self) -> int:
        return sum(r.state in ("starting", "warming", "ready") or r.restarting for r in self.slots)

    def _remove_one(self) -> None:
        booting = [r for r in self.slots if r.state in ("starting", "warming")]
        restarting = [r for r in self.slots if r.state == "draining" and r.restarting]
        ready = [r for r in self.slots if r.state == "ready"]
        if booting:
            self._turn_off(max(booting, key=lambda r: (r.started_s, r.slot)))
        elif restarting:
            restarting[0].restarting = False
        else:
            newest = max(ready, key=lambda r: (r.ready_s, r.slot))
            newest.state = "draining"
            newest.kill_s = min(newest.kill_s, self.now_s + self.drain_timeout_s)
            self._leave_if_empty(newest, reconcile=False)

    def _leave_if_empty(self, replica: Replica, *, reconcile: bool = True) -> None:
        if replica.state != "draining" or replica.running or replica.queue:
            return
        if replica.restarting:
            self._start(replica)
            self._restart_next()
        else:
            self._turn_off(replica)
            if reconcile:
                self._reconcile()

    def _restart_next(self) -> None:
        while not any(r.restarting for r in self.slots):
            stale = [r for r in self.slots if r.state == "ready" and self._is_stale(r)]
            if not stale:
                return
            stale[0].state = "draining"
            stale[0].restarting = True
            stale[0].kill_s = min(stale[0].kill_s, self.now_s + self.drain_timeout_s)
            if not stale[0].running and not stale[0].queue:
                self._start(stale[0])

    def _boot(self, replica: Replica) -> None:
        """A fresh process in the slot."""
        replica.batch_size = self.batch_size
        replica.threads = self.threads
        replica.warmups = self.warmup_requests
        replica.started_s = self.now_s
        replica.free = self.blocks
        replica.batch = []
        replica.due_s = math.inf
        replica.iteration_s = math.nan
        replica.workers = [-math.inf] * self.threads
        replica.last_visible_s = -math.inf
        replica.kill_s = math.inf
        replica.taken = 0

    def _start(self, replica: Replica) -> None:
        """A new pod: every stage."""
        replica.crashes = 0
        self._begin(replica, ["schedule", "image"])

    def _restart_container(self, replica: Replica) -> None:
        """The same pod, without the stages that it has behind it."""
        if self.now_s - replica.container_s >= 600.0:
            replica.crashes = 0
        replica.crashes += 1
        self._begin(replica, [])

    def _begin(self, replica: Replica, before: list[str]) -> None:
        number = self.starts
        self.starts += 1
        self.sums.starts += 1
        self._boot(replica)
        waited_s = BACK_OFF_S[min(replica.crashes, 7) - 1] if replica.crashes else 0.0
        waited_s += sum(self._stage_s(number, stage) for stage in before)
        replica.container_s = self.now_s + waited_s
        fits = not self._runs_out_of_memory()
        if self.profile.startup is None and fits and waited_s == 0:
            self._get_ready(replica)
            return
        inside = ["weights", "compile"] if fits else ["weights"]
        replica.state = "starting"
        replica.due_s = replica.container_s + sum(self._stage_s(number, name) for name in inside)

    def _stage_s(self, number: int, name: str) -> float:
        place = ["schedule", "image", "weights", "compile"].index(name)
        stage = getattr((self.profile.startup or Startup()).stages, name)
        draw = truncated_normal(self.seed, 1, 4 * number + place)
        return stage.median_s * math.exp(stage.spread * draw)

    def _kill(self, replica: Replica) -> None:
        """A crash, or the end of the time to drain: what the replica has fails."""
        for request in (*replica.running, *replica.queue):
            request.failed = True
            self.sums.failed += 1
            self.sums.missed += not request.ttft_s > self.slo.ttft_s
        self._drop(replica)
        if replica.state == "ready":
            self._restart_container(replica)
        else:
            self._leave_if_empty(replica)

    def _drop(self, replica: Replica) -> None:
        replica.running.clear()
        replica.queue.clear()
        replica.batch = []

    def _get_ready(self, replica: Replica) -> None:
        replica.state = "ready"
        replica.restarting = False
        replica.ready_s = self.now_s
        replica.admitted = replica.warmups
        replica.due_s = math.inf
        if self.crash_per_hour > 0:
            mean_s = 3600 / self.crash_per_hour
            replica.kill_s = self.now_s + mean_s * exponential(self.seed, 6, self.served)
        self.served += 1

    def _turn_off(self, replica: Replica) -> None:
        replica.state = "off"
        replica.restarting = False
        replica.due_s = math.inf
        replica.kill_s = math.inf

    # what can be seen

    def queue_of(self, replica: Replica) -> Sequence[Request]:
        return replica.queue

    def running_of(self, replica: Replica) -> Sequence[Request]:
        return replica.running

    def blocks_of(self, replica: Replica) -> int:
        return sum(request.blocks for request in replica.running)

    def tokens_of(self, replica: Replica) -> int:
        return sum(request.done for request in replica.running)

    def queued_tokens_of(self, replica: Replica) -> int:
        return sum(request.target for request in replica.queue)

    def column(self, name: str) -> np.ndarray:
        return np.array([getattr(request, name) for request in self.requests])

    def count(self, state: str) -> int:
        return sum(replica.state == state for replica in self.slots)


def _along(points: Sequence[tuple[int, float]], at: int) -> float:
    """The line through the points, level before the first, straight on beyond the last."""
    if at <= points[0][0] or len(points) == 1:
        return points[0][1]
    for (x0, y0), (x1, y1) in pairwise(points):
        if at <= x1 or (x1, y1) == points[-1]:
            return y0 + (y1 - y0) * (at - x0) / (x1 - x0)
    raise AssertionError
