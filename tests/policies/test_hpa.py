"""HPA's rules as a table: what Kubernetes 1.36.2 answers, and what a naive version would."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from policies.hpa import HpaRule
from policies.hpa_behavior import Layout
from policies.hpa_metrics import evaluate, milli
from policies.hpa_spec import Behavior, HpaConfig, MetricSpec, ScalingPolicy, ScalingRules
from policies.rule import RuleResult, empty_memory, propose_one
from tuner.core.errors import ConfigError
from tuner.core.history import History
from tuner.core.knobs import KnobSettings
from tuner.core.observation import (
    FIELDS,
    Observation,
    ObservationArrays,
    ReplicaArrays,
    ReplicaObservation,
    ReplicaState,
)
from tuner.knobs import knob_space

KNOBS = knob_space(replicas=(1, 100))
REPLICAS = KNOBS.column("replicas")
NOW_S = 50_000.0
"""Time of every sync here; any time will do, ages are what counts."""


def observation(n: int | None, at_s: float = NOW_S, **fields: object) -> Observation:
    settings = KnobSettings() if n is None else KnobSettings(replicas=n)
    return Observation(at_s=at_s, window_s=15.0, age_s=1.0, settings=settings, **fields)


def pods(*groups: tuple[int, ReplicaState, float | None]) -> tuple[ReplicaObservation, ...]:
    """Replicas: how many, in which state, with which `running`."""
    return tuple(
        ReplicaObservation(name=f"{group}-{i}", state=state, age_s=60.0, running=value)
        for group, (count, state, value) in enumerate(groups)
        for i in range(count)
    )


def stacked(observations: list[Observation]) -> ObservationArrays:
    """Several observations as one batch, replicas padded to the largest."""
    rows = [ObservationArrays.of(KNOBS, one) for one in observations]
    width = max(row.replicas.state.shape[1] for row in rows)

    def padded(array: np.ndarray, fill: float) -> np.ndarray:
        gap = [(0, 0), (0, width - array.shape[1])] + [(0, 0)] * (array.ndim - 2)
        return np.pad(array, gap, constant_values=fill)

    return ObservationArrays(
        knobs=KNOBS,
        at_s=np.concatenate([row.at_s for row in rows]),
        age_s=np.concatenate([row.age_s for row in rows]),
        values=np.concatenate([row.values for row in rows]),
        settings=np.concatenate([row.settings for row in rows]),
        replicas=ReplicaArrays(
            state=np.concatenate([padded(row.replicas.state, -1) for row in rows]),
            age_s=np.concatenate([padded(row.replicas.age_s, np.nan) for row in rows]),
            values=np.concatenate([padded(row.replicas.values, np.nan) for row in rows]),
        ),
    )


# --- metrics: rows 1-14a ------------------------------------------------------------------------

READY, PENDING = ReplicaState.READY, ReplicaState.PENDING
PODS = HpaConfig((MetricSpec("running", 10.0, "Pods"),))
EA20 = HpaConfig((MetricSpec("in_flight", 20.0),))
EA10 = HpaConfig((MetricSpec("in_flight", 10.0),))
EV100 = HpaConfig((MetricSpec("in_flight", 100.0, target_type="Value"),))
NO_ANSWER = float("nan")


def at_pods(n: int, *groups: tuple[int, ReplicaState, float | None]) -> Observation:
    return observation(n, replicas=pods(*groups))


def at_fleet(n: int, usage: float, exist: int, ready: int | None = None) -> Observation:
    return observation(
        n,
        in_flight=usage,
        status_replicas=float(exist),
        ready_replicas=float(exist if ready is None else ready),
    )


METRIC_ROWS = {
    # id: (config, observation, raw recommendation)
    "1 ratio 1.2": (PODS, at_pods(4, (4, READY, 12)), 5),
    "2 the upper end of the tolerance is inside": (PODS, at_pods(4, (4, READY, 11)), 4),
    "2 just above the tolerance": (PODS, at_pods(4, (4, READY, 11.01)), 5),
    "3 rounding up brings it back to n": (PODS, at_pods(4, (4, READY, 8.9)), 4),
    "3 ratio 0.7": (PODS, at_pods(4, (4, READY, 7)), 3),
    # Naive: ceil(0.5 * 4) = 2, as if the silent pod did not exist.
    "4 missing counts as on target on the way down": (
        PODS,
        at_pods(5, (4, READY, 5), (1, READY, None)),
        3,
    ),
    # Naive: 2.0 * 6 = 12, as if the pending pods were as busy as the others.
    "5 pending counts as idle on the way up": (
        PODS,
        at_pods(6, (4, READY, 20), (2, PENDING, None)),
        8,
    ),
    # Naive: a mean over six, 20 / 60 of the target.
    "6 pending is ignored on the way down": (
        PODS,
        at_pods(6, (4, READY, 5), (2, PENDING, None)),
        2,
    ),
    # Naive: 38 / 6, as if the pending pods were idle, is far outside the tolerance: 4.
    "pending is ignored below the target too": (
        PODS,
        at_pods(6, (4, READY, 9.5), (2, PENDING, None)),
        6,
    ),
    # Naive: ceil(0.575 * 6) = 4, a scale-down while every pod that speaks is overloaded.
    "7 a guess may not turn the direction": (
        PODS,
        at_pods(6, (3, READY, 11.5), (3, READY, None)),
        6,
    ),
    # Naive: no sample is no load.
    "8 no sample at all is an error": (PODS, at_pods(6, (3, READY, None)), NO_ANSWER),
    "9 external per replica": (EA20, at_fleet(4, 130, 4), 7),
    # Naive: ceil(4.3) = 5 without the tolerance.
    "10 external inside the tolerance": (EA20, at_fleet(4, 86, 4), 4),
    # At ten replicas the tolerance swallows one of them.
    "11 a whole replica inside the tolerance": (EA20, at_fleet(10, 215, 10), 10),
    "11 just outside": (EA20, at_fleet(10, 221, 10), 12),
    "the lower end of the tolerance is inside": (EA20, at_fleet(10, 180, 10), 10),
    "12 no load is a recommendation of 0": (EA20, at_fleet(4, 0, 4), 0),
    # Naive: 2.5 * 3 for both, as if loading replicas served.
    "13 value counts ready pods": (EV100, at_fleet(3, 250, 3, ready=2), 5),
    "13 value with all ready": (EV100, at_fleet(3, 250, 3), 8),
    # Naive: n * ratio with n = 10.
    "14a the tolerance looks at what exists, and pulls n down": (EA10, at_fleet(10, 60, 6), 6),
    "14a just outside what exists": (EA10, at_fleet(10, 66.5, 6), 7),
    "14a far outside": (EA10, at_fleet(10, 100, 6), 10),
    # Beyond the table.
    "a draining pod is left out": (
        PODS,
        at_pods(4, (4, READY, 12), (2, ReplicaState.DRAINING, 12)),
        5,
    ),
    # Naive: 40 / 4 with the warming ones as idle, which is on target: 4.
    "a warming pod that reports is capacity": (
        PODS,
        at_pods(4, (2, READY, 20), (2, ReplicaState.WARMING, 10)),
        6,
    ),
    # Naive: 2.0 * 2 = 4, as if the silent pods did not exist; 40 / 4 is on target, so n stays.
    "a starting pod that is silent is missing": (
        PODS,
        at_pods(5, (2, READY, 20), (2, ReplicaState.STARTING, None)),
        5,
    ),
    "missing and pending are both idle on the way up": (
        PODS,
        at_pods(5, (2, READY, 20), (1, READY, None), (1, PENDING, None)),
        5,
    ),
    # ceil(0.5625 * 8) = 5 would move up on a ratio below 1, because more pods report than n says.
    "more pods than n may not turn the direction": (
        PODS,
        at_pods(4, (7, READY, 5), (1, READY, None)),
        4,
    ),
    # 10 + 10 + 10.001 thousandths: the mean is cut to 10.000, which is on target to the thousandth.
    "the mean of pods is cut to thousandths": (
        replace(PODS, tolerance=0.0),
        at_pods(3, (2, READY, 10), (1, READY, 10.001)),
        3,
    ),
    # (16.5 + 16.501 + 0) / 3 is 11.000 when cut: inside the tolerance. Naive: 1.10003, so 4.
    "the mean with guesses is cut to thousandths": (
        PODS,
        at_pods(3, (1, READY, 16.5), (1, READY, 16.501), (1, READY, None)),
        3,
    ),
    # A ratio of 1 exactly guesses nothing, so nothing changes.
    "on target with silent pods": (PODS, at_pods(9, (3, READY, 10), (3, READY, None)), 9),
    "a value read as infinite is an error": (EA20, at_fleet(4, float("inf"), 4), NO_ANSWER),
    "a value below 0 is no load": (EA20, at_fleet(4, -60, 4), 0),
    "load without any replica": (EA20, at_fleet(4, 130, 0), 7),
    "neither load nor replica": (EA20, at_fleet(4, 0, 0), 0),
    "a draining pod still answers its readiness probe": (
        EV100,
        replace(at_fleet(3, 250, 3, ready=2), draining_replicas=1.0),
        8,
    ),
    "what exists is the sum of its parts when it is not read": (
        EA10,
        replace(at_fleet(10, 66.5, 6, ready=2), status_replicas=None, starting_replicas=4.0),
        7,
    ),
    "what exists is not known": (
        EA10,
        replace(at_fleet(10, 100, 6), status_replicas=None),
        NO_ANSWER,
    ),
}


@pytest.mark.parametrize(("config", "now", "raw"), METRIC_ROWS.values(), ids=METRIC_ROWS)
def test_metrics_recommend_what_kubernetes_recommends(config, now, raw):
    result = propose_one(HpaRule(config), History(KNOBS).observed(now))
    assert result.raw == (None if np.isnan(raw) else raw)
    if np.isnan(raw):
        assert result.settings == {}


@pytest.mark.parametrize("config", [PODS, EA20, EA10, EV100], ids=["pods", "ea20", "ea10", "ev"])
def test_a_batch_recommends_row_by_row_what_one_target_gets(config):
    rows = [(now, raw) for own, now, raw in METRIC_ROWS.values() if own is config]
    rule = HpaRule(config)
    result = rule.decide(stacked([now for now, _ in rows]), empty_memory(rule, len(rows)))
    assert len(rows) > 1
    np.testing.assert_array_equal(result.raw, [raw for _, raw in rows])


def test_at_0_replicas_a_value_target_asks_but_nothing_is_done():
    """Row 14. Naive: 3, a workload that was scaled to 0 by hand comes back."""
    now = observation(0, in_flight=250.0, ready_replicas=0.0)
    arrays = ObservationArrays.of(KNOBS, now)
    assert evaluate(EV100, arrays, np.zeros(1)).desired == 3
    on_target = ObservationArrays.of(KNOBS, replace(now, in_flight=100.0))
    assert evaluate(EV100, on_target, np.zeros(1)).desired == 1  # no tolerance at 0
    result = propose_one(HpaRule(EV100), History(KNOBS).observed(now))
    assert result.settings == {}
    assert result.raw is None


SEVERAL = HpaConfig((MetricSpec("in_flight", 10.0), MetricSpec("queue_depth", 10.0)))
SEVERAL_ROWS = {
    # id: (in_flight, queue_depth, raw); n is 5, a metric of 10 x asks for x
    "the largest counts": (30, 80, 8),
    # Naive: 3, the mean of what is left.
    "a broken metric forbids scale-down": (30, None, NO_ANSWER),
    "a broken metric allows scale-up": (80, None, 8),
    "a broken metric allows to stay": (50, None, 5),
    "all broken": (None, None, NO_ANSWER),
}


@pytest.mark.parametrize(("one", "other", "raw"), SEVERAL_ROWS.values(), ids=SEVERAL_ROWS)
def test_several_metrics_count_as_their_largest_valid_proposal(one, other, raw):
    now = observation(5, in_flight=one, queue_depth=other, status_replicas=5.0)
    for config in (SEVERAL, replace(SEVERAL, metrics=SEVERAL.metrics[::-1])):
        result = propose_one(HpaRule(config), History(KNOBS).observed(now))
        assert result.raw == (None if np.isnan(raw) else raw)


def test_the_tolerance_has_a_width_for_each_direction():
    rules = Behavior(ScalingRules(tolerance=0.5), ScalingRules(tolerance=0.0))
    config = replace(EA10, behavior=rules)
    rows = [at_fleet(10, usage, 10) for usage in (150, 151, 100, 99)]
    rule = HpaRule(config)
    result = rule.decide(stacked(rows), empty_memory(rule, len(rows)))
    np.testing.assert_array_equal(result.raw, [10, 16, 10, 10])
    assert result.need[3] == 9.9


def test_need_is_what_would_be_rounded_up_without_the_tolerance():
    rows = {
        EA20: (at_fleet(4, 86, 4), 4.3),
        EV100: (at_fleet(3, 105, 3, ready=2), 2.1),
        PODS: (at_pods(4, (4, READY, 10.5)), 4.2),
        SEVERAL: (observation(5, in_flight=33.0, status_replicas=5.0), 3.3),
    }
    for config, (now, need) in rows.items():
        rule = HpaRule(config)
        result = rule.decide(ObservationArrays.of(KNOBS, now), empty_memory(rule, 1))
        np.testing.assert_allclose(result.need, [need])
    rule = HpaRule(EA20)
    silent = ObservationArrays.of(KNOBS, observation(4, status_replicas=4.0))
    assert np.isnan(rule.decide(silent, empty_memory(rule, 1)).need).all()


@pytest.mark.parametrize(
    ("value", "thousandths"),
    [(0.0, 0), (0.0001, 1), (1.0, 1000), (16.1, 16100), (1.0005, 1001), (11.01, 11010), (9e6, 9e9)],
)
def test_values_are_rounded_up_to_thousandths_of_their_decimal_fraction(value, thousandths):
    """Naive: ceil(16.1 * 1000) = 16101, the float's own error."""
    assert milli(np.array(value)) == thousandths


