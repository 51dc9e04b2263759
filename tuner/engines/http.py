"""HTTP to engines, and the one place where its troubles become faults.

What is told apart, because the caller must act differently:

    never sent      refused, no route, no connection in time            UNREACHABLE
    no answer       a read: TIMED_OUT or UNREACHABLE; a write: OUTCOME_UNKNOWN, since it may have
                    been done
    an error        by status, see `_REASONS`
    no sense        not HTTP, not JSON, too long, a redirect            BAD_ANSWER

A write that ends in `MAY_HAVE_LANDED` is read back before anybody speaks of failure.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import monotonic
from types import TracebackType
from typing import Literal

import httpx

from tuner.core.errors import ConfigError
from tuner.core.faults import Fault, FaultError, FaultReason
from tuner.core.http_status import reason_of_status
from tuner.engines.tls import trusted_roots

Auth = Literal["serving", "control", "none"]
"""Whose secret goes along: the api key of the serving port, or the token of run-time control."""

CONNECT_TIMEOUT_S = 3.0
"""An engine that does not take a connection in this time is not there; a busy one still does."""
MAX_BODY_BYTES = 8 * 2**20
"""Longest answer: an engine's metrics page is 0.1 MB, a Triton configuration less."""
KEEP_ALIVE_S = 2.0
"""Below the 5 s after which uvicorn hangs up, so that no request meets a closing connection."""
EXCERPT_CHARS = 200

MAY_HAVE_LANDED = frozenset(
    {FaultReason.OUTCOME_UNKNOWN, FaultReason.SERVER_ERROR, FaultReason.BAD_ANSWER}
)
"""A write that ended so may have been done all the same."""

_SPECIAL: Mapping[int, FaultReason] = {
    405: FaultReason.NOT_FOUND,
    410: FaultReason.NOT_FOUND,
    412: FaultReason.CONFLICT,
    501: FaultReason.NOT_MOVABLE,
    503: FaultReason.NOT_READY,
}
"""What engines and the run-time configuration contract mean by a status. 504 is no answer."""

_NEVER_SENT = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.UnsupportedProtocol,
    httpx.LocalProtocolError,
)


@dataclass(frozen=True)
class Reply:
    """An answer with a status below 300."""

    where: str
    """Name of the replica."""
    request: str
    """`GET /health`, for messages."""
    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", errors="replace")

    def json(self) -> object:
        """The body as JSON.

        Raises:
            FaultError: BAD_ANSWER.
        """
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            raise self.bad(f"'{_excerpt(self.body)}'", "JSON") from None

    def mapping(self) -> Mapping[str, object]:
        """The body as a JSON object.

        Raises:
            FaultError: BAD_ANSWER.
        """
        data = self.json()
        if not isinstance(data, dict):
            raise self.bad(f"'{_excerpt(self.body)}'", "a JSON object")
        return data

    def bad(self, found: str, expected: str) -> FaultError:
        """The fault of an answer that does not say what it should."""
        sentence = f"{self.where}: {self.request} answered {found}; expected {expected}"
        return FaultError(Fault(self.where, FaultReason.BAD_ANSWER, sentence))


