"""What a tick on a live target brought, estimated from its observations: for `ServingEnv`.

A simulated cluster knows what became of each request. A live one shows rates and percentiles over a
window, so its outcome is an estimate, for evaluation and not for learning:

- rates of the window stand for the time since the last look;
- finished requests are arrivals less the growth of what is inside, less failures;
- the share that met an objective is read off the percentiles, linear between them. The shares that
  missed TTFT and TPOT are added, since nothing says how far they overlap: misses are overstated by
  at most the smaller share, and never understated by the join.

What was not measured is NaN, and so is the reward then.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from envs.reward import Outcome
from tuner.core.decision import Decision, Receipt
from tuner.core.observation import Observation
from tuner.core.protocols import Cluster, FloatArray
from tuner.core.slo import Slo

Percentile = tuple[float, float | None]
"""Share of requests (0-1), and the value that so many stay within; None where not measured."""


class Scored:
    """A cluster that also tells what its last window brought.

    Args:
        cluster: live, or any other.
        slo: the objectives.
    """

    def __init__(self, cluster: Cluster, slo: Slo) -> None:
        self._cluster = cluster
        self._slo = slo
        self._last: Observation | None = None
        self.outcome: Outcome | None = None
        """Of the time between the last two looks; None before the first."""

    def observe(self) -> Observation:
        observation = self._cluster.observe()
        self.outcome = outcome_of(observation, self._last, self._slo)
        self._last = observation
        return observation

    def apply(self, decision: Decision) -> Receipt:
        return self._cluster.apply(decision)


def outcome_of(now: Observation, before: Observation | None, slo: Slo) -> Outcome:
    """The estimate for the time from `before` to `now`; without `before`, for the window.

    Returns:
        `(1,)` columns, NaN where something was not measured.
    """
    elapsed_s = now.window_s if before is None else now.at_s - before.at_s
    arrivals = _number(now.qps) * elapsed_s
    grown = 0.0 if before is None else _inside(now) - _inside(before)
    # numpy's minimum and maximum pass NaN on, Python's do not.
    ended = float(np.maximum(0.0, arrivals - grown))
    failed = ended * (0.0 if now.error_rate is None else now.error_rate)
    finished = ended - failed
    ttft = ((0.5, now.ttft_p50_s), (0.95, now.ttft_p95_s), (0.99, now.ttft_p99_s))
    tpot = ((0.5, now.tpot_p50_s), (0.99, now.tpot_p99_s))
    shares = share_above(ttft, slo.ttft_s) + share_above(tpot, slo.tpot_s)
    late = finished * float(np.minimum(1.0, shares)) if finished > 0 else finished
    return Outcome(
        arrivals=_column(arrivals),
        finished=_column(finished),
        met=_column(finished - late),
        missed=_column(late + failed),
        replica_s=_column(_held(now) * elapsed_s),
        business=_column(_number(now.business)),
    )


def share_above(percentiles: Sequence[Percentile], objective: float) -> float:
    """Share (0-1) of requests above an objective, linear between the known percentiles.

    Beyond the last percentile nothing is known, and requests count as within: with p99 measured,
    at most one request in a hundred is overlooked.

    Args:
        percentiles: shares rising.
        objective: in the unit of the values.

    Returns:
        NaN without any percentile.
    """
    known = [(share, value) for share, value in percentiles if value is not None]
    if not known:
        return float("nan")
    if objective >= known[-1][1]:
        return 0.0
    shares = [0.0, *(share for share, _ in known)]
    values = [0.0, *(value for _, value in known)]
    return 1.0 - float(np.interp(objective, values, shares))


def _inside(observation: Observation) -> float:
    """Requests inside, by whoever sees them best: the client side, or else the engines."""
    if observation.in_flight is not None:
        return observation.in_flight
    return _number(observation.running) + _number(observation.queue_depth)


def _held(observation: Observation) -> float:
    return _number(observation.status_replicas) + _number(observation.draining_replicas)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _column(value: float) -> FloatArray:
    return np.array([value], dtype=np.float64)
