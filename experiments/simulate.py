"""`tuner simulate`: one run, its result folder, and a few lines for the terminal."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from envs.config import FailureConfig
from experiments.config import MOST_REPLICAS, Router, RunConfig, run_mistakes
from experiments.folder import provenance, refuse_file, write_simulation
from experiments.job import Job
from experiments.load import read_load
from experiments.result import RunResult
from experiments.runner import SimulationRunner
from experiments.summary import METRICS, figures_of
from policies import OptionValue
from tuner.core.errors import ConfigError
from tuner.core.gaps import GapMode
from tuner.data import load_profile
from tuner.data.startups import StartupName, with_startup


@dataclass(frozen=True)
class SimulateRequest:
    """What the command line asked for."""

    trace: Path
    profile: str
    policy: str
    options: Mapping[str, OptionValue]
    out: Path
    router: Router = "least_loaded"
    seed: int = 0
    jitter: float = 0.0
    startup: StartupName | None = None
    drain_timeout_s: float | None = None
    crash_per_hour: float = 0.0
    tick_s: float = 15.0
    overtime_s: float = RunConfig.overtime_s
    initial_replicas: int | None = None
    max_replicas: int | None = None
    fallback_target: float | None = None
    gaps: GapMode = "keep"


def simulate(request: SimulateRequest, *, console: Console) -> RunResult:
    """Run it and write the result folder.

    Raises:
        InputError: the trace, profile, policy or an option cannot be used; nothing is written.
    """
    trace = read_load(request.trace, request.gaps, console)
    profile = with_startup(load_profile(request.profile), request.startup)
    config = _config(request)
    mistakes = list(run_mistakes(config))
    if mistakes:
        raise ConfigError("; ".join(mistakes))
    job = Job(request.policy, Path(request.policy).name, request.options, config, request.seed)
    runner = SimulationRunner()
    runner.check(profile, job)
    refuse_file(request.out)
    with Progress(
        TextColumn("simulating"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task("simulating", total=1.0)
        result = runner(trace, profile, job, lambda share: bar.update(task, completed=share))
    run = provenance(
        shlex.join(["tuner", *sys.argv[1:]]),
        trace,
        profile,
        config,
        policy=request.policy,
        options=dict(request.options),
        seeds=[request.seed],
        pinned=dict(result.pinned),
    )
    write_simulation(request.out, result, config.slo, run)
    return result


def _config(request: SimulateRequest) -> RunConfig:
    count = request.options.get("replicas")
    # A count that cannot be is refused by the policy, in its own words.
    fits = isinstance(count, int | float) and 1 <= count <= MOST_REPLICAS
    static = int(count or 0) if request.policy == "static" and fits else None
    initial = request.initial_replicas or static
    # A start beyond what can be is a mistake about the start, not about the most.
    most = request.max_replicas or min(max(RunConfig.max_replicas, initial or 1), MOST_REPLICAS)
    return RunConfig(
        router=request.router,
        tick_s=request.tick_s,
        overtime_s=request.overtime_s,
        jitter=request.jitter,
        startup=request.startup,
        drain_timeout_s=request.drain_timeout_s,
        failures=FailureConfig(crash_per_hour=request.crash_per_hour),
        max_replicas=most,
        initial_replicas=initial,
        fallback_target=request.fallback_target,
    )


def remarks(result: RunResult, overtime_s: float) -> list[str]:
    """What to mind about the figures: requests that were cut off, latencies without the missing.

    Args:
        overtime_s: that the run was given.
    """
    figures = figures_of(result, RunConfig().slo)
    found = []
    if figures.unfinished:
        found.append(
            f"{figures.unfinished:,} of {figures.requests:,} requests had not ended "
            f"{overtime_s:g} s after the last arrival, where the run stopped; "
            "--overtime gives them longer"
        )
    if figures.completed < figures.requests:
        found.append(
            f"latencies are those of the {figures.completed:,} completed requests; "
            f"the other {figures.requests - figures.completed:,} count as missed"
        )
    return found


def print_figures(result: RunResult, out: Path, console: Console, *, overtime_s: float) -> None:
    """The run's figures as a table, what to mind about them, and where its folder is."""
    figures = figures_of(result, RunConfig().slo)
    table = Table(title=f"{result.policy}, seed {result.seed}", title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("unit")
    for metric in METRICS:
        table.add_row(metric.label, _shown(getattr(figures, metric.name)), metric.unit)
    console.print(table)
    for remark in remarks(result, overtime_s):
        console.print(remark, highlight=False)
    console.print(f"written to {escape(str(out))}", soft_wrap=True)


def _shown(value: float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.4g}" if value == value else "-"
