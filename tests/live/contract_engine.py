"""An adapter for engines that have nothing but the run-time configuration contract."""

from __future__ import annotations

from tuner.core.faults import FaultError
from tuner.engines import openai
from tuner.engines.engine import Capability, Health, Metrics, Replica, Series, Standing
from tuner.engines.http import EngineHttp
from tuner.engines.runtime_config import RuntimeConfig


class ContractEngine(RuntimeConfig):
    """What every adapter is made of, without an engine's own endpoints."""

    name = "fake"
    standing: Standing = "verified"
    metrics = Metrics(
        "/metrics",
        finished=(Series("vllm:request_success_total"),),
        running=Series("vllm:num_requests_running"),
        waiting=Series("vllm:num_requests_waiting"),
    )

    def __init__(self, timeout_s: float = 5.0) -> None:
        self.http = EngineHttp(timeout_s=timeout_s)
        super().__init__(self.http, native=False)

    def health(self, replica: Replica) -> Health:
        try:
            self.http.get(replica.name, openai.address(replica, "/health"))
        except FaultError as trouble:
            return Health(live=True, ready=False, why=str(trouble))
        return Health(live=True, ready=True)

    def complete(self, replica: Replica, *, output_tokens: int = 1) -> float:
        return openai.complete(self.http, replica, output_tokens=output_tokens)

    def capabilities(self, replica: Replica) -> tuple[Capability, ...]:
        return ()
