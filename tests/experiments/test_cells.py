"""Finished work is kept: what is there is not done again, whatever happened in between."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from experiments.cells import Cells, kept
from experiments.job import Job, RunTask, trace_key
from tests.experiments import slow, toy
from tests.experiments.test_compare import CONFIG
from tuner.core.errors import InputError
from tuner.core.trace import Gap

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Square:
    """A cell of one number; leaves a mark where it ran."""

    number: int
    marks: Path
    name: str = ""

    @property
    def label(self):
        return self.name or f"square {self.number}"

    def __call__(self, progress):
        with (self.marks / str(self.number)).open("a") as marks:
            marks.write("x")
        return {"square.json": json.dumps(self.number**2).encode()}

    def key(self):
        return {"number": self.number}

    def unpack(self, folder):
        return self.label, json.loads((folder / "square.json").read_text())

    def times(self):
        mark = self.marks / str(self.number)
        return len(mark.read_text()) if mark.exists() else 0


def squares(marks, count=4):
    marks.mkdir(exist_ok=True)
    return [Square(number, marks) for number in range(count)]


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_is_finished_is_read_and_what_is_missing_is_done(tmp_path, jobs):
    tasks = squares(tmp_path / "marks")
    Cells(tmp_path / "cells").run(tasks[:2], 1)
    cells = Cells(tmp_path / "cells")
    seen = []
    results = cells.run(tasks, jobs, lambda label, share: seen.append((label, share)))
    assert results == [(f"square {n}", n * n) for n in range(4)]
    assert [task.times() for task in tasks] == [1, 1, 1, 1]
    assert (cells.found, cells.ran) == (2, 2)
    assert {label for label, share in seen if share >= 1} == {t.label for t in tasks}
    cells.run(tasks, jobs)
    assert (cells.found, cells.ran) == (2, 2), "only what was there at the start was found"
    assert {label for label, share in seen if share == 0} == {"square 2", "square 3"}


def test_the_same_work_under_two_names_is_done_once(tmp_path):
    (tmp_path / "marks").mkdir()
    one, two = Square(3, tmp_path / "marks"), Square(3, tmp_path / "marks", "again")
    assert Cells(tmp_path / "cells").run([one, two], 1) == [("square 3", 9), ("again", 9)]
    assert one.times() == 1


@pytest.mark.parametrize("damage", ["", "{", "gone"])
def test_a_damaged_cell_is_done_again(tmp_path, damage):
    tasks = squares(tmp_path / "marks", 1)
    Cells(tmp_path / "cells").run(tasks, 1)
    (file,) = (tmp_path / "cells").glob("*/square.json")
    file.unlink() if damage == "gone" else file.write_text(damage)
    assert Cells(tmp_path / "cells").run(tasks, 1) == [("square 0", 0)]
    assert tasks[0].times() == 2


def test_from_a_machine_without_the_folder_the_files_travel(tmp_path, monkeypatch):
    cells = Cells(tmp_path / "cells")
    # Another machine may have a folder of that name; its token is another.
    elsewhere = replace(cells._place, token="another")
    monkeypatch.setattr(cells, "_place", elsewhere)
    tasks = squares(tmp_path / "marks")
    assert cells.run(tasks, 1)[-1] == ("square 3", 9)
    assert len(list((tmp_path / "cells").glob("*/square.json"))) == 4


def test_cells_go_when_all_is_done_and_stay_when_it_is_not(tmp_path):
    folder = tmp_path / "deep" / "cells"
    interrupted = suppress(KeyboardInterrupt)
    with interrupted, kept(folder, keep=False) as cells:
        cells.run(squares(tmp_path / "marks"), 1)
        raise KeyboardInterrupt
    assert len(list(folder.glob("*/square.json"))) == 4
    with kept(folder, keep=True) as cells:
        cells.run(squares(tmp_path / "marks", 5), 1)
        assert cells.found == 4
    with kept(folder, keep=False) as cells:
        cells.run(squares(tmp_path / "marks", 2), 1)
    assert len(list(folder.glob("*/square.json"))) == 3, "the others are somebody else's"


def test_a_mistake_before_any_work_leaves_nothing(tmp_path):
    with pytest.raises(InputError), kept(tmp_path / "deep" / "cells", keep=False):
        raise InputError("no such policy")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="name another folder with --cells"):
        Cells(tmp_path / "file" / "cells")
    with (
        pytest.raises(InputError, match="name another folder with --out"),
        kept(tmp_path / "file" / "out.cells", keep=False, option="--out"),
    ):
        pass


TASK = RunTask(
    toy.ToyRunner(),
    toy.toy_trace(minutes=3),
    toy.PROFILE,
    Job("hpa", "hpa", {"target": 50.0}, CONFIG.run, 1),
    "hpa",
    block_s=60.0,
)


def test_a_run_comes_back_bit_by_bit(tmp_path):
    digest, result = TASK.run(lambda *_: None)
    (back,) = Cells(tmp_path).run([TASK], 1)
    assert back.figures == digest.figures
    assert back.load == digest.load
    assert (back.pinned, back.settings) == (digest.pinned, digest.settings)
    for name, column in vars(digest.blocks).items():
        assert np.array_equal(getattr(back.blocks, name), column)
        assert getattr(back.blocks, name).dtype == column.dtype
    for name, column in vars(result.ticks).items():
        found = getattr(back.ticks, name)
        if isinstance(column, tuple):
            assert found == column
        else:
            assert np.array_equal(found, column, equal_nan=column.dtype.kind == "f")
            assert found.dtype == column.dtype


def test_figures_of_a_run_without_a_finished_request_are_nan(tmp_path):
    slow = replace(TASK, runner=Nothing())
    (back,) = Cells(tmp_path).run([slow], 1)
    assert np.isnan(back.figures.ttft_p99_s)
    assert back.figures.slo_attainment == 0.0


@dataclass(frozen=True)
class Nothing(toy.ToyRunner):
    """No request ends."""

    def __call__(self, trace, profile, job, progress):
        result = super().__call__(trace, profile, job, progress)
        gone = np.full(len(trace), np.nan)
        requests = replace(result.requests, ttft_s=gone, e2e_s=gone, tpot_s=gone)
        return replace(result, requests=requests)


SILENT = replace(TASK.trace, gaps=(Gap(10.0, 100.0),))
OTHER_TRACE = toy.toy_trace(minutes=3, surge=2.0)


@pytest.mark.parametrize(
    "changed",
    [
        replace(TASK, trace=OTHER_TRACE),
        replace(TASK, trace=SILENT),
        replace(TASK, profile=replace(toy.PROFILE, gpus_per_replica=4)),
        replace(TASK, block_s=None),
        replace(TASK, runner=toy.ToyRunner(noise=0.5)),
        replace(TASK, job=replace(TASK.job, policy="keda")),
        replace(TASK, job=replace(TASK.job, options={"target": 51.0})),
        replace(TASK, job=replace(TASK.job, seed=2)),
        replace(TASK, job=replace(TASK.job, guarded=False)),
        replace(TASK, job=replace(TASK.job, fallback={"tolerance": 0.2})),
        replace(TASK, job=replace(TASK.job, config=replace(CONFIG.run, tick_s=2.0))),
        replace(TASK, job=replace(TASK.job, config=replace(CONFIG.run, initial_replicas=2))),
    ],
)
def test_whatever_a_run_depends_on_names_its_cell(changed):
    assert changed.key() != TASK.key()


def test_a_label_a_name_and_another_copy_of_the_trace_do_not(tmp_path):
    again = toy.toy_trace(minutes=3, name="another name")
    same = replace(TASK, label="x", trace=again, job=replace(TASK.job, name="y"))
    assert same.key() == TASK.key()
    assert trace_key(again) == trace_key(TASK.trace)


KILLED = """
import sys
from pathlib import Path
from tests.experiments import slow
slow.compared(Path(sys.argv[1]))
"""
FILES = ("summary.json", "requests.parquet", "ticks.parquet")


def test_killed_in_the_middle_and_started_again_nothing_is_lost(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    slow.compared(whole)
    runs = slow.ran(whole)
    assert len(set(runs)) == len(runs), "no cell runs twice"

    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(killed)], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    while len(list((killed / "cells").glob("*/run.json"))) < len(runs) // 2:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (killed / "summary.json").exists()
    finished = len(list((killed / "cells").glob("*/run.json")))
    before = slow.ran(killed)
    assert finished < len(runs)

    slow.compared(killed)
    after = slow.ran(killed)[len(before) :]
    assert len(after) == len(runs) - finished, "what was finished did not run again"
    assert set(before) | set(after) == set(runs)
    for name in FILES:
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    assert not (killed / "cells").exists()
