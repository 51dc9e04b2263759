"""LMDeploy, watched only: names of InternLM/lmdeploy `lmdeploy/metrics/loggers.py`."""

from __future__ import annotations

from tuner.engines.capability import StartUp
from tuner.engines.engine import Metrics, Series
from tuner.engines.http import EngineHttp
from tuner.engines.watched import WatchedEngine

METRICS = Metrics(
    path="/metrics",
    # num_api_requests_routed and num_requests_failed are gauges: no rate can be taken of them.
    finished=(Series("lmdeploy:request_success_total"),),
    prompt_tokens=Series("lmdeploy:prompt_tokens_total"),
    output_tokens=Series("lmdeploy:generation_tokens_total"),
    running=Series("lmdeploy:num_requests_running"),
    waiting=Series("lmdeploy:num_requests_waiting"),
    kv_cache_usage=Series("lmdeploy:gpu_cache_usage_perc"),
    ttft_s=Series("lmdeploy:time_to_first_token_seconds"),
    tpot_s=Series("lmdeploy:time_per_output_token_seconds"),
    e2e_s=Series("lmdeploy:e2e_request_latency_seconds"),
)

START_UP = {
    "batch_size": StartUp("--max-batch-size", ""),
    "threads": StartUp("the proxy's nodes", ""),
}


class LmDeploy(WatchedEngine):
    """See `Engine`."""

    def __init__(self, http: EngineHttp) -> None:
        super().__init__(http, "lmdeploy", METRICS, START_UP)