class EngineHttp:
    """Connections to the engines of one target; may be shared by threads.

    Args:
        timeout_s: longest wait for one call, s, unless the call says otherwise.
        token: bearer token of run-time control.
        api_key: key of the serving port.

    Raises:
        ConfigError: a secret that cannot stand in a header.
    """

    def __init__(
        self, *, timeout_s: float, token: str | None = None, api_key: str | None = None
    ) -> None:
        self.timeout_s = timeout_s
        self._secrets: Mapping[Auth, str | None] = {
            "control": _checked(token, "the token of run-time control"),
            "serving": _checked(api_key, "the key of the serving port"),
        }
        limits = httpx.Limits(
            max_connections=256, max_keepalive_connections=64, keepalive_expiry=KEEP_ALIVE_S
        )
        # No proxy from the environment: engines are neighbours, and a token must not travel.
        self._client = httpx.Client(
            trust_env=False,
            verify=trusted_roots(),
            limits=limits,
            headers={"Accept-Encoding": "identity"},
        )

    def __repr__(self) -> str:
        return f"EngineHttp(timeout_s={self.timeout_s:g})"

    def __enter__(self) -> EngineHttp:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of connections."""
        self._client.close()

    def has(self, auth: Auth) -> bool:
        """Whether there is a secret of that kind."""
        return self._secrets.get(auth) is not None

    @property
    def strongest(self) -> Auth:
        """For control calls on a serving port: the token if there is one, else that port's key."""
        return "control" if self.has("control") else "serving"

    def get(self, where: str, url: str, *, auth: Auth = "serving") -> Reply:
        """What stands there.

        Args:
            where: name of the replica, for messages.
            url: the whole address.

        Raises:
            FaultError: anything but an answer with a status below 300.
        """
        return self._call(where, "GET", url, auth=auth, writes=False)

    def ask(self, where: str, url: str, body: object, *, timeout_s: float | None = None) -> Reply:
        """A POST to the serving port that may be repeated without harm: a completion, a list."""
        return self._call(
            where, "POST", url, auth="serving", body=body, writes=False, timeout_s=timeout_s
        )

    def write(
        self,
        where: str,
        method: str,
        url: str,
        body: object,
        *,
        auth: Auth = "control",
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Reply:
        """A request that changes something, sent once.

        Raises:
            FaultError: UNREACHABLE means that it was never sent; with a reason of
                MAY_HAVE_LANDED it may have been done: read back.
        """
        return self._call(
            where,
            method,
            url,
            auth=auth,
            body=body,
            writes=True,
            headers=headers,
            timeout_s=timeout_s,
        )

    def _call(
        self,
        where: str,
        method: str,
        url: str,
        *,
        auth: Auth,
        writes: bool,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Reply:
        limit_s = self.timeout_s if timeout_s is None else timeout_s
        try:
            target = httpx.URL(url)
            request = f"{method} {target.path}"
            with self._client.stream(
                method,
                target,
                headers={**(headers or {}), **self._authorization(auth)},
                json=body,
                timeout=httpx.Timeout(limit_s, connect=min(limit_s, CONNECT_TIMEOUT_S)),
            ) as response:
                content = _bounded(response, limit_s)
        except (httpx.InvalidURL, OverflowError, UnicodeError):
            sentence = f"{where}: the address cannot be one; expected http://HOST:PORT"
            raise FaultError(Fault(where, FaultReason.UNREACHABLE, sentence)) from None
        except httpx.HTTPError as problem:
            place = f"{where}: {request} at {target.host}:{target.port or target.scheme}"
            raise FaultError(_broken(where, place, problem, writes, limit_s)) from None
        except RuntimeError:
            # What httpx raises, before anything is sent, for a thread that goes on after `close`.
            if not self._client.is_closed:
                raise
            sentence = f"{where}: {request} was not sent: the controller has let go of its engines"
            raise FaultError(Fault(where, FaultReason.UNREACHABLE, sentence)) from None
        reply = Reply(
            where=where,
            request=request,
            status=response.status_code,
            headers={name.lower(): value for name, value in response.headers.items()},
            body=content,
        )
        if not 200 <= reply.status < 300:
            raise self._refused(reply, writes)
        return reply

    def _authorization(self, auth: Auth) -> Mapping[str, str]:
        secret = self._secrets.get(auth)
        return {} if secret is None else {"Authorization": f"Bearer {secret}"}

    def _refused(self, reply: Reply, writes: bool) -> FaultError:
        reason = _reason(reply.status, writes)
        said = _excerpt(reply.body)
        for secret in self._secrets.values():
            said = said.replace(secret, "***") if secret else said
        sentence = f"{reply.where}: {reply.request} answered {reply.status}"
        sentence += f" ({said})" if said else ""
        sentence += f"; {_NEXT_MOVE.get(reason, 'look at the log of the engine')}"
        fault = Fault(reply.where, reason, sentence)
        return FaultError(fault, retry_after_s=_retry_after_s(reply.headers))


_NEXT_MOVE: Mapping[FaultReason, str] = {
    FaultReason.INVALID: "what was asked is wrong and is not repeated",
    FaultReason.UNAUTHORIZED: "it wants a token or key: see engine.token_file, engine.api_key_file",
    FaultReason.FORBIDDEN: "the token or key is the wrong one",
    FaultReason.NOT_FOUND: "there is no such endpoint",
    FaultReason.CONFLICT: "someone wrote in between: read and decide again",
    FaultReason.RATE_LIMITED: "wait",
    FaultReason.NOT_MOVABLE: "this engine has no way to do it while it runs",
    FaultReason.NOT_READY: "wait until it is ready",
    FaultReason.BAD_ANSWER: "expected an answer, not a redirect: correct the address",
    FaultReason.OUTCOME_UNKNOWN: "whether it was done is not known: read back",
}


def _checked(secret: str | None, what: str) -> str | None:
    if secret is None:
        return None
    if not secret or secret != secret.strip() or not all(" " <= c <= "~" for c in secret):
        raise ConfigError(
            f"{what} is empty, begins or ends with a space, or holds a line break or a letter "
            "outside ASCII; expected one line of plain letters"
        )
    return secret


def _bounded(response: httpx.Response, limit_s: float) -> bytes:
    """The body, up to MAX_BODY_BYTES and `limit_s` from now: a trickle is no answer."""
    end = monotonic() + limit_s
    content = bytearray()
    for chunk in response.iter_bytes():
        content += chunk
        if len(content) > MAX_BODY_BYTES:
            raise httpx.DecodingError("longer than anything an engine says")
        if monotonic() > end:
            raise httpx.ReadTimeout("the answer trickled")
    return bytes(content)


def _broken(
    where: str, place: str, problem: httpx.HTTPError, writes: bool, limit_s: float
) -> Fault:
    kind = type(problem).__name__
    if isinstance(problem, _NEVER_SENT):
        sentence = f"{place}: no connection ({kind}); expected an engine there: is it running?"
        return Fault(where, FaultReason.UNREACHABLE, sentence)
    late = isinstance(problem, httpx.TimeoutException)
    what = f"no answer within {limit_s:g} s" if late else f"the connection broke ({kind})"
    if writes:
        sentence = f"{place}: {what}; whether it was done is not known: read back"
        return Fault(where, FaultReason.OUTCOME_UNKNOWN, sentence)
    if late:
        sentence = f"{place}: {what}; it is hung, or too busy for timeout_s"
        return Fault(where, FaultReason.TIMED_OUT, sentence)
    if isinstance(problem, httpx.NetworkError):
        return Fault(where, FaultReason.UNREACHABLE, f"{place}: {what}; is the engine restarting?")
    what = f"the answer broke off or is no HTTP ({kind})"
    sentence = f"{place}: {what}; has the engine stopped, or is this another port?"
    return Fault(where, FaultReason.BAD_ANSWER, sentence)


def _reason(status: int, writes: bool) -> FaultReason:
    if status == 504:
        return FaultReason.OUTCOME_UNKNOWN if writes else FaultReason.TIMED_OUT
    return reason_of_status(status, _SPECIAL)


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds, whether given as such or as a date (RFC 9110 10.2.3; held against its own Date)."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        later = parsedate_to_datetime(text)
        now = parsedate_to_datetime(headers.get("date", ""))
        return max((later - now).total_seconds(), 0.0)
    except (TypeError, ValueError):
        return None


def _excerpt(body: bytes) -> str:
    """What an error answer says, on one line: the usual keys of JSON errors, else its beginning."""
    text = body[:4096].decode("utf-8", errors="replace")
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        data = None
    while isinstance(data, dict):
        data = next((data[key] for key in ("error", "detail", "message") if key in data), None)
    if isinstance(data, str):
        text = data
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= EXCERPT_CHARS else line[: EXCERPT_CHARS - 1] + "…"


def tolerant(call: Callable[[], Reply], *absent: FaultReason) -> Reply | None:
    """The reply, or None where the fault is one of `absent`."""
    try:
        return call()
    except FaultError as trouble:
        if trouble.fault.reason in absent:
            return None
        raise
