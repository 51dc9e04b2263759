"""What the controller may do in a cluster, and whether that is what its mode needs.

`needed` is the whole list: the shipped roles in deploy/manifests hold the same, no more and no
less, and a test compares the two with the calls that are really made.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tuner.config import KubernetesConfig
from tuner.live.kubernetes.api import KubernetesApi

AUTOSCALING = "autoscaling"
KEDA = "keda.sh"
LEASES = "coordination.k8s.io"
EVENTS = "events.k8s.io"

READING = frozenset({"get", "list", "watch"})
_REVIEWS = frozenset({"authorization.k8s.io", "authentication.k8s.io"})
"""Groups in which every account may ask who it is and what it may do."""
_FOREIGN_GROUPS = ".openshift.io"
"""Groups in which OpenShift lets every account write its own requests; none runs a workload."""


@dataclass(frozen=True)
class Right:
    """One verb on one resource."""

    verb: str
    group: str
    """Empty: the core group."""
    resource: str
    """With its sub-resource: `deployments/scale`."""
    name: str = ""
    """The only object it is about; empty: the whole namespace (a list cannot be limited)."""

    def __str__(self) -> str:
        group = f".{self.group}" if self.group else ""
        return f"{self.verb} {self.resource}{group}" + (f" '{self.name}'" if self.name else "")


def needed(config: KubernetesConfig, *, writes: bool) -> tuple[Right, ...]:
    """Every right that a pool uses, but for those that every account has (the reviews)."""
    rights = [
        Right("get", "apps", "deployments/scale", config.deployment),
        Right("list", "", "pods"),
        Right("list", AUTOSCALING, "horizontalpodautoscalers"),
        Right("list", KEDA, "scaledobjects"),
    ]
    if writes:
        rights.append(Right("patch", "apps", "deployments/scale", config.deployment))
        # One for each decision that moved something; in shadow nothing moves.
        rights.append(Right("create", EVENTS, "events"))
    if config.warmup_configmap:
        verbs = ("get", "patch") if writes else ("get",)
        rights += [Right(verb, "", "configmaps", config.warmup_configmap) for verb in verbs]
    if config.lease and writes:
        rights += [Right(verb, LEASES, "leases", config.lease) for verb in ("get", "update")]
    return tuple(rights)


def missing(
    api: KubernetesApi, config: KubernetesConfig, rights: Collection[Right]
) -> tuple[Right, ...]:
    """Those that the API server says we do not have; asked one by one, so that every authoriser
    counts.

    Raises:
        FaultError: the server does not answer.
    """
    return tuple(right for right in rights if not _allowed(api, config.namespace, right))


def too_many(api: KubernetesApi, config: KubernetesConfig) -> tuple[str, ...]:
    """Rights to write that shadow does not need, as the API server lists them.

    Raises:
        FaultError: the server does not answer.
    """
    review = api.post(
        "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews",
        {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectRulesReview",
            "spec": {"namespace": config.namespace},
        },
    )
    rules = (review.get("status") or {}).get("resourceRules") or []
    return tuple(dict.fromkeys(found for rule in rules for found in _writes(rule, config.lease)))


def _allowed(api: KubernetesApi, namespace: str, right: Right) -> bool:
    resource, _, subresource = right.resource.partition("/")
    review = api.post(
        "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
        {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {
                "resourceAttributes": {
                    "namespace": namespace,
                    "verb": right.verb,
                    "group": right.group,
                    "resource": resource,
                    "subresource": subresource,
                    "name": right.name,
                }
            },
        },
    )
    return bool((review.get("status") or {}).get("allowed"))


def _writes(rule: Mapping[str, Any], lease: str | None) -> Iterator[str]:
    """What a rule lets us change, beyond our own Lease and Events."""
    names = rule.get("resourceNames") or []
    verbs = [verb for verb in rule.get("verbs") or [] if verb not in READING]
    for group in rule.get("apiGroups") or []:
        if group in _REVIEWS or group.endswith(_FOREIGN_GROUPS):
            continue
        for resource in rule.get("resources") or []:
            own_lease = (group, resource) == (LEASES, "leases") and lease and names == [lease]
            own_events = group in ("", EVENTS) and resource == "events"
            for verb in verbs:
                if own_lease and verb in ("update", "patch"):
                    continue
                if own_events and verb in ("create", "patch"):
                    continue
                yield str(Right(verb, group, resource, ", ".join(names)))
