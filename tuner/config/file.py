"""`tuner.yaml` read as a whole: every mistake at once, before anything is reached."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from policies import POLICIES
from tuner.config import SCHEMA, ControllerConfig, TargetConfig
from tuner.config.mistakes import config_mistakes
from tuner.core.errors import ConfigError
from tuner.data.strict import build, parse_yaml, read_text

_MEMORY = ":memory:"


def load_config(path: str | Path) -> ControllerConfig:
    """The configuration in a file, checked as a whole; its paths lead from the file's folder.

    Policies and fallbacks are built once, so that a bundle that does not fit is refused here.
    Nothing outside this host is asked, and no secret is read.

    Raises:
        ConfigError: the file cannot be read, or one line per mistake in it.
    """
    path = Path(path)
    text = read_text(path, "a tuner.yaml", ConfigError, hint="; `tuner init` writes one")
    data = parse_yaml(text, str(path), ConfigError, hint=f" (schema: {SCHEMA})")
    folder = path.resolve().parent
    config = build(
        ControllerConfig,
        data,
        str(path),
        ConfigError,
        contradictions=lambda config: config_mistakes(resolved(config, folder)),
        hint=" (see `tuner config explain`)",
    )
    return resolved(config, folder)


def resolved(config: ControllerConfig, folder: Path) -> ControllerConfig:
    """The configuration with every path absolute, relative ones from `folder` on."""
    return replace(
        config,
        audit=_database(config.audit, folder),
        targets=tuple(_target(target, folder) for target in config.targets),
    )


def missing_files(config: ControllerConfig) -> list[str]:
    """One sentence for each file with a secret that is not there to be read.

    Not a mistake of the file: a mounted Secret exists only where the controller runs.
    """
    problems = []
    for index, target in enumerate(config.targets):
        named = {
            "engine.token_file": target.engine.token_file,
            "engine.api_key_file": target.engine.api_key_file,
            "prometheus.token_file": target.prometheus.token_file if target.prometheus else None,
        }
        for key, name in named.items():
            if name is None:
                continue
            try:
                content = Path(name).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                why = getattr(error, "strerror", None) or "it is no text"
                problems.append(f"targets[{index}].{key}: {name} cannot be read ({why})")
                continue
            if not content.strip():
                problems.append(f"targets[{index}].{key}: {name} is empty; expected a secret")
    return problems


def _target(target: TargetConfig, folder: Path) -> TargetConfig:
    processes, prometheus = target.processes, target.prometheus
    profile = target.promotion.profile
    if profile is not None and ("/" in profile or profile.endswith((".yaml", ".yml"))):
        profile = _from(folder, profile)
    return replace(
        target,
        policy=_policy(target.policy, folder),
        fallback=_policy(target.fallback, folder),
        engine=_with_paths(target.engine, folder, "token_file", "api_key_file"),
        prometheus=prometheus and _with_paths(prometheus, folder, "token_file"),
        processes=processes and _with_paths(processes, folder, "state_dir", "endpoints_file"),
        promotion=replace(target.promotion, profile=profile),
    )


def _with_paths(section: Any, folder: Path, *names: str) -> Any:
    paths = {name: getattr(section, name) for name in names}
    return replace(section, **{n: _from(folder, p) for n, p in paths.items() if p is not None})


def _policy(name: str, folder: Path) -> str:
    """A rule by its name, a bundle by its folder."""
    is_folder = name not in POLICIES and bool(name) and ("/" in name or (folder / name).is_dir())
    return _from(folder, name) if is_folder else name


def _database(url: str, folder: Path) -> str:
    """A SQLite file by its absolute path; any other database as it is named."""
    scheme, mark, rest = url.partition("///")
    name, query_mark, query = rest.partition("?")
    if not scheme.startswith("sqlite") or not name or name.startswith(("/", _MEMORY, "file:")):
        return url
    return f"{scheme}{mark}{_from(folder, name)}{query_mark}{query}"


def _from(folder: Path, name: str) -> str:
    return str(folder / Path(name).expanduser())
