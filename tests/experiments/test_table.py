import io
import re
from dataclasses import replace

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

from experiments.best import ranked
from experiments.compare import compare
from experiments.config import CompareConfig, RunConfig
from experiments.oracles import CLAIRVOYANT, INSTANT, Frontier, Oracles
from experiments.oracles.result import OraclePoint
from experiments.summary import METRICS
from experiments.table import print_comparison
from policies.oracle import Plan
from tests.experiments import toy
from tests.experiments.test_verdict import gap

GIVEN = {"deepseek-r1-1.0.0": 2, "other": 4, "kpa": 5, "planner": 6}


def compared(folder, *names):
    return compare(
        toy.toy_trace(surge=30.0),
        toy.PROFILE,
        {name: name for name in ("static", "hpa", *names)},
        folder,
        config=CompareConfig(run=RunConfig(max_replicas=8)),
        runner=toy.ToyRunner(noise=0.05),
        overrides={name: {"replicas": GIVEN[name]} for name in names},
    )


def printed(comparison, width=80, **how):
    """As on a terminal without colours, unless `how` says otherwise."""
    how = {"force_terminal": True, "color_system": None, **how}
    out = io.StringIO()
    print_comparison(comparison, Console(file=out, width=width, **how))
    return out.getvalue()


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    return printed(compared(tmp_path_factory.mktemp("few"), "deepseek-r1-1.0.0", "other"))


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Seven, two of which are called oracles; kpa's cost may be hpa's, and static is below 99 %."""
    found = compared(tmp_path_factory.mktemp("many"), "deepseek-r1-1.0.0", "other")
    names = {"static": 0.98, "hpa": 0.995, "deepseek-r1-1.0.0": 0.99, "kpa": 0.995, "planner": 1.0}
    outcomes = []
    for name, attainment in {**names, INSTANT: 0.99, CLAIRVOYANT: 0.99}.items():
        outcome = found["other"] if name not in found_names(found) else found[name]
        served = replace(outcome.estimates["slo_attainment"], mean=attainment)
        differences = outcome.differences
        if name == "kpa":
            differences = {**differences, "gpu_hours": gap(0.1, half=0.2)}
        outcomes.append(
            replace(
                outcome,
                name=name,
                estimates={**outcome.estimates, "slo_attainment": served},
                differences=differences,
            )
        )
    return replace(found, policies=tuple(outcomes), oracles=bounds(found["static"].runs))


def found_names(comparison):
    return [outcome.name for outcome in comparison.policies]


def bounds(runs):
    """Oracles of one plan each, whose runs are these."""
    point = OraclePoint(1.0, Plan(np.array([3]), np.array([3])), runs)
    frontiers = {INSTANT: Frontier((point,)), CLAIRVOYANT: Frontier((point,))}
    return Oracles((0.99,), 0.99, (1, 2, 3), 15.0, frontiers)


def row_of(comparison, name):
    (row,) = (line for line in printed(comparison).splitlines() if line.startswith(f" {name} "))
    return row


def test_a_comparison_of_four_fits_eighty_columns(shown):
    assert max(map(len, shown.splitlines())) <= 80


def test_every_figure_and_policy_is_shown(shown):
    for words in (*(metric.label for metric in METRICS), "hpa *", "deepseek-r1-1.0.0", "other"):
        assert words in shown


def test_verdict_interval_settings_and_notes_are_shown(shown):
    flat = " ".join(shown.split())
    for words in (
        "is the best of 4: it serves",
        "both miss: deepseek-r1-1.0.0 and hpa both miss the goal of 99.0 %: ",
        "mean over 3 seeds, 95 % interval below",
        "static: replicas 3 (",
        "note: static and hpa were tuned on the very load",
        "The report has more: cost against attainment",
    ):
        assert words in flat


@pytest.mark.parametrize("width", [80, 120, 200])
def test_many_are_a_row_each_that_fits(many, width):
    lines = printed(many, width).splitlines()
    assert max(map(cell_len, lines)) <= width
    rows = [line for line in lines if re.match(r" \S+( \*)? +\d+\.\d+ %", line)]
    assert [row.split()[0] for row in rows] == [outcome.name for outcome in ranked(many)]


def test_a_row_of_many_says_cost_regret_and_latency(many):
    row = row_of(many, "deepseek-r1-1.0.0")
    found = many["deepseek-r1-1.0.0"]
    assert "99.00 %" in row
    assert f"{found.mean('gpu_hours'):.2f}" in row
    assert "n/a" in row  # the one plan serves all, no plan as few
    # Its cost over that of the plan, which is static's.
    regret = many["planner"].mean("gpu_hours") / many["static"].mean("gpu_hours") - 1
    assert f"+{100 * regret:.1f} %" in row_of(many, "planner")


def test_wider_terminals_show_intervals(many):
    def spans(width):
        return printed(many, width).split("Settings")[0].count(" to ")

    assert spans(80) < spans(120) <= spans(200)


def test_who_misses_the_goal_and_the_bounds_stand_apart(many):
    lines = printed(many).splitlines()
    head = next(place for place, line in enumerate(lines) if "──" in line)
    names = [line.split()[0] if line.split() else "" for line in lines[head + 1 :]]
    assert names[names.index("static") - 1] == names[names.index(INSTANT) - 1] == ""
    assert "" not in names[: names.index("static") - 1]


def test_a_difference_that_may_be_none_is_bracketed(many):
    assert re.search(r"\(\+\d+\.\d %\)", row_of(many, "kpa"))
    assert "(" not in row_of(many, "static")


def test_of_many_no_sentence_repeats_the_table_and_the_report_is_named(many):
    flat = " ".join(printed(many).split())
    assert "costs less and serves worse" not in flat
    assert "is the cheapest of" not in flat
    assert "The report has more: every figure with its intervals, each policy's verdict" in flat
    assert "With the whole load known" in flat


def test_n_a_has_its_reason(many):
    flat = " ".join(printed(many).split())
    assert re.search(r"n/a: no plan of oracle-b serves as well, or as badly, as [^.]*r1-1", flat)


def test_what_changes_the_verdict_comes_first_and_how_it_was_made_last(many):
    text = printed(many)
    first, rest = text.split("also:")
    flat = " ".join(first.split())
    for words in ("misses the goal", "hindsight", "note: The load is too short (20 min) to say"):
        assert words in flat
    assert "note:" not in rest
    assert "Rules ran at their own periods" in " ".join(rest.split())


def test_a_pipe_gets_its_sentences_unbroken(many):
    lines = printed(many, force_terminal=False).splitlines()
    assert any(line.startswith("note: ") and len(line) > 100 for line in lines)
    begun = [line for line in lines if re.match(r"(note: |static is|Mean over|The report)", line)]
    assert len(begun) >= 4
    assert all(line.endswith(".") for line in begun)
    rows = [line for line in lines if re.match(r" \S+( \*)? +\d+\.\d+ %", line)]
    assert max(map(cell_len, rows)) <= 80


def test_marks_do_not_need_colour(many):
    plain = printed(many, color_system=None, force_terminal=True)
    coloured = printed(many, color_system="truecolor", force_terminal=True)
    assert "\x1b[" in coloured
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == re.sub(r"\x1b\[[\d;]*m", "", plain)
