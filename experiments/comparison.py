"""What a comparison found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from experiments.config import CompareConfig
from experiments.digest import RunDigest
from experiments.oracles import Oracles, regret
from experiments.statistics import Interval
from experiments.tuning import Tuning
from policies import OptionValue
from tuner.core.profile import ServingProfile
from tuner.core.trace import Trace


@dataclass(frozen=True)
class Estimate:
    """A figure over the seeds, and how sure it is; see `experiments.statistics`."""

    mean: float
    ci95: Interval | None
    """Over the seeds, on this load; None for one seed. Cut where the figure cannot go: a share
    ends at 0 and 1, everything else at 0; differences are not cut."""
    ci95_load: Interval | None
    """Over loads like this one; None where the figure has none, or the load is too short."""


@dataclass(frozen=True)
class PolicyOutcome:
    """One policy over all seeds."""

    name: str
    policy: str
    """What was built: a name, or the folder of a bundle."""
    options: Mapping[str, OptionValue]
    """What it was built with; everything else has its default."""
    runs: tuple[RunDigest, ...]
    """One per seed, in the order of the seeds."""
    estimates: Mapping[str, Estimate]
    """Metric -> over the seeds."""
    differences: Mapping[str, Estimate]
    """Metric -> this policy minus the baseline, seed by seed; empty for the baseline itself."""

    def mean(self, metric: str) -> float:
        return self.estimates[metric].mean


@dataclass(frozen=True)
class Comparison:
    """The whole of it."""

    trace: Trace
    profile: ServingProfile
    config: CompareConfig
    baseline: str
    seeds: tuple[int, ...]
    policies: tuple[PolicyOutcome, ...]
    """In the order in which they were asked for."""
    tuning: Tuning
    oracles: Oracles | None = None
    """What was possible with the load known; None where nobody asked."""

    def __getitem__(self, name: str) -> PolicyOutcome:
        return next(outcome for outcome in self.policies if outcome.name == name)

    def regret(self, outcome: PolicyOutcome) -> float | None:
        """GPU hours of a policy over those of oracle B at the policy's own attainment, see
        `experiments.oracles.regret`; None without oracles, too."""
        if self.oracles is None:
            return None
        return regret(outcome.mean("slo_attainment"), outcome.mean("gpu_hours"), self.oracles)

    def pinned(self) -> dict[str, str]:
        """Knob that no run could move -> why."""
        runs = [run for outcome in self.policies for run in outcome.runs]
        return {knob: why for run in runs for knob, why in run.pinned.items()}
