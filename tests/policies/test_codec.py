"""The codec: features that are always numbers in range, heads that keep their word."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from policies import codec as codec_module
from policies.codec import FEATURES, Codec, CodecConfig
from policies.rule import RuleResult
from tuner.core.errors import ConfigError
from tuner.core.observation import (
    COLUMN,
    FIELDS,
    REPLICA_FIELDS,
    ObservationArrays,
    ReplicaArrays,
)
from tuner.core.protocols import FloatArray
from tuner.knobs import knob_space

KNOBS = knob_space(batch_size=(1, 128), replicas=(1, 40))
BATCH, REPLICAS, THREADS, WARMUP = range(4)


@dataclass(frozen=True)
class TokenRule:
    """Base rule of the tests: need = output tokens/s over a target, no windows."""

    target: float = 500.0

    @property
    def memory_size(self) -> int:
        return 2

    def decide(self, now: ObservationArrays, memory: FloatArray) -> RuleResult:
        need = now.column("output_tokens_per_s") / self.target
        wanted = np.full(now.settings.shape, np.nan)
        wanted[:, REPLICAS] = np.ceil(need)
        counted = np.where(np.isnan(memory), 0.0, memory) + 1
        return RuleResult(settings=wanted, raw=np.ceil(need), need=need, memory=counted)


def observed(
    n: int = 1, at_s: float = 0.0, *, in_force: float = 4.0, **fields: float
) -> ObservationArrays:
    """n equal targets with the given fields measured and all others missing."""
    values = np.full((n, len(FIELDS)), np.nan)
    for name, value in fields.items():
        values[:, COLUMN[name]] = value
    row = KNOBS.row({"batch_size": 128, "replicas": in_force, "threads": 4, "warmup_requests": 0})
    return ObservationArrays(
        knobs=KNOBS,
        at_s=np.full(n, at_s),
        age_s=np.zeros(n),
        values=values,
        settings=np.tile(row, (n, 1)),
        replicas=ReplicaArrays.of(()),
    )


def feature(codec: Codec, features: np.ndarray, name: str) -> float:
    names = [spec.name for spec in codec.features]
    return float(features[0, names.index(name)])


def run(codec: Codec, ticks: list[ObservationArrays], actions: list[float]) -> list[float]:
    """Replicas wanted at each tick."""
    memory = codec.empty_memory(1)
    wanted = []
    for now, action in zip(ticks, actions, strict=True):
        seen = codec.observe(now, memory)
        row = np.zeros((1, 4), dtype=np.float32)
        row[0, REPLICAS] = action
        proposed, memory = codec.act(row, now, seen)
        wanted.append(float(proposed[0, REPLICAS]))
    return wanted


# Documentation -------------------------------------------------------------------------------


def test_the_documented_table_is_the_feature_list() -> None:
    rows = re.findall(
        r"^ {4}\| (\w+) \| (-?[\d.]+) \| (-?[\d.]+) \| (-?[\d.]+) \|$",
        codec_module.__doc__ or "",
        flags=re.MULTILINE,
    )
    documented = [(name, float(low), float(high), float(gone)) for name, low, high, gone in rows]
    assert documented == [(s.name, s.low, s.high, s.missing) for s in FEATURES]


def test_every_feature_has_a_unit_a_meaning_and_a_missing_value_in_range() -> None:
    for spec in FEATURES:
        assert spec.unit, spec.name
        assert spec.meaning, spec.name
        assert spec.low <= spec.missing <= spec.high, spec.name


# Spaces --------------------------------------------------------------------------------------


def test_only_heads_that_move_have_a_range() -> None:
    codec = Codec(KNOBS, TokenRule(), CodecConfig(move=("replicas", "batch_size")))
    assert codec.action_high.tolist() == [1, 1, 0, 0]
    assert codec.action_low.tolist() == [-1, -1, 0, 0]


def test_a_pinned_knob_does_not_move_even_when_asked_for_and_says_why() -> None:
    why = "profile p has no frontend section"
    codec = Codec(KNOBS, TokenRule(), CodecConfig(move=("replicas", "threads")), {"threads": why})
    assert codec.moves == ("replicas",)
    assert codec.still["threads"] == why
    assert set(codec.still) == {"batch_size", "threads", "warmup_requests"}
    proposed, _ = codec.act(
        np.ones((1, 4)), now := observed(), codec.observe(now, codec.empty_memory(1))
    )
    assert np.isnan(proposed[0, THREADS])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"replica_action": "delta"}, "codec.replica_action is 'delta'"),
        ({"factor_low": 1.2}, "expected 0 < factor_low < 1 < factor_high"),
        ({"factor_high": 0.9}, "expected 0 < factor_low < 1 < factor_high"),
        ({"factor_low": 0.0}, "expected 0 < factor_low < 1 < factor_high"),
        ({"max_step": 0}, "codec.max_step is 0"),
        ({"tick_s": 0.0}, "tick_s > 0"),
        ({"hold_s": -1.0}, "hold_s >= 0"),
        ({"ttft_objective_s": 0.0}, "expected both above 0"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_rejects_a_configuration_that_cannot_be(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        replace(CodecConfig(), **change)  # type: ignore[arg-type]


def test_rejects_a_head_for_a_knob_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="knob 'gears' is not known"):
        Codec(KNOBS, TokenRule(), CodecConfig(move=("gears",)))


# Heads ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("need", "action", "expected"),
    [
        (5.0, 0.0, 5),  # exactly the rule's need, no rounding error upwards
        (5.2, 0.0, 6),
        (10.0, 1.0, 16),
        (10.0, -1.0, 7),
        (10.0, 0.5, 13),  # 10 x 1.6^0.5 = 12.65
        (10.0, -0.5, 9),  # 10 x 0.7^0.5 = 8.37
        (100.0, 0.0, 40),  # the knob's ceiling
        (0.0, 0.0, 1),  # its floor
        (10.0, 7.0, 16),  # actions are cut to -1..1
    ],
)
def test_the_factor_head_scales_the_need(need: float, action: float, expected: int) -> None:
    codec = Codec(KNOBS, TokenRule(), CodecConfig(hold_s=0.0))
    assert run(codec, [observed(output_tokens_per_s=need * 500)], [action]) == [expected]


@given(need=st.floats(0.01, 39.9))
def test_factor_one_is_the_rules_need_rounded_up(need: float) -> None:
    codec = Codec(KNOBS, TokenRule(target=1.0), CodecConfig(hold_s=0.0))
    assert run(codec, [observed(output_tokens_per_s=need)], [0.0]) == [max(1, np.ceil(need))]


def test_holds_what_was_wanted_for_the_hold_window_and_then_lets_go() -> None:
    codec = Codec(KNOBS, TokenRule(), CodecConfig(hold_s=60.0, tick_s=15.0))
    load = [10, 3, 3, 3, 3, 3]
    ticks = [
        observed(at_s=15.0 * i, in_force=1.0, output_tokens_per_s=500.0 * x)
        for i, x in enumerate(load)
    ]
    # As HPA on an exact grid: the wish of 60 s ago is out.
    assert run(codec, ticks, [0.0] * 6) == [10, 10, 10, 10, 3, 3]


@pytest.mark.parametrize("period_s", [5.0, 15.0, 30.0, 47.0])
def test_the_hold_lasts_as_long_at_any_period_of_the_controller(period_s: float) -> None:
    config = CodecConfig(hold_s=120.0, tick_s=15.0)
    count = int(240 / period_s)
    ticks = [
        observed(at_s=period_s * i, in_force=1.0, output_tokens_per_s=500.0 * (10 if i == 0 else 2))
        for i in range(count)
    ]
    wanted = run(Codec(KNOBS, TokenRule(), config), ticks, [0.0] * count)
    for tick, value in zip(ticks, wanted, strict=True):
        if tick.at_s[0] <= config.hold_s - config.tick_s:
            assert value == 10
        if tick.at_s[0] >= config.hold_s + config.tick_s:
            assert value == 2


def test_starts_with_the_replicas_in_force_in_its_window() -> None:
    codec = Codec(KNOBS, TokenRule(), CodecConfig(hold_s=30.0))
    ticks = [observed(at_s=15.0 * i, in_force=9.0, output_tokens_per_s=1000.0) for i in range(3)]
    assert run(codec, ticks, [0.0] * 3) == [9, 9, 2]


def test_leaves_replicas_alone_where_the_rule_cannot_tell_but_keeps_holding() -> None:
    codec = Codec(KNOBS, TokenRule(), CodecConfig(hold_s=60.0))
    ticks = [
        observed(at_s=0.0, in_force=1.0, output_tokens_per_s=5000.0),
        observed(at_s=15.0, in_force=1.0),
        observed(at_s=30.0, in_force=1.0, output_tokens_per_s=500.0),
    ]
    wanted = run(codec, ticks, [0.0] * 3)
    assert wanted[0] == 10
    assert np.isnan(wanted[1])
    assert wanted[2] == 10


@pytest.mark.parametrize(
    ("action", "expected"), [(0.0, 6), (1.0, 10), (-1.0, 2), (0.3, 7), (0.1, 6)]
)
def test_the_step_head_moves_from_the_replicas_in_force(action: float, expected: int) -> None:
    codec = Codec(KNOBS, TokenRule(), CodecConfig(replica_action="step", max_step=4))
    tick = observed(in_force=6.0, output_tokens_per_s=500.0)
    assert run(codec, [tick], [action]) == [expected]


@pytest.mark.parametrize(
    ("knob", "action", "expected"),
    [
        (BATCH, -1.0, 1),
        (BATCH, 0.0, 128),
        (BATCH, 1.0, 128),
        (BATCH, -0.5, 15),  # sqrt(2 x 129) - 1
        (WARMUP, 0.0, 0),
        (WARMUP, 1.0, 2048),
        (WARMUP, 0.5, 44),  # sqrt(2049) - 1
        (THREADS, 0.0, 4),
    ],
)
def test_other_heads_run_from_low_over_default_to_high(
    knob: int, action: float, expected: int
) -> None:
    codec = Codec(KNOBS, TokenRule(), CodecConfig(move=KNOBS.names))
    row = np.zeros((1, 4))
    row[0, knob] = action
    now = observed(output_tokens_per_s=500.0)
    proposed, _ = codec.act(row, now, codec.observe(now, codec.empty_memory(1)))
    assert proposed[0, knob] == expected


def test_replicas_without_a_head_follow_the_base_rule() -> None:
    codec = Codec(KNOBS, TokenRule(), CodecConfig(move=("batch_size",)))
    assert run(codec, [observed(output_tokens_per_s=3100.0)], [1.0]) == [7]


# Features ------------------------------------------------------------------------------------


def test_features_are_relative_to_need_and_objectives() -> None:
    codec = Codec(KNOBS, TokenRule(), CodecConfig())
    now = observed(
        in_force=8.0,
        output_tokens_per_s=2000.0,
        ready_replicas=4.0,
        starting_replicas=4.0,
        in_flight=508.0,
        ttft_p50_s=5.0,
        tpot_p99_s=0.0375,
    )
    features = codec.observe(now, codec.empty_memory(1)).features
    expected = {
        "need_known": 1,
        "latency_known": 1,
        "need_log2": 2,
        "ready_vs_need": 0,
        "present_vs_need": 1,
        "wanted_vs_need": 1,
        "base_vs_need": 0,
        "held_vs_need": 1,
        "starting_share": 0.5,
        "in_flight_per_ready": 7,
        "in_flight_per_slot": 508 / 512,
        "ttft_p50_vs_objective": 1,
        "ttft_p99_vs_objective": -8,
        "tpot_p99_vs_objective": -1,
        "need_vs_1m": 0,
    }
    assert {name: feature(codec, features, name) for name in expected} == pytest.approx(expected)


def test_averages_follow_their_time_constants_at_irregular_ticks() -> None:
    codec = Codec(KNOBS, TokenRule(target=1.0))
    memory = codec.empty_memory(1)
    average = 4.0
    seen = codec.observe(now := observed(at_s=0.0, output_tokens_per_s=4.0), memory)
    _, memory = codec.act(np.zeros((1, 4)), now, seen)
    at_s = 0.0
    for step_s, need in ((15.0, 8.0), (40.0, 8.0), (5.0, 2.0)):
        at_s += step_s
        average += (need - average) * (1 - np.exp(-step_s / 300.0))
        seen = codec.observe(now := observed(at_s=at_s, output_tokens_per_s=need), memory)
        _, memory = codec.act(np.zeros((1, 4)), now, seen)
        expected = np.log2((need + 0.05) / (average + 0.05))
        assert feature(codec, seen.features, "need_vs_5m") == pytest.approx(expected, abs=1e-6)


def test_an_unknown_need_is_flagged_and_the_last_one_stands() -> None:
    codec = Codec(KNOBS, TokenRule(target=1.0))
    seen = codec.observe(now := observed(output_tokens_per_s=8.0), codec.empty_memory(1))
    _, memory = codec.act(np.zeros((1, 4)), now, seen)
    features = codec.observe(observed(at_s=15.0), memory).features
    assert feature(codec, features, "need_known") == 0
    assert feature(codec, features, "need_log2") == 3
    assert feature(codec, features, "need_vs_1m") == 0


def test_ages_of_starting_replicas_are_seen_and_those_of_others_are_not() -> None:
    codec = Codec(KNOBS, TokenRule())
    codes = np.array([[3, 1, 2, 4, -1]])  # ready, starting, warming, draining, none
    ages = np.array([[9000.0, 600.0, 300.0, 9000.0, np.nan]])
    now = replace(
        observed(output_tokens_per_s=500.0),
        replicas=ReplicaArrays(codes, ages, np.full((1, 5, len(REPLICA_FIELDS)), np.nan)),
    )
    features = codec.observe(now, codec.empty_memory(1)).features
    assert feature(codec, features, "starting_oldest") == 1.0
    assert feature(codec, features, "starting_youngest") == 0.5


@pytest.mark.parametrize("seen", [True, False])
def test_the_clock_is_seen_only_where_asked_for(seen: bool) -> None:
    codec = Codec(KNOBS, TokenRule(), CodecConfig(time_of_day=seen))
    early, late = (
        codec.observe(observed(at_s=at_s, qps=1.0), codec.empty_memory(1)).features
        for at_s in (0.0, 21_600.0)
    )
    assert early.shape == (1, len(FEATURES) - (0 if seen else 2))
    assert np.array_equal(early, late) is not seen
    if seen:
        assert feature(codec, late, "day_sin") == pytest.approx(1.0)
        assert feature(codec, early, "day_cos") == 1.0


ANYTHING = st.one_of(st.floats(allow_nan=True, allow_infinity=True), st.just(np.nan))


@st.composite
def ticks_of_anything(draw: st.DrawFn) -> list[ObservationArrays]:
    """A few ticks of two targets in which any figure may be missing or absurd."""
    clock = np.cumsum(draw(arrays(np.float64, (4, 2), elements=st.floats(0, 4000))), axis=0)
    return [
        ObservationArrays(
            knobs=KNOBS,
            at_s=clock[i],
            age_s=np.zeros(2),
            values=draw(arrays(np.float64, (2, len(FIELDS)), elements=ANYTHING)),
            settings=draw(
                arrays(np.float64, (2, 4), elements=st.floats(0, 2048) | st.just(np.nan))
            ),
            replicas=ReplicaArrays(
                draw(arrays(np.int64, (2, 3), elements=st.integers(-1, 4))),
                draw(arrays(np.float64, (2, 3), elements=st.floats(0, 1e9) | st.just(np.nan))),
                np.full((2, 3, len(REPLICA_FIELDS)), np.nan),
            ),
        )
        for i in range(4)
    ]


@settings(max_examples=60, deadline=None)
@given(
    ticks=ticks_of_anything(),
    actions=arrays(np.float32, (4, 2, 4), elements=st.floats(-3, 3, width=32)),
    style=st.sampled_from(["factor", "step"]),
)
def test_any_observation_gives_numbers_in_range_and_settings_in_bounds(
    ticks: list[ObservationArrays], actions: np.ndarray, style: str
) -> None:
    config = CodecConfig(
        replica_action=style,  # type: ignore[arg-type]
        move=KNOBS.names,
        time_of_day=True,
    )
    codec = Codec(KNOBS, TokenRule(), config)
    memory = codec.empty_memory(2)
    for now, action in zip(ticks, actions, strict=True):
        seen = codec.observe(now, memory)
        assert seen.features.dtype == np.float32
        assert np.isfinite(seen.features).all()
        assert (seen.features >= codec.observation_low).all()
        assert (seen.features <= codec.observation_high).all()
        proposed, memory = codec.act(action, now, seen)
        assert not np.isinf(memory).any()
        known = proposed[~np.isnan(proposed)]
        assert np.array_equal(known, np.rint(known))
        assert (np.isnan(proposed) | (proposed >= KNOBS.low)).all()
        assert (np.isnan(proposed) | (proposed <= KNOBS.high)).all()
        for knob in (BATCH, THREADS, WARMUP):
            assert not np.isnan(proposed[:, knob]).any()


def test_a_batch_is_many_batches_of_one_to_the_bit() -> None:
    codec = Codec(KNOBS, TokenRule(), CodecConfig(move=KNOBS.names, time_of_day=True))
    rng = np.random.default_rng(5)
    n = 37
    together, apart = codec.empty_memory(n), [codec.empty_memory(1) for _ in range(n)]
    for tick in range(30):
        now = _random(rng, n, 15.0 * tick)
        action = rng.uniform(-1, 1, (n, 4)).astype(np.float32)
        seen = codec.observe(now, together)
        proposed, together = codec.act(action, now, seen)
        for i in range(n):
            one = _row(now, i)
            seen_one = codec.observe(one, apart[i])
            proposed_one, apart[i] = codec.act(action[i : i + 1], one, seen_one)
            assert np.array_equal(seen_one.features[0], seen.features[i])
            assert np.array_equal(proposed_one[0], proposed[i], equal_nan=True)
            assert np.array_equal(apart[i][0], together[i], equal_nan=True)


def test_neither_inputs_nor_what_was_seen_are_changed() -> None:
    codec = Codec(KNOBS, TokenRule())
    now, memory = _random(np.random.default_rng(1), 5, 0.0), codec.empty_memory(5)
    seen = codec.observe(now, memory)
    assert np.isnan(memory).all()
    before = seen.memory.copy()
    first, _ = codec.act(np.ones((5, 4)), now, seen)
    second, _ = codec.act(np.ones((5, 4)), now, seen)
    assert np.array_equal(first, second, equal_nan=True)
    assert np.array_equal(before, seen.memory, equal_nan=True)


def _random(rng: np.random.Generator, n: int, at_s: float) -> ObservationArrays:
    values = rng.gamma(1.0, 800.0, (n, len(FIELDS)))
    values[rng.random(values.shape) < 0.1] = np.nan
    in_force = KNOBS.row({"batch_size": 64, "replicas": 6, "threads": 4, "warmup_requests": 0})
    return ObservationArrays(
        knobs=KNOBS,
        at_s=np.full(n, at_s),
        age_s=np.zeros(n),
        values=values,
        settings=np.tile(in_force, (n, 1)),
        replicas=ReplicaArrays(
            rng.integers(-1, 5, (n, 8)),
            rng.uniform(0, 900, (n, 8)),
            np.full((n, 8, len(REPLICA_FIELDS)), np.nan),
        ),
    )


def _row(now: ObservationArrays, i: int) -> ObservationArrays:
    one = slice(i, i + 1)
    return ObservationArrays(
        knobs=now.knobs,
        at_s=now.at_s[one],
        age_s=now.age_s[one],
        values=now.values[one],
        settings=now.settings[one],
        replicas=ReplicaArrays(
            now.replicas.state[one], now.replicas.age_s[one], now.replicas.values[one]
        ),
    )
