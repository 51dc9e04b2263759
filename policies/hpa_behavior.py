"""From a recommendation to a replica count: windows and rate limits of HPA v2, over n targets.

The rules of pkg/controller/podautoscaler/horizontal.go, Kubernetes 1.36.2: without `behavior`
`normalizeDesiredReplicas`, with it `normalizeDesiredReplicasWithBehaviors`. An age equal to a
window or period counts as outside: see `entries`.

**Events.** HPA remembers its own writes to `/scale`, and no one else's. Here a guardrail may narrow
a proposal before it is written, and the fallback proposes without being followed at all. So a
proposal waits in `State.write`, and the next tick records the part of it that came true: the move
of n towards it, at most the whole. Under direct control with nobody else
writing, that is HPA's own list, entry by entry.

**Forgetting.** A direction overwrites an event of its own that is older than its own longest
period, although the other direction's policies may look further back; and so do we.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np

from policies.entries import Entries, places
from policies.hpa_spec import HpaConfig, ScalingPolicy
from tuner.core.protocols import BoolArray, FloatArray


@dataclass(frozen=True)
class Layout:
    """Which numbers of a target's memory mean what."""

    recommendations: int
    """Places for recommendations."""
    ups: int
    """Places for own scale-ups; 0 without `behavior`."""
    downs: int
    """The same for scale-downs."""

    @classmethod
    def of(cls, config: HpaConfig) -> Layout:
        """Enough places for the longest window and period at one call per sync period."""
        window = max(config.up_window_s, config.down_window_s)
        if config.behavior is None:
            return cls(places(window, config.sync_period_s), 0, 0)
        ups, downs = longest(config.up_policies), longest(config.down_policies)
        return cls(
            places(window, config.sync_period_s),
            places(ups, config.sync_period_s),
            places(downs, config.sync_period_s),
        )

    @property
    def size(self) -> int:
        """Numbers per target."""
        events = 2 * (self.ups + self.downs)
        return 2 * self.recommendations + events + (3 if events else 0)

    def views(self, memory: FloatArray) -> State:
        """`memory (n, size)` as named parts that share its storage."""
        widths = (self.recommendations,) * 2 + (self.ups,) * 2 + (self.downs,) * 2
        borders = tuple(accumulate(widths, initial=0))
        parts = [memory[:, start:stop] for start, stop in pairwise(borders)]
        return State(
            recommended=Entries(parts[0], parts[1]),
            ups=Entries(parts[2], parts[3]),
            downs=Entries(parts[4], parts[5]),
            write=memory[:, borders[-1] :],
        )


def longest(policies: tuple[ScalingPolicy, ...]) -> float:
    """The longest period of these policies, s."""
    return max(policy.period_s for policy in policies)


@dataclass(frozen=True)
class State:
    """What an HPA remembers of n targets: views into the memory, written in place."""

    recommended: Entries
    """Raw recommendation of every sync in which metrics decided, and n at the first sync."""
    ups: Entries
    """Own scale-ups: replicas added."""
    downs: Entries
    """Own scale-downs: replicas removed."""
    write: FloatArray
    """`(n, 3)` the last proposal, until the next sync tells what came of it: when, from, to;
    `(n, 0)` without `behavior`."""


def seed(state: State, at_s: FloatArray, n: FloatArray) -> None:
    """The first sync that sees n begins the history with it, before any metric is read."""
    first = np.isnan(state.recommended.at_s[:, 0]) & ~np.isnan(n)
    state.recommended.at_s[first, 0] = at_s[first]
    state.recommended.value[first, 0] = n[first]


def settle(config: HpaConfig, state: State, n: FloatArray) -> None:
    """Turn the last proposal into an event, as far as n followed it."""
    if config.behavior is None:
        return
    at_s, before, asked = state.write.T.copy()
    known = ~np.isnan(n) & ~np.isnan(at_s)
    moved = n - before
    _record(state.ups, config.up_policies, known, at_s, np.minimum(moved, asked - before))
    _record(state.downs, config.down_policies, known, at_s, np.minimum(-moved, before - asked))
    state.write[known] = np.nan


