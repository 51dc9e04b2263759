from __future__ import annotations

from threading import Event, Thread

import pytest

from tuner.core.clock import ScaledClock, VirtualClock, WallClock


def test_virtual_time_moves_only_forward():
    clock = VirtualClock(10.0)
    clock.sleep_until(25.0)
    clock.sleep_until(20.0)
    assert clock.now_s() == 25.0


@pytest.mark.parametrize("speed", [1.0, 10.0], ids=["wall", "scaled"])
def test_a_sleep_of_an_hour_ends_when_the_clock_is_woken(speed: float) -> None:
    woken = Event()
    clock = WallClock(woken) if speed == 1.0 else ScaledClock(speed, 0.0, woken)
    sleeper = Thread(target=clock.sleep_until, args=(clock.now_s() + 3600.0,), daemon=True)
    sleeper.start()
    woken.set()
    sleeper.join(timeout=30.0)
    assert not sleeper.is_alive()


def test_a_sleep_into_the_past_is_none() -> None:
    clock = WallClock()
    clock.sleep_until(clock.now_s() - 3600.0)


def test_a_scaled_clock_runs_as_fast_as_it_is_told_from_its_epoch_on() -> None:
    wall = WallClock()
    epoch_s = wall.now_s() - 100.0
    before_s = wall.now_s()
    scaled_s = ScaledClock(10.0, epoch_s).now_s()
    after_s = wall.now_s()
    assert epoch_s + 10.0 * (before_s - epoch_s) <= scaled_s <= epoch_s + 10.0 * (after_s - epoch_s)
