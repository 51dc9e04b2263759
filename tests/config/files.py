"""A tuner.yaml that is right, and ways to spoil it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

TARGET: dict[str, Any] = {
    "name": "r1",
    "policy": "hpa",
    "policy_options": {"target": 1200},
    "fallback_options": {"target": 1000},
    "engine": {"kind": "vllm"},
    "prometheus": {"url": "http://prometheus:9090", "selector": {"app": "r1"}},
    "kubernetes": {"namespace": "llm", "deployment": "r1", "control_port": 8001},
    "knobs": {"replicas": {"low": 1, "high": 8}, "batch_size": {"low": 16, "high": 256}},
    "move": ["replicas", "batch_size"],
}


def target(**changes: Any) -> dict[str, Any]:
    """A target with some keys changed; `...` takes a key away."""
    made = copy.deepcopy(TARGET)
    for key, value in changes.items():
        if value is ...:
            made.pop(key, None)
        else:
            made[key] = value
    return made


def write(folder: Path, *targets: dict[str, Any], **top: Any) -> Path:
    """tuner.yaml in `folder` with these targets."""
    path = folder / "tuner.yaml"
    data = {"schema": "tuner.config/1", "targets": list(targets) or [target()], **top}
    path.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return path


ENDPOINTS: dict[str, Any] = {
    "endpoints": [{"name": "a", "url": "http://127.0.0.1:8000"}],
    "command": ["python", "-m", "engine", "{port}", "{control_port}"],
}
"""A `processes` section whose replicas can be moved."""
