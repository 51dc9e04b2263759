"""Objects for the fake cluster: a small LLM fleet and what may stand around it."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

NAMESPACE = "llm"
LABELS = {"app": "r1"}


def deployment(
    name: str = "r1",
    *,
    replicas: int = 2,
    labels: dict[str, str] = LABELS,
    image: str = "vllm/vllm-openai:v0.33.0",
    args: tuple[str, ...] = ("--model", "deepseek-ai/DeepSeek-R1", "--max-num-seqs", "256"),
    gpus: int = 8,
    port: int = 8000,
    namespace: str = NAMESPACE,
) -> Json:
    container: Json = {
        "name": "engine",
        "image": image,
        "args": list(args),
        "ports": [{"name": "http", "containerPort": port}],
        "resources": {"limits": {"nvidia.com/gpu": str(gpus)}} if gpus else {},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace, "labels": dict(labels)},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": dict(labels)},
            "template": {
                "metadata": {"labels": dict(labels)},
                "spec": {"containers": [container]},
            },
        },
    }


def pod(
    name: str,
    *,
    labels: dict[str, str] = LABELS,
    ip: str | None = "10.0.0.7",
    ready: bool = True,
    running: bool = True,
    node: str | None = "gpu-1",
    leaving: bool = False,
    phase: str = "Running",
    created: str = "2026-11-20T10:00:00Z",
) -> Json:
    metadata: Json = {
        "name": name,
        "namespace": NAMESPACE,
        "labels": dict(labels),
        "creationTimestamp": created,
    }
    if leaving:
        metadata["deletionTimestamp"] = "2026-11-20T11:00:00Z"
    state: Json = {"running": {}} if running else {"waiting": {"reason": "ContainerCreating"}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"nodeName": node} if node else {},
        "status": {
            "phase": phase,
            **({"podIP": ip} if ip else {}),
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
            "containerStatuses": [{"name": "engine", "ready": ready, "state": state}],
        },
    }


def hpa(
    name: str = "r1-hpa",
    *,
    target: str = "r1",
    low: int = 2,
    high: int = 12,
    metrics: tuple[Json, ...] = (),
    behavior: Json | None = None,
) -> Json:
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": target},
            "minReplicas": low,
            "maxReplicas": high,
            "metrics": list(metrics),
            **({"behavior": behavior} if behavior else {}),
        },
    }


def scaled_object(name: str = "r1-scaled", *, target: str = "r1") -> Json:
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"scaleTargetRef": {"name": target}, "triggers": []},
    }


def config_map(name: str = "tuner-warmup", data: dict[str, str] | None = None) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "data": {"warmup_requests": "16"} if data is None else data,
    }


def lease(name: str = "tuner") -> Json:
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {},
    }


def service(
    name: str,
    port: int,
    *,
    namespace: str = "monitoring",
    labels: dict[str, str] | None = None,
    address: str = "None",
) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace, "labels": labels or {}},
        "spec": {"clusterIP": address, "ports": [{"name": "web", "port": port}]},
    }


def fleet() -> list[Json]:
    """A Deployment with two ready pods, its warm-up ConfigMap and the controller's Lease."""
    return [
        deployment(),
        pod("r1-a", ip="10.0.0.1"),
        pod("r1-b", ip="10.0.0.2"),
        pod("other", labels={"app": "other"}),
        config_map(),
        lease(),
    ]
