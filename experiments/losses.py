"""Where a policy lost: the ten minutes in which it missed the most, and why.

All of it is read from the ticks of one run: what arrived, what was ready, what was starting, what
waited, and what was decided. It names what came together in those minutes; that one of them alone
was the cause is for the reader to judge.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from experiments.best import ranked
from experiments.comparison import Comparison
from experiments.eligible import BOUNDS
from experiments.readable import clock, duration, percent
from experiments.result import Floats, TickTable
from tuner.core.slo import Slo

WINDOW_S = 600.0
LOOKBACK_S = 900.0
"""How long before the worst minutes their cause is looked for: a cold start and a scale-up."""
SMOOTHED_S = 60.0
"""Load is averaged over as much before it is said to have risen."""
ROSE = 1.2
"""Least ratio of load that is called a rise."""
KV_FULL = 0.95
"""KV-cache usage (0-1) from which a replica has no room for another request."""
DECISIONS = 3
"""Decisions quoted."""
_QUOTED = 180
"""Characters quoted of a decision."""


@dataclass(frozen=True)
class Loss:
    """The worst minutes of one run."""

    policy: str
    from_s: float
    to_s: float
    missed: int
    """Requests that came to miss an objective in them."""
    share: float
    """Of all that the run missed (0-1)."""
    why: str
    """What came together, in a sentence or two."""
    decisions: tuple[tuple[str, str], ...]
    """When, and what was decided, in the policy's words."""

    @property
    def span(self) -> str:
        return f"{clock(self.from_s)} to {clock(self.to_s)}"


def losses(comparison: Comparison) -> list[Loss]:
    """The worst minutes of each policy's first run, the best policy first; none without a miss."""
    run = comparison.config.run
    found = []
    for outcome in ranked(comparison):
        ticks = outcome.runs[0].ticks
        if outcome.name not in BOUNDS and ticks is not None and int(ticks.missed.sum()):
            found.append(worst(outcome.name, ticks, run.slo, run.max_replicas))
    return found


def worst(policy: str, ticks: TickTable, slo: Slo, max_replicas: int) -> Loss:
    """The window of WINDOW_S in which most requests came to miss, and what came together in it."""
    start_s = ticks.at_s - ticks.length_s
    total = np.concatenate([[0], np.cumsum(ticks.missed)])
    # A window from each tick's start: the ticks that end inside it.
    last = np.searchsorted(ticks.at_s, start_s + WINDOW_S + 1e-6, side="right")
    first = int(np.argmax(total[last] - total[: len(ticks)]))
    rows = slice(first, int(last[first]))
    from_s = float(start_s[first])
    missed = int(ticks.missed[rows].sum())
    scene = _Scene(ticks, first, int(last[first]), slo, max_replicas)
    return Loss(
        policy=policy,
        from_s=from_s,
        to_s=min(from_s + WINDOW_S, float(ticks.at_s[-1])),
        missed=missed,
        share=missed / int(ticks.missed.sum()),
        why=scene.sentence(),
        decisions=scene.decisions(),
    )


