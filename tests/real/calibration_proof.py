"""A profile calibrated from a recording of the real vLLM, against what it was not shown.

`make proof-calibration`: the tiny DeepSeek-V3 on the CPU and a Prometheus are started, `tuner load`
drives two loads of several rates, `tuner record` records each, `tuner calibrate --telemetry` fits a
profile to the first, and the requests of the second are simulated with it. The table shows what was
measured beside what was simulated. An old folder is judged again without an engine.

The engine's clock is a shared CPU: how fast it is changes from minute to minute, which no profile
can know. So the table also holds the two recordings against each other.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from envs.calibrate.replay import served
from envs.calibrate.telemetry import KINDS, Blocks, Recording, ready_for_fit, simulated_blocks
from envs.workloads.recorded import from_telemetry
from experiments.statistics import draw_blocks
from tests.envs.recordings import recorded
from tests.real import vllm_env
from tests.real.controller import tuner
from tests.real.prometheus import Prometheus, Scrape
from tests.real.vllm_server import VllmServer, launch
from tuner.core.histograms import histogram_quantile
from tuner.core.profile import ServingProfile
from tuner.core.trace import Trace
from tuner.data import load_profile
from tuner.data.telemetry import read_telemetry
from tuner.data.traces import write_trace

Counts = NDArray[np.float64]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PARTS = {"fitted": 1, "left_out": 2}
"""Part -> seed of its load."""
PROMPT_TOKENS, OUTPUT_TOKENS = (16, 200), (8, 64)
"""Fewest and most of a request."""
SERIES = {
    "ttft_s": "vllm:time_to_first_token_seconds",
    "tpot_s": "vllm:request_time_per_output_token_seconds",
    "e2e_s": "vllm:e2e_request_latency_seconds",
}
"""Their means are not in a recording: only sums would tell them."""
CHUNK_TOKENS = 512
BATCH = 32
SCRAPE_S = 1.0
BLOCKS, RESAMPLES = 24, 500
"""Of the intervals."""
NOT_EXPLAINED = """
Quantiles are read off the engine's buckets on both sides; the requests are rebuilt from the
recording. The last column is what the engine's machine did by itself: the first recording, of a
load drawn alike, against this one. Not explained by any profile: who else had the cores (the step
time is taken to be the same at all times), the driver and Prometheus on those cores, the API
server's own time before and after the scheduler, and where inside its second a request came.
"""
QUIET_S = 5.0
"""Before and after a load, so that a recording holds all of it and nothing else."""

CONFIG = """
schema: tuner.config/1
targets:
  - name: tiny
    policy: static
    policy_options: {{replicas: 1}}
    fallback: static
    fallback_options: {{replicas: 1}}
    engine: {{kind: vllm}}
    prometheus: {{url: "{url}", selector: {{app: tiny}}}}
    processes:
      endpoints: [{{name: r0, url: "http://127.0.0.1:9"}}]
    move: []
