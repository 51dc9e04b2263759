"""Jobs, done in the simulator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from experiments.job import Job
from experiments.result import RunResult
from experiments.run import run, target_knobs
from policies import POLICIES, RulePolicy, StaticRule, build_policy
from policies.floor import FloorPolicy
from tuner.core.knobs import KnobSpace
from tuner.core.profile import ServingProfile
from tuner.core.protocols import Policy
from tuner.core.trace import Trace
from tuner.data.bundles import read_bundle


@dataclass(frozen=True)
class SimulationRunner:
    """Builds a job's policy and runs it on a simulated fleet."""

    def check(self, profile: ServingProfile, job: Job) -> None:
        """Build what the job names, and throw it away.

        Raises:
            InputError: the policy, one of its options or its bundle cannot be used.
        """
        knobs = target_knobs(profile, max_replicas=job.config.max_replicas)
        self._policy(job, knobs, profile)
        fallback_of(job, knobs)

    def __call__(
        self,
        trace: Trace,
        profile: ServingProfile,
        job: Job,
        progress: Callable[[float], None],
    ) -> RunResult:
        knobs = target_knobs(profile, max_replicas=job.config.max_replicas)
        return run(
            trace,
            profile,
            self._policy(job, knobs, profile),
            config=job.config,
            seed=job.seed,
            fallback=fallback_of(job, knobs),
            settings={**job.options, **trained_from(job.policy)},
            progress=progress,
        )

    def _policy(self, job: Job, knobs: KnobSpace, profile: ServingProfile) -> Policy:
        config = job.config
        policy = build_policy(
            job.policy,
            job.options,
            knobs,
            tick_s=config.tick_s,
            profile=profile,
            slo=config.slo,
        )
        if config.authority != "floor" or config.fallback_target is None:
            # Without a native rule there is no floor to raise: so are static's sweeps run.
            return policy
        native = fallback_of(job, knobs)
        return FloorPolicy(policy, native, native.rule.memory_size)


def trained_from(policy: str) -> dict[str, object]:
    """What a bundle was trained from, for reports; nothing for a rule."""
    if policy in POLICIES:
        return {}
    manifest = read_bundle(policy).manifest
    return {
        "trained on": manifest.trace,
        "trained on sha256": manifest.digests.trace,
        "trained with": manifest.profile,
        "steps": manifest.steps,
    }


def fallback_of(job: Job, knobs: KnobSpace) -> RulePolicy:
    """HPA on output tokens/s at the job's target; without a target, nobody: settings are held."""
    target = job.config.fallback_target
    if target is None:
        return RulePolicy("hold", StaticRule({}))
    return build_policy("hpa", {"target": target}, knobs, tick_s=job.config.tick_s)
