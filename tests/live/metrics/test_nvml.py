"""NVML readings, against a stub that answers as the driver's library does: in its units."""

from __future__ import annotations

from types import SimpleNamespace

import pynvml
import pytest

from tuner.core.faults import FaultError, FaultReason
from tuner.live.metrics.extras import NodeCards
from tuner.live.metrics.nvml import Nvml


class Driver:
    """Keeps what a driver would: cards, and whether it is open."""

    def __init__(self, *cards: dict[str, int]) -> None:
        self.cards = cards
        self.open = 0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> Driver:
        for name in dir(self):
            if name.startswith("nvml"):
                monkeypatch.setattr(pynvml, name, getattr(self, name))
        return self

    def nvmlInit(self) -> None:  # noqa: N802
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        if not self.open:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_UNINITIALIZED)
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict[str, int]:  # noqa: N802
        if index >= len(self.cards):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return self.cards[index]

    def nvmlDeviceGetUtilizationRates(self, card: dict[str, int]) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(gpu=card["percent"], memory=12)

    def nvmlDeviceGetMemoryInfo(self, card: dict[str, int]) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(total=card["total"], used=card["used"], free=0)

    def nvmlDeviceGetPowerUsage(self, card: dict[str, int]) -> int:  # noqa: N802
        if "milliwatts" not in card:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return card["milliwatts"]


BUSY = {"percent": 97, "total": 150_754_820_096, "used": 132_070_244_352, "milliwatts": 612_345}
IDLE = {"percent": 3, "total": 150_754_820_096, "used": 633_339_904}


def test_readings_come_in_our_units(monkeypatch):
    driver = Driver(BUSY, IDLE).install(monkeypatch)
    nvml = Nvml()
    busy, idle = nvml.read()
    assert busy.utilisation == pytest.approx(0.97)
    assert busy.power_w == pytest.approx(612.345)
    assert (busy.memory_used_bytes, busy.memory_total_bytes) == (132_070_244_352, 150_754_820_096)
    # A card that does not measure power has none, not 0.
    assert idle.power_w is None
    nvml.read()
    assert driver.open == 1
    nvml.close()
    nvml.close()
    assert driver.open == 0


def test_gpu_utilisation_is_the_mean_over_the_cards_of_the_target(monkeypatch):
    Driver(BUSY, IDLE, BUSY).install(monkeypatch)
    found = NodeCards((0, 1)).read(at_s=5.0, window_s=60.0, timeout_s=1.0)
    assert (found.field, found.age_s) == ("gpu_util", 0.0)
    assert found.value == pytest.approx(0.5)


def test_a_card_that_does_not_exist_is_named(monkeypatch):
    Driver(IDLE).install(monkeypatch)
    with pytest.raises(FaultError) as error:
        Nvml((0, 7)).read()
    assert error.value.fault.reason is FaultReason.NOT_FOUND
    assert "[0, 7]" in str(error.value)


def test_a_node_without_cards_has_no_utilisation(monkeypatch):
    Driver().install(monkeypatch)
    with pytest.raises(FaultError) as error:
        Nvml().read()
    assert error.value.fault.reason is FaultReason.NOT_FOUND


def test_a_node_without_a_driver_is_a_fault_and_is_tried_again(monkeypatch):
    driver = Driver(IDLE).install(monkeypatch)

    def missing() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    nvml = Nvml()
    with monkeypatch.context() as without:
        without.setattr(pynvml, "nvmlInit", missing)
        with pytest.raises(FaultError) as error:
            nvml.read()
    assert error.value.fault.reason is FaultReason.UNREACHABLE
    assert nvml.read()[0].utilisation == pytest.approx(0.03)
    assert driver.open == 1
