"""Errors that are put in are found, in their size, and orders are compared as the formula says."""

from __future__ import annotations

import csv
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from experiments.bench.load import poisson_load
from experiments.fidelity.__main__ import main
from experiments.fidelity.bands import Band
from experiments.fidelity.command import Findings
from experiments.fidelity.decisions import perturbed, regret, tau
from experiments.fidelity.distribution import Distance, Ratio, distance
from experiments.fidelity.page import by_load
from experiments.fidelity.runs import Latencies, at_rate, capacity_qps, simulate
from tuner.core.profile import ServingProfile
from tuner.core.trace import Trace
from tuner.data import load_profile, write_trace


@pytest.fixture(scope="module")
def profile() -> ServingProfile:
    return load_profile("reference-affine")


@pytest.fixture(scope="module")
def load() -> Trace:
    return poisson_load(8.0, 150.0, 3)


def test_a_run_is_no_distance_from_itself(load: Trace, profile: ServingProfile) -> None:
    run = simulate(load, profile, replicas=4, router="round_robin")
    found = distance(run, run, resamples=50)
    assert {ratio.error for ratio in found.ratios} == {0.0}
    assert {ratio.ci95 for ratio in found.ratios} == {(0.0, 0.0)}
    assert set(found.wasserstein.values()) == {0.0}


def test_a_known_factor_is_found_within_its_interval(load: Trace, profile: ServingProfile) -> None:
    run = simulate(load, profile, replicas=4, router="round_robin")
    rng = np.random.default_rng(0)
    slower = Latencies(
        run.arrival_s,
        1.1 * run.ttft_s * np.exp(0.002 * rng.standard_normal(len(load))),
        run.tpot_s,
        run.e2e_s,
    )
    found = distance(run, slower, resamples=200)
    for ratio in found.ratios:
        expected = 0.1 if ratio.latency == "ttft_s" else 0.0
        assert ratio.error == pytest.approx(expected, abs=0.03)
        assert ratio.ci95 is not None
        low, high = ratio.ci95
        assert low - 0.01 <= expected <= high + 0.01
    assert found.per_request["ttft_s"] == pytest.approx(0.1, abs=0.02)


def test_quantiles_over_blocks_are_those_of_repeated_requests() -> None:
    """Every request alike but one block: drawn twice, that block counts twice."""
    arrival_s = np.arange(400.0)
    ttft_s = np.where(arrival_s < 10, 5.0, 1.0)
    one = Latencies(arrival_s, ttft_s, ttft_s, ttft_s)
    two = Latencies(arrival_s, ttft_s * 2, ttft_s * 2, ttft_s * 2)
    found = distance(one, two, resamples=100)
    assert all(ratio.error == pytest.approx(1.0) for ratio in found.ratios)
    assert all(ratio.ci95 == pytest.approx((1.0, 1.0)) for ratio in found.ratios)


def test_capacity_is_what_a_fleet_can_serve(load: Trace, profile: ServingProfile) -> None:
    capacity = capacity_qps(load, profile, replicas=2)
    waits = [
        float(
            simulate(at_rate(load, share * capacity), profile, replicas=2, router="least_loaded")
            .ttft_s[-200:]
            .mean()
        )
        for share in (0.5, 2.0)
    ]
    assert waits[0] < 0.5
    assert waits[1] > 5.0


@pytest.mark.parametrize(
    ("scores", "expected"),
    [((1.0, 2.0, 3.0, 4.0), 1.0), ((4.0, 3.0, 2.0, 1.0), -1.0), ((2.0, 1.0, 3.0, 4.0), 4 / 6)],
    ids=["same", "reversed", "one pair swapped"],
)
def test_kendalls_tau(scores: tuple[float, ...], expected: float) -> None:
    assert tau((1.0, 2.0, 3.0, 4.0), scores) == pytest.approx(expected)


def test_regret_is_judged_by_the_truth() -> None:
    assert regret((1.0, 1.5, 3.0), (9.0, 1.0, 2.0)) == pytest.approx(0.5)
    assert regret((1.0, 1.5, 3.0), (0.5, 1.0, 2.0)) == 0.0


def test_a_double_is_slower_in_the_terms_that_are_named(profile: ServingProfile) -> None:
    double = perturbed(profile, (1.1, 2.0, 3.0)).step_time
    law = profile.step_time
    assert double.base_s == pytest.approx(1.1 * law.base_s)
    assert double.per_prefill_token_s == pytest.approx(2.2 * law.per_prefill_token_s)
    assert double.per_kv_token_s == pytest.approx(3.3 * law.per_kv_token_s)
    assert perturbed(profile, (1.0, 1.0, 1.0)) == profile


