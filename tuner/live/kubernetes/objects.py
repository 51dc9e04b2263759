"""Plain reading of Kubernetes objects as JSON: what a pod is up to, who scales a Deployment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tuner.core.faults import Fault, FaultError, FaultReason
from tuner.core.observation import ReplicaState
from tuner.live.kubernetes.api import WHERE, KubernetesApi, path_of
from tuner.live.kubernetes.rights import AUTOSCALING, KEDA

Json = Mapping[str, Any]


def part(thing: Json, key: str) -> Json:
    """A section of an object; empty where it is absent, null or no section."""
    found = thing.get(key)
    return found if isinstance(found, Mapping) else {}


def items(thing: Json, key: str = "items") -> tuple[Json, ...]:
    """The objects in a list; empty where it is absent or null."""
    found = thing.get(key)
    return tuple(each for each in found or () if isinstance(each, Mapping))


def name_of(thing: Json) -> str:
    return str(part(thing, "metadata").get("name", ""))


def replicas_of(scale: Json) -> int:
    """Replicas wanted. The server leaves the number out where it is 0.

    Raises:
        FaultError: BAD_ANSWER where something else stands there.
    """
    found = part(scale, "spec").get("replicas", 0)
    if found is None:
        return 0
    if isinstance(found, bool) or not isinstance(found, int) or found < 0:
        sentence = (
            f"kubernetes: the scale of {name_of(scale)} says {found!r} replicas; expected a whole "
            "number; does a proxy answer in the server's place?"
        )
        raise FaultError(Fault(WHERE, FaultReason.BAD_ANSWER, sentence))
    return found


def version_of(thing: Json) -> str | None:
    return part(thing, "metadata").get("resourceVersion") or None


def state_of(pod: Json, *, warms_up: bool) -> ReplicaState:
    """Where a pod stands in a replica's life.

    Args:
        warms_up: a pod that runs and is not ready may be warming; without it, it is starting.
    """
    status = part(pod, "status")
    conditions = {each.get("type"): each.get("status") for each in items(status, "conditions")}
    containers = items(status, "containerStatuses")
    if part(pod, "metadata").get("deletionTimestamp"):
        return ReplicaState.DRAINING
    if conditions.get("Ready") == "True":
        return ReplicaState.READY
    if not part(pod, "spec").get("nodeName"):
        return ReplicaState.PENDING
    running = bool(containers) and all("running" in part(each, "state") for each in containers)
    return ReplicaState.WARMING if running and warms_up else ReplicaState.STARTING


def autoscalers(api: KubernetesApi, namespace: str | None) -> tuple[Json, ...]:
    """Every HPA of a namespace, or of all.

    Raises:
        FaultError: the server gave no list.
    """
    path = path_of(namespace, "horizontalpodautoscalers", group=AUTOSCALING, version="v2")
    return items(api.get(path))


def scaled_objects(api: KubernetesApi, namespace: str | None) -> tuple[Json, ...]:
    """Every ScaledObject; none where the cluster does not know the kind.

    Raises:
        FaultError: the server gave no list.
    """
    path = path_of(namespace, "scaledobjects", group=KEDA, version="v1alpha1")
    try:
        return items(api.get(path))
    except FaultError as error:
        if error.fault.reason is FaultReason.NOT_FOUND:
            return ()
        raise


def targets(autoscaler: Json, deployment: str) -> bool:
    """Whether an HPA or ScaledObject scales this Deployment; KEDA may leave the kind out."""
    target = part(part(autoscaler, "spec"), "scaleTargetRef")
    return target.get("kind", "Deployment") == "Deployment" and target.get("name") == deployment
