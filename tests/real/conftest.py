"""The real engine, started once per session and only if a test asks for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real import vllm_env
from tests.real.vllm_server import Launch, VllmServer, launch

SKIP = "TUNER_SKIP_ENGINE"


@pytest.fixture(scope="session")
def engine_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where token and logs of the session's engines lie."""
    return tmp_path_factory.mktemp("engine")


@pytest.fixture(scope="session")
def engine_launch(engine_folder: Path) -> Launch:
    """How to start one more engine: command line and environment with open ports."""
    if os.environ.get(SKIP) == "1":
        pytest.skip(f"{SKIP}=1: the real engine is left out on request")
    token_file = engine_folder / "token"
    token_file.write_text("token-of-the-tests\n", encoding="utf-8")
    token_file.chmod(0o600)
    return launch(vllm_env.engine_python(), vllm_env.engine_model(), token_file)


@pytest.fixture(scope="session")
def vllm(engine_launch: Launch, engine_folder: Path) -> Iterator[VllmServer]:
    """One real vLLM with the plugin, ready; shared by the session's tests."""
    with VllmServer(engine_launch, engine_folder / "vllm.log") as server:
        yield server


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """A failed test shows the end of the engine's log."""
    report = yield
    server = getattr(item, "funcargs", {}).get("vllm")
    if report.failed and isinstance(server, VllmServer):
        report.sections.append(("end of the engine's log", server.tail()))
    return report
