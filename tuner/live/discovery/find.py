"""What there is to steer: Deployments that serve a model, their autoscaler, and who measures them.

Reading only. What could not be found stands in the findings with the next move; nothing that is
missing stops the search, except that there is nothing at all to go by.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Literal

import httpx

from tuner.core.errors import ConfigError
from tuner.core.faults import FaultError, FaultReason
from tuner.live.discovery.autoscaler import (
    Autoscaler,
    autoscaler_of_hpa,
    autoscaler_of_scaled_object,
)
from tuner.live.discovery.prometheus_search import ASK_S, Server, asked, services_named_prometheus
from tuner.live.discovery.serving import SIGNS, Serving, engine_of_page, serving_of
from tuner.live.kubernetes.api import KubernetesApi, path_of
from tuner.live.kubernetes.objects import (
    Json,
    autoscalers,
    items,
    name_of,
    part,
    scaled_objects,
    targets,
)

WARMUP_MOUNT = "/etc/tuner-warmup"
"""Where the in-pod warm-up script finds its ConfigMap (deploy/warmup)."""
CONTROL_PORTS = ("control", "tuner-control", "runtime-config")
"""Names of a container port that answers run-time configuration."""
DCGM = "DCGM_FI_DEV_GPU_UTIL"
_NAMESPACE_LABELS = ("namespace", "exported_namespace", "kubernetes_namespace")
_REPLICA_LABELS = ("pod", "exported_pod", "pod_name", "kubernetes_pod_name")
"""Labels under which scrape configurations keep the pod, most usual first."""

Kind = Literal["found", "assumed", "missing"]
Choose = Callable[[Sequence[Serving]], Serving]
"""Which of several; raises ConfigError where nobody can be asked."""


@dataclass(frozen=True)
class Finding:
    """One thing that was found, assumed or not found."""

    kind: Kind
    about: str
    sentence: str
    """With the next move where it is missing."""


@dataclass(frozen=True)
class Wishes:
    """What the user said; None: find it."""

    namespace: str | None = None
    deployment: str | None = None
    prometheus: str | None = None
    engine: str | None = None
    context: str | None = None


@dataclass(frozen=True)
class Discovery:
    """Everything that a tuner.yaml needs."""

    serving: Serving
    autoscaler: Autoscaler | None = None
    prometheus: str | None = None
    """Base address; None: the engines' own pages are read."""
    selector: Mapping[str, str] = field(default_factory=dict)
    replica_label: str = "pod"
    dcgm: Mapping[str, str] | None = None
    """Labels of the target's GPU series; None: there are none."""
    control_port: int | None = None
    warmup_configmap: str | None = None
    context: str | None = None
    findings: tuple[Finding, ...] = ()


def discover(wishes: Wishes, *, choose: Choose, timeout_s: float = 5.0) -> Discovery:
    """Look around, as far as there is a cluster; what the user said always counts.

    Raises:
        ConfigError: neither a cluster nor a Deployment's name; several Deployments and nobody to
            choose; or a name that is not there.
    """
    _check(wishes)
    findings: list[Finding] = []
    try:
        with closing(KubernetesApi(context=wishes.context, timeout_s=timeout_s)) as api:
            found = _in_cluster(api, wishes, choose, findings)
    except (FaultError, ConfigError) as error:
        # With a name given and no cluster to ask, the flags are all there is.
        no_cluster = isinstance(error, FaultError) or "no connection" in str(error)
        if not no_cluster or wishes.deployment is None:
            raise _nothing_to_go_by(error) if no_cluster else error from error
        findings.append(Finding("missing", "cluster", f"{error}; went by the flags alone"))
        found = Discovery(_by_flags(wishes))
    found = _measured(replace(found, context=wishes.context), wishes, findings)
    found = _with_engine(found, wishes, findings)
    return replace(found, findings=tuple(findings))


def _check(wishes: Wishes) -> None:
    if wishes.engine is not None and wishes.engine not in SIGNS:
        raise ConfigError(f"--engine is '{wishes.engine}'; expected one of {', '.join(SIGNS)}")
    # A password in the address would end up in the file, in logs and in the audit.
    if wishes.prometheus is not None and not re.match(r"https?://[^/\s@]+(/|$)", wishes.prometheus):
        raise ConfigError(
            "--prometheus is no address without a password in it; expected one such as "
            "http://prometheus.monitoring:9090 (a token goes into prometheus.token_file)"
        )


def _nothing_to_go_by(error: Exception) -> ConfigError:
    return ConfigError(
        f"{error}\nno cluster to look at and no Deployment named; set KUBECONFIG, or give "
        "--namespace, --deployment and --engine"
    )


