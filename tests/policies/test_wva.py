"""WVA's two analyzers and the HPA behind them, as tables.

llm-d/llm-d-workload-variant-autoscaler@b08b1c77c8: internal/saturation/analyzer.go,
internal/engines/analyzers/saturation_v2/analyzer.go, internal/engines/pipeline/.
"""

# A row of a table is a line, however long the sentence.
# ruff: noqa: E501

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from policies import RulePolicy, build_policy
from policies.wva import Pods
from policies.wva_v1 import WvaV1
from policies.wva_v2 import EngineArguments, Lengths, WvaV2
from tests.policies.test_contract import PROFILE, observations
from tests.policies.test_hpa import KNOBS, NOW_S, observation
from tuner.core.decision import Proposal
from tuner.core.errors import ConfigError
from tuner.core.history import History
from tuner.core.observation import Observation, ObservationArrays, ReplicaObservation, ReplicaState
from tuner.knobs import knob_space

READY, STARTING, DRAINING = ReplicaState.READY, ReplicaState.STARTING, ReplicaState.DRAINING
SYNC_S = 15.0


def fleet(
    *replicas: tuple[float | None, float | None],
    starting: int = 0,
    silent: int = 0,
    n: int | None = None,
    at_s: float = NOW_S,
    **fields: object,
) -> Observation:
    """Ready replicas that report `kv_cache_usage` and `queue_depth`, and some that do not."""
    told = [
        ReplicaObservation(f"r{i}", READY, 900.0, queue_depth=queue, kv_cache_usage=kv)
        for i, (kv, queue) in enumerate(replicas)
    ]
    states = [READY] * silent + [STARTING] * starting
    others = [ReplicaObservation(f"s{i}", state, 60.0) for i, state in enumerate(states)]
    ready = len(replicas) + silent
    return observation(
        ready + starting if n is None else n,
        at_s,
        replicas=(*told, *others),
        **{
            "status_replicas": float(ready + starting),
            "ready_replicas": float(ready),
            **fields,
        },
    )


def wanted(
    analyzer: WvaV1 | WvaV2, now: Observation, *, gauge: float | None = None
) -> float | None:
    """The gauge that one analysis asks for; None where it is skipped."""
    arrays = ObservationArrays.of(KNOBS, now)
    before = np.array([np.nan if gauge is None else gauge])
    memory = np.full((1, analyzer.memory_size), np.nan)
    found = float(analyzer.analyse(Pods.of(arrays), arrays, before, memory).wanted[0])
    return None if np.isnan(found) else found


def built(name: str, *, tick_s: float = SYNC_S, **options: float | str) -> RulePolicy:
    return build_policy(name, options, KNOBS, tick_s=tick_s, profile=PROFILE)


def run(policy: RulePolicy, *looks: Observation) -> list[Proposal]:
    memory: tuple[float, ...] = ()
    proposals = []
    for now in looks:
        proposal = policy.propose(replace(History(KNOBS).observed(now), memory=memory))
        proposals.append(proposal)
        memory = proposal.memory
    return proposals


# V1 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "gauge", "expected"),
    [
        pytest.param(fleet((0.75, 1), (0.72, 0), (0.74, 2)), None, 4, id="1 KV to spare .0633"),
        pytest.param(fleet(*[(0.40, 0)] * 3), None, 2, id="2 one fewer leaves .20"),
        pytest.param(fleet(*[(0.50, 0)] * 3), None, 3, id="3 one fewer leaves .05"),
        pytest.param(fleet(*[(0.45, 0)] * 2), None, 2, id="4 one fewer leaves -.10"),
        pytest.param(fleet((0.3, 2), (0.3, 2), (0.3, 3), (0.3, 3)), None, 5, id="5 queue 2.5"),
        pytest.param(fleet(*[(0.20, 1)] * 2), None, 1, id="6 one fewer leaves exactly 3"),
        pytest.param(fleet((0.85, 0), (0.90, 0)), None, 3, id="7 none unsaturated"),
        # A naive mean over all five, or a look at the worst, would keep it.
        pytest.param(fleet((0.95, 0), *[(0.20, 0)] * 4), None, 4, id="8 a hot spot is not seen"),
        pytest.param(fleet(*[(0.2, 0)] * 3, starting=1), 4, 4, id="9 three of four report"),
        pytest.param(fleet(*[(0.2, 0)] * 3), 4, 4, id="9 the fourth does not exist yet"),
        pytest.param(fleet(*[(0.9, 0)] * 3, silent=1), 4, 4, id="one is silent: no move up"),
        pytest.param(fleet(*[(0.2, 0)] * 3, silent=1), None, 4, id="one is silent: no move down"),
        pytest.param(fleet((0.1, 0)), None, 1, id="the last one stays"),
        pytest.param(fleet((0.1, 5), (0.1, 0)), None, 2, id="saturated by queue: one is left to look at"),
        pytest.param(fleet((0.80, 0), (0.34, 0), (0.34, 0)), None, 2, id="saturated from the threshold on"),
        pytest.param(fleet((0.1, None), (None, 0.0)), None, 1, id="what is not told counts as 0"),
        pytest.param(fleet(silent=2), None, None, id="none tells anything"),
        pytest.param(fleet((0.1, 0), status_replicas=None, ready_replicas=None), None, None, id="what exists is not known"),
    ],
)  # fmt: skip
def test_v1_moves_by_one_on_what_is_to_spare(now, gauge, expected):
    assert wanted(WvaV1(), now, gauge=gauge) == expected