def written(folder: Path, load: Trace, times: Latencies) -> list[str]:
    """Files of a reference run."""
    with open(folder / "load.csv", "w", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(["arrived_at", "num_prefill_tokens", "num_decode_tokens"])
        rows.writerows(zip(load.arrival_s, load.prompt_tokens, load.output_tokens, strict=True))
    with open(folder / "times.csv", "w", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(["ttft_s", "e2e_s"])
        rows.writerows(zip(times.ttft_s, times.e2e_s, strict=True))
    return [str(folder / "load.csv"), str(folder / "times.csv"), "reference-affine"]


def test_the_command_finds_what_was_put_in(
    tmp_path: Path, load: Trace, profile: ServingProfile, capsys: pytest.CaptureFixture[str]
) -> None:
    write_trace(load, tmp_path / "t.parquet")
    run = simulate(load, profile, replicas=4, router="round_robin")
    words = ["--profile", "reference-affine", "--trace", str(tmp_path / "t.parquet")]
    words += ["--reference", *written(tmp_path, load, run), "--error", "0.02", "0.1"]
    words += ["--requests", "600", "--doubles", "1", "--jobs", "1"]
    page = tmp_path / "page.html"
    assert main([*words, "--json", "--page", str(page)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["references"][0]["exact"] is True
    assert [band["load"] for band in found["bands"]] == [0.4, 0.65, 0.875, 0.97]
    for band in found["bands"]:
        errors = {(r["latency"], r["statistic"]): r["error"] for r in band["ratios"]}
        assert errors["tpot_s", "mean"] > 0.01
    made = found["decisions"]
    assert len(made["candidates"]) == len(made["truth"]) == 10
    assert -1 <= made["tau_mean"] <= 1
    assert made["regret_worst"] >= 0
    assert not re.search(r"(src|href)=", page.read_text().partition("<script type")[0])
    assert main(words) == 0
    assert "Kendall's tau" in capsys.readouterr().out


def test_a_bar_ends_where_its_interval_does() -> None:
    ratio = Ratio("ttft_s", "mean", 1.0, 1.5, 0.5, (0.4, 0.75))
    alone = Ratio("ttft_s", "p99", 1.0, 1.5, 0.5, None)
    band = Band(0.65, 3.0, Distance((ratio, alone), {}, {}))
    # The plot by load reads the bands and the error, and nothing of what is None here.
    findings = Findings(None, (0.05, 0.05), (), 1.0, 1, (band,), None, None)  # type: ignore[arg-type]
    mean, p99 = (one for one in by_load(findings)["data"] if one["y"])
    bar = mean["error_y"]
    assert mean["y"][0] - bar["arrayminus"][0] == pytest.approx(1.4)
    assert mean["y"][0] + bar["array"][0] == pytest.approx(1.75)
    assert p99["error_y"]["array"] == p99["error_y"]["arrayminus"] == [0]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--requests", "0"], "--requests is 0; expected at least 1"),
        (["--error", "2", "0.1"], "--error is 2 0.1; expected relative errors"),
        (["--profile", "nobody"], "profile 'nobody' is not built in"),
        (["--reference", "no.csv", "no.csv", "reference-affine"], "no.csv cannot be read"),
        (["--page", "no/page.html", "--doubles", "0"], "--doubles is 0"),
        (["--page", "no/page.html"], "folder no does not exist"),
        (["--seed", "-1"], "--seed is -1; expected a whole number from 0"),
        (["--seed", "9" * 30], "expected a whole number from 0, below 2^63"),
        (["--replicas", "99999999"], "--replicas is 99999999; expected at most 10,000"),
    ],
)
def test_bad_input_is_one_sentence_before_any_work(
    words: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("experiments.fidelity.command.steady", lambda *given: pytest.fail("runs"))
    assert main(words) == 2
    assert sentence in capsys.readouterr().err


def test_a_reference_without_its_columns_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_text("x,y\n1,2\n3,4\n")
    name = str(tmp_path / "a.csv")
    assert main(["--reference", name, name, "reference-affine"]) == 2
    assert "does not have the columns arrived_at" in capsys.readouterr().err


def test_vidurs_run_is_reproduced_for_every_request() -> None:
    data = os.environ.get("TUNER_DATA")
    if data is None:
        pytest.skip("TUNER_DATA does not name the folder with the reference runs")
    from experiments.fidelity.command import read_reference

    folder = Path(data) / "reference" / "sim_compare"
    found = read_reference(
        str(folder / "w1_poisson12.csv.gz"),
        str(folder / "vidur_w1_affine_rr4.requests.csv.gz"),
        "reference-affine",
    )
    assert found.exact
