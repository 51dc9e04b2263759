"""What a tick sees of a target, whoever measured it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tuner.core.faults import Fault
from tuner.live.metrics.probe import Probed
from tuner.live.pool import Member


@dataclass(frozen=True)
class Measured:
    """What one tick saw; what is absent was not measured."""

    values: Mapping[str, float] = field(default_factory=dict)
    """By names of FIELDS, without replica counts."""
    age_s: float | None = None
    """Age of the engines' newest sample."""
    ages_s: Mapping[str, float] = field(default_factory=dict)
    """Field -> age of its newest sample, s."""
    estimates: tuple[str, ...] = ()
    """Fields that were worked out from others."""
    faults: tuple[Fault, ...] = ()
    replicas: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Replica -> values by names of REPLICA_FIELDS."""
    probed: Probed | None = None
    """The newest probe, where there is one."""


class Measuring(Protocol):
    """A source of measurements; troubles are among its faults, never raised."""

    def collect(self, members: Sequence[Member], *, at_s: float) -> Measured:
        """Look once at these replicas; `at_s` rises from look to look."""

    def close(self) -> None:
        """Let go of connections."""
