"""What the parts share: their figures and the check of their options."""

from __future__ import annotations

import argparse

from tuner.core.errors import ConfigError

Figures = dict[str, object]
"""What a part measured, ready for JSON."""


def check_positive(options: argparse.Namespace, *names: str) -> None:
    """Refuse options below 1.

    Raises:
        ConfigError: naming the option and its value.
    """
    for name in names:
        if getattr(options, name) < 1:
            option = name.replace("_", "-")
            raise ConfigError(f"--{option} is {getattr(options, name)}; expected at least 1")
