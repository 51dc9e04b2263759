"""Jobs, done in the simulator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from experiments.job import Job
from experiments.result import RunResult
from experiments.run import run, target_knobs
from policies import POLICIES, OptionValue, RulePolicy, StaticRule, build_policy
from policies.floor import FloorPolicy
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
        policy = build_policy(
            job.policy,
            job.options,
            knobs,
            tick_s=config.tick_s,
            profile=profile,
            slo=config.slo,
        )
        native = native_of(job, knobs) if config.authority == "floor" else None
        # Without a native rule there is no floor to raise: so are static's sweeps run.
        return policy if native is None else FloorPolicy(policy, native, native.rule.memory_size)


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
        "beats its base rule": manifest.results.beats_base,
    }


def fallback_of(job: Job, knobs: KnobSpace) -> Policy:
    """The native rule; without one, or where no guardrail can hand over to it, nobody: settings
    are held."""
    native = native_of(job, knobs) if job.guarded else None
    return native or RulePolicy("hold", StaticRule({}))


def native_of(job: Job, knobs: KnobSpace) -> RulePolicy | None:
    """HPA on output tokens/s at the job's target; None without a target."""
    target = job.config.fallback_target
    if target is None:
        return None
    options: dict[str, OptionValue] = {**job.fallback, "target": target}
    return build_policy("hpa", options, knobs, tick_s=job.config.tick_s)
