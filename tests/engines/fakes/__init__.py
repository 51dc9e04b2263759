"""Engines of plain Python behind real sockets on free loopback ports; they keep state."""

from __future__ import annotations

from collections.abc import Callable

from tests.engines.fakes.contract import FakeContract, FakeKnob
from tests.engines.fakes.openai import FakeOpenAi
from tests.engines.fakes.server import Answer, FakeServer, Request, Trouble
from tests.engines.fakes.sglang import FakeSglang
from tests.engines.fakes.triton import FakeTriton
from tests.engines.fakes.vllm import FakeVllm

FakeEngine = FakeVllm | FakeSglang | FakeTriton | FakeOpenAi

FAKES: dict[str, Callable[[], FakeEngine]] = {
    "lmdeploy": FakeOpenAi,
    "sglang": FakeSglang,
    "tensorrt-llm": FakeOpenAi,
    "triton": FakeTriton,
    "vllm": FakeVllm,
}
"""A healthy one of each kind in ENGINES."""

__all__ = [
    "FAKES",
    "Answer",
    "FakeContract",
    "FakeEngine",
    "FakeKnob",
    "FakeOpenAi",
    "FakeServer",
    "FakeSglang",
    "FakeTriton",
    "FakeVllm",
    "Request",
    "Trouble",
]
