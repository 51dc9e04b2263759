"""A trace: when requests arrived and how many tokens they carried."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.core.errors import TraceError

LONGEST_S = 366 * 86_400.0
"""No trace spans more than a year: a later arrival is a clock in milliseconds, or one that counts
from somewhere else."""
MAX_TOKENS = 10_000_000
"""No request of any served model is longer; a larger count is a unit error in the recording."""


@dataclass(frozen=True)
class Gap:
    """A span in which nothing was recorded; not the same as no load."""

    start_s: float
    end_s: float

    @property
    def length_s(self) -> float:
        return self.end_s - self.start_s


@dataclass(frozen=True, eq=False)
class Trace:
    """Requests in order of arrival, as columns of one length.

    Attributes:
        arrival_s: `(requests,)` float64, seconds since the trace's start, 0..LONGEST_S,
            never falling.
        prompt_tokens: `(requests,)` int32, 1..MAX_TOKENS.
        output_tokens: `(requests,)` int32, 1..MAX_TOKENS.
        prefix_hit_tokens: prompt tokens that an endless prefix cache would hold, int32, or None.
        client_id: who sent the request, int32, or None.
        name: for reports and messages.
        header: free key-value pairs from the file (origin, licence, seed, digest).
        gaps: spans that are masked because the recording is silent in them, in order and apart.
            Arrivals keep their times; whoever scores a run leaves out the ticks that overlap a
            gap, and rates are taken over the time outside gaps. `tuner.core.gaps` finds them.

    Raises:
        TraceError: one sentence naming the first column, row and value that is wrong.
    """

    arrival_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int32]
    output_tokens: NDArray[np.int32]
    prefix_hit_tokens: NDArray[np.int32] | None = None
    client_id: NDArray[np.int32] | None = None
    name: str = "trace"
    header: Mapping[str, str] = field(default_factory=dict)
    gaps: tuple[Gap, ...] = ()

    def __post_init__(self) -> None:
        if len(self.arrival_s) == 0:
            raise TraceError(f"{self.name}: the trace holds no request; expected at least one")
        lengths = {name: len(column) for name, column in self.columns().items()}
        if len(set(lengths.values())) != 1:
            raise TraceError(f"{self.name}: columns differ in length: {lengths}")
        self._check_arrivals()
        self._check_tokens("prompt_tokens", self.prompt_tokens)
        self._check_tokens("output_tokens", self.output_tokens)
        self._check_prefix_hits()
        self._check_gaps()
        for column in self.columns().values():
            column.flags.writeable = False

    def _check_arrivals(self) -> None:
        arrival_s = self.arrival_s
        bad = np.flatnonzero(~np.isfinite(arrival_s) | (arrival_s < 0))
        if len(bad):
            row = int(bad[0])
            raise TraceError(
                f"{self.name}: arrival_s in row {row} is {arrival_s[row]}; "
                "expected seconds since the trace's start, finite and >= 0"
            )
        late = np.flatnonzero(arrival_s > LONGEST_S)
        if len(late):
            row = int(late[0])
            raise TraceError(
                f"{self.name}: arrival_s in row {row} is {arrival_s[row]:g}, more than a year "
                "after the trace's start; expected seconds since the start (milliseconds? a first "
                "row with another clock?)"
            )
        falls = np.flatnonzero(np.diff(arrival_s) < 0)
        if len(falls):
            row = int(falls[0]) + 1
            raise TraceError(
                f"{self.name}: arrival_s in row {row} is {arrival_s[row]}, before the row above "
                f"({arrival_s[row - 1]}); sort the rows by arrival_s"
            )

    def _check_tokens(self, name: str, tokens: NDArray[np.int32]) -> None:
        bad = np.flatnonzero((tokens < 1) | (tokens > MAX_TOKENS))
        if len(bad):
            row = int(bad[0])
            raise TraceError(
                f"{self.name}: {name} in row {row} is {tokens[row]}; expected 1 to {MAX_TOKENS}"
            )

    def _check_prefix_hits(self) -> None:
        hits = self.prefix_hit_tokens
        if hits is None:
            return
        bad = np.flatnonzero((hits < 0) | (hits > self.prompt_tokens))
        if len(bad):
            row = int(bad[0])
            raise TraceError(
                f"{self.name}: prefix_hit_tokens in row {row} is {hits[row]}; "
                f"expected 0 to the prompt's {self.prompt_tokens[row]} tokens"
            )

    def _check_gaps(self) -> None:
        end_s = 0.0
        for gap in self.gaps:
            if not (end_s <= gap.start_s < gap.end_s < np.inf):
                raise TraceError(
                    f"{self.name}: a gap goes from {gap.start_s} to {gap.end_s} s; "
                    "expected gaps in order, apart and of some length"
                )
            end_s = gap.end_s

    def __len__(self) -> int:
        return len(self.arrival_s)

    def columns(self) -> dict[str, NDArray[np.float64] | NDArray[np.int32]]:
        """The columns present, by name, in file order."""
        columns: dict[str, NDArray[np.float64] | NDArray[np.int32]] = {
            "arrival_s": self.arrival_s,
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
        }
        if self.prefix_hit_tokens is not None:
            columns["prefix_hit_tokens"] = self.prefix_hit_tokens
        if self.client_id is not None:
            columns["client_id"] = self.client_id
        return columns

    def take(self, rows: slice | NDArray[np.intp] | NDArray[np.bool_]) -> Trace:
        """Some of the requests, with the times they had; gaps, name and header stay.

        Raises:
            TraceError: they are none, or not in order.
        """
        columns: dict[str, Any] = {name: one[rows] for name, one in self.columns().items()}
        return replace(self, **columns)

    @property
    def last_arrival_s(self) -> float:
        """Seconds from the trace's start to its last arrival."""
        return float(self.arrival_s[-1])
