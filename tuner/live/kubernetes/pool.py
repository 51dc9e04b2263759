"""A Deployment as a pool of replicas: its pods, its scale, its warm-up ConfigMap.

Replicas are written only through the scale sub-resource, quoting the version that the decision
was made on, and read back. A pod counts as in the Deployment when its selector says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

from tuner.config import KubernetesConfig
from tuner.core.clock import Clock
from tuner.core.errors import ConfigError
from tuner.core.faults import Fault, FaultError, FaultReason
from tuner.engines.engine import Replica
from tuner.live.kubernetes.api import UNANSWERED, WHERE, KubernetesApi, micro_time, path_of, unix_s
from tuner.live.kubernetes.lease import Lease, own_name
from tuner.live.kubernetes.objects import (
    Json,
    autoscalers,
    items,
    name_of,
    part,
    replicas_of,
    scaled_objects,
    state_of,
    targets,
    version_of,
)
from tuner.live.kubernetes.rights import EVENTS, missing, needed, too_many
from tuner.live.pool import Member, PoolState

WARMUP_KEY = "warmup_requests"
"""Key of the warm-up ConfigMap; deploy/warmup/warmup.sh reads it."""
MANAGED = "TargetManagedByHPA"
"""Stable name of the refusal to write beside another autoscaler."""
_LONGEST_NOTE = 1024
"""Bytes that an Event's note may have."""
_ENDED = ("Succeeded", "Failed")
"""Phases of pods that are no replica any more and never will be again."""

_MOST_NAMED = 5
"""Superfluous rights that a sentence lists."""

T = TypeVar("T")

_log = logging.getLogger(__name__)