def test_v1_removes_one_where_what_is_left_just_suffices():
    analyzer = WvaV1(kv_threshold=0.75, kv_spare=0.25)
    assert wanted(analyzer, fleet((0.25, 0), (0.25, 0))) == 1
    assert wanted(analyzer, fleet((0.25, 0), (0.26, 0))) == 2


def test_v1_does_not_count_what_drains():
    leaving = ReplicaObservation("l", DRAINING, 900.0, queue_depth=9.0, kv_cache_usage=0.9)
    now = fleet(*[(0.40, 0)] * 3)
    assert wanted(WvaV1(), replace(now, replicas=(*now.replicas, leaving))) == 2


# V2 -------------------------------------------------------------------------------------------

INPUT = {"qps": 1.0, "prompt_tokens_per_s": 2000.0}
V2 = WvaV2(kv_tokens=100_000.0)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        pytest.param(fleet((0.60, 2), (0.64, 1), (0.62, 0), **INPUT), 3, id="1 neither short nor to spare"),
        pytest.param(fleet(*[(0.70, 15)] * 3, **INPUT), 6, id="2 142,941 short of 70,000 each"),
        pytest.param(fleet(*[(0.70, 15)] * 3, starting=2, **INPUT), 6, id="3 two start, one more"),
        pytest.param(fleet(*[(0.70, 15)] * 3, starting=3, **INPUT), 6, id="4 three start, enough"),
        pytest.param(fleet(*[(0.20, 0)] * 5, **INPUT), 2, id="5 3.21 to spare"),
        pytest.param(fleet(*[(0.0, 0)] * 5, **INPUT), 1, id="the last one stays"),
        pytest.param(fleet(*[(0.20, 0)] * 5, starting=5, **INPUT), 7, id="what starts is not to spare yet"),
        pytest.param(fleet(*[(0.0, 15)] * 3, **INPUT), 2, id="a full queue over an empty cache shows nothing"),
        # Those that are silent count as capacity without demand, as the original has it.
        pytest.param(fleet((0.20, 0), silent=4, **INPUT), 1, id="silent replicas are supply"),
        pytest.param(fleet(*[(0.70, 15)] * 3), 4, id="input not known: the queue has no tokens"),
        pytest.param(fleet(silent=3, **INPUT), None, id="none tells anything"),
        pytest.param(fleet((0.2, 0), ready_replicas=None, **INPUT), None, id="ready is not known"),
    ],
)  # fmt: skip
def test_v2_counts_tokens(now, expected):
    assert wanted(V2, now) == expected


def test_v2_counts_whole_tokens():
    # 64 + 4 x 1 is 85 % of 80; 64 + 4 x 1.9 would be more.
    now = fleet((0.64, 4), qps=1.0, prompt_tokens_per_s=1.9)
    assert wanted(WvaV2(kv_tokens=100.0), now) == 1
    assert wanted(WvaV2(kv_tokens=100.0), replace(now, prompt_tokens_per_s=2.0)) == 2


def test_v2_takes_tokens_in_use_as_the_engine_tells_them():
    now = fleet(*[(0.20, 0)] * 5, **INPUT)
    told = tuple(replace(each, kv_tokens=62_000.0) for each in now.replicas)
    assert wanted(V2, now) == 2
    assert wanted(V2, replace(now, replicas=told)) == 5


