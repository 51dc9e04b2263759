"""Compiled code is kept on disk, and never outlives the sources it came from."""

from __future__ import annotations

import shutil
from pathlib import Path

import envs.simulator
from envs.simulator.compiled import cache_folder, entry


def test_a_change_in_any_source_leads_to_another_folder(tmp_path: Path) -> None:
    sources = tmp_path / "simulator"
    shutil.copytree(Path(envs.simulator.__file__).parent, sources)
    before = cache_folder(sources)
    assert cache_folder(sources) == before
    run = sources / "run.py"
    run.write_text(run.read_text() + "# changed\n")
    assert cache_folder(sources) != before


def test_compiles_where_no_folder_can_keep_the_code() -> None:
    # A function without a source file is refused by Numba's cache, as one on a read-only disk is.
    names: dict[str, object] = {}
    exec("def twice(number):\n    return 2 * number", names)
    twice = entry(names["twice"])  # type: ignore[arg-type]
    assert twice(21) == 42
