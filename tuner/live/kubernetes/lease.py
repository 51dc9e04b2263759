"""One writer per target: a Lease that says which controller may write, and until when.

The rules of client-go's tools/leaderelection/leaderelection.go, called from the tick instead of
from a thread of its own: another holder has gone when its Lease has not *changed* for its
duration by our own monotonic clock (its time stamps are never compared with ours), and we stop
writing well before others may take over.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

from tuner.core.clock import Clock
from tuner.core.faults import Fault, FaultError, FaultReason
from tuner.live.kubernetes.api import WHERE, KubernetesApi, micro_time, path_of
from tuner.live.kubernetes.rights import LEASES

RENEW_SHARE = 1 / 3
"""Of the duration: a younger renewal is good enough."""
FENCE_SHARE = 2 / 3
"""Of the duration, counted from before the renewal was sent: later than this nothing is written,
because the answer to a new renewal may already be somebody else's name."""


def own_name() -> str:
    """Who holds: the pod's name where it is known, else host and process."""
    return os.environ.get("POD_NAME") or f"{socket.gethostname()}-{os.getpid()}"


class Lease:
    """One Lease object, which must exist: `create` cannot be limited to one name.

    Args:
        duration_s: how long it lasts without renewal; several ticks.
        holder: our name.
        monotonic: seconds that only ever grow.
    """

    def __init__(
        self,
        api: KubernetesApi,
        namespace: str,
        name: str,
        *,
        duration_s: float,
        holder: str,
        clock: Clock,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._path = path_of(namespace, "leases", name, group=LEASES)
        self._name = f"{namespace}/{name}"
        self._duration_s = duration_s
        self._holder = holder
        self._clock = clock
        self._monotonic = monotonic
        self._renewed_s: float | None = None
        self._seen: tuple[object, object] | None = None
        self._seen_since_s = 0.0

    def renew(self) -> None:
        """Take or keep the Lease, unless it was renewed a moment ago.

        Raises:
            FaultError: REFUSED where another controller holds it; any other where the server did
                not answer.
        """
        if self._younger_than(RENEW_SHARE):
            return
        began_s = self._monotonic()
        lease = self._api.get(self._path)
        spec = lease.get("spec") or {}
        other = spec.get("holderIdentity") or ""
        if other not in ("", self._holder) and not self._gone(spec):
            self._renewed_s = None
            raise FaultError(
                Fault(
                    WHERE,
                    FaultReason.REFUSED,
                    f"kubernetes: the Lease {self._name} is held by '{other}', we are "
                    f"'{self._holder}'; stop one of the two controllers",
                )
            )
        self._api.put(self._path, self._taken(lease))
        self._renewed_s = began_s

    def require(self) -> None:
        """Nothing may be written after this raises.

        Raises:
            FaultError: as `renew`.
        """
        if not self._younger_than(FENCE_SHARE):
            self.renew()

    def release(self) -> None:
        """Let the next one in at once; for the orderly end.

        Raises:
            FaultError: the server did not answer; the Lease then runs out by itself.
        """
        if self._renewed_s is None:
            return
        self._renewed_s = None
        lease = self._api.get(self._path)
        spec = lease.get("spec") or {}
        if spec.get("holderIdentity") == self._holder:
            self._api.put(self._path, {**lease, "spec": {**spec, "holderIdentity": ""}})

    def _younger_than(self, share: float) -> bool:
        renewed_s = self._renewed_s
        return renewed_s is not None and (self._monotonic() - renewed_s < share * self._duration_s)

    def _gone(self, spec: Mapping[str, Any]) -> bool:
        """Whether another holder has let its Lease run out, as far as we have watched it."""
        now_s = self._monotonic()
        state = (spec.get("holderIdentity"), spec.get("renewTime"))
        if state != self._seen:
            self._seen, self._seen_since_s = state, now_s
        lasts_s = max(float(spec.get("leaseDurationSeconds") or 0), self._duration_s)
        return now_s - self._seen_since_s > lasts_s

    def _taken(self, lease: Mapping[str, Any]) -> dict[str, Any]:
        """The Lease with us as its holder; its resourceVersion makes the write conditional."""
        spec = lease.get("spec") or {}
        now = micro_time(self._clock.now_s())
        spec = {**spec, "renewTime": now, "leaseDurationSeconds": round(self._duration_s)}
        if spec.get("holderIdentity") != self._holder:
            spec["holderIdentity"] = self._holder
            spec["acquireTime"] = now
            spec["leaseTransitions"] = int(spec.get("leaseTransitions") or 0) + 1
        return {**lease, "spec": spec}
