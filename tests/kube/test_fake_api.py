"""What the fake API server must answer: as kube-apiserver 1.36.2 was seen to."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.kube import objects
from tests.kube.fake_api import TOKEN, FakeApi, Trouble

SCALE = "/apis/apps/v1/namespaces/llm/deployments/r1/scale"
WARMUP = "/api/v1/namespaces/llm/configmaps/tuner-warmup"


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with FakeApi(objects=objects.fleet()) as api:
        yield api


def send(
    api: FakeApi, method: str, path: str, body: Any = None, *, kind: str = "merge-patch"
) -> httpx.Response:
    content_type = f"application/{kind}+json" if method == "PATCH" else "application/json"
    return httpx.request(
        method,
        api.url + path,
        content=None if body is None else json.dumps(body),
        headers={"Authorization": f"Bearer {TOKEN}", "Content-Type": content_type},
        timeout=10,
    )


def version(api: FakeApi) -> str:
    return str(send(api, "GET", SCALE).json()["metadata"]["resourceVersion"])


def test_a_scale_names_its_replicas_version_and_selector(api):
    scale = send(api, "GET", SCALE).json()
    assert scale["spec"] == {"replicas": 2}
    assert scale["status"]["selector"] == "app=r1"
    assert scale["metadata"]["resourceVersion"]


def test_zero_replicas_are_left_out_of_the_scale(api):
    assert send(api, "PATCH", SCALE, {"spec": {"replicas": 0}}).status_code == 200
    assert send(api, "GET", SCALE).json()["spec"] == {}


@pytest.mark.parametrize("method", ["PATCH", "PUT"])
def test_a_stale_version_is_a_conflict(api, method):
    scale = send(api, "GET", SCALE).json()
    api.scale_by_hand("r1", 5)
    scale["spec"]["replicas"] = 3
    answer = send(api, method, SCALE, scale)
    assert answer.status_code == 409
    assert answer.json()["kind"] == "Status"
    assert api.find("deployments", "r1")["spec"]["replicas"] == 5


@pytest.mark.parametrize("method", ["PATCH", "PUT"])
def test_the_newest_version_is_taken_and_gives_a_new_one(api, method):
    scale = send(api, "GET", SCALE).json()
    scale["spec"]["replicas"] = 3
    answer = send(api, method, SCALE, scale)
    assert answer.status_code == 200
    assert answer.json()["metadata"]["resourceVersion"] != scale["metadata"]["resourceVersion"]
    assert api.find("deployments", "r1")["spec"]["replicas"] == 3


@pytest.mark.parametrize(
    ("replicas", "status"),
    [pytest.param(-1, 422, id="negative"), pytest.param("x", 400, id="no number")],
)
def test_impossible_replicas_are_refused(api, replicas, status):
    assert send(api, "PATCH", SCALE, {"spec": {"replicas": replicas}}).status_code == status
    assert api.find("deployments", "r1")["spec"]["replicas"] == 2


def test_a_failed_test_of_a_json_patch_is_422(api):
    operations = [
        {"op": "test", "path": "/spec/replicas", "value": 9},
        {"op": "replace", "path": "/spec/replicas", "value": 3},
    ]
    answer = send(api, "PATCH", SCALE, operations, kind="json-patch")
    assert answer.status_code == 422
    assert "the server rejected our request" in answer.json()["message"]


def test_a_config_map_takes_text_only(api):
    assert send(api, "PATCH", WARMUP, {"data": {"warmup_requests": 4}}).status_code == 422
    assert send(api, "PATCH", WARMUP, {"data": {"warmup_requests": "4"}}).status_code == 200
    assert send(api, "GET", WARMUP).json()["data"] == {"warmup_requests": "4"}


def test_pods_are_listed_by_label(api):
    path = "/api/v1/namespaces/llm/pods?labelSelector=app%3Dr1"
    names = [each["metadata"]["name"] for each in send(api, "GET", path).json()["items"]]
    assert names == ["r1-a", "r1-b"]


def test_a_cluster_without_keda_does_not_know_scaled_objects():
    path = "/apis/keda.sh/v1alpha1/namespaces/llm/scaledobjects"
    with FakeApi(keda=False) as api:
        assert send(api, "GET", path).status_code == 404
    with FakeApi(keda=True) as api:
        assert send(api, "GET", path).json()["items"] == []


def test_without_the_token_nothing_is_answered(api):
    assert httpx.get(api.url + SCALE, timeout=10).status_code == 401


def test_a_role_decides_and_limits_names():
    rules = [
        {
            "apiGroups": ["apps"],
            "resources": ["deployments/scale"],
            "resourceNames": ["r1"],
            "verbs": ["get"],
        }
    ]
    things = [*objects.fleet(), objects.deployment("r2", labels={"app": "r2"})]
    with FakeApi(rules=rules, objects=things) as api:
        assert send(api, "GET", SCALE).status_code == 200
        assert send(api, "GET", SCALE.replace("r1", "r2")).status_code == 403
        answer = send(api, "PATCH", SCALE, {"spec": {"replicas": 3}})
        assert answer.status_code == 403
        assert 'cannot patch resource "deployments/scale"' in answer.json()["message"]
        assert send(api, "GET", "/api/v1/namespaces/llm/pods").status_code == 403


def review(api: FakeApi, verb: str, resource: str, subresource: str = "") -> bool:
    attributes = {
        "namespace": "llm",
        "verb": verb,
        "group": "apps",
        "resource": resource,
        "subresource": subresource,
        "name": "r1",
    }
    path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    answer = send(api, "POST", path, {"spec": {"resourceAttributes": attributes}})
    assert answer.status_code == 201
    return bool(answer.json()["status"]["allowed"])


def test_the_reviews_need_no_right_and_tell_the_truth():
    rules = [{"apiGroups": ["apps"], "resources": ["deployments/scale"], "verbs": ["get"]}]
    with FakeApi(rules=rules) as api:
        assert review(api, "get", "deployments", "scale")
        assert not review(api, "patch", "deployments", "scale")
        assert not review(api, "get", "deployments")
        path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
        answer = send(api, "POST", path, {"spec": {"namespace": "llm"}}).json()
        assert rules[0] in answer["status"]["resourceRules"]


def test_who_wrote_stands_in_the_managed_fields(api):
    send(api, "PATCH", SCALE + "?fieldManager=tuner", {"spec": {"replicas": 3}})
    send(api, "PATCH", SCALE, {"spec": {"replicas": 4}})
    managers = {
        entry["manager"]: entry["subresource"]
        for entry in api.find("deployments", "r1")["metadata"]["managedFields"]
    }
    assert managers == {"tuner": "scale", "python-httpx": "scale"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        pytest.param(
            "/apis/coordination.k8s.io/v1/namespaces/llm/leases/tuner",
            {"spec": {"renewTime": "2026-11-20T10:00:00Z"}},
            id="lease",
        ),
    ],
)
def test_a_micro_time_without_a_fraction_is_a_bad_request(api, path, body):
    assert send(api, "PATCH", path, body).status_code == 400


def test_an_event_needs_a_time_with_a_fraction(api):
    path = "/apis/events.k8s.io/v1/namespaces/llm/events"
    event = {
        "metadata": {"generateName": "r1-"},
        "eventTime": "2026-11-20T10:00:00Z",
        "reportingController": "tuner",
        "reportingInstance": "pod",
        "action": "Decide",
        "reason": "Decision",
        "type": "Normal",
        "regarding": {"kind": "Deployment", "namespace": "llm", "name": "r1"},
    }
    assert send(api, "POST", path, event).status_code == 400
    event["eventTime"] = "2026-11-20T10:00:00.000001Z"
    assert send(api, "POST", path, event).status_code == 201


def test_every_call_is_recorded(api):
    send(api, "GET", SCALE)
    send(api, "PATCH", SCALE + "?fieldManager=tuner", {"spec": {"replicas": 3}})
    send(api, "GET", "/api/v1/namespaces/llm/pods")
    found = [(c.verb, c.group, c.resource, c.name, c.status, c.manager) for c in api.calls]
    assert found == [
        ("get", "apps", "deployments/scale", "r1", 200, "python-httpx"),
        ("patch", "apps", "deployments/scale", "r1", 200, "tuner"),
        ("list", "", "pods", "", 200, "python-httpx"),
    ]


def test_trouble_comes_as_often_as_asked_and_only_where_asked(api):
    api.trouble(Trouble("status", 429, verb="get", resource="deployments/scale", retry_after_s=7))
    assert send(api, "GET", "/api/v1/namespaces/llm/pods").status_code == 200
    answer = send(api, "GET", SCALE)
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "7")
    assert send(api, "GET", SCALE).status_code == 200


@pytest.mark.parametrize(
    ("kind", "replicas"),
    [pytest.param("drop", 2, id="before"), pytest.param("drop_after", 3, id="after")],
)
def test_a_connection_breaks_before_or_after_the_write_counts(api, kind, replicas):
    api.trouble(Trouble(kind, verb="patch"))
    with pytest.raises(httpx.RemoteProtocolError):
        send(api, "PATCH", SCALE, {"spec": {"replicas": 3}})
    assert api.find("deployments", "r1")["spec"]["replicas"] == replicas


def test_a_hang_ends_with_the_server():
    with FakeApi(objects=objects.fleet()) as api:
        api.trouble(Trouble("hang"))
        outcome: list[str] = []

        def ask() -> None:
            try:
                send(api, "GET", SCALE)
            except httpx.HTTPError as error:
                outcome.append(type(error).__name__)

        asker = threading.Thread(target=ask)
        asker.start()
        api.wait_for_call("get")
        assert not outcome
    asker.join(timeout=10)
    assert len(outcome) == 1
