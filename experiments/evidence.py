"""What would the policy have cost? The logged load, rebuilt and replayed against the rule of today.

The audit log holds rates, not requests, so the load is a reconstruction: as many arrivals as were
seen between two ticks, spread evenly at random; prompts and outputs as long as they were on average
in those minutes, drawn from geometric distributions, the ones that say nothing but their mean. Each
seed draws another reconstruction, and policy and rule meet the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from envs.workloads.rebuilt import (
    LENGTH_WINDOW_S,
    CountedLoad,
    Lengths,
    blocks_of,
    means_of,
)
from envs.workloads.rebuilt import rebuilt as requests_of
from experiments.config import GuardrailConfig, RunConfig
from experiments.fanout import Progress, Watch, fan_out, silent
from experiments.result import Floats, Ints
from experiments.run import run, target_knobs
from experiments.statistics import seeds_interval
from experiments.summary import figures_of
from policies import POLICIES, build_policy
from tuner.config import TargetConfig
from tuner.config.mistakes import knobs_allowed
from tuner.control.audit_store import AuditStore, RunIdentity
from tuner.control.promote import (
    HOUR_S,
    Evidence,
    Predicted,
    Prediction,
    SeenTick,
    seen_in_shadow,
    seen_of_others,
    spans_s,
    watched,
)
from tuner.core.knobs import KnobSpace
from tuner.core.profile import ServingProfile
from tuner.core.trace import Trace
from tuner.data import load_profile
from tuner.data.bundles import read_bundle
from tuner.guardrails import bounds_alone

MOST_REQUESTS = 5_000_000
"""Of one replay; of a longer log the newest part is replayed. A minute on one core or two."""

FIRST_SEED = 1


@dataclass(frozen=True, eq=False)
class LoggedLoad:
    """The load between ticks, as columns; time that nobody watched is left out."""

    length_s: Floats
    """`(intervals,)` seconds."""
    arrivals: Ints
    """`(intervals,)` requests."""
    prompt_tokens: Floats
    """`(intervals,)` mean of a request, >= 1."""
    output_tokens: Floats
    """`(intervals,)` mean of a request, >= 1."""
    cut_s: float = 0.0
    """Seconds that were watched and are not replayed, because the log is too long."""

    @property
    def requests(self) -> int:
        return int(self.arrivals.sum())

    @property
    def hours(self) -> float:
        return float(self.length_s.sum()) / HOUR_S


def logged_load(ticks: Sequence[SeenTick], *, tick_s: float) -> LoggedLoad | None:
    """The load that the ticks saw; None where none of them saw any.

    A tick whose arrivals were not measured is covered by the next one that was, unless that is so
    much later that it follows a gap; gaps are left out.
    """
    known = [tick for tick in ticks if tick.qps is not None and tick.qps >= 0]
    if not known:
        return None
    length_s = spans_s(known, tick_s)
    columns = np.array(
        [[t.qps, t.prompt_tokens_per_s, t.output_tokens_per_s] for t in known], dtype=np.float64
    )
    # Rounded as a running total, so that no request is lost however short the intervals are.
    total = np.floor(np.cumsum(columns[:, 0] * length_s) + 1e-9)
    arrivals = np.diff(total, prepend=0.0).astype(np.int64)
    if not arrivals.sum():
        return None
    block = blocks_of(length_s, LENGTH_WINDOW_S)
    prompt, output = (
        means_of(columns[:, 0] * length_s, columns[:, place] * length_s, block) for place in (1, 2)
    )
    if prompt is None or output is None:
        return None
    newest = np.cumsum(arrivals[::-1])[::-1] <= MOST_REQUESTS
    if not arrivals[newest].any():
        return None
    return LoggedLoad(
        length_s[newest],
        arrivals[newest],
        prompt[block][newest],
        output[block][newest],
        cut_s=float(length_s[~newest].sum()),
    )


def rebuilt(load: LoggedLoad, seed: int) -> Trace:
    """One reconstruction of the load: same counts, same mean lengths, other draws per seed."""
    ends_s = np.cumsum(load.length_s)
    counted = CountedLoad(
        start_s=ends_s - load.length_s,
        length_s=load.length_s,
        requests=load.arrivals,
        block=np.arange(len(ends_s)),
        prompt=Lengths(load.prompt_tokens),
        output=Lengths(load.output_tokens),
    )
    header = {"origin": "rebuilt from an audit log"}
    return requests_of(counted, seed, name="the logged load", header=header)


@dataclass(frozen=True)
class Replayed:
    """One policy on one reconstruction."""

    gpu_hours: float
    attainment: float


@dataclass(frozen=True)
class ReplayTask:
    """One run; can be sent to another process."""

    load: LoggedLoad = field(repr=False)
    profile: ServingProfile = field(repr=False)
    target: TargetConfig = field(repr=False)
    knobs: KnobSpace = field(repr=False)
    config: RunConfig = field(repr=False)
    policy: str
    """`policy` or `rule`."""
    seed: int

    @property
    def label(self) -> str:
        return f"{self.policy}, seed {self.seed}"

    def __call__(self, progress: Progress) -> Replayed:
        target, tick_s = self.target, self.config.tick_s
        rule = build_policy(target.fallback, target.fallback_options, self.knobs, tick_s=tick_s)
        if self.policy == "rule":
            # Nobody clamps the rule of today.
            policy, guardrails = rule, bounds_alone()
        else:
            policy = build_policy(target.policy, target.policy_options, self.knobs, tick_s=tick_s)
            guardrails = self.config.guardrails.build()
        result = run(
            rebuilt(self.load, self.seed),
            self.profile,
            policy,
            config=self.config,
            seed=self.seed,
            fallback=rule,
            guardrails=guardrails,
            knobs=self.knobs,
            progress=progress,
        )
        figures = figures_of(result, self.config.slo)
        return Replayed(figures.gpu_hours, figures.slo_attainment)


def predict(
    ticks: Sequence[SeenTick], target: TargetConfig, *, jobs: int = 1, watch: Watch = silent
) -> tuple[Prediction | None, str]:
    """The policy against the fallback on the logged load; or None, and why.

    Args:
        ticks: of the policy in shadow, oldest first.
        target: its profile, seeds, knobs, guardrails and objectives.
        jobs: processes at once.
        watch: told how far each run is.

    Raises:
        InputError: the profile, the policy or the fallback cannot be used.
    """
    if target.promotion.profile is None:
        return None, "promotion.profile names no serving profile to replay the logged load in"
    profile = load_profile(target.promotion.profile)
    load = logged_load(ticks, tick_s=target.tick_s)
    if load is None:
        return None, "the log holds no load with prompt and output tokens to replay"
    knobs, pinned = replay_knobs(target, profile, ticks)
    config = _run_config(target, knobs, ticks)
    seeds = range(FIRST_SEED, FIRST_SEED + target.promotion.seeds)
    tasks = [
        ReplayTask(load, profile, target, knobs, config, policy, seed)
        for seed in seeds
        for policy in ("policy", "rule")
    ]
    results = fan_out(tasks, jobs, watch)
    return _prediction(load, profile, target, results[0::2], results[1::2], pinned), ""


def replay_knobs(
    target: TargetConfig, profile: ServingProfile, ticks: Sequence[SeenTick]
) -> tuple[KnobSpace, tuple[str, ...]]:
    """The target's knobs as far as the simulator can tell, and a sentence for each that is held.

    Knobs that the target may not write stay at the value last seen; knobs that the profile does not
    model stay at their default.

    Raises:
        ConfigError: a range of the target is none.
    """
    allowed = knobs_allowed(target)
    modelled = target_knobs(profile, max_replicas=allowed["replicas"].high)
    specs, held = [], []
    for spec in allowed.specs:
        limit = modelled[spec.name]
        low, high = max(spec.low, limit.low), min(spec.high, limit.high)
        if spec.name in profile.unmodelled_knobs():
            low = high = limit.low
            held.append(f"{spec.name} is not modelled by the profile")
        elif spec.name not in target.move:
            seen = [t.settings[spec.name] for t in ticks if spec.name in t.settings]
            value = min(max(seen[-1] if seen else spec.default, limit.low), limit.high)
            low = high = value
        specs.append(spec.bounded(min(low, high), high))
    return KnobSpace(tuple(specs)), tuple(held)


def _run_config(target: TargetConfig, knobs: KnobSpace, ticks: Sequence[SeenTick]) -> RunConfig:
    replicas = knobs["replicas"]
    seen = [tick.settings["replicas"] for tick in ticks if "replicas" in tick.settings]
    start = seen[0] if seen else replicas.default
    return RunConfig(
        slo=target.slo,
        tick_s=target.tick_s,
        max_replicas=replicas.high,
        initial_replicas=min(max(start, replicas.low), replicas.high),
        guardrails=GuardrailConfig(max_age_s=target.max_age_s, steps=target.steps),
    )


def _prediction(
    load: LoggedLoad,
    profile: ServingProfile,
    target: TargetConfig,
    policy: Sequence[Replayed],
    rule: Sequence[Replayed],
    pinned: Sequence[str],
) -> Prediction:
    pairs = list(zip(policy, rule, strict=True))
    gains = [1 - ours.gpu_hours / theirs.gpu_hours for ours, theirs in pairs]
    served = [ours.attainment - theirs.attainment for ours, theirs in pairs]
    notes = [
        "arrivals and lengths are rebuilt from the rates in the audit log: counts and mean lengths "
        "are those seen, single requests are drawn",
        *pinned,
    ]
    if _looks_at_the_clock(target.policy):
        notes.append("the policy looks at the time of day, and the replay begins at midnight")
    if load.cut_s:
        notes.append(
            f"the log holds more than {MOST_REQUESTS:,} requests: the oldest "
            f"{load.cut_s / HOUR_S:.1f} h are not replayed"
        )
    return Prediction(
        profile=profile.name,
        rule=target.fallback,
        seeds=len(pairs),
        requests=load.requests,
        hours=load.hours,
        rule_gpu_hours=float(np.mean([run.gpu_hours for run in rule])),
        policy_gpu_hours=float(np.mean([run.gpu_hours for run in policy])),
        rule_attainment=float(np.mean([run.attainment for run in rule])),
        policy_attainment=float(np.mean([run.attainment for run in policy])),
        gain=Predicted(float(np.mean(gains)), seeds_interval(gains)),
        attainment=Predicted(float(np.mean(served)), seeds_interval(served)),
        notes=tuple(notes),
    )


def _looks_at_the_clock(policy: str) -> bool:
    """Whether a bundle was trained with the time of day among its features."""
    return policy not in POLICIES and bool(read_bundle(policy).manifest.codec.get("time_of_day"))


def gather(
    store: AuditStore,
    target: TargetConfig,
    identity: RunIdentity,
    *,
    jobs: int = 1,
    watch: Watch = silent,
) -> Evidence:
    """All the evidence there is for a policy on a target.

    Args:
        store: the audit log.
        target: as it is configured now.
        identity: what would act; only its own decisions in shadow count.
        jobs: processes at once.
        watch: told how far each run of the replay is.

    Raises:
        InputError: the profile, the policy or the fallback cannot be used.
        TunerError: the audit log cannot be read.
    """
    ticks = seen_in_shadow(store, target, identity)
    others = seen_of_others(store, target, len(ticks))
    found, why_not = predict(ticks, target, jobs=jobs, watch=watch)
    return Evidence(watched(ticks, tick_s=target.tick_s, others=others), found, why_not)
