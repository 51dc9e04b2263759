import io
import re

import pytest
from rich.console import Console

from experiments.fanout import KEPT, fan_out
from experiments.progress import Board, run_progress


class Clock:
    """Time that a test moves."""

    def __init__(self):
        self.s = 1000.0

    def now_s(self):
        return self.s


def shown(board):
    console = Console(file=io.StringIO(), width=80)
    console.print(board.shown())
    return console.file.getvalue()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def board(clock):
    board = Board(clock.now_s)
    for policy in ("hpa", "keda"):
        for seed in (1, 2, 3):
            board(f"{policy}, seed {seed}", 0.0)
    return board


def row(board, policy):
    line = next(line for line in shown(board).splitlines() if line.startswith(policy))
    return line.split()


def test_a_log_gets_a_line_per_finished_run_with_what_came_of_it():
    console = Console(file=io.StringIO(), width=80)
    with run_progress(console) as watch:
        watch("hpa, seed 1", 0.0)
        watch("hpa, seed 1", 0.5)
        watch("hpa, seed 1", 1.0, 0.9917, 376.5)
        watch("making ready [x]", 1.0)
    assert console.file.getvalue() == (
        "done: hpa, seed 1: 99.17 % within the objectives for 376.5 GPU hours\n"
        "done: making ready [x]\n"
    )


def test_cells_to_come_running_and_done_stand_in_one_table(board):
    assert row(board, "hpa") == ["hpa", "·", "·", "·"]
    board("hpa, seed 1", 0.42)
    board("hpa, seed 2", 1.0, 0.99, 100.0)
    assert row(board, "hpa") == ["hpa", "42", "%", "done", "·", "99.00", "%", "100.0"]
    assert row(board, "keda") == ["keda", "·", "·", "·"]


def test_figures_are_means_over_what_is_done(board):
    board("hpa, seed 1", 1.0, 0.98, 90.0)
    board("hpa, seed 2", 1.0, 1.0, 110.0)
    assert row(board, "hpa")[-3:] == ["99.00", "%", "100.0"]


def test_the_rest_is_estimated_from_what_is_done(board, clock):
    assert "left" not in shown(board)
    clock.s += 60
    board("hpa, seed 1", 1.0, 0.98, 90.0)
    board("hpa, seed 2", 0.5)
    # 1.5 of 6 took 60 s: the other 4.5 take 180
    assert "1 of 6 runs done, about 3 min left" in shown(board)


def test_what_is_tuned_first_has_a_bar_while_it_runs_and_no_total(clock):
    """How many trials and points follow nobody knows: 2 of 3 would be followed by 8 of 26."""
    board = Board(clock.now_s)
    for label in ("tuning: hpa, trial 1 of 8", "frontier: hpa with target 9", "bound oracle-b: x"):
        board(label, 0.0)
        clock.s += 10
        board(label, 0.5)
        text = shown(board)
        assert label in text
        assert "50%" in text
        assert "left" not in text
        board(label, 1.0)
    assert shown(board).strip() == "3 runs done"


def test_tasks_of_another_kind_have_their_own_time(clock):
    board = Board(clock.now_s)
    board("making ready", 0.0)
    clock.s += 10
    board("making ready", 0.5)
    assert "0 of 1 run done, about 10 s left" in shown(board)
    board("making ready", 1.0)
    clock.s += 1000
    board("hpa, seed 1", 0.0)
    clock.s += 5
    board("hpa, seed 1", 0.5)
    text = shown(board)
    assert "making" not in text
    assert "about 5 s left" in text


def test_what_was_kept_says_so_and_does_not_shorten_the_estimate(board, clock):
    board("hpa, seed 1", KEPT)
    board("hpa, seed 2", KEPT)
    clock.s += 37
    board("hpa, seed 3", 1.0, 0.99, 1.0)
    assert row(board, "hpa") == ["hpa", "kept", "kept", "done"]
    # One of the four that run took 37 s: the other three take 111, two digits of it.
    assert "3 of 6 runs done, 2 of them before, about 1.9 min left" in shown(board)


def test_a_log_tells_what_was_kept():
    console = Console(file=io.StringIO(), width=80)
    with run_progress(console) as watch:
        watch("hpa, seed 1", KEPT)
    assert console.file.getvalue() == "kept: hpa, seed 1\n"


def test_fifteen_policies_with_five_seeds_fit_eighty_columns(clock):
    board = Board(clock.now_s)
    for place in range(15):
        for seed in range(1, 6):
            board(f"a-policy-name-{place}", 0.0)
            board(f"a-policy-name-{place}, seed {seed}", 1.0, 0.99998, 1234.5)
    assert max(map(len, shown(board).splitlines())) <= 80
    assert "99.998 %" in shown(board)


@pytest.mark.parametrize("colours", [True, False])
def test_a_terminal_gets_the_table_and_no_colour_where_none_is_wanted(monkeypatch, colours):
    if colours:
        monkeypatch.delenv("NO_COLOR", raising=False)
    else:
        monkeypatch.setenv("NO_COLOR", "1")
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system="standard")
    with run_progress(console) as watch:
        watch("hpa, seed 1", 1.0, 0.99, 100.0)
    out = console.file.getvalue()
    assert "99.00 %" in out
    # 32 is green
    assert (re.search(r"\x1b\[[0-9;]*32m", out) is not None) == colours


class Found:
    """Tells two figures at its end, and again that it is done."""

    def __init__(self, number):
        self.number = number
        self.label = f"task {number}"

    def __call__(self, progress):
        progress(0.5)
        progress(1.0, self.number, 10.0 * self.number)
        return self.number


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_a_task_found_reaches_the_watch_from_any_process(jobs):
    told = {}

    def watch(label, share, *found):
        if share >= 1:
            assert label not in told
            told[label] = found

    assert fan_out([Found(1), Found(2), Found(3)], jobs, watch) == [1, 2, 3]
    assert told == {"task 1": (1, 10), "task 2": (2, 20), "task 3": (3, 30)}
