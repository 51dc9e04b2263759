"""Every (group, resource with sub-resource) that Kubernetes 1.36 serves and we may name, and the
verbs that make sense there. No validator and no server refuses `deployments/scales` in a Role:
this table does. A new right: a line here, in the code that uses it, and in the Role.
"""

from __future__ import annotations

READ = frozenset({"get", "list", "watch"})
WRITE = frozenset({"create", "update", "patch", "delete"})

KNOWN: dict[tuple[str, str], frozenset[str]] = {
    ("", "configmaps"): READ | WRITE,
    ("", "pods"): READ | WRITE,
    ("apps", "deployments"): READ | WRITE,
    ("apps", "deployments/scale"): frozenset({"get", "update", "patch"}),
    ("autoscaling", "horizontalpodautoscalers"): READ | WRITE,
    ("coordination.k8s.io", "leases"): READ | WRITE,
    ("events.k8s.io", "events"): READ | WRITE,
    ("keda.sh", "scaledobjects"): READ | WRITE,
}
NAMELESS = frozenset({"list", "watch", "create"})
"""Verbs that resourceNames do not limit: a rule with names would never allow them."""
