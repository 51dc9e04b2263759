"""The array HPA against a naive one, over long random runs with gaps, clamps and other writers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policies.hpa import HpaRule
from policies.hpa_spec import (
    Behavior,
    HpaConfig,
    MetricSpec,
    ScalingPolicy,
    ScalingRules,
)
from policies.rule import empty_memory
from tests.policies.naive_hpa import NaiveHpa
from tests.policies.test_hpa import REPLICAS, stacked
from tuner.core.knobs import KnobSettings
from tuner.core.observation import Observation, ReplicaObservation, ReplicaState

LOW, HIGH = 1, 100
SYNCS = 300
TARGETS = 6
"""Independent targets of one batch."""

policies = st.builds(
    ScalingPolicy,
    st.sampled_from(["Pods", "Percent"]),
    st.sampled_from([1, 2, 4, 10, 33, 100, 300]),
    st.sampled_from([15.0, 30.0, 60.0, 180.0, 300.0, 1800.0]),
)
directions = st.builds(
    ScalingRules,
    st.none() | st.sampled_from([0.0, 15.0, 60.0, 300.0, 900.0]),
    st.none() | st.lists(policies, min_size=1, max_size=3).map(tuple),
    st.sampled_from(["Max", "Max", "Min", "Disabled"]),
    st.none() | st.sampled_from([0.0, 0.03, 0.3]),
)
metrics = st.builds(
    MetricSpec,
    st.sampled_from(["in_flight", "queue_depth"]),
    st.sampled_from([0.0015, 1.0, 7.3, 900.0]),
    st.sampled_from(["External", "Object"]),
    st.sampled_from(["AverageValue", "Value"]),
) | st.builds(
    MetricSpec,
    st.sampled_from(["running", "kv_cache_usage"]),
    st.sampled_from([0.6, 32.0]),
    st.just("Pods"),
)
configs = st.builds(
    HpaConfig,
    st.lists(metrics, min_size=1, max_size=3).map(tuple),
    min_replicas=st.none() | st.sampled_from([1, 3]),
    max_replicas=st.none() | st.sampled_from([12, 40]),
    behavior=st.none() | st.builds(Behavior, directions, directions),
    tolerance=st.sampled_from([0.0, 0.1, 0.2]),
    downscale_stabilization_s=st.sampled_from([0.0, 60.0, 300.0]),
)


@dataclass
class World:
    """One target with its own clock, load and troubles."""

    config: HpaConfig
    rng: Random
    exact_grid: bool
    n: int = 4
    at_s: float = 0.0
    load: float = 4.0

    def observe(self) -> Observation:
        """A load that wanders and jumps, seen with gaps, on edges as often as between them."""
        rng = self.rng
        self.load *= rng.choice([1.0, 1.0, rng.lognormvariate(0, 0.1), rng.lognormvariate(0, 0.7)])
        self.load = min(max(self.load, 0.2), 60.0)
        edge = rng.choice([0.0, 0.9, 1.0, 1.1, 0.97, 1.03, 1.2])
        wanted = edge * self.n if rng.random() < 0.3 else self.load
        fleet = {
            metric.name: self._round(wanted * metric.target)
            for metric in self.config.metrics
            if metric.type != "Pods" and rng.random() > 0.08
        }
        ready = float(rng.randint(max(self.n - 2, 0), self.n))
        return Observation(
            at_s=self.at_s,
            window_s=15.0,
            age_s=1.0,
            settings=KnobSettings(replicas=self.n) if rng.random() > 0.03 else KnobSettings(),
            replicas=self._replicas(wanted / max(self.n, 1)),
            ready_replicas=ready if rng.random() > 0.03 else None,
            starting_replicas=self.n - ready if rng.random() > 0.1 else None,
            draining_replicas=float(rng.randint(0, 1)) if rng.random() > 0.2 else None,
            status_replicas=ready + rng.randint(0, 2) if rng.random() > 0.05 else None,
            **fleet,
        )

    def pass_time(self) -> None:
        steps = self.rng.choices([1, 2, 25], [0.95, 0.04, 0.01])[0]
        jitter = 0.0 if self.exact_grid else round(self.rng.uniform(0.0, 0.15), 2)
        self.at_s = round(self.at_s + 15.0 * steps + jitter, 2)

    def _replicas(self, share: float) -> tuple[ReplicaObservation, ...]:
        """About n replicas, at most 12: what a Pods metric sees of more is no different."""
        if all(metric.type != "Pods" for metric in self.config.metrics):
            return ()
        count = self.rng.randint(0, min(self.n, 10) + 2)
        states = self.rng.choices(list(ReplicaState), [0.08, 0.06, 0.06, 0.7, 0.1], k=count)
        return tuple(
            ReplicaObservation(
                name=str(i),
                state=state,
                age_s=60.0,
                running=self._sample(share * 32.0),
                kv_cache_usage=self._sample(share * 0.6),
            )
            for i, state in enumerate(states)
        )

    def _sample(self, around: float) -> float | None:
        if self.rng.random() < 0.12:
            return None
        return self._round(around * self.rng.choice([1.0, self.rng.lognormvariate(0, 0.2)]))

    def _round(self, value: float) -> float:
        return round(value, self.rng.choice([0, 1, 3, 5]))


def run(config: HpaConfig, seed: int, *, alone: bool, exact_grid: bool) -> int:
    """Runs both side by side; number of writes, so that a test can tell that there were any.

    Args:
        config: what both are told.
        seed: of load and troubles.
        alone: nobody else writes and every proposal is followed to the letter, so that the naive
            one can record its writes when it makes them, as Kubernetes does.
        exact_grid: syncs lie exactly 15 s apart, else up to 0.15 s more.
    """
    rule = HpaRule(config)
    worlds = [World(config, Random(seed * TARGETS + i), exact_grid) for i in range(TARGETS)]
    naive = [
        NaiveHpa(config, config.min_replicas or LOW, config.max_replicas or HIGH) for _ in worlds
    ]
    memory = empty_memory(rule, TARGETS)
    pending: list[tuple[float, int, int] | None] = [None] * TARGETS
    writes = 0
    for _ in range(SYNCS):
        seen = [world.observe() for world in worlds]
        result = rule.decide(stacked(seen), memory)
        memory = result.memory
        for i, (world, oracle, now) in enumerate(zip(worlds, naive, seen, strict=True)):
            asked = pending[i]
            if asked is not None and "replicas" in now.settings:
                at_s, before, target = asked
                lowest, highest = min(before, target), max(before, target)
                oracle.wrote(at_s, before, min(max(world.n, lowest), highest))
                pending[i] = None
            target, raw = oracle.sync(now)
            answer = result.settings[i, REPLICAS], result.raw[i]
            expected = tuple(np.nan if x is None else float(x) for x in (target, raw))
            np.testing.assert_array_equal(answer, expected, f"target {i} at {now.at_s} s")
            if target is not None and target != world.n:
                writes += 1
                if alone:
                    oracle.wrote(now.at_s, world.n, target)
                    world.n = target
                else:
                    pending[i] = now.at_s, world.n, target
                    share = world.rng.choice([0.0, 0.5, 1.0, 1.0, 1.0])
                    world.n += round(share * (target - world.n))
            if not alone and world.rng.random() < 0.03:
                world.n = world.rng.choice([0, 1, 3, 9, 60])
            world.pass_time()
    return writes


@pytest.mark.parametrize("exact_grid", [True, False], ids=["grid", "jitter"])
@pytest.mark.parametrize("alone", [True, False], ids=["alone", "disturbed"])
@given(config=configs, seed=st.integers(0, 2**31))
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_arrays_answer_as_lists_do_sync_by_sync(config, seed, alone, exact_grid):
    run(config, seed, alone=alone, exact_grid=exact_grid)


COMMON = {
    "without behavior": (None, 150),
    "default behavior": (Behavior(), 150),
    "slow and steady": (
        Behavior(
            ScalingRules(
                60.0, (ScalingPolicy("Pods", 2, 60.0), ScalingPolicy("Percent", 20, 180.0))
            ),
            ScalingRules(600.0, (ScalingPolicy("Percent", 10, 60.0),), "Min"),
        ),
        50,
    ),
}


@pytest.mark.parametrize(("behavior", "writes"), COMMON.values(), ids=COMMON)
def test_common_configurations_move_and_agree_in_long_runs(behavior, writes):
    config = replace(HpaConfig((MetricSpec("in_flight", 900.0),)), behavior=behavior)
    assert run(config, 7, alone=True, exact_grid=True) > writes
