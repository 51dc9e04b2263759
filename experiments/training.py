"""`tuner train`: from files to a policy bundle.

The base rule is tuned on the training trace first, as the rivals of a comparison are. The fleet
that the sweep found sizes reward and starts, and what the rule paid for its last avoided misses
prices a miss. What the configuration states is left as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np
from rich.console import Console

from envs.config import EnvConfig
from envs.reward import RewardWeights
from experiments.cells import Cells
from experiments.config import CompareConfig, RunConfig, SweepConfig, compare_mistakes
from experiments.fanout import cores
from experiments.folder import git_commit, versions
from experiments.load import read_load
from experiments.progress import run_progress
from experiments.run import target_knobs
from experiments.runner import SimulationRunner
from experiments.sweep import Sweep
from experiments.workbench import START, Bench
from tuner.core.errors import ConfigError
from tuner.core.gaps import GapMode
from tuner.core.profile import ServingProfile
from tuner.core.trace import Trace
from tuner.data import load_profile
from tuner.data.bundles import Code, Manifest
from tuner.data.startups import StartupName, with_startup
from tuner.data.strict import build, parse_yaml, read_text
from tuner.train.config import TrainConfig
from tuner.train.ppo import Inputs, build_codec, check_start, started_with, train
from tuner.train.scenarios import parts

SHARED = ("tick_s", "slo", "router", "jitter", "scrape", "drain_timeout_s")
"""What `run` says of every run, training's environments included."""
STARTS = (0.4, 1.4)
"""Fewest and most replicas at the start of an episode, relative to the best fixed fleet: too few
and too many must both have been seen."""
ALLOWED = 0.5
"""Share of the misses that the goal allows at which a miss is priced: a policy that settles on the
goal itself would break it on every second day."""
WORST_MISS = 0.1
"""Misses above this share are a fleet that has collapsed; its price says nothing about the goal."""


@dataclass(frozen=True)
class TrainingFile:
    """Content of the file that `--config` names."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    run: RunConfig = field(default_factory=RunConfig)
    """Objectives, router, tick, bounds and guardrails: as in a comparison."""
    sweep: SweepConfig = field(default_factory=SweepConfig)
    """How the base rule is tuned where `train.base` gives no target."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Training itself. Left out, the target of the base rule and in `env` start_replicas,
    reference_replicas and weights.stability come from the sweep; what `run` says holds here too."""

    def problems(self) -> Iterator[str]:
        yield from compare_mistakes(CompareConfig(run=self.run, sweep=self.sweep))
        yield from (f"train.{problem}" for problem in self.train.problems())
        for name in SHARED:
            stated, shared = getattr(self.train.env, name), getattr(self.run, name)
            if stated not in (shared, getattr(EnvConfig(), name)):
                yield f"train.env.{name} is {stated}, but run.{name} is {shared}; state it in run"


@dataclass(frozen=True)
class TrainRequest:
    """What the command line asked for."""

    trace: Path
    profile: str
    out: Path
    config: Path | None = None
    steps: int | None = None
    seed: int | None = None
    envs: int | None = None
    startup: StartupName | None = None
    resume: bool = False
    jobs: int | None = None
    gaps: GapMode = "keep"


def train_to_bundle(request: TrainRequest, *, console: Console) -> Manifest:
    """Tune the base rule, train, and write the bundle.

    Raises:
        InputError: an input cannot be used; nothing is written.
        KeyboardInterrupt: after a checkpoint was written, once training has begun.
    """
    stated = _stated(request)
    stated = _with_run(stated, _built(stated, request).run)
    file = _built(stated, request)
    check_start(request.out, resume=request.resume)
    profile = with_startup(load_profile(request.profile), file.run.startup)
    trace = read_load(request.trace, request.gaps, console)
    knobs = target_knobs(profile, max_replicas=file.run.max_replicas)
    # What can be known before the sweep: it takes minutes.
    parts(trace, file.train)
    build_codec(file.train, profile, knobs)
    jobs = request.jobs or cores()
    if request.resume:
        found = _found_before(request.out)
    else:
        found = _found_by_sweep(file, trace, profile, jobs, console)
    file = _built(_filled(stated, found), request)
    return train(
        Inputs(
            trace=trace,
            profile=profile,
            knobs=knobs,
            guardrails=file.run.guardrails.build(),
            code=Code(commit=git_commit(), versions=versions()),
        ),
        file.train,
        request.out,
        resume=request.resume,
        threads=jobs,
        console=console,
    )


@dataclass(frozen=True)
class _Found:
    """What a file may leave open."""

    target: float
    """Of the base rule, output tokens/s per replica."""
    reference_replicas: float
    start_replicas: tuple[int, int]
    stability: float
    """Price of a miss."""


def _stated(request: TrainRequest) -> dict[str, Any]:
    """The configuration as the file and the options state it: plain values."""
    stated: dict[str, Any] = {}
    if request.config is not None:
        text = read_text(request.config, "a configuration in YAML", ConfigError)
        if text.strip():
            stated = parse_yaml(text, str(request.config), ConfigError)
    options = {
        ("ppo", "steps"): request.steps,
        ("ppo", "envs"): request.envs,
        ("seed",): request.seed,
    }
    for keys, value in options.items():
        if value is not None:
            _section(stated, "train", *keys[:-1])[keys[-1]] = value
    if request.startup is not None:
        _section(stated, "run")["startup"] = request.startup
    return stated


def _built(stated: Mapping[str, Any], request: TrainRequest) -> TrainingFile:
    source = str(request.config) if request.config else "training"
    return build(TrainingFile, stated, source, ConfigError, contradictions=TrainingFile.problems)


def _with_run(stated: Mapping[str, Any], run: RunConfig) -> dict[str, Any]:
    """The stated configuration with what `run` says of every run said of training's too."""
    filled: dict[str, Any] = _copied(stated)
    env = _section(filled, "train", "env")
    plain = asdict(run)
    env.update({name: plain[name] for name in SHARED})
    return filled


