"""The rules of `vllm-v1` as a naive plain-Python loop.

Written as the engine works, not as the compiled code does: batches wait in a pipeline, two deep
with asynchronous scheduling, and each is formed at the moment at which the engine forms it, while
the one before it runs. Requests hold their own blocks, tokens and tokens on the way. What can be
seen of a replica is its state when its present batch started.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from tests.envs.simulator.oracle import Oracle, Replica, Request
from tuner.core.profile import ServingProfile
from tuner.core.trace import Trace

DEFAULTS = {"async": True, "long_prefill_token_threshold": 0, "reserve_full_isl": True}


@dataclass
class Share:
    """What one request computes in a batch; the names are those that the step-time law reads."""

    request: Request
    tokens_now: int
    done: int
    """Tokens computed before."""
    decoding: bool
    samples: bool
    life: int
    """Preemptions of the request when the batch was formed."""


@dataclass
class Batch:
    shares: list[Share] = field(default_factory=list)
    budget: int = 0
    limit: float = math.inf
    victims: list[Request] = field(default_factory=list)


@dataclass
class Engine:
    """What a replica has under these rules besides the common things."""

    pipeline: deque[Batch] = field(default_factory=deque)
    """The batch that runs, and the one formed behind it."""
    behind: bool = False
    """The next batch is to be formed when all that happens at this moment has happened."""
    formed_s: float = math.nan
    coming: dict[int, int] = field(default_factory=dict)
    """Request -> tokens on the way."""
    queue: list[Request] = field(default_factory=list)
    running: list[Request] = field(default_factory=list)
    free: int = 0
    tokens: int = 0


class VllmOracle(Oracle):
    """One cluster under `vllm-v1`."""

    own_blocks = 1

    def __init__(self, trace: Trace, profile: ServingProfile, **settings: Any) -> None:
        self.options = {**DEFAULTS, **profile.scheduler_options}
        self.engines: dict[int, Engine] = {}
        self.hits: dict[int, int] = {}
        if profile.kv.prefix_cache and trace.prefix_hit_tokens is not None:
            self.hits = dict(enumerate(trace.prefix_hit_tokens.tolist()))
        super().__init__(trace, profile, **settings)

    def _boot(self, replica: Replica) -> None:
        self.engines[replica.slot] = Engine(free=self.blocks)
        super()._boot(replica)

    def _drop(self, replica: Replica) -> None:
        for batch in list(self.engines[replica.slot].pipeline)[1:]:
            for request in batch.victims:  # of a batch that never started
                request.preemptions -= 1
        self.engines[replica.slot] = Engine(free=self.blocks)
        super()._drop(replica)

    # time

    def _pass_time(self, to_s: float) -> None:
        if to_s > self.now_s:
            self._form_behind()
        super()._pass_time(to_s)

    def apply(self, **settings: int) -> None:
        self._form_behind()
        super().apply(**settings)

    def _form_behind(self) -> None:
        for replica in self.slots:
            engine = self.engines.get(replica.slot)
            if engine is not None and engine.behind:
                engine.pipeline.append(self._schedule(replica))
                engine.behind = False

    # requests

    def _too_large(self, request: Request) -> bool:
        return request.total - 1 > self.blocks * self.kv.block_tokens

    def _refuses(self, replica: Replica) -> bool:
        limit = self.options.get("max_queued_requests")
        return limit is not None and len(replica.queue) + len(replica.running) >= limit

    def _entered(self, chosen: Replica, request: Request) -> None:
        engine = self.engines[chosen.slot]
        engine.queue.append(request)
        if not chosen.batch:
            self._start_iteration(chosen)
        elif engine.formed_s == self.now_s:  # here by the moment at which the batch was formed
            batch = engine.pipeline[0]
            batch.limit = self._limit(chosen)
            if not batch.victims:
                self._admit_into(batch, chosen)
            self._launch(chosen, batch)

    # the engine's loop

    def _start_iteration(self, replica: Replica) -> None:
        engine = self.engines[replica.slot]
        replica.batch = []
        replica.due_s = math.inf
        while True:
            if not engine.pipeline:
                if not replica.running and not self._visible(replica):
                    self._look(replica)
                    if replica.queue:
                        replica.due_s = replica.queue[0].visible_s
                    return
                engine.pipeline.append(self._schedule(replica))
                engine.formed_s = self.now_s
            self.sums.preemptions += len(engine.pipeline[0].victims)
            if engine.pipeline[0].shares:
                break
            engine.pipeline.popleft()  # nothing to compute: over at once
        self._launch(replica, engine.pipeline[0])

    def _launch(self, replica: Replica, batch: Batch) -> None:
        engine = self.engines[replica.slot]
        replica.batch = batch.shares
        replica.iteration_s = self.now_s
        replica.due_s = self.now_s + self._seconds(replica)
        engine.behind = self.options["async"]
        self._look(replica)

    def _end_iteration(self, replica: Replica) -> None:
        self.sums.iterations += 1
        engine = self.engines[replica.slot]
        shares = [share for share in engine.pipeline.popleft().shares if share.samples]
        decodes = [share for share in shares if share.decoding]
        prefills = [share for share in shares if not share.decoding]
        self._stream(replica, len(decodes))
        for share in decodes + prefills:
            request = share.request
            if share.life == request.preemptions:
                engine.coming[request.number] -= 1
            request.given += 1
            self.sums.output_tokens += 1
            if request.given == 1:
                delivered_s = self._delivered_s(replica, request, tokens=1)
                request.ttft_s = delivered_s - request.arrival_s
                self.sums.prompt_tokens += request.prompt
                self.sums.missed += request.ttft_s > self.slo.ttft_s
            if request.given == request.output:
                request.e2e_s = self._delivered_s(replica, request) - request.arrival_s
                self.sums.finished += 1
                self._judge(request)
                replica.free += request.blocks
                request.blocks = 0
                (replica.running if request in replica.running else replica.queue).remove(request)
        if engine.pipeline:  # it was formed when the batch that ended now had started
            engine.formed_s = replica.iteration_s

    # forming a batch

    def _schedule(self, replica: Replica) -> Batch:
        batch = Batch(budget=self.profile.limits.chunk_tokens, limit=self._limit(replica))
        coming = self.engines[replica.slot].coming
        index = 0
        while index < len(replica.running) and batch.budget > 0:
            request = replica.running[index]
            if request.given + coming[request.number] == request.output:
                index += 1  # its last token is on the way
                continue
            known = request.prompt + request.given + coming[request.number]
            tokens = int(min(known - request.done, batch.limit, batch.budget))
            while not self._allocate(replica, request, request.done + tokens):
                batch.victims.append(replica.running.pop())
                self._preempt(replica, batch.victims[-1])
                if request not in replica.running:
                    break
            if request not in replica.running:
                break
            self._share(batch, replica, request, tokens)
            index += 1
        if not batch.victims:
            self._admit_into(batch, replica)
        return batch

    def _admit_into(self, batch: Batch, replica: Replica) -> None:
        engine = self.engines[replica.slot]
        size = self.kv.block_tokens
        while batch.budget > 0 and len(replica.running) < replica.batch_size:
            if not replica.queue or replica.queue[0].visible_s > self.now_s:
                break
            head = replica.queue[0]
            known = head.prompt + head.given
            hit = int(self.hits.get(head.number, 0) * head.warmth)
            hit = min(hit, known - 1) // size * size
            tokens = int(min(known - hit, batch.limit, batch.budget))
            reserved = self.kv.watermark_blocks if replica.running else 0
            if (
                self.options["reserve_full_isl"]
                and math.ceil(known / size) + reserved > replica.free
            ):
                break
            if not self._allocate(replica, head, hit + tokens, reserved):
                break
            assert not self._on_the_way(replica, head), "resumed before its last token came"
            replica.queue.popleft()
            replica.running.append(head)
            head.done = hit
            head.decoding = False
            engine.coming[head.number] = 0
            self._share(batch, replica, head, tokens)
            replica.admitted += head.preemptions == 0

    def _share(self, batch: Batch, replica: Replica, request: Request, tokens: int) -> None:
        coming = self.engines[replica.slot].coming
        samples = request.done + tokens == request.prompt + request.given + coming[request.number]
        batch.shares.append(
            Share(request, tokens, request.done, request.decoding, samples, request.preemptions)
        )
        batch.budget -= tokens
        request.done += tokens
        if samples:
            coming[request.number] += 1
            request.decoding = True

    def _allocate(self, replica: Replica, request: Request, tokens: int, reserved: int = 0) -> bool:
        more = max(0, math.ceil(tokens / self.kv.block_tokens) - request.blocks)
        if more + reserved > replica.free:
            return False
        request.blocks += more
        replica.free -= more
        return True

    def _preempt(self, replica: Replica, request: Request) -> None:
        replica.free += request.blocks
        request.blocks = 0
        request.done = 0
        request.decoding = False
        request.preemptions += 1
        self.engines[replica.slot].coming[request.number] = 0
        replica.queue.appendleft(request)

    def _limit(self, replica: Replica) -> float:
        alone = len(replica.running) + len(self._visible(replica)) <= 1
        threshold = self.options["long_prefill_token_threshold"]
        return math.inf if alone or threshold == 0 else threshold

    def _visible(self, replica: Replica) -> list[Request]:
        return list(takewhile(lambda request: request.visible_s <= self.now_s, replica.queue))

    def _on_the_way(self, replica: Replica, request: Request) -> bool:
        pipeline = self.engines[replica.slot].pipeline
        return any(share.request is request for batch in pipeline for share in batch.shares)

    # what can be seen

    def _look(self, replica: Replica) -> None:
        engine = self.engines[replica.slot]
        engine.queue = list(replica.queue)
        engine.running = list(replica.running)
        engine.free = replica.free
        computing = {share.request.number: share for share in replica.batch if not share.decoding}
        engine.tokens = 0
        for request in replica.running:
            if request.number in computing:
                engine.tokens += computing[request.number].done
            elif request.decoding:
                engine.tokens += request.prompt + request.given
            else:
                engine.tokens += request.done

    def queue_of(self, replica: Replica) -> Sequence[Request]:
        return self.engines[replica.slot].queue if replica.slot in self.engines else []

    def running_of(self, replica: Replica) -> Sequence[Request]:
        return self.engines[replica.slot].running if replica.slot in self.engines else []

    def blocks_of(self, replica: Replica) -> int:
        return self.blocks - self.engines[replica.slot].free

    def tokens_of(self, replica: Replica) -> int:
        return self.engines[replica.slot].tokens

    def queued_tokens_of(self, replica: Replica) -> int:
        return sum(request.prompt + request.given for request in self.queue_of(replica))
