"""TensorRT-LLM's `trtllm-serve`, watched only: names of NVIDIA/TensorRT-LLM
`tensorrt_llm/metrics/collector.py`."""

from __future__ import annotations

from tuner.engines.capability import StartUp
from tuner.engines.engine import Metrics, Series
from tuner.engines.http import EngineHttp
from tuner.engines.watched import WatchedEngine

METRICS = Metrics(
    # `/metrics` is JSON; the text page needs `return_perf_metrics` in the engine's options.
    path="/prometheus/metrics",
    finished=(Series("trtllm_request_success_total"),),
    failed=(Series("trtllm_request_error_total"),),
    prompt_tokens=Series("trtllm_prompt_tokens_total"),
    output_tokens=Series("trtllm_generation_tokens_total"),
    running=Series("trtllm_num_requests_running"),
    waiting=Series("trtllm_num_requests_waiting"),
    kv_cache_usage=Series("trtllm_kv_cache_utilization"),
    ttft_s=Series("trtllm_time_to_first_token_seconds"),
    tpot_s=Series("trtllm_time_per_output_token_seconds"),
    e2e_s=Series("trtllm_e2e_request_latency_seconds"),
)

START_UP = {
    "batch_size": StartUp("--max_batch_size", ""),
    "threads": StartUp("the parallel sizes", ""),
}


class TensorrtLlm(WatchedEngine):
    """See `Engine`."""

    def __init__(self, http: EngineHttp) -> None:
        super().__init__(http, "tensorrt-llm", METRICS, START_UP)
