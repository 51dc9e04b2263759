"""`tuner tune`: rules searched ahead of a comparison, and what was found as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path

from rich.console import Console
from rich.table import Table

from experiments.cells import FORMAT, kept
from experiments.config import CompareConfig, compare_mistakes, load_compare_config
from experiments.executors import Executor
from experiments.job import trace_key
from experiments.load import read_load
from experiments.options import parse_options, split_options
from experiments.progress import run_progress
from experiments.readable import figure
from experiments.runner import SimulationRunner
from experiments.search import Search, Searching, options_in_words, require_optuna
from experiments.sweep import SEED
from experiments.tuned import SCHEMA, Outcome, Source, Tuned, write_tuned
from experiments.workbench import START, STATIC, STATIC_BEST, Bench
from policies import POLICIES, Load
from tuner.core.errors import ConfigError
from tuner.core.gaps import GapMode
from tuner.core.profile import ServingProfile
from tuner.core.trace import Trace
from tuner.data import load_profile
from tuner.data.bundles import digest_of
from tuner.data.startups import StartupName, with_startup
from tuner.train.digests import profile_digest, trace_digest


@dataclass(frozen=True)
class TuneRequest:
    """What the command line asked for."""

    trace: Path
    profile: str
    policies: Sequence[str]
    out: Path
    """A .yaml file for one policy, else a folder."""
    options: Sequence[str] = ()
    """`POLICY.OPTION=VALUE` texts, for what is not to be searched."""
    config: Path | None = None
    trials: int | None = None
    goal: float | None = None
    seed: int = SEED
    startup: StartupName | None = None
    storage: str | None = None
    """URL of Optuna's storage; None: a SQLite file beside `out`."""
    executor: Executor = field(default_factory=Executor)
    gaps: GapMode = "keep"


def tune_to_files(request: TuneRequest, *, console: Console) -> dict[str, Tuned]:
    """Searches each policy and writes what was found; gives it by policy.

    Raises:
        InputError: an input cannot be used; nothing is written.
    """
    require_optuna()
    files = _files(request)
    config = _config(request)
    given = split_options(parse_options(request.options), tuple(files))
    profile = with_startup(load_profile(request.profile), config.run.startup)
    trace = read_load(request.trace, request.gaps, console)
    cells = request.out.with_name(f"{request.out.name}.cells")
    with kept(cells, keep=False, option="--out") as finished, request.executor.started() as jobs:
        console.print(
            "first the best fixed fleet: every rule starts from its size, and is searched around "
            "the load that one of its replicas carries",
            soft_wrap=True,
        )
        with run_progress(console) as watch:
            bench = Bench(profile, config, SimulationRunner(), given, finished, jobs, watch)
            bench.check({name: name for name in files})
            for name in files:
                if bench.is_set(name, name):
                    raise ConfigError(
                        f"--set {name}: the option that is searched first is given, so nothing is "
                        "left to search; leave it out"
                    )
            searches = _search(bench, trace, files, request)
        found = {
            name: _tuned(name, search, request.seed, trace, profile)
            for name, search in searches.items()
        }
        for name, tuned in found.items():
            files[name].parent.mkdir(parents=True, exist_ok=True)
            write_tuned(tuned, files[name])
    return found


def _search(
    bench: Bench, trace: Trace, files: Mapping[str, Path], request: TuneRequest
) -> dict[str, Search]:
    """The searches, around what a replica of the best fixed fleet carries."""
    start = bench.config.run.initial_replicas
    if start is None:
        sweep, load = bench.static(trace, START)
        start = int(sweep.chosen.value)
    else:
        load = bench.counts(trace, START, [start])[0].load or Load(1, 1, 1, 1, 1, 1)
    request.out.parent.mkdir(parents=True, exist_ok=True)
    searchings = {
        name: Searching(
            bench.space(name, name, load),
            trials=bench.config.sweep.trials,
            goal=bench.config.sweep.goal,
            seed=request.seed,
            storage=request.storage or _beside(request.out),
            study=_study(bench, name, trace, request.seed),
        )
        for name in files
    }
    bench.search(trace, start, searchings)
    return {name: one.result(trace, hindsight=False) for name, one in searchings.items()}


