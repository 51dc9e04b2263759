import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from experiments.config import RunConfig
from experiments.folder import (
    join_requests,
    parquet_bytes,
    provenance,
    requests_table,
    result_folder,
    write_simulation,
)
from tests.experiments import toy
from tuner.core.errors import InputError
from tuner.core.slo import Slo


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def write_half(out, error):
    with result_folder(out) as folder:
        (folder / "a").write_text("half")
        raise error


@pytest.fixture
def result():
    job = toy.job("static", replicas=1)
    return toy.ToyRunner()(toy.toy_trace(minutes=3), toy.PROFILE, job, lambda share: None)


def test_files_appear_when_all_of_them_are_whole(tmp_path):
    out = tmp_path / "deep" / "run"
    with result_folder(out) as folder:
        (folder / "a").write_text("1")
        assert not out.exists()
    assert files(out) == ["a"]
    assert files(out.parent) == ["run"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_of_a_run_that_did_not_end(tmp_path, error):
    out = tmp_path / "run"
    with pytest.raises(error):
        write_half(out, error())
    assert files(tmp_path) == []


def test_an_older_result_stays_until_the_new_one_is_whole(tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "a").write_text("old")
    (out / "mine").write_text("untouched")
    with pytest.raises(ValueError, match="late"):
        write_half(out, ValueError("late"))
    assert (out / "a").read_text() == "old"
    with result_folder(out) as folder:
        (folder / "a").write_text("new")
    assert (out / "a").read_text() == "new"
    assert (out / "mine").read_text() == "untouched"
    assert files(tmp_path) == ["run"]


def test_refuses_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "run").write_text("")
    with (
        pytest.raises(InputError, match="is a file; name a folder"),
        result_folder(tmp_path / "run"),
    ):
        pass
    with (
        pytest.raises(InputError, match="a folder cannot be made"),
        result_folder(tmp_path / "run" / "inner"),
    ):
        pass


def test_a_simulated_run_becomes_four_files(tmp_path, result):
    trace, config = toy.toy_trace(minutes=3), RunConfig()
    run = provenance("tuner simulate ...", trace, toy.PROFILE, config, seeds=[1])
    write_simulation(tmp_path / "run", result, Slo(), run)
    out = tmp_path / "run"
    assert files(out) == ["requests.parquet", "run.json", "summary.json", "ticks.parquet"]
    requests = pq.read_table(out / "requests.parquet")
    assert requests.column_names == [
        *("arrival_s", "ttft_s", "e2e_s", "tpot_s", "replica", "preemptions"),
        *("rejected", "failed"),
    ]
    assert np.array_equal(requests["ttft_s"].to_numpy(), result.requests.ttft_s)
    assert requests["replica"].type == "int32"
    assert pq.read_table(out / "ticks.parquet").num_rows == len(result.ticks)
    read = json.loads((out / "run.json").read_text())
    assert read["command"] == "tuner simulate ..."
    assert read["config"]["slo"] == {"ttft_s": 2.5, "tpot_s": 0.075}
    assert read["profile"]["scheduler"] == "toy-fluid"
    assert read["trace"]["requests"] == len(trace)
    assert read["seeds"] == [1]
    assert {"python", "numpy"} <= set(read["versions"])
    assert json.loads((out / "summary.json").read_text())["schema"] == "tuner.simulate/1"


def test_a_request_that_did_not_finish_is_nan_not_null(tmp_path, result):
    requests = result.requests
    gone = np.full(len(requests), np.nan)
    unfinished = replace(requests, ttft_s=gone, e2e_s=gone, tpot_s=gone)
    (tmp_path / "r").write_bytes(parquet_bytes(requests_table(unfinished)))
    table = pq.read_table(tmp_path / "r")
    assert table["ttft_s"].null_count == 0
    assert np.isnan(table["ttft_s"].to_numpy()).all()


def test_parts_are_joined_in_order_each_with_its_key(tmp_path, result):
    part = tmp_path / "part"
    part.write_bytes(parquet_bytes(requests_table(result.requests)))
    join_requests([(("static", 1), part), (("static", 2), part)], tmp_path / "all.parquet")
    n = len(result.requests)
    assert pq.read_table(tmp_path / "all.parquet")["seed"].to_pylist() == [1] * n + [2] * n
