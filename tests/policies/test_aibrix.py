"""AIBrix's two scalers as tables: pkg/controller/podautoscaler, vllm-project/aibrix@e3e10f9e4a."""

# A row of a table is a line, however long the sentence.
# ruff: noqa: E501

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from policies import RulePolicy, build_policy
from policies.aibrix import cooled
from policies.entries import Entries
from tests.policies.test_contract import observations
from tests.policies.test_hpa import KNOBS, NOW_S, observation, pods
from tuner.core.decision import Proposal
from tuner.core.errors import ConfigError
from tuner.core.history import History
from tuner.core.observation import Observation, ReplicaState

READY, STARTING = ReplicaState.READY, ReplicaState.STARTING
POD = {"metric": "running", "target": 10.0}
FLEET = {"metric": "in_flight", "target": 10.0}
TICK_S = 10.0


def built(name: str, **options: float | str) -> RulePolicy:
    return build_policy(name, options, KNOBS, tick_s=TICK_S)


def fleet(n: int | None, each: float | None, at_s: float = NOW_S, **fields: float) -> Observation:
    """n replicas, all ready, all with the same `running`."""
    return observation(n, at_s, replicas=pods((n or 1, READY, each)), **fields)


def run(policy: RulePolicy, *looks: Observation) -> Proposal:
    """The proposal at the last of these looks."""
    memory: tuple[float, ...] = ()
    for now in looks:
        proposal = policy.propose(replace(History(KNOBS).observed(now), memory=memory))
        memory = proposal.memory
    return proposal


def replicas(policy: RulePolicy, *looks: Observation) -> float | None:
    return run(policy, *looks).settings.get("replicas")


# APA ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["as-written", "hpa-style"])
@pytest.mark.parametrize(
    ("n", "each", "expected"),
    [
        pytest.param(4, 13.0, 6, id="1 ceil(5.2)"),
        pytest.param(4, 30.0, 8, id="2 at most twofold"),
        pytest.param(4, 11.0, 4, id="3 the upper end of the tolerance is inside"),
        pytest.param(4, 11.01, 5, id="3 just above it"),
        pytest.param(4, 6.0, 3, id="4 ceil(2.4)"),
        pytest.param(4, 1.0, 2, id="4 at least half"),
        pytest.param(5, 1.0, 2, id="4 half is rounded down"),
        pytest.param(3, 8.0, 3, id="5 rounding up brings it back to n"),
        pytest.param(20, 9.0, 20, id="the lower end of the tolerance is inside"),
        pytest.param(4, 0.0, 2, id="no load is an answer"),
        pytest.param(4, None, None, id="no answer leaves the count"),
        pytest.param(None, 20.0, None, id="n is not known"),
        pytest.param(0, 20.0, None, id="scaled to 0 by hand"),
        pytest.param(100, 20.0, 100, id="at most what the knob allows"),
    ],
)
def test_apa_scales_n_by_the_mean_of_its_pods(variant, n, each, expected):
    assert replicas(built("aibrix-apa", variant=variant, **POD), fleet(n, each)) == expected


@pytest.mark.parametrize(
    ("hpa_style", "row"),
    [
        # n, recommendation now, an older one and its age, result
        pytest.param(False, (8, 6, 3, 200, 3), id="6 as written: the lowest"),
        pytest.param(True, (8, 6, 3, 200, 6), id="6 hpa-style: the highest"),
        pytest.param(False, (8, 3, 8, 100, 3), id="7 as written: no delay at all"),
        pytest.param(True, (8, 3, 8, 100, 8), id="7 hpa-style: held"),
        pytest.param(False, (8, 6, 3, 300, 6), id="as written: as old as the window is outside"),
        pytest.param(True, (8, 3, 8, 300, 3), id="hpa-style: as old as the window is outside"),
        # A naive maximum would go up on a recommendation to go down.
        pytest.param(True, (8, 3, 12, 100, 8), id="hpa-style: never above n on the way down"),
        pytest.param(False, (8, 10, 3, 100, 10), id="as written: not on the way up"),
        pytest.param(True, (8, 10, 12, 100, 10), id="hpa-style: not on the way up"),
        pytest.param(False, (8, 8, 3, 100, 8), id="as written: not where n is right"),
    ],
)
def test_the_cooldown_reads_its_window(hpa_style, row):
    n, wanted, older, age_s, expected = (np.array([float(x)]) for x in row)
    seen = Entries(NOW_S - age_s[:, None], older[:, None])
    now = cooled(seen, np.array([NOW_S]), 300.0, n, wanted, hpa_style=hpa_style)
    np.testing.assert_array_equal(now, expected)


@pytest.mark.parametrize(("variant", "expected"), [("as-written", 4), ("hpa-style", 8)])
def test_the_cooldown_remembers_what_was_recommended(variant, expected):
    # 8 was right 190 s ago: long out of the mean, and inside the cool-down.
    policy = built("aibrix-apa", variant=variant, **POD)
    assert replicas(policy, fleet(8, 10.0, NOW_S - 190), fleet(8, 1.0)) == expected


