"""From measurements to a proposal of replicas: the metric arithmetic of HPA v2, over n targets.

The rules of pkg/controller/podautoscaler/replica_calculator.go, metrics/utilization.go and
`computeReplicasForMetrics` in horizontal.go, Kubernetes 1.36.2.

How a replica looks to HPA:

| replica | pod phase | Pods metric | ready for a Value target |
| --- | --- | --- | --- |
| pending | Pending | unready | no |
| starting | Running, not ready | counts when it has a sample, else missing | no |
| warming | Running, not ready | counts when it has a sample, else missing | no |
| ready | Running, ready | counts when it has a sample, else missing | yes |
| draining | Running, being deleted | left out | yes, its readiness probe still answers |

Readiness matters to HPA only for CPU: with any other metric a running pod that reports is capacity,
ready or not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from policies.hpa_spec import HpaConfig, MetricSpec
from tuner.core.observation import (
    REPLICA_FIELDS,
    REPLICA_STATES,
    ObservationArrays,
    ReplicaState,
)
from tuner.core.protocols import BoolArray, FloatArray, IntArray

MILLI = 1000.0
"""HPA counts in thousandths."""
NANO_OF_MILLI = 6
"""Digits of a milli-unit that exist: a quantity has no finer step than 1e-9 of its unit. Beyond
them a float holds only the error of its own decimal fraction (16.1 * 1000 = 16100.000000000002)."""

_PENDING = REPLICA_STATES.index(ReplicaState.PENDING)
_DRAINING = REPLICA_STATES.index(ReplicaState.DRAINING)


@dataclass(frozen=True)
class MetricAnswer:
    """What one metric says about n targets, and of what numbers."""

    desired: FloatArray
    """`(n,)` proposed replicas, whole; NaN where the metric gives an error."""
    need: FloatArray
    """`(n,)` the number that was rounded up, or would have been outside the tolerance."""
    stays: BoolArray
    """`(n,)` where the tolerance, or a guess about unseen pods, kept the count as it is."""
    usage: FloatArray
    """`(n,)` thousandths of the metric's unit: of the fleet; Pods: mean of those that report."""
    over: FloatArray
    """`(n,)` replicas that the usage is held against: existing, ready or reporting ones."""
    guessed: IntArray
    """`(n,)` pods whose usage was guessed; 0 for all but Pods metrics."""


@dataclass(frozen=True)
class Evaluation:
    """What all metrics together say about n targets."""

    desired: FloatArray
    """`(n,)` proposed replicas, whole; NaN where HPA reports an error."""
    need: FloatArray
    """`(n,)` the largest need of any metric."""
    answers: tuple[MetricAnswer, ...]
    """One per metric, in the order of the configuration."""


def milli(values: FloatArray) -> FloatArray:
    """Thousandths, rounded up to whole ones; NaN where `values` is not finite."""
    finite = np.where(np.isfinite(values), values, np.nan)
    return np.ceil(np.round(finite * MILLI, NANO_OF_MILLI))


def measured(metric: MetricSpec, now: ObservationArrays) -> FloatArray:
    """`(n,)` an External or Object metric in its own unit; NaN where a field of it is missing."""
    value: FloatArray = np.sum([now.column(name) for name in metric.fields], axis=0)
    return value


def evaluate(config: HpaConfig, now: ObservationArrays, n: FloatArray) -> Evaluation:
    """The largest valid proposal, NaN where HPA reports an error and keeps n.

    That is where no metric is valid, and where one is invalid and the others would scale down: a
    broken metric forbids scale-down, not scale-up.

    Args:
        config: metrics and tolerances.
        now: what was observed.
        n: `(n,)` replicas in `spec.replicas`.
    """
    answers = tuple(_answer(metric, config, now, n) for metric in config.metrics)
    desired = np.stack([answer.desired for answer in answers])
    largest = np.fmax.reduce(desired, axis=0)
    broken = np.isnan(desired)
    error = broken.all(axis=0) | (broken.any(axis=0) & (largest < n))
    return Evaluation(
        desired=np.where(error, np.nan, np.maximum(largest, 0.0)),
        need=np.fmax.reduce(np.stack([answer.need for answer in answers]), axis=0),
        answers=answers,
    )


