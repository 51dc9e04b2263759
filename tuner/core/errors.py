"""The errors of tuner, one tree.

    TunerError
    ├── InputError          what the user gave is wrong: exit code 2, one sentence, no traceback
    │   ├── TraceError      a trace that cannot be used
    │   ├── ProfileError    a serving profile that cannot be used
    │   ├── ConfigError     a configuration file or option that cannot be used
    │   └── BundleError     a policy bundle that cannot be trusted
    ├── TemporaryError      try again after `delay_s`
    └── PermanentError      trying again will not help

A message names the thing, the value found, the value expected and the next move.
"""

from __future__ import annotations


class TunerError(Exception):
    """Root of everything tuner raises on purpose."""


class InputError(TunerError):
    """A mistake in what the user gave; the command prints it and exits with 2."""


class TraceError(InputError):
    """A trace is empty, unsorted, truncated, or holds impossible values."""


class ProfileError(InputError):
    """A serving profile has an unknown key or values that contradict each other."""


class ConfigError(InputError):
    """A configuration value or command-line option is wrong."""


class BundleError(InputError):
    """A policy bundle has a wrong digest, knob list or field list."""


class TemporaryError(TunerError):
    """The world is not ready; try again after `delay_s` seconds."""

    def __init__(self, message: str, *, delay_s: float) -> None:
        super().__init__(message)
        self.delay_s = delay_s


class PermanentError(TunerError):
    """Trying again will not help; a person must act."""
