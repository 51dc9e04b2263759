"""What will run, in full: every setting in force with its default filled in, and no secret."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from typing import Any

from tuner.config import ControllerConfig, TargetConfig
from tuner.config.digest import without_user
from tuner.config.mistakes import knobs_allowed
from tuner.control.identity import Mode, identity_of
from tuner.guardrails.max_delta import DEFAULT_STEPS

HIDDEN = "(hidden)"
_SECRET = re.compile(r"token|secret|passw|credential|api[-_]?key|private[-_]?key", re.IGNORECASE)
_DIGITS = 12
"""Of a digest, where a person reads it; `--json` has all of them."""
_SECTIONS = ("traffic", "gpu", "business", "probe")


def controller_facts(config: ControllerConfig) -> dict[str, object]:
    """What is common to every target, as plain data."""
    return {"audit": without_user(config.audit), "server": asdict(config.server)}


def target_facts(target: TargetConfig, mode: Mode) -> dict[str, object]:
    """One target as plain data: its section with defaults, digests, and what may be written."""
    identity = identity_of(target, mode)
    knobs = knobs_allowed(target)
    plain: dict[str, Any] = json.loads(json.dumps(_shown(target)))
    return {
        **plain,
        "mode": mode,
        "knobs": {spec.name: {"low": spec.low, "high": spec.high} for spec in knobs.specs},
        "steps": {n: asdict(s) for n, s in {**DEFAULT_STEPS, **target.steps}.items()},
        "writes": list(target.move) if mode == "active" else [],
        "policy_digest": identity.policy_digest,
        "config_digest": identity.config_digest,
        "version": identity.version,
    }


def target_lines(target: TargetConfig, mode: Mode) -> list[tuple[str, str]]:
    """One target for a person: headings and what stands under them."""
    facts = target_facts(target, mode)
    ranges = {
        spec.name: f"{spec.name} {spec.low}..{spec.high}" for spec in knobs_allowed(target).specs
    }
    moved = [ranges[name] for name in ranges if name in target.move]
    watched = [ranges[name] for name in ranges if name not in target.move]
    nothing = "" if mode == "active" else "nothing: shadow; when active "
    lines = [
        ("policy", f"{_policy(facts, 'policy')}, digest {_short(facts['policy_digest'])}"),
        ("fallback", _policy(facts, "fallback")),
        ("may write", nothing + (", ".join(moved) or "nothing")),
        ("only watches", ", ".join(watched) or "nothing"),
        ("largest steps", _steps(facts["steps"])),
        (
            "rhythm",
            f"a decision every {target.tick_s:g} s, windows of {target.window_s:g} s, samples at "
            f"most {target.max_age_s:g} s old",
        ),
        ("engine", _section(facts["engine"])),
    ]
    for name in ("prometheus", "scrape"):
        if facts[name] is not None:
            lines.append(("sees through", f"{name} {_section(facts[name])}"))
    for name in ("kubernetes", "processes", "sandbox"):
        if facts[name] is not None:
            lines.append(("acts through", f"{name} {_section(facts[name])}"))
    for name in _SECTIONS:
        lines.append((name, "none" if facts[name] is None else _section(facts[name])))
    lines.append(("objectives", _section(facts["slo"])))
    lines.append(("evidence asked", _section(facts["promotion"])))
    lines.append(("config digest", str(_short(facts["config_digest"]))))
    return lines


def controller_lines(config: ControllerConfig) -> list[tuple[str, str]]:
    """What is common to every target, for a person."""
    server = config.server
    return [
        ("audit log", without_user(config.audit)),
        ("page", f"http://{server.host}:{server.port} /metrics /healthz /readyz"),
    ]


def _shown(value: Any, name: str = "") -> Any:
    """Plain data without secrets: by the name of a key, in addresses, in the words of a command."""
    if is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _shown(getattr(value, field.name), field.name) for field in fields(value)
        }
    if isinstance(value, Mapping):
        return {
            key: HIDDEN if name == "environment" and _SECRET.search(key) else _shown(item)
            for key, item in value.items()
        }
    if isinstance(value, tuple):
        return _words(value) if name == "command" else [_shown(item) for item in value]
    return without_user(value) if isinstance(value, str) and "://" in value else value


def _words(command: Sequence[str]) -> list[str]:
    """A command without what follows an option that names a secret."""
    shown: list[str] = []
    hide = False
    for word in command:
        option, equals, _ = word.partition("=")
        secret = option.startswith("-") and bool(_SECRET.search(option))
        if hide:
            shown.append(HIDDEN)
        else:
            shown.append(f"{option}={HIDDEN}" if secret and equals else word)
        hide = secret and not equals
    return shown


def _policy(facts: Mapping[str, Any], key: str) -> str:
    options = _section(facts[f"{key}_options"])
    return f"{facts[key]} {options}".strip()


def _steps(steps: Any) -> str:
    parts = []
    for knob, step in steps.items():
        sides = [f"{side} {width}" for side, width in step.items() if width is not None]
        parts.append(f"{knob} {', '.join(sides) or 'any'}")
    return "; ".join(parts)


def _section(values: Any) -> str:
    """A section's keys in one line; what is not set is left out."""
    parts = []
    for key, value in values.items():
        if value in (None, "", [], {}):
            continue
        text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value
        whole = isinstance(text, float) and text.is_integer()
        parts.append(f"{key}={int(text)}" if whole else f"{key}={text}")
    return " ".join(parts)


def _short(digest: object) -> str:
    return str(digest)[:_DIGITS]
