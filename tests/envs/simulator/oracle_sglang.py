"""The rules of `sglang` as a naive plain-Python loop: the engine's own turns, one by one.

Every turn receives what has come, forms a batch, launches it behind the one that runs, and handles
the results of that one when it ends. The cluster around it (router, frontend, starts) is the common
oracle's, which sees a request enter and leave the batch at the start of an iteration.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from tests.envs.simulator.oracle import Oracle, Replica, Request
from tuner.core.profile import ServingProfile
from tuner.core.trace import Trace

CLIP = 4096


@dataclass(eq=False)
class Job:
    """A request in the engine."""

    request: Request
    asked: int
    out: int = 0
    kv: int = 0
    fill: int = 0
    """Tokens to have in the cache when its prefill is done."""

    @property
    def finished(self) -> bool:
        return self.out == self.request.output


@dataclass
class Part:
    """What a batch computes of a request."""

    job: Job
    decoding: bool
    done: int
    tokens_now: int
    lost: bool = False

    @property
    def gives_token(self) -> bool:
        return self.decoding or self.done + self.tokens_now == self.job.fill


@dataclass
class Batch:
    parts: list[Part]
    entering: list[Job] = field(default_factory=list)
    retracted: list[Job] = field(default_factory=list)

    @property
    def prefills(self) -> bool:
        return not self.parts[0].decoding


@dataclass
class Engine:
    """The scheduler process of one replica."""

    ratio: float
    jobs: dict[int, Job] = field(default_factory=dict)
    """By number of the request, till it ends."""
    coming: list[Job] = field(default_factory=list)
    waiting: list[Job] = field(default_factory=list)
    running: list[Job] = field(default_factory=list)
    half_way: Job | None = None
    full: bool = False
    decays: int = 0
    current: Batch | None = None
    launched: Batch | None = None
    last: Batch | None = None
    """Launched and not looked at by a turn since."""
    ahead: bool = False
    """Whether the batch behind the present one is still to be formed."""
    woken_s: float = math.nan
    """When the present batch started, if the engine was idle till then."""
    held: int = 0
    """Pages in use when the present batch started."""
    tokens: int = 0
    """Tokens of the requests that ran then."""


class SglangOracle(Oracle):
    """One cluster of SGLang engines."""

    def __init__(self, trace: Trace, profile: ServingProfile, **options) -> None:
        self.engines: dict[int, Engine] = {}
        self.trace = trace
        super().__init__(trace, profile, **options)

    def option(self, name: str, default: float) -> float:
        return self.profile.scheduler_options.get(name, default)

    @property
    def page(self) -> int:
        return self.kv.block_tokens

    def up(self, tokens: int) -> int:
        return math.ceil(tokens / self.page) * self.page

    # the cluster's side

    def _boot(self, replica: Replica) -> None:
        self.engines[replica.slot] = Engine(ratio=self.first_ratio())
        super()._boot(replica)

    def _too_large(self, request: Request) -> bool:
        return request.total > self.kv.blocks * self.page - max(2 * self.page, 6)

    def _entered(self, chosen: Replica, request: Request) -> None:
        most = self.kv.blocks * self.page - self.up(request.prompt) - self.page - 1
        asked = min(max(self.option("max_new_tokens", 4096), request.output), most)
        assert request.output <= asked
        job = Job(request, asked)
        engine = self.engines[chosen.slot]
        engine.coming.append(job)
        engine.jobs[request.number] = job
        if engine.current is None:
            chosen.due_s = max(self.now_s, engine.coming[0].request.visible_s)
        elif engine.woken_s == self.now_s:
            chosen.due_s = self.now_s

    def _end_iteration(self, replica: Replica) -> None:
        """The end of a batch, unless a request came just as the batch started."""
        engine = self.engines[replica.slot]
        if engine.woken_s == self.now_s:
            return
        self._handle(replica, engine, engine.current)
        engine.current, engine.launched = engine.launched, None
        if engine.current is not None:
            self._start_batch(replica, engine, engine.current)

    def _start_iteration(self, replica: Replica) -> None:
        engine = self.engines[replica.slot]
        if engine.woken_s == self.now_s:
            self._forget_batch(replica, engine)
        if engine.current is not None:
            return
        idle = not replica.batch
        self._receive(engine)
        engine.current = self._form(engine, running=None)
        if engine.current is not None:
            engine.woken_s = self.now_s if idle else math.nan
            self._start_batch(replica, engine, engine.current)
            return
        engine.ratio, engine.decays = self.first_ratio(), 0
        replica.batch = []
        replica.due_s = engine.coming[0].request.visible_s if engine.coming else math.inf
        self._look(replica, engine)

    def _forget_batch(self, replica: Replica, engine: Engine) -> None:
        """As if the batch that has just woken the engine had not been formed."""
        for job in reversed(engine.current.entering):
            job.kv = 0
            engine.waiting.insert(0, job)
            replica.running.remove(job.request)
            replica.queue.append(job.request)
            replica.admitted -= job.request.preemptions == 0
        engine.half_way = engine.last = engine.current = None
        replica.batch = []

    def _receive(self, engine: Engine) -> None:
        while engine.coming and engine.coming[0].request.visible_s <= self.now_s:
            engine.waiting.append(engine.coming.pop(0))

    def _pass_time(self, to_s: float) -> None:
        if to_s > self.now_s:
            self._turn_ahead()
        super()._pass_time(to_s)

    def apply(self, **settings: int) -> None:
        self._turn_ahead()
        super().apply(**settings)

    def _turn_ahead(self) -> None:
        """With overlap the next batch is formed as soon as one has started."""
        for slot in [replica.slot for replica in self.slots if replica.batch]:
            engine = self.engines[slot]
            if self.option("overlap", True) and engine.ahead:
                self._receive(engine)
                engine.launched = self._form(engine, running=engine.current)
                engine.ahead = False

    def _start_batch(self, replica: Replica, engine: Engine, batch: Batch) -> None:
        for job in batch.entering:
            replica.queue.remove(job.request)
            replica.running.append(job.request)
            replica.admitted += job.request.preemptions == 0
        for job in batch.retracted:
            replica.running.remove(job.request)
            replica.queue.append(job.request)
            job.request.preemptions += 1
            self.sums.preemptions += 1
        replica.batch = batch.parts
        replica.due_s = self.now_s + self._seconds(replica)
        engine.ahead = True
        self._look(replica, engine)

    def _look(self, replica: Replica, engine: Engine) -> None:
        engine.held = sum(self.up(job.kv) for job in engine.jobs.values()) // self.page
        context = {p.job.request.number: p.done for p in replica.batch if not p.decoding}
        engine.tokens = sum(
            context.get(request.number, request.prompt + engine.jobs[request.number].out)
            for request in replica.running
        )

    def _handle(self, replica: Replica, engine: Engine, batch: Batch) -> None:
        self.sums.iterations += 1
        self._stream(replica, sum(part.decoding for part in batch.parts))
        giving = [part for part in batch.parts if part.gives_token and not part.lost]
        # The frontend is given the tokens of those that end first.
        for part in sorted(giving, key=lambda part: part.job.out + 1 < part.job.request.output):
            job, request = part.job, part.job.request
            job.out += 1
            self.sums.output_tokens += 1
            if math.isnan(request.ttft_s):
                request.ttft_s = self._delivered_s(replica, request, tokens=1) - request.arrival_s
                self.sums.prompt_tokens += request.prompt
            if job.finished:
                request.e2e_s = self._delivered_s(replica, request) - request.arrival_s
                job.kv = 0
                del engine.jobs[request.number]
                self.sums.finished += 1
                replica.running.remove(request)

    # what can be seen

    def blocks_of(self, replica: Replica) -> int:
        return self.engines[replica.slot].held

    def tokens_of(self, replica: Replica) -> int:
        return self.engines[replica.slot].tokens

    def queued_tokens_of(self, replica: Replica) -> int:
        jobs = self.engines[replica.slot].jobs
        return sum(request.prompt + jobs[request.number].out for request in replica.queue)

    # the engine's side

    def first_ratio(self) -> float:
        return min(0.7 * self.option("schedule_conservativeness", 1.0), 1.0)

    def ratio(self, engine: Engine) -> float:
        first = self.first_ratio()
        step = (first - 0.14 * first) / 600
        if engine.decays == 0:
            return engine.ratio
        return max(engine.ratio - engine.decays * step, 0.14 * first)

    def free_pages(self, engine: Engine, running: Batch | None) -> int:
        jobs = {id(job): job for job in engine.running}
        for batch in (running, engine.last):
            jobs |= {id(part.job): part.job for part in batch.parts} if batch else {}
        if engine.half_way is not None:
            jobs[id(engine.half_way)] = engine.half_way
        return self.kv.blocks - sum(self.up(job.kv) for job in jobs.values()) // self.page

    def _form(self, engine: Engine, running: Batch | None) -> Batch | None:
        """The next batch; `running` is the one whose results are not known yet."""
        free = self.free_pages(engine, running)
        if engine.last is not None and engine.last.prefills:
            prompts = [part.job for part in engine.last.parts]
            done = [job for job in prompts if job is not engine.half_way and not job.finished]
            if len(done) < len(prompts) or not engine.running:
                engine.full = False
            engine.running = engine.running + done
        stay = [job for job in engine.running if not job.finished]
        if len(stay) < len(engine.running) or not stay:
            engine.full = False
        engine.running = stay
        batch = self._form_prefill(engine, free) or self._form_decode(engine, free, running)
        engine.last = batch
        return batch

    def _form_prefill(self, engine: Engine, free: int) -> Batch | None:
        if engine.half_way is None and (engine.full or not engine.waiting):
            return None
        reserved = sum(min(job.asked - job.out, CLIP) for job in engine.running)
        reserved *= self.ratio(engine)
        room = free * self.page
        chunk_left = self.profile.limits.chunk_tokens
        input_left = self.option("max_prefill_tokens", 16384)
        parts: list[Part] = []
        entering: list[Job] = []
        if engine.half_way is not None:
            job = engine.half_way
            limit = min(chunk_left, int(room - reserved))
            tokens = min(job.fill - job.kv, limit if limit > 0 else chunk_left)
            parts.append(Part(job, False, job.kv, tokens))
            ends = job.kv + tokens == job.fill
            room -= self.up(tokens) + self.page + (min(job.asked, CLIP) if ends else 0)
            chunk_left -= self.up(tokens)
            input_left -= self.up(tokens)
            engine.half_way = None if ends else job
        for job in list(engine.waiting):
            if room - reserved > 0 and (chunk_left <= 0 or input_left <= 0):
                break
            if len(engine.running) + len(parts) >= self.batch_size:
                engine.full = True
            if engine.full:
                break
            job.fill = job.request.prompt + job.out
            hit = min(self._hit(job), job.fill - 1) // self.page * self.page
            left = min(job.asked - job.out, CLIP)
            if job.fill - hit + left + self.page >= room - hit - reserved:
                engine.full = bool(parts or engine.running)
                break
            tokens = job.fill - hit
            if self.up(tokens) > chunk_left:
                tokens = chunk_left // self.page * self.page
                if tokens == 0:
                    break
                engine.half_way = job
            ends = hit + tokens == job.fill
            parts.append(Part(job, False, hit, tokens))
            entering.append(job)
            engine.waiting.remove(job)
            room -= hit + self.up(tokens) + self.page + (min(job.asked, CLIP) if ends else 0)
            chunk_left -= self.up(tokens)
            input_left -= self.up(tokens)
            if room - reserved <= 0:
                engine.full = True
                break
        for part in parts:
            part.job.kv = part.done + part.tokens_now
        return Batch(parts, entering) if parts else None

    def _hit(self, job: Job) -> int:
        hits = self.trace.prefix_hit_tokens
        if hits is None or not self.kv.prefix_cache:
            return 0
        return int(hits[job.request.number])

    def _form_decode(self, engine: Engine, free: int, running: Batch | None) -> Batch | None:
        ending = {
            id(part.job)
            for part in (running.parts if running else [])
            if part.gives_token and part.job.out + 1 == part.job.request.output
        }
        stay = [job for job in engine.running if id(job) not in ending]
        ended = len(stay) < len(engine.running)
        engine.running = stay
        if ended or not stay:
            engine.full = False
        retracted = []
        if not self._finds_pages(stay, free):
            if ended:
                return None
            free, retracted = self._retract(engine, free, running)
        elif stay:
            engine.decays += 1
        if not engine.running:
            return None
        assert self._finds_pages(engine.running, free)
        parts = [Part(job, True, job.kv, 1) for job in engine.running]
        for job in engine.running:
            job.kv += 1
        return Batch(parts, retracted=retracted)

    def _finds_pages(self, jobs: list[Job], free: int) -> bool:
        return sum(job.kv % self.page == 0 for job in jobs) <= free

    def _retract(self, engine: Engine, free: int, running: Batch | None) -> tuple[int, list[Job]]:
        kept = sorted(engine.running, key=lambda job: (job.out, -job.request.prompt), reverse=True)
        retracted: list[Job] = []
        while not retracted or not self._finds_pages(kept, free):
            job = kept.pop()
            free += self.up(job.kv) // self.page
            job.kv = 0
            for part in running.parts if running else []:
                part.lost |= part.job is job
            retracted.append(job)
        assert kept, "the last request always fits"
        engine.running = [job for job in engine.running if job in kept]
        engine.waiting += retracted
        engine.full = False
        asked = sum(job.asked for job in kept)
        engine.ratio = min(1.0, (sum(j.out for j in kept) + 20 * len(kept)) / (asked + 1))
        engine.decays = 0
        return free, retracted