"""

BASE = """
schema: tuner.profile/1
name: tiny-base
scheduler: vllm-v1
gpus_per_replica: 1
kv: {{block_tokens: {block_tokens}, blocks: {blocks}, watermark: 0.0}}
limits: {{batch_size_max: {batch}, chunk_tokens: {chunk}}}
step_time: {{base_s: 0.01, per_sequence_s: 1.0e-3, per_prefill_token_s: 1.0e-4}}
origin: {{kv: the engine's own cache_config_info, limits: the engine's arguments}}
assumed: [step_time]
"""


def load_of(rates: list[float], seconds: float, seed: int) -> Trace:
    """Poisson arrivals, each rate for so many seconds, one after the other."""
    rng = np.random.default_rng(seed)
    arrivals = [
        np.sort(rng.uniform(place * seconds, (place + 1) * seconds, rng.poisson(rate * seconds)))
        for place, rate in enumerate(rates)
    ]
    arrival_s = np.concatenate(arrivals)
    return Trace(
        arrival_s,
        rng.integers(*PROMPT_TOKENS, len(arrival_s), dtype=np.int32),
        rng.integers(*OUTPUT_TOKENS, len(arrival_s), dtype=np.int32),
        name="tiny",
    )


def serve(folder: Path, rates: list[float], seconds: float) -> None:
    """Both parts: driven, recorded, and the base profile with what the engine says of its cache."""
    folder.mkdir(parents=True, exist_ok=True)
    token = folder / "token"
    token.write_text("token-of-the-proof\n", encoding="utf-8")
    token.chmod(0o600)
    start = launch(
        vllm_env.engine_python(),
        vllm_env.engine_model(),
        token,
        max_num_seqs=BATCH,
        more=("--max-num-batched-tokens", str(CHUNK_TOKENS)),
    )
    config = folder / "tuner.yaml"
    with VllmServer(start, folder / "vllm.log") as engine:
        address = engine.url.removeprefix("http://")
        scrape = Scrape(address, {"pod": "r0", "app": "tiny"})
        with Prometheus(folder / "prometheus", [scrape], interval_s=SCRAPE_S) as server:
            config.write_text(CONFIG.format(url=server.url), encoding="utf-8")
            (folder / "base.yaml").write_text(base_profile(engine), encoding="utf-8")
            for part, seed in PARTS.items():
                trace = load_of(rates, seconds, seed)
                write_trace(trace, folder / f"{part}.parquet")
                before, began_s = sums(engine), time.time()
                time.sleep(QUIET_S)
                drive = ("load", "--trace", folder / f"{part}.parquet", "--url", engine.url)
                tuner(
                    *drive,
                    "--out",
                    folder / f"{part}-load",
                    "--json",
                    cwd=folder / "said",
                    timeout_s=600 + seconds * len(rates),
                ).json()
                time.sleep(QUIET_S)
                means = {
                    kind: (total - before[kind][0]) / (count - before[kind][1])
                    for kind, (total, count) in sums(engine).items()
                }
                (folder / f"{part}-means.json").write_text(json.dumps(means), encoding="utf-8")
                span = ("--since", moment(began_s), "--until", moment(time.time()))
                out = ("--out", folder / f"{part}-telemetry.parquet", "--every", "1s", "--json")
                tuner("record", "--config", config, *span, *out, cwd=folder / "said").json()


def sums(engine: VllmServer) -> dict[str, list[float]]:
    """Kind of latency -> sum in seconds and number of requests, since the engine started."""
    return {
        kind: [engine.gauge(f"{name}_sum"), engine.gauge(f"{name}_count")]
        for kind, name in SERIES.items()
    }


def base_profile(engine: VllmServer) -> str:
    """The limits that the engine was started with, and the cache that it says it has."""
    page = engine.serving("GET", "/metrics").text
    line = next(line for line in page.splitlines() if line.startswith("vllm:cache_config_info{"))
    labels = dict(part.split("=", 1) for part in line[line.index("{") + 1 : -5].split('",'))
    cache = {name: int(labels[name].strip('"')) for name in ("block_size", "num_gpu_blocks")}
    return BASE.format(
        block_tokens=cache["block_size"],
        blocks=cache["num_gpu_blocks"],
        batch=BATCH,
        chunk=CHUNK_TOKENS,
    )


def moment(at_s: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at_s))


@dataclass(frozen=True)
class Row:
    """One figure of the part left out."""

    name: str
    measured: float
    simulated: float
    low: float
    """95 % interval of simulated / measured - 1, over blocks of time."""
    high: float
    drift: float
    """The other recording's measured value / this one's - 1: what changed with no profile at all;
    NaN where it has none."""


def judge(folder: Path) -> list[Row]:
    """The part left out, measured and simulated by the fitted profile."""
    profile = load_profile(folder / "fitted.yaml")
    parts = {
        part: ready_for_fit(read_telemetry(folder / f"{part}-telemetry.parquet"), part)
        for part in PARTS
    }
    recording, other = parts["left_out"], parts["fitted"]
    trace = from_telemetry(recording.telemetry, 0).trace
    own = simulated_blocks(recording, trace, profile, replicas=1, router="round_robin")
    rows = [
        row
        for kind in KINDS
        for row in latency_rows(folder, kind, recording, own, other, profile, trace)
    ]
    gauges = recorded(trace, profile, every_s=1.0, until_s=float(recording.edge_s[-1])).table
    tables = {
        "measured": recording.telemetry.table,
        "simulated": gauges,
        "other": other.telemetry.table,
    }
    for name, column in {
        "requests finished per s": "requests_finished",
        "output tokens per s": "output_tokens",
        "running, mean": "running",
        "waiting, mean": "queue_depth",
    }.items():
        found = {one: table[column].to_numpy(zero_copy_only=False) for one, table in tables.items()}
        length = min(len(found["measured"]), len(found["simulated"]))
        true, mine = (found[one][:length] for one in ("measured", "simulated"))
        low, high = interval(
            lambda weight, true=true, mine=mine: relative(
                np.nansum(weight * mine), np.nansum(weight * true)
            ),
            np.minimum(np.arange(length) * BLOCKS // length, BLOCKS - 1),
        )
        rows.append(
            Row(
                name,
                float(np.nanmean(true)),
                float(np.nanmean(mine)),
                *(low, high),
                relative(np.nanmean(found["other"]), np.nanmean(true)),
            )
        )
    return rows


def latency_rows(
    folder: Path,
    kind: str,
    recording: Recording,
    own: Blocks,
    other: Recording,
    profile: ServingProfile,
    trace: Trace,
) -> Iterator[Row]:
    """Mean, p50, p95 and p99 of one latency; quantiles by the engine's buckets on both sides."""
    means = {part: json.loads((folder / f"{part}-means.json").read_text())[kind] for part in PARTS}
    seen = getattr(served(trace, profile, replicas=1, router="round_robin"), kind)
    simulated = float(seen[trace.output_tokens > 1].mean())
    # The engine tells a sum over everything, so the mean has no interval over blocks.
    yield Row(
        f"{kind[:-2].upper()} mean, ms",
        *(1e3 * means["left_out"], 1e3 * simulated, np.nan, np.nan),
        relative(means["fitted"], means["left_out"]),
    )
    block = np.arange(len(recording.judged))
    for share in (0.5, 0.95, 0.99):

        def at(counts: Counts, share: float = share) -> float:
            return float(histogram_quantile(share, recording.bounds[kind], counts[None, :])[0])

        true, mine = recording.measured.counts[kind], own.counts[kind]
        low, high = interval(
            lambda weight, at=at, true=true, mine=mine: relative(
                at(weight @ mine), at(weight @ true)
            ),
            block,
        )
        measured = at(true.sum(axis=0))
        yield Row(
            f"{kind[:-2].upper()} p{100 * share:.0f}, ms",
            *(1e3 * measured, 1e3 * at(mine.sum(axis=0)), low, high),
            relative(at(other.measured.counts[kind].sum(axis=0)), measured),
        )


