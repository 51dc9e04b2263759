"""Tuning the rules of a comparison, before anything is compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

import numpy as np

from experiments.config import CompareConfig, RunConfig
from experiments.fanout import Watch, fan_out
from experiments.job import Job, OptionValue, Runner, RunTask
from experiments.summary import Figures
from experiments.sweep import SEED, Sweep, sweep_hpa, sweep_static
from tuner.core.errors import ConfigError
from tuner.core.profile import ServingProfile
from tuner.core.trace import Trace

Overrides = Mapping[str, Mapping[str, OptionValue]]
"""Policy -> option -> value."""


@dataclass(frozen=True)
class Tuning:
    """How the rules came by their settings."""

    trace: str
    """Name of the trace they were tuned on."""
    hindsight: bool
    """Whether that is the very trace they are compared on."""
    sweeps: Mapping[str, Sweep]
    """Policy -> its sweep there; a policy whose setting was given has none."""
    curves: Mapping[str, Sweep]
    """Policy -> the same sweep on the compared trace: what cost buys there, with hindsight."""
    initial_replicas: int
    """Count that every policy but static started with."""
    fallback_target: float | None
    """Output tokens/s per replica of the fallback; None: no run has a fallback that scales."""


@dataclass(frozen=True)
class Bench:
    """What all runs of a comparison share."""

    profile: ServingProfile
    config: CompareConfig
    runner: Runner
    given: Overrides
    """Options that the user set; they win over what a sweep finds."""
    jobs: int
    watch: Watch

    def options(self, name: str) -> dict[str, OptionValue]:
        """The options that the user set for a policy."""
        return dict(self.given.get(name, {}))

    def check(self, policies: Mapping[str, str]) -> None:
        """Tries what can be known before any run.

        Raises:
            InputError: an option belongs to no policy here, or a policy cannot be built.
        """
        known = dict.fromkeys((*policies, "static", "hpa"))
        for name in self.given:
            if name not in known:
                near = get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"policies: {', '.join(known)}"
                raise ConfigError(f"--set {name}: no such policy is compared; {hint}")
        count = self.options("static").get("replicas", 1)
        if not isinstance(count, int) or not 1 <= count <= self.config.run.max_replicas:
            raise ConfigError(
                f"--set static.replicas={count}: expected a whole number from 1 to "
                f"run.max_replicas ({self.config.run.max_replicas})"
            )
        hpa = self.options("hpa")
        target = hpa.get("target", 1.0)
        if isinstance(target, str) or not target > 0:
            raise ConfigError(f"--set hpa.target={target}: expected a number above 0")
        if hpa.keys() & {"metric", "target_type"} and "target" not in hpa:
            raise ConfigError(
                "--set hpa: the sweep looks for output tokens/s per replica; "
                "with another metric or target type, give hpa.target too"
            )
        for name, spec in policies.items():
            run = self.run(initial=int(count), fallback_target=float(target))
            self.runner.check(self.profile, Job(spec, name, self.options(name), run, SEED))

    def run(self, *, initial: int, fallback_target: float | None) -> RunConfig:
        """The configuration of a run, with what the sweeps found filled in."""
        return replace(self.config.run, initial_replicas=initial, fallback_target=fallback_target)

    def static(self, trace: Trace, what: str) -> Sweep:
        """The sweep of static on a trace."""

        def attempt(values: Sequence[float]) -> list[Figures]:
            options = self.options("static")
            jobs = [
                Job(
                    "static",
                    "static",
                    {**options, "replicas": int(value)},
                    self.run(initial=int(value), fallback_target=None),
                    SEED,
                )
                for value in values
            ]
            return self._figures(trace, jobs, [f"{what}: static {value:g}" for value in values])

        return sweep_static(attempt, self.config.sweep, self.config.run.max_replicas)

    def hpa(self, trace: Trace, what: str, start: int) -> Sweep:
        """The sweep of hpa on a trace, from `start` replicas."""

        def attempt(values: Sequence[float]) -> list[Figures]:
            options = self.options("hpa")
            jobs = [
                Job(
                    "hpa",
                    "hpa",
                    {**options, "target": value},
                    self.run(initial=start, fallback_target=value),
                    SEED,
                )
                for value in values
            ]
            return self._figures(trace, jobs, [f"{what}: hpa {value:g}" for value in values])

        tokens = float(trace.output_tokens.sum(dtype=np.int64))
        # A trace of one moment has no rate: a tick stands in, and the grid moves on from there.
        span_s = max(trace.last_arrival_s, self.config.run.tick_s)
        return sweep_hpa(attempt, self.config.sweep, around=tokens / span_s / start)

    def _figures(self, trace: Trace, jobs: Sequence[Job], labels: Sequence[str]) -> list[Figures]:
        tasks = [
            RunTask(self.runner, trace, self.profile, job, label)
            for job, label in zip(jobs, labels, strict=True)
        ]
        return [digest.figures for digest in fan_out(tasks, self.jobs, self.watch)]


def tune(
    bench: Bench, policies: Mapping[str, str], trace: Trace, train_trace: Trace | None
) -> Tuning:
    """Sweeps what the policies need and nobody gave.

    Static's count is also the count that the others start with, and hpa's target is the
    fallback's; so both are swept where a policy other than the rule itself needs them.
    """
    run, specs = bench.config.run, set(policies.values())
    train = trace if train_trace is None else train_trace
    sweeps: dict[str, Sweep] = {}
    curves: dict[str, Sweep] = {}

    if "replicas" in bench.options("static"):
        count = int(bench.options("static")["replicas"])
    elif "static" in specs or run.initial_replicas is None:
        sweeps["static"] = bench.static(train, "tuning")
        curves["static"] = sweeps["static"] if train is trace else bench.static(trace, "curve")
        count = int(sweeps["static"].chosen.value)
    else:
        count = run.initial_replicas
    start = count if run.initial_replicas is None else run.initial_replicas

    target = bench.options("hpa").get("target")
    alone = specs == {"static"} and run.authority != "floor"
    if target is None and ("hpa" in specs or (run.fallback_target is None and not alone)):
        sweeps["hpa"] = bench.hpa(train, "tuning", start)
        curves["hpa"] = sweeps["hpa"] if train is trace else bench.hpa(trace, "curve", start)
        target = sweeps["hpa"].chosen.value
    if run.fallback_target is not None:
        target = run.fallback_target
    return Tuning(
        trace=train.name,
        hindsight=train is trace,
        sweeps=sweeps,
        curves=curves,
        initial_replicas=start,
        fallback_target=None if target is None else float(target),
    )


def tuned_job(bench: Bench, tuning: Tuning, name: str, spec: str, seed: int) -> Job:
    """A policy's job with what the sweeps found, where the user gave nothing else."""
    options, initial = bench.options(name), tuning.initial_replicas
    if spec in tuning.sweeps:
        sweep = tuning.sweeps[spec]
        whole = sweep.option == "replicas"
        options.setdefault(sweep.option, int(sweep.chosen.value) if whole else sweep.chosen.value)
    if spec == "static":
        initial = int(options["replicas"])
    run = bench.run(initial=initial, fallback_target=tuning.fallback_target)
    return Job(spec, name, options, run, seed)
