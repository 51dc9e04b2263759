"""What a fleet of k replicas misses in each tick of a load: the table that a plan is made from.

Each count runs in the simulator on pieces of the load, not on the whole of it: a fleet that is too
small for the noon would drag noon's queue through the night, and the table would never learn that
it is enough there. A piece begins with a while of load that is not counted, which fills the
replicas, and ends with one, because an answer is as slow as what comes while it is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from experiments.cells import Cells, Files
from experiments.config import RunConfig
from experiments.fanout import Progress, Watch
from experiments.job import trace_key
from experiments.oracles.runner import HOLD
from experiments.result import Floats, Ints
from experiments.run import run
from policies import RulePolicy, StaticRule
from tuner.core.profile import ServingProfile
from tuner.core.trace import Trace
from tuner.guardrails import bounds_alone
from tuner.train.digests import profile_digest

PIECE_S = 900.0
"""Load of one piece that is counted."""
LEAD_IN_S, LEAD_OUT_S = 300.0, 300.0
"""Load before and after it that is not."""
OVERTIME_S = 900.0
"""Longest time for the last answers of a piece; what takes longer is missed in all but name."""
ENOUGH = 0.2
"""A count that misses this share of what the goal allows is enough: larger ones are not tried."""
NO_BETTER = 0.0005
"""Nor are they where a count serves the goal and this share more or less than the one before: what
is left is missed by a fleet of any size."""
HOPELESS = 0.2
"""A count that serves less of a piece is too small for all of it: smaller ones are not tried."""

COUNTS = 16
"""Counts are tried in steps of a sixteenth of the fleet, at least 1; lines are drawn between."""

MISSED = "missed.json"
"""The one file of a piece's cell."""


@dataclass(frozen=True, eq=False)
class MissTable:
    """Requests missed by tick and count."""

    missed: Floats
    """`(ticks, most)` of the requests that come in a tick, never rising with the count."""
    arrivals: Floats
    """`(ticks,)` requests that come."""

    @property
    def need(self) -> Floats:
        """`(ticks,)` replicas that serve a tick as well as the largest fleet does, but for 1 %."""
        least = self.missed[:, -1] + 0.01 * self.arrivals
        counts: Floats = (self.missed <= least[:, None]).argmax(axis=1) + 1.0
        return counts


@dataclass
class _Piece:
    """A span of the load, and the counts that were tried on it."""

    trace: Trace = field(repr=False)
    """Its requests with those before and after it, times from the begin of the lead-in."""
    first: int
    """The piece's first tick."""
    ticks: int
    lead_in: int
    """Ticks of the lead-in."""
    arrivals: Floats
    """`(ticks,)` requests by tick."""
    guess: int
    """The count to begin with."""
    step: int
    """Between two counts that are tried."""
    goal: float
    tried: dict[int, Floats] = field(default_factory=dict)
    """Count -> `(ticks,)` requests that it misses."""

    def served(self, count: int) -> float:
        """Share (0-1) of the requests that a count serves."""
        return 1.0 - float(self.tried[count].sum() / self.arrivals.sum())

    def next_counts(self, most: int) -> list[int]:
        """What to try next: from the guess on up to a count that is enough and down to one that is
        hopeless."""
        if not self.tried:
            return [self.guess]
        low, high = min(self.tried), max(self.tried)
        found = []
        if high < most and not self._is_enough(high):
            found.append(min(high + self.step, most))
        if low > 1 and self.served(low) > HOPELESS:
            found.append(max(low - self.step, 1))
        return found

    def _is_enough(self, count: int) -> bool:
        served = self.served(count)
        if 1.0 - served <= ENOUGH * (1.0 - self.goal):
            return True
        before = [self.served(other) for other in self.tried if other < count]
        return served >= self.goal and bool(before) and served - max(before) < NO_BETTER

    def table(self, most: int) -> Floats:
        """`(ticks, most)`: lines between the counts tried, all requests below the smallest."""
        tried = sorted(self.tried)
        known = np.array([self.tried[count] for count in tried])
        if tried[0] > 1:
            tried, known = [0, *tried], np.vstack([self.arrivals, known])
        counts = np.arange(1, most + 1)
        return np.array([np.interp(counts, tried, column) for column in known.T])


