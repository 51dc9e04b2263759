"""Jobs, done in the simulator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from experiments.job import Job
from experiments.result import RunResult
from experiments.run import run, target_knobs
from policies import POLICIES, OptionValue, RulePolicy, StaticRule, build_policy
from tuner.core.knobs import KnobSpace
from tuner.core.profile import ServingProfile
from tuner.core.protocols import Policy
from tuner.core.trace import Trace
from tuner.data.bundles import read_bundle
from tuner.guardrails import bounds_alone


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
            guardrails=None if job.guarded else bounds_alone(),
            settings={**job.options, **trained_from(job.policy)},
            progress=progress,
        )

    def identity(self, policy: str) -> str:
        """The name of a rule; of a bundle the digest that stands for the whole of it."""
        return policy if policy in POLICIES else read_bundle(policy).digest

    def _policy(self, job: Job, knobs: KnobSpace, profile: ServingProfile) -> Policy:
        config = job.config
        return build_policy(
            job.policy,
            job.options,
            knobs,
            tick_s=config.tick_s,
            profile=profile,
            slo=config.slo,
        )


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
        "simulated hours": manifest.steps * float(str(manifest.codec["tick_s"])) / 3600,
    }


def fallback_of(job: Job, knobs: KnobSpace) -> Policy:
    """HPA on output tokens/s at the job's target; without a target, or where no guardrail can hand
    over to it, nobody: settings are held."""
    target = job.config.fallback_target
    if target is None or not job.guarded:
        return RulePolicy("hold", StaticRule({}))
    options: dict[str, OptionValue] = {**job.fallback, "target": target}
    return build_policy("hpa", options, knobs, tick_s=job.config.tick_s)