def _by_flags(wishes: Wishes) -> Serving:
    engine = wishes.engine
    return Serving(
        namespace=wishes.namespace or "default",
        deployment=wishes.deployment or "",
        engine=engine,
        model="",
        port=SIGNS[engine].port if engine else None,
        metrics_port=SIGNS[engine].metrics_port if engine else None,
        gpus=0,
        ceiling=None,
        replicas=0,
        evidence=("named on the command line",),
    )


def _in_cluster(
    api: KubernetesApi, wishes: Wishes, choose: Choose, findings: list[Finding]
) -> Discovery:
    deployments = _deployments(api, wishes)
    candidates = [each for each in map(serving_of, deployments) if each is not None]
    if wishes.deployment is not None:
        serving = _named(wishes, deployments, candidates)
    elif not candidates:
        place = f"namespace {wishes.namespace}" if wishes.namespace else "the cluster"
        raise ConfigError(
            f"kubernetes: none of the {len(deployments)} Deployments in {place} looks like LLM "
            f"serving ({', '.join(SIGNS)}, or GPUs); name it with --namespace and --deployment"
        )
    else:
        serving = candidates[0] if len(candidates) == 1 else choose(candidates)
    findings.append(
        Finding("found", "deployment", f"{serving.place}: {', '.join(serving.evidence)}")
    )
    (manifest,) = (
        each
        for each in deployments
        if (_namespace(each), name_of(each)) == (serving.namespace, serving.deployment)
    )
    found = Discovery(
        serving=serving,
        autoscaler=_autoscaler(api, serving, findings),
        control_port=_control_port(manifest),
        warmup_configmap=_warmup_configmap(manifest),
    )
    return _prometheus_nearby(api, wishes, _engine_seen(api, manifest, found, findings), findings)


def _deployments(api: KubernetesApi, wishes: Wishes) -> tuple[Json, ...]:
    """Of the namespace asked for, else of the cluster.

    Raises:
        FaultError, ConfigError: they cannot be listed.
    """
    path = path_of(wishes.namespace, "deployments", group="apps")
    try:
        return items(api.get(path))
    except FaultError as error:
        if wishes.namespace is None and error.fault.reason is FaultReason.FORBIDDEN:
            raise ConfigError(
                f"{error}\nyou may not list the Deployments of the whole cluster; name yours with "
                "--namespace"
            ) from error
        raise


def _named(wishes: Wishes, deployments: Sequence[Json], candidates: Sequence[Serving]) -> Serving:
    named = [each for each in deployments if name_of(each) == wishes.deployment]
    if not named:
        known = ", ".join(each.place for each in candidates) or "none"
        raise ConfigError(
            f"kubernetes: no Deployment '{wishes.deployment}' in "
            f"{wishes.namespace or 'the cluster'}; those that look like LLM serving: {known}"
        )
    if len(named) > 1:
        places = ", ".join(_namespace(each) for each in named)
        raise ConfigError(
            f"kubernetes: Deployment '{wishes.deployment}' is in several namespaces ({places}); "
            "name one with --namespace"
        )
    found = serving_of(named[0])
    if found is not None:
        return found
    return replace(_by_flags(wishes), namespace=_namespace(named[0]))


def _autoscaler(api: KubernetesApi, serving: Serving, findings: list[Finding]) -> Autoscaler | None:
    try:
        scaled = [
            autoscaler_of_scaled_object(each)
            for each in scaled_objects(api, serving.namespace)
            if targets(each, serving.deployment)
        ]
        hpas = [
            autoscaler_of_hpa(each)
            for each in autoscalers(api, serving.namespace)
            if targets(each, serving.deployment)
        ]
    except FaultError as error:
        findings.append(Finding("missing", "autoscaler", f"{error}; its range had to be assumed"))
        return None
    # KEDA makes an HPA of its own; the ScaledObject is what its user wrote.
    for autoscaler in (*scaled, *hpas):
        what = f"{autoscaler.kind} '{autoscaler.name}', {autoscaler.low} to {autoscaler.high}"
        rule = f"; {autoscaler.understood}" if autoscaler.understood else ""
        findings.append(Finding("found", "autoscaler", f"{what}{rule}"))
        for sentence in autoscaler.left_out:
            findings.append(Finding("missing", "autoscaler", f"{autoscaler.name}: {sentence}"))
        findings.append(
            Finding(
                "missing",
                "active mode",
                f"refused as long as {autoscaler.kind} '{autoscaler.name}' is there; shadow is not",
            )
        )
        return autoscaler
    findings.append(Finding("found", "autoscaler", "none: nothing else sets its replicas"))
    return None


