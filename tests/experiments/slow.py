"""The toy fleet, slow enough to be killed in the middle; writes down what it runs."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from experiments.cells import kept
from experiments.compare import compare
from experiments.comparison_summary import comparison_summary
from experiments.config import CompareConfig, RunConfig, SweepConfig
from experiments.fanout import Progress
from experiments.folder import write_json
from experiments.job import Job
from experiments.result import RunResult
from tests.experiments import toy
from tuner.core.profile import ServingProfile
from tuner.core.trace import Trace
from tuner.data.bundles import digest_of

PROFILE = toy.PROFILE
TRACE = toy.toy_trace(minutes=4, surge=3.0)
POLICIES = {"static": "static", "hpa": "hpa"}
CONFIG = CompareConfig(
    run=RunConfig(max_replicas=4), seeds=3, sweep=SweepConfig(static_counts=(1, 2), trials=8)
)
PAUSE_S = 0.02


@dataclass(frozen=True)
class Runner(toy.ToyRunner):
    """`ran` gets a line per run that begins."""

    ran: Path = field(default=Path("ran"), repr=False)

    def __call__(
        self, trace: Trace, profile: ServingProfile, job: Job, progress: Progress
    ) -> RunResult:
        key = digest_of({**asdict(replace(job, name="")), "trace": trace.name})
        with self.ran.open("a") as ran:
            ran.write(f"{key}\n")
        time.sleep(PAUSE_S)
        return super().__call__(trace, profile, job, progress)


def compared(folder: Path, jobs: int = 1) -> None:
    """A comparison in `folder`, its cells beside the result; goes on where one was killed."""
    folder.mkdir(exist_ok=True)
    with kept(folder / "cells", keep=False) as cells:
        found = compare(
            TRACE,
            PROFILE,
            POLICIES,
            folder,
            config=CONFIG,
            runner=Runner(ran=folder / "ran"),
            jobs=jobs,
            cells=cells,
        )
    write_json(folder / "summary.json", comparison_summary(found))


def ran(folder: Path) -> list[str]:
    """What has begun to run there, in order."""
    return (folder / "ran").read_text().splitlines()
