import io

import pytest
from rich.console import Console

from experiments.compare import compare
from experiments.config import CompareConfig, RunConfig
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
        "is the best of 4: it serves",
        "deepseek-r1-1.0.0 costs less and serves worse than hpa",
        "mean over 3 seeds, 95 % interval below",
        "static with 3 replicas is the cheapest",
        "note: static and hpa were tuned on the very load",
    ):
        assert words in flat
