"""Samples out of a Prometheus server: raw ones, so that a restart between two scrapes is seen.

A range selector evaluated at one moment hands out the stored samples themselves
(prometheus/docs/querying/basics.md, "Range vector selectors"); what is made of them is in
`fields.py`. One question per look, never repeated within it: a slow server costs one time-out, and
the next tick asks again.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import requests
from prometheus_api_client.exceptions import PrometheusApiClientException
from prometheus_api_client.prometheus_connect import PrometheusConnect
from requests.auth import AuthBase
from urllib3.exceptions import HTTPError
from urllib3.util.retry import Retry

from tuner.config import PrometheusConfig
from tuner.core.errors import ConfigError
from tuner.core.faults import Fault, FaultError, FaultReason
from tuner.core.http_status import reason_of_status
from tuner.live.metrics.samples import SampleSeries
from tuner.live.pool import Member

MOST_BYTES = 512 * 2**20
"""A longer answer is refused: some 15 million samples, more than a server gives by default."""

PIECE_BYTES = 2**16

_NEXT_MOVE: Mapping[FaultReason, str] = {
    FaultReason.INVALID: "check prometheus.selector and the query",
    FaultReason.UNAUTHORIZED: "check prometheus.token_file",
    FaultReason.FORBIDDEN: "give the token the right to query",
    FaultReason.NOT_FOUND: "check prometheus.url; it is the address before /api/v1",
    FaultReason.RATE_LIMITED: "ask less often, or raise the server's limit",
    FaultReason.SERVER_ERROR: "see the server's log",
    FaultReason.BAD_ANSWER: "check prometheus.url; something else answers there",
}
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


class PrometheusSource:
    """Metrics of one target from a Prometheus server.

    Args:
        config: address, labels and limits.

    Raises:
        ConfigError: the selector has a label that PromQL does not know.
    """

    def __init__(self, config: PrometheusConfig) -> None:
        selecting((), config.selector)
        self._config = config
        self._session = _DeadlineSession(self._check)
        self._server = PrometheusConnect(
            url=config.url.rstrip("/"),
            session=self._session,
            retry=Retry(0, read=False),
        )
        if config.token_file:
            self._session.auth = _Bearer(config.token_file)

    missed: tuple[Fault, ...] = ()
    """One answer is about all replicas: it comes, or it is raised why not."""

    @property
    def name(self) -> str:
        return "prometheus"

    def samples(
        self, names: Collection[str], members: Sequence[Member], *, at_s: float, window_s: float
    ) -> list[SampleSeries]:
        """The engines' series of the window; which members they belong to is for the caller.

        Raises:
            FaultError: NO_SERIES where there is none under any of the names.
        """
        return self.matching(names, self._config.selector, at_s=at_s, window_s=window_s)

    def matching(
        self,
        names: Collection[str],
        selector: Mapping[str, str],
        *,
        at_s: float,
        window_s: float,
        timeout_s: float | None = None,
    ) -> list[SampleSeries]:
        """Series with one of the names and all the labels, samples of (at_s - window_s, at_s].

        Raises:
            FaultError: the server gave nothing that can be used.
        """
        query = f"{selecting(names, selector)}[{max(round(window_s * 1000), 1)}ms]"
        found = self._ask(query, at_s, timeout_s)
        series = [self._series(row, at_s - window_s) for row in found]
        series = [one for one in series if len(one.at_s)]
        if not series:
            raise self._error(
                FaultReason.NO_SERIES,
                f"{selecting(names, selector)} returned no series (last {window_s:g} s); "
                "are the pods scraped, and does the selector fit their labels?",
            )
        return series

    def number(self, query: str, *, at_s: float, timeout_s: float | None = None) -> float:
        """What a PromQL expression gives at one moment.

        Raises:
            FaultError: also where the answer is none or several.
        """
        found = self._ask(query, at_s, timeout_s)
        try:
            # A scalar is [time, value]; a vector is a list of series.
            if len(found) == 2 and isinstance(found[1], str):
                return float(found[1])
            values = [float(row["value"][1]) for row in found]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise self._error(
                FaultReason.BAD_ANSWER, f"{query} gave no instant vector; it must give one number"
            ) from error
        if not values:
            raise self._error(FaultReason.NO_SERIES, f"{query} returned no series")
        if len(values) > 1:
            raise self._error(
                FaultReason.BAD_ANSWER,
                f"{query} gave {len(values)} numbers; it must give one, so wrap it in sum()",
            )
        return values[0]

    def close(self) -> None:
        self._session.close()

    def _ask(self, query: str, at_s: float, timeout_s: float | None) -> list[Any]:
        """The `result` of an instant query; every way to fail becomes a FaultError."""
        limit_s = self._config.timeout_s if timeout_s is None else timeout_s
        self._session.deadline_s = time.monotonic() + limit_s
        params = {"time": f"{at_s:.3f}", "timeout": f"{max(round(limit_s * 1000), 1)}ms"}
        try:
            # Annotated int there; handed to requests, which takes fractions.
            found = self._server.custom_query(
                query,
                params=params,
                timeout=limit_s,  # type: ignore[arg-type]
            )
        except requests.Timeout as error:
            raise self._error(
                FaultReason.TIMED_OUT,
                f"no whole answer within {limit_s:g} s; raise prometheus.timeout_s or relieve "
                "the server",
            ) from error
        except requests.exceptions.JSONDecodeError as error:
            raise self._no_prometheus("the answer is not JSON") from error
        except (KeyError, TypeError) as error:
            raise self._no_prometheus("the answer is JSON without data.result") from error
        except requests.RequestException as error:
            raise self._error(
                FaultReason.UNREACHABLE, f"nothing answers ({_cause(error)}); does it run?"
            ) from error
        except PrometheusApiClientException as error:
            raise self._no_prometheus(str(error)[:200]) from error
        if not isinstance(found, list):
            raise self._no_prometheus("data.result is not a list")
        return found

    def _series(self, row: Any, after_s: float) -> SampleSeries:
        try:
            labels = dict(row["metric"])
            name = labels.pop("__name__")
            at_s = np.array([float(pair[0]) for pair in row["values"]])
            values = np.array([float(pair[1]) for pair in row["values"]])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise self._no_prometheus("a series has no name, labels or samples") from error
        # Servers before 3.0 include the border.
        start = int(np.searchsorted(at_s, after_s, side="right"))
        replica = labels.get(self._config.replica_label, "")
        return SampleSeries(name, labels, replica, at_s[start:], values[start:])

    def _check(self, response: requests.Response) -> None:
        """Raises for a status that is no success."""
        status = response.status_code
        if status < 400:
            return
        reason = reason_of_status(status)
        said = _said(response)
        if status == 503 and "timed out" in said:
            reason = FaultReason.TIMED_OUT
        sentence = f"answered {status}{f' ({said})' if said else ''}"
        move = _NEXT_MOVE.get(reason)
        raise self._error(reason, f"{sentence}; {move}" if move else sentence)

    def _no_prometheus(self, what: str) -> FaultError:
        move = _NEXT_MOVE[FaultReason.BAD_ANSWER]
        return self._error(FaultReason.BAD_ANSWER, f"{what}; {move}")

    def _error(self, reason: FaultReason, what: str) -> FaultError:
        return FaultError(Fault(self.name, reason, f"prometheus {self._config.url}: {what}"))


def selecting(names: Collection[str], selector: Mapping[str, str]) -> str:
    """A PromQL selector of series with one of the names and all the labels.

    Raises:
        ConfigError: a metric or label name that PromQL does not know.
    """
    for name in names:
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{name!r} is no metric name; expected letters, digits, _ and :")
    for label in selector:
        if not _LABEL.fullmatch(label):
            raise ConfigError(f"{label!r} is no label name; expected letters, digits and _")
    matchers = [f'__name__=~"{"|".join(sorted(names))}"']
    matchers += [f'{label}="{escaped(value)}"' for label, value in selector.items()]
    return "{" + ", ".join(matchers) + "}"


def escaped(value: str) -> str:
    """A string as it stands between the double quotes of PromQL."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


