"""tuner.yaml, read: paths from its folder, secrets left alone, a digest of what it means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.config.files import ENDPOINTS, target, write
from tuner.config import ControllerConfig
from tuner.config.digest import config_digest, without_user
from tuner.config.file import load_config, missing_files
from tuner.core.errors import ConfigError


def read(folder: Path, *targets: dict[str, Any], **top: Any) -> ControllerConfig:
    return load_config(write(folder, *targets, **top))


def test_paths_lead_from_the_folder_of_the_file(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        target(
            engine={"kind": "vllm", "token_file": "secrets/token", "api_key_file": "/etc/key"},
            prometheus=...,
            scrape={},
            kubernetes=...,
            processes={**ENDPOINTS, "endpoints_file": "endpoints.json"},
        ),
        audit="sqlite:///audit/log.db?timeout=3",
    )
    one = config.targets[0]
    assert one.processes is not None
    assert one.engine.token_file == str(tmp_path / "secrets/token")
    assert one.engine.api_key_file == "/etc/key"
    assert one.processes.state_dir == str(tmp_path / "tuner-processes")
    assert one.processes.endpoints_file == str(tmp_path / "endpoints.json")
    assert config.audit == f"sqlite:///{tmp_path}/audit/log.db?timeout=3"


@pytest.mark.parametrize(
    "url", ["sqlite:////var/lib/a.db", "sqlite:///:memory:", "postgresql+psycopg://h/tuner"]
)
def test_a_database_that_is_no_relative_file_is_left_as_it_is(tmp_path: Path, url: str) -> None:
    assert read(tmp_path, audit=url).audit == url


def test_a_file_that_is_not_there_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tuner.yaml does not exist.*`tuner init` writes one"):
        load_config(tmp_path / "tuner.yaml")


def test_secrets_that_cannot_be_read_are_told_all_at_once(tmp_path: Path) -> None:
    (tmp_path / "blank").write_text("\n")
    (tmp_path / "key").write_text("s3cret\n")
    engine = {"kind": "vllm", "token_file": "absent", "api_key_file": "key"}
    source = {"url": "http://prometheus:9090", "token_file": "blank"}
    told = missing_files(read(tmp_path, target(engine=engine, prometheus=source)))
    assert [line.split(":")[0] for line in told] == [
        "targets[0].engine.token_file",
        "targets[0].prometheus.token_file",
    ]
    assert "No such file" in told[0]
    assert "is empty" in told[1]
    assert not any("s3cret" in line for line in told)


def digest(folder: Path, **changes: Any) -> str:
    return config_digest(read(folder, target(**changes)).targets[0])


@pytest.mark.parametrize(
    "changes",
    [
        {"tick_s": 15.0},
        {"policy_options": {"target": 1200.0}},
        {"move": ["batch_size", "replicas"]},
        {"steps": {"replicas": {"up": 4, "down": 2}}},
        {"promotion": {"min_hours": 1}},
        {"engine": {"kind": "vllm", "token_file": "elsewhere"}},
    ],
    ids=["default", "number", "order", "default step", "evidence", "secret"],
)
def test_the_digest_stays_where_the_meaning_stays(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert digest(tmp_path, **changes) == digest(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"tick_s": 30.0},
        {"policy_options": {"target": 1201}},
        {"fallback_options": {"target": 1001}},
        {"move": ["replicas"]},
        {"steps": {"replicas": {"up": 5}}},
        {"knobs": {"replicas": {"low": 1, "high": 9}, "batch_size": {"low": 16, "high": 256}}},
        {"prometheus": {"url": "http://prometheus:9090", "selector": {"app": "r2"}}},
        {"max_age_s": 61.0},
        {"slo": {"ttft_s": 2.0}},
    ],
    ids=["tick", "policy", "fallback", "move", "step", "range", "selector", "age", "objective"],
)
def test_the_digest_changes_with_the_meaning(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert digest(tmp_path, **changes) != digest(tmp_path)


def test_the_digest_does_not_know_the_folder(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    local: dict[str, Any] = {"kubernetes": ..., "processes": ENDPOINTS}
    assert digest(tmp_path / "a", **local) == digest(tmp_path / "b", **local)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:hunter2@db:5432/tuner", "postgresql://db:5432/tuner"),
        ("http://prometheus:9090", "http://prometheus:9090"),
        ("sqlite:////var/lib/a@b.db", "sqlite:////var/lib/a@b.db"),
    ],
)
def test_an_address_is_shown_without_user_and_password(url: str, shown: str) -> None:
    assert without_user(url) == shown
