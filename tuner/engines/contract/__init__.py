"""The runtime-config contract, server side: standard library only, engine images have it too."""

from __future__ import annotations

from .state import Contract
from .values import (
    PATH,
    ROLLBACK,
    Actuation,
    AuditLine,
    EngineError,
    Knob,
    RefusedByEngineError,
    Response,
    Status,
)

__all__ = [
    "PATH",
    "ROLLBACK",
    "Actuation",
    "AuditLine",
    "Contract",
    "EngineError",
    "Knob",
    "RefusedByEngineError",
    "Response",
    "Status",
]
