"""Runs the scenarios of a grid one after the other; a scenario that is done is not run again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from experiments.compare import compare, named_policies
from experiments.comparison_summary import comparison_summary
from experiments.config import CompareConfig
from experiments.fanout import Watch
from experiments.folder import provenance, result_folder, write_json
from experiments.grid.config import GridConfig, Scenario, grid_profile, scenarios
from experiments.grid.panel import Case
from experiments.runner import SimulationRunner
from experiments.summary import plain
from policies import POLICIES
from tuner.core.errors import InputError
from tuner.core.profile import ServingProfile
from tuner.core.trace import Trace
from tuner.data.bundles import read_bundle
from tuner.train.digests import profile_digest, trace_digest

FORMAT = 1
"""Raised where a change of the code changes results, so that older scenarios are run again."""

TABLES = ("requests.parquet", "ticks.parquet")
"""What a comparison leaves behind for one load, and a grid of hundreds does not keep."""


def run_grid(
    grid: GridConfig,
    out: Path,
    *,
    command: str,
    jobs: int,
    watch: Watch,
    told: Callable[[str], None],
) -> list[Case]:
    """Every scenario's comparison, from its folder below `out` or run now.

    Args:
        grid: what to run.
        out: folder of the results; `scenarios/SLUG` for each.
        command: for `run.json`.
        jobs: processes at once.
        watch: told how far each run is.
        told: gets a line when a scenario begins or is found done.

    Raises:
        InputError: a scenario cannot be run; those before it stay.
    """
    base = grid_profile(grid)
    policies = named_policies(grid.policies, tuple(POLICIES))
    every = scenarios(grid)
    cases = []
    for number, scenario in enumerate(every, start=1):
        profile = scenario.profile(base)
        config = scenario.config(grid, profile)
        trace, train = scenario.traces(profile)
        key = _key(grid, scenario, config, profile, trace, train)
        folder = out / "scenarios" / scenario.slug
        place = f"{number} of {len(every)}: {scenario.label}"
        done = _finished(folder, key)
        if done is None:
            told(place)
            done = _compared(
                grid,
                scenario,
                config,
                profile,
                trace,
                train,
                policies,
                folder,
                key=key,
                command=command,
                jobs=jobs,
                watch=watch,
            )
        else:
            told(f"{place} (done before)")
        cases.append(Case(scenario.label, done))
    return cases


def _compared(
    grid: GridConfig,
    scenario: Scenario,
    config: CompareConfig,
    profile: ServingProfile,
    trace: Trace,
    train: Trace | None,
    policies: dict[str, str],
    folder: Path,
    *,
    key: str,
    command: str,
    jobs: int,
    watch: Watch,
) -> dict[str, object]:
    with result_folder(folder) as scratch:
        comparison = compare(
            trace,
            profile,
            policies,
            scratch,
            config=config,
            runner=SimulationRunner(),
            overrides=grid.options,
            train_trace=train,
            baseline=grid.baseline,
            jobs=jobs,
            watch=watch,
        )
        for name in TABLES:
            (scratch / name).unlink(missing_ok=True)
        summary = comparison_summary(comparison)
        run = provenance(
            command,
            trace,
            profile,
            config,
            scenario={"label": scenario.label, "key": key},
            policies=policies,
            seeds=comparison.seeds,
        )
        write_json(scratch / "run.json", run)
        write_json(scratch / "summary.json", summary)
    found = _finished(folder, key)
    if found is None:
        raise InputError(f"{folder} was changed while it was written; run the grid again")
    return found


def _finished(folder: Path, key: str) -> dict[str, object] | None:
    """The summary of a scenario that was run with the same key before."""
    try:
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        if run["scenario"]["key"] != key:
            return None
        summary: dict[str, object] = json.loads(
            (folder / "summary.json").read_text(encoding="utf-8")
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return summary


def _key(
    grid: GridConfig,
    scenario: Scenario,
    config: CompareConfig,
    profile: ServingProfile,
    trace: Trace,
    train: Trace | None,
) -> str:
    """Digest of all that a scenario's figures depend on."""
    everything = {
        "format": FORMAT,
        "scenario": scenario.label,
        "config": asdict(config),
        "profile": profile_digest(profile),
        "trace": trace_digest(trace),
        "train": None if train is None else trace_digest(train),
        "policies": [_spec(spec) for spec in grid.policies],
        "baseline": grid.baseline,
        "options": grid.options,
    }
    return hashlib.sha256(json.dumps(plain(everything), sort_keys=True).encode()).hexdigest()


def _spec(spec: str) -> str:
    """A rule by its name, a bundle by its digest."""
    return spec if spec in POLICIES else read_bundle(spec).digest
