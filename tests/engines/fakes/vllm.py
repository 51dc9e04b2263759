"""vLLM: development routes, and run-time configuration native, by our contract, or not at all."""

from __future__ import annotations

from typing import Any, Literal

from tests.engines.fakes.contract import PATH, FakeContract, FakeKnob
from tests.engines.fakes.openai import FakeOpenAi
from tests.engines.fakes.server import Answer, FakeServer, Request
from tuner.engines import Replica


class FakeVllm(FakeOpenAi):
    """One API server.

    Args:
        config: `contract`: our plugin, on a control port of its own; `native`: the draft's
            endpoint on the serving port; `none`: today's vLLM.
        dev_mode: whether pause and sleep exist.
    """

    def __init__(
        self,
        *,
        config: Literal["contract", "native", "none"] = "contract",
        dev_mode: bool = True,
        ceiling: int = 32,
        api_key: str | None = None,
        token: str | None = None,
    ) -> None:
        super().__init__(api_key=api_key)
        self.control = FakeServer()
        self.ceiling = ceiling
        self.cap = ceiling
        self.dead = self.paused = self.sleeping = False
        self.obeys = True
        self.contract = FakeContract(
            "vllm",
            {"batch_size": FakeKnob(ceiling, ceiling), "threads": FakeKnob(1, 1, 1, "restart")},
            apply=lambda values: setattr(self, "cap", values["batch_size"]),
            token=token,
        )
        if config == "contract":
            self.contract.serve_on(self.control)
        if config == "native":
            self.server.on("GET", PATH, self.native)
            self.server.on("PATCH", PATH, self.set_native)
        if dev_mode:
            self.server.on("GET", "/is_paused", self._flag("is_paused", "paused"))
            self.server.on("GET", "/is_sleeping", self._flag("is_sleeping", "sleeping"))

    @property
    def replica(self) -> Replica:
        return Replica("replica-0", self.server.url, self.control.url)

    def close(self) -> None:
        super().close()
        self.control.close()

    def pause(self) -> None:
        self.paused = self.contract.paused = True

    def sleep(self) -> None:
        """Going to sleep pauses the scheduler."""
        self.pause()
        self.sleeping = self.contract.sleeping = True

    def health(self, request: Request) -> Answer:
        """200 while paused and while asleep: only a dead engine says 503."""
        return Answer(503 if self.dead else 200)

    def native(self, request: Request) -> Answer:
        return Answer(200, {"max_num_running_seqs": self.cap, "max_num_seqs": self.ceiling})

    def set_native(self, request: Request) -> Answer:
        body: Any = request.json
        wanted = body.get("max_num_running_seqs")
        if not isinstance(wanted, int) or not 1 <= wanted <= self.ceiling:
            return Answer(400, {"error": f"expected 1..{self.ceiling}"})
        if self.obeys:
            self.cap = wanted
        return Answer(200, {"max_num_running_seqs": wanted})

    def page(self) -> str:
        labels = 'engine="0",model_name="tiny"'
        awake = 0.0 if self.sleeping else 1.0
        return (
            f'vllm:engine_sleep_state{{{labels},sleep_state="awake"}} {awake}\n'
            f'vllm:engine_sleep_state{{{labels},sleep_state="weights_offloaded"}} {1.0 - awake}\n'
            f"vllm:num_requests_running{{{labels}}} 0.0\n"
        )

    def _flag(self, key: str, name: str) -> Any:
        return lambda request: Answer(200, {key: getattr(self, name)})
