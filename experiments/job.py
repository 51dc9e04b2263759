"""One run of a comparison, as a task that any process can do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from experiments.config import RunConfig
from experiments.fanout import Progress
from experiments.folder import write_requests
from experiments.result import RunResult, TickTable
from experiments.statistics import Blocks, blocks_of
from experiments.summary import Figures, figures_of
from tuner.core.profile import ServingProfile
from tuner.core.trace import Trace

OptionValue = float | int | str


@dataclass(frozen=True)
class Job:
    """Which policy runs, how, and with which seed."""

    policy: str
    """What to build: a name in POLICIES, or the folder of a bundle."""
    name: str
    """What tables call it."""
    options: Mapping[str, OptionValue]
    config: RunConfig
    """With the start count and the fallback's target filled in."""
    seed: int


class Runner(Protocol):
    """Does jobs; can be pickled, so that it can be sent to another process."""

    def check(self, profile: ServingProfile, job: Job) -> None:
        """Tries what can be known before any run.

        Raises:
            InputError: the policy cannot be built.
        """

    def __call__(
        self, trace: Trace, profile: ServingProfile, job: Job, progress: Progress
    ) -> RunResult: ...


@dataclass(frozen=True)
class RunDigest:
    """What a comparison keeps of a run; its requests stay in the file that the task wrote."""

    policy: str
    seed: int
    figures: Figures
    pinned: Mapping[str, str]
    settings: Mapping[str, object]
    blocks: Blocks | None = None
    """None of a sweep's run."""
    ticks: TickTable | None = None
    """None of a sweep's run."""


@dataclass(frozen=True)
class RunTask:
    """A job with its inputs; gives the run's digest."""

    runner: Runner
    trace: Trace = field(repr=False)
    profile: ServingProfile = field(repr=False)
    job: Job
    label: str
    block_s: float | None = None
    """Length of the digest's blocks; None: figures only."""
    requests_file: Path | None = None
    """Where to write the requests; None: nowhere."""

    def __call__(self, progress: Progress) -> RunDigest:
        job = self.job
        result = self.runner(self.trace, self.profile, job, progress)
        if self.requests_file is not None:
            write_requests(self.requests_file, result.requests, (job.name, job.seed))
        keep = self.block_s is not None
        slo = job.config.slo
        figures = figures_of(result, slo)
        progress(1.0, figures.slo_attainment, figures.gpu_hours)
        return RunDigest(
            policy=job.name,
            seed=job.seed,
            figures=figures,
            pinned=dict(result.pinned),
            settings=dict(result.settings),
            blocks=blocks_of(result, slo, self.block_s) if self.block_s is not None else None,
            ticks=result.ticks if keep else None,
        )
