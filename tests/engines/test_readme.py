"""The folder's table says what the adapters say."""

from __future__ import annotations

from pathlib import Path

import pytest

import tuner.engines
from tests.engines.fakes import FAKES
from tuner.engines import ENGINES, EngineHttp

README = (Path(tuner.engines.__file__).parent / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_has_a_row_with_its_standing_and_the_class_of_its_knobs(name):
    (row,) = [line for line in README.splitlines() if line.startswith(f"| `{name}` |")]
    _, _, standing, batch_size, threads, _ = (cell.strip() for cell in row.split("|"))
    fake = FAKES[name]()
    try:
        with EngineHttp(timeout_s=10.0) as http:
            engine = ENGINES[name](http)
            found = {c.knob: c for c in engine.capabilities(fake.replica)}
    finally:
        fake.close()
    assert standing == engine.standing
    for cell, knob in ((batch_size, "batch_size"), (threads, "threads")):
        assert cell.startswith(found[knob].applied)
        assert found[knob].route in cell.replace("`", "") or found[knob].applied == "restart"
