"""From options to findings, and findings as tables, JSON and a page."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from envs.workloads import WORKLOADS
from experiments.config import RunConfig
from experiments.fanout import Watch
from experiments.fidelity.bands import Band, bands
from experiments.fidelity.decisions import Decisions, Study, candidates_around, decisions, perturbed
from experiments.fidelity.distribution import STATISTICS, Distance, Ratio, distance
from experiments.fidelity.reference import largest_error_s, read_load, read_times
from experiments.fidelity.runs import LATENCIES, Latencies, capacity_qps, simulate, steady
from tuner.core.profile import ServingProfile
from tuner.core.trace import Trace
from tuner.data import load_profile, read_trace

REFERENCE_REPLICAS, REFERENCE_ROUTER = 4, "round_robin"
"""The fleet of a reference run."""
EXACT_S = 1e-6
"""Two runs whose every request agrees to this are the same run: files hold nine decimals."""
WORKLOAD = "deepseek-r1-day"
DAYTIME_S = (8.0 * 3600, 14.0 * 3600)
"""Part of the generated day on which policies are compared: its steepest rise and its peak."""
DAY_SEED = 1
DEFAULT_ERROR = 0.05
"""Of a profile that states none."""


@dataclass(frozen=True)
class Reference:
    """A run of another simulator, and ours of the same load."""

    name: str
    profile: str
    requests: int
    largest_error_s: float
    distance: Distance
    sides: tuple[Latencies, Latencies]
    """Theirs and ours."""

    @property
    def exact(self) -> bool:
        return self.largest_error_s <= EXACT_S


@dataclass(frozen=True)
class Findings:
    """Everything that was asked for."""

    profile: ServingProfile
    error: tuple[float, float]
    references: tuple[Reference, ...]
    capacity_qps: float
    replicas: int
    bands: tuple[Band, ...]
    decisions: Decisions
    trace: Trace


def read_reference(load: str, times: str, profile: str) -> Reference:
    """A reference run from its files, simulated again.

    Raises:
        InputError: a file or the profile cannot be used.
    """
    trace = read_load(Path(load))
    theirs, law = read_times(Path(times), trace), load_profile(profile)
    ours = simulate(trace, law, replicas=REFERENCE_REPLICAS, router=REFERENCE_ROUTER)
    return Reference(
        name=Path(times).name,
        profile=law.name,
        requests=len(trace),
        largest_error_s=largest_error_s(theirs, ours),
        distance=distance(theirs, ours),
        sides=(theirs, ours),
    )


def default_trace() -> Trace:
    """Six hours of the built-in day."""
    day = WORKLOADS[WORKLOAD](24.0, DAY_SEED)
    first_s, last_s = DAYTIME_S
    inside = (day.arrival_s >= first_s) & (day.arrival_s < last_s)
    return Trace(
        day.arrival_s[inside] - first_s,
        day.prompt_tokens[inside],
        day.output_tokens[inside],
        name=f"{WORKLOAD}, seed {DAY_SEED}, 08:00 to 14:00",
    )


def find(
    *,
    references: Sequence[Sequence[str]],
    profile: str,
    trace: Path | None,
    error: tuple[float, float] | None,
    requests: int,
    replicas: int,
    doubles: int,
    seed: int,
    jobs: int,
    watch: Watch,
) -> Findings:
    """Run everything.

    Args:
        references: load file, times file and profile of each reference run.
        profile: what is judged.
        trace: the load of the decisions; None: `default_trace`.
        error: see `Study.error`; None: what the profile states.
        requests: of each load band.
        replicas: of the fleet of the load bands.
        doubles: perturbed profiles that decide.
        seed: of everything drawn.
        jobs: processes.
        watch: told what runs.

    Raises:
        InputError: a file or the profile cannot be used.
    """
    law = load_profile(profile)
    load = read_trace(trace) if trace else default_trace()
    if error is None:
        stated = law.error
        error = (
            stated.get("tpot_mean", DEFAULT_ERROR),
            stated.get("ttft_mean", DEFAULT_ERROR),
        )
    found = tuple(read_reference(*names) for names in references)
    lengths = steady(load, requests, seed)
    # Both errors at their standard deviation, in the same direction: slower throughout.
    slower = perturbed(law, (1 + error[0], 1 + error[1], 1 + error[1]))
    capacity, by_load = bands(
        lengths, law, slower, replicas=replicas, router="least_loaded", progress=watch
    )
    each_qps = capacity_qps(lengths, law, replicas=1)
    needed = len(load) / load.last_arrival_s / each_qps
    candidates = candidates_around(needed, each_qps * float(load.output_tokens.mean()))
    config = RunConfig(
        max_replicas=max(8, round(3 * needed)), initial_replicas=max(1, round(1.3 * needed))
    )
    study = Study(load, law, candidates, config, needed, error, doubles, seed)
    return Findings(
        law,
        error,
        found,
        capacity,
        replicas,
        by_load,
        decisions(study, jobs=jobs, watch=watch),
        load,
    )


def as_json(findings: Findings) -> dict[str, Any]:
    """For scripts."""
    made = findings.decisions
    return {
        "profile": findings.profile.name,
        "scheduler": findings.profile.scheduler,
        "error": {"tpot": findings.error[0], "ttft": findings.error[1]},
        "references": [
            {
                "name": one.name,
                "profile": one.profile,
                "requests": one.requests,
                "largest_error_s": one.largest_error_s,
                "exact": one.exact,
                **_distance_json(one.distance),
            }
            for one in findings.references
        ],
        "capacity_qps": findings.capacity_qps,
        "replicas": findings.replicas,
        "bands": [
            {"load": band.load, "qps": band.qps, **_distance_json(band.distance)}
            for band in findings.bands
        ],
        "decisions": {
            "trace": findings.trace.name,
            "candidates": [one.name for one in made.candidates],
            "truth": list(made.truth),
            "doubles": [vars(double) for double in made.doubles],
            "tau_mean": made.tau,
            "regret_worst": made.regret,
        },
    }


def _distance_json(found: Distance) -> dict[str, Any]:
    return {
        "ratios": [vars(ratio) for ratio in found.ratios],
        "wasserstein_over_median": found.wasserstein,
        "per_request_mape": found.per_request,
    }


def tables(findings: Findings) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, columns and rows of every table, for terminal and page alike."""
    found = []
    if findings.references:
        found.append(
            (
                "Against runs of another simulator on the same requests",
                ["run", "profile", "requests", "largest error of any request"],
                [
                    [one.name, one.profile, f"{one.requests:,}", f"{one.largest_error_s:.1e} s"]
                    for one in findings.references
                ],
            )
        )
    statistics = [name for name, _ in STATISTICS]
    for one in findings.references:
        if not one.exact:
            found.append(
                (
                    f"{one.name}: error of {one.profile}, 95 % interval over the load",
                    ["", *statistics],
                    [
                        [LABEL[name], *(_cell(ratio) for ratio in _row(one.distance, name))]
                        for name in LATENCIES
                    ],
                )
            )
    found.append(
        (
            f"{findings.profile.name} slowed by its own error, by share of capacity "
            f"({findings.replicas} replicas, {findings.capacity_qps:.2f} requests/s)",
            ["load", *(f"{LABEL[name]} {s}" for name in LATENCIES for s in ("mean", "p99"))],
            [
                [
                    f"{100 * band.load:g} %",
                    *(
                        _cell(ratio)
                        for name in LATENCIES
                        for ratio in _row(band.distance, name)
                        if ratio.statistic in ("mean", "p99")
                    ),
                ]
                for band in findings.bands
            ],
        )
    )
    made = findings.decisions
    found.append(
        (
            f"Decisions: {len(made.candidates)} policies on {findings.trace.name}",
            ["double", "step, prompt, KV x", "Kendall's tau", "regret", "picked"],
            [
                [
                    str(number + 1),
                    ", ".join(f"{factor:.3f}" for factor in double.factors),
                    f"{double.tau:.2f}",
                    f"{100 * double.regret:.1f} %",
                    made.candidates[double.scores.index(min(double.scores))].name,
                ]
                for number, double in enumerate(made.doubles)
            ],
        )
    )
    return found


