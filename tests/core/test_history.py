from __future__ import annotations

from tuner.core.history import LENGTH, History
from tuner.core.observation import Observation
from tuner.knobs import knob_space


def test_keeps_the_last_observations_oldest_first():
    history = History(knob_space())
    for at_s in range(LENGTH + 5):
        history = history.observed(Observation(at_s=at_s, window_s=15.0))
    assert [o.at_s for o in history.observations] == list(range(5, LENGTH + 5))
    assert history.now.at_s == LENGTH + 4


def test_each_side_sees_its_own_memory():
    history = History(knob_space(), memory=(1.0,), fallback_memory=(2.0,))
    assert history.memory == (1.0,)
    assert history.for_fallback().memory == (2.0,)


def test_a_clock_that_is_set_back_begins_a_new_history():
    history = History(knob_space(), memory=(1.0,), fallback_memory=(2.0,))
    for at_s in (3600.0, 3615.0, 3615.0):
        history = history.observed(Observation(at_s=at_s, window_s=15.0))
    assert (len(history.observations), history.memory) == (3, (1.0,))
    early = Observation(at_s=30.0, window_s=15.0)
    assert history.observed(early) == History(knob_space(), (early,))