def _engine_seen(
    api: KubernetesApi, manifest: Json, found: Discovery, findings: list[Finding]
) -> Discovery:
    """The engine by its own metrics page, where a pod can be reached from here."""
    serving = found.serving
    labels = part(part(part(manifest, "spec"), "selector"), "matchLabels")
    selector = ",".join(f"{key}={value}" for key, value in labels.items())
    if serving.port is None or not selector:
        return found
    try:
        pods = items(api.get(path_of(serving.namespace, "pods"), labelSelector=selector))
    except FaultError as error:
        findings.append(Finding("missing", "pods", str(error)))
        return found
    address = next((part(pod, "status").get("podIP") for pod in pods), None)
    if not address:
        findings.append(Finding("missing", "pods", f"{serving.place} has no pod with an address"))
        return found
    host = f"[{address}]" if ":" in str(address) else address
    url = f"http://{host}:{serving.metrics_port or serving.port}/metrics"
    kind = _page(url)
    if kind is None:
        findings.append(
            Finding(
                "missing",
                "metrics page",
                f"{url} gave no page of a known engine from here; inside the cluster it may",
            )
        )
        return found
    findings.append(Finding("found", "metrics page", f"{url} is {kind}'s"))
    return replace(found, serving=replace(serving, engine=kind))


def _page(url: str) -> str | None:
    try:
        response = httpx.get(url, timeout=ASK_S, trust_env=False)
    except (httpx.HTTPError, httpx.InvalidURL):
        return None
    return engine_of_page(response.text) if response.status_code == httpx.codes.OK else None


def _prometheus_nearby(
    api: KubernetesApi, wishes: Wishes, found: Discovery, findings: list[Finding]
) -> Discovery:
    """The first service that looks like Prometheus, if none was named."""
    if wishes.prometheus is not None:
        return found
    try:
        servers = services_named_prometheus(api, found.serving.namespace)
    except FaultError as error:
        findings.append(Finding("missing", "prometheus", f"{error}; name it with --prometheus"))
        return found
    if not servers:
        return found
    for other in servers[1:]:
        findings.append(
            Finding("missing", "prometheus", f"{other.origin} looks like one too and was not used")
        )
    findings.append(Finding("found", "prometheus", f"{servers[0].origin}, {servers[0].url}"))
    return replace(found, prometheus=servers[0].url)


def _measured(found: Discovery, wishes: Wishes, findings: list[Finding]) -> Discovery:
    """What Prometheus knows of this Deployment; without one, the engines' pages are read."""
    url = wishes.prometheus or found.prometheus
    if url is None:
        findings.append(
            Finding(
                "missing",
                "prometheus",
                "none found, so the engines' own pages are read (`scrape`); name one with "
                "--prometheus",
            )
        )
        return found
    serving = found.serving
    # Series of every known engine, so that a wrong guess at the engine shows.
    pods = f'{{__name__=~"{"|".join(signs.running for signs in SIGNS.values())}"}}'
    server = asked(Server(url, "--prometheus"), [f"group by (__name__, {_BY}) ({pods})"])
    if server.version is None:
        findings.append(
            Finding(
                "missing",
                "prometheus",
                f"{url} did not answer from here ({server.trouble}); `tuner config check --live` "
                "where the controller runs tells whether it does there",
            )
        )
        return replace(found, prometheus=url, selector=_namespace_selector(serving))
    findings.append(Finding("found", "prometheus", f"{url} answers, version {server.version}"))
    return _series(replace(found, prometheus=url), server, findings)


_BY = ", ".join((*_NAMESPACE_LABELS, *_REPLICA_LABELS))


def _series(found: Discovery, server: Server, findings: list[Finding]) -> Discovery:
    """Labels that lead to this Deployment's series, and the engine by the names it has there."""
    serving = found.serving
    mine = [
        (labels, label)
        for labels in server.series
        for label in _REPLICA_LABELS
        if _is_pod_of(labels.get(label, ""), serving.deployment)
    ]
    here = [
        (labels, label) for labels, label in mine if serving.namespace in _namespaces(labels)
    ] or mine
    if not here:
        findings.append(
            Finding(
                "missing",
                "series",
                f"no engine series of a pod of {serving.place} in {server.url}; is the pod "
                "scraped, and do its series have a label `pod`?",
            )
        )
        return replace(found, selector=_namespace_selector(serving))
    labels, replica_label = here[0]
    kinds = {signs.running: kind for kind, signs in SIGNS.items()}
    kind = kinds.get(labels.get("__name__", ""), serving.engine)
    selector = {
        key: labels[key] for key in _NAMESPACE_LABELS if labels.get(key) == serving.namespace
    }
    pods = {each[label] for each, label in here}
    findings.append(
        Finding(
            "found",
            "series",
            f"{labels.get('__name__')} of {len(pods)} pod{'s' if len(pods) > 1 else ''}, by label "
            f"{replica_label}",
        )
    )
    found = replace(
        found,
        serving=replace(serving, engine=kind),
        selector=dict(list(selector.items())[:1]),
        replica_label=replica_label,
    )
    return _cards(found, server, findings)


