"""The clairvoyant: replicas over time for a load that is known, and the rule that follows them.

No policy for a live fleet: it needs tomorrow's load, so it has no line in POLICIES and no options.
A comparison uses it to bound what any policy could have saved.

The full problem has a large state: replicas that serve, and one batch of starting replicas for each
tick of a cold start. It is not needed. Let k(t) be the replicas that serve in tick t, d a cold
start in ticks, and let a larger fleet never miss more requests. Then:

- A replica that begins to serve in tick t was ordered in tick t - d, and is paid from then on:
  d replica-ticks more than its time of service. Nothing is gained by ordering earlier, or by
  ordering what is taken back before it serves.
- A replica is dropped at once, and paid while it finishes what it has: a fixed number of
  replica-ticks in the mean.

So k alone determines the cost, and the cheapest k is a shortest path over (tick, count) whose steps
cost d per replica up and the drain per replica down. One thing the path may do and a cluster may
not: drop a replica while another one starts (a cluster takes the starting one back). No cheapest
path needs it: where k falls and rises again within d ticks, keeping the replica through the dip
costs at most d replica-ticks, which is what the new start costs. The settings of a plan have such
dips filled. All of this is exact; a test compares it with a search over the full state.

A cold start of random length is known in distribution, not in its draws. d is then its shortest
length, and of a replica ordered d ticks ahead a share is absent in the mean: not there yet, or
still slow. Ordering earlier is a step up in an earlier tick, so the path itself weighs what waiting
costs against the requests that are missed until the replica is there, as in the newsvendor's
problem (Arrow, Harris, Marschak, Econometrica 19(3), 1951). Misses of a fleet that is partly absent
are taken from the line between those of the old and the new count; each further replica saves less
than the one before, so that the line lies above the mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policies.rule import RuleResult
from tuner.core.observation import ObservationArrays
from tuner.core.protocols import FloatArray

Counts = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Start:
    """How long a replica takes from its order to its service."""

    ticks: int
    """The shortest start, >= 0."""
    absent: FloatArray
    """`(ticks,)` share (0-1) of a replica's service that is missing in the mean so many ticks after
    the shortest start; nothing after the last."""

    @classmethod
    def after(cls, ticks: int) -> Start:
        """Every start takes exactly so long."""
        return cls(ticks, np.zeros(0))


@dataclass(frozen=True, eq=False)
class Plan:
    """Replicas over time."""

    serving: Counts
    """`(ticks,)` replicas counted on to serve."""
    wanted: Counts
    """`(ticks,)` replicas to ask for: those and the ones that start."""


def cheapest_plan(
    misses: FloatArray, start: Start, *, price: float, first: int, drain: float = 0.0
) -> Plan:
    """The plan of least cost with the whole load known.

    Cost, in replica-ticks: replicas that serve + the shortest start for each one more than in the
    tick before + `drain` for each one less + `price` x requests missed. Tick 0 is given, and the
    first order can be made in tick 1.

    Args:
        misses: `(ticks, most)` requests that come in a tick and miss an objective if 1..most
            replicas serve; never rising with the count.
        start: the cold start.
        price: replica-ticks that one missed request is worth, >= 0.
        first: replicas that serve in tick 0, 1..most.
        drain: ticks that a dropped replica is paid for while it finishes what it has, >= 0.

    Raises:
        ValueError: a larger fleet misses more, or `first` is outside of the table.
    """
    ticks, most = misses.shape
    if not 1 <= first <= most:
        raise ValueError(f"first is {first}; expected 1 to {most}")
    if np.any(np.diff(misses, axis=1) > 0):
        raise ValueError("misses rise with the count; expected a larger fleet to miss no more")
    counts = np.arange(1, most + 1)
    held = counts + price * misses
    # A step from one count to another costs the difference of these at the two.
    up = start.ticks * counts - price * _while_absent(misses, start.absent)
    down = drain * counts
    cost = np.where(counts == first, held[0], np.inf)
    came_from = np.zeros((ticks, most), dtype=np.int64)
    for tick in range(1, ticks):
        shrunk, source = _least_so_far((cost + down)[::-1])
        best, came_from[tick] = shrunk[::-1] - down, most - 1 - source[::-1]
        if tick > start.ticks:
            grown, source = _least_so_far(cost - up[tick])
            grown += up[tick]
            came_from[tick] = np.where(grown < best, source, came_from[tick])
            best = np.minimum(grown, best)
        cost = best + held[tick]
    serving = np.empty(ticks, dtype=np.int64)
    place = int(cost.argmin())
    for tick in range(ticks - 1, -1, -1):
        serving[tick] = place + 1
        place = int(came_from[tick, place])
    return Plan(serving, _wanted(serving, start.ticks))


def _while_absent(misses: FloatArray, absent: FloatArray) -> FloatArray:
    """`(ticks, most)` requests missed from a tick on, weighted by the share that is absent then."""
    ticks = len(misses)
    found = np.zeros_like(misses)
    for after, share in enumerate(absent[:ticks].tolist()):
        found[: ticks - after] += share * misses[after:]
    return found


def _least_so_far(values: FloatArray) -> tuple[FloatArray, Counts]:
    """`(most,)` the least value up to each place, and the last place that holds it."""
    least = np.minimum.accumulate(values)
    places = np.where(values == least, np.arange(len(values)), 0)
    return least, np.maximum.accumulate(places)


def _wanted(serving: Counts, ahead: int) -> Counts:
    """`(ticks,)` the largest count within the next `ahead` ticks: what serves or starts."""
    last = np.full(ahead, serving[-1])
    windows = np.lib.stride_tricks.sliding_window_view(np.concatenate([serving, last]), ahead + 1)
    wanted: Counts = windows.max(axis=1)
    return wanted


@dataclass(frozen=True, eq=False)
class PlanRule:
    """Replicas by time and nothing else, for n targets on one clock; after its end the last count.

    `need` is NaN: it does not look at the load.
    """

    wanted: Counts
    """`(ticks,)` replicas wanted from each tick on."""
    tick_s: float
    """Seconds between two of them; the first is at 0 s."""

    @property
    def memory_size(self) -> int:
        return 0

    def decide(self, now: ObservationArrays, memory: FloatArray) -> RuleResult:
        # A clock that adds up ticks may come to lie a rounding error before the border.
        tick = np.floor(now.at_s / self.tick_s + 1e-6).astype(np.int64)
        wanted = self.wanted[np.clip(tick, 0, len(self.wanted) - 1)].astype(np.float64)
        settings = np.full((len(wanted), len(now.knobs.names)), np.nan)
        settings[:, now.knobs.column("replicas")] = wanted

        def why(row: int) -> str:
            return f"planned with the whole load known: {wanted[row]:.0f} replicas now"

        return RuleResult(settings, wanted, np.full(len(wanted), np.nan), memory, why)