# --- windows and rates: rows 15-26 --------------------------------------------------------------

ONE = MetricSpec("in_flight", 1.0)
"""A metric whose value is the recommendation, wherever it lies outside the tolerance."""
PLAIN = HpaConfig((ONE,))
DEFAULT = HpaConfig((ONE,), behavior=Behavior())
UP_60 = HpaConfig((ONE,), behavior=Behavior(scale_up=ScalingRules(stabilization_window_s=60.0)))
DOWN_10 = HpaConfig(
    (ONE,),
    behavior=Behavior(
        scale_down=ScalingRules(
            stabilization_window_s=0.0, policies=(ScalingPolicy("Percent", 10, 60.0),)
        )
    ),
)
DOWN_2 = HpaConfig(
    (ONE,),
    behavior=Behavior(
        scale_down=ScalingRules(
            stabilization_window_s=0.0, policies=(ScalingPolicy("Pods", 2, 300.0),)
        )
    ),
)
DISABLED = HpaConfig(
    (ONE,),
    behavior=Behavior(
        ScalingRules(select_policy="Disabled"),
        ScalingRules(select_policy="Disabled", stabilization_window_s=0.0),
    ),
)
STEPS = (ScalingPolicy("Pods", 1, 60.0), ScalingPolicy("Percent", 50, 60.0))
SMALLEST = HpaConfig(
    (ONE,),
    behavior=Behavior(
        ScalingRules(policies=STEPS, select_policy="Min"),
        ScalingRules(policies=STEPS, select_policy="Min", stabilization_window_s=0.0),
    ),
)
LARGEST = HpaConfig(
    (ONE,),
    behavior=Behavior(
        ScalingRules(policies=STEPS),
        ScalingRules(policies=STEPS, stabilization_window_s=0.0),
    ),
)


