"""`tuner compare`: from files to a result folder."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from experiments.compare import compare, named_policies
from experiments.comparison import Comparison, comparison_summary
from experiments.config import CompareConfig, compare_mistakes, load_compare_config
from experiments.fanout import cores
from experiments.folder import provenance, result_folder, write_json
from experiments.load import read_load
from experiments.progress import run_progress
from experiments.report import require_report_extra, write_markdown, write_report
from experiments.runner import SimulationRunner
from experiments.simulate import parse_options
from policies import POLICIES, OptionValue
from tuner.core.errors import ConfigError
from tuner.core.gaps import GapMode
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
    startup: StartupName | None = None
    jobs: int | None = None
    gaps: GapMode = "keep"


def compare_to_folder(request: CompareRequest, *, console: Console) -> Comparison:
    """Compares, and writes the result folder.

    Raises:
        InputError: an input cannot be used; nothing is written.
    """
    require_report_extra()
    config = _config(request)
    policies = named_policies(request.policies, tuple(POLICIES))
    overrides = split_options(parse_options(request.options), (*policies, "static", "hpa"))
    profile = with_startup(load_profile(request.profile), config.run.startup)
    trace = read_load(request.trace, request.gaps, console)
    train = None
    if request.train_trace is not None:
        train = read_load(request.train_trace, request.gaps, console)
    with result_folder(request.out) as folder:
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
                jobs=request.jobs or cores(),
                watch=watch,
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


def split_options(
    options: Mapping[str, OptionValue], policies: Sequence[str]
) -> dict[str, dict[str, OptionValue]]:
    """Policy -> option -> value from `policy.option` keys; a policy's name may hold dots itself.

    Raises:
        ConfigError: a key names none of the policies.
    """
    split: dict[str, dict[str, OptionValue]] = {}
    for key, value in options.items():
        owners = [name for name in policies if key.startswith(f"{name}.")]
        if not owners:
            raise ConfigError(
                f"--set {key}: expected POLICY.OPTION=VALUE for one of "
                f"{', '.join(dict.fromkeys(policies))}, as in --set static.replicas=4"
            )
        owner = max(owners, key=len)
        split.setdefault(owner, {})[key.removeprefix(f"{owner}.")] = value
    return split


def _config(request: CompareRequest) -> CompareConfig:
    config = CompareConfig() if request.config is None else load_compare_config(request.config)
    if request.seeds is not None:
        config = replace(config, seeds=request.seeds)
    if request.startup is not None:
        config = replace(config, run=replace(config.run, startup=request.startup))
    mistakes = list(compare_mistakes(config))
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return config
