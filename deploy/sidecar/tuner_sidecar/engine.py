"""What the program asks of an engine, and one HTTP client for all of them."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from .contract import EngineError, RefusedByEngineError, Status


@dataclass(frozen=True)
class About:
    """What answers."""

    version: str
    model: str


class Engine(Protocol):
    """One engine on loopback. Every call ends in bounded time and raises EngineError alone."""

    name: str

    def about(self) -> About: ...

    def status(self) -> Status: ...

    def apply(self, values: Mapping[str, int]) -> None:
        """Bring values about, all or none, and read them back."""

    def to_start_up(self) -> None:
        """Bring back the values of the engine's start, where it can tell them: a sidecar that died
        may have left temporary ones behind."""


class EngineHttp:
    """Calls to one engine.

    Args:
        url: scheme, host and port; plain HTTP, as it is on loopback.
        key: bearer token that the engine wants, if it wants one.

    Raises:
        ValueError: for a URL of another kind.
    """

    def __init__(self, url: str, *, timeout_s: float, key: str | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or parts.hostname is None or parts.path.strip("/"):
            raise ValueError(f"engine {url!r} is not of the form http://host:port")
        self._host, self._port = parts.hostname, parts.port or 80
        self._timeout_s = timeout_s
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    def get(self, path: str) -> Any:
        """The JSON of a good answer."""
        return _json(path, self.text("GET", path))

    def ask(self, path: str, body: object, *, timeout_s: float | None = None) -> Any:
        """POST; the JSON of a good answer, None if it is empty."""
        text = self.text("POST", path, json.dumps(body).encode(), timeout_s=timeout_s)
        return _json(path, text) if text.strip() else None

    def text(
        self, method: str, path: str, body: bytes | None = None, *, timeout_s: float | None = None
    ) -> str:
        """
        Raises:
            RefusedByEngineError: a status from 400 to 499: understood, and no.
            EngineError: every other trouble; whether it was done is open.
        """
        wait_s = self._timeout_s if timeout_s is None else timeout_s
        status, text = self._exchange(method, path, body, wait_s)
        if status == 200:
            return text
        sentence = f"{method} {path} answered {status}: {text.strip()[:300] or 'nothing'}"
        if 400 <= status < 500:
            raise RefusedByEngineError(sentence)
        raise EngineError(sentence)

    def _exchange(
        self, method: str, path: str, body: bytes | None, timeout_s: float
    ) -> tuple[int, str]:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)
        headers = {**self._headers, **({"Content-Type": "application/json"} if body else {})}
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode("utf-8", errors="replace")
        except TimeoutError:
            raise EngineError(f"{method} {path}: no answer within {timeout_s:g} s") from None
        except (OSError, http.client.HTTPException) as trouble:
            raise EngineError(f"{method} {path}: {trouble or type(trouble).__name__}") from None
        finally:
            connection.close()


def _json(path: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise EngineError(f"{path} answered {text[:80]!r}; JSON is expected") from None


def integer(data: Any, key: str) -> int | None:
    """A whole number of an answer, None where there is none."""
    value = data.get(key) if isinstance(data, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None
