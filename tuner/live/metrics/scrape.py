"""Samples straight from metrics pages, for users without Prometheus.

Each look reads every page once and keeps what it said for the length of the window, so that from
the second look on there are rates. Only the wanted names are kept. A page that cannot be read is a
fault of that replica and takes nothing from the others.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict, deque
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import httpx
import numpy as np

from tuner.config import ScrapeConfig
from tuner.core.faults import Fault, FaultError, FaultReason
from tuner.core.http_status import reason_of_status
from tuner.core.observation import ReplicaState
from tuner.core.protocols import FloatArray
from tuner.engines.tls import trusted_roots
from tuner.live.metrics.samples import SampleSeries
from tuner.live.pool import Member

BATCH_TIMEOUTS = 2.0
"""A look ends after so many page time-outs, however many pages hang: those that were never asked
are asked first the next time."""

MOST_BYTES = 16 * 2**20
"""A longer page is refused; an engine's has some 50 kB."""

MOST_LINES_KNOWN = 100_000
"""Lines that the parser remembers before it starts afresh."""

READ_STATES = (ReplicaState.READY, ReplicaState.DRAINING)
"""Replicas that serve; the others need not have a page."""

Key = tuple[str, tuple[tuple[str, str], ...]]
"""Name and labels of a sample."""

_LINE = re.compile(
    r"(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)"
    r'(?:\{(?P<labels>(?:[^"}]|"(?:[^"\\]|\\.)*")*)\})?'
    r"[ \t]+(?P<value>[^ \t]+)(?P<time>[ \t]+-?[0-9]+)?[ \t]*"
)
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(r'\\([\\"n])')


@dataclass(frozen=True, eq=False)
class Page:
    """The wanted samples of one page at one moment."""

    keys: tuple[Key, ...]
    values: FloatArray
    """`(keys,)`."""


class PageParser:
    """Reads the wanted samples off pages in Prometheus' text format.

    The lines of a page stay the same from look to look, but for the value at their end: each line
    is understood once and found again after that. For 200 pages of vLLM that takes 25 ms of CPU;
    the client library's parser, which builds every sample of the page, takes 1.6 s.
    (Format: prometheus/docs/instrumenting/exposition_formats.md.)
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = frozenset(names)
        self._known: dict[str, Key | None] = {}
        self._layouts: dict[tuple[Key, ...], tuple[Key, ...]] = {}

    def parse(self, text: str) -> Page:
        """The wanted samples, in the page's order.

        Raises:
            ValueError: a wanted sample has no number, or nothing on the page is a sample.
        """
        keys: list[Key] = []
        values: list[float] = []
        known = self._known
        for line in text.split("\n"):
            start, _, value = line.rpartition(" ")
            try:
                key = known[start]
            except KeyError:
                key, value = self._understand(line, start, value)
            if key is not None:
                keys.append(key)
                values.append(float(value))
        if not keys and not any(_LINE.fullmatch(line) for line in text.split("\n")):
            raise ValueError("it holds no samples")
        layout = tuple(keys)
        if len(self._layouts) > MOST_LINES_KNOWN // 100:
            self._layouts.clear()
        return Page(self._layouts.setdefault(layout, layout), np.array(values, dtype=np.float64))

    def _understand(self, line: str, start: str, value: str) -> tuple[Key | None, str]:
        """A line that was not met before: its key if it is wanted, and its value."""
        found = _LINE.fullmatch(line.rstrip("\r"))
        key = None
        if found is not None and found["name"] in self._names:
            labels = tuple(
                (name, _ESCAPE.sub(_unescaped, text))
                for name, text in _LABEL.findall(found["labels"] or "")
            )
            key = (found["name"], labels)
        # A line that ends with a time, or with blanks, has its value elsewhere: never remembered.
        if start and (found is None or line == f"{start} {found['value']}"):
            if len(self._known) > MOST_LINES_KNOWN:
                self._known.clear()
            self._known[start] = key
        return key, value if found is None else found["value"]


def _unescaped(found: re.Match[str]) -> str:
    return "\n" if found[1] == "n" else found[1]


class PageSource:
    """Reads pages again and again, and keeps the samples of the last window.

    Args:
        names: samples to keep.
        timeout_s: longest wait for one whole page.
        concurrency: most pages read at once.
    """

    def __init__(self, names: Collection[str], *, timeout_s: float, concurrency: int) -> None:
        self._timeout_s = timeout_s
        self._parser = PageParser(names)
        self._names = sorted(names)
        self._seen: dict[str, deque[tuple[float, Page]]] = {}
        self._late: set[str] = set()
        # No proxy from the environment: the pages are a neighbour's.
        self._client = httpx.Client(
            trust_env=False,
            timeout=timeout_s,
            verify=trusted_roots(),
            limits=httpx.Limits(max_connections=concurrency + 4, max_keepalive_connections=None),
        )
        self._workers = ThreadPoolExecutor(concurrency, thread_name_prefix="scrape")

    def look(
        self, urls: Mapping[str, str], *, at_s: float, window_s: float
    ) -> tuple[list[SampleSeries], tuple[Fault, ...]]:
        """Series of the window by replica, and what could not be read now.

        Args:
            urls: replica -> address of its page.
            at_s: time of the samples read now, later than that of the look before.
            window_s: older samples are forgotten.
        """
        faults = []
        for replica, found in self._read_all(urls).items():
            if isinstance(found, Fault):
                faults.append(found)
                continue
            pages = self._seen.setdefault(replica, deque())
            while pages and pages[-1][0] >= at_s:
                pages.pop()
            pages.append((at_s, found))
        self._forget(at_s - window_s)
        series = [one for name, pages in self._seen.items() for one in _series(name, pages)]
        return series, tuple(faults)

    def close(self) -> None:
        self._workers.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    def _read_all(self, urls: Mapping[str, str]) -> dict[str, Page | Fault]:
        """Every page or why not; who was late the last time is asked last."""
        order = sorted(urls, key=lambda name: (name in self._late, name))
        asked = {name: self._workers.submit(self._read, name, urls[name]) for name in order}
        wait(asked.values(), timeout=BATCH_TIMEOUTS * self._timeout_s)
        found = {name: self._result(name, urls[name], future) for name, future in asked.items()}
        self._late = {
            name
            for name, what in found.items()
            if isinstance(what, Fault)
            and what.reason is FaultReason.TIMED_OUT
            # Never asked is not late: it goes first the next time.
            and not asked[name].cancelled()
        }
        return found

    def _result(self, name: str, url: str, future: Future[Page | Fault]) -> Page | Fault:
        if future.done() and not future.cancelled():
            return future.result()
        never_asked = future.cancel()
        why = "was not asked: others took the time" if never_asked else "is still being read"
        return Fault(
            name or "traffic",
            FaultReason.TIMED_OUT,
            f"{url}: {why} after {BATCH_TIMEOUTS * self._timeout_s:g} s; raise "
            "scrape.concurrency, or see which replicas hang",
        )

    def _read(self, name: str, url: str) -> Page | Fault:
        def fault(reason: FaultReason, what: str) -> Fault:
            return Fault(name or "traffic", reason, f"{url}: {what}")

        try:
            text = self._fetch(url)
            page = self._parser.parse(text)
        except httpx.TimeoutException:
            return fault(FaultReason.TIMED_OUT, f"no whole page within {self._timeout_s:g} s")
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            return fault(reason_of_status(status), f"answered {status}; expected 200")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return fault(FaultReason.UNREACHABLE, f"nothing answers ({error}); does it run?")
        except ValueError as error:
            return fault(FaultReason.BAD_ANSWER, f"is no metrics page: {error}")
        if not page.keys:
            few = ", ".join(self._names[:3])
            return fault(FaultReason.NO_SERIES, f"has none of {few}, ...; is it another engine?")
        return page

    def _fetch(self, url: str) -> str:
        """The page's text, whole by the deadline."""
        deadline_s = time.monotonic() + self._timeout_s
        pieces: list[bytes] = []
        length = 0
        with self._client.stream("GET", url) as response:
            if response.status_code != httpx.codes.OK:
                raise httpx.HTTPStatusError("", request=response.request, response=response)
            for piece in response.iter_bytes():
                pieces.append(piece)
                length += len(piece)
                if length > MOST_BYTES:
                    raise ValueError(f"it is longer than {MOST_BYTES} bytes")
                if time.monotonic() > deadline_s:
                    raise httpx.ReadTimeout("the page trickles")
        return b"".join(pieces).decode("utf-8", errors="replace")

    def _forget(self, before_s: float) -> None:
        for name, pages in list(self._seen.items()):
            while pages and pages[0][0] <= before_s:
                pages.popleft()
            if not pages:
                del self._seen[name]