def _cards(found: Discovery, server: Server, findings: list[Finding]) -> Discovery:
    """GPU series of this Deployment's pods, if the DCGM exporter is scraped."""
    cards = asked(server, [f"group by ({_BY}) ({DCGM})"])
    for labels in cards.series:
        pod_labels = [label for label in _REPLICA_LABELS if labels.get(label)]
        if any(_is_pod_of(labels[label], found.serving.deployment) for label in pod_labels):
            own = {
                key: labels[key]
                for key in _NAMESPACE_LABELS
                if labels.get(key) == found.serving.namespace
            }
            findings.append(Finding("found", "GPU series", f"{DCGM} of its pods"))
            return replace(found, dcgm=own)
    findings.append(
        Finding("missing", "GPU series", f"no {DCGM} of its pods: `gpu_util` stays unmeasured")
    )
    return found


def _with_engine(found: Discovery, wishes: Wishes, findings: list[Finding]) -> Discovery:
    """The engine that the user named, or the one that was found.

    Raises:
        ConfigError: neither.
    """
    serving = found.serving
    engine = wishes.engine or serving.engine
    if engine is None:
        raise ConfigError(
            f"nothing says which engine {serving.place} runs; name it with --engine "
            f"({', '.join(SIGNS)})"
        )
    if wishes.engine and serving.engine and wishes.engine != serving.engine:
        findings.append(
            Finding(
                "assumed",
                "engine",
                f"{wishes.engine}, as you said, though everything found speaks for "
                f"{serving.engine}",
            )
        )
    port = serving.port
    if port is None:
        port = SIGNS[engine].port
        findings.append(Finding("assumed", "port", f"{port}, where {engine} serves by default"))
    if found.control_port is None:
        findings.append(
            Finding(
                "missing",
                "run-time configuration",
                f"no port named {' or '.join(CONTROL_PORTS)}: only replicas can be moved; see "
                "deploy/ for the plugin and the sidecar",
            )
        )
    metrics_port = serving.metrics_port
    if engine != serving.engine:
        metrics_port = SIGNS[engine].metrics_port
    serving = replace(serving, engine=engine, port=port, metrics_port=metrics_port)
    return replace(found, serving=serving)


def _namespace(thing: Json) -> str:
    return str(part(thing, "metadata").get("namespace", ""))


def _namespaces(labels: Mapping[str, str]) -> set[str]:
    return {labels[key] for key in _NAMESPACE_LABELS if key in labels}


def _namespace_selector(serving: Serving) -> dict[str, str]:
    return {"namespace": serving.namespace}


def _is_pod_of(pod: str, deployment: str) -> bool:
    """By its name: DEPLOYMENT-REPLICASET-POD."""
    return bool(re.fullmatch(rf"{re.escape(deployment)}-[a-z0-9]+(-[a-z0-9]+)?", pod))


def _containers(manifest: Json) -> tuple[Json, ...]:
    return items(part(part(part(manifest, "spec"), "template"), "spec"), "containers")


def _control_port(manifest: Json) -> int | None:
    for container in _containers(manifest):
        for port in items(container, "ports"):
            if port.get("name") in CONTROL_PORTS and isinstance(port.get("containerPort"), int):
                return int(port["containerPort"])
    return None


def _warmup_configmap(manifest: Json) -> str | None:
    """The ConfigMap that is mounted where the warm-up script reads."""
    mounts = [
        mount.get("name")
        for container in _containers(manifest)
        for mount in items(container, "volumeMounts")
        if mount.get("mountPath") == WARMUP_MOUNT
    ]
    volumes = items(part(part(part(manifest, "spec"), "template"), "spec"), "volumes")
    names = [
        part(volume, "configMap").get("name") for volume in volumes if volume.get("name") in mounts
    ]
    return str(names[0]) if names and names[0] else None
