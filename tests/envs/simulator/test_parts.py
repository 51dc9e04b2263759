"""A load in parts is the load as a whole."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from envs.simulator import Fleet, FleetSettings
from experiments.bench.load import poisson_load
from tuner.core.trace import Trace
from tuner.data import load_profile

LOAD = poisson_load(20.0, 120.0, 5)
BORDERS = (0, 700, 701, 1800, len(LOAD))


def piece(first: int, last: int) -> Trace:
    return Trace(
        LOAD.arrival_s[first:last].copy(),
        LOAD.prompt_tokens[first:last].copy(),
        LOAD.output_tokens[first:last].copy(),
    )


def fleet(trace: Trace, *, keep: float = 1.0, record: bool = False) -> Fleet:
    made = Fleet(
        trace,
        load_profile("reference-affine"),
        seeds=np.zeros(1, np.uint64),
        slots=3,
        jitter=0.05,
        record=record,
    )
    one = np.ones(1, np.int64)
    settings = FleetSettings(3 * one, 32 * one, one, 0 * one)
    made.reset(slice(None), start_s=0.0, seeds=np.zeros(1, np.uint64), settings=settings, keep=keep)
    return made


def test_parts_behind_each_other_are_the_whole() -> None:
    whole = fleet(LOAD)
    whole.advance(1000.0)
    split = fleet(piece(*BORDERS[:2]))
    for first, last in pairwise(BORDERS[1:]):
        split.advance(LOAD.arrival_s[first - 1])
        split.follow_with(piece(first, last))
    split.advance(1000.0)
    assert split.done().all()
    for ours, theirs in zip(split.window(), whole.window(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"record": True}, "takes one trace"),
        ({"keep": 0.5}, "takes one trace"),
        ({}, "still to arrive"),
    ],
)
def test_what_cannot_go_on_is_refused(options: dict[str, object], sentence: str) -> None:
    first = fleet(piece(0, 700), **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=sentence):
        first.follow_with(piece(700, 800))


def test_a_part_in_the_past_is_refused() -> None:
    first = fleet(piece(0, 700))
    first.advance(1000.0)
    with pytest.raises(ValueError, match="before an env's time"):
        first.follow_with(piece(700, 800))
