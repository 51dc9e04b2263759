"""The contract's two callables over vLLM's engine client.

The contract calls from its own threads; vLLM's client lives on the API server's event loop. Every
call goes to all data-parallel ranks: the one that vLLM offers by default answers for the first.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from .contract import EngineError, Knob, Status

TIMEOUT_S = 10.0
"""Longest wait for the engine core, s: it answers between two steps, and one short of CPU takes
seconds for a step."""

UNITS = {"batch_size": "sequences", "max_num_batched_tokens": "tokens"}

CallAll = Callable[..., Awaitable[list[Any]]]
"""vLLM's `call_utility_all_async`: method and arguments to one result per rank."""


class Ranks:
    """All engine cores behind one API server."""

    def __init__(
        self,
        call_all: CallAll,
        loop: asyncio.AbstractEventLoop,
        *,
        threads: int,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._call_all = call_all
        self._loop = loop
        self._threads = threads
        self._timeout_s = timeout_s

    def knobs(self, answers: Sequence[Mapping[str, Any]]) -> dict[str, Knob]:
        """What every rank holds.

        Raises:
            EngineError: where two ranks hold different values.
        """
        first = answers[0]["knobs"]
        if any(answer["knobs"] != first for answer in answers):
            held = ", ".join(str(answer["knobs"]) for answer in answers)
            raise EngineError(f"the ranks hold different values: {held}")
        hot = {
            name: Knob(value, low, high, UNITS[name]) for name, (value, low, high) in first.items()
        }
        threads = self._threads
        return {**hot, "threads": Knob(threads, threads, threads, "workers", "unsupported")}

    def status(self) -> Status:
        answers = self._ask("tuner_read")
        return Status(
            running=sum(answer["running"] for answer in answers),
            waiting=sum(answer["waiting"] for answer in answers),
            paused=any(answer["paused"] for answer in answers),
            sleeping=any(answer["sleeping"] for answer in answers),
            ranks=len(answers),
            knobs=self.knobs(answers),
        )

    def apply(self, values: Mapping[str, int]) -> None:
        held = self.knobs(self._ask("tuner_set", dict(values)))
        wrong = {n: held[n].value for n, value in values.items() if held[n].value != value}
        if wrong:
            raise EngineError(f"wanted {dict(values)}, the engine holds {wrong}")

    def _ask(self, method: str, *arguments: object) -> list[Any]:
        if self._loop.is_closed():
            raise EngineError("the API server is ending")
        pending = asyncio.run_coroutine_threadsafe(self._call(method, *arguments), self._loop)
        try:
            # Not cancelled after the wait: the call is on its way, and what is sent afterwards
            # reaches the engine core after it.
            return pending.result(self._timeout_s)
        except concurrent.futures.TimeoutError:
            raise EngineError(
                f"the engine core did not answer within {self._timeout_s:g} s"
            ) from None
        except Exception as trouble:  # vLLM raises bare Exception for a failed utility call
            raise EngineError(f"the engine core failed: {trouble}") from trouble

    async def _call(self, method: str, *arguments: object) -> list[Any]:
        return list(await self._call_all(method, *arguments))
