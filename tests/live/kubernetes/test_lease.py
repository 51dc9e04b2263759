"""The Lease of the one writer, against the fake API server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from tests.kube import objects
from tests.kube.fake_api import FakeApi, Trouble
from tuner.config import KubernetesConfig
from tuner.core.clock import VirtualClock
from tuner.core.faults import FaultError, FaultReason
from tuner.live.kubernetes.api import KubernetesApi
from tuner.live.kubernetes.lease import Lease
from tuner.live.kubernetes.pool import KubernetesPool

DURATION_S = 60.0


class Seconds:
    """A monotonic clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with FakeApi(objects=objects.fleet()) as api:
        yield api


@pytest.fixture
def connection(api, tmp_path, monkeypatch) -> Iterator[KubernetesApi]:
    monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig(tmp_path)))
    connection = KubernetesApi(context=None, timeout_s=1.0)
    yield connection
    connection.close()


def held_by(api: FakeApi) -> str:
    return str(api.find("leases", "tuner")["spec"].get("holderIdentity", ""))


def lease(
    connection: KubernetesApi,
    seconds: Seconds,
    holder: str = "me",
    *,
    clock: VirtualClock | None = None,
) -> Lease:
    return Lease(
        connection,
        "llm",
        "tuner",
        duration_s=DURATION_S,
        holder=holder,
        clock=clock or VirtualClock(1_800_000_000.0),
        monotonic=seconds,
    )


def test_a_free_lease_is_taken(api, connection):
    lease(connection, Seconds()).renew()
    spec = api.find("leases", "tuner")["spec"]
    assert spec["holderIdentity"] == "me"
    assert spec["leaseTransitions"] == 1
    assert spec["leaseDurationSeconds"] == 60
    assert spec["renewTime"].endswith(".000001Z")


def test_a_young_renewal_is_good_enough(api, connection):
    seconds = Seconds()
    mine = lease(connection, seconds)
    mine.renew()
    seconds.now_s += DURATION_S / 3 - 1
    mine.renew()
    assert len(api.calls_of("update")) == 1
    seconds.now_s += 2
    mine.renew()
    assert len(api.calls_of("update")) == 2
    assert api.find("leases", "tuner")["spec"]["leaseTransitions"] == 1


def test_of_two_only_the_first_may_write(api, connection):
    seconds = Seconds()
    lease(connection, seconds, "first").renew()
    with pytest.raises(FaultError, match="held by 'first'") as caught:
        lease(connection, seconds, "second").require()
    assert caught.value.fault.reason is FaultReason.REFUSED
    assert held_by(api) == "first"


def test_a_dead_holder_is_followed_after_its_duration_has_been_watched(api, connection):
    seconds = Seconds()
    lease(connection, seconds, "dead").renew()
    seconds.now_s += 10 * DURATION_S
    heir = lease(connection, seconds, "heir")
    # However old its time stamp is: the heir has only just begun to watch.
    with pytest.raises(FaultError):
        heir.renew()
    seconds.now_s += DURATION_S - 1
    with pytest.raises(FaultError):
        heir.renew()
    seconds.now_s += 2
    heir.renew()
    assert held_by(api) == "heir"
    assert api.find("leases", "tuner")["spec"]["leaseTransitions"] == 2


def test_a_living_holder_is_never_followed(api, connection):
    seconds = Seconds()
    clock = VirtualClock(1_800_000_000.0)
    living = lease(connection, seconds, "living", clock=clock)
    heir = lease(connection, seconds, "heir")
    for _ in range(8):
        living.renew()
        with pytest.raises(FaultError):
            heir.renew()
        seconds.now_s += DURATION_S / 2
        clock.sleep_until(clock.now_s() + DURATION_S / 2)
    assert held_by(api) == "living"


class Overtaken(KubernetesApi):
    """A connection on which another one is always a little faster."""

    faster: Lease

    def put(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        self.faster.renew()
        return super().put(path, body)


def test_of_two_who_see_a_free_lease_one_gets_a_conflict(api, connection):
    slow = Overtaken(context=None, timeout_s=1.0)
    slow.faster = lease(connection, Seconds(), "faster")
    with pytest.raises(FaultError) as caught:
        lease(slow, Seconds()).renew()
    assert caught.value.fault.reason is FaultReason.CONFLICT
    assert held_by(api) == "faster"
    slow.close()


@pytest.mark.parametrize(
    "trouble", [Trouble("hang"), Trouble("status", 500), Trouble("drop")], ids=lambda t: t.kind
)
def test_who_cannot_renew_stops_writing_before_another_may_begin(api, connection, trouble):
    seconds = Seconds()
    mine = lease(connection, seconds)
    mine.renew()
    seconds.now_s += DURATION_S / 2
    mine.require()
    api.trouble(replace(trouble, times=99))
    seconds.now_s += DURATION_S / 6 + 1
    with pytest.raises(FaultError):
        mine.require()


def test_released_it_is_free_at_once(api, connection):
    seconds = Seconds()
    mine = lease(connection, seconds)
    mine.renew()
    mine.release()
    lease(connection, seconds, "next").renew()
    assert held_by(api) == "next"
    mine.release()
    assert held_by(api) == "next"


CONFIG = KubernetesConfig(
    namespace="llm",
    deployment="r1",
    warmup_configmap="tuner-warmup",
    lease="tuner",
    timeout_s=1.0,
)


@pytest.fixture
def pool(connection) -> Iterator[KubernetesPool]:
    pool = KubernetesPool(CONFIG, clock=VirtualClock(1_800_000_000.0), model="")
    yield pool
    pool.close()


def test_a_pool_that_may_write_holds_its_lease_from_the_first_look_to_the_end(api, pool):
    pool.check(writes=True)
    assert held_by(api) == ""
    pool.look()
    assert held_by(api)
    pool.close()
    assert held_by(api) == ""


def test_a_shadow_never_touches_the_lease(api, pool):
    reading = [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["get", "list"]}]
    api.rules = reading
    pool.check(writes=False)
    pool.look()
    pool.close()
    assert [call for call in api.calls if call.resource == "leases"] == []


def test_a_pool_without_the_lease_looks_and_does_not_write(api, pool):
    thing = objects.lease()
    thing["spec"] = {
        "holderIdentity": "another",
        "renewTime": "2026-11-20T10:00:00.000001Z",
        "leaseDurationSeconds": 60,
    }
    api.put(thing)
    pool.check(writes=True)
    seen = pool.look()
    assert len(seen.members) == 2
    with pytest.raises(FaultError, match="held by 'another'") as caught:
        pool.scale(3, seen)
    assert (caught.value.fault.reason, caught.value.fault.knob) == (FaultReason.REFUSED, "replicas")
    with pytest.raises(FaultError, match="held by 'another'") as caught:
        pool.set_warmup(8)
    assert caught.value.fault.knob == "warmup_requests"
    with pytest.raises(FaultError, match="held by 'another'"):
        pool.require()
    assert api.calls_of("patch") == []
    pool.close()
    assert held_by(api) == "another"
