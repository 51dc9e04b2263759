"""What a comparison found, and the `summary.json` that says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from experiments.config import CompareConfig
from experiments.digest import RunDigest
from experiments.folder import describe_profile, describe_trace
from experiments.oracles import Oracles, oracles_summary, regret
from experiments.search import Search
from experiments.statistics import Interval
from experiments.summary import plain
from experiments.sweep import Sweep
from experiments.tuning import Tuning
from policies import OptionValue
from tuner.core.profile import ServingProfile
from tuner.core.trace import Trace

SCHEMA = "tuner.compare/1"


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


def comparison_summary(comparison: Comparison) -> object:
    """`summary.json` of a comparison, `tuner.compare/1`.

    Under `policies`, each figure is the mean over the seeds; `ci95` is the interval of that mean
    over the seeds, `ci95_load` over loads like this one, `[null, null]` where there is none;
    `per_seed` holds the figures of each run; `difference` is to the baseline; `regret` is GPU hours
    over those of oracle B at the policy's own attainment, null where there is none.
    """
    return plain(
        {
            "schema": SCHEMA,
            "objectives": asdict(comparison.config.run.slo),
            "goal": comparison.config.sweep.goal,
            "baseline": comparison.baseline,
            "seeds": comparison.seeds,
            "trace": describe_trace(comparison.trace),
            "profile": describe_profile(comparison.profile),
            "pinned": comparison.pinned(),
            "policies": {
                outcome.name: {
                    **{name: estimate.mean for name, estimate in outcome.estimates.items()},
                    "requests": len(comparison.trace),
                    **_intervals(outcome.estimates),
                    "per_seed": [{"seed": run.seed, **asdict(run.figures)} for run in outcome.runs],
                    "difference": {
                        **{name: gap.mean for name, gap in outcome.differences.items()},
                        **_intervals(outcome.differences),
                    }
                    if outcome.differences
                    else None,
                    "regret": comparison.regret(outcome),
                    "policy": outcome.policy,
                    "options": outcome.options,
                }
                for outcome in comparison.policies
            },
            "tuning": {
                "trace": comparison.tuning.trace,
                "hindsight": comparison.tuning.hindsight,
                "initial_replicas": comparison.tuning.initial_replicas,
                "fallback_target": comparison.tuning.fallback_target,
                "sweeps": {name: _sweep(s) for name, s in comparison.tuning.sweeps.items()},
                "searches": {n: _search(s) for n, s in comparison.tuning.searches.items()},
                "curves": {name: _sweep(s) for name, s in comparison.tuning.curves.items()},
            },
            "oracles": None if comparison.oracles is None else oracles_summary(comparison.oracles),
        }
    )


def _intervals(estimates: Mapping[str, Estimate]) -> dict[str, object]:
    nothing = (None, None)
    return {
        "ci95": {name: estimate.ci95 or nothing for name, estimate in estimates.items()},
        "ci95_load": {
            name: estimate.ci95_load
            for name, estimate in estimates.items()
            if estimate.ci95_load is not None
        },
    }


def _search(search: Search) -> dict[str, object]:
    return {
        "trace": search.trace,
        "hindsight": search.hindsight,
        "budget": search.budget,
        "simulated_s": search.simulated_s,
        "reached_goal": search.reached,
        "chosen": search.chosen.options,
        "trials": [{"options": trial.options, **asdict(trial.figures)} for trial in search.trials],
    }


def _sweep(sweep: Sweep) -> dict[str, object]:
    return {
        "option": sweep.option,
        "unit": sweep.unit,
        "chosen": sweep.chosen.value,
        "reached_goal": sweep.reached,
        "points": [{sweep.option: point.value, **asdict(point.figures)} for point in sweep.points],
    }
