"""One call to the Kubernetes API: the official client's connection, and one place for its answers.

The client's own models are left aside on purpose: they refuse whole lists because of one odd
object (an event without a time), and hide what a server says beyond them. Its connection counts:
kubeconfig, exec plugins, the service account and its rotating token, TLS. Its retries are off: a
write that got no answer is read back by whoever sent it, never sent again by a library.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import quote

import urllib3
import yaml
from kubernetes import client as official
from kubernetes import config as official_config

from tuner.core.errors import ConfigError
from tuner.core.faults import Fault, FaultError, FaultReason
from tuner.core.http_status import reason_of_status

WHERE = "kubernetes"
"""Name of the API server in faults."""
FIELD_MANAGER = "tuner"
"""Who owns the fields we write; without it they belong to the client library."""

Verb = Literal["GET", "POST", "PUT", "PATCH"]

_NEXT_MOVE: Mapping[FaultReason, str] = {
    FaultReason.UNAUTHORIZED: "the token is wrong or has expired; renew it",
    FaultReason.FORBIDDEN: "apply the role of this mode from deploy/manifests",
    FaultReason.NOT_FOUND: "check its name and namespace in tuner.yaml",
    FaultReason.CONFLICT: "somebody else wrote in between; the next tick decides anew",
    FaultReason.INVALID: "the server finds it wrong; report it with this sentence",
    FaultReason.REFUSED: "a policy of the cluster forbids it; ask whoever set it",
    FaultReason.RATE_LIMITED: "the server asks for patience; the next tick tries again",
    FaultReason.SERVER_ERROR: "the server has trouble of its own; the next tick tries again",
    FaultReason.BAD_ANSWER: "something else answers at this address; check the kubeconfig",
}

_POLICY_TEXT = "ValidatingAdmissionPolicy"
"""In the message of a refusal that came from an admission policy, not from missing rights."""
_FAILED_TEST_TEXT = "the server rejected our request"
"""What the server says where the `test` of a JSON patch does not hold."""
_CHUNK_BYTES = 65_536
_LONGEST_QUOTE = 200
"""Characters of the server's message that a sentence repeats."""

_NEVER_SENT = (
    urllib3.exceptions.NewConnectionError,
    urllib3.exceptions.ConnectTimeoutError,
    urllib3.exceptions.SSLError,
)
_BROKEN_KUBECONFIG = (
    official_config.ConfigException,
    yaml.YAMLError,
    OSError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)
"""What the client's loader trips over where a file is not what it expects: it checks little."""

UNANSWERED = frozenset(
    {FaultReason.TIMED_OUT, FaultReason.BAD_ANSWER, FaultReason.SERVER_ERROR},
)
"""After these nobody knows whether a write took effect: read back before anything else."""


