"""The `summary.json` of a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from experiments.comparison import Comparison, Estimate
from experiments.equal_attainment import equal_costs, levels
from experiments.folder import describe_profile, describe_trace
from experiments.oracles import oracles_summary
from experiments.search import Search
from experiments.summary import plain
from experiments.sweep import Sweep

SCHEMA = "tuner.compare/1"


def comparison_summary(comparison: Comparison) -> object:
    """`summary.json` of a comparison, `tuner.compare/1`.

    Under `policies`, each figure is the mean over the seeds; `ci95` is the interval of that mean
    over the seeds, `ci95_load` over loads like this one, `[null, null]` where there is none;
    `per_seed` holds the figures of each run; `difference` is to the baseline; `regret` is GPU hours
    over those of oracle B at the policy's own attainment, null where there is none;
    `equal_attainment` is what the policy would cost at the attainments of the report, GPU hours,
    null where no setting that was tried gets there, `at_most` where the cheapest attains more.
    """
    equal = equal_costs(comparison)
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
                    "equal_attainment": [
                        {"slo_attainment": level, **asdict(cost)}
                        for level, cost in zip(levels(comparison), equal[outcome.name], strict=True)
                    ],
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
