"""A stateful Kubernetes API server for tests: real sockets, versions, roles, and trouble on demand.

It keeps objects as JSON, gives each write a new resourceVersion, refuses stale ones on PUT and on
PATCH, projects the scale of a Deployment, and asks the given rules before anything else. Behaviour
is that of kube-apiserver 1.36.2 for the calls listed in SERVED and the two reviews.
"""

from __future__ import annotations

import copy
import json
import re
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

Json = dict[str, Any]

TOKEN = "token-of-the-tests"
SERVED: Mapping[tuple[str, str], tuple[str, str]] = {
    ("", "configmaps"): ("v1", "ConfigMap"),
    ("", "namespaces"): ("v1", "Namespace"),
    ("", "pods"): ("v1", "Pod"),
    ("", "services"): ("v1", "Service"),
    ("apps", "deployments"): ("v1", "Deployment"),
    ("autoscaling", "horizontalpodautoscalers"): ("v2", "HorizontalPodAutoscaler"),
    ("coordination.k8s.io", "leases"): ("v1", "Lease"),
    ("events.k8s.io", "events"): ("v1", "Event"),
    ("keda.sh", "scaledobjects"): ("v1alpha1", "ScaledObject"),
}
"""(group, resource) -> (version, kind)."""
REVIEWS = ("selfsubjectaccessreviews", "selfsubjectrulesreviews")
DEFAULT_RULES: tuple[Json, ...] = (
    {
        "verbs": ["create"],
        "apiGroups": ["authorization.k8s.io"],
        "resources": list(REVIEWS),
    },
)
"""What every account may do."""
STATUS_REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    409: "Conflict",
    415: "UnsupportedMediaType",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
}
TRICKLE_S = 0.05
"""Between two bytes of an answer that trickles: no time-out of a socket sees it."""
HANG_S = 30.0
"""Longest hang; closing the server ends it at once."""

_PATH = re.compile(
    r"^(?:/api/(?P<core>[^/]+)|/apis/(?P<group>[^/]+)/(?P<version>[^/]+))"
    r"(?:/namespaces/(?P<namespace>[^/]+)(?=/))?/(?P<resource>[^/]+)"
    r"(?:/(?P<name>[^/]+))?(?:/(?P<subresource>[^/]+))?$"
)


@dataclass(frozen=True)
class Call:
    """One request as the server saw it."""

    verb: str
    group: str
    resource: str
    """With its sub-resource: `deployments/scale`."""
    name: str
    namespace: str
    status: int
    manager: str = ""
    query: Mapping[str, str] = field(default_factory=dict)
    body: Any = None


@dataclass
class Trouble:
    """What goes wrong with the next `times` requests of this verb on this resource."""

    kind: Literal["status", "hang", "trickle", "garbage", "drop", "drop_after", "hang_after"]
    status: int = 500
    verb: str = "*"
    resource: str = "*"
    times: int = 1
    retry_after_s: int | None = None
    message: str = "made up by the test"


