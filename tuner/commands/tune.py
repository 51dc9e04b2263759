"""`tuner tune`: a rule's best parameters on a recorded load."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from tuner.commands.executors import ExecutorKind, ExecutorOption, JobsOption, RayAddressOption
from tuner.commands.gaps import Gaps, GapsOption
from tuner.commands.startup import StartupOption


def command(
    policy: Annotated[str, typer.Option(metavar="A,B,C", help="Rules to tune.")],
    trace: Annotated[Path, typer.Option(help="Trace to tune on, Parquet.")],
    profile: Annotated[str, typer.Option(help="Serving profile: a built-in name or a YAML file.")],
    out: Annotated[
        Path,
        typer.Option(
            help="Folder for a POLICY.yaml each, or a .yaml file for one policy; the trials go "
            "beside it, into a .db file."
        ),
    ] = Path("tuned"),
    trials: Annotated[
        int | None,
        typer.Option(help="Settings to try, the rule as shipped among them. (default 24)", min=1),
    ] = None,
    goal: Annotated[
        float | None,
        typer.Option(help="Share of requests that must meet every objective. (default 0.99)"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of what the search draws.", min=0)] = 0,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="POLICY.OPTION=VALUE",
            help="Parameter that is not searched; may be repeated.",
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML as of `tuner compare`: objectives, sweep, ...")
    ] = None,
    startup: StartupOption = None,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Optuna's storage, such as postgresql+psycopg://user@host/name. "
            "(default a SQLite file beside --out)",
        ),
    ] = None,
    jobs: JobsOption = None,
    executor: ExecutorOption = ExecutorKind.LOCAL,
    ray_address: RayAddressOption = None,
    gaps: GapsOption = Gaps.KEEP,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Find the parameters with which a rule meets the goal at the least cost.

    Every rule has the same budget of trials. `tuner compare --tuned` takes the
    files in place of searches of its own. The same command again goes on where
    it was stopped, and with more --trials it adds to what is there.

    First the best fixed fleet is found: every rule starts from its size, and is
    searched around the load that one of its replicas carries. So static and
    static-best are not tuned here: `tuner compare` finds their counts by itself.
    A learned policy is trained instead, by `tuner train`.

    Examples:

      tuner tune --policy hpa --trace sunday.parquet --profile my-fleet.yaml
      --out hpa.yaml

      tuner tune --policy hpa --trace sunday.parquet --profile my-fleet.yaml
      --trials 60 --goal 0.995 --out tuned

      tuner compare --trace monday.parquet --train-trace sunday.parquet
      --profile my-fleet.yaml --policies static,hpa --tuned tuned --out runs/monday
    """
    from experiments.executors import Executor
    from experiments.options import split_names
    from experiments.tune_command import TuneRequest, print_tuned, tune_to_files

    request = TuneRequest(
        trace=trace,
        profile=profile,
        policies=split_names(policy, "--policy"),
        out=out,
        options=set_ or [],
        config=config,
        trials=trials,
        goal=goal,
        seed=seed,
        startup=startup.value if startup else None,
        storage=storage,
        executor=Executor(executor.value, jobs, ray_address),
        gaps=gaps.value,
    )
    found = tune_to_files(request, console=Console(stderr=True))
    if as_json:
        typer.echo(json.dumps({name: asdict(tuned) for name, tuned in found.items()}))
        return
    console = Console()
    print_tuned(found, console)
    console.print(f"written to {escape(str(out))}", soft_wrap=True)
