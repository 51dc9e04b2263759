"""One active controller per target: a claim in the audit log, from the start to the end.

Where a Kubernetes Lease already says who may write, that is the only word, and a standby may wait
for it; everywhere else nothing but this keeps two controllers apart.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from structlog.typing import FilteringBoundLogger

from tuner.config import TargetConfig
from tuner.control.audit_store import AuditStore, Claim, ClaimedError
from tuner.control.health import MARGIN_S, MISSED_TICKS
from tuner.core.errors import ConfigError, TunerError


@dataclass
class Hold:
    """A claim that this process took, for the thread of its target."""

    store: AuditStore
    claim: Claim
    monotonic: Callable[[], float] = time.monotonic
    taken_s: float = -float("inf")
    """When it was last renewed here, on `monotonic`."""

    def take(self) -> None:
        """Take or renew it; raises as `AuditStore.take`."""
        began_s = self.monotonic()
        self.store.take(self.claim)
        self.taken_s = began_s

    def lost(self) -> str:
        """Why nothing may be written any more; empty where it may.

        Where the log cannot be asked, a renewal that is young enough is a proof: nobody else may
        have taken the claim over yet.
        """
        try:
            self.take()
        except ClaimedError as error:
            return str(error)
        except TunerError as error:
            if self.monotonic() - self.taken_s >= self.claim.lasts_s:
                return f"nobody can tell whether another controller has taken over: {error}"
        return ""

    def give_up(self) -> None:
        """Let the next one in at once; raises as `AuditStore.give_up`."""
        self.store.give_up(self.claim)


def hold_of(store: AuditStore, target: TargetConfig) -> Hold | None:
    """What an active controller of a target must hold; None where a Lease does that."""
    if target.kubernetes is not None and target.kubernetes.lease is not None:
        return None
    speed = 1.0 if target.sandbox is None else target.sandbox.speed
    holder = f"{socket.gethostname()}, process {os.getpid()}, {secrets.token_hex(4)}"
    lasts_s = MISSED_TICKS * target.tick_s / speed + MARGIN_S
    return Hold(store, Claim(target.name, holder, lasts_s))


@contextmanager
def held(
    store: AuditStore,
    targets: Sequence[TargetConfig],
    log: FilteringBoundLogger,
    still_running: Callable[[], Sequence[str]],
) -> Iterator[Mapping[str, Hold]]:
    """The claims on these targets for a block, by name.

    Args:
        still_running: targets whose loop has not ended after the block; theirs is left to run out.

    Raises:
        ConfigError: one line for each that another controller holds.
    """
    taken: dict[str, Hold] = {}
    try:
        refused = []
        for target in targets:
            hold = hold_of(store, target)
            if hold is None:
                continue
            try:
                hold.take()
            except TunerError as error:
                refused.append(str(error))
            else:
                taken[target.name] = hold
        if refused:
            raise ConfigError("\n".join(refused))
        yield taken
    finally:
        for name in taken.keys() - set(still_running()):
            try:
                taken[name].give_up()
            except TunerError as error:
                log.warning("claim not given up", target=name, why=str(error))
