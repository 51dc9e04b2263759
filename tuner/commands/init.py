"""`tuner init`: looks around, and writes a tuner.yaml that says why each line is there."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from tuner.live.discovery.find import Finding
    from tuner.live.discovery.serving import Serving

_COLOURS = {"found": "green", "assumed": "yellow", "missing": "red"}


def command(
    namespace: Annotated[
        str | None, typer.Option(help="Namespace to look in. (default: the whole cluster)")
    ] = None,
    deployment: Annotated[
        str | None, typer.Option(help="Deployment to steer. (default: the one that serves a model)")
    ] = None,
    prometheus: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Prometheus server. (default: a service of that name)"),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="vllm, sglang, triton, tensorrt-llm or lmdeploy. (default: by image and metrics)",
        ),
    ] = None,
    context: Annotated[
        str | None, typer.Option(help="Context of the kubeconfig. (default: the current one)")
    ] = None,
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("tuner.yaml"),
    in_cluster: Annotated[
        bool,
        typer.Option(
            "--in-cluster",
            help="For the controller of deploy/manifests: its volume, Lease and address.",
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Write over FILE if it is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Find what there is to steer, and write a tuner.yaml for it.

    Looks for Deployments that serve a model, the HPA on them, a Prometheus that has their series,
    and the engine. Reads only. Says what it found, what it assumed, and what it could not find.
    Without a cluster the flags are enough.

    Examples:

      tuner init

      tuner init --namespace llm --deployment r1 --prometheus http://prometheus.monitoring:9090

      tuner init --in-cluster --out deploy/manifests/base/tuner.yaml --force
    """
    from tuner.config.file import load_config
    from tuner.config.mistakes import deployment_mistake, namespace_mistake
    from tuner.core.errors import ConfigError
    from tuner.data.files import replacing
    from tuner.live.discovery.draft import assumptions, draft
    from tuner.live.discovery.find import Wishes, discover

    if out.exists() and not force:
        raise ConfigError(f"{out} is there already; give another --out, or --force to replace it")
    mistakes = [
        namespace_mistake(namespace) if namespace is not None else "",
        deployment_mistake(deployment) if deployment is not None else "",
    ]
    if said := [f"--{mistake}" for mistake in mistakes if mistake]:
        raise ConfigError("\n".join(said))
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    wishes = Wishes(namespace, deployment, prometheus, engine, context)
    found = discover(wishes, choose=_choose)
    with replacing(out) as temporary:
        temporary.write_text(draft(found, in_cluster=in_cluster), encoding="utf-8")
        # What is written here is what `tuner run` reads: never a file that it would refuse.
        try:
            load_config(temporary)
        except ConfigError as error:
            raise ConfigError(str(error).replace(str(temporary), str(out))) from error
    findings = [*found.findings, *assumptions(found)]
    if as_json:
        print(json.dumps({"out": str(out), "findings": [vars(each) for each in findings]}))
        return
    _print(findings, console)
    console.print(f"wrote [bold]{escape(str(out))}[/]; next: `tuner config check --live {out}`")


def _choose(candidates: Sequence[Serving]) -> Serving:
    """Ask which one; where nobody sits at a terminal, name them and give up.

    Raises:
        ConfigError: nobody can be asked.
    """
    from tuner.core.errors import ConfigError

    lines = [f"{each.place} ({', '.join(each.evidence)})" for each in candidates]
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        listed = "\n".join(f"  {line}" for line in lines)
        raise ConfigError(
            f"several Deployments look like LLM serving; name one with --namespace and "
            f"--deployment:\n{listed}"
        )
    for number, line in enumerate(lines, start=1):
        typer.echo(f"{number:3} {line}", err=True)
    while True:
        answer: int = typer.prompt("Which one?", type=int, default=1, err=True)
        if 1 <= answer <= len(lines):
            return candidates[answer - 1]
        typer.echo(f"{answer} is not on the list; expected 1 to {len(lines)}", err=True)


def _print(findings: Sequence[Finding], console: Console) -> None:
    for finding in findings:
        colour = _COLOURS[finding.kind]
        console.print(
            f"[{colour}]{finding.kind:7}[/] [bold]{finding.about}[/]: {escape(finding.sentence)}"
        )
