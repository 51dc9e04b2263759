"""What one simulated run of one policy gives back: its requests, its ticks, its costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from tuner.core.slo import Slo

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class RequestTable:
    """Every request of the trace, in trace order, as columns of one length."""

    arrival_s: Floats
    """float64, s since the trace's start."""
    prompt_tokens: NDArray[np.int32]
    output_tokens: NDArray[np.int32]
    ttft_s: Floats
    """Time to first token, s; NaN where the request did not finish."""
    e2e_s: Floats
    """Submit to last token, s; NaN where the request did not finish."""
    tpot_s: Floats
    """Mean time per output token after the first, s/token; 0 for one output token, NaN where the
    request did not finish."""
    replica: NDArray[np.int32]
    """Number of the replica that served the request, -1 for none."""
    preemptions: NDArray[np.int32]
    """How often the request lost its place in a batch."""
    rejected: Bools
    """True where the request can never fit into a replica."""
    failed: Bools
    """True where its replica was killed under the request: a crash, or its time to drain was up."""

    def __post_init__(self) -> None:
        _check_lengths(self)

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def finished(self) -> Bools:
        return ~np.isnan(self.e2e_s)

    def met(self, slo: Slo) -> Bools:
        """Which requests met every objective; unfinished, rejected and failed ones miss."""
        return slo.met(self.ttft_s, self.tpot_s)


@dataclass(frozen=True, eq=False)
class TickTable:
    """Every control tick, in order, as columns of one length; NaN where not measured.

    What the policy saw, and what was decided and done. Rates and percentiles are those of the
    scrapes within `window_s` before the tick.
    """

    at_s: Floats
    window_s: Floats
    qps: Floats
    prompt_tokens_per_s: Floats
    output_tokens_per_s: Floats
    ttft_p50_s: Floats
    ttft_p95_s: Floats
    ttft_p99_s: Floats
    tpot_p50_s: Floats
    tpot_p99_s: Floats
    queue_depth: Floats
    running: Floats
    kv_cache_usage: Floats
    gpu_util: Floats
    wanted_replicas: Floats
    """Replicas in the decision's target, after the guardrails."""
    ready_replicas: Floats
    starting_replicas: Floats
    draining_replicas: Floats
    batch_size: Floats
    """Settings of the decision's target, as the three below."""
    threads: Floats
    warmup_requests: Floats
    met: Ints
    """Requests that ended since the tick before and met every objective."""
    missed: Ints
    """Requests that came to miss one since the tick before, rejected and failed ones too."""
    finished: Ints
    """Requests that gave their last token since the tick before."""
    source: tuple[str, ...]
    """Who decided: policy, fallback or hold."""
    clamped: Bools
    """A limit changed what was wanted."""
    tripped: Bools
    """A trip handed over to the fallback."""
    sentence: tuple[str, ...]
    """The decision in one line."""

    def __post_init__(self) -> None:
        _check_lengths(self)

    def __len__(self) -> int:
        return len(self.at_s)

    @property
    def length_s(self) -> Floats:
        """`(ticks,)` s since the tick before, or since the beginning of the trace's clock."""
        return np.diff(self.at_s, prepend=0.0)

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, object]]) -> TickTable:
        """The table of these rows; each holds every column by name, None where not measured.

        Raises:
            KeyError: a row lacks a column.
        """
        rows = list(rows)
        columns: dict[str, object] = {}
        for field in fields(cls):
            values = [row[field.name] for row in rows]
            if field.name in _TEXT:
                columns[field.name] = tuple(str(value) for value in values)
            elif field.name in _FLAGS:
                columns[field.name] = np.array(values, dtype=np.bool_)
            elif field.name in _COUNTS:
                columns[field.name] = np.array(values, dtype=np.int64)
            else:
                # numpy turns None into NaN when asked for floats.
                columns[field.name] = np.array(values, dtype=np.float64)
        # Each column has its field's type by the branches above, which mypy cannot follow.
        return cls(**columns)  # type: ignore[arg-type]


_TEXT = frozenset({"source", "sentence"})
_FLAGS = frozenset({"clamped", "tripped"})
_COUNTS = frozenset({"met", "missed", "finished"})


@dataclass(frozen=True, eq=False)
class RunResult:
    """One policy on one trace with one seed."""

    policy: str
    seed: int
    requests: RequestTable
    ticks: TickTable
    replica_hours: float
    """Replicas held x time to the last arrival, ready or not."""
    gpu_hours: float
    """The same in GPUs."""
    span_s: float
    """Seconds from the trace's start to its last arrival."""
    actions: int
    """Ticks in which a knob moved."""
    clamps: int
    """Ticks in which a limit changed what was wanted."""
    trips: int
    """Ticks in which a trip handed over to the fallback."""
    pinned: Mapping[str, str]
    """Knob that the run could not move -> why."""
    settings: Mapping[str, object]
    """Parameters of the policy."""


def _check_lengths(table: RequestTable | TickTable) -> None:
    lengths = {field.name: len(getattr(table, field.name)) for field in fields(table)}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns of {type(table).__name__} differ in length: {lengths}")
