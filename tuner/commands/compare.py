"""`tuner compare`: several policies on one trace, with the same seeds."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from tuner.commands.executors import ExecutorKind, ExecutorOption, JobsOption, RayAddressOption
from tuner.commands.gaps import Gaps, GapsOption
from tuner.commands.startup import StartupOption


class AuthorityName(StrEnum):
    """`experiments.config.Authority` as a choice of the command line."""

    DIRECT = "direct"
    HOLD = "hold"
    FLOOR = "floor"


def command(
    trace: Annotated[Path, typer.Option(help="Trace to compare on, Parquet.")],
    profile: Annotated[str, typer.Option(help="Serving profile: a built-in name or a YAML file.")],
    policies: Annotated[
        str,
        typer.Option(metavar="A,B,C", help="Policies: rules, or folders of trained bundles."),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; it is made.")],
    seeds: Annotated[
        int | None,
        typer.Option(help="Runs of each policy, the same draws for all. (default 3)", min=1),
    ] = None,
    train_trace: Annotated[
        Path | None,
        typer.Option(
            help="Trace on which the rules are tuned. Without it they are tuned on --trace "
            "itself, which is hindsight."
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="Policy that the others are measured against. (default hpa)"),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="POLICY.OPTION=VALUE",
            help="Parameter of a policy; may be repeated. It is not searched then.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="YAML: objectives, router, tick, failures, guardrails, sweep, statistics."
        ),
    ] = None,
    oracle: Annotated[
        bool,
        typer.Option(
            help="Also find what a fleet would have cost at least with the whole load known, and "
            "each policy's regret: GPU hours over that. It takes about 40 runs more."
        ),
    ] = True,
    startup: StartupOption = None,
    authority: Annotated[
        AuthorityName | None,
        typer.Option(
            help="Who owns the replicas: the policy (direct, hold) or the native HPA, whose "
            "minimum the policy raises (floor: adds, never takes away). (default direct)"
        ),
    ] = None,
    tuned: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE|DIR",
            help="What `tuner tune` found, in place of a search; may be repeated.",
        ),
    ] = None,
    cells: Annotated[
        Path | None,
        typer.Option(
            help="Folder in which finished runs are kept until all are. (default OUT.cells)"
        ),
    ] = None,
    keep_cells: Annotated[
        bool, typer.Option("--keep-cells", help="Keep them afterwards, for the next comparison.")
    ] = False,
    jobs: JobsOption = None,
    executor: ExecutorOption = ExecutorKind.LOCAL,
    ray_address: RayAddressOption = None,
    gaps: GapsOption = Gaps.KEEP,
    as_json: Annotated[bool, typer.Option("--json", help="Print summary.json.")] = False,
) -> None:
    """Compare policies on a recorded load, with the same seeds and tuned rivals.

    First every rule's parameters are searched, in one budget of trials, then
    every policy runs with every seed. Rules run at their own period, and under
    the bounds of the knobs alone. The numbers do not depend on --jobs.

    Of a schedule's timetable only the shape is kept: its peak and its lead are
    searched. --set schedule.scale=1 keeps the counts.

    Killed on its way, the same command goes on: finished runs are kept.

    Writes DIR/report.html, DIR/report.md, DIR/summary.json,
    DIR/requests.parquet, DIR/ticks.parquet and DIR/run.json.

    Examples:

      tuner compare --trace day.parquet --profile deepseek-r1-8xh200-sglang
      --policies static,hpa,bundles/r1-1.0.0 --seeds 5 --out runs/day

      tuner compare --trace monday.parquet --train-trace sunday.parquet
      --profile my-fleet.yaml --policies static,hpa --out runs/monday

      tuner compare --trace day.parquet --profile my-fleet.yaml
      --policies static,hpa --set static.replicas=6 --set hpa.target=900
      --out runs/given

      tuner compare --trace day.parquet --profile my-fleet.yaml
      --policies hpa,bundles/r1-1.0.0 --authority floor --out runs/floor
    """
    from experiments.compare_command import CompareRequest, compare_to_folder
    from experiments.comparison_summary import comparison_summary
    from experiments.executors import Executor
    from experiments.options import split_names
    from experiments.table import print_comparison

    request = CompareRequest(
        trace=trace,
        profile=profile,
        policies=split_names(policies, "--policies"),
        out=out,
        options=set_ or [],
        config=config,
        seeds=seeds,
        train_trace=train_trace,
        baseline=baseline,
        oracle=oracle,
        startup=startup.value if startup else None,
        authority=authority.value if authority else None,
        tuned=tuned or [],
        cells=cells,
        keep_cells=keep_cells,
        executor=Executor(executor.value, jobs, ray_address),
        gaps=gaps.value,
    )
    comparison = compare_to_folder(request, console=Console(stderr=True))
    if as_json:
        typer.echo(json.dumps(comparison_summary(comparison)))
        return
    console = Console()
    print_comparison(comparison, console)
    console.print(f"report: {escape(str(out / 'report.html'))}", soft_wrap=True)