@dataclass(frozen=True)
class Past:
    """What an HPA remembers, as age in s: value."""

    recommended: dict[float, int]
    added: dict[float, int]
    removed: dict[float, int]


def past(
    recommended: dict[float, int] | None = None,
    added: dict[float, int] | None = None,
    removed: dict[float, int] | None = None,
) -> Past:
    return Past(recommended or {}, added or {}, removed or {})


WINDOW_ROWS = {
    # id: (config, n, desired, past, result)
    "15 down: the largest of the window": (DEFAULT, 10, 4, past({290: 6, 120: 5}), 6),
    "16 an entry past the window is too old": (DEFAULT, 10, 4, past({310: 9, 120: 5}), 5),
    # Naive: max of the window, 8: scaling up while the metric says down.
    "17 the window does not lift n": (DEFAULT, 5, 3, past({200: 8}), 5),
    "18 up: the smallest of the window": (UP_60, 4, 8, past({30: 5}), 5),
    # Naive: min of the window, 3: scaling down while the metric says up.
    "18 the window does not push n down": (UP_60, 4, 8, past({30: 3}), 4),
    "19 up by 4 or double, from 4": (DEFAULT, 4, 20, past(), 8),
    "19 up by 4 or double, from 1": (DEFAULT, 1, 20, past(), 5),
    # Naive: 12, counting from n and forgetting what was just added.
    "20 what was added in the period is taken off": (DEFAULT, 8, 20, past(added={10: 4}), 8),
    "20 what was added before the period is not": (DEFAULT, 8, 20, past(added={20: 4}), 16),
    # Naive: ceil(22.5) = 23.
    "21 a percentage down is cut, not rounded": (DOWN_10, 25, 5, past(), 22),
    # Naive: trunc(22 * 0.9) = 19.
    "22 what was removed in the period is put back": (DOWN_10, 22, 5, past(removed={30: 3}), 22),
    # Naive: 6 - 2 = 4.
    "22a after a scale-up a policy down reaches further": (
        DOWN_2,
        6,
        2,
        past(added={180: 2}),
        2,
    ),
    "23 disabled up": (DISABLED, 3, 5, past(), 3),
    "23 disabled down": (DISABLED, 5, 3, past(), 5),
    "24 without behavior: at least 4": (PLAIN, 1, 10, past(), 4),
    "24 without behavior: double": (PLAIN, 3, 10, past(), 6),
    "24 without behavior: double again": (PLAIN, 5, 20, past(), 10),
    # Naive: 3, but here the window is no clamp: an old recommendation scales up.
    "25 without behavior the window lifts n": (PLAIN, 3, 2, past({100: 8}), 6),
    "26 with behavior it does not": (DEFAULT, 3, 2, past({100: 8}), 3),
    # Trap (f): real syncs lie a little over 15 s apart, so the edge is outside on an exact grid.
    "an age equal to the window is outside": (DEFAULT, 10, 4, past({300: 9, 285: 5}), 5),
    "an age equal to the window is outside, without behavior": (
        PLAIN,
        10,
        4,
        past({300: 9, 285: 5}),
        5,
    ),
    "an age equal to the period is outside": (DEFAULT, 8, 20, past(added={15: 4}), 16),
    "a write that is 14.99 s old still counts": (DEFAULT, 8, 20, past(added={14.99: 4}), 8),
    # start 6: up min(7, 9) and max, down max(5, 3) and min.
    "the smallest change up": (SMALLEST, 6, 20, past(), 7),
    "the largest change up": (LARGEST, 6, 20, past(), 9),
    # Naive: trunc(7.5) = 7.
    "a percentage up is rounded up": (LARGEST, 5, 20, past(), 8),
    "the smallest change down": (SMALLEST, 6, 1, past(), 5),
    "the largest change down": (LARGEST, 6, 1, past(), 3),
    # start 2 - 5 < 0: the limit lies below n, and n stays.
    "a limit never goes against the direction": (SMALLEST, 6, 20, past(added={30: 5}), 6),
    "a limit never goes against the direction, down": (
        SMALLEST,
        6,
        1,
        past(removed={30: 9}),
        6,
    ),
    "not above the upper bound": (LARGEST, 80, 1000, past(), 100),
    "not above the upper bound without behavior": (PLAIN, 80, 1000, past(), 100),
    "not below the lower bound": (LARGEST, 1, 0, past(), 1),
    "not below the lower bound without behavior": (PLAIN, 2, 0, past(), 1),
}

