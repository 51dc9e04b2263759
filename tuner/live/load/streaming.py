"""One streamed completion over the OpenAI API, and when its tokens came."""

from __future__ import annotations

import asyncio
import json
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from time import perf_counter
from typing import Any

import httpx

PATH = "/v1/completions"


class FailureKind(StrEnum):
    """Why a request did not end well. The names are stable: metric label, parquet, summary."""

    REFUSED = "refused"
    """No connection: nothing listens there, or the name is not known."""
    TIMED_OUT = "timed_out"
    """Not ended within the time-out."""
    DROPPED = "dropped"
    """The connection ended before the answer did."""
    HTTP_ERROR = "http_error"
    """Another status than 200; which one stands beside it."""
    ENGINE_ERROR = "engine_error"
    """An error in the middle of a stream that began with 200."""
    BAD_ANSWER = "bad_answer"
    """A stream that is not what the API says."""
    NO_ENDPOINT = "no_endpoint"
    """The endpoints file named no address when the request was due: it was not sent."""
    NOT_SENT = "not_sent"
    """As many requests were in flight as were allowed: it was not sent."""
    INTERRUPTED = "interrupted"
    """Still in flight when the run was stopped."""


@dataclass(frozen=True)
class Answer:
    """What became of one request. Seconds count from its submission."""

    failure: FailureKind | None
    """None: it ended well."""
    status: int | None = None
    """Of HTTP; None where there was none."""
    ttft_s: float | None = None
    """To the first token; None where none came."""
    e2e_s: float | None = None
    """To the last token; None unless it ended well."""
    prompt_tokens: int | None = None
    """As the engine counts them; None where it did not say."""
    output_tokens: int = 0
    """Received."""
    gaps_s: array[float] = field(default_factory=lambda: array("f"))
    """Between two chunks of tokens, each once."""

    @property
    def outcome(self) -> str:
        """`finished`, or why not; an HTTP error says which: `http_503`."""
        if self.failure is None:
            return "finished"
        if self.failure is FailureKind.HTTP_ERROR:
            return f"http_{self.status}"
        return self.failure.value

    @property
    def tpot_s(self) -> float | None:
        """Seconds per output token after the first; None below two tokens or without an end."""
        if self.e2e_s is None or self.ttft_s is None or self.output_tokens < 2:
            return None
        return (self.e2e_s - self.ttft_s) / (self.output_tokens - 1)


async def complete(
    client: httpx.AsyncClient,
    url: str,
    body: bytes,
    *,
    timeout_s: float,
    on_tokens: Callable[[int], None],
) -> Answer:
    """Send one request and listen to its stream. Every trouble is in the answer, none is raised.

    Cancelling it ends the request at once; the answer says so and holds what had come.

    Args:
        client: without time-outs of its own.
        url: scheme, host and port.
        body: JSON; asks for a stream.
        timeout_s: longest time from submission to the last token, s.
        on_tokens: told how many tokens each chunk brought.
    """
    heard = _Heard(on_tokens)
    try:
        async with asyncio.timeout(timeout_s):
            return await _listen(client, url, body, heard)
    except asyncio.CancelledError:
        return heard.answer(FailureKind.INTERRUPTED)
    except TimeoutError:
        return heard.answer(FailureKind.TIMED_OUT)
    except httpx.ConnectError:
        return heard.answer(FailureKind.REFUSED)
    except httpx.TransportError:
        return heard.answer(FailureKind.DROPPED)
    except (httpx.InvalidURL, httpx.DecodingError):
        return heard.answer(FailureKind.BAD_ANSWER)


async def _listen(client: httpx.AsyncClient, url: str, body: bytes, heard: _Heard) -> Answer:
    headers = {"content-type": "application/json"}
    async with client.stream("POST", url + PATH, content=body, headers=headers) as response:
        heard.status = response.status_code
        if response.status_code != httpx.codes.OK:
            await response.aread()  # so that the connection can be used again
            return heard.answer(FailureKind.HTTP_ERROR)
        rest = b""
        async for piece in response.aiter_bytes():
            # By bytes, not httpx's lines: those also end at U+2028, which JSON may hold as it is.
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                if line.startswith(b"data:"):
                    failure = heard.event(line.removeprefix(b"data:").strip())
                    if failure is not None:
                        return heard.answer(failure)
    # A stream that just ends is one that was cut: the API ends it with [DONE].
    return heard.answer(None if heard.done else FailureKind.DROPPED)


class _Heard:
    """What has come of one stream so far."""

    def __init__(self, on_tokens: Callable[[int], None]) -> None:
        self._on_tokens = on_tokens
        self._start_s = perf_counter()
        self._first_s: float | None = None
        self._last_s = self._start_s
        self._gaps_s = array("f")
        self._tokens = 0
        self._prompt_tokens: int | None = None
        self.status: int | None = None
        self.done = False

    def event(self, data: bytes) -> FailureKind | None:
        """Take in the data of one server-sent event."""
        if data == b"[DONE]":
            self.done = True
            return None
        try:
            chunk = json.loads(data)
            if "error" in chunk:
                return FailureKind.ENGINE_ERROR
            self._chunk(chunk)
        except (ValueError, TypeError, KeyError, AttributeError):
            return FailureKind.BAD_ANSWER
        return None

    def _chunk(self, chunk: dict[str, Any]) -> None:
        now_s = perf_counter()
        usage = chunk.get("usage")
        if usage:
            self._prompt_tokens = int(usage["prompt_tokens"])
        texts = [choice.get("text", "") for choice in chunk["choices"]]
        if usage:
            # An engine that counts along tells tokens without text (special ones, halves of a
            # character) from chunks without a token, and several tokens in one chunk.
            tokens = int(usage["completion_tokens"]) - self._tokens
        else:
            tokens = sum(1 for text in texts if text)
        if tokens <= 0:
            return
        self._tokens += tokens
        self._on_tokens(tokens)
        if not texts:
            return  # the closing count alone: these tokens have come before, unnoticed
        if self._first_s is None:
            self._first_s = now_s
        else:
            self._gaps_s.append(now_s - self._last_s)
        self._last_s = now_s

    def answer(self, failure: FailureKind | None) -> Answer:
        """What is known now."""
        if failure is None and self._first_s is None:
            failure = FailureKind.BAD_ANSWER
        return Answer(
            failure=failure,
            status=self.status,
            ttft_s=None if self._first_s is None else self._first_s - self._start_s,
            e2e_s=None if failure is not None else self._last_s - self._start_s,
            prompt_tokens=self._prompt_tokens,
            output_tokens=self._tokens,
            gaps_s=self._gaps_s,
        )
