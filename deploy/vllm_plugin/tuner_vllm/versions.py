"""Which vLLM this is, and whether the plugin was tested with it."""

from __future__ import annotations

TESTED = ("0.32.0",)
"""Versions that the tests ran against. vLLM calls its scheduler interface non-public: a version
enters this list by passing tests/real, not by looking similar."""


class UntestedVersionError(RuntimeError):
    """The vLLM found is not one of TESTED."""


def check(version: str) -> None:
    """Refuse a vLLM that the plugin was not tested with; a build's local label does not count.

    Raises:
        UntestedVersionError: with what to do.
    """
    if version.split("+", 1)[0] not in TESTED:
        raise UntestedVersionError(
            f"tuner_vllm: vLLM {version} found, tested with {', '.join(TESTED)}; use one of those, "
            "or leave out --scheduler-cls and --middleware to run without hot knobs"
        )
