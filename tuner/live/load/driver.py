"""Open-loop load from a trace: every request leaves at its time, whatever became of the others.

A late answer never delays a later request, so an engine that falls behind is seen to fall behind.
What this process itself is late by is measured for each request, as `lag_s`.
"""

from __future__ import annotations

import asyncio
import json
import resource
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

import httpx
import numpy as np
from numpy.typing import NDArray

from tuner.core.errors import ConfigError
from tuner.core.trace import Trace
from tuner.live.load.endpoints import Endpoint, Endpoints
from tuner.live.load.page import LoadPage
from tuner.live.load.streaming import Answer, FailureKind, complete

Prompt = Literal["ids", "text"]
"""ids: a list of token numbers, so that the prompt has exactly the trace's length; text: as many
short words, for engines that take text only, and about as many tokens."""

FIRST_ID, LAST_ID = 3, 255
"""Token numbers of prompts: below them stand special tokens, and no vocabulary is smaller."""
WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

KEEP_ALIVE_S = 2.0
"""An idle connection is closed after this: servers close theirs after 5 s, and a request that
leaves at that very moment would count as dropped."""
SPARE_FILES = 64
"""Files kept free for everything but connections."""


@dataclass(frozen=True)
class LoadOptions:
    """How a trace becomes load."""

    speed: float = 1.0
    """Trace seconds per second."""
    model: str = ""
    """Model to ask for; empty takes the first one that an endpoint names."""
    limit: int | None = None
    """Only the trace's first so many requests."""
    duration_s: float | None = None
    """Send for so many seconds of real time."""
    max_in_flight: int = 4096
    """A request that would be one more is not sent, and counted; it is never sent later."""
    timeout_s: float = 600.0
    """A request that has not ended by then has failed, s."""
    seed: int = 0
    """Of the prompts' content."""
    prompt: Prompt = "ids"
    max_prompt_tokens: int | None = None
    """Longer prompts are cut to this; None: none is."""
    max_output_tokens: int | None = None
    """Longer answers are cut to this; None: none is."""

    def __post_init__(self) -> None:
        positive = {
            "speed": self.speed,
            "limit": self.limit,
            "duration": self.duration_s,
            "max-in-flight": self.max_in_flight,
            "timeout": self.timeout_s,
            "max-prompt-tokens": self.max_prompt_tokens,
            "max-output-tokens": self.max_output_tokens,
        }
        for name, value in positive.items():
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"--{name} is {value}; expected a number above 0")


@dataclass(frozen=True, eq=False)
class LoadPlan:
    """What is to be sent, one entry per request."""

    due_s: NDArray[np.float64]
    """`(requests,)` seconds after the start, real time."""
    prompt_tokens: NDArray[np.int32]
    output_tokens: NDArray[np.int32]
    clipped_prompts: int
    clipped_outputs: int

    def __len__(self) -> int:
        return len(self.due_s)


def plan_of(trace: Trace, options: LoadOptions) -> LoadPlan:
    """The requests that the options leave of a trace; the first arrival is due at once."""
    due_s = (trace.arrival_s - trace.arrival_s[0]) / options.speed
    count = len(due_s) if options.limit is None else min(options.limit, len(due_s))
    if options.duration_s is not None:
        count = min(count, int(np.searchsorted(due_s, options.duration_s, side="left")))
    prompts, outputs = trace.prompt_tokens[:count], trace.output_tokens[:count]
    most_prompt = options.max_prompt_tokens or np.iinfo(np.int32).max
    most_output = options.max_output_tokens or np.iinfo(np.int32).max
    return LoadPlan(
        due_s=due_s[:count],
        prompt_tokens=np.minimum(prompts, most_prompt).astype(np.int32),
        output_tokens=np.minimum(outputs, most_output).astype(np.int32),
        clipped_prompts=int(np.sum(prompts > most_prompt)),
        clipped_outputs=int(np.sum(outputs > most_output)),
    )


@dataclass(frozen=True)
class Sent:
    """One request: what was asked, where, when, and what became of it."""

    request: int
    """Row of the trace."""
    due_s: float
    """After the start of the run."""
    sent_s: float
    """After the start of the run; what was not sent: when it would have been."""
    url: str
    """Empty where it was not sent."""
    prompt_tokens: int
    output_tokens: int
    answer: Answer

    @property
    def lag_s(self) -> float:
        """How late it left, through this process's own fault."""
        return self.sent_s - self.due_s


