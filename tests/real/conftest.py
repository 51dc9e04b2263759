"""The real engine, started once per session and only if a test asks for it."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

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


@pytest.fixture(autouse=True)
def _handed_on(request: pytest.FixtureRequest) -> None:
    """Each test finds the shared engine running and idle, whatever became of the one before."""
    if "vllm" in request.fixturenames:
        request.getfixturevalue("vllm").hand_on()


@runtime_checkable
class Telling(Protocol):
    """A fixture's value that knows what a failure should show."""

    def logs(self) -> dict[str, str]:
        """Ends of logs, by title."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test shows the ends of the logs of what ran for it."""
    report = yield
    if report.failed:
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, Telling):
                report.sections += [(f"end of {name}", end) for name, end in value.logs().items()]
    return report