def _record(
    events: Entries,
    policies: tuple[ScalingPolicy, ...],
    known: BoolArray,
    at_s: FloatArray,
    change: FloatArray,
) -> None:
    """Store events of one direction over the last outdated one, else in the first empty place."""
    rows = known & (change > 0)
    if not rows.any():
        return
    stored = ~np.isnan(events.at_s)
    outdated = stored & ~events.younger(at_s, longest(policies))
    last = outdated.shape[1] - 1 - outdated[:, ::-1].argmax(axis=1)
    place = np.where(outdated.any(axis=1), last, events.oldest())
    events.put(rows, place, at_s, change)


def proposed(
    config: HpaConfig,
    state: State,
    rows: BoolArray,
    at_s: FloatArray,
    n: FloatArray,
    to: FloatArray,
) -> None:
    """Remember what these rows ask for; where that is n, no event comes of it."""
    if config.behavior is None:
        return
    state.write[rows] = np.stack([at_s, n, to], axis=1)[rows]


def remember(state: State, rows: BoolArray, at_s: FloatArray, raw: FloatArray) -> None:
    """Record the raw recommendation of these rows over the oldest one."""
    state.recommended.add(rows, at_s, raw)


@dataclass(frozen=True)
class Paced:
    """What windows, rate limits and bounds made of recommendations for n targets."""

    stable: FloatArray
    """`(n,)` after the window alone."""
    replicas: FloatArray
    """`(n,)` to ask for."""


def normalize(
    config: HpaConfig,
    state: State,
    at_s: FloatArray,
    n: FloatArray,
    raw: FloatArray,
    low: float,
    high: float,
) -> Paced:
    """Replicas to ask for after windows, rate limits and bounds.

    Args:
        config: windows and policies.
        state: what is remembered, before this sync's recommendation is recorded.
        at_s: `(n,)` time of the sync.
        n: `(n,)` replicas in `spec.replicas`, within [low, high].
        raw: `(n,)` recommendation of the metrics.
        low: fewest replicas.
        high: most replicas.
    """
    seen = state.recommended
    highest = seen.largest(at_s, config.down_window_s, raw)
    if config.behavior is None:
        # An old high recommendation lifts n here: this window is not a clamp.
        most = np.minimum(high, np.maximum(2 * n, 4))
        return Paced(highest, np.minimum(np.maximum(highest, low), most))

    lowest = seen.smallest(at_s, config.up_window_s, raw)
    stable = np.minimum(np.maximum(n, lowest), highest)
    most = np.maximum(_up_limit(config, state, at_s, n), n)
    least = np.minimum(_down_limit(config, state, at_s, n), n)
    risen = np.minimum(stable, np.minimum(most, high))
    fallen = np.maximum(stable, np.maximum(least, low))
    return Paced(stable, np.where(stable > n, risen, np.where(stable < n, fallen, stable)))


def _up_limit(config: HpaConfig, state: State, at_s: FloatArray, n: FloatArray) -> FloatArray:
    """`(n,)` the most that the policies for scaling up allow now."""
    if config.up_select == "Disabled":
        return n
    reached = [
        start + policy.value if policy.type == "Pods" else np.ceil(start * (1 + policy.value / 100))
        for policy, start in _starts(config.up_policies, state, at_s, n)
    ]
    choose = np.maximum if config.up_select == "Max" else np.minimum
    limit: FloatArray = choose.reduce(np.stack(reached), axis=0)
    return limit


def _down_limit(config: HpaConfig, state: State, at_s: FloatArray, n: FloatArray) -> FloatArray:
    """`(n,)` the fewest that the policies for scaling down allow now."""
    if config.down_select == "Disabled":
        return n
    reached = [
        start - policy.value
        if policy.type == "Pods"
        else np.trunc(start * (1 - policy.value / 100))
        for policy, start in _starts(config.down_policies, state, at_s, n)
    ]
    # The largest change downwards is the smallest count.
    choose = np.minimum if config.down_select == "Max" else np.maximum
    limit: FloatArray = choose.reduce(np.stack(reached), axis=0)
    return limit


def _starts(
    policies: tuple[ScalingPolicy, ...], state: State, at_s: FloatArray, n: FloatArray
) -> Iterator[tuple[ScalingPolicy, FloatArray]]:
    """Each policy with the replicas, `(n,)`, at the start of its period.

    That is n without the own scale-ups of the period and with its own scale-downs put back. So
    after a scale-up a policy for scaling down reaches further than its value.
    """
    for policy in policies:
        added = state.ups.total(at_s, policy.period_s)
        yield policy, n - added + state.downs.total(at_s, policy.period_s)
