"""What trip `stale_metrics` says to whoever reads it at night."""

from __future__ import annotations

import numpy as np
import pytest

from tuner.core.decision import Reason, Tick
from tuner.core.observation import COLUMN, FIELDS, ObservationArrays, ReplicaArrays
from tuner.guardrails.stale_metrics import StaleMetrics
from tuner.knobs import knob_space

KNOBS = knob_space()


def missing(*fields: str) -> Tick:
    """One target that measured everything but these."""
    values = np.ones((1, len(FIELDS)))
    values[0, [COLUMN[field] for field in fields]] = np.nan
    shape = (1, len(KNOBS.specs))
    return Tick(
        now=ObservationArrays(
            knobs=KNOBS,
            at_s=np.zeros(1),
            age_s=np.zeros(1),
            values=values,
            settings=np.ones(shape),
            replicas=ReplicaArrays.of(()),
        ),
        proposed=np.ones(shape),
        fault=np.zeros(1, dtype=np.int64),
    )


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        pytest.param(
            ("qps", "output_tokens_per_s"),
            "no value for qps, output_tokens_per_s; a rate needs two looks, so the first tick has "
            "none; if it goes on, is every pod scraped?",
            id="rates alone, as at every start",
        ),
        pytest.param(
            ("qps", "in_flight"),
            "no value for qps, in_flight; is every pod scraped?",
            id="a gauge too",
        ),
    ],
)
def test_names_what_is_missing_and_the_next_move(fields, sentence):
    tick = missing(*fields)
    (code,) = StaleMetrics().check(tick)
    assert code == Reason.MetricsMissing
    assert StaleMetrics().explain(Reason(code), tick, 0) == sentence