LONG_AGO_S = 20_000.0
"""Age of an entry that keeps the first sync from seeding the history with n."""


def remembered(rule: HpaRule, then: Past) -> np.ndarray:
    memory = empty_memory(rule, 1)
    state = rule.layout.views(memory)
    for entries, values in (
        (state.recommended, {LONG_AGO_S: 1, **then.recommended}),
        (state.ups, then.added),
        (state.downs, then.removed),
    ):
        for place, (age, value) in enumerate(values.items()):
            entries.at_s[0, place] = NOW_S - age
            entries.value[0, place] = value
    return memory


def syncing(n: int, desired: int) -> Observation:
    return observation(n, in_flight=float(desired), status_replicas=float(n))


@pytest.mark.parametrize(
    ("config", "n", "desired", "then", "result"), WINDOW_ROWS.values(), ids=WINDOW_ROWS
)
def test_windows_and_rates_give_what_kubernetes_gives(config, n, desired, then, result):
    rule = HpaRule(config)
    history = replace(
        History(KNOBS).observed(syncing(n, desired)),
        memory=tuple(remembered(rule, then)[0]),
    )
    proposal = propose_one(rule, history)
    assert proposal.raw == desired
    assert proposal.settings == {"replicas": result}


@pytest.mark.parametrize("config", [DEFAULT, PLAIN, UP_60, SMALLEST, LARGEST])
def test_a_batch_scales_row_by_row_as_one_target_does(config):
    rows = [row[1:] for row in WINDOW_ROWS.values() if row[0] is config]
    rule = HpaRule(config)
    now = stacked([syncing(n, desired) for n, desired, _, _ in rows])
    memory = np.concatenate([remembered(rule, then) for _, _, then, _ in rows])
    result = rule.decide(now, memory)
    assert len(rows) > 1
    np.testing.assert_array_equal(result.settings[:, REPLICAS], [row[3] for row in rows])