def test_apa_averages_over_its_window():
    policy = built("aibrix-apa", **POD)
    # (10 + 20) / 2 while both are younger than 180 s; then 20 alone.
    assert replicas(policy, fleet(4, 10.0, NOW_S - 170), fleet(4, 20.0)) == 6
    assert replicas(policy, fleet(4, 10.0, NOW_S - 180), fleet(4, 20.0)) == 8
    short = built("aibrix-apa", window_s=60.0, **POD)
    assert replicas(short, fleet(4, 10.0, NOW_S - 170), fleet(4, 20.0)) == 8


def test_apa_runs_away_while_replicas_start():
    # Two pods serve and stay at three times their target; those that start do not answer yet.
    policy = built("aibrix-apa", **POD)
    memory, n, seen = (), 2, []
    for look in range(4):
        at = pods((2, READY, 30.0), (n - 2, STARTING, None))
        now = observation(n, NOW_S + TICK_S * look, replicas=at)
        proposal = policy.propose(replace(History(KNOBS).observed(now), memory=memory))
        memory, n = proposal.memory, int(proposal.settings["replicas"])
        seen.append(n)
    assert seen == [4, 8, 16, 32]


def test_a_pod_that_drains_is_still_asked():
    at = pods((2, READY, 8.0), (2, ReplicaState.DRAINING, 20.0))
    assert replicas(built("aibrix-apa", **POD), observation(2, replicas=at)) == 3


def test_a_rate_of_the_fleet_is_shared_among_those_that_serve():
    policy = built("aibrix-apa", metric="output_tokens_per_s", target=1000.0)
    now = observation(4, output_tokens_per_s=3900.0, ready_replicas=3.0)
    assert replicas(policy, now) == 6  # 1,300 each: ceil(4 x 1.3)
    assert replicas(policy, replace(now, draining_replicas=1.0)) == 4  # 975 each
    assert replicas(policy, replace(now, ready_replicas=0.0)) is None


# KPA ------------------------------------------------------------------------------------------


def total(n: int, value: float | None, at_s: float = NOW_S) -> Observation:
    return observation(n, at_s, in_flight=value)


def windows(n: int, old: tuple[float, ...], now: float) -> tuple[Observation, ...]:
    """Looks older than the short window, and one now: `now` is the short window's mean."""
    ages = (170.0 - TICK_S * place for place in range(len(old)))
    looks = [total(n, value, NOW_S - age) for value, age in zip(old, ages, strict=True)]
    return (*looks, total(n, now))


@pytest.mark.parametrize(
    ("variant", "looks", "expected"),
    [
        # Means over 180 s and 60 s are in the ids.
        pytest.param("as-written", windows(4, (44,), 52), 5, id="1: 48, 52"),
        pytest.param("as-written", windows(4, (10, 0), 50), 5, id="2: 20, 50 is panic"),
        pytest.param("as-written", windows(4, (10,) * 4, 200), 8, id="3: 48, 200, at most twofold"),
        pytest.param("as-written", windows(4, (), 0), 2, id="4: nothing is panic, at least half"),
        pytest.param("as-written", windows(4, (), 10.5), 4, id="5: near the target of one"),
        pytest.param("as-written", windows(4, (), 11), 4, id="the upper end is inside"),
        pytest.param("as-written", windows(4, (), 9), 4, id="the lower end is inside"),
        pytest.param("as-written", windows(4, (10, 20), 60), 3, id="30, 60: twice is no panic"),
        pytest.param("as-written", windows(8, (5, 0), 25), 8, id="10, 25: panic takes the larger"),
        pytest.param("as-written", windows(0, (), 50), None, id="scaled to 0 by hand"),
        pytest.param("as-written", (total(4, None),), None, id="no answer leaves the count"),
        pytest.param("total-based", windows(4, (44,), 52), 5, id="total 1"),
        pytest.param("total-based", windows(4, (10, 0), 50), 5, id="total 2"),
        pytest.param("total-based", windows(4, (10,) * 4, 200), 8, id="total 3"),
        pytest.param("total-based", windows(4, (), 0), 2, id="total 4"),
        pytest.param("total-based", windows(4, (), 10.5), 2, id="total 5: two are needed"),
        pytest.param("total-based", windows(4, (), 43), 4, id="total: near four targets"),
        pytest.param("total-based", windows(4, (), 44.1), 5, id="total: above four targets"),
    ],
)
def test_kpa_asks_both_windows(variant, looks, expected):
    # Without the cool-down: it would go down to what the older looks recommended.
    policy = built("aibrix-kpa", variant=variant, cooldown_s=0.0, **FLEET)
    assert replicas(policy, *looks) == expected


def test_kpa_takes_a_sum_of_fields():
    policy = built("aibrix-kpa", metric="running+queue_depth", target=10.0)
    assert replicas(policy, observation(4, running=40.0, queue_depth=8.0)) == 5
    assert replicas(policy, observation(4, running=40.0)) is None


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        # 20 % overloaded: the mean of 12 is taken for a total.
        pytest.param("as-written", 2, id="6 scales down under overload"),
        pytest.param("total-based", 5, id="6 summed"),
    ],
)
def test_kpa_on_a_pod_source(variant, expected):
    policy = built("aibrix-kpa", variant=variant, source="pod", **POD)
    assert replicas(policy, fleet(4, 11.0, NOW_S - 170), fleet(4, 13.0)) == expected


