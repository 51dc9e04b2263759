"""The autoscaler that a Deployment has today, as options of our `hpa` rule and a knob range."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from tuner.core.observation import FIELD_NAMES, REPLICA_FIELDS
from tuner.live.kubernetes.objects import Json, items, name_of, part

OptionValue = float | int | str

_MEANINGS: tuple[tuple[str, str], ...] = (
    (
        r"num_requests_waiting|num_queue_reqs|queue_(depth|size|length)|pending_request",
        "queue_depth",
    ),
    (r"num_requests_running|num_running_reqs|batch_current_size", "running"),
    (r"kv_cache_usage|cache_usage_perc|token_usage|kv_cache_utilization", "kv_cache_usage"),
    (r"generation_tokens|output_tokens|generated_tokens", "output_tokens_per_s"),
    (r"prompt_tokens", "prompt_tokens_per_s"),
    (r"in_?flight|concurren", "in_flight"),
    (r"(^|[_:.-])(qps|rps)([_:.-]|$)|requests?_per_second|http_requests|request_rate", "qps"),
    (r"DCGM_FI_DEV_GPU_UTIL|gpu_util", "gpu_util"),
)
"""Pattern of a metric's name -> the field that it measures, most telling first."""
_MEANS = frozenset({"gpu_util", "kv_cache_usage"})
"""Fields that are means over the fleet, not sums."""
_PERCENT = {"gpu_util": 100.0}
"""Fields whose usual exporters count to 100 where ours count to 1."""
_SUFFIXES = {"m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2.0**10, "Mi": 2.0**20}
"""Suffixes of a Kubernetes quantity that a request or token metric may have."""


@dataclass(frozen=True)
class Autoscaler:
    """Who scales a Deployment today, and how that reads as our rule."""

    kind: str
    """HPA or ScaledObject."""
    name: str
    low: int
    high: int
    options: Mapping[str, OptionValue] = field(default_factory=dict)
    """Options of the `hpa` policy; empty where its metrics mean nothing to us."""
    understood: str = ""
    """The metric that became options, in words."""
    left_out: tuple[str, ...] = ()
    """Sentences about what the options cannot say."""


def autoscaler_of_hpa(hpa: Json) -> Autoscaler:
    """An HPA of autoscaling/v2."""
    spec = part(hpa, "spec")
    readings = [_metric(metric) for metric in items(spec, "metrics")]
    usable = [each for each in readings if not isinstance(each, str)]
    left_out = [each for each in readings if isinstance(each, str)]
    left_out += [
        f"metric {each.source}: our rule follows one metric; the HPA takes the largest of several"
        for each in usable[1:]
    ]
    low, high = int(spec.get("minReplicas") or 1), int(spec.get("maxReplicas") or 1)
    options: dict[str, OptionValue] = {}
    if usable:
        options = {**usable[0].options, "min_replicas": max(low, 1), "max_replicas": high}
        if part(spec, "behavior"):
            # Which windows and limits it sets, the options cannot say; that it has one, they can.
            options["behavior"] = "default"
            left_out.append(
                "its `behavior` is read as Kubernetes' defaults; windows and limits of its own "
                "are not taken over"
            )
    return Autoscaler(
        kind="HPA",
        name=name_of(hpa),
        low=max(low, 1),
        high=max(high, low, 1),
        options=options,
        understood=usable[0].words if usable else "",
        left_out=tuple(left_out),
    )


def autoscaler_of_scaled_object(scaled: Json) -> Autoscaler:
    """A ScaledObject; its triggers are queries of many kinds, so only its bounds are taken."""
    spec = part(scaled, "spec")
    # Absent is 100 in KEDA, and 0 replicas are never asked for here.
    high = int(spec.get("maxReplicaCount") or 100)
    low = max(int(spec.get("minReplicaCount") or 0), 1)
    kinds = ", ".join(str(each.get("type", "?")) for each in items(spec, "triggers")) or "none"
    return Autoscaler(
        kind="ScaledObject",
        name=name_of(scaled),
        low=low,
        high=max(low, high),
        left_out=(f"its triggers ({kinds}) cannot be read as our rule",),
    )


def field_of(metric: str) -> str | None:
    """The Observation field that a metric's name speaks of; None: no telling."""
    if metric in FIELD_NAMES:
        return metric
    for pattern, name in _MEANINGS:
        if re.search(pattern, metric, flags=re.IGNORECASE):
            return name
    return None


def quantity(text: object) -> float | None:
    """A Kubernetes quantity as a number; None: it is none, or of an unusual unit."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([a-zA-Z]*)", str(text))
    if match is None or match[2] not in _SUFFIXES:
        return None
    return float(match[1]) * _SUFFIXES[match[2]]


@dataclass(frozen=True)
class _Understood:
    source: str
    options: Mapping[str, OptionValue]
    words: str


def _metric(metric: Json) -> _Understood | str:
    """One entry of `spec.metrics` as options, or the sentence why not."""
    kind = str(metric.get("type", ""))
    if kind not in ("Pods", "External", "Object"):
        name = part(metric, "resource").get("name") or part(metric, "containerResource").get("name")
        return (
            f"metric {name or kind} of type {kind}: CPU and memory say nothing about an LLM engine"
        )
    section = part(metric, kind.lower())
    source = str(part(section, "metric").get("name", ""))
    target = part(section, "target")
    per_replica = "averageValue" in target
    found = quantity(target.get("averageValue" if per_replica else "value"))
    name = field_of(source)
    if name is None or not found:
        wanted = "its name speaks of no field that we know" if name is None else "its target is odd"
        return f"metric {source}: {wanted}"
    if kind != "Pods" and per_replica and name in _MEANS:
        return f"metric {source}: a mean shared out over the replicas is no figure that we have"
    if kind == "Pods" and name not in REPLICA_FIELDS:
        # Pods rates add up to the fleet's, and per replica that is their mean again; a mean over
        # the replicas is what it is.
        kind, per_replica = "External", name not in _MEANS
    found /= _PERCENT.get(name, 1.0) if found > 1 else 1.0
    options: dict[str, OptionValue] = {
        "metric": name,
        "type": kind,
        "target_type": "AverageValue" if per_replica else "Value",
        "target": found,
    }
    each = " per replica" if per_replica else " for the fleet"
    return _Understood(source, options, f"{source} at {found:g}{each}, read as {name}")