def interval(error: Callable[[Floats], float], block: Ints) -> tuple[float, float]:
    """95 % of the error over drawn blocks; it gets `(rows,)` how often each row counts."""
    draws = draw_blocks(int(block[-1]) + 1, RESAMPLES)
    found = [error(np.asarray(draw, np.float64)[block]) for draw in draws]
    if not np.isfinite(found).any():  # nothing was measured in any block
        return float("nan"), float("nan")
    low, high = np.nanquantile(found, (0.025, 0.975))
    return float(low), float(high)


def relative(value: float, to: float) -> float:
    return float(value / to - 1) if to > 0 else float("nan")


def show(rows: Sequence[Row]) -> None:
    console = Console(width=110, highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("of the part left out", no_wrap=True)
    for title in ("measured", "simulated", "error", "95 % interval", "the other recording"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        known = np.isfinite(row.low)
        table.add_row(
            row.name,
            f"{row.measured:.4g}",
            f"{row.simulated:.4g}",
            percent(relative(row.simulated, row.measured)),
            f"{row.low:+.0%} to {row.high:+.0%}" if known else "-",
            percent(row.drift),
        )
    console.print(table)
    console.print(NOT_EXPLAINED)


def percent(value: float) -> str:
    return f"{value:+.0%}" if np.isfinite(value) else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("proof-calibration"))
    parser.add_argument("--rates", type=float, nargs="+", default=[2.0, 4.0, 6.0] * 2)
    parser.add_argument("--seconds", type=float, default=40.0, help="of each rate")
    given = parser.parse_args()
    folder = given.folder.resolve()
    if not (folder / "left_out-telemetry.parquet").exists():
        serve(folder, given.rates, given.seconds)
    fitted = ("--out", folder / "fitted.yaml", "--page", folder / "fitted.html")
    source = ("--telemetry", folder / "fitted-telemetry.parquet")
    said = tuner("calibrate", folder / "base.yaml", *source, *fitted, cwd=folder / "said")
    assert said.status == 0, said
    print(said.out)
    show(judge(folder))


if __name__ == "__main__":
    main()
