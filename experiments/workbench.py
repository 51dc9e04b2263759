"""What the runs of a comparison share, and the runs that tuning asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

import numpy as np

from experiments.cells import Cells
from experiments.config import CompareConfig, RunConfig
from experiments.digest import RunDigest
from experiments.fanout import Watch
from experiments.job import Job, Runner, RunTask
from experiments.run import target_knobs
from experiments.search import Searching, Space
from experiments.summary import Figures
from experiments.sweep import SEED, Point, Sweep, curve_of, curve_values, sweep_hpa, sweep_static
from policies import POLICIES, Load, OptionValue, Target
from tuner.core.errors import ConfigError
from tuner.core.profile import ServingProfile
from tuner.core.trace import Trace

Overrides = Mapping[str, Mapping[str, OptionValue]]
"""Policy -> option -> value."""

STATIC = "static"
"""Holds the count that is best on the compared trace: no fixed fleet could have done better."""
STATIC_BEST = "static-best"
"""Holds the count that is best on the training trace: what its owner would have bought."""
ANY_LOAD = Load(1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
"""For what does not depend on the load: which parameters a rule has, and their units."""


def rule_tick_s(run: RunConfig, spec: str) -> float:
    """Seconds between two looks of a rule: its own, or everybody's where it has none."""
    return POLICIES[spec].tick_s or run.tick_s


def rule_target(profile: ServingProfile, run: RunConfig, spec: str) -> Target:
    """What a rule is built for in a comparison."""
    knobs = target_knobs(profile, max_replicas=run.max_replicas)
    return Target(knobs, rule_tick_s(run, spec), profile, run.slo)


START = "fleet that all start from"
"""What the runs of static are for that come before the searches, in words."""


