"""Recording from Prometheus: exact totals over chunks, restarts and kills."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.live.engine_page import SUCCESS, VLLM, Answer, serving
from tests.live.metrics.test_collector import FakePrometheus
from tuner.config import EngineConfig, GpuConfig, PrometheusConfig, TargetConfig, TrafficConfig
from tuner.core.errors import ConfigError, InputError
from tuner.core.faults import FaultError, FaultReason
from tuner.data.telemetry import COUNTS, read_telemetry
from tuner.live.metrics import record as recording
from tuner.live.metrics.fields import fields_of
from tuner.live.metrics.record import RecordRequest, record

START_S = 1_800_000_000.0
TTFT = "vllm:time_to_first_token_seconds_bucket"


class Past(FakePrometheus):
    """What a server remembers of engines."""

    def live(self, pod: str, begin_s: float, end_s: float, *, past: int = 0, **labels: str) -> None:
        """One process of an engine from begin to end, scraped every 15 s; `past` requests before.

        Requests have 16 tokens; every other one has its first token within 0.1 s.
        """
        at = {"pod": pod, "instance": f"{pod}:8000", "job": "llm", "app": "r1", **labels}
        times = np.arange(begin_s + 3.0, end_s, 15.0)
        # More in some intervals than in others.
        done = past + np.cumsum(np.random.default_rng(7).integers(0, 20, len(times)))

        def add(name: str, values, **more: str) -> None:
            merged = self._find({"__name__": name, **at, **more})
            merged.extend(zip(times.tolist(), np.asarray(values, float).tolist(), strict=True))

        add(SUCCESS, done, finished_reason="stop")
        add("vllm:generation_tokens_total", done * 16)
        add("vllm:num_requests_running", np.full(len(times), 4))
        add(TTFT, (done + 1) // 2, le="0.1")
        add(TTFT, done, le="1.0")
        add(TTFT, done, le="+Inf")
        add("process_start_time_seconds", np.full(len(times), begin_s))

    def _find(self, labels: dict[str, str]) -> list[tuple[float, float]]:
        for known, samples in self.series:
            if known == labels:
                return samples
        self.series.append((labels, []))
        return self.series[-1][1]


def request(url: str, tmp_path, *, minutes: float = 60, **sections) -> RecordRequest:
    target = TargetConfig(
        name="r1",
        policy="hpa",
        engine=EngineConfig("vllm"),
        prometheus=PrometheusConfig(url, {"app": "r1"}),
        **sections,
    )
    out = tmp_path / "telemetry.parquet"
    return RecordRequest(target, VLLM, START_S, START_S + 60.0 * minutes, 15.0, out)


def restarting() -> Past:
    past = Past()
    # Before the recording: 9,000 requests that are not ours. The first rise that is: between the
    # last sample before the start and the first one after it.
    past.live("a", START_S - 600, START_S + 1500, past=9000)
    past.live("a", START_S + 1520, START_S + 3600)
    past.live("b", START_S + 900, START_S + 2100)
    return past


def rises(past: Past, name: str, **labels: str) -> float:
    """By hand: how far a series rose within the hour, from the last sample before it."""
    total = 0.0
    for known, samples in past.series:
        if known["__name__"] != name or not labels.items() <= known.items():
            continue
        before = [value for at_s, value in samples if at_s <= START_S]
        last = before[-1] if before else 0.0
        for _, value in (one for one in samples if START_S < one[0] <= START_S + 3600):
            total += value - last if value >= last else value
            last = value
    return total


def test_the_windows_add_up_to_what_the_counters_rose_by(tmp_path, monkeypatch):
    past = restarting()
    monkeypatch.setattr(recording, "CHUNK_SAMPLES", 300)
    with serving(past) as url:
        done = record(request(url, tmp_path))
    totals = done.telemetry.totals()
    assert len(past.asked) > 3
    assert totals["requests_finished"] == rises(past, SUCCESS)
    assert totals["output_tokens"] == rises(past, "vllm:generation_tokens_total") > 0
    assert totals["requests_failed"] is None  # no such series, so nothing was counted
    rows = read_telemetry(tmp_path / "telemetry.parquet").table.to_pylist()
    assert len(rows) == 240
    assert sum(sum(row["ttft_s_counts"]) for row in rows if row["ttft_s_counts"]) == rises(
        past, TTFT, le="+Inf"
    )
    assert next(row["ttft_s_bounds"] for row in rows if row["ttft_s_bounds"]) == [0.1, 1.0]
    assert not (tmp_path / "telemetry.parquet.parts").exists()


def test_what_rose_while_the_server_was_down_is_booked_where_it_is_seen_again(
    tmp_path, monkeypatch
):
    past = restarting()
    for _, samples in past.series:
        samples[:] = [one for one in samples if not 300 < one[0] - START_S < 1400]
    # Shorter chunks than the outage: the last value must be carried over empty ones.
    monkeypatch.setattr(recording, "FIRST_CHUNK_S", 120.0)
    monkeypatch.setattr(recording, "LONGEST_CHUNK_S", 120.0)
    with serving(past) as url:
        done = record(request(url, tmp_path)).telemetry
    assert done.totals()["requests_finished"] == rises(past, SUCCESS)
    rows = done.table.to_pylist()
    silent = [row["requests_finished"] for row in rows if 400 < row["at_s"] - START_S < 1400]
    assert set(silent) == {None}


@pytest.mark.parametrize("samples", [60, 1_000, 1_000_000])
def test_the_file_does_not_depend_on_the_chunks(tmp_path, monkeypatch, samples):
    past = restarting()
    with serving(past) as url:
        whole = record(request(url, tmp_path)).telemetry
        (tmp_path / "telemetry.parquet").unlink()
        monkeypatch.setattr(recording, "CHUNK_SAMPLES", samples)
        other = record(request(url, tmp_path)).telemetry
    assert other.table.equals(whole.table)
    assert other.carry == whole.carry


def test_the_fields_are_those_that_a_controller_would_have_seen(tmp_path):
    past = restarting()
    with serving(past) as url:
        asking = request(url, tmp_path)
        table = record(asking).telemetry.table
        at_s = START_S + 2400.0
        source = recording.PrometheusSource(asking.target.prometheus)
        names = recording.wanted_names(VLLM)
        series = source.samples(names, (), at_s=at_s, window_s=asking.target.window_s)
        source.close()
    (row,) = [row for row in table.to_pylist() if row["at_s"] == at_s]
    seen = fields_of(series, VLLM, at_s=at_s)
    assert {name: row[name] for name in seen.values} == dict(seen.values)
    assert dict(row["ages_s"]) == dict(seen.ages_s)
    assert row["estimates"] == list(seen.estimates)
    assert row["age_s"] == seen.age_s


class Killed(Exception):  # noqa: N818
    """Stands for SIGKILL: nothing of ours runs after it."""


def test_a_killed_recording_goes_on_where_it_stopped(tmp_path, monkeypatch):
    past = restarting()
    monkeypatch.setattr(recording, "CHUNK_SAMPLES", 300)
    steps = []

    def kill(done_s: float, all_s: float) -> None:
        steps.append(done_s)
        if len(steps) == 3:
            raise Killed

    with serving(past) as url:
        asking = request(url, tmp_path)
        with pytest.raises(Killed):
            record(asking, kill)
        assert not asking.out.exists()
        past.asked_at.clear()
        done = record(asking)
        goes_on_at = min(past.asked_at)
        whole = record(replace(asking, out=tmp_path / "other.parquet"))
    assert done.asked_from_s == START_S + steps[-1]
    assert goes_on_at > START_S + steps[-1]
    assert done.telemetry.table.equals(whole.telemetry.table)
    assert done.telemetry.totals() == whole.telemetry.totals()


def test_a_finished_file_is_gone_on_with_and_nothing_is_asked_where_nothing_is_new(tmp_path):
    past = restarting()
    with serving(past) as url:
        asking = request(url, tmp_path)
        record(replace(asking, until_s=START_S + 1800.0))
        both = record(asking)
        assert both.asked_from_s == START_S + 1800.0
        past.asked.clear()
        same = record(asking)
        assert past.asked == []
        whole = record(replace(asking, out=tmp_path / "other.parquet"))
    assert both.telemetry.table.equals(whole.telemetry.table)
    assert same.telemetry.table.equals(whole.telemetry.table)


def test_what_a_kill_while_tidying_up_leaves_behind_is_not_counted_twice(tmp_path):
    past = restarting()
    with serving(past) as url:
        asking = request(url, tmp_path)
        record(replace(asking, until_s=START_S + 1800.0))
        parts = tmp_path / "telemetry.parquet.parts"
        parts.mkdir()
        stale = parts / f"{START_S + 1800.0:015.3f}.parquet"
        stale.write_bytes(asking.out.read_bytes())
        whole = record(asking)
    assert whole.telemetry.totals()["requests_finished"] == rises(past, SUCCESS)


def test_a_server_that_finds_a_chunk_too_large_is_asked_for_less(tmp_path):
    past = restarting()

    def limited(path, headers):
        window_ms = int(re.search(r"%5B(\d+)ms", path)[1])
        if window_ms > 600_000:
            return Answer(b'{"error": "query processing would load too many samples"}', 422)
        return past(path, headers)

    with serving(limited) as url:
        done = record(request(url, tmp_path))
    assert done.telemetry.totals()["requests_finished"] == rises(past, SUCCESS)


def test_a_server_that_goes_down_ends_in_a_fault_and_keeps_what_is_done(tmp_path, monkeypatch):
    past = restarting()
    monkeypatch.setattr(recording, "CHUNK_SAMPLES", 300)
    ends_after = [3]

    def sometimes(path, headers):
        return past(path, headers) if len(past.asked) < ends_after[0] else Answer(b"", 503)

    with serving(sometimes) as url:
        asking = request(url, tmp_path)
        with pytest.raises(FaultError) as error:
            record(asking)
        assert len(list((tmp_path / "telemetry.parquet.parts").iterdir())) == 3
        ends_after[0] = 10**9
        done = record(asking)
    assert error.value.fault.reason is FaultReason.SERVER_ERROR
    assert done.telemetry.totals()["requests_finished"] == rises(past, SUCCESS)


def test_counting_begins_where_the_server_s_memory_begins(tmp_path):
    past = Past()
    # The server is younger than --since: what stands on the first pages is their past.
    past.live("old", START_S + 1200, START_S + 3600, past=70_000)
    for known, samples in past.series:
        if known["__name__"] == "process_start_time_seconds":
            samples[:] = [(at_s, START_S - 9999.0) for at_s, _ in samples]
    # Twenty minutes later a pod comes that never was: all of it counts.
    past.live("new", START_S + 2400, START_S + 3600)
    with serving(past) as url:
        done = record(request(url, tmp_path))
    old = next(samples for known, samples in past.series if known["pod"] == "old")
    new = next(samples for known, samples in past.series if known["pod"] == "new")
    expected = old[-1][1] - old[0][1] + new[-1][1]
    assert done.telemetry.totals()["requests_finished"] == expected
    empty = done.telemetry.table.to_pylist()[0]
    assert empty["age_s"] is None
    assert empty["requests_finished"] is None


def test_gateway_and_cards_are_recorded_where_they_are_configured(tmp_path):
    past = restarting()
    times = np.arange(START_S - 60, START_S + 3600, 15.0).tolist()
    past.add("sent_total", [(t, 3.0 * (t - START_S) + 500.0) for t in times], route="r1")
    past.add("DCGM_FI_DEV_GPU_UTIL", [(t, 80.0) for t in times], gpu="0")
    sections = {
        "traffic": TrafficConfig("sent_total", selector={"route": "r1"}),
        "gpu": GpuConfig("dcgm"),
    }
    with serving(past) as url:
        done = record(request(url, tmp_path, **sections)).telemetry
    row = done.table.to_pylist()[100]
    assert row["qps"] == pytest.approx(3.0)
    assert row["gpu_util"] == pytest.approx(0.8)
    assert row["requests_arrived"] == 45
    assert done.totals()["requests_arrived"] == 3 * 3585


def test_a_target_that_has_no_series_is_warned_of(tmp_path):
    with serving(Past()) as url:
        done = record(request(url, tmp_path, minutes=5))
    assert done.telemetry.totals() == dict.fromkeys(COUNTS)
    assert "no series of target r1" in done.warnings[0]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"until_s": START_S + 10.0}, ConfigError, "no whole window"),
        ({"every_s": 0.0}, ConfigError, "--every is 0 s"),
        ({"every_s": -5.0}, ConfigError, "--every is -5 s"),
    ],
    ids=["no window", "every 0", "every negative"],
)
def test_a_span_that_cannot_be_is_refused(tmp_path, change, error, words):
    with pytest.raises(error, match=words):
        record(replace(request("http://127.0.0.1:9", tmp_path), **change))


def test_a_target_without_prometheus_has_no_past(tmp_path):
    asking = request("http://127.0.0.1:9", tmp_path)
    with pytest.raises(ConfigError, match="add the section prometheus"):
        record(replace(asking, target=replace(asking.target, prometheus=None)))


@pytest.mark.parametrize(
    ("out", "words"),
    [
        (Path("/nowhere/t.parquet"), "folder /nowhere does not exist"),
        (Path("/proc/t.parquet"), r"/proc/t\.parquet cannot be written"),
    ],
    ids=["no folder", "a folder that takes no file"],
)
def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path, out, words):
    with serving(restarting()) as url, pytest.raises(InputError, match=words):
        record(replace(request(url, tmp_path), out=out))


def test_another_recording_at_the_same_place_is_not_touched(tmp_path):
    with serving(restarting()) as url:
        asking = request(url, tmp_path)
        record(asking)
        before = asking.out.read_bytes()
        with pytest.raises(InputError, match=r"every_s is 15\.0 there and 30\.0 now"):
            record(replace(asking, every_s=30.0))
        with pytest.raises(InputError, match="target is 'r1' there and 'r2' now"):
            record(replace(asking, target=replace(asking.target, name="r2")))
    assert asking.out.read_bytes() == before