@dataclass(frozen=True, eq=False)
class _Scene:
    """The worst minutes and what led to them."""

    ticks: TickTable
    first: int
    """First tick of the window."""
    end: int
    """One behind its last tick."""
    slo: Slo
    max_replicas: int

    @property
    def _before(self) -> int:
        """First tick of the look-back."""
        at_s = self.ticks.at_s
        return int(np.searchsorted(at_s, at_s[self.first] - LOOKBACK_S))

    def sentence(self) -> str:
        load, capacity = self._load(), self._capacity()
        parts = [*([load] if load else []), capacity, *self._trouble()]
        text = "; ".join(parts)
        return f"{text[0].upper()}{text[1:]}."

    def decisions(self) -> tuple[tuple[str, str], ...]:
        """The first that moved something, and the first that asked for the most; where none moved
        anything, that of the worst tick."""
        ticks = self.ticks
        moved = [
            place
            for place in range(self._before, self.end)
            if not ticks.sentence[place].startswith("no change")
        ]
        if not moved:
            moved = [self.first + int(np.argmax(ticks.missed[self.first : self.end]))]
        # The last before the window led into it; the first inside it are the answer to it.
        led = [place for place in moved if place < self.first][-1:]
        quoted = (led + [place for place in moved if place >= self.first])[:DECISIONS]
        # Who reads that so many were starting looks for the decision that asked for them.
        wanted = ticks.wanted_replicas[self._before : self.end]
        if np.isfinite(wanted).any():
            most = self._before + int(np.nanargmax(wanted))
            if most in moved and most not in quoted:
                quoted = sorted([*quoted[: DECISIONS - 1], most])
        return tuple(
            (clock(float(ticks.at_s[place])), _cut(ticks.sentence[place])) for place in quoted
        )

    def _load(self) -> str:
        """The rise of requests, or of prompt tokens where those rose much more."""
        found = [
            rise
            for rise in (
                self._rise(self.ticks.qps, "requests/s"),
                self._rise(self.ticks.prompt_tokens_per_s, "prompt tokens/s"),
            )
            if rise is not None
        ]
        if not found:
            seen = np.isfinite(self.ticks.qps[self._before : self.end]).any()
            return "the load had not risen" if seen else "the load was not measured"
        requests = found[0]
        steepest = max(found, key=lambda rise: rise.ratio)
        rise = steepest if steepest.ratio > 1.3 * requests.ratio else requests
        if rise.ratio < ROSE:
            return (
                f"the load had hardly risen ({_rate(rise.low)} to {_rate(rise.high)} {rise.unit} "
                f"in {duration(rise.within_s)})"
            )
        return (
            f"load rose from {_rate(rise.low)} to {_rate(rise.high)} {rise.unit} "
            f"in {duration(rise.within_s)}"
        )

    def _rise(self, values: Floats, unit: str) -> _Rise | None:
        """From the lowest to the highest after it, in look-back and window."""
        ticks = self.ticks
        smooth = _smoothed(values, ticks.at_s)[self._before : self.end]
        at_s = ticks.at_s[self._before : self.end]
        known = np.isfinite(smooth)
        smooth, at_s = smooth[known], at_s[known]
        if len(smooth) < 2:
            return None
        high = int(np.argmax(smooth))
        low = int(np.argmin(smooth[: high + 1]))
        if high == low or smooth[low] <= 0:
            return None
        within_s = float(at_s[high] - at_s[low])
        return _Rise(float(smooth[low]), float(smooth[high]), unit, within_s)

    def _capacity(self) -> str:
        """Who served at its beginning, who was on the way, and what was asked for."""
        ticks, rows = self.ticks, slice(self.first, self.end)
        ready = ticks.ready_replicas
        had = float(ready[self.first])
        if not np.isfinite(had):
            return "how many replicas were ready was not measured"
        wanted = _highest(ticks.wanted_replicas[rows]) or 0.0
        starting = _highest(ticks.starting_replicas[rows]) or 0.0
        said = f"{_replicas(had)} ready"
        peak = _highest(ready[self._before : self.first + 1])
        if peak is not None and peak > had:
            said += f", down from {peak:.0f} in the {duration(LOOKBACK_S)} before"
        if starting > 0:
            came = np.flatnonzero(ready[self.first :] > had)
            said += f", {starting:.0f} starting"
            if len(came):
                later_s = float(ticks.at_s[self.first + came[0]] - ticks.at_s[self.first])
                which = "which was" if starting == 1 else "the first of which was"
                said += f", {which} ready {duration(later_s)} later"
            else:
                said += ", none of which came to serve"
        elif wanted <= had:
            said += ", and no more were asked for"
        else:
            said += f", {wanted:.0f} asked for"
        if wanted >= self.max_replicas:
            said += f" (run.max_replicas allows {self.max_replicas})"
        return said

    def _trouble(self) -> Iterator[str]:
        """Queue, latency, memory and guardrails in those minutes."""
        ticks, rows = self.ticks, slice(self.first, self.end)
        queue = _highest(ticks.queue_depth[rows])
        if queue is not None and queue >= 1:
            yield f"up to {queue:,.0f} requests waited"
        ttft, tpot = _highest(ticks.ttft_p99_s[rows]), _highest(ticks.tpot_p99_s[rows])
        if ttft is not None and ttft > self.slo.ttft_s:
            yield f"TTFT p99 reached {duration(ttft)} (objective {self.slo.ttft_s:g} s)"
        if tpot is not None and tpot > self.slo.tpot_s:
            yield f"TPOT p99 reached {1000 * tpot:.0f} ms (objective {1000 * self.slo.tpot_s:g} ms)"
        kv = _highest(ticks.kv_cache_usage[rows])
        if kv is not None and kv >= KV_FULL:
            yield f"the KV cache was {percent(kv, 0)} full"
        tripped = int(ticks.tripped[rows].sum())
        if tripped:
            yield f"a guardrail handed over to the fallback in {tripped} ticks"


@dataclass(frozen=True)
class _Rise:
    low: float
    high: float
    unit: str
    within_s: float

    @property
    def ratio(self) -> float:
        return self.high / self.low


def _smoothed(values: Floats, at_s: Floats) -> Floats:
    """Means over the SMOOTHED_S up to each tick; NaN where nothing was measured in them."""
    known = np.isfinite(values)
    total = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    count = np.concatenate([[0], np.cumsum(known)])
    first = np.searchsorted(at_s, at_s - SMOOTHED_S, side="right")
    last = np.arange(1, len(values) + 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        smooth: Floats = (total[last] - total[first]) / (count[last] - count[first])
    return smooth


def _highest(values: Floats) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.max()) if len(known) else None


def _replicas(count: float) -> str:
    return f"{count:.0f} replica{' was' if count == 1 else 's were'}"


def _rate(value: float) -> str:
    """To three digits, whole from a hundred on."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _cut(sentence: str) -> str:
    return sentence if len(sentence) <= _QUOTED else f"{sentence[: _QUOTED - 1]}…"