def _answer(
    metric: MetricSpec, config: HpaConfig, now: ObservationArrays, n: FloatArray
) -> MetricAnswer:
    target = float(milli(np.array(metric.target)))
    if metric.type == "Pods":
        return _pods(metric.name, target, config, now, n)
    usage = milli(measured(metric, now))
    if metric.target_type == "Value":
        return _value(usage, target, config, now, n)
    return _average_value(usage, target, config, now, n)


def _average_value(
    usage: FloatArray, target: float, config: HpaConfig, now: ObservationArrays, n: FloatArray
) -> MetricAnswer:
    """External or Object metric against a target per replica: ceil(usage / target).

    The tolerance looks at the replicas that exist (`status.replicas`, those that still load
    weights included), and a ratio inside it proposes exactly those: where pods cannot be created,
    this pulls n down.
    """
    exist = _status_replicas(now)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        within = _within(usage / (target * exist), config)
    need = np.where(np.isnan(exist), np.nan, usage / target)
    desired = np.where(within, exist, np.ceil(need))
    return MetricAnswer(desired, need, within, usage, exist, np.zeros(len(n), dtype=np.int64))


def _value(
    usage: FloatArray, target: float, config: HpaConfig, now: ObservationArrays, n: FloatArray
) -> MetricAnswer:
    """External or Object metric against a target for the whole fleet: ceil(ratio * ready pods).

    At n = 0 there is neither tolerance nor pod: ceil(ratio).
    """
    ratio = usage / target
    # A draining pod's readiness probe still answers. Not seen means none: the count is optional,
    # and a fleet that is not scaling down has no such pod.
    ready = now.column("ready_replicas") + np.nan_to_num(now.column("draining_replicas"))
    with np.errstate(invalid="ignore"):
        need = np.where(n == 0, ratio, ratio * ready)
    stay = _within(ratio, config) & (n != 0)
    desired = np.where(stay, n, np.ceil(need))
    return MetricAnswer(desired, need, stay, usage, ready, np.zeros(len(n), dtype=np.int64))


def _pods(
    name: str, target: float, config: HpaConfig, now: ObservationArrays, n: FloatArray
) -> MetricAnswer:
    """Pods metric against a target per pod: ceil(mean / target * pods), guessing what is not seen.

    Pods without a sample count as exactly on target on the way down and as idle on the way up;
    pending pods count as idle on the way up only. When the guesses turn the direction, n stays.
    """
    state = now.replicas.state
    samples = milli(now.replicas.values[:, :, REPLICA_FIELDS.index(name)])
    pending = (state == _PENDING).sum(axis=1)
    running = (state >= 0) & (state != _PENDING) & (state != _DRAINING)
    seen = running & ~np.isnan(samples)
    missing = (running & ~seen).sum(axis=1)
    reporting = seen.sum(axis=1)
    total = np.where(seen, samples, 0.0).sum(axis=1)

    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.floor(total / reporting)
        ratio = mean / target
        up, down = ratio > 1.0, ratio < 1.0
        idle = np.where(up, pending, 0)
        guessed = np.where(up | down, missing, 0)
        pods = reporting + guessed + idle
        total = total + np.where(down, missing * target, 0.0)
        adjusted = np.floor(total / pods) / target

    complete = (missing == 0) & (idle == 0)
    turned = (down & (adjusted > 1.0)) | (up & (adjusted < 1.0))
    need = np.where(complete, ratio * reporting, adjusted * pods)
    proposal = np.ceil(need)
    against = ((adjusted < 1.0) & (proposal > n)) | ((adjusted > 1.0) & (proposal < n))
    stay = np.where(complete, _within(ratio, config), _within(adjusted, config) | turned | against)
    desired = np.where(stay, n, proposal)
    silent = reporting == 0
    return MetricAnswer(
        desired=np.where(silent, np.nan, desired),
        need=np.where(silent, np.nan, need),
        stays=stay,
        usage=mean,
        over=reporting.astype(np.float64),
        guessed=guessed + idle,
    )


def _within(ratio: FloatArray, config: HpaConfig) -> BoolArray:
    """Where the ratio lies inside the dead band, both ends included; False for NaN."""
    inside: BoolArray = (ratio >= 1.0 - config.down_tolerance) & (
        ratio <= 1.0 + config.up_tolerance
    )
    return inside


def _status_replicas(now: ObservationArrays) -> FloatArray:
    """`(n,)` replicas that exist and are not leaving: read, or the sum of what they consist of."""
    read = now.column("status_replicas")
    return np.where(
        np.isnan(read), now.column("ready_replicas") + now.column("starting_replicas"), read
    )