@dataclass(frozen=True)
class Bench:
    """What all runs of a comparison share."""

    profile: ServingProfile
    config: CompareConfig
    runner: Runner
    given: Overrides
    """Options that the user set; they win over what tuning finds."""
    cells: Cells
    jobs: int
    watch: Watch
    native: bool = True
    """Whether rules run as in their own projects: at their own period, under the bounds of the
    knobs alone. Else as what a learned policy stands on: at its tick, under its guardrails."""

    def options(self, name: str) -> dict[str, OptionValue]:
        """The options that the user set for a policy."""
        return dict(self.given.get(name, {}))

    def check(self, policies: Mapping[str, str], *, trained: bool = False) -> None:
        """Tries what can be known before any run.

        Args:
            policies: name in tables -> what to build.
            trained: whether there is a training trace, on which static-best's count is found.

        Raises:
            InputError: an option belongs to no policy here, or a policy cannot be built.
        """
        known = dict.fromkeys((*policies, "static", "hpa"))
        for name in self.given:
            if name not in known:
                near = get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"policies: {', '.join(known)}"
                raise ConfigError(f"--set {name}: no such policy is compared; {hint}")
        for name in (STATIC, STATIC_BEST):
            count = self.options(name).get("replicas", 1)
            if not isinstance(count, int) or not 1 <= count <= self.config.run.max_replicas:
                raise ConfigError(
                    f"--set {name}.replicas={count}: expected a whole number from 1 to "
                    f"run.max_replicas ({self.config.run.max_replicas})"
                )
        target = self.options("hpa").get("target", 1.0)
        if isinstance(target, str) or not target > 0:
            raise ConfigError(f"--set hpa.target={target}: expected a number above 0")
        for name, spec in policies.items():
            self._check_metric(name, spec)
            options = self.options(name)
            if spec == STATIC_BEST and trained:
                options.setdefault("replicas", 1)
            job = self.job(name, spec, options, 1, SEED, float(target))
            self.runner.check(self.profile, job)

    def _check_metric(self, name: str, spec: str) -> None:
        """A dial is a target of the default metric: of another one nobody knows the range."""
        if not self.options(name).keys() & {"metric", "target_type"} or self.is_set(name, spec):
            return
        dial = POLICIES[spec].search(ANY_LOAD)[0]
        raise ConfigError(
            f"--set {name}: the search looks for {dial.unit}; with another metric or target type, "
            f"give {name}.{dial.name} too"
        )

    def is_set(self, name: str, spec: str) -> bool:
        """Whether nothing is left to search: the user has set the dial, or there is none."""
        parameters = POLICIES[spec].search(ANY_LOAD) if spec in POLICIES else ()
        if not parameters or parameters[0].name in self.options(name):
            return True
        # Others may contradict what is set, as the peak of a schedule does its scale.
        return not self.space(name, spec, ANY_LOAD).parameters

    def job(
        self,
        name: str,
        spec: str,
        options: Mapping[str, OptionValue],
        initial: int,
        seed: int,
        fallback_target: float | None = None,
        fallback: Mapping[str, OptionValue] | None = None,
    ) -> Job:
        """A policy's job: a rule at its own tick and on its own, anything else as configured."""
        run = replace(self.config.run, initial_replicas=initial, fallback_target=fallback_target)
        if not (spec in POLICIES and self.native):
            return Job(spec, name, options, run, seed, fallback=fallback or {})
        run = replace(run, tick_s=self.tick_s(spec))
        if run.authority != "floor":
            # Nobody takes over from a rule, and nobody stands beside it.
            run, fallback = replace(run, fallback_target=None), None
        return Job(spec, name, options, run, seed, guarded=False, fallback=fallback or {})

    def tick_s(self, spec: str) -> float:
        """Seconds between two looks of a rule: its own, or everybody's where it has none."""
        return rule_tick_s(self.config.run, spec)

    def space(self, name: str, spec: str, load: Load) -> Space:
        """What can be searched of a rule around a load."""
        target = rule_target(self.profile, self.config.run, spec)
        return Space.of(spec, load, target, self.options(name))

    def static(self, trace: Trace, what: str) -> tuple[Sweep, Load]:
        """The sweep of static on a trace, and what a replica of the chosen fleet carries."""
        loads: dict[float, Load] = {}

        def attempt(values: Sequence[float]) -> list[Figures]:
            digests = self.counts(trace, what, [int(value) for value in values])
            loads.update({v: d.load for v, d in zip(values, digests, strict=True) if d.load})
            return [digest.figures for digest in digests]

        sweep = sweep_static(attempt, self.config.sweep, self.config.run.max_replicas)
        return replace(sweep, trace=trace.name), loads[sweep.chosen.value]

    def counts(self, trace: Trace, what: str, counts: Sequence[int]) -> list[RunDigest]:
        """Runs of static."""
        options = self.options("static")
        jobs = [
            self.job("static", "static", {**options, "replicas": count}, count, SEED)
            for count in counts
        ]
        return self.digests(
            trace, jobs, [f"{what}: static with replicas {count}" for count in counts]
        )

    def hpa(self, trace: Trace, what: str, start: int) -> Sweep:
        """The sweep of hpa's target on a trace, from `start` replicas."""

        def attempt(values: Sequence[float]) -> list[Figures]:
            options = self.options("hpa")
            jobs = [
                self.job("hpa", "hpa", {**options, "target": value}, start, SEED, value)
                for value in values
            ]
            labels = [f"{what}: hpa with target {value:g}" for value in values]
            return [digest.figures for digest in self.digests(trace, jobs, labels)]

        tokens = float(trace.output_tokens.sum(dtype=np.int64))
        # A trace of one moment has no rate: a tick stands in, and the grid moves on from there.
        span_s = max(trace.last_arrival_s, self.config.run.tick_s)
        sweep = sweep_hpa(attempt, self.config.sweep, around=tokens / span_s / start)
        return replace(sweep, trace=trace.name)

    def search(self, trace: Trace, start: int, searchings: Mapping[str, Searching]) -> None:
        """Takes searches to their end, all together, so that no process waits for another's."""
        while rounds := {name: s.batch() for name, s in searchings.items() if not s.done}:
            jobs, labels = [], []
            for name, batch in rounds.items():
                searching = searchings[name]
                for place, options in enumerate(batch, start=searching.known + 1):
                    given = {**options, **self.options(name)}
                    jobs.append(self.job(name, searching.space.policy, given, start, SEED))
                    labels.append(f"tuning: {name}, trial {place} of {searching.trials}")
            digests = iter(self.digests(trace, jobs, labels))
            for name, batch in rounds.items():
                searchings[name].tell([next(digests).figures for _ in batch])

    def curves(
        self,
        trace: Trace,
        start: int,
        tuned: Mapping[str, Mapping[str, OptionValue]],
        spaces: Mapping[str, Space],
        fallback_target: float | None,
        fallback: Mapping[str, OptionValue],
    ) -> dict[str, Sweep]:
        """The dial of every tuned rule on a trace, everything else as tuned."""
        jobs, labels = [], []
        values: dict[str, list[float]] = {}
        for name, space in spaces.items():
            dial = space.dial
            found = tuned[name].get(dial.name, space.defaults.get(dial.name))
            if found is None:
                continue
            values[name] = []
            for value in curve_values(dial, float(found)):
                setting: dict[str, OptionValue] = {**tuned[name], **self.options(name)}
                setting[dial.name] = round(value) if dial.whole else value
                job = self.job(name, space.policy, setting, start, SEED, fallback_target, fallback)
                try:
                    self.runner.check(self.profile, job)
                except ConfigError:
                    # With everything else as tuned, this far the dial does not turn.
                    continue
                values[name].append(value)
                jobs.append(job)
                labels.append(f"frontier: {name} with {dial.name} {value:g}")
        digests = iter(self.digests(trace, jobs, labels))
        goal = self.config.sweep.goal
        return {
            name: curve_of(
                name,
                spaces[name].dial,
                [Point(value, next(digests).figures) for value in tried],
                goal,
            )
            for name, tried in values.items()
            if tried
        }

    def digests(self, trace: Trace, jobs: Sequence[Job], labels: Sequence[str]) -> list[RunDigest]:
        """Runs that tune: nothing but their figures is kept."""
        tasks = [
            RunTask(self.runner, trace, self.profile, job, label)
            for job, label in zip(jobs, labels, strict=True)
        ]
        return self.cells.run(tasks, self.jobs, self.watch)
