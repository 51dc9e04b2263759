"""Several policies on one load with the same seeds, tuned rivals, intervals, one verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from experiments.cells import Cells
from experiments.comparison import Comparison, Estimate, PolicyOutcome
from experiments.config import CompareConfig
from experiments.digest import RunDigest
from experiments.fanout import Watch, silent
from experiments.folder import join_requests, write_ticks
from experiments.job import Job, Runner, RunTask
from experiments.oracles import PlanRunner, find_oracles
from experiments.result import Floats
from experiments.statistics import (
    MIN_BLOCKS,
    bootstrap,
    draw_blocks,
    load_interval,
    pool,
    seeds_interval,
)
from experiments.summary import METRICS
from experiments.sweep import FIRST_SEED
from experiments.tuned import Tuned
from experiments.tuning import tune, tuned_job
from experiments.workbench import Bench, Overrides
from tuner.core.errors import ConfigError
from tuner.core.profile import ServingProfile
from tuner.core.trace import Trace


def named_policies(specs: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """Name in tables -> what to build, for each policy asked for.

    Args:
        specs: names of policies, or folders of bundles.
        known: names of the policies there are.

    Raises:
        ConfigError: one is neither, or two would have the same name.
    """
    named: dict[str, str] = {}
    for spec in specs:
        if spec not in known and not Path(spec).is_dir():
            near = get_close_matches(spec, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"policies: {', '.join(known)}"
            raise ConfigError(
                f"policy {spec!r} is neither known nor the folder of a bundle; {hint}"
            )
        name = spec if spec in known else Path(spec).resolve().name
        if name in named:
            raise ConfigError(f"policy {name!r} is named twice; name each policy once")
        named[name] = spec
    if not named:
        raise ConfigError("no policy is named; name some, for example --policies static,hpa")
    return named


def compare(
    trace: Trace,
    profile: ServingProfile,
    policies: Mapping[str, str],
    folder: Path,
    *,
    config: CompareConfig,
    runner: Runner,
    overrides: Overrides | None = None,
    train_trace: Trace | None = None,
    baseline: str | None = None,
    oracle: bool = False,
    jobs: int = 1,
    watch: Watch = silent,
    tuned: Mapping[str, Tuned] | None = None,
    cells: Cells | None = None,
) -> Comparison:
    """Tunes the rules, runs every policy with every seed, and says how they compare.

    Writes `requests.parquet` and `ticks.parquet` into `folder`; the same for any number of jobs.

    Args:
        trace: the load to compare on.
        profile: how fast a replica serves.
        policies: name in tables -> what to build, see `named_policies`.
        folder: an existing folder, for the tables.
        config: everything that steers the comparison.
        runner: does one run.
        overrides: options of policies; the count of static and the dial of any other rule take
            the place of its search.
        train_trace: what the rules are tuned on; None: `trace` itself, which is hindsight.
        baseline: the policy that the others are measured against; None: hpa, or the first one
            where hpa is not compared.
        oracle: whether to find what was possible with the load known, and to show the oracles
            beside the policies.
        jobs: processes at once.
        watch: told how far each run is.
        tuned: policy -> what was found for it before, in place of its search.
        cells: where finished runs are kept and found again; None: nowhere beyond this call.

    Raises:
        InputError: the baseline or an override names a policy that is not compared, or a policy
            cannot be built; before any run.
    """
    if baseline is None:
        baseline = "hpa" if "hpa" in policies else next(iter(policies))
    elif baseline not in policies:
        raise ConfigError(
            f"baseline {baseline!r} is not compared; compared are {', '.join(policies)}"
        )
    with TemporaryDirectory(prefix=".cells.", dir=folder) as own:
        bench = Bench(
            profile, config, runner, overrides or {}, cells or Cells(Path(own)), jobs, watch
        )
        bench.check(policies, trained=train_trace is not None)
        return _compared(bench, policies, folder, trace, train_trace, baseline, oracle, tuned)


def _compared(
    bench: Bench,
    policies: Mapping[str, str],
    folder: Path,
    trace: Trace,
    train_trace: Trace | None,
    baseline: str,
    oracle: bool,
    tuned: Mapping[str, Tuned] | None,
) -> Comparison:
    config = bench.config
    tuning = tune(bench, policies, trace, train_trace, tuned)
    seeds = tuple(range(FIRST_SEED, FIRST_SEED + config.seeds))
    oracles = None
    if oracle:
        oracles = find_oracles(
            trace,
            bench.profile,
            config,
            seeds=seeds,
            initial_replicas=tuning.initial_replicas,
            cells=bench.cells,
            jobs=bench.jobs,
            watch=bench.watch,
        )
        policies = {**policies, **{name: name for name in oracles.frontiers}}
        tuning = replace(tuning, curves={**tuning.curves, **oracles.curves()})
        runner = PlanRunner(oracles.plans(), bench.runner)
        bench = replace(bench, runner=runner, given={**bench.given, **oracles.options()})
    all_jobs = [
        tuned_job(bench, tuning, name, spec, seed)
        for name, spec in policies.items()
        for seed in seeds
    ]
    for job in all_jobs:
        bench.watch(f"{job.name}, seed {job.seed}", 0.0)
    digests = bench.cells.run(
        [
            RunTask(
                runner=bench.runner,
                trace=trace,
                profile=bench.profile,
                job=job,
                label=f"{job.name}, seed {job.seed}",
                block_s=config.statistics.block_s,
            )
            for job in all_jobs
        ],
        bench.jobs,
        bench.watch,
    )
    join_requests(
        [((run.policy, run.seed), run.requests_file) for run in digests if run.requests_file],
        folder / "requests.parquet",
    )
    write_ticks(
        folder / "ticks.parquet",
        [((run.policy, run.seed), run.ticks) for run in digests if run.ticks is not None],
    )
    runs = {
        name: tuple(digests[place * len(seeds) : (place + 1) * len(seeds)])
        for place, name in enumerate(policies)
    }
    outcomes = _outcomes(policies, all_jobs, runs, baseline, config)
    return Comparison(trace, bench.profile, config, baseline, seeds, outcomes, tuning, oracles)


def _outcomes(
    policies: Mapping[str, str],
    jobs: Sequence[Job],
    runs: Mapping[str, tuple[RunDigest, ...]],
    baseline: str,
    config: CompareConfig,
) -> tuple[PolicyOutcome, ...]:
    """Estimates of every policy, and of its differences to the baseline."""
    pooled = {
        name: pool([run.blocks for run in own if run.blocks is not None])
        for name, own in runs.items()
    }
    blocks = len(pooled[baseline])
    drawn: dict[str, dict[str, Floats]] = {}
    if blocks >= MIN_BLOCKS:
        draws = draw_blocks(blocks, config.statistics.resamples)
        drawn = {name: bootstrap(own, draws) for name, own in pooled.items()}
    outcomes = []
    for name, own in runs.items():
        estimates, differences = {}, {}
        for metric in (metric.name for metric in METRICS):
            values = _per_seed(own, metric)
            resampled = drawn.get(name, {}).get(metric)
            estimates[metric] = _within(_estimate(values, resampled), metric)
            if name != baseline:
                base = _per_seed(runs[baseline], metric)
                paired = [ours - theirs for ours, theirs in zip(values, base, strict=True)]
                other = drawn.get(baseline, {}).get(metric)
                both = None if resampled is None or other is None else resampled - other
                differences[metric] = _estimate(paired, both)
        options = next(job.options for job in jobs if job.name == name)
        outcomes.append(PolicyOutcome(name, policies[name], options, own, estimates, differences))
    return tuple(outcomes)


def _per_seed(runs: Sequence[RunDigest], metric: str) -> list[float]:
    return [float(getattr(run.figures, metric)) for run in runs]


def _estimate(values: Sequence[float], resampled: Floats | None) -> Estimate:
    return Estimate(
        mean=float(np.mean(values)),
        ci95=seeds_interval(values),
        ci95_load=None if resampled is None else load_interval(resampled),
    )


def _within(estimate: Estimate, metric: str) -> Estimate:
    """The estimate with its interval over seeds cut to what the metric can be.

    Student's t knows no borders: with three seeds it offers attainments above 1 and counts below 0.
    """
    if estimate.ci95 is None:
        return estimate
    low, high = estimate.ci95
    top = 1.0 if metric == "slo_attainment" else math.inf
    return replace(estimate, ci95=(max(low, 0.0), min(high, top)))