def test_above_or_below_its_bounds_n_is_set_without_a_look_at_metrics_or_rates():
    config = replace(SMALLEST, min_replicas=5, max_replicas=10)
    rule = HpaRule(config)
    rows = [syncing(40, 40), syncing(2, 2), observation(40), observation(2)]
    result = rule.decide(stacked(rows), empty_memory(rule, len(rows)))
    np.testing.assert_array_equal(result.settings[:, REPLICAS], [10, 5, 10, 5])
    assert np.isnan(result.raw).all()


# --- what is remembered -------------------------------------------------------------------------


@dataclass
class Fleet:
    """A target that does what HPA says, sync by sync."""

    rule: HpaRule
    n: int | None
    at_s: float = 0.0
    memory: np.ndarray | None = None

    def sync(self, desired: float | None, *, follow: bool = True) -> RuleResult:
        exist = None if self.n is None else float(self.n)
        now = observation(self.n, self.at_s, in_flight=desired, status_replicas=exist)
        memory = empty_memory(self.rule, 1) if self.memory is None else self.memory
        result = self.rule.decide(ObservationArrays.of(KNOBS, now), memory)
        wanted = result.settings[0, REPLICAS]
        if follow and not np.isnan(wanted):
            self.n = int(wanted)
        self.memory = result.memory
        self.at_s += 15.0
        return result

    @property
    def recommended(self) -> list[float]:
        at = self.rule.layout.views(self.memory).recommended
        order = np.argsort(at.at_s[0], kind="stable")
        return [value for value in at.value[0, order] if not np.isnan(value)]


