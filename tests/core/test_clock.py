from __future__ import annotations

from tuner.core.clock import VirtualClock


def test_virtual_time_moves_only_forward():
    clock = VirtualClock(10.0)
    clock.sleep_until(25.0)
    clock.sleep_until(20.0)
    assert clock.now_s() == 25.0
