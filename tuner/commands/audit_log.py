"""Options that commands on the audit log share, and the log that they lead to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tuner.config import ControllerConfig, TargetConfig
    from tuner.control.audit_store import AuditStore
    from tuner.core.faults import Fault

DEFAULT_CONFIG = Path("tuner.yaml")

ConfigOption = Annotated[
    Path | None, typer.Option(help="The controller's configuration. (default tuner.yaml)")
]
AuditOption = Annotated[
    str | None, typer.Option(metavar="URL", help="The audit log itself, without a configuration.")
]
TargetOption = Annotated[str | None, typer.Option(help="Only this target.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def config_of(config: Path | None) -> ControllerConfig:
    """The configuration that is named, or the one in this folder."""
    from tuner.config.file import load_config

    return load_config(config or DEFAULT_CONFIG)


@contextmanager
def looking(
    config: Path | None, audit: str | None
) -> Iterator[tuple[AuditStore, tuple[TargetConfig, ...]]]:
    """The audit log, to be read only, and the targets of the configuration if there is one.

    Raises:
        ConfigError: both are given, the configuration or the log cannot be used.
    """
    from tuner.control.audit_store import AuditStore
    from tuner.core.errors import ConfigError

    if config is not None and audit is not None:
        raise ConfigError("--config and --audit both name an audit log; give one of them")
    targets: tuple[TargetConfig, ...] = ()
    if audit is None:
        loaded = config_of(config)
        audit, targets = loaded.audit, loaded.targets
    store = AuditStore.open(audit, read_only=True)
    try:
        yield store, targets
    finally:
        store.close()


def names_of(store: AuditStore, targets: tuple[TargetConfig, ...], only: str | None) -> list[str]:
    """Targets to show: of the configuration in its order, then others that the log knows.

    Raises:
        ConfigError: `only` is none of them.
    """
    from tuner.core.errors import ConfigError

    configured = [target.name for target in targets]
    names = configured or store.targets()
    if only is None:
        return names
    known = [*names, *(name for name in store.targets() if name not in names)]
    if only not in known:
        raise ConfigError(f"target '{only}' is not known; known: {', '.join(known) or 'none'}")
    return [only]


def age(age_s: float) -> str:
    """An age in its largest unit: a table has no room for more."""
    for length_s, unit in ((86_400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if age_s >= 2 * length_s:
            return f"{age_s / length_s:.0f} {unit}"
    return f"{age_s:.0f} s"


def sentence_of(fault: Fault) -> str:
    """The sentence, to stand behind its place: many begin with that place themselves."""
    return fault.sentence.removeprefix(f"{fault.where}: ")


def moment(at_s: float) -> str:
    """A time on the controller's clock, in UTC."""
    return f"{datetime.fromtimestamp(at_s, tz=UTC):%Y-%m-%d %H:%M:%S}"