class Refused(Exception):  # noqa: N818 - an answer, not an error of the server
    """An answer that is a Status."""

    def __init__(self, status: int, message: str, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_after_s = retry_after_s


class FakeApi:
    """The server; a context manager.

    Args:
        rules: `rules` of a Role; None may do everything.
        objects: what is in the cluster, as manifests.
        keda: whether the cluster knows ScaledObjects.
    """

    def __init__(
        self,
        *,
        rules: Sequence[Json] | None = None,
        objects: Sequence[Json] = (),
        keda: bool = True,
    ) -> None:
        self.rules = None if rules is None else list(rules)
        self.keda = keda
        self.calls: list[Call] = []
        self._troubles: list[Trouble] = []
        self._objects: dict[tuple[str, str, str, str], Json] = {}
        self._version = 100
        self._lock = threading.RLock()
        self._called = threading.Condition(self._lock)
        self._closing = threading.Event()
        for each in objects:
            self.put(each)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def __enter__(self) -> FakeApi:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def kubeconfig(self, folder: Path, *, token: str = TOKEN) -> Path:
        """Writes the file that leads a client here."""
        path = folder / "kubeconfig"
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "fake", "cluster": {"server": self.url}}],
            "users": [{"name": "tester", "user": {"token": token}}],
            "contexts": [
                {
                    "name": "fake",
                    "context": {"cluster": "fake", "user": "tester", "namespace": "llm"},
                }
            ],
            "current-context": "fake",
        }
        path.write_text(yaml.safe_dump(content))
        return path

    def put(self, thing: Json) -> Json:
        """Store an object as if its owner had, with a new version."""
        group, _, _ = str(thing["apiVersion"]).rpartition("/")
        resource = next(
            resource
            for (its_group, resource), (_, kind) in SERVED.items()
            if (its_group, kind) == (group, thing["kind"])
        )
        metadata = thing["metadata"]
        key = (group, resource, metadata.get("namespace", ""), metadata["name"])
        return self.stored(key, copy.deepcopy(thing))

    def find(self, resource: str, name: str, namespace: str = "llm") -> Json:
        """A copy of a stored object."""
        with self._lock:
            group = next(group for group, its_resource in SERVED if its_resource == resource)
            return copy.deepcopy(self._objects[group, resource, namespace, name])

    def every(self, resource: str) -> list[Json]:
        """Copies of the stored objects of a kind."""
        with self._lock:
            found = [each for key, each in self._objects.items() if key[1] == resource]
            return copy.deepcopy(found)

    def remove(self, resource: str, name: str, namespace: str = "llm") -> None:
        with self._lock:
            group = next(group for group, its_resource in SERVED if its_resource == resource)
            del self._objects[group, resource, namespace, name]

    def trouble(self, trouble: Trouble) -> None:
        """Ask for trouble; the oldest that matches a request comes first."""
        with self._lock:
            self._troubles.append(trouble)

    def wait_for_call(self, verb: str, *, within_s: float = 10.0) -> None:
        """Until a request with this verb has come in.

        Raises:
            TimeoutError: none came.
        """
        with self._called:
            if not self._called.wait_for(lambda: bool(self.calls_of(verb)), within_s):
                raise TimeoutError(f"no {verb} within {within_s} s")

    def calls_of(self, *verbs: str) -> list[Call]:
        return [call for call in self.calls if call.verb in verbs]

    def scale_by_hand(self, name: str, replicas: int, namespace: str = "llm") -> None:
        """Somebody else writes."""
        deployment = self.find("deployments", name, namespace)
        deployment["spec"]["replicas"] = replicas
        self.put(deployment)

    # What the request handler needs.

    def stored(self, key: tuple[str, str, str, str], thing: Json) -> Json:
        with self._lock:
            self._version += 1
            metadata = thing.setdefault("metadata", {})
            metadata["resourceVersion"] = str(self._version)
            metadata.setdefault("uid", f"uid-{'-'.join(key[1:])}")
            metadata.setdefault("creationTimestamp", "2026-11-20T10:00:00Z")
            self._objects[key] = thing
            return thing

    def get(self, key: tuple[str, str, str, str]) -> Json:
        with self._lock:
            if key not in self._objects:
                raise Refused(404, f'{key[1]}.{key[0]} "{key[3]}" not found')
            return self._objects[key]

    def listed(self, group: str, resource: str, namespace: str, selector: str) -> list[Json]:
        with self._lock:
            return [
                copy.deepcopy(each)
                for key, each in sorted(self._objects.items())
                if key[:2] == (group, resource)
                and namespace in ("", key[2])
                and _selected(each, selector)
            ]

    def asked_trouble(self, verb: str, resource: str) -> Trouble | None:
        with self._lock:
            for trouble in self._troubles:
                matches = trouble.verb in ("*", verb) and trouble.resource in ("*", resource)
                if matches and trouble.times > 0:
                    trouble.times -= 1
                    return trouble
            return None

    def record(self, call: Call) -> None:
        with self._lock:
            self.calls.append(call)
            self._called.notify_all()

    def all_rules(self) -> list[Json] | None:
        return None if self.rules is None else [*self.rules, *DEFAULT_RULES]

    def hang(self) -> None:
        self._closing.wait(HANG_S)

    def pause(self, seconds: float) -> bool:
        """Wait; whether the server is closing."""
        return self._closing.wait(seconds)

    def locked(self) -> threading.RLock:
        return self._lock

    def new_name(self, prefix: str) -> str:
        with self._lock:
            self._version += 1
            return f"{prefix}{self._version:05x}"


