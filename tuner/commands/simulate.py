"""`tuner simulate`: one policy on one trace."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tuner.commands.gaps import Gaps, GapsOption
from tuner.commands.startup import StartupOption


class RouterName(StrEnum):
    """Routers, as the command line knows them."""

    ROUND_ROBIN = "round_robin"
    LEAST_PENDING = "least_pending"
    LEAST_LOADED = "least_loaded"


def command(
    trace: Annotated[Path, typer.Option(help="Trace, Parquet; see `tuner trace --help`.")],
    profile: Annotated[str, typer.Option(help="Serving profile: a built-in name or a YAML file.")],
    policy: Annotated[
        str,
        typer.Option(
            help="A policy by name (policies/README.md lists them), or the folder of a bundle."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; it is made.")],
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Parameter of the policy; may be repeated."
        ),
    ] = None,
    router: Annotated[
        RouterName, typer.Option(help="How requests are spread over the ready replicas.")
    ] = RouterName.LEAST_LOADED,
    seed: Annotated[
        int, typer.Option(help="Draws cold starts and jitter.", min=0, max=2**63 - 1)
    ] = 0,
    jitter: Annotated[
        float, typer.Option(help="Sigma of the noise on an iteration's time; 0 is exact.", min=0)
    ] = 0.0,
    startup: StartupOption = None,
    drain_timeout: Annotated[
        float | None,
        typer.Option(
            help="Longest time, s, that a leaving replica serves what it has; the rest fails. "
            "(default: as long as it takes)",
            min=0,
        ),
    ] = None,
    crashes: Annotated[
        float, typer.Option(help="Crashes per hour of a serving replica.", min=0)
    ] = 0.0,
    tick: Annotated[float, typer.Option(help="Seconds between decisions.")] = 15.0,
    overtime: Annotated[
        float,
        typer.Option(
            help="Seconds after the last arrival in which requests may still end; "
            "then they are unfinished.",
            min=0,
        ),
    ] = 3600.0,
    initial_replicas: Annotated[
        int | None,
        typer.Option(help="Replicas ready at the start. (default: static's count, else 4)", min=1),
    ] = None,
    fallback_target: Annotated[
        float | None,
        typer.Option(
            help="Output tokens/s per replica of the HPA rule that decides where a guardrail "
            "trips; without it the settings are held."
        ),
    ] = None,
    max_replicas: Annotated[
        int | None, typer.Option(help="Most replicas that may be asked for. (default 32)", min=1)
    ] = None,
    gaps: GapsOption = Gaps.KEEP,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Replay a trace against a simulated fleet under one policy.

    Writes DIR/requests.parquet (one row per request, in trace order), DIR/ticks.parquet (one row
    per decision), DIR/summary.json and DIR/run.json.

    Examples:

      tuner simulate --trace day.parquet --profile deepseek-r1-8xh200-sglang
      --policy static --set replicas=12 --out runs/static-12

      tuner simulate --trace day.parquet --profile my-fleet.yaml
      --policy hpa --set target=900 --seed 1 --out runs/hpa

      tuner simulate --trace day.parquet --profile deepseek-r1-8xh200-sglang
      --policy hpa --set target=900 --startup cold --drain-timeout 180
      --crashes 0.01 --out runs/rough
    """
    from experiments.options import parse_options
    from experiments.simulate import SimulateRequest, print_figures, remarks, simulate
    from experiments.summary import simulation_summary
    from tuner.core.slo import Slo

    request = SimulateRequest(
        trace=trace,
        profile=profile,
        policy=policy,
        options=parse_options(set_ or []),
        out=out,
        router=router.value,
        seed=seed,
        jitter=jitter,
        startup=startup.value if startup else None,
        drain_timeout_s=drain_timeout,
        crash_per_hour=crashes,
        tick_s=tick,
        overtime_s=overtime,
        initial_replicas=initial_replicas,
        max_replicas=max_replicas,
        fallback_target=fallback_target,
        gaps=gaps.value,
    )
    told = Console(stderr=True)
    result = simulate(request, console=told)
    if as_json:
        for remark in remarks(result, overtime):
            told.print(remark, highlight=False)
        typer.echo(json.dumps(simulation_summary(result, Slo())))
    else:
        print_figures(result, out, Console(), overtime_s=overtime)