def test_kpa_goes_down_in_panic():
    # The latch that should forbid it does not outlive a look.
    policy = built("aibrix-kpa", cooldown_s=0.0, **FLEET)
    assert replicas(policy, *windows(10, (0, 0), 60)) == 6


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("aibrix-apa", {"metric": "runing"}, "'runing' is no metric of source pod; did you mean"),
        ("aibrix-apa", {"metric": "ttft_p99_s"}, "no metric of source pod; known: running"),
        ("aibrix-apa", {"target": 0}, "target is 0; expected above 0"),
        ("aibrix-apa", {"tolerance": -1}, "tolerance is -1; expected 0 or more"),
        ("aibrix-apa", {"window_s": 0}, "window_s is 0 s; expected 1 to 3,600"),
        ("aibrix-apa", {"cooldown_s": 4000}, "cooldown_s is 4,000 s; expected 0 to 3,600"),
        ("aibrix-apa", {"variant": "hpa"}, "variant is 'hpa'; expected one of as-written, hpa-"),
        ("aibrix-kpa", {"panic_window_s": 200}, "panic_window_s is 200 s; expected 1 to 180"),
        ("aibrix-kpa", {"panic_threshold": 0}, "panic_threshold is 0; expected above 0"),
        (
            "aibrix-kpa",
            {"panic_windw_s": 3},
            "unknown option 'panic_windw_s'; did you mean 'panic_window_s'",
        ),
    ],
)
def test_an_option_that_cannot_be_is_refused(name, options, message):
    with pytest.raises(ConfigError, match=f"{name}: .*{message}"):
        built(name, **options)


@pytest.mark.parametrize("tick_s", [0.0, float("nan")])
def test_a_tick_that_cannot_be_is_refused(tick_s):
    with pytest.raises(ConfigError, match="the time between two ticks is"):
        build_policy("aibrix-apa", {}, KNOBS, tick_s=tick_s)


# Words ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "looks", "words"),
    [
        ("aibrix-apa", [fleet(4, 13.0)], "running 13 each over 180 s, target 10: 6"),
        ("aibrix-apa", [fleet(4, 30.0)], "running 30 each over 180 s, target 10: 12, at most 8 in one step"),
        ("aibrix-apa", [fleet(4, 1.0)], "running 1 each over 180 s, target 10: 1, at least 2 in one step"),
        ("aibrix-apa", [fleet(4, 9.5)], "running 9.5 each over 180 s, within 10 % of the target 10: 4"),
        ("aibrix-apa", [fleet(90, 20.0)], "running 20 each over 180 s, target 10: 180, at most 100 allowed"),
        ("aibrix-apa", [fleet(6, 1.0, NOW_S - 200), fleet(8, 7.5)], "running 7.5 each over 180 s, target 10: 6, taken to 3 by the lowest of the last 300 s"),
        ("aibrix-apa", [fleet(4, None)], "no replica reports running"),
        ("aibrix-apa", [fleet(None, 2.0)], "the replicas in force are not known"),
        ("aibrix-apa", [fleet(0, 2.0)], "scaled to 0 by hand, which AIBrix leaves"),
        ("hpa-style", [fleet(8, 10.0, NOW_S - 190), fleet(8, 5.0)], "running 5 each over 180 s, target 10: 4, held at 8 by the highest of the last 300 s"),
        ("aibrix-kpa", windows(4, (44,), 52), "in_flight 48 over 180 s, target 10 each: 5"),
        ("aibrix-kpa", windows(4, (10, 0), 50), "in_flight 20 over 180 s, target 10 each; panic: 50 over 60 s: 5"),
        ("aibrix-kpa", windows(4, (), 0), "in_flight 0 over 180 s, target 10 each; panic: 0 over 60 s: 0, at least 2 in one step"),
        ("aibrix-kpa", windows(4, (), 10.5), "in_flight 10.5 over 180 s, target 10 each; within 10 % of one replica's target: 4"),
        ("aibrix-kpa", [total(4, None)], "no value for in_flight"),
        ("total-based", windows(4, (), 43), "in_flight 43 over 180 s, target 10 each; within 10 % of 4 targets: 4"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)  # fmt: skip
def test_the_words_are_those_of_the_numbers(policy, looks, words):
    assert run(WORDED[policy], *looks).why == words


WORDED = {
    "aibrix-apa": built("aibrix-apa", **POD),
    "hpa-style": built("aibrix-apa", variant="hpa-style", **POD),
    "aibrix-kpa": built("aibrix-kpa", **FLEET),
    "total-based": built("aibrix-kpa", variant="total-based", **FLEET),
}


@pytest.mark.parametrize("policy", WORDED)
@given(now=observations)
@settings(max_examples=25, deadline=None)
def test_there_is_a_word_for_anything_that_may_be_seen(policy, now):
    said = run(WORDED[policy], now).why
    assert said
    assert len(said.splitlines()) == 1
    assert "nan" not in said
