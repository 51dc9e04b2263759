"""The starter of engines itself, on small programs that end, hang and have children."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest

from tests.real import vllm_env
from tests.real.vllm_server import EngineFailedError, Launch, VllmServer, launch

READY = """
    import sys, time
    print("up", flush=True)
    time.sleep(120)
"""
STUBBORN = """
    import signal, subprocess, sys, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
    print("up", flush=True)
    time.sleep(120)
"""


def program(text: str) -> Launch:
    return Launch((sys.executable, "-c", textwrap.dedent(text)))


def up(server: VllmServer) -> bool:
    return "up" in server.tail()


def test_the_ports_are_filled_in_wherever_they_are_left_open(tmp_path):
    opened = launch(Path("/env/python"), Path("/model"), tmp_path / "token", max_num_seqs=8)
    command, environment = opened.filled(8001, 9001)
    assert command[command.index("--port") + 1] == "8001"
    assert command[command.index("--max-num-seqs") + 1] == "8"
    assert environment["TUNER_CONTROL_PORT"] == "9001"
    assert not any("{" in text for text in [*command, *environment.values()])


def test_an_engine_that_ends_at_once_shows_its_last_words(tmp_path):
    server = VllmServer(program("raise SystemExit('no such model')"), tmp_path / "log")
    with pytest.raises(EngineFailedError, match=r"ended with status 1\nno such model"):
        server.__enter__()
    assert server.pids() == []


def test_an_engine_that_never_answers_is_given_up(tmp_path):
    server = VllmServer(program(READY), tmp_path / "log")
    server.start()
    with pytest.raises(EngineFailedError, match=r"not ready after 0\.3 s"):
        server.wait_ready(0.3)
    server.stop()
    assert server.pids() == []


def test_what_does_not_end_on_request_is_ended_and_told(tmp_path):
    server = VllmServer(program(STUBBORN), tmp_path / "log")
    server.start()
    server.wait_for(lambda: up(server), 30.0, "up")
    family = server.pids()
    assert len(family) == 2
    with pytest.raises(
        EngineFailedError, match=r"2 of its processes still ran 0\.3 s after SIGTERM"
    ):
        server.stop(0.3)
    assert not any(Path(f"/proc/{pid}").exists() for pid in family[:1])


def test_a_folder_of_somebody_else_is_never_overwritten(tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    monkeypatch.setenv("TUNER_ENGINE_ENV", str(tmp_path / "home"))
    with pytest.raises(vllm_env.EnvironmentBuildError, match="is no virtual environment"):
        vllm_env.engine_python()
    assert (tmp_path / "home" / "thesis.txt").read_text() == "years of work"


def test_an_environment_of_these_versions_is_used_as_it_is(tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    (home / "versions").write_text(vllm_env.key())
    monkeypatch.setenv("TUNER_ENGINE_ENV", str(home))
    assert vllm_env.engine_python() == home / "bin" / "python"
