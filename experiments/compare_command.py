"""`tuner compare`: from files to a result folder."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from experiments.cells import kept
from experiments.compare import compare, named_policies
from experiments.comparison import Comparison
from experiments.comparison_summary import comparison_summary
from experiments.config import Authority, CompareConfig, compare_mistakes, load_compare_config
from experiments.executors import Executor
from experiments.folder import provenance, result_folder, write_json
from experiments.load import read_load
from experiments.options import parse_options, split_options
from experiments.progress import run_progress
from experiments.report import require_report_extra, write_markdown, write_report
from experiments.runner import SimulationRunner
from experiments.search import require_optuna
from experiments.tuned import Tuned, read_tuned
from experiments.workbench import Overrides, rule_target
from policies import POLICIES
from tuner.core.errors import ConfigError
from tuner.core.gaps import GapMode
from tuner.core.profile import ServingProfile
from tuner.data import load_profile
from tuner.data.startups import StartupName, with_startup


@dataclass(frozen=True)
class CompareRequest:
    """What the command line asked for."""

    trace: Path
    profile: str
    policies: Sequence[str]
    out: Path
    options: Sequence[str] = ()
    """`POLICY.OPTION=VALUE` texts."""
    config: Path | None = None
    seeds: int | None = None
    train_trace: Path | None = None
    baseline: str | None = None
    oracle: bool = True
    startup: StartupName | None = None
    authority: Authority | None = None
    tuned: Sequence[Path] = ()
    """Files of `tuner tune`, and folders of them."""
    cells: Path | None = None
    """Where finished runs are kept; None: beside `out`."""
    keep_cells: bool = False
    executor: Executor = field(default_factory=Executor)
    gaps: GapMode = "keep"


def compare_to_folder(request: CompareRequest, *, console: Console) -> Comparison:
    """Compares, and writes the result folder.

    Raises:
        InputError: an input cannot be used; nothing is written.
    """
    require_report_extra()
    require_optuna()
    config = _config(request)
    policies = named_policies(request.policies, tuple(POLICIES))
    overrides = split_options(parse_options(request.options), (*policies, "static", "hpa"))
    profile = with_startup(load_profile(request.profile), config.run.startup)
    tuned = _tuned(request, config, policies, overrides, profile, console)
    trace = read_load(request.trace, request.gaps, console)
    train = None
    if request.train_trace is not None:
        train = read_load(request.train_trace, request.gaps, console)
    cells = request.cells or request.out.with_name(f"{request.out.name}.cells")
    with (
        _told_where(cells, console),
        kept(
            cells, keep=request.keep_cells, option="--cells" if request.cells else "--out"
        ) as finished,
        result_folder(request.out) as folder,
        request.executor.started() as jobs,
    ):
        with run_progress(console) as watch:
            comparison = compare(
                trace,
                profile,
                policies,
                folder,
                config=config,
                runner=SimulationRunner(),
                overrides=overrides,
                train_trace=train,
                baseline=request.baseline,
                oracle=request.oracle,
                jobs=jobs,
                watch=watch,
                tuned=tuned,
                cells=finished,
            )
        if finished.found:
            console.print(
                f"{finished.found} run{' was' if finished.found == 1 else 's were'} finished "
                f"before, {finished.ran} ran now",
                highlight=False,
            )
        run = provenance(
            shlex.join(["tuner", *sys.argv[1:]]),
            trace,
            profile,
            config,
            policies=policies,
            options={outcome.name: dict(outcome.options) for outcome in comparison.policies},
            tuning={
                "trace": comparison.tuning.trace,
                "initial_replicas": comparison.tuning.initial_replicas,
                "fallback_target": comparison.tuning.fallback_target,
            },
            seeds=comparison.seeds,
            pinned=comparison.pinned(),
        )
        write_json(folder / "run.json", run)
        write_json(folder / "summary.json", comparison_summary(comparison))
        write_report(comparison, run, folder / "report.html")
        write_markdown(comparison, run, folder / "report.md")
    return comparison


@contextmanager
def _told_where(cells: Path, console: Console) -> Iterator[None]:
    """On Ctrl-C, a word on what is not lost."""
    try:
        yield
    except KeyboardInterrupt:
        if cells.is_dir():
            console.print(
                f"finished runs are kept in {escape(str(cells))}: the same command goes on there",
                soft_wrap=True,
            )
        raise


def _tuned(
    request: CompareRequest,
    config: CompareConfig,
    policies: Mapping[str, str],
    given: Overrides,
    profile: ServingProfile,
    console: Console,
) -> dict[str, Tuned]:
    """What `tuner tune` found for the policies, and a line for what is not used.

    Raises:
        ConfigError: a file cannot be used, or does not fit the comparison.
    """
    # Whatever is compared, hpa may be the fallback of it.
    used = {*policies.values(), "hpa"} & POLICIES.keys()

    def check(tuned: Tuned) -> None:
        if tuned.policy not in POLICIES:
            raise ConfigError(
                f"policy '{tuned.policy}' is unknown; known policies: {', '.join(POLICIES)}"
            )
        if tuned.policy in used:
            target = rule_target(profile, config.run, tuned.policy)
            tuned.check(config.sweep.goal, target, given.get(tuned.policy, {}))

    found = read_tuned(request.tuned, check)
    for name in sorted(found.keys() - set(policies.values())):
        console.print(f"[yellow]warning:[/] {name} was tuned, and is not compared")
    return found


def _config(request: CompareRequest) -> CompareConfig:
    config = CompareConfig() if request.config is None else load_compare_config(request.config)
    if request.seeds is not None:
        config = replace(config, seeds=request.seeds)
    if request.startup is not None:
        config = replace(config, run=replace(config.run, startup=request.startup))
    if request.authority is not None:
        config = replace(config, run=replace(config.run, authority=request.authority))
    mistakes = list(compare_mistakes(config))
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return config
