from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tuner.core.knobs import KnobSettings
from tuner.core.observation import (
    COLUMN,
    FIELD_NAMES,
    FIELDS,
    Observation,
    ObservationArrays,
    ReplicaObservation,
    ReplicaState,
)
from tuner.knobs import knob_space


@given(st.lists(st.none() | st.floats(0, 1e9), min_size=len(FIELDS), max_size=len(FIELDS)))
def test_row_and_back_keeps_every_field_and_none_stays_none(values):
    scalars = dict(zip(FIELD_NAMES, values, strict=True))
    before = Observation(at_s=3.0, window_s=15.0, age_s=2.0, **scalars)
    after = Observation.from_row(
        before.row(), at_s=3.0, window_s=15.0, age_s=2.0, settings=KnobSettings()
    )
    assert after == before


def test_fields_of_the_table_are_the_fields_of_the_type():
    own = {"at_s", "window_s", "age_s", "settings", "replicas", "ages_s", "estimates", "faults"}
    assert set(Observation.__dataclass_fields__) - own == set(FIELD_NAMES)


def test_replicas_become_arrays_with_nan_where_there_is_no_sample():
    knobs = knob_space()
    now = Observation(
        at_s=0.0,
        window_s=15.0,
        replicas=(
            ReplicaObservation("a", ReplicaState.READY, 60.0, running=3.0),
            ReplicaObservation("b", ReplicaState.PENDING, 1.0),
        ),
        qps=2.5,
    )
    arrays = ObservationArrays.of(knobs, now)
    assert arrays.replicas.state.tolist() == [[3, 0]]
    assert arrays.replicas.values[0, 0, 0] == 3.0
    assert np.isnan(arrays.replicas.values[0, 1]).all()
    assert arrays.values[0, COLUMN["qps"]] == 2.5
    assert np.isnan(arrays.age_s[0])
    assert np.isnan(arrays.settings).all()


def test_an_observation_without_replicas_has_arrays_of_width_zero():
    arrays = ObservationArrays.of(knob_space(), Observation(at_s=0.0, window_s=15.0))
    assert arrays.replicas.state.shape == (1, 0)
    assert arrays.replicas.values.shape == (1, 0, 5)


def test_an_observation_made_of_arrays_gives_them_back():
    knobs = knob_space()
    before = Observation(at_s=3.0, window_s=15.0, settings=knobs.defaults(), qps=2.5)
    arrays = ObservationArrays.of(knobs, before)
    after = arrays.observation(15.0)
    assert after == before
    assert ObservationArrays.of(knobs, after) is arrays
    assert ObservationArrays.of(knobs, before) is not arrays
