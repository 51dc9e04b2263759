from __future__ import annotations

import numpy as np
import pytest

from tuner.core.errors import ConfigError
from tuner.core.knobs import KnobSettings, KnobSpec
from tuner.knobs import KNOBS, knob_space


def test_settings_are_values_that_cannot_change():
    settings = KnobSettings(replicas=4)
    more = settings.with_(replicas=5, batch_size=64)
    assert settings == {"replicas": 4}
    assert more == {"replicas": 5, "batch_size": 64}
    assert hash(settings) == hash(KnobSettings({"replicas": 4}))


def test_row_and_back():
    knobs = knob_space()
    row = knobs.row({"replicas": 4})
    assert np.isnan(row).sum() == len(KNOBS) - 1
    assert knobs.settings(row) == {"replicas": 4}


def test_an_unknown_knob_is_named_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"knob 'repl' is not known.*replicas"):
        knob_space().column("repl")


def test_an_empty_range_is_refused_with_its_key():
    with pytest.raises(ConfigError, match=r"knobs\.replicas: low 5 is above high 4"):
        knob_space(replicas=(5, 4))


def test_default_moves_into_a_narrower_range():
    assert knob_space(batch_size=(1, 128)).defaults()["batch_size"] == 128


@pytest.mark.parametrize("name", KNOBS)
def test_every_knob_is_filed_under_its_name_and_says_what_it_is(name):
    spec = KNOBS[name]
    assert isinstance(spec, KnobSpec)
    assert spec.name == name
    assert spec.unit
    assert spec.meaning
