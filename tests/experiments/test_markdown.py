import re
from dataclasses import replace

import pytest

pytest.importorskip("plotly")
pytest.importorskip("jinja2")

from experiments.compare import compare
from experiments.config import CompareConfig, RunConfig
from experiments.report.colours import FIXED
from experiments.report.markdown import markdown
from tests.experiments import toy

RUN = {"command": "tuner compare --trace 'a|b.parquet' --out x", "commit": None}
NAMES = (*(name for name in FIXED if "oracle" not in name), "r1_a*b|c-1.0.0")


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """Sixteen policies, most of them a fixed count under another name."""
    return compare(
        toy.toy_trace(surge=30.0, name="busy|day <x>"),
        toy.PROFILE,
        {name: name if name == "hpa" else "static" for name in NAMES},
        tmp_path_factory.mktemp("markdown"),
        config=CompareConfig(run=RunConfig(max_replicas=8, price_per_gpu_hour_usd=2.5)),
        runner=toy.ToyRunner(noise=0.05),
        overrides={
            name: {"replicas": 1 + place % 5}
            for place, name in enumerate(NAMES)
            if name not in ("static", "hpa")
        },
    )


@pytest.fixture(scope="module")
def text(comparison):
    return markdown(comparison, RUN)


def test_fits_a_comment_with_every_rival(text):
    assert len(text.encode()) < 60_000


def test_every_row_of_a_table_has_the_cells_of_its_head(text):
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(tables) == 5
    for table in tables:
        columns = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(columns) == 1
        assert len(table.splitlines()) == 2 + len(NAMES)


def test_folded_parts_are_closed_and_begin_with_a_blank_line(text):
    assert text.count("<details>") == text.count("</details>") >= 5
    assert all(after == "\n\n" for after in re.findall(r"</summary>(\n.)", text, re.DOTALL))


def test_says_verdict_notes_command_and_origin(text):
    for words in (
        "is the best of 15",
        "95 % interval",
        "Before you act on it",
        "simulated",
        "Replicas of toy, 2 GPUs each, under the scheduler rules toy-fluid",
        "ttft mean 12.5 %",
        f"```sh\n{RUN['command']}\n```",
        "Seeds 1, 2, 3; commit not under version control.",
        "misses the goal",
        "USD 2.5 per GPU hour",
    ):
        assert words in text


def test_names_are_shown_as_they_are(text):
    assert "busy|day &lt;x&gt;" in text
    assert r"r1\_a\*b\|c-1.0.0" in text
    assert not re.search(r"<(?!/?(details|summary)>)", text)


def test_without_a_price_there_is_no_money(comparison):
    free = replace(comparison, config=CompareConfig(run=RunConfig(max_replicas=8)))
    assert "USD" not in markdown(free, RUN)
