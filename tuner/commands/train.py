"""`tuner train`: a policy from recorded load."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from tuner.commands.gaps import Gaps, GapsOption
from tuner.commands.startup import StartupOption


def command(
    trace: Annotated[Path, typer.Option(help="Trace to learn from, Parquet.")],
    profile: Annotated[str, typer.Option(help="Serving profile: a built-in name or a YAML file.")],
    out: Annotated[
        Path,
        typer.Option(
            metavar="BUNDLE",
            help="Folder of the bundle, NAME-MAJOR.MINOR.PATCH; it must not exist. Checkpoints "
            "and TensorBoard logs go beside it, into BUNDLE.training.",
        ),
    ],
    steps: Annotated[
        int | None, typer.Option(help="Environment steps. (default 400,000)", min=1)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of everything that is drawn. (default 0)", min=0)
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint beside BUNDLE.")
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML: run (objectives, guardrails, ...), sweep, train (PPO, reward)."),
    ] = None,
    startup: StartupOption = None,
    envs: Annotated[
        int | None, typer.Option(help="Simulated targets side by side. (default 64)", min=1)
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(help="Cores to use; the result does not depend on it. (default all)", min=1),
    ] = None,
    gaps: GapsOption = Gaps.KEEP,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Train a policy on a recorded load, and write it as a bundle.

    First the target of the base rule (HPA on output tokens/s) is found by a
    sweep, then PPO learns when to run with more or less headroom than that
    rule. The best network meets the base rule on scenarios that it has not
    seen; where it does not win, the bundle holds the base rule and says so.

    Ctrl-C leaves a checkpoint; the same command with --resume goes on.

    Examples:

      tuner train --trace day.parquet --profile deepseek-r1-8xh200-sglang
      --out bundles/r1-1.0.0

      tuner train --trace day.parquet --profile my-fleet.yaml --config train.yaml
      --steps 1000000 --seed 3 --out bundles/mine-0.2.0

      tuner train --trace day.parquet --profile my-fleet.yaml --config train.yaml
      --steps 1000000 --seed 3 --out bundles/mine-0.2.0 --resume
    """
    from experiments.training import TrainRequest, train_to_bundle

    request = TrainRequest(
        trace=trace,
        profile=profile,
        out=out,
        config=config,
        steps=steps,
        seed=seed,
        envs=envs,
        startup=startup.value if startup else None,
        resume=resume,
        jobs=jobs,
        gaps=gaps.value,
    )
    manifest = train_to_bundle(request, console=Console(stderr=True))
    if as_json:
        typer.echo(json.dumps({"bundle": str(out), **asdict(manifest.results)}))
        return
    Console(soft_wrap=True).print(f"bundle: {escape(str(out))}")