class KubernetesPool:
    """The replicas of one Deployment.

    Args:
        model: served model, for the replicas' addresses; empty: the first that a replica names.
        demoted: a shadow whose account is still that of active mode: rights to write are told in
            the log and not refused, so that someone goes on watching until the role is taken back.

    Raises:
        ConfigError: there is no usable kubeconfig.
    """

    def __init__(
        self, config: KubernetesConfig, *, clock: Clock, model: str, demoted: bool = False
    ) -> None:
        self._config = config
        self._demoted = demoted
        self._clock = clock
        self._model = model
        self._api = KubernetesApi(context=config.context, timeout_s=config.timeout_s)
        self._place = f"{config.namespace}/{config.deployment}"
        self._scale = path_of(
            config.namespace, "deployments", f"{config.deployment}/scale", group="apps"
        )
        self._lease = self._own_lease()
        self._writes = False

    def check(self, *, writes: bool) -> None:
        """Rights first (a missing one, or in shadow one too many), then the Deployment, then
        whoever else writes its replicas: refused when we are to write, told in the log in shadow.

        Who may write holds the Lease from the next look on; a shadow never touches it, so that it
        can watch beside an active controller.
        """
        self._check_rights(writes=writes)
        self._check_deployment()
        other = self._other_writer()
        if other is not None and writes:
            raise ConfigError(other)
        if other is not None:
            _log.warning("%s (shadow goes on: it writes nothing)", other)
        self._writes = writes

    def look(self) -> PoolState:
        """One read of the scale, and one list of the pods that its selector names."""
        scale = self._api.get(self._scale)
        selector = str(part(scale, "status").get("selector") or "")
        if not selector:
            raise _trouble(
                FaultReason.BAD_ANSWER,
                f"kubernetes: the scale of {self._place} names no selector; is it a Deployment?",
            )
        pods = self._api.get(path_of(self._config.namespace, "pods"), labelSelector=selector)
        # Last, so that a server that is away costs one time-out and not two.
        self._keep_lease()
        return PoolState(
            wanted=replicas_of(scale),
            members=tuple(self._members(pods)),
            version=version_of(scale),
        )

    def scale(self, replicas: int, seen: PoolState) -> int:
        """Patch the scale under the version of `seen`, and read back.

        A version that only the Deployment's own status moved is no conflict: where the replicas
        are still what `seen` says, the decision's ground holds, and the patch is sent once more
        with the new version.
        """
        with _about("replicas"):
            if replicas < 1:
                raise _trouble(
                    FaultReason.INVALID,
                    f"kubernetes: {replicas} replicas wanted for {self._place}; expected 1 or "
                    "more (an HPA that meets 0 turns itself off for good)",
                )
            if seen.version is None:
                raise _trouble(
                    FaultReason.INVALID,
                    f"kubernetes: {replicas} replicas wanted for {self._place} without the version "
                    "that was seen; look first",
                )
            self._refuse_other_writers()
            self.require()
            if not self._patched(replicas, seen.version):
                now = self._api.get(self._scale)
                version = version_of(now)
                unmoved = version is not None and replicas_of(now) == seen.wanted
                if not (unmoved and self._patched(replicas, version)):
                    raise self._moved(replicas, now, seen)
            return self._read_back(replicas)

    def set_warmup(self, requests: int) -> None:
        """Patch the ConfigMap, and read back. Pods that run already keep what they had."""
        with _about(WARMUP_KEY):
            path = self._warmup_path()
            if path is None:
                raise _trouble(
                    FaultReason.NOT_MOVABLE,
                    f"kubernetes: no ConfigMap holds the warm-up of {self._place}; name one as "
                    "kubernetes.warmup_configmap",
                )
            self.require()
            lost = ""
            try:
                # Text, because a ConfigMap holds nothing else: a number is answered with 422.
                self._api.patch(path, {"data": {WARMUP_KEY: str(requests)}})
            except FaultError as error:
                if error.fault.reason not in UNANSWERED:
                    raise
                lost = error.fault.sentence
            found = self._settle(self.warmup, lost)
            if found != requests:
                raise _trouble(
                    FaultReason.OUTCOME_UNKNOWN if lost else FaultReason.CONFLICT,
                    f"kubernetes: {requests} warm-up requests were set for {self._place} and "
                    f"{found} are there; {lost or 'somebody else sets them too'}",
                )

    def warmup(self) -> int | None:
        """What the ConfigMap says; a pod that starts now reads the same."""
        path = self._warmup_path()
        if path is None:
            return None
        text = str(part(self._api.get(path), "data").get(WARMUP_KEY, "0"))
        if not (text.isascii() and text.isdigit()):
            raise _trouble(
                FaultReason.BAD_ANSWER,
                f"kubernetes: ConfigMap {self._config.warmup_configmap}: {WARMUP_KEY} is "
                f"'{text}'; expected a whole number",
            )
        return int(text)

    def require(self) -> None:
        """Nothing may be written to the Deployment or its pods after this raises.

        Raises:
            FaultError: another controller holds the Lease, or may by now.
        """
        if self._lease is not None:
            self._lease.require()

    def note(self, decision_id: str, text: str) -> None:
        """An Event on the Deployment, for `kubectl describe`; that it fails hurts nobody."""
        config = self._config
        event = {
            "apiVersion": f"{EVENTS}/v1",
            "kind": "Event",
            "metadata": {"generateName": f"{config.deployment}-", "namespace": config.namespace},
            "eventTime": micro_time(self._clock.now_s()),
            "reportingController": "tuner",
            "reportingInstance": own_name(),
            "action": "Decide",
            "reason": "Decision",
            "type": "Normal",
            "regarding": {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "namespace": config.namespace,
                "name": config.deployment,
            },
            "note": _note(text, f" (decision {decision_id})"),
        }
        try:
            self._api.post(path_of(config.namespace, "events", group=EVENTS), event)
        except FaultError as error:
            _log.info("no Event for decision %s: %s", decision_id, error)

    def close(self) -> None:
        """Let go of the Lease and of the connection; the replicas stay as they are."""
        try:
            if self._lease is not None:
                self._lease.release()
        except FaultError as error:
            _log.info("the Lease runs out by itself: %s", error)
        finally:
            self._api.close()

    def _own_lease(self) -> Lease | None:
        config = self._config
        if config.lease is None:
            return None
        return Lease(
            self._api,
            config.namespace,
            config.lease,
            duration_s=config.lease_s,
            holder=own_name(),
            clock=self._clock,
        )

    def _keep_lease(self) -> None:
        """Renew; whoever cannot goes on looking, and is stopped where a write would begin."""
        try:
            if self._lease is not None and self._writes:
                self._lease.renew()
        except FaultError as error:
            _log.warning("%s", error)

    def _check_rights(self, *, writes: bool) -> None:
        mode = "active" if writes else "shadow"
        lacking = missing(self._api, self._config, needed(self._config, writes=writes))
        if lacking:
            raise ConfigError(
                f"kubernetes: {mode} mode needs rights that this account does not have in "
                f"namespace {self._config.namespace}: {'; '.join(map(str, lacking))}; apply the "
                f"role in deploy/manifests/{mode}"
            )
        if writes:
            return
        beyond = too_many(self._api, self._config)
        if not beyond:
            return
        sentence = (
            f"kubernetes: shadow must not be able to write, and this account may: "
            f"{_shortened(beyond)}; use the account of deploy/manifests/shadow, and bind no "
            "other role to it"
        )
        if not self._demoted:
            raise ConfigError(sentence)
        _log.warning("%s (demoted while it ran: it goes on watching and writes nothing)", sentence)

    def _check_deployment(self) -> None:
        try:
            self._api.get(self._scale)
        except FaultError as error:
            if error.fault.reason is not FaultReason.NOT_FOUND:
                raise
            raise ConfigError(
                f"kubernetes: namespace {self._config.namespace} has no Deployment "
                f"'{self._config.deployment}'; correct kubernetes.deployment "
                "(`tuner init` lists those that serve a model)"
            ) from error

    def _refuse_other_writers(self) -> None:
        other = self._other_writer()
        if other is not None:
            raise _trouble(FaultReason.REFUSED, other)

    def _other_writer(self) -> str | None:
        """The sentence about an HPA or a ScaledObject on our Deployment; None: there is none."""
        config = self._config
        found = [
            f"{kind} '{name_of(each)}'"
            for kind, listed in (("HPA", autoscalers), ("ScaledObject", scaled_objects))
            for each in listed(self._api, config.namespace)
            if targets(each, config.deployment)
        ]
        if not found:
            return None
        return (
            f"kubernetes: {MANAGED}: {' and '.join(found)} in namespace {config.namespace} sets "
            f"the replicas of Deployment '{config.deployment}', and two writers would fight; "
            "delete it before active mode (its rule lives on as `fallback`), or stay in shadow"
        )

    def _members(self, pods: Json) -> Iterator[Member]:
        now_s = self._clock.now_s()
        for pod in items(pods):
            if part(pod, "status").get("phase") not in _ENDED:
                yield self._member(pod, now_s)

    def _member(self, pod: Json, now_s: float) -> Member:
        try:
            created_s = unix_s(part(pod, "metadata")["creationTimestamp"])
        except (KeyError, ValueError) as problem:
            raise _trouble(
                FaultReason.BAD_ANSWER,
                f"kubernetes: pod '{name_of(pod)}' has no creation time; expected one",
            ) from problem
        return Member(
            name=name_of(pod),
            state=state_of(pod, warms_up=self._config.warmup_configmap is not None),
            # A node's clock may be ahead of ours.
            age_s=max(0.0, now_s - created_s),
            replica=self._replica(pod),
        )

    def _replica(self, pod: Json) -> Replica | None:
        address = part(pod, "status").get("podIP")
        if not address:
            return None
        host = f"[{address}]" if ":" in address else address

        def url(port: int | None) -> str:
            return "" if port is None else f"http://{host}:{port}"

        return Replica(
            name=name_of(pod),
            serving_url=url(self._config.serving_port),
            control_url=url(self._config.control_port),
            model=self._model,
            metrics_url=url(self._config.metrics_port),
        )

    def _patched(self, replicas: int, version: str | None) -> bool:
        """Whether the patch was taken; False: the version is not the newest any more.

        A lost answer is settled by reading: the number wanted is there, or our patch can never
        count any more because the version has moved on, or nobody knows.
        """
        body = {"metadata": {"resourceVersion": version}, "spec": {"replicas": replicas}}
        try:
            self._api.patch(self._scale, body)
        except FaultError as error:
            if error.fault.reason is FaultReason.CONFLICT:
                return False
            if error.fault.reason not in UNANSWERED:
                raise
            lost = error.fault.sentence
            now = self._settle(lambda: self._api.get(self._scale), lost)
            if replicas_of(now) == replicas:
                return True
            if version_of(now) != version:
                return False
            raise _trouble(FaultReason.OUTCOME_UNKNOWN, f"{lost}; not in force so far") from error
        return True

    def _read_back(self, replicas: int) -> int:
        sentence = f"kubernetes: {replicas} replicas were accepted for {self._place}"
        return replicas_of(self._settle(lambda: self._api.get(self._scale), sentence))

    @staticmethod
    def _settle(read: Callable[[], T], sentence: str) -> T:
        """Read after a write.

        Raises:
            FaultError: OUTCOME_UNKNOWN where even that gets no answer.
        """
        try:
            return read()
        except FaultError as error:
            raise _trouble(
                FaultReason.OUTCOME_UNKNOWN, f"{sentence}; reading back failed too: {error}"
            ) from error

    def _moved(self, replicas: int, now: Json, seen: PoolState) -> FaultError:
        return _trouble(
            FaultReason.CONFLICT,
            f"kubernetes: {replicas} replicas not set for {self._place}: somebody else wrote in "
            f"between ({seen.wanted} replicas stood there, {replicas_of(now)} do now); the next "
            "tick decides anew",
        )

    def _warmup_path(self) -> str | None:
        name = self._config.warmup_configmap
        return None if name is None else path_of(self._config.namespace, "configmaps", name)


@contextmanager
def _about(knob: str) -> Iterator[None]:
    """Every fault in the block is about this knob."""
    try:
        yield
    except FaultError as error:
        about = replace(error.fault, knob=knob)
        raise FaultError(about, retry_after_s=error.retry_after_s) from error


def _trouble(reason: FaultReason, sentence: str) -> FaultError:
    return FaultError(Fault(WHERE, reason, sentence))


def _note(text: str, end: str) -> str:
    """As much of the text as fits before its end."""
    room = _LONGEST_NOTE - len(end.encode())
    return text.encode()[:room].decode(errors="ignore") + end


def _shortened(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return "; ".join(names[:_MOST_NAMED]) + more