class LoadRun:
    """One replay; `run` once, `stop` from anywhere.

    Args:
        plan: what to send.
        endpoints: where to.
        options: how.
        page: counters to keep up.
        told: called after each request that ended, with this run.
    """

    def __init__(
        self,
        plan: LoadPlan,
        endpoints: Endpoints,
        options: LoadOptions,
        page: LoadPage,
        *,
        told: Callable[[LoadRun], None] = lambda run: None,
    ) -> None:
        self.plan = plan
        self.endpoints = endpoints
        self.options = options
        self.rows: list[Sent] = []
        """Requests that have ended, in the order of their ends."""
        self.stopped = False
        """Whether `stop` was called."""
        self.trouble: set[str] = set()
        """What was wrong with the endpoints file, each sentence once."""
        self._page = page
        self._told = told
        self._in_flight = 0
        self._start_s = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()

    def run(self) -> None:
        """Send everything and wait for its end; sooner where `stop` is called.

        Raises:
            ConfigError: no model was named and no endpoint names one, or the process may not hold
                enough connections.
        """
        _allow_files(self.options.max_in_flight)
        asyncio.run(self._replay())
        self.rows.sort(key=lambda row: row.request)

    def stop(self) -> None:
        """Send no more and break off what is in flight. From any thread or signal handler."""
        self.stopped = True
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop.set)

    async def _replay(self) -> None:
        self._loop = asyncio.get_running_loop()
        if self.stopped:
            return
        limits = httpx.Limits(max_connections=None, keepalive_expiry=KEEP_ALIVE_S)
        async with httpx.AsyncClient(timeout=None, limits=limits, trust_env=False) as client:
            model = self.options.model or await _served_model(client, self.endpoints.urls)
            tasks: set[asyncio.Task[None]] = set()
            self._start_s = perf_counter()
            for request in range(len(self.plan)):
                body = self._body(request, model)  # before its time: a long one takes milliseconds
                if await self._wait_until(float(self.plan.due_s[request])):
                    break
                self._dispatch(request, body, client, tasks)
            await self._finish(tasks)

    async def _wait_until(self, due_s: float) -> bool:
        """Whether the run was stopped by then."""
        wait_s = due_s - (perf_counter() - self._start_s)
        try:
            async with asyncio.timeout(max(wait_s, 0.0)):
                await self._stop.wait()
        except TimeoutError:
            return False
        return True

    def _dispatch(
        self,
        request: int,
        body: bytes,
        client: httpx.AsyncClient,
        tasks: set[asyncio.Task[None]],
    ) -> None:
        self.endpoints.refresh()  # each time: an engine that leaves the list is about to end
        if self.endpoints.trouble is not None:
            self.trouble.add(self.endpoints.trouble)
        endpoint = self.endpoints.pick()
        if endpoint is None:
            self._end(request, None, self._now_s(), Answer(FailureKind.NO_ENDPOINT))
            return
        if self._in_flight >= self.options.max_in_flight:
            self._end(request, None, self._now_s(), Answer(FailureKind.NOT_SENT))
            return
        self._in_flight += 1
        endpoint.in_flight += 1
        endpoint.sent += 1
        task = asyncio.create_task(self._send(request, body, client, endpoint))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def _send(
        self, request: int, body: bytes, client: httpx.AsyncClient, endpoint: Endpoint
    ) -> None:
        sent_s = self._now_s()
        self._page.sent()
        answer = await complete(
            client,
            endpoint.url,
            body,
            timeout_s=self.options.timeout_s,
            on_tokens=self._page.output_tokens,
        )
        self._in_flight -= 1
        endpoint.in_flight -= 1
        self._page.ended(answer)
        self._end(request, endpoint, sent_s, answer)

    def _end(self, request: int, endpoint: Endpoint | None, sent_s: float, answer: Answer) -> None:
        if endpoint is None:
            self._page.not_sent(answer)
        self.rows.append(
            Sent(
                request=request,
                due_s=float(self.plan.due_s[request]),
                sent_s=sent_s,
                url=endpoint.url if endpoint else "",
                prompt_tokens=int(self.plan.prompt_tokens[request]),
                output_tokens=int(self.plan.output_tokens[request]),
                answer=answer,
            )
        )
        self._told(self)

    async def _finish(self, tasks: set[asyncio.Task[None]]) -> None:
        """Wait for what is in flight; each has its own time-out. Break it off where stopped."""
        stop = asyncio.create_task(self._stop.wait())
        while tasks and not stop.done():
            await asyncio.wait({stop, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.gather(stop, *tasks, return_exceptions=True)

    def _now_s(self) -> float:
        return perf_counter() - self._start_s

    def _body(self, request: int, model: str) -> bytes:
        output_tokens = int(self.plan.output_tokens[request])
        return json.dumps(
            {
                "model": model,
                "prompt": prompt_of(int(self.plan.prompt_tokens[request]), self.options, request),
                "max_tokens": output_tokens,
                "min_tokens": output_tokens,
                "ignore_eos": True,
                "temperature": 0.0,
                "stream": True,
                "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            }
        ).encode()


def prompt_of(tokens: int, options: LoadOptions, request: int) -> list[int] | str:
    """A prompt of so many tokens; random, so that no prefix cache makes it cheaper than it was."""
    random = np.random.default_rng([options.seed, request])
    if options.prompt == "text":
        return " ".join(WORDS[i] for i in random.integers(0, len(WORDS), tokens))
    ids: list[int] = random.integers(FIRST_ID, LAST_ID + 1, tokens).tolist()
    return ids


async def _served_model(client: httpx.AsyncClient, urls: tuple[str, ...]) -> str:
    """The first model of the first endpoint that names one."""
    why = "the endpoints file is empty"
    for url in urls:
        try:
            answer = await client.get(url + "/v1/models", timeout=10.0)
            answer.raise_for_status()
            return str(answer.json()["data"][0]["id"])
        except httpx.HTTPError as error:
            why = f"{url}/v1/models: {error or type(error).__name__}"
        except (ValueError, KeyError, IndexError, TypeError):
            why = f"{url}/v1/models: not the list of models that the OpenAI API gives"
    raise ConfigError(f"{why}; is the engine up? Or name the model with --model")


def _allow_files(connections: int) -> None:
    """Raise this process's own limit of open files as far as the connections need it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + SPARE_FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ConfigError(
            f"--max-in-flight is {connections}, and this process may hold {hard} files open; "
            f"expected at most {hard - SPARE_FILES}, so lower it or raise `ulimit -n`"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