@pytest.mark.parametrize(
    ("arguments", "mean_input", "mean_output", "expected"),
    [
        pytest.param(EngineArguments(8192, 256), 1500, 500, 448_000, id="6 by sequences"),
        pytest.param(EngineArguments(2048, 64), 1800, 200, 121_600, id="7 by sequences"),
        pytest.param(EngineArguments(2048, 512), 1800, 200, 389_120, id="7 by tokens"),
        pytest.param(EngineArguments(2048, 512), 1800, 0, 0, id="no output, no figure"),
        pytest.param(EngineArguments(2048, 512), 0, 0, 0, id="nothing known"),
    ],
)
def test_v2_works_a_capacity_out_of_engine_arguments(arguments, mean_input, mean_output, expected):
    lengths = Lengths(np.array([float(mean_input)]), np.array([float(mean_output)]))
    assert arguments.capacity(lengths) == expected


def loaded(kv: float, queue: float, output: float) -> Observation:
    """Four replicas alike; 1,000 tokens of input and so many of output per request."""
    rates = {"qps": 1.0, "prompt_tokens_per_s": 1000.0, "output_tokens_per_s": output}
    return fleet(*[(kv, queue)] * 4, **rates)


class Remembering:
    """An analyzer that is handed its own memory."""

    def __init__(self, analyzer: WvaV2) -> None:
        self.analyzer = analyzer
        self.memory = np.full((1, analyzer.memory_size), np.nan)

    def capacity(self, now: Observation) -> float:
        """Tokens per replica, as the last analysis took them."""
        arrays = ObservationArrays.of(KNOBS, now)
        found = self.analyzer.analyse(Pods.of(arrays), arrays, np.array([4.0]), self.memory)
        self.memory = found.memory
        demand = sum(each.kv_cache_usage * self.analyzer.kv_tokens for each in now.replicas)
        demand += sum(each.queue_depth * 1000.0 for each in now.replicas)
        return round(demand / self.analyzer.scale_up_threshold / float(found.need[0]))


def test_v2_remembers_what_a_saturated_queue_showed():
    v2 = Remembering(V2)
    assert v2.capacity(loaded(0.3, 0, 600.0)) == 80_000  # nothing known yet: k1
    assert v2.capacity(loaded(0.3, 5, 600.0)) == 30_000  # observed
    assert v2.capacity(loaded(0.5, 4, 600.0)) == 30_000  # remembered
    assert v2.capacity(loaded(0.5, 6, 600.0)) == 50_000  # observed again, remembered as well
    assert v2.capacity(loaded(0.1, 0, 600.0)) == 40_000  # the mean of four and four
    assert v2.capacity(loaded(0.1, 0, 499.0)) == 80_000  # another bucket
    v2.capacity(loaded(0.5, 6, 600.0))
    assert v2.capacity(loaded(0.1, 0, 600.0)) == 46_000  # the last ten: two of four, and eight
    assert v2.capacity(loaded(0.9, 9, 600.0)) == 80_000  # k1 is the limit of any


def test_v2_prefers_what_it_remembers_to_the_arguments():
    v2 = Remembering(replace(V2, arguments=EngineArguments(8192, 20)))
    assert v2.capacity(loaded(0.1, 0, 600.0)) == 26_000  # 20 x (1,000 + 300)
    v2.capacity(loaded(0.3, 5, 600.0))
    assert v2.capacity(loaded(0.1, 0, 600.0)) == 30_000


@pytest.mark.parametrize(
    ("usages", "expected"),
    [((0.2, 0.3, 0.4), 30_000), ((0.2, 0.3, 0.4, 0.41), 35_000), ((0.2,), 20_000)],
    ids=["odd", "even", "one"],
)
def test_v2_takes_the_median_replica(usages, expected):
    rates = {"qps": 1.0, "prompt_tokens_per_s": 1000.0, "output_tokens_per_s": 600.0}
    now = fleet(*[(usage, 5.0) for usage in usages], silent=2, **rates)
    assert Remembering(V2).capacity(replace(now, replicas=now.replicas[: len(usages)])) == expected


def test_v2_needs_the_size_of_the_cache():
    with pytest.raises(ConfigError, match=r"wva-v2: .* name a profile .* or set kv_tokens"):
        build_policy("wva-v2", {}, KNOBS, tick_s=15.0)
    build_policy("wva-v2", {"kv_tokens": 1e5}, KNOBS, tick_s=15.0)


# The chain ------------------------------------------------------------------------------------


