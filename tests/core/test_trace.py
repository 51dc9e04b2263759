"""What a trace refuses to hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tuner.core.errors import TraceError
from tuner.core.trace import MAX_TOKENS, Gap, Trace


def trace(**columns: Any) -> Trace:
    given = {"arrival_s": [0.0, 1.0, 1.0], "prompt_tokens": [5, 6, 7], "output_tokens": [1, 2, 3]}
    arrays = {
        name: np.array(values, np.float64 if name == "arrival_s" else np.int32)
        if isinstance(values, list)
        else values
        for name, values in (given | columns).items()
    }
    return Trace(**arrays, name="t")


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        (
            {"arrival_s": [], "prompt_tokens": [], "output_tokens": []},
            "t: the trace holds no request",
        ),
        ({"arrival_s": [0.0, 1.0]}, "t: columns differ in length"),
        ({"arrival_s": [0.0, 2.0, 1.0]}, "arrival_s in row 2 is 1.0, before the row above"),
        ({"arrival_s": [-1.0, 0.0, 1.0]}, "arrival_s in row 0 is -1.0; expected seconds"),
        ({"arrival_s": [0.0, float("nan"), 1.0]}, "arrival_s in row 1 is nan"),
        ({"arrival_s": [0.0, 1.0, float("inf")]}, "arrival_s in row 2 is inf"),
        ({"prompt_tokens": [1, 0, 1]}, "prompt_tokens in row 1 is 0; expected 1 to"),
        ({"output_tokens": [1, 1, -4]}, "output_tokens in row 2 is -4"),
        ({"output_tokens": [MAX_TOKENS + 1, 1, 1]}, "output_tokens in row 0 is 10000001"),
        ({"prefix_hit_tokens": [0, 7, 0]}, "prefix_hit_tokens in row 1 is 7; expected 0 to"),
        ({"prefix_hit_tokens": [-1, 0, 0]}, "prefix_hit_tokens in row 0 is -1"),
        ({"gaps": (Gap(2.0, 2.0),)}, "a gap goes from 2.0 to 2.0 s"),
        ({"gaps": (Gap(5.0, 6.0), Gap(5.5, 7.0))}, "a gap goes from 5.5 to 7.0 s"),
        ({"gaps": (Gap(0.0, float("inf")),)}, "a gap goes from 0.0 to inf s"),
    ],
    ids=[
        "no request",
        "columns of two lengths",
        "unsorted",
        "before the start",
        "an arrival that is no number",
        "an infinite arrival",
        "no prompt",
        "negative output",
        "too long for any model",
        "more hits than prompt",
        "negative hits",
        "a gap of no length",
        "gaps that overlap",
        "a gap without end",
    ],
)
def test_refuses(columns: dict[str, Any], sentence: str) -> None:
    with pytest.raises(TraceError) as caught:
        trace(**columns)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_columns_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValueError, match="read-only"):
        trace().prompt_tokens[0] = 9


def test_requests_may_arrive_together() -> None:
    assert len(trace(arrival_s=[0.0, 0.0, 0.0])) == 3


def test_an_arrival_more_than_a_year_in_is_refused_as_another_clock() -> None:
    one = np.array([5], dtype=np.int32)
    with pytest.raises(TraceError, match=r"row 0 is 1\.7e\+09, more than a year"):
        Trace(np.array([1.7e9]), one, one)


def test_some_requests_keep_all_their_columns_and_the_name() -> None:
    tokens = np.array([5, 6, 7], np.int32)
    given = Trace(
        np.array([0.0, 1.0, 2.0]),
        tokens,
        tokens + np.int32(10),
        prefix_hit_tokens=tokens - np.int32(5),
        client_id=tokens - np.int32(4),
        name="t",
        header={"a": "b"},
        gaps=(Gap(3.0, 4.0),),
    )
    for rows in (slice(1, None), np.array([False, True, True]), np.array([1, 2])):
        some = given.take(rows)
        assert {name: column.tolist() for name, column in some.columns().items()} == {
            "arrival_s": [1.0, 2.0],
            "prompt_tokens": [6, 7],
            "output_tokens": [16, 17],
            "prefix_hit_tokens": [1, 2],
            "client_id": [2, 3],
        }
        assert (some.name, some.header, some.gaps) == ("t", {"a": "b"}, (Gap(3.0, 4.0),))
    with pytest.raises(TraceError, match="holds no request"):
        given.take(slice(0, 0))