def test_the_first_sync_seeds_the_history_with_n():
    """Naive: 2 at once. The seed is what keeps a new HPA from scaling down for five minutes."""
    fleet = Fleet(HpaRule(PLAIN), n=6)
    counts = [fleet.sync(2) and fleet.n for _ in range(22)]
    # The seed is 300 s old at the 21st sync, and on the edge is outside.
    assert counts == [6] * 20 + [2, 2]


def test_the_first_sync_seeds_the_history_even_when_metrics_fail():
    fleet = Fleet(HpaRule(PLAIN), n=6)
    fleet.sync(None)
    assert fleet.recommended == [6]


def test_the_history_waits_for_a_count_to_begin_with():
    fleet = Fleet(HpaRule(PLAIN), n=None)
    fleet.sync(3)
    assert np.isnan(fleet.memory).all()


def test_errors_and_forced_bounds_are_not_recorded_and_staying_is():
    fleet = Fleet(HpaRule(replace(PLAIN, max_replicas=8)), n=8)
    fleet.sync(8)
    fleet.sync(None)
    fleet.n = 20
    fleet.sync(20)
    fleet.sync(8)
    assert fleet.recommended == [8, 8, 8]  # seed, first sync, last sync
    assert fleet.n == 8


def test_a_long_silence_forgets_nothing_and_outlives_every_window():
    fleet = Fleet(HpaRule(PLAIN), n=6)
    fleet.sync(6)
    for _ in range(30):
        fleet.sync(None)
    assert fleet.n == 6
    assert fleet.recommended == [6, 6]
    fleet.sync(2)
    assert fleet.n == 2


def test_own_writes_limit_the_next_ones():
    """+2 in 60 s: three syncs without, then again."""
    rules = Behavior(ScalingRules(policies=(ScalingPolicy("Pods", 2, 60.0),)))
    fleet = Fleet(HpaRule(replace(DEFAULT, behavior=rules)), n=4)
    counts = [fleet.sync(40) and fleet.n for _ in range(9)]
    assert counts == [6, 6, 6, 6, 8, 8, 8, 8, 10]