def chained(policy: RulePolicy, ticks: int, look, n: int, cold_start_s: float = 0.0) -> list[int]:
    """Replicas wanted at each tick; one that is added exists at once and reports once warm."""
    memory, warm, seen = (), [(0.0, n)], []
    for tick in range(ticks):
        at_s = SYNC_S * tick
        reporting = next(count for since, count in reversed(warm) if since <= at_s)
        reporting = min(reporting, n)
        now = look(reporting, n - reporting, at_s)
        proposal = policy.propose(replace(History(KNOBS).observed(now), memory=memory))
        memory = proposal.memory
        n = int(proposal.settings.get("replicas", n))
        warm.append((at_s + cold_start_s, n))
        seen.append(n)
    return seen


def busy(kv: float):
    def look(reporting: int, starting: int, at_s: float) -> Observation:
        return fleet(*[(kv, 0.0)] * reporting, starting=starting, at_s=at_s)

    return look


def test_the_gauge_is_written_every_60_s_and_followed_at_every_tick():
    # One more at 0, 60 and 120 s: nothing in between, though every tick sees the same load.
    assert chained(built("wva-v1"), 9, busy(0.9), 3) == [4, 4, 4, 4, 5, 5, 5, 5, 6]


@pytest.mark.parametrize("tick_s", [5.0, 15.0, 60.0, 90.0])
def test_the_analysis_keeps_its_own_period_whatever_the_tick(tick_s):
    policy, ticks = built("wva-v1", tick_s=tick_s, apply="direct"), 24
    looks = [fleet(*[(0.9, 0)] * 3, at_s=tick_s * i) for i in range(ticks)]
    analysed = [proposal.memory[0] for proposal in run(policy, *looks)]
    gaps = set(np.diff(sorted(set(analysed))))
    assert gaps == {max(60.0, tick_s)}


def test_a_clock_that_drifts_does_not_cost_a_period():
    policy = built("wva-v1", apply="direct")
    first, second = run(policy, fleet((0.9, 0)), fleet((0.9, 0), at_s=NOW_S + 60 - 1e-6))
    assert second.memory[0] > first.memory[0]


def test_nothing_is_learned_between_two_analyses():
    policy = built("wva-v2", kv_tokens=1e5)
    between = fleet(*[(0.5, 9)] * 3, at_s=NOW_S + SYNC_S, **INPUT)
    then = replace(between, at_s=NOW_S + 60.0)
    _, second, third = run(policy, fleet(*[(0.5, 0)] * 3, **INPUT), between, then)
    kept = slice(2, 2 + V2.memory_size)
    assert np.isnan(second.memory[kept]).all()
    assert sorted(x for x in third.memory[kept] if not np.isnan(x)) == [50_000.0] * 3


def test_v1_waits_while_a_replica_starts():
    assert chained(built("wva-v1"), 14, busy(0.9), 3, cold_start_s=100.0) == [4] * 8 + [5] * 6


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # 11 / 10 is inside the tolerance, and V1 then waits for the eleventh for ever.
        pytest.param({}, [10] * 20, id="the tolerance swallows one replica, and V1 is stuck"),
        pytest.param({"tolerance": 0.05}, [11] * 4 + [12] * 4 + [13] * 4 + [14] * 4 + [15] * 4, id="a smaller tolerance"),
        pytest.param({"apply": "direct"}, [11] * 4 + [12] * 4 + [13] * 4 + [14] * 4 + [15] * 4, id="direct"),
    ],
)  # fmt: skip
def test_v1_behind_the_tolerance_of_the_hpa(options, expected):
    assert chained(built("wva-v1", **options), 20, busy(0.9), 10) == expected


@pytest.mark.parametrize(
    ("n", "gauge", "expected"),
    [(10, 11, 10), (10, 12, 12), (9, 10, 10), (10, 9, 10), (10, 8, 8), (20, 22, 20), (20, 23, 23)],
)
def test_the_gauge_passes_the_tolerance_of_the_hpa(n, gauge, expected):
    # kedacore/keda and HPA treat a gauge of wanted replicas alike: AverageValue 1.
    policy = built("wva-v2", kv_tokens=1e5, downscale_stabilization_s=0.0)
    rule = policy.rule
    memory = np.full((1, rule.memory_size), np.nan)
    memory[0, :2] = NOW_S - SYNC_S, gauge  # analysed a tick ago
    now = ObservationArrays.of(KNOBS, fleet(*[(0.3, 0)] * n))
    result = rule.decide(now, memory)
    assert result.settings[0, KNOBS.column("replicas")] == expected