def _selected(thing: Json, selector: str) -> bool:
    """Equality selectors, which is what a Deployment's matchLabels become."""
    labels = thing["metadata"].get("labels", {})
    wanted = [term.split("=", 1) for term in selector.split(",") if term]
    return all(labels.get(key) == value for key, value in wanted)


def allowed(rules: Sequence[Json] | None, verb: str, group: str, resource: str, name: str) -> bool:
    """Role-based access as the server's authoriser does it; a list or create has no name."""
    if rules is None:
        return True
    return any(
        _in(rule.get("verbs"), verb)
        and _in(rule.get("apiGroups"), group)
        and _in(rule.get("resources"), resource)
        and (not rule.get("resourceNames") or name in rule["resourceNames"])
        for rule in rules
    )


def _in(listed: Sequence[str] | None, wanted: str) -> bool:
    return bool(listed) and ("*" in listed or wanted in listed)


def _handler(api: FakeApi) -> type[BaseHTTPRequestHandler]:
    class Handler(_Request):
        fake = api

    return Handler


class _Request(BaseHTTPRequestHandler):
    """One connection; each request is answered from the fake's state."""

    fake: FakeApi
    protocol_version = "HTTP/1.1"
    # One packet per answer: else each waits 40 ms for the client's delayed acknowledgement.
    wbufsize = -1
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def do_PATCH(self) -> None:
        self._serve()

    def _serve(self) -> None:
        url = urlsplit(self.path)
        self.query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        length = int(self.headers.get("Content-Length") or 0)
        raw = self.rfile.read(length)
        parts = _PATH.match(url.path)
        if parts is None:
            self._answer(404, _status(404, f"no route {url.path}"))
            return
        self.group = parts["group"] or ""
        self.version = parts["core"] or parts["version"]
        self.namespace = unquote(parts["namespace"] or "")
        self.plain = parts["resource"]
        self.name = unquote(parts["name"] or "")
        self.sub = parts["subresource"] or ""
        self.resource = f"{self.plain}/{self.sub}" if self.sub else self.plain
        self.verb = {"POST": "create", "PUT": "update", "PATCH": "patch"}.get(
            self.command, "get" if self.name else "list"
        )
        trouble = self.fake.asked_trouble(self.verb, self.resource)
        if trouble is not None and not trouble.kind.endswith("_after"):
            self._spoil(trouble)
            return
        try:
            self.body = json.loads(raw) if raw else None
            status, answer = self._result()
        except Refused as refused:
            self._answer(
                refused.status,
                _status(refused.status, refused.message),
                retry_after_s=refused.retry_after_s,
            )
            return
        if trouble is not None:
            self._record(0)
            if trouble.kind == "hang_after":
                self.fake.hang()
            self.close_connection = True
            return
        self._answer(status, answer)

    def _spoil(self, trouble: Trouble) -> None:
        self.body = None
        if trouble.kind == "garbage":
            self._send(200, b"<html>welcome to the wireless network</html>", "text/html")
        elif trouble.kind == "status":
            message = _status(trouble.status, trouble.message)
            self._answer(trouble.status, message, retry_after_s=trouble.retry_after_s)
        elif trouble.kind == "trickle":
            self._trickle()
        else:
            self._record(0)
            if trouble.kind == "hang":
                self.fake.hang()
            self.close_connection = True

    def _trickle(self) -> None:
        """An answer that never ends and never pauses for long."""
        self._record(200)
        self.send_response(200)
        self.send_header("Content-Length", str(10**6))
        self.end_headers()
        self.close_connection = True
        with suppress(ConnectionError):  # who asked has given up
            while not self.fake.pause(TRICKLE_S):
                self.wfile.write(b" ")
                self.wfile.flush()

    def _result(self) -> tuple[int, Json]:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Refused(401, "Unauthorized")
        if not allowed(self.fake.all_rules(), self.verb, self.group, self.resource, self.name):
            raise Refused(
                403,
                f'{self.resource}.{self.group} "{self.name}" is forbidden: User "tester" cannot '
                f'{self.verb} resource "{self.resource}" in API group "{self.group}" in the '
                f'namespace "{self.namespace}"',
            )
        if self.plain in REVIEWS:
            return 201, self._review()
        self._known()
        with self.fake.locked():
            return self._object()

    def _known(self) -> None:
        known = SERVED.get((self.group, self.plain))
        absent = self.group == "keda.sh" and not self.fake.keda
        if absent or known is None or known[0] != self.version:
            raise Refused(404, "the server could not find the requested resource")

    def _object(self) -> tuple[int, Json]:
        key = (self.group, self.plain, self.namespace, self.name)
        if self.verb == "list":
            return 200, self._list()
        if self.verb == "create":
            return 201, self._created()
        if self.sub == "scale":
            return 200, self._scale(key)
        if self.verb == "get":
            return 200, copy.deepcopy(self.fake.get(key))
        return 200, copy.deepcopy(self._written(key, self.fake.get(key)))

    def _list(self) -> Json:
        version, kind = SERVED[self.group, self.plain]
        found = self.fake.listed(
            self.group, self.plain, self.namespace, self.query.get("labelSelector", "")
        )
        api_version = f"{self.group}/{version}" if self.group else version
        return {"apiVersion": api_version, "kind": f"{kind}List", "items": found}

    def _created(self) -> Json:
        thing = dict(self.body)
        metadata = dict(thing.get("metadata") or {})
        if "name" not in metadata:
            metadata["name"] = self.fake.new_name(metadata.pop("generateName"))
        thing["metadata"] = {**metadata, "namespace": self.namespace}
        if self.plain == "events":
            _check_event(thing)
        key = (self.group, self.plain, self.namespace, metadata["name"])
        return self.fake.stored(key, thing)

    def _scale(self, key: tuple[str, str, str, str]) -> Json:
        deployment = self.fake.get(key)
        if self.verb == "get":
            return _scale_of(deployment)
        wanted = self._patched(_scale_of(deployment))
        replicas = wanted.get("spec", {}).get("replicas", 0)
        if isinstance(replicas, bool) or not isinstance(replicas, int):
            raise Refused(400, f"Scale in version v1: json: cannot unmarshal {replicas!r}")
        if replicas < 0:
            raise Refused(
                422,
                f'Scale.autoscaling "{self.name}" is invalid: spec.replicas: Invalid value: '
                f"{replicas}: must be greater than or equal to 0",
            )
        deployment = copy.deepcopy(deployment)
        deployment["spec"]["replicas"] = replicas
        self._own(deployment)
        return _scale_of(self.fake.stored(key, deployment))

    def _written(self, key: tuple[str, str, str, str], before: Json) -> Json:
        after = self._patched(before)
        if self.plain == "configmaps":
            _check_strings(after)
        if self.plain == "leases":
            _check_lease(after)
        self._own(after)
        return self.fake.stored(key, after)

    def _patched(self, before: Json) -> Json:
        """The object after a PUT or PATCH; a stale version is refused for both."""
        if self.verb == "update":
            after = copy.deepcopy(self.body)
        elif self.headers["Content-Type"] == "application/json-patch+json":
            after = _json_patched(before, self.body)
        elif self.headers["Content-Type"] in (
            "application/merge-patch+json",
            "application/strategic-merge-patch+json",
        ):
            after = _merged(before, self.body)
        else:
            raise Refused(415, f"the body of the request was in an unknown format "
                               f"({self.headers['Content-Type']})")  # fmt: skip
        quoted = after.get("metadata", {}).get("resourceVersion")
        if quoted is not None and quoted != before["metadata"]["resourceVersion"]:
            raise Refused(
                409,
                f'Operation cannot be fulfilled on {self.plain}.{self.group} "{self.name}": the '
                "object has been modified; please apply your changes to the latest version and "
                "try again",
            )
        return after

    def _own(self, thing: Json) -> None:
        """Note who wrote, as managedFields does."""
        entry = {
            "manager": self._manager(),
            "operation": "Update",
            **({"subresource": self.sub} if self.sub else {}),
        }
        fields = thing["metadata"].setdefault("managedFields", [])
        if entry not in fields:
            fields.append(entry)

    def _manager(self) -> str:
        agent = self.headers.get("User-Agent") or "unknown"
        return self.query.get("fieldManager") or agent.split("/")[0]

    def _review(self) -> Json:
        spec = self.body["spec"]
        if self.plain == "selfsubjectrulesreviews":
            rules = self.fake.all_rules()
            everything = [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]
            status: Json = {
                "resourceRules": everything if rules is None else rules,
                "nonResourceRules": [],
                "incomplete": False,
            }
        else:
            asked = spec["resourceAttributes"]
            sub = asked.get("subresource")
            resource = f"{asked['resource']}/{sub}" if sub else asked["resource"]
            status = {
                "allowed": allowed(
                    self.fake.rules, asked["verb"], asked["group"], resource, asked["name"]
                )
            }
        return {**self.body, "status": status}

    def _answer(self, status: int, answer: Json, *, retry_after_s: int | None = None) -> None:
        self._send(status, json.dumps(answer).encode(), retry_after_s=retry_after_s)

    def _send(
        self,
        status: int,
        content: bytes,
        kind: str = "application/json",
        *,
        retry_after_s: int | None = None,
    ) -> None:
        self._record(status)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        if retry_after_s is not None:
            self.send_header("Retry-After", str(retry_after_s))
        self.end_headers()
        self.wfile.write(content)

    def _record(self, status: int) -> None:
        if not hasattr(self, "verb"):
            return
        self.fake.record(
            Call(
                verb=self.verb,
                group=self.group,
                resource=self.resource,
                name=self.name,
                namespace=self.namespace,
                status=status,
                manager=self._manager(),
                query=self.query,
                body=getattr(self, "body", None),
            )
        )


