"""A tuner.yaml with a comment on every choice, from what was found."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping

import yaml

from tuner.config import SCHEMA
from tuner.live.discovery.find import Discovery, Finding

OUTPUT_TOKENS_TARGET = 1000
"""Output tokens/s per replica where no HPA says: a place to start from, not a measurement."""
IN_CLUSTER_AUDIT = "sqlite:////var/lib/tuner/audit.db"
"""Where deploy/manifests/base mounts the volume of the audit."""
IN_CLUSTER_LEASE = "tuner"
"""The Lease of deploy/manifests/base."""

_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9._/:-]*")


def ranges(found: Discovery) -> tuple[tuple[int, int], Finding | None]:
    """Fewest and most replicas, and what was assumed for it."""
    if found.autoscaler is not None:
        return (found.autoscaler.low, found.autoscaler.high), None
    now = found.serving.replicas
    low, high = 1, max(2 * now, now + 2)
    today = f"twice today's {now}" if now else "nobody says how many run today"
    sentence = f"{low} to {high}, {today}; set the range that you can pay for"
    return (low, high), Finding("assumed", "knobs.replicas", sentence)


def rule(found: Discovery) -> tuple[Mapping[str, float | int | str], Finding | None]:
    """Options of the `hpa` policy, and what was assumed for them."""
    if found.autoscaler is not None and found.autoscaler.options:
        return found.autoscaler.options, None
    sentence = (
        f"HPA on {OUTPUT_TOKENS_TARGET} output tokens/s per replica; put your own rule there, it "
        "decides where a guardrail trips"
    )
    return {"target": OUTPUT_TOKENS_TARGET}, Finding("assumed", "fallback", sentence)


def assumptions(found: Discovery) -> list[Finding]:
    """What the draft holds that nobody has said."""
    return [each for each in (ranges(found)[1], rule(found)[1]) if each is not None]


def draft(found: Discovery, *, in_cluster: bool) -> str:
    """The text of the file.

    Args:
        in_cluster: for a controller that runs by deploy/manifests, not on this host.
    """
    return "\n".join([*_head(found, in_cluster=in_cluster), *_target(found, in_cluster=in_cluster)])


def _head(found: Discovery, *, in_cluster: bool) -> Iterator[str]:
    yield "# Written by `tuner init`. `tuner config explain` tells what each key means;"
    yield "# `tuner config check --live` proves that each field has a series and that rights fit."
    for finding in (*found.findings, *assumptions(found)):
        first, *more = finding.sentence.splitlines() or [""]
        yield f"#   {finding.kind}: {finding.about}: {first}"
        yield from (f"#     {line}" for line in more)
    yield f"schema: {SCHEMA}"
    if in_cluster:
        yield f"audit: {IN_CLUSTER_AUDIT}  # on the volume of deploy/manifests/base"
        yield "server: {host: 0.0.0.0, port: 9109}"
    yield "targets:"


def _target(found: Discovery, *, in_cluster: bool) -> Iterator[str]:
    serving = found.serving
    options = _flow(rule(found)[0])
    yield f"  - name: {_text(serving.deployment)}"
    yield "    # Your rule of today. Train a bundle, watch it in shadow, then name its folder here."
    yield "    policy: hpa"
    yield f"    policy_options: {options}"
    yield "    # What decides where a guardrail takes the decision from the policy."
    yield "    fallback: hpa"
    yield f"    fallback_options: {options}"
    yield "    engine:"
    yield f"      kind: {serving.engine}"
    if serving.model:
        yield f"      model: {_text(serving.model)}"
    yield "    kubernetes:"
    yield f"      namespace: {_text(serving.namespace)}"
    yield f"      deployment: {_text(serving.deployment)}"
    if found.context and not in_cluster:
        yield f"      context: {_text(found.context)}"
    yield f"      serving_port: {serving.port}"
    if serving.metrics_port is not None:
        yield f"      metrics_port: {serving.metrics_port}"
    if found.control_port is not None:
        yield f"      control_port: {found.control_port}"
    if found.warmup_configmap is not None:
        yield f"      warmup_configmap: {_text(found.warmup_configmap)}"
    if in_cluster:
        yield f"      lease: {IN_CLUSTER_LEASE}"
    yield from _sources(found)
    yield from _knobs(found)


def _sources(found: Discovery) -> Iterator[str]:
    if found.prometheus is None:
        yield "    # No Prometheus: the engines' own pages, read by the controller."
        yield "    scrape: {}"
        return
    yield "    prometheus:"
    yield f"      url: {_text(found.prometheus)}"
    if found.selector:
        yield f"      selector: {_flow(found.selector)}"
    yield f"      replica_label: {found.replica_label}"
    if found.dcgm is not None:
        yield f"    gpu: {{source: dcgm, selector: {_flow(found.dcgm)}}}"
    yield "    # Arrivals are estimated from what ended and what waits, unless a gateway counts:"
    yield "    # traffic: {arrivals: COUNTER, in_flight: GAUGE, selector: {}}"


def _knobs(found: Discovery) -> Iterator[str]:
    (low, high), _ = ranges(found)
    yield "    knobs:"
    if found.serving.gpus:
        yield f"      # One replica holds {found.serving.gpus} GPUs."
    yield f"      replicas: {{low: {low}, high: {high}}}"
    if found.serving.ceiling is not None:
        yield "      # The ceiling is the engine's start-up argument."
        yield f"      batch_size: {{low: 1, high: {found.serving.ceiling}}}"
    yield "    # The only knobs that are ever written; the others are watched."
    hot = found.control_port is not None and found.serving.ceiling is not None
    yield f"    move: [{'replicas, batch_size' if hot else 'replicas'}]"
    yield ""


def _text(value: str) -> str:
    """A YAML scalar that is text whatever it looks like."""
    plain = _PLAIN.fullmatch(value) is not None and yaml.safe_load(value) == value
    return value if plain else json.dumps(value)


def _flow(values: Mapping[str, object]) -> str:
    """A mapping on one line."""
    pairs = ", ".join(
        f"{key}: {_text(value) if isinstance(value, str) else format(value, 'g')}"
        for key, value in values.items()
    )
    return f"{{{pairs}}}"
