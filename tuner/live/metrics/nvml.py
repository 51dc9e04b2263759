"""This node's own NVIDIA cards, through NVML.

NVML speaks percent, milliwatts and bytes (nvidia-ml-py, pynvml.py: nvmlDeviceGetUtilizationRates,
nvmlDeviceGetPowerUsage, nvmlDeviceGetMemoryInfo); what comes out here is 0-1, W and bytes.
Utilisation is the share of time in which any kernel ran: near 1 for decoding at batch size 1
already, and no headroom.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import pynvml

from tuner.core.faults import Fault, FaultError, FaultReason

_REASONS = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: FaultReason.UNREACHABLE,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: FaultReason.UNREACHABLE,
    pynvml.NVML_ERROR_NO_PERMISSION: FaultReason.FORBIDDEN,
    pynvml.NVML_ERROR_INVALID_ARGUMENT: FaultReason.NOT_FOUND,
    pynvml.NVML_ERROR_NOT_FOUND: FaultReason.NOT_FOUND,
    pynvml.NVML_ERROR_TIMEOUT: FaultReason.TIMED_OUT,
}


@dataclass(frozen=True)
class Card:
    """One card at one moment."""

    index: int
    utilisation: float
    """0-1, over the driver's own last sample period (1/6 to 1 s)."""
    memory_used_bytes: int
    memory_total_bytes: int
    power_w: float | None
    """None where the card does not measure it."""


class Nvml:
    """The driver's library, opened once.

    Args:
        indices: cards to read; empty takes all.
    """

    def __init__(self, indices: Collection[int] = ()) -> None:
        self._indices = tuple(indices)
        self._open = False

    def read(self) -> tuple[Card, ...]:
        """The cards now.

        Raises:
            FaultError: no driver, no such card, or a card that does not answer.
        """
        try:
            if not self._open:
                pynvml.nvmlInit()
                self._open = True
            count = pynvml.nvmlDeviceGetCount()
            cards = tuple(_read(index) for index in self._indices or range(count))
        except pynvml.NVMLError as error:
            reason = _REASONS.get(error.value, FaultReason.SERVER_ERROR)
            which = f"cards {list(self._indices)}" if self._indices else "all cards"
            raise FaultError(
                Fault(
                    "nvml",
                    reason,
                    f"nvml: {error} (asked for {which}); check gpu.indices and that the driver "
                    "is visible here",
                )
            ) from error
        if not cards:
            raise FaultError(
                Fault("nvml", FaultReason.NOT_FOUND, "nvml: the driver knows no card here")
            )
        return cards

    def close(self) -> None:
        if self._open:
            self._open = False
            pynvml.nvmlShutdown()


def _read(index: int) -> Card:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    try:
        power_w = pynvml.nvmlDeviceGetPowerUsage(handle) / 1000.0
    except pynvml.NVMLError_NotSupported:
        power_w = None
    return Card(
        index=index,
        utilisation=pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100.0,
        memory_used_bytes=int(memory.used),
        memory_total_bytes=int(memory.total),
        power_w=power_w,
    )