def test_the_hpa_holds_back_what_goes_down():
    # The seed of the HPA's history, 5, is held for 300 s; V2 asks for 2 at once.
    seen = chained(built("wva-v2", kv_tokens=1e5), 22, busy(0.2), 5)
    assert seen[:20] == [5] * 20
    assert seen[20:] == [2] * 2


def test_the_gauge_is_held_to_what_the_knob_allows():
    # WVA's own gauge would be 101 here, and V1 would wait for that one for ever.
    policy = built("wva-v1", apply="direct")
    up = run(policy, fleet(*[(0.9, 0)] * 100))[0]
    assert up.settings["replicas"] == up.memory[1] == 100
    assert wanted(WvaV1(), fleet(*[(0.2, 0)] * 100), gauge=up.memory[1]) == 99


def test_a_skipped_analysis_leaves_the_gauge():
    policy = built("wva-v1", apply="direct")
    first, second = run(policy, fleet(*[(0.9, 0)] * 3), fleet(silent=4, at_s=NOW_S + 60.0))
    assert first.settings["replicas"] == second.settings["replicas"] == 4
    nothing_yet = run(policy, fleet(silent=4))[0]
    assert "replicas" not in nothing_yet.settings


@pytest.mark.parametrize("apply", ["hpa", "direct"])
def test_what_is_scaled_to_0_by_hand_stays_there(apply):
    policy = built("wva-v1", apply=apply)
    looks = (fleet(*[(0.9, 0)] * 3), fleet(n=0, at_s=NOW_S + SYNC_S))
    assert "replicas" not in run(policy, *looks)[-1].settings


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("wva-v1", {"kv_spare": 0.8}, "wva-v1: kv_spare is 0.8 and kv_threshold 0.8; expected"),
        ("wva-v1", {"queue_threshold": 3}, "wva-v1: queue_spare is 3 and queue_threshold 3; exp"),
        ("wva-v2", {"kv_threshold": 0}, "wva-v2: kv_threshold is 0; expected above 0"),
        (
            "wva-v2",
            {"kv_tokens": 0},
            "wva-v2: kv_tokens is 0; expected so many that 80 % of them is 1",
        ),
        ("wva-v2", {"queue_threshold": 0.5}, "wva-v2: queue_threshold is 0.5; expected 1 or more"),
        ("wva-v2", {"scale_down_boundary": 0.9}, "wva-v2: scale_down_boundary is 0.9 and scale_up"),
        ("wva-v2", {"apply": "now"}, "wva-v2: apply is 'now'; expected one of hpa, direct"),
        ("wva-v1", {"apply": "direct", "tolerance": 0}, "wva-v1: unknown option 'tolerance'"),
        ("wva-v1", {"tolerance": -1}, "tolerance is -1.0; expected 0 or more"),
    ],
)
def test_an_option_that_cannot_be_is_refused(name, options, message):
    with pytest.raises(ConfigError, match=message):
        built(name, **options)


# Words ----------------------------------------------------------------------------------------

LATER = {"at_s": NOW_S + SYNC_S}