def _status(code: int, message: str) -> Json:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": STATUS_REASONS.get(code, "Unknown"),
        "code": code,
    }


def _scale_of(deployment: Json) -> Json:
    """The scale of a Deployment; the server leaves replicas out where they are 0."""
    metadata = deployment["metadata"]
    replicas = deployment["spec"].get("replicas", 1)
    labels = deployment["spec"]["selector"]["matchLabels"]
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {
            key: metadata[key]
            for key in ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
        },
        "spec": {"replicas": replicas} if replicas else {},
        "status": {
            "replicas": deployment.get("status", {}).get("replicas", 0),
            "selector": ",".join(f"{key}={value}" for key, value in labels.items()),
        },
    }


def _merged(before: Any, patch: Any) -> Any:
    """A JSON merge patch (RFC 7386)."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    after = copy.deepcopy(before) if isinstance(before, dict) else {}
    for key, value in patch.items():
        if value is None:
            after.pop(key, None)
        else:
            after[key] = _merged(after.get(key), value)
    return after


def _json_patched(before: Json, operations: Sequence[Json]) -> Json:
    """A JSON patch (RFC 6902) of `test`, `add` and `replace` on mappings."""
    after = copy.deepcopy(before)
    for operation in operations:
        *way, last = operation["path"].strip("/").split("/")
        place = after
        for step in way:
            place = place.setdefault(step, {})
        if operation["op"] != "test":
            place[last] = operation["value"]
        elif place.get(last) != operation["value"]:
            raise Refused(
                422,
                "the server rejected our request due to an error in our request",
            )
    return after


def _check_strings(config_map: Json) -> None:
    for key, value in (config_map.get("data") or {}).items():
        if not isinstance(value, str):
            raise Refused(
                422, f'ConfigMap "x" is invalid: data[{key}]: expected string, got {value!r}'
            )


_MICRO_TIME = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$")


def _check_lease(lease: Json) -> None:
    for key in ("acquireTime", "renewTime"):
        value = lease["spec"].get(key)
        if value is not None and not _MICRO_TIME.match(value):
            raise Refused(400, f"Lease in version v1: {key}: cannot parse {value!r} as MicroTime")


def _check_event(event: Json) -> None:
    if not _MICRO_TIME.match(event.get("eventTime") or ""):
        raise Refused(400, f"Event: eventTime: cannot parse {event.get('eventTime')!r}")
    for key in ("reportingController", "reportingInstance", "action", "reason", "type"):
        if not event.get(key):
            raise Refused(422, f"Event is invalid: {key}: Required value")
    if event["regarding"]["namespace"] != event["metadata"]["namespace"]:
        raise Refused(422, "Event is invalid: involvedObject.namespace: does not match")
    if len(event.get("note", "").encode()) > 1024:
        raise Refused(422, "Event is invalid: note: can have at most 1024 bytes")
