import io

import pytest
from rich.console import Console

from experiments.compare import compare
from experiments.config import CompareConfig, RunConfig
from experiments.progress import run_progress
from experiments.summary import METRICS
from experiments.table import print_comparison
from tests.experiments import toy


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    comparison = compare(
        toy.toy_trace(surge=30.0),
        toy.PROFILE,
        {name: name for name in ("static", "hpa", "deepseek-r1-1.0.0", "other")},
        tmp_path_factory.mktemp("table"),
        config=CompareConfig(run=RunConfig(max_replicas=8)),
        runner=toy.ToyRunner(noise=0.05),
        overrides={"deepseek-r1-1.0.0": {"replicas": 2}, "other": {"replicas": 4}},
    )
    out = io.StringIO()
    print_comparison(comparison, Console(file=out, width=80))
    return out.getvalue()


def test_a_comparison_of_four_fits_eighty_columns(shown):
    assert max(map(len, shown.splitlines())) <= 80


def test_every_figure_and_policy_is_shown(shown):
    for words in (*(metric.label for metric in METRICS), "hpa *", "deepseek-r1-1.0.0", "other"):
        assert words in shown


def test_verdict_interval_sweep_and_notes_are_shown(shown):
    flat = " ".join(shown.split())
    for words in (
        "deepseek-r1-1.0.0 costs less and serves worse than hpa",
        "mean over 3 seeds, 95 % interval below",
        "static with 3 replicas is the cheapest",
        "note: static and hpa were tuned on the very load",
    ):
        assert words in flat


def test_a_log_gets_a_line_per_finished_run():
    out = io.StringIO()
    with run_progress(Console(file=out)) as watch:
        watch("hpa, seed 1", 0.0)
        watch("hpa, seed 1", 0.5)
        watch("hpa, seed 1", 1.0)
    assert out.getvalue() == "done: hpa, seed 1\n"


def test_a_terminal_gets_a_bar_per_run_and_a_count():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80)
    with run_progress(console) as watch:
        for label in ("hpa, seed 1", "hpa, seed 2"):
            watch(label, 0.0)
            watch(label, 0.5)
        watch("hpa, seed 1", 1.0)
        watch._progress.refresh()
        assert "1 run done" in out.getvalue()
        assert "hpa, seed 2" in out.getvalue()