def _series(replica: str, pages: Sequence[tuple[float, Page]]) -> list[SampleSeries]:
    """The samples of one replica's pages, one series per name and labels."""
    layout = pages[0][1].keys
    if all(page.keys is layout for _, page in pages):
        times = np.array([at_s for at_s, _ in pages])
        values = np.ascontiguousarray(np.stack([page.values for _, page in pages]).T)
        return [
            SampleSeries(name, dict(labels), replica, times, row)
            for (name, labels), row in zip(layout, values, strict=True)
        ]
    found: dict[Key, list[tuple[float, float]]] = defaultdict(list)
    for at_s, page in pages:
        for key, value in zip(page.keys, page.values.tolist(), strict=True):
            found[key].append((at_s, value))
    return [
        SampleSeries(name, dict(labels), replica, *np.array(samples).T)
        for (name, labels), samples in found.items()
    ]


class ScrapeSource:
    """The pages of a target's own replicas.

    Args:
        config: limits.
        names: samples to keep.
        path: of the page, behind each replica's metrics address.
    """

    def __init__(self, config: ScrapeConfig, names: Collection[str], path: str) -> None:
        self._path = path
        self._pages = PageSource(names, timeout_s=config.timeout_s, concurrency=config.concurrency)
        self.missed: tuple[Fault, ...] = ()
        """Pages that the last look could not read."""

    @property
    def name(self) -> str:
        return "scrape"

    def samples(
        self, names: Collection[str], members: Sequence[Member], *, at_s: float, window_s: float
    ) -> list[SampleSeries]:
        """Series of every page seen within the window; what failed now is in `missed`.

        Raises:
            FaultError: NOT_READY where no replica serves; the first page's fault where none could
                be read within the window.
        """
        urls = {
            member.name: member.replica.page(self._path)
            for member in members
            if member.replica is not None and member.state in READ_STATES
        }
        series, self.missed = self._pages.look(urls, at_s=at_s, window_s=window_s)
        if series:
            wanted = frozenset(names)
            return [one for one in series if one.name in wanted]
        if self.missed:
            raise FaultError(self.missed[0])
        raise FaultError(
            Fault(
                self.name,
                FaultReason.NOT_READY,
                f"none of {len(members)} replicas serves, so there is no page to read",
            )
        )

    def close(self) -> None:
        self._pages.close()
