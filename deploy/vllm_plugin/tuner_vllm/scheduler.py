"""The engine core's side: vLLM's own asynchronous scheduler, and two calls that reach its caps.

Importing this module (vLLM does it in the engine core, for `--scheduler-cls`) gives the engine core
the utility calls `tuner_read` and `tuner_set`. They run between two scheduling steps, in the thread
that schedules. Both caps are read anew in every step (`Scheduler.schedule` in
vllm/v1/core/sched/scheduler.py), so writing them is all there is to do.

A subclass of the plain scheduler would turn asynchronous scheduling off and cost throughput.
"""

from __future__ import annotations

from collections.abc import Mapping

from vllm import __version__
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.engine.core import EngineCore

from .versions import check

check(__version__)


class TunerScheduler(AsyncScheduler):
    """vLLM's scheduler with its two caps readable and writable by name."""

    def tuner_knobs(self) -> dict[str, list[int]]:
        """Knob -> value, smallest, largest."""
        config = self.scheduler_config
        # Without chunked prefill a prompt must fit into one step: a smaller budget would leave the
        # longest allowed one waiting for ever.
        chunked = config.enable_chunked_prefill
        floor = config.max_num_seqs if chunked else self.max_model_len
        ceiling = config.max_num_batched_tokens
        return {
            "batch_size": [self.max_num_active_reqs, 1, self.max_num_running_reqs],
            "max_num_batched_tokens": [
                self.max_num_scheduled_tokens,
                min(floor, self.max_num_scheduled_tokens),
                ceiling,
            ],
        }

    def tuner_set(self, values: Mapping[str, int]) -> None:
        """Set some caps, all or none.

        Raises:
            ValueError: an unknown knob or a value out of range. The contract refused it before;
                this guards the scheduler against everybody else.
        """
        knobs = self.tuner_knobs()
        for name, value in values.items():
            if name not in knobs:
                raise ValueError(f"unknown knob {name!r}; there are {', '.join(knobs)}")
            _, low, high = knobs[name]
            if type(value) is not int or not low <= value <= high:
                raise ValueError(f"{name} = {value!r} is outside {low}..{high}")
        self.max_num_active_reqs = values.get("batch_size", self.max_num_active_reqs)
        self.max_num_scheduled_tokens = values.get(
            "max_num_batched_tokens", self.max_num_scheduled_tokens
        )


def tuner_read(core: EngineCore) -> dict[str, object]:
    """This rank's caps, counts and states, as plain data."""
    scheduler = _ours(core)
    running, waiting = scheduler.get_request_counts()
    return {
        "knobs": scheduler.tuner_knobs(),
        "running": running,
        "waiting": waiting,
        "paused": core.is_scheduler_paused(),
        "sleeping": core.model_executor.is_sleeping,
    }


def tuner_set(core: EngineCore, values: dict[str, int]) -> dict[str, object]:
    """Set and read back."""
    _ours(core).tuner_set(values)
    return tuner_read(core)


def _ours(core: EngineCore) -> TunerScheduler:
    scheduler = core.scheduler
    if not isinstance(scheduler, TunerScheduler):
        raise TypeError(f"the scheduler is {type(scheduler).__name__}, not TunerScheduler")
    return scheduler


EngineCore.tuner_read = tuner_read
EngineCore.tuner_set = tuner_set
