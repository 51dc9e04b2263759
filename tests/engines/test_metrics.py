"""Names, types and labels of the metrics tables, held against recorded pages."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

from tuner.engines import ENGINES, EngineHttp, Metrics, Series

PAGES = {"vllm": "vllm_metrics.txt", "triton": "triton_metrics.txt"}
COUNTERS = ("arrived", "finished", "failed", "prompt_tokens", "output_tokens", "preemptions")
GAUGES = ("running", "waiting", "kv_cache_usage")
HISTOGRAMS = ("ttft_s", "tpot_s", "e2e_s", "prompt_length", "output_length")
TYPES = {
    **dict.fromkeys(COUNTERS, "counter"),
    **dict.fromkeys(GAUGES, "gauge"),
    **dict.fromkeys(HISTOGRAMS, "histogram"),
    "e2e_p99_s": "summary",
}

NOT_RECORDED = {
    # The recorded model is not decoupled, so the server keeps no first-response histogram.
    ("triton", "nv_inference_first_response_histogram_ms"),
}


def metrics_of(engine: str) -> Metrics:
    with EngineHttp(timeout_s=1.0) as http:
        return ENGINES[engine](http).metrics


def series_of(metrics: Metrics) -> list[tuple[str, Series]]:
    found: list[tuple[str, Series]] = []
    for spec in fields(metrics):
        value = getattr(metrics, spec.name)
        if isinstance(value, Series):
            found.append((spec.name, value))
        elif isinstance(value, tuple):
            found.extend((spec.name, series) for series in value)
    return found


CASES = [
    pytest.param(engine, kind, series, id=f"{engine}-{kind}-{series.name}-{i}")
    for engine in PAGES
    for i, (kind, series) in enumerate(series_of(metrics_of(engine)))
]


@dataclass(frozen=True)
class Page:
    types: dict[str, str]
    """Family -> type, as the page declares it."""
    samples: dict[str, list[dict[str, str]]]
    """Sample name -> labels of each."""


@pytest.fixture(scope="module")
def pages() -> dict[str, Page]:
    folder = os.environ.get("TUNER_DATA")
    if not folder:
        pytest.skip("TUNER_DATA is not set: the recorded pages are not at hand")
    return {
        engine: parsed((Path(folder) / "fixtures" / name).read_text(encoding="utf-8"))
        for engine, name in PAGES.items()
    }


def parsed(text: str) -> Page:
    """By hand: prometheus_client's parser appends `_total` to counters that lack it."""
    samples: dict[str, list[dict[str, str]]] = {}
    for name, labels in re.findall(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? \S+$", text, flags=re.M):
        samples.setdefault(name, []).append(dict(re.findall(r'(\w+)="([^"]*)"', labels)))
    return Page(dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, flags=re.M)), samples)


@pytest.mark.parametrize(("engine", "kind", "series"), CASES)
def test_every_series_stands_on_the_recorded_page(pages, engine, kind, series):
    if (engine, series.name) in NOT_RECORDED:
        pytest.skip("the recorded model has no such series")
    page = pages[engine]
    assert page.types[series.name] == TYPES[kind]
    name = f"{series.name}_bucket" if TYPES[kind] == "histogram" else series.name
    assert any(series.labels.items() <= labels.items() for labels in page.samples[name])


def test_every_way_in_which_a_request_ends_is_counted_once(pages):
    samples = pages["vllm"].samples["vllm:request_success_total"]
    ends = {labels["finished_reason"] for labels in samples}
    metrics = metrics_of("vllm")
    good = [series.labels["finished_reason"] for series in metrics.finished]
    bad = [s.labels["finished_reason"] for s in metrics.failed if "finished_reason" in s.labels]
    assert sorted([*good, *bad]) == sorted(ends)


def test_microseconds_and_milliseconds_become_seconds():
    triton = metrics_of("triton")
    assert triton.e2e_p99_s is not None
    assert triton.e2e_p99_s.unit == 1e-6
    assert triton.ttft_s is not None
    assert triton.ttft_s.unit == 1e-3
    for engine in ("vllm", "sglang", "tensorrt-llm", "lmdeploy"):
        assert all(series.unit == 1.0 for _, series in series_of(metrics_of(engine)))


PATHS = {
    "lmdeploy": "/metrics",
    "sglang": "/metrics",
    "tensorrt-llm": "/prometheus/metrics",  # /metrics is JSON there
    "triton": "/metrics",
    "vllm": "/metrics",
}


@pytest.mark.parametrize("engine", ENGINES)
def test_the_page_is_where_the_text_format_is(engine):
    assert metrics_of(engine).path == PATHS[engine]


@pytest.mark.parametrize("engine", ENGINES)
def test_no_series_is_counted_twice(engine):
    metrics = metrics_of(engine)
    groups = (metrics.arrived, (*metrics.finished, *metrics.failed))
    for group in groups:
        keys = [(series.name, tuple(sorted(series.labels.items()))) for series in group]
        assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("engine", ENGINES)
def test_names_carry_the_suffix_of_their_type(engine):
    for kind, series in series_of(metrics_of(engine)):
        assert not series.name.endswith(("_bucket", "_sum", "_count")) or kind in GAUGES
        if kind in COUNTERS and engine != "triton":
            assert series.name.endswith("_total")