def _filled(stated: Mapping[str, Any], found: _Found) -> dict[str, Any]:
    """The stated configuration with what it left open."""
    filled: dict[str, Any] = _copied(stated)
    env = _section(filled, "train", "env")
    env.setdefault("reference_replicas", found.reference_replicas)
    env.setdefault("start_replicas", list(found.start_replicas))
    _section(env, "weights").setdefault("stability", found.stability)
    base = _section(filled, "train", "base")
    base.setdefault("policy", "hpa")
    if base["policy"] == "hpa":
        _section(base, "options").setdefault("target", found.target)
    return filled


def _found_by_sweep(
    file: TrainingFile, trace: Trace, profile: ServingProfile, jobs: int, console: Console
) -> _Found:
    """The fleet and the target that meet the goal at the least cost on the training trace."""
    given = file.train.base.options.get("target")
    overrides = {} if given is None else {"hpa": {"target": given}}
    with run_progress(console) as watch, TemporaryDirectory() as cells:
        bench = Bench(
            profile=profile,
            config=CompareConfig(run=file.run, sweep=file.sweep),
            runner=SimulationRunner(),
            given=overrides,
            cells=Cells(Path(cells)),
            jobs=jobs,
            watch=watch,
            native=False,
        )
        bench.check({"hpa": "hpa"})
        static, _ = bench.static(trace, START)
        count, most = int(static.chosen.value), file.run.max_replicas
        base = bench.hpa(trace, "tuning", count) if given is None else None
    for sweep in (static, base):
        if sweep is not None:
            console.print(sweep.sentence, highlight=False)
    target = file.run.fallback_target or given or (base and base.chosen.value)
    return _Found(
        target=float(target or 0.0),
        reference_replicas=float(count),
        start_replicas=(
            max(1, round(STARTS[0] * count)),
            min(most, max(round(STARTS[1] * count), 2)),
        ),
        stability=miss_price(base, trace, count),
    )


def miss_price(sweep: Sweep | None, trace: Trace, reference: float) -> float:
    """What one share of missed requests is worth, in reference fleets, where the goal is met.

    The slope of the base rule's own curve: over the targets tried, misses fall about exponentially
    with the replicas that they cost, so the price of the last avoided miss at a share m is
    1 / (rate x m). With another profile or load the same number of replicas buys a hundred times as
    many misses; a fixed weight would teach to break the goal here and to waste there.

    Args:
        sweep: of the base rule; None where its target was given.
        trace: what it ran on.
        reference: replicas of the reference fleet.
    """
    points = [] if sweep is None else sweep.points
    hours = max(trace.last_arrival_s, 1.0) / 3600
    held = np.array([point.figures.replica_hours / hours for point in points])
    missed = np.array([1 - point.figures.slo_attainment for point in points])
    near = (missed > 0) & (missed <= WORST_MISS)
    if sweep is None or near.sum() < 3:
        return RewardWeights.stability
    rate = -float(np.polyfit(held[near], np.log(missed[near]), 1)[0])
    allowed = ALLOWED * (1 - sweep.goal)
    if not (rate > 0 and allowed > 0):
        return RewardWeights.stability
    return round(1 / (reference * allowed * rate), 3)


def _found_before(out: Path) -> _Found:
    """What the sweep found when the run to resume was started."""
    config: Any = started_with(out)
    low, high = config["env"]["start_replicas"]
    return _Found(
        target=config["base"]["options"].get("target", 0.0),
        reference_replicas=config["env"]["reference_replicas"],
        start_replicas=(low, high),
        stability=config["env"]["weights"]["stability"],
    )


def _section(mapping: dict[str, Any], *keys: str) -> dict[str, Any]:
    """The section at `keys`, made where it is absent; a section that is no mapping is replaced by
    the strict reader's complaint about it, not by this."""
    for key in keys:
        inner = mapping.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{key} is {inner!r}; expected keys and values")
        mapping = inner
    return mapping


def _copied(value: Any) -> Any:
    """Plain values, copied: the stated configuration is read twice."""
    if isinstance(value, Mapping):
        return {key: _copied(inner) for key, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, list) else value