def test_forced_bounds_are_own_writes_too():
    """5 -> 8 by the lower bound: +3 of the 4 that a minute allows are spent."""
    rules = Behavior(ScalingRules(policies=(ScalingPolicy("Pods", 4, 60.0),)))
    fleet = Fleet(HpaRule(replace(DEFAULT, behavior=rules, min_replicas=8)), n=5)
    fleet.sync(40)
    assert fleet.n == 8
    fleet.sync(40)
    assert fleet.n == 9


def test_a_proposal_that_was_not_followed_is_no_write():
    """A fallback in waiting: nothing that it asked for happened, so nothing is spent."""
    rules = Behavior(ScalingRules(policies=(ScalingPolicy("Pods", 2, 60.0),)))
    fleet = Fleet(HpaRule(replace(DEFAULT, behavior=rules)), n=4)
    for _ in range(3):
        assert fleet.sync(40, follow=False).settings[0, REPLICAS] == 6
    fleet.sync(40)
    assert fleet.n == 6


def test_a_proposal_that_a_guardrail_narrowed_counts_as_far_as_it_went():
    rules = Behavior(ScalingRules(policies=(ScalingPolicy("Pods", 6, 60.0),)))
    fleet = Fleet(HpaRule(replace(DEFAULT, behavior=rules)), n=4)
    assert fleet.sync(40, follow=False).settings[0, REPLICAS] == 10
    fleet.n = 7
    assert fleet.sync(40, follow=False).settings[0, REPLICAS] == 10


def test_a_scale_down_that_was_narrowed_counts_as_far_as_it_went():
    rules = Behavior(
        scale_down=ScalingRules(
            stabilization_window_s=0.0, policies=(ScalingPolicy("Pods", 6, 60.0),)
        )
    )
    fleet = Fleet(HpaRule(replace(DEFAULT, behavior=rules)), n=20)
    assert fleet.sync(1, follow=False).settings[0, REPLICAS] == 14
    fleet.n = 17
    assert fleet.sync(1, follow=False).settings[0, REPLICAS] == 14


def test_writes_of_others_are_never_events():
    """Naive: counts the jump to 20 and holds for a minute."""
    rules = Behavior(ScalingRules(policies=(ScalingPolicy("Pods", 2, 60.0),)))
    fleet = Fleet(HpaRule(replace(DEFAULT, behavior=rules)), n=4)
    fleet.sync(4)
    fleet.n = 20
    fleet.sync(40)
    assert fleet.n == 22


def test_an_event_past_its_own_direction_s_periods_is_overwritten_though_the_other_looks_further():
    """Up looks back 15 s, down 300 s: of two scale-ups only the last is left for down to see."""
    rules = Behavior(
        scale_down=ScalingRules(
            stabilization_window_s=0.0, policies=(ScalingPolicy("Pods", 1, 300.0),)
        )
    )
    fleet = Fleet(HpaRule(replace(DEFAULT, behavior=rules)), n=4)
    fleet.sync(8)
    fleet.sync(8)
    fleet.sync(10)
    assert fleet.n == 10
    fleet.sync(1)
    assert fleet.n == 7  # 10 - 2 - 1; with both scale-ups remembered it would be 3


def test_of_several_outdated_events_the_last_is_overwritten():
    """Up looks back 60 s, down 300 s; up-events at 0, 15 and 30 s, then at 285 s.

    The one of 30 s makes room, though that of 0 s is older: at 300 s down sees those of 15 s (edge:
    285 s old) and of 285 s.
    """
    rules = Behavior(
        ScalingRules(policies=(ScalingPolicy("Pods", 50, 60.0),)),
        ScalingRules(stabilization_window_s=0.0, policies=(ScalingPolicy("Pods", 1, 300.0),)),
    )
    fleet = Fleet(HpaRule(replace(DEFAULT, behavior=rules)), n=10)
    for desired in (12, 16, 24):  # +2, +4, +8
        fleet.sync(desired)
    while fleet.at_s < 285.0:
        fleet.sync(24)
    fleet.sync(40)  # +16
    assert (fleet.n, fleet.at_s) == (40, 300.0)
    fleet.sync(1)
    assert fleet.n == 40 - 4 - 16 - 1


def test_memory_is_sized_by_the_longest_window_and_period():
    assert Layout.of(PLAIN) == Layout(recommendations=22, ups=0, downs=0)
    assert Layout.of(DEFAULT) == Layout(recommendations=22, ups=3, downs=3)
    assert Layout.of(DOWN_2) == Layout(recommendations=2, ups=3, downs=22)
    assert Layout.of(replace(PLAIN, sync_period_s=60.0)).recommendations == 7
    assert HpaRule(DOWN_2).memory_size == 2 * (2 + 3 + 22) + 3


