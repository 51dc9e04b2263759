"""Digests of what a policy is trained from, so that a bundle can say so."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

from tuner.core.profile import ServingProfile
from tuner.core.trace import Trace
from tuner.data.bundles import digest_of


def trace_digest(trace: Trace) -> str:
    """SHA-256 over names and values of the columns; the file's compression does not matter."""
    digest = hashlib.sha256()
    for name, column in trace.columns().items():
        digest.update(f"{name} {column.dtype.str} {len(column)}\n".encode())
        digest.update(column.tobytes())
    return digest.hexdigest()


def profile_digest(profile: ServingProfile) -> str:
    """SHA-256 over everything that a profile says."""
    return digest_of(json.loads(json.dumps(asdict(profile))))
