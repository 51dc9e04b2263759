"""`tuner compare`: several policies on one trace, with the same seeds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from tuner.commands.gaps import Gaps, GapsOption
from tuner.commands.startup import StartupOption


def command(
    trace: Annotated[Path, typer.Option(help="Trace to compare on, Parquet.")],
    profile: Annotated[str, typer.Option(help="Serving profile: a built-in name or a YAML file.")],
    policies: Annotated[
        str,
        typer.Option(metavar="A,B,C", help="Policies: static, hpa, or folders of trained bundles."),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; it is made.")],
    seeds: Annotated[
        int | None,
        typer.Option(help="Runs of each policy, the same draws for all. (default 3)", min=1),
    ] = None,
    train_trace: Annotated[
        Path | None,
        typer.Option(
            help="Trace on which static and hpa are tuned. Without it they are tuned on --trace "
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
            help="Parameter of a policy; may be repeated. static.replicas and hpa.target take the "
            "place of their sweeps.",
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
    jobs: Annotated[
        int | None, typer.Option(help="Runs at once. (default one per core)", min=1)
    ] = None,
    gaps: GapsOption = Gaps.KEEP,
    as_json: Annotated[bool, typer.Option("--json", help="Print summary.json.")] = False,
) -> None:
    """Compare policies on a recorded load, with the same seeds and tuned rivals.

    First the count of static and the target of hpa are found by a sweep, then
    every policy runs with every seed. The numbers do not depend on --jobs.

    Writes DIR/report.html, DIR/summary.json, DIR/requests.parquet,
    DIR/ticks.parquet and DIR/run.json.

    Examples:

      tuner compare --trace day.parquet --profile deepseek-r1-8xh200-sglang
      --policies static,hpa,bundles/r1-1.0.0 --seeds 5 --out runs/day

      tuner compare --trace monday.parquet --train-trace sunday.parquet
      --profile my-fleet.yaml --policies static,hpa --out runs/monday

      tuner compare --trace day.parquet --profile my-fleet.yaml
      --policies static,hpa --set static.replicas=6 --set hpa.target=900
      --out runs/given
    """
    from experiments.compare_command import CompareRequest, compare_to_folder
    from experiments.comparison import comparison_summary
    from experiments.table import print_comparison

    request = CompareRequest(
        trace=trace,
        profile=profile,
        policies=[name.strip() for name in policies.split(",") if name.strip()],
        out=out,
        options=set_ or [],
        config=config,
        seeds=seeds,
        train_trace=train_trace,
        baseline=baseline,
        oracle=oracle,
        startup=startup.value if startup else None,
        jobs=jobs,
        gaps=gaps.value,
    )
    comparison = compare_to_folder(request, console=Console(stderr=True))
    if as_json:
        typer.echo(json.dumps(comparison_summary(comparison)))
        return
    console = Console()
    print_comparison(comparison, console)
    console.print(f"report: {escape(str(out / 'report.html'))}", soft_wrap=True)