LABEL = {"ttft_s": "TTFT", "tpot_s": "TPOT", "e2e_s": "E2E"}


def _row(found: Distance, latency: str) -> list[Ratio]:
    return [ratio for ratio in found.ratios if ratio.latency == latency]


def _cell(ratio: Ratio) -> str:
    if ratio.ci95 is None:
        return _error(ratio.error)
    low, high = ratio.ci95
    return f"{_error(ratio.error)} [{_error(low)}, {_error(high)}]"


def _error(error: float) -> str:
    """In percent; a factor where that would be long."""
    return f"{100 * error:+.1f} %" if error < 1 else f"×{1 + error:.1f}"


def print_findings(findings: Findings, console: Console) -> None:
    """Every table, and the two figures that count."""
    for title, columns, rows in tables(findings):
        table = RichTable(title=title, title_justify="left", header_style="bold")
        for place, column in enumerate(columns):
            table.add_column(column, justify="left" if place == 0 else "right", overflow="fold")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    console.print(verdict(findings), highlight=False)


def verdict(findings: Findings) -> str:
    """What the decisions come to."""
    made = findings.decisions
    best = made.candidates[made.truth.index(min(made.truth))].name
    return (
        f"Kendall's tau {made.tau:.2f} in the mean, worst regret {100 * made.regret:.1f} %; "
        f"in truth {best} is best."
    )


def command_line(words: Sequence[str]) -> str:
    """How to run it again."""
    return "python -m experiments.fidelity " + shlex.join(words)
