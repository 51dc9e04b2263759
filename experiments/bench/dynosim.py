"""Replays a trace in NVIDIA's DynoSim (`ai-dynamo-runtime`) and prints what it took, as JSON.

Run by `experiments.bench.peers` in an environment of its own, which has that package and nothing of
this project; so this file imports nothing of it either. Its first argument is a JSON object: trace
(a Mooncake JSONL file), block_tokens, blocks, batch_size, chunk_tokens, replicas, tick_s, repeat.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from dynamo._core import _normalize_mocker_config, run_mocker_trace_replay


class HoldReplicas:
    """A scaling policy that is asked every `tick_s` and leaves everything as it is."""

    def __init__(self, replicas: int, tick_s: float) -> None:
        self.replicas = replicas
        self.tick_ms = tick_s * 1e3
        self.asked = 0

    def initial_tick_ms(self) -> float:
        return self.tick_ms

    def on_tick(self, snapshot: Mapping[str, Any]) -> dict[str, float | None]:
        self.asked += 1
        return {
            "target_prefill": None,
            "target_decode": self.replicas,
            "next_tick_ms": snapshot["now_ms"] + self.tick_ms,
        }


def main() -> None:
    asked = json.loads(sys.argv[1])
    engine = {
        "backend": "vllm",
        "block_size": asked["block_tokens"],
        "num_gpu_blocks": asked["blocks"],
        "max_num_seqs": asked["batch_size"],
        "max_num_batched_tokens": asked["chunk_tokens"],
        "enable_prefix_caching": False,
    }
    config = _normalize_mocker_config({"engine": engine})

    def replay(policy: HoldReplicas | None) -> tuple[float, Mapping[str, Any]]:
        before_s = time.process_time()
        result = run_mocker_trace_replay(
            [asked["trace"]],
            extra_engine_args=config,
            num_workers=asked["replicas"],
            trace_block_size=asked["hash_tokens"],
            capture_planner_details=False,
            scaling_policy=policy,
        )
        return time.process_time() - before_s, result.summary

    cpu_s, controlled_cpu_s = [], []
    for _ in range(asked["repeat"]):
        seconds, summary = replay(None)
        cpu_s.append(seconds)
        policy = HoldReplicas(asked["replicas"], asked["tick_s"])
        seconds, _ = replay(policy)
        controlled_cpu_s.append(seconds)
    figures = {
        "version": version("ai-dynamo-runtime"),
        "requests": summary["completed_requests"],
        "output_tokens": summary["total_output_tokens"],
        "cpu_s": cpu_s,
        "controlled_cpu_s": controlled_cpu_s,
        "control_steps": policy.asked,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