class _Bearer(AuthBase):
    """Sends the token of a file, read anew each time: mounted tokens rotate."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        try:
            token = Path(self._path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise FaultError(
                Fault(
                    "prometheus",
                    FaultReason.UNAUTHORIZED,
                    f"prometheus.token_file {self._path} cannot be read ({type(error).__name__}); "
                    "mount the token there",
                )
            ) from error
        request.headers["Authorization"] = f"Bearer {token}"
        return request


class _DeadlineSession(requests.Session):
    """A session whose answers are whole by a deadline, or not at all.

    The time-out of `requests` is for each wait on the socket: a server that trickles would hold a
    tick for ever.

    Args:
        check: raises for an answer that is none.
    """

    def __init__(self, check: Callable[[requests.Response], None]) -> None:
        super().__init__()
        self.deadline_s = 0.0
        """On the monotonic clock; set before each request."""
        self._check = check

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        response = super().send(request, **{**kwargs, "stream": True})
        pieces: list[bytes] = []
        length = 0
        try:
            while piece := response.raw.read1(PIECE_BYTES, decode_content=True):
                pieces.append(piece)
                length += len(piece)
                if length > MOST_BYTES:
                    raise requests.RequestException(f"the answer is longer than {MOST_BYTES} bytes")
                if time.monotonic() > self.deadline_s:
                    raise requests.ReadTimeout("the answer trickles")
        except HTTPError as error:
            response.close()
            timed_out = "timed out" in str(error)
            kind = requests.ReadTimeout if timed_out else requests.ConnectionError
            raise kind(str(error)) from error
        except requests.RequestException:
            response.close()
            raise
        response.raw.release_conn()
        response.raw = BytesIO(b"".join(pieces))
        self._check(response)
        return response


def _said(response: requests.Response) -> str:
    """The `error` of a Prometheus answer in short; nothing where it is something else."""
    try:
        found = response.json()
        return str(found.get("error", ""))[:200] if isinstance(found, dict) else ""
    except requests.exceptions.JSONDecodeError:
        return ""


def _cause(error: BaseException) -> str:
    """The innermost reason of a connection error, which carries the words of the system."""
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__ or error
    return str(error)[:120] or type(error).__name__
