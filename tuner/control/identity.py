"""What runs on a target, in digests: for the audit log, and for who may act."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Literal

from policies import POLICIES
from tuner.config import TargetConfig
from tuner.config.digest import config_digest, plain_options
from tuner.control.audit_store import RunIdentity
from tuner.data.bundles import digest_of, read_bundle

Mode = Literal["shadow", "active"]


def identity_of(target: TargetConfig, mode: Mode) -> RunIdentity:
    """What runs on a target in a mode. The digests are the same in every mode.

    Raises:
        BundleError: the policy is a bundle that cannot be trusted.
    """
    return RunIdentity(
        policy=Path(target.policy).name,
        policy_digest=policy_digest(target),
        config_digest=config_digest(target),
        version=metadata.version("deepseek-tuner"),
        authority="direct" if mode == "active" else "none",
    )


def policy_digest(target: TargetConfig) -> str:
    """SHA-256 of the policy: of a bundle its sealed manifest, of a rule its name and options.

    Raises:
        BundleError: the bundle cannot be trusted.
    """
    if target.policy in POLICIES:
        options = plain_options(target.policy_options)
        return digest_of({"policy": target.policy, "options": options})
    return read_bundle(target.policy).manifest.digests.manifest