@pytest.mark.parametrize(
    ("name", "options", "looks", "words"),
    [
        ("wva-v1", {}, [fleet((0.75, 1), (0.72, 0), (0.74, 2))], "3 of 3 replicas unsaturated, with 6.33 % KV and 4 waiting to spare each, less than 10 % KV: 4"),
        ("wva-v1", {}, [fleet((0.95, 0), *[(0.20, 0)] * 4)], "4 of 5 replicas unsaturated, with 60 % KV and 5 waiting to spare each, still 53.3 % KV and 5 waiting with one fewer: 4, held at 5 by hpa's window of 300 s"),
        ("wva-v1", {}, [fleet(*[(0.50, 0)] * 3)], "3 of 3 replicas unsaturated, with 30 % KV and 5 waiting to spare each, only 5 % KV and 5 waiting with one fewer: 3"),
        ("wva-v1", {}, [fleet((0.75, 3), (0.1, 9))], "1 of 2 replicas unsaturated, with 5 % KV and 2 waiting to spare, less than 10 % KV and 3 waiting: 3"),
        ("wva-v1", {}, [fleet((0.3, 3))], "1 of 1 replica unsaturated, with 50 % KV and 2 waiting to spare, less than 3 waiting: 2"),
        ("wva-v1", {"apply": "direct"}, [fleet((0.3, 3), n=0)], "1 of 1 replica unsaturated, with 50 % KV and 2 waiting to spare, less than 3 waiting: 2, not applied to what was scaled to 0 by hand"),
        ("wva-v2", {"kv_tokens": 1e5}, [fleet((0.1, 0))], "10,000 tokens in use or waiting, at most 85 % of 1 replica of 80,000 tokens: 1"),
        ("wva-v1", {}, [fleet((0.5, 0))], "1 of 1 replica unsaturated, with 30 % KV and 5 waiting to spare: 1"),
        ("wva-v1", {}, [fleet((0.85, 0), (0.90, 0))], "all 2 replicas are saturated, by 80 % KV or 5 waiting: 3"),
        ("wva-v1", {}, [fleet(*[(0.2, 0)] * 3, starting=1)], "waits, as 4 replicas exist and 3 report: 4"),
        ("wva-v1", {}, [fleet(*[(0.9, 0)] * 10), fleet(*[(0.9, 0)] * 10, at_s=NOW_S + 60)], "waits, as it asked for 11 replicas and 10 exist: 11, but hpa stays at 10, within its 10 %"),
        ("wva-v1", {}, [fleet(*[(0.9, 0)] * 3), fleet(*[(0.9, 0)] * 4, **LATER)], "as analysed 15 s ago: 4"),
        ("wva-v1", {}, [fleet(silent=2)], "no replica reports its KV cache or queue"),
        ("wva-v1", {}, [fleet(*[(0.9, 0)] * 3), fleet(silent=4, at_s=NOW_S + 60)], "no replica reports its KV cache or queue, so the last word stands: 4"),
        ("wva-v1", {}, [fleet((0.1, 0), status_replicas=None, ready_replicas=None)], "no value for status_replicas"),
        ("wva-v1", {}, [fleet(*[(0.9, 0)] * 3, n=0)], "all 3 replicas are saturated, by 80 % KV or 5 waiting: 4, which hpa does not follow: scaled to 0 by hand, which hpa leaves"),
        ("wva-v1", {"apply": "direct"}, [fleet(*[(0.40, 0)] * 3)], "3 of 3 replicas unsaturated, with 40 % KV and 5 waiting to spare each, still 20 % KV and 5 waiting with one fewer: 2"),
        ("wva-v2", {"kv_tokens": 1e5}, [fleet(*[(0.70, 15)] * 3, **INPUT)], "300,000 tokens in use or waiting, more than 85 % of 3 replicas of 70,000 tokens: 6"),
        ("wva-v2", {"kv_tokens": 1e5}, [fleet(*[(0.70, 60)] * 3, **INPUT)], "570,000 tokens in use or waiting, more than 85 % of 3 replicas of 70,000 tokens: 10, at most 6 in one step of hpa"),
        ("wva-v2", {"kv_tokens": 1e5, "apply": "direct"}, [fleet(*[(0.70, 15)] * 60, **INPUT)], "6,000,000 tokens in use or waiting, more than 85 % of 60 replicas of 70,000 tokens: 101, at most 100 allowed"),
        ("wva-v2", {"kv_tokens": 1e5}, [fleet((0.60, 2), (0.64, 1), (0.62, 0), **INPUT)], "192,000 tokens in use or waiting, at most 85 % of 3 replicas of 80,000 tokens, more than 70 % of 2: 3"),
        ("wva-v2", {"kv_tokens": 1e5}, [fleet(*[(0.20, 0)] * 5, **INPUT)], "100,000 tokens in use or waiting, at most 70 % of 2 replicas of 80,000 tokens: 2, held at 5 by hpa's window of 300 s"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)  # fmt: skip
def test_the_words_are_those_of_the_numbers(name, options, looks, words):
    assert run(built(name, **options), *looks)[-1].why == words


def test_the_words_know_the_lower_bound_of_the_knob():
    knobs = knob_space(replicas=(4, 8))
    policy = build_policy("wva-v2", {"kv_tokens": 1e5}, knobs, tick_s=SYNC_S)
    proposal = policy.propose(History(knobs).observed(fleet(*[(0.20, 0)] * 5, **INPUT)))
    words = "at most 70 % of 2 replicas of 80,000 tokens: 2, at least 4 allowed, held at 5 by hpa"
    assert words in proposal.why


@pytest.mark.parametrize("apply", ["hpa", "direct"])
@pytest.mark.parametrize("name", ["wva-v1", "wva-v2"])
@given(now=observations)
@settings(max_examples=25, deadline=None)
def test_there_is_a_word_for_anything_that_may_be_seen(name, apply, now):
    for proposal in run(built(name, apply=apply), now, replace(now, at_s=SYNC_S)):
        assert proposal.why
        assert len(proposal.why.splitlines()) == 1
        assert "nan" not in proposal.why