def _beside(out: Path) -> str:
    return f"sqlite:///{out.with_name(f'{out.stem}.db').resolve()}"


def _study(bench: Bench, name: str, trace: Trace, seed: int) -> str:
    """The name of a search in the storage: of another load or goal it is another search."""
    key = {
        "format": FORMAT,
        "trace": trace_key(trace),
        "profile": profile_digest(bench.profile),
        "run": asdict(bench.config.run),
        "goal": bench.config.sweep.goal,
        "counts": list(bench.config.sweep.static_counts),
        "given": bench.options(name),
        "seed": seed,
    }
    return f"{name}-{digest_of(key)[:16]}"


def _tuned(name: str, search: Search, seed: int, trace: Trace, profile: ServingProfile) -> Tuned:
    return Tuned(
        schema=SCHEMA,
        policy=name,
        goal=search.goal,
        reached=search.reached,
        trials=search.budget,
        simulated_s=search.simulated_s,
        seed=seed,
        tuned=Outcome.of(search.chosen),
        shipped=Outcome.of(search.trials[0]),
        trace=Source(trace.name, trace_digest(trace)),
        profile=Source(profile.name, profile_digest(profile)),
        at_end=search.at_end,
    )


def _files(request: TuneRequest) -> dict[str, Path]:
    """Policy -> file to write.

    Raises:
        ConfigError: a policy cannot be tuned, or several are to go into one file.
    """
    for name in request.policies:
        _refuse_untunable(name)
    names = list(dict.fromkeys(request.policies))
    if not names:
        raise ConfigError("no policy is named; name some, for example --policy hpa,keda")
    if request.out.suffix not in (".yaml", ".yml"):
        return {name: request.out / f"{name}.yaml" for name in names}
    if len(names) > 1:
        raise ConfigError(
            f"--out {request.out} is one file, and {len(names)} policies are named; name a folder"
        )
    return {names[0]: request.out}


def _refuse_untunable(name: str) -> None:
    if name in (STATIC, STATIC_BEST):
        raise ConfigError(
            f"policy {name!r} needs no search: `tuner compare` narrows its count down by itself"
        )
    if name not in POLICIES:
        if Path(name).is_dir():
            raise ConfigError(
                f"policy {name!r} is the folder of a bundle: a learned policy is trained, by "
                "`tuner train`, not tuned"
            )
        near = get_close_matches(name, POLICIES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"policies: {', '.join(POLICIES)}"
        raise ConfigError(f"policy {name!r} is unknown; {hint}")
    if not POLICIES[name].search(Load(1, 1, 1, 1, 1, 1)):
        raise ConfigError(f"policy {name!r} has no parameter to tune; leave it out")


def _config(request: TuneRequest) -> CompareConfig:
    config = CompareConfig() if request.config is None else load_compare_config(request.config)
    if request.trials is not None:
        config = replace(config, sweep=replace(config.sweep, trials=request.trials))
    if request.goal is not None:
        config = replace(config, sweep=replace(config.sweep, goal=request.goal))
    if request.startup is not None:
        config = replace(config, run=replace(config.run, startup=request.startup))
    mistakes = list(compare_mistakes(config))
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return config


def print_tuned(found: Mapping[str, Tuned], console: Console) -> None:
    """The best setting of each policy beside the one it is shipped with."""
    table = Table(header_style="bold")
    table.add_column("policy")
    table.add_column("setting", overflow="fold")
    table.add_column("SLO attainment", justify="right")
    table.add_column("GPU hours", justify="right")
    for name, tuned in found.items():
        best = options_in_words(tuned.tuned.options)
        rows = {best: tuned.tuned.trial(), "as shipped": tuned.shipped.trial()}
        for setting, trial in rows.items():
            mark = "" if trial.figures.slo_attainment >= tuned.goal else " *"
            table.add_row(
                name,
                setting,
                f"{figure('slo_attainment', trial.figures.slo_attainment)}{mark}",
                figure("gpu_hours", trial.figures.gpu_hours),
            )
    console.print(table)
    goal = next(iter(found.values())).goal
    console.print(f"* below the goal of {100 * goal:g} %", highlight=False)
