"""`tuner simulate`: one policy on one trace."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def simulate(
    trace: Annotated[Path, typer.Option(help="Trace, Parquet; see `tuner trace --help`.")],
    profile: Annotated[str, typer.Option(help="Serving profile: a built-in name or a YAML file.")],
    policy: Annotated[
        str, typer.Option(help="Policy: static, hpa, or the folder of a trained bundle.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; it is made.")],
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Parameter of the policy; may be repeated."
        ),
    ] = None,
    router: Annotated[
        str, typer.Option(help="round_robin, least_pending or least_loaded.")
    ] = "least_loaded",
    seed: Annotated[int, typer.Option(help="Draws cold starts and jitter.", min=0)] = 0,
    jitter: Annotated[
        float, typer.Option(help="Sigma of the noise on an iteration's time; 0 is exact.", min=0)
    ] = 0.0,
    tick: Annotated[float, typer.Option(help="Seconds between decisions.")] = 15.0,
    initial_replicas: Annotated[
        int | None, typer.Option(help="Replicas ready at the start.", min=1)
    ] = None,
    max_replicas: Annotated[
        int | None, typer.Option(help="Most replicas that may be asked for.", min=1)
    ] = None,
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
    """
    from experiments.simulate import simulate_to

    simulate_to(
        out,
        trace_path=trace,
        profile_name=profile,
        policy_name=policy,
        options=set_ or [],
        router=router,
        seed=seed,
        jitter=jitter,
        tick_s=tick,
        initial_replicas=initial_replicas,
        max_replicas=max_replicas,
        as_json=as_json,
    )
