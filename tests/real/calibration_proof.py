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
import time
from pathlib import Path

import numpy as np

from tests.real import vllm_env
from tests.real.controller import tuner
from tests.real.prometheus import Prometheus, Scrape
from tests.real.vllm_server import VllmServer, launch
from tuner.core.trace import Trace
from tuner.data.traces import write_trace

PARTS = {"fitted": 1, "left_out": 2}
"""Part -> seed of its load."""
PROMPT_TOKENS, OUTPUT_TOKENS = (16, 200), (8, 64)
"""Fewest and most of a request."""
CHUNK_TOKENS = 512
BATCH = 32
SCRAPE_S = 1.0
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
                began_s = time.time() + QUIET_S
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
                span = ("--since", moment(began_s - QUIET_S), "--until", moment(time.time()))
                out = ("--out", folder / f"{part}-telemetry.parquet", "--every", "1s", "--json")
                tuner("record", "--config", config, *span, *out, cwd=folder / "said").json()


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("proof-calibration"))
    parser.add_argument("--rates", type=float, nargs="+", default=[2.0, 5.0, 8.0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of each rate")
    given = parser.parse_args()
    folder = given.folder.resolve()
    if not (folder / "left_out-telemetry.parquet").exists():
        serve(folder, given.rates, given.seconds)


if __name__ == "__main__":
    main()
