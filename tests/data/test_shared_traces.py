"""Real recordings, where they are at hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tuner.core.trace import Trace
from tuner.data import read_trace, write_trace
from tuner.data.summary import summarise


@pytest.fixture(
    params=[
        ("azure2023_conv", 19_366, 5.53),
        ("mooncake_conversation_first", 7_689, 3.26),
        ("servegen_deepseek_r1_h00_16", 864_556, 15.01),
    ],
    ids=lambda case: case[0],
)
def recorded(request: pytest.FixtureRequest) -> tuple[Trace, int, float]:
    folder = os.environ.get("TUNER_DATA")
    if not folder:
        pytest.skip("TUNER_DATA is not set: the recordings are not at hand")
    name, requests, mean_qps = request.param
    return read_trace(Path(folder) / f"traces/requests/{name}.parquet"), requests, mean_qps


def test_reads_and_describes(recorded: tuple[Trace, int, float]) -> None:
    trace, requests, mean_qps = recorded
    summary = summarise(trace)
    assert summary.requests == requests
    assert summary.mean_qps == pytest.approx(mean_qps, abs=0.01)
    assert summary.gaps == ()
    assert summary.dispersion["15s"] is not None


def test_survives_writing(recorded: tuple[Trace, int, float], tmp_path: Path) -> None:
    trace, _, _ = recorded
    write_trace(trace, tmp_path / "t.parquet")
    again = read_trace(tmp_path / "t.parquet")
    for name, column in trace.columns().items():
        assert again.columns()[name].tobytes() == column.tobytes()


def test_every_recording_is_tried() -> None:
    folder = os.environ.get("TUNER_DATA")
    if not folder:
        pytest.skip("TUNER_DATA is not set: the recordings are not at hand")
    for path in (Path(folder) / "traces/requests").glob("*.parquet"):
        assert len(read_trace(path)) > 0