def measure_misses(
    trace: Trace,
    profile: ServingProfile,
    config: RunConfig,
    *,
    around: int,
    goal: float,
    seed: int,
    cells: Cells,
    jobs: int,
    watch: Watch,
) -> MissTable:
    """The table of a load, from fixed fleets in the simulator.

    Args:
        trace: the load.
        profile: how fast a replica serves.
        config: objectives, router, tick, failures; the largest fleet.
        around: a fleet that is about enough for the busiest piece.
        goal: the highest attainment (0-1) that a plan will be asked for.
        seed: of jitter and scrapes.
        cells: where finished pieces are kept and found again.
        jobs: processes at once.
        watch: told how far each run is.
    """
    tick_s, most = config.tick_s, config.max_replicas
    pieces = _pieces(trace, tick_s, around, goal)
    while True:
        wanted = [(piece, count) for piece in pieces for count in piece.next_counts(most)]
        if not wanted:
            break
        tasks = [_task(piece, count, profile, config, seed) for piece, count in wanted]
        runs = cells.run(tasks, jobs, watch)
        for (piece, count), found in zip(wanted, runs, strict=True):
            piece.tried[count] = found[piece.lead_in : -1].astype(np.float64)
    missed = np.zeros((ticks_of(trace, tick_s), most))
    for piece in pieces:
        missed[piece.first : piece.first + piece.ticks] = piece.table(most)
    arrivals = by_tick(trace.arrival_s, tick_s, len(missed)).astype(np.float64)
    return MissTable(np.minimum.accumulate(missed, axis=1), arrivals)


def _pieces(trace: Trace, tick_s: float, around: int, goal: float) -> list[_Piece]:
    """The load in pieces, each with a guess of its need in proportion to its tokens."""
    length, lead_in = max(1, round(PIECE_S / tick_s)), round(LEAD_IN_S / tick_s)
    arrivals = by_tick(trace.arrival_s, tick_s, ticks_of(trace, tick_s)).astype(np.float64)
    tokens = trace.output_tokens.astype(np.float64)
    spans = range(0, len(arrivals), length)
    loads = [
        tokens[_between(trace, first * tick_s, (first + length) * tick_s)].sum() for first in spans
    ]
    pieces = []
    for first, load in zip(spans, loads, strict=True):
        own = arrivals[first : first + length]
        if not own.any():
            continue
        before = min(first, lead_in)
        from_s = (first - before) * tick_s
        rows = _between(trace, from_s, (first + length) * tick_s + LEAD_OUT_S)
        part = trace.take(rows)
        guess = max(1, round(around * load / max(loads)))
        pieces.append(
            _Piece(
                trace=replace(part, arrival_s=part.arrival_s - from_s, gaps=()),
                first=first,
                ticks=len(own),
                lead_in=before,
                arrivals=own,
                guess=guess,
                step=max(1, guess // COUNTS),
                goal=goal,
            )
        )
    return pieces


def _between(trace: Trace, from_s: float, to_s: float) -> slice:
    first, last = np.searchsorted(trace.arrival_s, [from_s, to_s])
    return slice(int(first), int(last))


@dataclass(frozen=True)
class _MissTask:
    """A fixed fleet on a piece, as a cell; gives the requests missed by tick of their arrival."""

    trace: Trace = field(repr=False)
    profile: ServingProfile = field(repr=False)
    ticks: int
    """The last one stands for all that come later, too."""
    count: int
    config: RunConfig
    seed: int
    label: str

    def __call__(self, progress: Progress) -> Files:
        result = run(
            self.trace,
            self.profile,
            RulePolicy("static", StaticRule({"replicas": self.count})),
            config=self.config,
            seed=self.seed,
            fallback=HOLD,
            guardrails=bounds_alone(),
            progress=progress,
        )
        missed = ~result.requests.met(self.config.slo)
        counts = by_tick(result.requests.arrival_s[missed], self.config.tick_s, self.ticks)
        return {MISSED: json.dumps(counts.tolist()).encode()}

    def key(self) -> Mapping[str, object]:
        return {
            "task": "misses",
            "trace": trace_key(self.trace),
            "profile": profile_digest(self.profile),
            "ticks": self.ticks,
            "count": self.count,
            "config": asdict(self.config),
            "seed": self.seed,
        }

    def unpack(self, folder: Path) -> Ints:
        counts = np.array(json.loads((folder / MISSED).read_text()), dtype=np.int64)
        if counts.shape != (self.ticks,):
            raise ValueError(f"{folder} holds {counts.shape} counts")
        return counts


def _task(
    piece: _Piece, count: int, profile: ServingProfile, config: RunConfig, seed: int
) -> _MissTask:
    return _MissTask(
        trace=piece.trace,
        profile=profile,
        ticks=piece.lead_in + piece.ticks + 1,
        count=count,
        config=replace(
            config,
            initial_replicas=count,
            overtime_s=min(config.overtime_s, OVERTIME_S),
        ),
        seed=seed,
        label=f"oracles: {count} replicas from {piece.first * config.tick_s:.0f} s",
    )


def ticks_of(trace: Trace, tick_s: float) -> int:
    """Ticks from the trace's start to its last arrival, the last one included."""
    return int(trace.last_arrival_s // tick_s) + 1


def by_tick(at_s: Floats, tick_s: float, ticks: int) -> Ints:
    """`(ticks,)` how many of these moments lie in each tick."""
    tick = np.minimum((at_s / tick_s).astype(np.int64), ticks - 1)
    return np.bincount(tick, minlength=ticks)
