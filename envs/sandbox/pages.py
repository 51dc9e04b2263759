"""Metrics pages: each replica's as vLLM writes it, the client side's, and one of everything.

Names, types, labels and buckets are those of vLLM 0.32 and 0.33 (vllm/v1/metrics/loggers.py of
vllm-project/vllm); series that the simulation says nothing about are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from envs.sandbox.cluster import Instance, SandboxCluster
from envs.sandbox.counting import Histogram

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = Mapping[str, str]
Sample = tuple[str, Labels, float]
"""What comes behind the family's name (`_total`, `_bucket`), labels, value."""


@dataclass(frozen=True)
class Family:
    """One metric with its samples."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    meaning: str
    samples: Sequence[Sample]


def replica_page(cluster: SandboxCluster, one: Instance) -> str:
    """`/metrics` of one replica."""
    return _text(_replica(cluster, one, {}))


def traffic_page(cluster: SandboxCluster) -> str:
    """What the client side knows: the same series as the page of `tuner load`."""
    return _text(_traffic(cluster))


def whole_page(cluster: SandboxCluster) -> str:
    """Every replica's series with its name as `pod`, and the client side's: one page to scrape."""
    families: dict[str, list[Family]] = {}
    for one in cluster.instances.values():
        if one.serves:
            for family in _replica(cluster, one, {"pod": one.name}):
                families.setdefault(family.name, []).append(family)
    merged = [
        Family(
            same[0].name,
            same[0].kind,
            same[0].meaning,
            [sample for family in same for sample in family.samples],
        )
        for same in families.values()
    ]
    return _text([*merged, *_traffic(cluster)])


def _replica(cluster: SandboxCluster, one: Instance, more: Labels) -> list[Family]:
    labels = {"engine": "0", "model_name": cluster.model, **more}
    counters = one.counters

    def gauge(name: str, meaning: str, value: float) -> Family:
        return Family(f"vllm:{name}", "gauge", meaning, [("", labels, value)])

    def counter(name: str, meaning: str, value: float) -> Family:
        return Family(f"vllm:{name}", "counter", meaning, [("_total", labels, value)])

    def histogram(name: str, meaning: str, values: Histogram) -> Family:
        return Family(f"vllm:{name}", "histogram", meaning, list(_buckets(labels, values)))

    success = [
        ("_total", {**labels, "finished_reason": reason}, counters.finished * (reason == "length"))
        for reason in ("stop", "length", "abort", "error", "repetition")
    ]
    turned_away = [
        ("_total", {"model_name": cluster.model, **more, "reason": reason}, 0.0)
        for reason in ("max_num_queued_reqs", "max_num_queued_tokens")
    ]
    asleep = [
        ("", {**labels, "sleep_state": state}, float(state == "awake"))
        for state in ("awake", "weights_offloaded", "discard_all")
    ]
    return [
        gauge("num_requests_running", "Requests in model execution batches.", one.running),
        gauge("num_requests_waiting", "Requests waiting to be processed.", one.waiting),
        Family("vllm:engine_sleep_state", "gauge", "Awake or asleep.", asleep),
        gauge("kv_cache_usage_perc", "KV-cache usage, 1 is all of it.", one.kv_cache_usage),
        counter("num_preemptions", "Preemptions.", counters.preemptions),
        counter("prompt_tokens", "Prompt tokens processed.", counters.prompt_tokens),
        counter("generation_tokens", "Tokens generated.", counters.output_tokens),
        Family("vllm:request_success", "counter", "Requests that ended well.", success),
        Family("vllm:admission_rejections", "counter", "Turned away.", turned_away),
        histogram("request_prompt_tokens", "Prompt tokens.", counters.prompt_length),
        histogram("request_generation_tokens", "Output tokens.", counters.output_length),
        histogram("time_to_first_token_seconds", "TTFT in seconds.", counters.ttft_s),
        histogram("inter_token_latency_seconds", "Gap between tokens in seconds.", counters.itl_s),
        histogram(
            "request_time_per_output_token_seconds",
            "Mean seconds per output token after the first, once per request.",
            counters.tpot_s,
        ),
        histogram("e2e_request_latency_seconds", "Seconds to the last token.", counters.e2e_s),
    ]


def _traffic(cluster: SandboxCluster) -> list[Family]:
    totals = cluster.totals

    def counter(name: str, meaning: str, value: float, labels: Labels | None = None) -> Family:
        return Family(f"tuner_load_{name}", "counter", meaning, [("_total", labels or {}, value)])

    return [
        counter("requests", "Requests sent, when sent.", totals.arrivals),
        Family(
            "tuner_load_in_flight",
            "gauge",
            "Requests sent and not ended.",
            [("", {}, cluster.in_flight)],
        ),
        counter("finished", "Requests that ended well.", totals.finished),
        counter(
            "failed", "Requests that no replica can hold.", totals.rejected, {"kind": "rejected"}
        ),
        counter("prompt_tokens", "Prompt tokens processed.", totals.prompt_tokens),
        counter("output_tokens", "Tokens received, when received.", totals.output_tokens),
    ]


def _buckets(labels: Labels, values: Histogram) -> Iterator[Sample]:
    below = values.counts.cumsum().tolist()
    bounds = [*(repr(float(bound)) for bound in values.bounds), "+Inf"]
    for bound, count in zip(bounds, below, strict=True):
        yield "_bucket", {**labels, "le": bound}, count
    yield "_count", labels, below[-1]
    yield "_sum", labels, values.sum


def _text(families: Iterable[Family]) -> str:
    lines = []
    for family in families:
        name = family.name + ("_total" if family.kind == "counter" else "")
        lines.append(f"# HELP {name} {family.meaning}")
        lines.append(f"# TYPE {name} {family.kind}")
        for ending, labels, value in family.samples:
            lines.append(f"{family.name}{ending}{_labels(labels)} {float(value)!r}")
    return "\n".join(lines) + "\n"


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    pairs = (f'{name}="{_escaped(value)}"' for name, value in sorted(labels.items()))
    return "{" + ",".join(pairs) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
