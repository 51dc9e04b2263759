"""Built-in workloads: functions that draw a trace, by name.

A new one is one file here and one line in `WORKLOADS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from envs.workloads import deepseek_r1_day
from tuner.core.trace import Trace


class Workload(Protocol):
    """Draws a trace; the same arguments give the same bits."""

    def __call__(self, hours: float, seed: int, mean_qps: float = ...) -> Trace:
        """Requests over `hours`, `mean_qps` requests/s in the mean of a day.

        Raises:
            ConfigError: an argument is out of its range.
        """


WORKLOADS: Mapping[str, Workload] = {
    deepseek_r1_day.NAME: deepseek_r1_day.generate,
}

__all__ = ["WORKLOADS", "Workload"]
