"""Files of counted load: what is read, and what is refused in one sentence."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tuner.core.errors import TraceError
from tuner.data.counts import read_counts, read_lengths

COUNTS = {
    "client_id": [1, 0, 1],
    "window_start_s": [600, 0, 0],
    "requests": [5, 7, 9],
    "iat_family": ["Weibull", "Gamma", "Gamma"],
    "iat_shape": [0.5, 1.0, 2.0],
}
LENGTHS = {
    "client_id": [3, 3, 3, 3],
    "window_start_s": [0, 0, 0, 0],
    "field": ["input_tokens", "input_tokens", "output_tokens", "reason_ratio"],
    "value": [20.0, 10.0, 7.0, 0.0],
    "prob": [0.25, 0.75, 1.0, 1.0],
}


def file(folder, columns):
    path = folder / "f.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def test_counts_are_read_in_order_of_time(tmp_path):
    counts = read_counts(file(tmp_path, COUNTS))
    assert counts.window.tolist() == [0, 0, 1]
    assert counts.client_id.tolist() == [0, 1, 1]
    assert counts.requests.tolist() == [7, 9, 5]
    assert counts.weibull.tolist() == [False, False, True]
    assert counts.shape.tolist() == [1.0, 2.0, 0.5]
    assert counts.totals().tolist() == [16, 5]


def test_lengths_are_read_by_client_and_weighed_by_their_rarest_value(tmp_path):
    (one,) = read_lengths(file(tmp_path, LENGTHS))
    assert (one.client_id, one.start_s, one.requests) == (3, 0.0, 4.0)
    assert one.prompt.tokens.tolist() == [10, 20]
    np.testing.assert_allclose(one.prompt.share, [0.75, 0.25])
    assert one.output.tokens.tolist() == [7]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"requests": [5, 0, 9]}, "requests is 0 in one row; expected at least 1"),
        ({"window_start_s": [600, 0, 450]}, "window_start_s is 450 in one row; expected a mult"),
        ({"iat_family": ["Weibull", "Pareto", "Gamma"]}, "is Pareto in one row; expected Gamma or"),
        ({"iat_shape": [0.5, float("nan"), 1.0]}, "iat_shape is nan"),
        ({"requests": [5, 2.5, 9]}, "requests is 2.5 in one row; expected a whole number"),
        ({"requests": [5, None, 9]}, "requests is missing in 1 rows"),
        ({"requests": ["5", "7", "9"]}, "column 'requests' holds string; expected numbers"),
        ({"client_id": [1, 1, 1]}, "client 1 has two rows for the window at 0 s"),
        ({"requests": None}, "column 'requests' is missing"),
    ],
    ids=str,
)
def test_refuses_counts_that_cannot_be(tmp_path, changes, sentence):
    columns = {name: column for name, column in (COUNTS | changes).items() if column is not None}
    with pytest.raises(TraceError, match=re.escape(sentence)):
        read_counts(file(tmp_path, columns))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"value": [0.0, 10.0, 7.0, 0.0]}, "value is 0.0"),
        ({"prob": [0.0, 0.75, 1.0, 1.0]}, "prob is 0.0"),
        ({"field": ["input_tokens"] * 4, "value": [1.0] * 4}, "client 3 has no output_tokens"),
        ({"field": ["reason_ratio"] * 4}, "holds no distribution"),
    ],
    ids=str,
)
def test_refuses_lengths_that_cannot_be(tmp_path, changes, sentence):
    with pytest.raises(TraceError, match=re.escape(sentence)):
        read_lengths(file(tmp_path, LENGTHS | changes))


@pytest.mark.parametrize("read", [read_counts, read_lengths])
def test_refuses_what_is_no_such_file(tmp_path, read):
    with pytest.raises(TraceError, match="does not exist"):
        read(tmp_path / "none.parquet")
    (tmp_path / "text").write_text("client_id,requests\n")
    with pytest.raises(TraceError, match="not a readable Parquet file"):
        read(tmp_path / "text")