class KubernetesApi:
    """A connection to one API server.

    Args:
        context: of the kubeconfig; None takes the service account inside a cluster, and the
            current context elsewhere.
        timeout_s: longest wait for one call, s.

    Raises:
        ConfigError: there is no usable kubeconfig or no such context.
    """

    def __init__(self, *, context: str | None, timeout_s: float) -> None:
        configuration = _configuration(context)
        configuration.retries = False
        self._client = official.ApiClient(configuration)
        self._client.user_agent = FIELD_MANAGER
        self._timeout_s = timeout_s

    def __repr__(self) -> str:
        return f"KubernetesApi({self._client.configuration.host})"

    def get(self, path: str, **query: str) -> dict[str, Any]:
        return self.call("GET", path, query=query)

    def patch(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """A JSON merge patch under our own field manager."""
        return self.call(
            "PATCH",
            path,
            query={"fieldManager": FIELD_MANAGER},
            body=body,
            content_type="application/merge-patch+json",
        )

    def put(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return self.call("PUT", path, query={"fieldManager": FIELD_MANAGER}, body=body)

    def post(self, path: str, body: Mapping[str, Any], **query: str) -> dict[str, Any]:
        return self.call("POST", path, query=query, body=body)

    def call(
        self,
        verb: Verb,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | Sequence[Any] | None = None,
        content_type: str = "application/json",
    ) -> dict[str, Any]:
        """One request, one JSON object.

        Raises:
            FaultError: anything else. Of a write, the reasons in UNANSWERED leave open whether it
                took effect.
        """
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = content_type
        what = f"{verb} {path}"
        try:
            # The login and the address are the client's work; the body goes out as it is.
            _, url, all_headers, _, _ = self._client.param_serialize(
                verb,
                path,
                query_params=list((query or {}).items()),
                header_params=headers,
                auth_settings=["BearerToken"],
            )
            deadline_s = time.monotonic() + self._timeout_s
            answer = self._client.rest_client.pool_manager.request(
                verb,
                url,
                headers=all_headers,
                body=None if body is None else json.dumps(body).encode(),
                timeout=urllib3.Timeout(total=self._timeout_s),
                retries=False,
                preload_content=False,
            )
            content = _content(answer, deadline_s)
        except urllib3.exceptions.HTTPError as problem:
            raise _unanswered(what, problem, self._timeout_s) from problem
        except (official_config.ConfigException, OSError) as problem:
            # A token file or a login program that is gone: read anew for every call.
            raise _fault(
                FaultReason.UNAUTHORIZED, f"kubernetes: {what}: no usable login ({problem})"
            ) from problem
        return _read(what, answer.status, content, answer.headers.get("Retry-After"))

    def close(self) -> None:
        self._client.close()


def _configuration(context: str | None) -> official.Configuration:
    configuration = official.Configuration()
    inside = context is None and "KUBERNETES_SERVICE_HOST" in os.environ
    try:
        if inside and "KUBECONFIG" not in os.environ:
            official_config.load_incluster_config(client_configuration=configuration)
        else:
            official_config.load_kube_config(
                # Asked for here, because the library reads it only when it is imported.
                config_file=os.environ.get("KUBECONFIG"),
                context=context,
                client_configuration=configuration,
            )
    except _BROKEN_KUBECONFIG as problem:
        wanted = f"context '{context}'" if context else "a current context"
        raise ConfigError(
            f"kubernetes: no connection ({problem}); expected a kubeconfig with {wanted} "
            "(KUBECONFIG or ~/.kube/config), or a service account inside the cluster"
        ) from problem
    return configuration


def _content(answer: urllib3.BaseHTTPResponse, deadline_s: float) -> bytes:
    """The whole body. A time-out of the socket starts anew with every byte; this one does not.

    Raises:
        urllib3.exceptions.HTTPError: it broke off, or was not whole in time.
    """
    chunks = []
    try:
        while chunk := answer.read1(_CHUNK_BYTES):
            chunks.append(chunk)
            if time.monotonic() > deadline_s:
                answer.close()
                raise urllib3.exceptions.TimeoutError("the answer trickles")
    finally:
        answer.release_conn()
    return b"".join(chunks)


def _unanswered(what: str, problem: Exception, timeout_s: float) -> FaultError:
    """Nobody answered: whether the request was received decides what may be done next."""
    if isinstance(problem, _NEVER_SENT):
        cause = f"no connection ({type(problem).__name__})"
        reason = FaultReason.UNREACHABLE
    elif isinstance(problem, urllib3.exceptions.TimeoutError):
        cause, reason = f"no answer within {timeout_s:g} s", FaultReason.TIMED_OUT
    else:
        cause, reason = f"the answer broke off ({type(problem).__name__})", FaultReason.BAD_ANSWER
    return _fault(
        reason, f"kubernetes: {what}: {cause}; is the API server up, and reachable from here?"
    )


def _read(what: str, status: int, content: bytes, retry_after: str | None) -> dict[str, Any]:
    """The object of a good answer; a FaultError for every other."""
    try:
        data = json.loads(content)
    except ValueError:
        data = None
    if 200 <= status < 300 and isinstance(data, dict):
        return data
    message = str(data.get("message", "")) if isinstance(data, dict) else ""
    reason = reason_of(status, message)
    found = message[:_LONGEST_QUOTE] or f"{len(content)} bytes that are no Kubernetes object"
    raise FaultError(
        Fault(WHERE, reason, f"kubernetes: {what}: {status}, {found}; {_NEXT_MOVE[reason]}"),
        retry_after_s=_seconds(retry_after),
    )


def reason_of(status: int, message: str) -> FaultReason:
    """What an answer that is not the object asked for means."""
    if status in (403, 422) and _POLICY_TEXT in message:
        return FaultReason.REFUSED
    if status == 422 and _FAILED_TEST_TEXT in message:
        return FaultReason.CONFLICT
    return reason_of_status(status)


def _seconds(retry_after: str | None) -> float | None:
    """`Retry-After` in seconds; Kubernetes sends no dates."""
    try:
        return None if retry_after is None else max(0.0, float(retry_after))
    except ValueError:
        return None


def _fault(reason: FaultReason, sentence: str) -> FaultError:
    return FaultError(Fault(WHERE, reason, sentence))


def micro_time(at_s: float) -> str:
    """A Unix time as Kubernetes writes a MicroTime.

    The fraction is never zero: the server answers 400 to a MicroTime without one, and six zeros
    are dropped by more than one client on the way.
    """
    at = datetime.fromtimestamp(at_s, tz=UTC)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{max(1, at.microsecond):06d}Z"


def path_of(
    namespace: str | None, resource: str, name: str = "", *, group: str = "", version: str = "v1"
) -> str:
    """Path of an object, of its sub-resource (`deployments`, `r1/scale`), or of a list."""
    root = f"/apis/{group}/{version}" if group else f"/api/{version}"
    place = f"/namespaces/{quote(namespace, safe='')}" if namespace else ""
    return f"{root}{place}/{resource}" + (f"/{quote(name)}" if name else "")


def unix_s(text: str) -> float:
    """The inverse: an RFC 3339 time, with or without a fraction, as a Unix time.

    Raises:
        ValueError: it is none.
    """
    return datetime.fromisoformat(text).timestamp()
