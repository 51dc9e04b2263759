"""A configured target with an audit log, for the tests of the commands that look at it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from typer.testing import CliRunner, Result

from tests.control import logs
from tests.experiments.test_evidence import PROFILE
from tuner.cli import app
from tuner.config.file import load_config
from tuner.control.audit_store import AuditStore, RunIdentity
from tuner.control.identity import identity_of

CONFIG = """
schema: tuner.config/1
audit: sqlite:///audit.db
targets:
  - name: r1
    policy: hpa
    policy_options: {{target: {target}}}
    fallback: hpa
    fallback_options: {{target: 150}}
    engine: {{kind: vllm}}
    knobs: {{replicas: {{low: 1, high: 6}}, batch_size: {{low: 1, high: 32}}}}
    prometheus: {{url: "http://prometheus:9090"}}
    kubernetes: {{namespace: llm, deployment: r1}}
    promotion: {{profile: profile.yaml, min_hours: {hours}, min_load_span: 1.2,
                 max_trips_per_day: 1000, max_attainment_loss: 1.0, seeds: 2}}
"""


def write(folder: Path, *, hours: float = 0.9, target: float = 300.0) -> Path:
    """A tuner.yaml whose policy holds half the replicas of the rule of today."""
    (folder / "profile.yaml").write_text(PROFILE)
    path = folder / "tuner.yaml"
    path.write_text(CONFIG.format(hours=hours, target=target))
    return path


def identity(config: Path) -> RunIdentity:
    return identity_of(load_config(config).targets[0], "shadow")


def opened(config: Path) -> AuditStore:
    return AuditStore.open(load_config(config).audit)


def watched(config: Path, ticks: int = 240, **changes: object) -> None:
    """That many ticks in shadow, in the log that the configuration names."""
    store = opened(config)
    logs.shadow(
        store, "r1", ticks, identity=replace(identity(config), **changes), policy=logs.hpa(300.0)
    )
    store.close()


def call(*arguments: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=True, env=env)
