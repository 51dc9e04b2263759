"""The parts of the vLLM plugin that need no vLLM; the rest is shown by tests/real."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tuner_vllm import settings
from tuner_vllm.contract import EngineError
from tuner_vllm.engine import Ranks
from tuner_vllm.settings import Settings, SettingsError
from tuner_vllm.versions import TESTED, UntestedVersionError, check

ROOT = Path(__file__).parents[2]


def test_the_contract_has_one_source():
    ours = ROOT / "deploy" / "vllm_plugin" / "tuner_vllm" / "contract"
    assert ours.is_symlink()
    assert not Path(ours.readlink()).is_absolute()
    assert ours.resolve() == ROOT / "tuner" / "engines" / "contract"


@pytest.mark.parametrize("version", [*TESTED, TESTED[0] + "+cpu", TESTED[0] + "+cu130"])
def test_a_tested_version_passes_whatever_its_build(version):
    check(version)


@pytest.mark.parametrize("version", ["0.31.0", "0.32.1", "0.33.0", "0.32.0rc1", "1.0.0", "dev", ""])
def test_any_other_version_is_refused_with_a_way_out(version):
    with pytest.raises(
        UntestedVersionError, match=r"tested with 0\.32\.0; use one of those, or leave"
    ):
        check(version)


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "token").write_text("t\n")
    return {settings.PORT: "8011", settings.TOKEN_FILE: str(tmp_path / "token")}


def test_settings_come_from_the_environment(environ, tmp_path):
    found = Settings.from_environment(environ)
    assert found == Settings(8011, tmp_path / "token", "0.0.0.0", 1.0)
    more = {**environ, settings.HOST: "127.0.0.1", settings.MIN_INTERVAL: "0"}
    assert Settings.from_environment(more) == Settings(8011, tmp_path / "token", "127.0.0.1", 0.0)


WRONG = {
    "no port": (settings.PORT, "", "TUNER_CONTROL_PORT is not set"),
    "port of letters": (settings.PORT, "http", "TUNER_CONTROL_PORT = 'http' is not a port"),
    "port too high": (settings.PORT, "65536", "TUNER_CONTROL_PORT = '65536' is not a port"),
    "port zero": (settings.PORT, "0", "is not a port"),
    "no token file": (settings.TOKEN_FILE, "", "TUNER_CONTROL_TOKEN_FILE is not set"),
    "token file gone": (settings.TOKEN_FILE, "/nowhere", "/nowhere cannot be read"),
    "interval of letters": (settings.MIN_INTERVAL, "soon", "'soon' is not a number of seconds"),
    "interval negative": (settings.MIN_INTERVAL, "-1", "'-1' is not a number of seconds"),
    "interval nan": (settings.MIN_INTERVAL, "nan", "'nan' is not a number of seconds"),
}


@pytest.mark.parametrize(("name", "value", "words"), WRONG.values(), ids=WRONG)
def test_a_wrong_setting_is_named(environ, name, value, words):
    with pytest.raises(SettingsError, match=words):
        Settings.from_environment({**environ, name: value})


def test_an_empty_token_is_no_token(environ, tmp_path):
    (tmp_path / "token").write_text("\n")
    with pytest.raises(SettingsError, match="is empty"):
        Settings.from_environment(environ)


class Cores:
    """Engine cores as the client sees them: each holds its own cap."""

    def __init__(self, caps: list[int]) -> None:
        self.caps = caps
        self.deaf: set[int] = set()
        self.hang = False

    async def call_all(self, method: str, *arguments: Any) -> list[Any]:
        if self.hang:
            await asyncio.Event().wait()
        return [self.answer(rank, method, *arguments) for rank in range(len(self.caps))]

    def answer(self, rank: int, method: str, values: dict[str, int] | None = None) -> Any:
        if method == "tuner_set" and values is not None and rank not in self.deaf:
            self.caps[rank] = values["batch_size"]
        if self.caps[rank] == 13:
            raise Exception("Call to tuner_set method failed")  # bare, as vLLM's own
        return {
            "knobs": {
                "batch_size": [self.caps[rank], 1, 32],
                "max_num_batched_tokens": [2048, 512, 2048],
            },
            "running": rank + 1,
            "waiting": 10 * rank,
            "paused": rank == 1,
            "sleeping": False,
        }


@pytest.fixture
def ranks() -> Iterator[Callable[[Cores], Ranks]]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield lambda cores: Ranks(cores.call_all, loop, threads=2, timeout_s=0.2 if cores.hang else 20)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)


def test_status_sums_over_ranks(ranks):
    status = ranks(Cores([8, 8])).status()
    assert (status.running, status.waiting, status.paused, status.ranks) == (3, 10, True, 2)
    knobs = {n: (k.value, k.low, k.high, k.actuation) for n, k in (status.knobs or {}).items()}
    assert knobs == {
        "batch_size": (8, 1, 32, "hot"),
        "max_num_batched_tokens": (2048, 512, 2048, "hot"),
        "threads": (2, 2, 2, "unsupported"),
    }


def test_a_set_reaches_every_rank(ranks):
    cores = Cores([32, 32, 32])
    ranks(cores).apply({"batch_size": 4})
    assert cores.caps == [4, 4, 4]


def test_a_set_that_one_rank_did_not_take_is_not_done(ranks):
    cores = Cores([32, 32])
    cores.deaf = {1}
    with pytest.raises(EngineError, match="the ranks hold different values"):
        ranks(cores).apply({"batch_size": 4})


def test_a_set_that_no_rank_took_is_not_done(ranks):
    cores = Cores([32])
    cores.deaf = {0}
    with pytest.raises(EngineError, match=r"wanted \{'batch_size': 4\}, the engine holds"):
        ranks(cores).apply({"batch_size": 4})


def test_what_the_engine_core_throws_is_told_as_a_sentence(ranks):
    with pytest.raises(EngineError, match="the engine core failed: Call to tuner_set"):
        ranks(Cores([32])).apply({"batch_size": 13})


def test_an_api_server_that_has_ended_is_told_as_a_sentence():
    loop = asyncio.new_event_loop()
    loop.close()
    with pytest.raises(EngineError, match="the API server is ending"):
        Ranks(Cores([32]).call_all, loop, threads=1).status()


def test_an_engine_core_that_hangs_is_given_up_in_time(ranks):
    cores = Cores([32])
    cores.hang = True
    with pytest.raises(EngineError, match=r"did not answer within 0\.2 s"):
        ranks(cores).status()
