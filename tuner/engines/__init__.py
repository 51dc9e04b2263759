"""The engines. A new one: a file with its adapter, and a line in ENGINES."""

from __future__ import annotations

from collections.abc import Callable

from tuner.engines.engine import (
    Capability,
    Engine,
    EngineState,
    Health,
    KnobState,
    Metrics,
    Replica,
    Series,
    Standing,
)
from tuner.engines.http import EngineHttp
from tuner.engines.lmdeploy import LmDeploy
from tuner.engines.runtime_config import RuntimeConfig
from tuner.engines.sglang import Sglang
from tuner.engines.tensorrt_llm import TensorrtLlm
from tuner.engines.triton import Triton
from tuner.engines.vllm import Vllm

ENGINES: dict[str, Callable[[EngineHttp], Engine]] = {
    "lmdeploy": LmDeploy,
    "sglang": Sglang,
    "tensorrt-llm": TensorrtLlm,
    "triton": Triton,
    "vllm": Vllm,
}
"""By the name that `engine.kind` of tuner.yaml takes."""

__all__ = [
    "ENGINES",
    "Capability",
    "Engine",
    "EngineHttp",
    "EngineState",
    "Health",
    "KnobState",
    "Metrics",
    "Replica",
    "RuntimeConfig",
    "Series",
    "Standing",
]
