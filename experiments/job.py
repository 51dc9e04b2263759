"""One run of a comparison, as a task that any process can do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from experiments.cells import Files
from experiments.config import RunConfig
from experiments.digest import RunDigest, load_of, packed, unpacked
from experiments.fanout import Progress
from experiments.result import RunResult
from experiments.statistics import blocks_of
from experiments.summary import figures_of
from policies import OptionValue
from tuner.core.profile import ServingProfile
from tuner.core.trace import Trace
from tuner.train.digests import profile_digest, trace_digest


@dataclass(frozen=True)
class Job:
    """Which policy runs, how, and with which seed."""

    policy: str
    """What to build: a name in POLICIES, or the folder of a bundle."""
    name: str
    """What tables call it."""
    options: Mapping[str, OptionValue]
    config: RunConfig
    """With the start count, the policy's own tick and the fallback's target filled in."""
    seed: int
    guarded: bool = True
    """Whether the guardrails of `config` stand between policy and cluster, and the fallback takes
    over where they trip; else only the bounds of the knobs do."""
    fallback: Mapping[str, OptionValue] = field(default_factory=dict)
    """Options of the fallback beside the target in `config`."""


class Runner(Protocol):
    """Does jobs; can be pickled, so that it can be sent to another process. Its `repr` says
    everything of it that a result depends on."""

    def check(self, profile: ServingProfile, job: Job) -> None:
        """Tries what can be known before any run.

        Raises:
            InputError: the policy cannot be built.
        """

    def identity(self, policy: str) -> str:
        """What a policy is, wherever it lies: a rule's name, a bundle's digest."""

    def __call__(
        self, trace: Trace, profile: ServingProfile, job: Job, progress: Progress
    ) -> RunResult: ...


@dataclass(frozen=True)
class RunTask:
    """A job with its inputs, as a cell."""

    runner: Runner
    trace: Trace = field(repr=False)
    profile: ServingProfile = field(repr=False)
    job: Job
    label: str
    block_s: float | None = None
    """Length of the digest's blocks, s; None: neither blocks nor requests nor ticks are kept."""

    def run(self, progress: Progress) -> tuple[RunDigest, RunResult]:
        """Does the job."""
        job = self.job
        result = self.runner(self.trace, self.profile, job, progress)
        slo = job.config.slo
        figures = figures_of(result, slo)
        progress(1.0, figures.slo_attainment, figures.gpu_hours)
        digest = RunDigest(
            policy=job.name,
            seed=job.seed,
            figures=figures,
            pinned=dict(result.pinned),
            settings=dict(result.settings),
            load=load_of(result),
            blocks=None if self.block_s is None else blocks_of(result, slo, self.block_s),
        )
        return digest, result

    def __call__(self, progress: Progress) -> Files:
        digest, result = self.run(progress)
        return packed(digest, None if self.block_s is None else result)

    def key(self) -> Mapping[str, object]:
        job = self.job
        return {
            "task": "run",
            "runner": repr(self.runner),
            "trace": trace_key(self.trace),
            "profile": profile_digest(self.profile),
            "policy": self.runner.identity(job.policy),
            "options": dict(job.options),
            "config": asdict(job.config),
            "guarded": job.guarded,
            "fallback": dict(job.fallback),
            "seed": job.seed,
            "block_s": self.block_s,
        }

    def unpack(self, folder: Path) -> RunDigest:
        digest = unpacked(folder, self.job.name, self.job.seed)
        if self.block_s is not None and digest.requests_file is None:
            raise ValueError(f"{folder} holds no requests")
        return digest


@lru_cache(maxsize=8)
def trace_key(trace: Trace) -> str:
    """What a trace is to a run: its requests, and the spans in which nothing counts."""
    gaps = ",".join(f"{gap.start_s!r}-{gap.end_s!r}" for gap in trace.gaps)
    return f"{trace_digest(trace)} {gaps}".strip()
