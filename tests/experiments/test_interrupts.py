"""Ctrl-C ends the commands of this package with one sentence."""

from __future__ import annotations

from importlib import import_module

import pytest

from experiments.interrupts import EXIT_INTERRUPTED


@pytest.mark.parametrize(
    ("module", "work", "words"),
    [
        ("experiments.fidelity.__main__", "find", []),
        ("experiments.grid.__main__", "load_grid_config", ["grid.yaml"]),
        ("experiments.bench.__main__", "import_module", ["simulator"]),
        ("experiments.calibration_proof", "prove_steps", ["--data", "data"]),
    ],
)
def test_says_that_it_was_interrupted(
    module: str,
    work: str,
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*given: object, **named: object) -> None:
        raise KeyboardInterrupt

    command = import_module(module)
    monkeypatch.setattr(command, work, interrupted)
    assert command.main(words) == EXIT_INTERRUPTED
    assert capsys.readouterr().err == "error: interrupted; nothing half-written is left\n"
