"""Plans in the simulator: what stands in for a policy in the runs of an oracle."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from experiments.fanout import Progress
from experiments.job import Job, Runner
from experiments.result import RunResult
from experiments.run import run
from policies import OptionValue, RulePolicy, StaticRule
from policies.oracle import Counts, PlanRule
from tuner.core.profile import ServingProfile
from tuner.core.trace import Trace
from tuner.guardrails import bounds_alone

HOLD = RulePolicy("hold", StaticRule({}))
"""Fallback of a plan: where a guardrail trips, the fleet stays as it is."""


@dataclass(frozen=True, eq=False)
class PlannedFleet:
    """A plan, and the kind of replicas it is for."""

    wanted: Counts = field(repr=False)
    """`(ticks,)` replicas wanted in each tick of the job's `tick_s`."""
    instant: bool
    """Whether replicas serve at once and at full speed: oracle A."""
    price_gpu_s: float
    """GPU-seconds that the plan would pay to serve one more request in time."""

    @property
    def options(self) -> dict[str, OptionValue]:
        """What tells it from other plans, as options of its job."""
        digest = hashlib.sha256(self.wanted.tobytes()).hexdigest()
        return {"price_gpu_s": self.price_gpu_s, "plan": digest[:12]}


@dataclass(frozen=True, repr=False)
class PlanRunner:
    """Does the jobs of the oracles, and hands on all others."""

    plans: Mapping[str, PlannedFleet]
    """Policy of a job -> its plan."""
    others: Runner | None = None
    """Who does the rest; None: there is no rest."""

    def check(self, profile: ServingProfile, job: Job) -> None:
        """Nothing can be wrong with a plan. See `Runner.check`."""
        if job.policy not in self.plans and self.others is not None:
            self.others.check(profile, job)

    def identity(self, policy: str) -> str:
        """An oracle by its plan: the same plan gives the same runs, whatever price led to it."""
        fleet = self.plans.get(policy)
        if fleet is not None:
            return f"{policy} {fleet.options['plan']}"
        return policy if self.others is None else self.others.identity(policy)

    def __repr__(self) -> str:
        """Plans are told apart by `identity`, so those of other jobs do not matter here."""
        return repr(self.others)

    def __call__(
        self, trace: Trace, profile: ServingProfile, job: Job, progress: Progress
    ) -> RunResult:
        if job.policy not in self.plans and self.others is not None:
            return self.others(trace, profile, job, progress)
        fleet = self.plans[job.policy]
        return run(
            trace,
            replace(profile, startup=None) if fleet.instant else profile,
            RulePolicy(job.policy, PlanRule(fleet.wanted, job.config.tick_s)),
            config=job.config,
            seed=job.seed,
            fallback=HOLD,
            guardrails=bounds_alone(),
            settings=job.options,
            progress=progress,
        )
