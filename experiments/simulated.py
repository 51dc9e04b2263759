"""The runner of comparisons: a job's policy in the control loop around a simulated fleet."""

from __future__ import annotations

from dataclasses import dataclass

from experiments.fanout import Progress
from experiments.job import Job
from experiments.result import RunResult
from experiments.run import run, target_knobs
from policies import build_policy
from tuner.core.profile import ServingProfile
from tuner.core.protocols import Policy
from tuner.core.trace import Trace


@dataclass(frozen=True)
class Simulated:
    """Does jobs in `experiments.run`."""

    def check(self, profile: ServingProfile, job: Job) -> None:
        """Builds the job's policy, and lets it go.

        Raises:
            InputError: it cannot be built.
        """
        self._policies(profile, job)

    def __call__(
        self, trace: Trace, profile: ServingProfile, job: Job, progress: Progress
    ) -> RunResult:
        policy, fallback = self._policies(profile, job)
        return run(
            trace,
            profile,
            policy,
            config=job.config,
            seed=job.seed,
            fallback=fallback,
            settings=dict(job.options),
            progress=progress,
        )

    def _policies(self, profile: ServingProfile, job: Job) -> tuple[Policy, Policy]:
        """The policy, and the fallback: HPA, or the policy itself where HPA has no target."""
        config = job.config
        knobs = target_knobs(profile, max_replicas=config.max_replicas)
        policy = build_policy(job.policy, job.options, knobs, tick_s=config.tick_s)
        if config.fallback_target is None:
            return policy, policy
        options = {"target": config.fallback_target}
        return policy, build_policy("hpa", options, knobs, tick_s=config.tick_s)
