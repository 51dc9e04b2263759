"""Which Prometheus server sees a Deployment's engines: found by name, then asked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from tuner.core.faults import FaultError, FaultReason
from tuner.live.kubernetes.api import KubernetesApi, path_of
from tuner.live.kubernetes.objects import Json, items, name_of, part

_BESIDE = ("alertmanager", "node-exporter", "operator", "pushgateway", "adapter", "kube-state")
"""In the names of services that come with Prometheus and are none."""
_NAMELESS = re.compile(r"operated$")
"""A headless twin of another service."""
ASK_S = 3.0
"""Longest wait for one answer, s: a server that serves a controller answers in milliseconds."""


@dataclass(frozen=True)
class Server:
    """A Prometheus server, asked or only heard of."""

    url: str
    origin: str
    """How it was found, in words."""
    version: str | None = None
    """None: it did not answer from here."""
    trouble: str = ""
    """Why not."""
    series: tuple[Mapping[str, str], ...] = ()
    """Labels of the series that were asked for."""


def services_named_prometheus(api: KubernetesApi, namespace: str) -> tuple[Server, ...]:
    """Services that look like Prometheus, in the whole cluster, or where that is not allowed in one
    namespace.

    Raises:
        FaultError: the API server gave no list.
    """
    try:
        listed = items(api.get(path_of(None, "services")))
    except FaultError as error:
        if error.fault.reason is not FaultReason.FORBIDDEN:
            raise
        listed = items(api.get(path_of(namespace, "services")))
    found = [_server(service) for service in listed if _is_prometheus(service)]
    # The one that is not the headless twin first, and the shortest name of those.
    found.sort(key=lambda server: (bool(_NAMELESS.search(server.origin)), len(server.url)))
    return tuple(found)


def asked(server: Server, queries: Sequence[str]) -> Server:
    """The server with its version and the labels of what the queries found; or the trouble."""
    try:
        with httpx.Client(timeout=ASK_S, follow_redirects=False) as client:
            base = server.url.rstrip("/")
            build = _data(client.get(f"{base}/api/v1/status/buildinfo"))
            series: list[Mapping[str, str]] = []
            for query in queries:
                answer = _data(client.get(f"{base}/api/v1/query", params={"query": query}))
                series += [part(each, "metric") for each in items(answer, "result")]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as problem:
        trouble = str(problem) or type(problem).__name__
        return Server(server.url, server.origin, trouble=trouble)
    version = str(build.get("version", "of unknown version"))
    return Server(server.url, server.origin, version=version, series=tuple(series))


def _data(response: httpx.Response) -> Json:
    """The `data` of a good answer.

    Raises:
        ValueError: it is something else.
    """
    answer: Any = response.json() if response.status_code == httpx.codes.OK else None
    if not isinstance(answer, dict) or answer.get("status") != "success":
        raise ValueError(
            f"{response.request.url.path} answered {response.status_code} and no Prometheus data"
        )
    return part(answer, "data")


def _is_prometheus(service: Json) -> bool:
    name = name_of(service)
    label = part(part(service, "metadata"), "labels").get("app.kubernetes.io/name", "")
    if any(word in name for word in _BESIDE):
        return False
    return "prometheus" in name or label == "prometheus"


def _server(service: Json) -> Server:
    metadata = part(service, "metadata")
    ports = items(part(service, "spec"), "ports")
    web = [port for port in ports if str(port.get("name", "")) in ("web", "http", "http-web")]
    port = int(next(iter((*web, *ports)), {}).get("port", 9090))
    name, namespace = name_of(service), metadata.get("namespace", "")
    return Server(f"http://{name}.{namespace}:{port}", f"service {namespace}/{name}")