def test_syncs_that_jitter_lose_no_entry_of_the_window():
    """Syncs 14.99 s apart put one more entry into 300 s than 15 s would."""
    rule = HpaRule(PLAIN)
    memory = empty_memory(rule, 1)
    for tick in range(21):
        now = replace(syncing(6, 9 if tick == 0 else 6), at_s=1.7e9 + 14.99 * tick)
        memory = rule.decide(ObservationArrays.of(KNOBS, now), memory).memory
    now = replace(syncing(6, 2), at_s=1.7e9 + 14.99 * 20 + 0.01)
    result = rule.decide(ObservationArrays.of(KNOBS, now), memory)
    assert result.settings[0, REPLICAS] == 9


def test_it_survives_every_missing_field_and_an_unknown_count():
    now = observation(None, replicas=pods((2, READY, None)))
    for config in (PODS, EA20, EV100, SEVERAL, DEFAULT):
        rule = HpaRule(config)
        result = rule.decide(ObservationArrays.of(KNOBS, now), empty_memory(rule, 1))
        for answer in (result.settings, result.raw, result.need, result.memory):
            assert np.isnan(answer).all()


def test_it_does_not_write_into_the_memory_it_was_given():
    rule = HpaRule(DEFAULT)
    memory = empty_memory(rule, 1)
    rule.decide(ObservationArrays.of(KNOBS, syncing(4, 20)), memory)
    assert np.isnan(memory).all()


# --- what is refused ----------------------------------------------------------------------------

REFUSED = {
    "an unknown field": (lambda: MetricSpec("queue_dept", 1.0), "did you mean 'queue_depth'"),
    "a fleet field as Pods": (lambda: MetricSpec("qps", 1.0, "Pods"), "known: running"),
    "a target of 0": (lambda: MetricSpec("qps", 0.0), "expected a number above 0"),
    "a target that is no number": (lambda: MetricSpec("qps", float("nan")), "above 0"),
    "a Value for Pods": (
        lambda: MetricSpec("running", 1.0, "Pods", "Value"),
        "use AverageValue",
    ),
    "a policy without width": (lambda: ScalingPolicy("Pods", 0, 15.0), "expected 1 or more"),
    "a period of 0": (lambda: ScalingPolicy("Pods", 1, 0.0), "expected above 0"),
    "a period over half an hour": (lambda: ScalingPolicy("Pods", 1, 1801.0), "at most 1800"),
    "a window over an hour": (lambda: ScalingRules(3601.0), "expected 0 to 3600"),
    "no policy": (lambda: ScalingRules(policies=()), "no scaling policy"),
    "a negative tolerance": (lambda: ScalingRules(tolerance=-0.1), "expected 0 or more"),
    "no metric": (lambda: HpaConfig(()), "no metric"),
    "scale to zero": (lambda: replace(PLAIN, min_replicas=0), "expected 1 or more"),
    "bounds that cross": (
        lambda: replace(PLAIN, min_replicas=9, max_replicas=8),
        "min_replicas 9 is above max_replicas 8",
    ),
    "an upper bound of 0": (lambda: replace(PLAIN, max_replicas=0), "expected 1 or more"),
    "a negative cluster tolerance": (lambda: replace(PLAIN, tolerance=-1.0), "0 or more"),
    "a negative cluster window": (
        lambda: replace(PLAIN, downscale_stabilization_s=-1.0),
        "expected 0 to 3600",
    ),
    "no time between ticks": (lambda: replace(PLAIN, sync_period_s=0.0), "expected above 0"),
}


@pytest.mark.parametrize(("make", "sentence"), REFUSED.values(), ids=REFUSED)
def test_refuses_what_the_api_server_refuses(make, sentence):
    with pytest.raises(ConfigError, match=sentence):
        make()


def test_every_field_of_the_state_can_be_a_metric():
    for spec in FIELDS:
        now = observation(2, **{"status_replicas": 2.0, spec.name: 5.0})
        rule = HpaRule(HpaConfig((MetricSpec(spec.name, 1.0),)))
        result = rule.decide(ObservationArrays.of(KNOBS, now), empty_memory(rule, 1))
        assert result.raw == 5
