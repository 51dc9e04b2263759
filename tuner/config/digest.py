"""A digest of what a target's configuration means, for the audit log and for promotions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from tuner.config import TargetConfig
from tuner.config.mistakes import knobs_allowed
from tuner.data.bundles import digest_of
from tuner.guardrails.max_delta import DEFAULT_STEPS

_NOT_MEANT: tuple[tuple[str, ...], ...] = (
    ("engine", "token_file"),
    ("engine", "api_key_file"),
    ("prometheus", "token_file"),
    ("processes", "state_dir"),
    ("processes", "endpoints_file"),
    ("processes", "environment"),
    ("sandbox", "epoch_s"),
    ("promotion",),
)
"""Keys that say where something lies or what is asked of the evidence, not what is done. What an
engine finds in its environment may be secret."""


def config_digest(target: TargetConfig) -> str:
    """SHA-256 of what decides, sees and acts on one target.

    The same for another order of keys, a default written out, other paths and secrets, and other
    demands on the evidence: none of these changes what runs. A bundle counts by the name of its
    folder; its content has a digest of its own.
    """
    plain: dict[str, Any] = json.loads(json.dumps(asdict(target)))
    for path in _NOT_MEANT:
        section = plain
        for key in path[:-1]:
            section = section[key] or {}
        section.pop(path[-1], None)
    plain["move"] = sorted(target.move)
    plain["knobs"] = {spec.name: [spec.low, spec.high] for spec in knobs_allowed(target).specs}
    plain["steps"] = {
        name: asdict(step) for name, step in {**DEFAULT_STEPS, **target.steps}.items()
    }
    for key in ("policy", "fallback"):
        plain[key] = Path(plain[key]).name
        plain[f"{key}_options"] = plain_options(plain[f"{key}_options"])
    return digest_of(_without_users(plain))


def plain_options(options: Mapping[str, float | int | str]) -> dict[str, float | str]:
    """Options as they are meant: 1500 and 1500.0 are one number."""
    return {
        name: value if isinstance(value, str) else float(value) for name, value in options.items()
    }


def _without_users(value: Any) -> Any:
    """The same values, addresses without user and password."""
    if isinstance(value, dict):
        return {key: _without_users(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_users(item) for item in value]
    return without_user(value) if isinstance(value, str) and "://" in value else value


def without_user(url: str) -> str:
    """An address that may be shown: without user and password."""
    scheme = url.partition("://")[0]
    try:
        parts = urlsplit(url)
    except ValueError:
        return f"{scheme}://(not readable)"
    if "@" not in parts.netloc:
        return url
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
