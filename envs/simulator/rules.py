"""The scheduler's rules that a compiled function calls: those of its `Memory`'s own class.

Which rule-set a fleet follows is part of the type of its memory (`VidurMemory`, ...), so Numba
compiles the event loop once per rule-set that is used, with that rule-set's functions inlined and
without a branch on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from numba.extending import overload

from envs.simulator import sglang, vidur_sarathi, vllm_v1
from envs.simulator.compiled import INLINED
from envs.simulator.layout import Engine, Env, Memory, Replica


class VidurMemory(Memory):
    """Memory of a fleet under `vidur-sarathi`."""

    __slots__ = ()


class VllmMemory(Memory):
    """Memory of a fleet under `vllm-v1`."""

    __slots__ = ()


class SglangMemory(Memory):
    """Memory of a fleet under `sglang`."""

    __slots__ = ()


MEMORIES: dict[str, type[Memory]] = {
    "sglang": SglangMemory,
    "vidur-sarathi": VidurMemory,
    "vllm-v1": VllmMemory,
}
"""Rule-set -> class of its fleets' memory."""

_MODULES: dict[type[Memory], ModuleType] = {
    SglangMemory: sglang,
    VidurMemory: vidur_sarathi,
    VllmMemory: vllm_v1,
}


def start_iteration(
    memory: Memory, engine: Engine, env: Env, replica: Replica, at_s: float
) -> None:
    """Form the batch of the iteration that starts at `at_s`, or leave the replica idle."""
    raise TypeError("a scheduler's rules are called from compiled functions only")


def end_run(memory: Memory, engine: Engine, env: Env, replica: Replica, at_s: float) -> None:
    """Account for the run's iterations, the last of which ends at `at_s`."""
    raise TypeError("a scheduler's rules are called from compiled functions only")


def request_entered(
    memory: Memory, engine: Engine, env: Env, replica: Replica, at_s: float
) -> None:
    """Let a request that joined the queue at `at_s` in, at once or at the border it ends."""
    raise TypeError("a scheduler's rules are called from compiled functions only")


def cap_changed(memory: Memory, engine: Engine, env: Env, replica: Replica, at_s: float) -> None:
    """Take note that `replica.batch_size`, the cap, has been another until `at_s`."""
    raise TypeError("a scheduler's rules are called from compiled functions only")


def _by_memory(rule: Callable[..., None]) -> None:
    """Make compiled calls of `rule` calls of the function of that name in the memory's rule-set."""

    @overload(rule, jit_options=INLINED)
    def choose(memory: Any, engine: Any, env: Any, replica: Any, at_s: Any) -> Callable[..., None]:
        chosen = getattr(_MODULES[memory.instance_class], rule.__name__)

        def call(memory: Any, engine: Any, env: Any, replica: Any, at_s: Any) -> None:
            chosen(memory, engine, env, replica, at_s)

        return call


for _rule in (start_iteration, end_run, request_entered, cap_changed):
    _by_memory(_rule)
