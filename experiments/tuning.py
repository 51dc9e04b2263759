"""Tuning the rules of a comparison, before anything is compared.

Comparing with an untuned rule is no result. So on the training trace the count of static is
narrowed down, which gives the load that one replica carries; around that load every other rule is
searched, all with one budget. Then each rule's curve is drawn on the compared trace.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from experiments.job import Job
from experiments.search import Search, Searching, Space
from experiments.sweep import SEED, Sweep
from experiments.tuned import Tuned
from experiments.workbench import START, STATIC, STATIC_BEST, Bench, Overrides
from policies import POLICIES, Load, OptionValue
from tuner.core.trace import Trace
from tuner.train.digests import trace_digest


@dataclass(frozen=True)
class Tuning:
    """How the rules came by their settings."""

    trace: str
    """Name of the trace they were tuned on."""
    hindsight: bool
    """Whether that is the very trace they are compared on."""
    sweeps: Mapping[str, Sweep]
    """Policy that is compared -> its sweep, where one option was tried over its range: the count of
    static, on the compared trace, and of static-best, on this one."""
    curves: Mapping[str, Sweep]
    """Policy -> its dial on the compared trace, everything else as tuned: what cost buys there,
    with hindsight."""
    initial_replicas: int
    """Count that every policy but static started with."""
    fallback_target: float | None
    """Output tokens/s per replica of the fallback; None: no run has a fallback that scales."""
    searches: Mapping[str, Search] = field(default_factory=dict)
    """Policy -> everything that was tried for it."""
    fallback: Mapping[str, OptionValue] = field(default_factory=dict)
    """Options of the fallback beside its target."""
    options: Overrides = field(default_factory=dict)
    """Policy -> what tuning found for it."""


def tune(
    bench: Bench,
    policies: Mapping[str, str],
    trace: Trace,
    train_trace: Trace | None,
    tuned: Mapping[str, Tuned] | None = None,
) -> Tuning:
    """Finds the settings that nobody gave.

    Static's count is also the count that the others start with, and hpa's options are the
    fallback's of learned policies; so both are tuned where another policy needs them.

    Args:
        bench: what the runs share.
        policies: name in tables -> what to build.
        trace: the load that is compared.
        train_trace: the load to tune on; None: the compared one.
        tuned: policy -> what `tuner tune` found for it; takes the place of its search.
    """
    tuned = tuned or {}
    train = trace if train_trace is None else train_trace
    count, load, counted, curves = _static(bench, policies, trace, train)
    start = bench.config.run.initial_replicas or count
    found: dict[str, dict[str, OptionValue]] = {}
    for name, sweep in counted.items():
        found[name] = {"replicas": int(sweep.chosen.value)}
    sweeps = {
        name: sweep
        for name, sweep in counted.items()
        if name in policies.values() and "replicas" not in bench.options(name)
    }
    rules = _to_tune(bench, policies)
    if "hpa" in rules and bench.config.sweep.hpa_targets and "hpa" not in tuned:
        sweeps["hpa"] = bench.hpa(train, "tuning", start)
        curves["hpa"] = sweeps["hpa"] if train is trace else bench.hpa(trace, "frontier", start)
        found["hpa"] = {"target": sweeps["hpa"].chosen.value}
        del rules["hpa"]
    searches: dict[str, Search] = {}
    if rules:
        if load is None:
            load = bench.counts(train, START, [count])[0].load
        assert load is not None
        spaces = {name: bench.space(name, spec, load) for name, spec in rules.items()}
        searches = _searched(bench, spaces, train, trace, start, tuned)
        found.update({name: dict(search.chosen.options) for name, search in searches.items()})
    target, fallback = _fallback(bench, found)
    if rules:
        curves.update(bench.curves(trace, start, found, spaces, target, fallback))
    return Tuning(
        trace=train.name,
        hindsight=train is trace,
        sweeps=sweeps,
        curves=curves,
        initial_replicas=start,
        fallback_target=target,
        searches=searches,
        fallback=fallback,
        options=found,
    )


def _static(
    bench: Bench, policies: Mapping[str, str], trace: Trace, train: Trace
) -> tuple[int, Load | None, dict[str, Sweep], dict[str, Sweep]]:
    """The count to start with, and if that takes a sweep: load, sweeps and curves.

    Static has the best count of the compared trace, static-best that of the training trace.
    """
    given = bench.options(STATIC).get("replicas")
    start = bench.config.run.initial_replicas
    asked = any(
        "replicas" not in bench.options(name)
        for name in (STATIC, STATIC_BEST)
        if name in policies.values()
    )
    if not asked and (given is not None or start is not None):
        return int(given or start or 1), None, {}, {}
    sweep, load = bench.static(train, START)
    curve = sweep if train is trace else bench.static(trace, "frontier")[0]
    found = {STATIC: curve, STATIC_BEST: replace(sweep, policy=STATIC_BEST)}
    return int(given or sweep.chosen.value), load, found, {STATIC: curve}


def _to_tune(bench: Bench, policies: Mapping[str, str]) -> dict[str, str]:
    """Policy -> what to build, for each rule whose dial nobody has set; hpa too where it is the
    fallback of a learned policy, or owns the replicas."""
    rules = {name: spec for name, spec in policies.items() if spec in POLICIES}
    run = bench.config.run
    native = len(rules) < len(policies) or run.authority == "floor"
    if native and run.fallback_target is None:
        rules.setdefault("hpa", "hpa")
    return {
        name: spec
        for name, spec in rules.items()
        if spec not in (STATIC, STATIC_BEST) and not bench.is_set(name, spec)
    }


def _searched(
    bench: Bench,
    spaces: Mapping[str, Space],
    train: Trace,
    trace: Trace,
    start: int,
    tuned: Mapping[str, Tuned],
) -> dict[str, Search]:
    """What was found for each rule, by a search here or by one before."""
    sweep = bench.config.sweep
    searchings = {
        name: Searching(space, trials=sweep.trials, goal=sweep.goal, seed=SEED)
        for name, space in spaces.items()
        if name not in tuned
    }
    bench.search(train, start, searchings)
    compared = trace_digest(trace)
    return {
        name: tuned[name].search(compared, bench.profile)
        if name in tuned
        else searchings[name].result(train, hindsight=train is trace)
        for name in spaces
    }


def _fallback(bench: Bench, found: Overrides) -> tuple[float | None, Mapping[str, OptionValue]]:
    """Target and other options of the fallback: what was found for hpa, unless one was given."""
    stated = bench.config.run.fallback_target
    if stated is not None:
        return stated, {}
    options = {**found.get("hpa", {}), **bench.options("hpa")}
    target = options.pop("target", None)
    return (None, {}) if target is None else (float(target), options)


def tuned_job(bench: Bench, tuning: Tuning, name: str, spec: str, seed: int) -> Job:
    """A policy's job with what tuning found, where the user gave nothing else."""
    options = {**tuning.options.get(name, {}), **bench.options(name)}
    initial = tuning.initial_replicas
    if spec in (STATIC, STATIC_BEST):
        initial = int(options["replicas"])
    return bench.job(name, spec, options, initial, seed, tuning.fallback_target, tuning.fallback)
