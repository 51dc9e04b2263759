"""The logged load, rebuilt and replayed: as much of it as was seen, the same for both sides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experiments import evidence
from experiments.evidence import logged_load, predict, rebuilt, replay_knobs
from tests.control import logs
from tests.control.test_promote import tick
from tests.envs import worlds
from tests.policies import bundles
from tuner.config import EngineConfig, KnobRange, PromotionConfig, TargetConfig
from tuner.control.audit_store import AuditStore
from tuner.control.promote import SeenTick, seen_in_shadow
from tuner.core.knobs import KnobSettings
from tuner.guardrails.max_delta import Step

PROFILE = """
schema: tuner.profile/1
name: small
scheduler: vidur-sarathi
gpus_per_replica: 1
kv: {block_tokens: 16, blocks: 600}
limits: {batch_size_max: 32, chunk_tokens: 512}
step_time: {base_s: 0.02, per_prefill_token_s: 1e-4, per_sequence_s: 5e-4}
startup:
  stages: {weights: {median_s: 40.0, spread: 0.3}}
  warmup_request_s: 0.05
  ramp: [[20, 0.5]]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("evidence")
    (made / "profile.yaml").write_text(PROFILE)
    return made


@pytest.fixture(scope="module")
def ticks(folder: Path) -> tuple[SeenTick, ...]:
    """An hour in shadow."""
    store = AuditStore.open(logs.url_of(folder))
    logs.shadow(store, "r1", 240)
    found = seen_in_shadow(store, target(folder), logs.IDENTITY)
    store.close()
    return found


def target(folder: Path, **changes: object) -> TargetConfig:
    made = TargetConfig(
        name="r1",
        policy="hpa",
        policy_options={"target": 300.0},
        fallback_options={"target": 150.0},
        engine=EngineConfig(kind="vllm"),
        knobs={"replicas": KnobRange(1, 6), "batch_size": KnobRange(1, 32)},
        promotion=PromotionConfig(profile=str(folder / "profile.yaml"), seeds=2),
    )
    return replace(made, **changes)


def test_as_many_requests_and_tokens_are_rebuilt_as_were_sent(ticks):
    """Of 240 ticks a tenth got no answer: the next one stands for it."""
    assert 200 < sum(t.qps is not None for t in ticks) < 235
    trace = rebuilt(logged_load(ticks, tick_s=15.0), seed=1)
    sent = worlds.trace()
    begin, end = worlds.TICK_S, 240 * worlds.TICK_S
    inside = (sent.arrival_s > begin) & (sent.arrival_s <= end)
    assert len(trace) == pytest.approx(inside.sum(), rel=0.01)
    for rebuilt_tokens, tokens in (
        (trace.prompt_tokens, sent.prompt_tokens),
        (trace.output_tokens, sent.output_tokens),
    ):
        # A geometric mean over 14,000 draws spreads by one percent.
        assert rebuilt_tokens.sum() == pytest.approx(tokens[inside].sum(), rel=0.03)
    assert trace.last_arrival_s == pytest.approx(end, abs=2 * worlds.TICK_S)


def test_the_ups_and_downs_of_the_load_are_kept(ticks):
    measured = [t for t in ticks if t.qps is not None]
    trace = rebuilt(logged_load(measured, tick_s=15.0), seed=1)
    ends_s = [t.at_s - logs.EPOCH_S for t in measured]
    ends_s = np.array(ends_s) - ends_s[0] + 15.0
    counts = np.diff(np.searchsorted(trace.arrival_s, ends_s), prepend=0)
    seen = np.array([t.qps for t in measured]) * np.diff(ends_s, prepend=0.0)
    assert np.abs(counts[1:] - seen[1:]).max() <= 1


def test_seeds_draw_other_requests_of_the_same_load(ticks):
    load = logged_load(ticks, tick_s=15.0)
    one, again, other = rebuilt(load, 1), rebuilt(load, 1), rebuilt(load, 2)
    assert np.array_equal(one.arrival_s, again.arrival_s)
    assert np.array_equal(one.output_tokens, again.output_tokens)
    assert len(one) == len(other)
    assert not np.array_equal(one.arrival_s, other.arrival_s)


@pytest.mark.parametrize(
    ("made", "requests", "seconds"),
    [
        ([tick(0.0), tick(15.0)], 30, 30.0),
        ([tick(0.0), tick(15.0, qps=None), tick(30.0)], 45, 45.0),
        ([tick(0.0), *(tick(15.0 * i, qps=None) for i in range(1, 9)), tick(135.0)], 30, 30.0),
        ([tick(0.0), tick(9000.0)], 30, 30.0),
        # A third of a request a tick is one in three ticks.
        ([tick(15.0 * i, qps=1 / 45) for i in range(9)], 3, 135.0),
    ],
    ids=["steady", "one not measured", "many not measured", "a gap", "less than one a tick"],
)
def test_time_that_nobody_watched_is_left_out(made, requests, seconds):
    load = logged_load(made, tick_s=15.0)
    assert load.requests == requests
    assert load.length_s.sum() == seconds


@pytest.mark.parametrize(
    "made",
    [
        [],
        [tick(0.0, qps=None)],
        [tick(0.0, qps=0.0)],
        [tick(0.0, output_tokens_per_s=None)],
        [tick(0.0, prompt_tokens_per_s=0.0)],
    ],
    ids=["nothing", "no rate", "no load", "no output tokens", "no prompt tokens"],
)
def test_where_no_load_was_seen_there_is_none_to_replay(made, folder):
    assert logged_load(made, tick_s=15.0) is None
    found, why_not = predict(made, target(folder), jobs=1)
    assert found is None
    assert "no load" in why_not


def test_of_a_long_log_the_newest_part_is_replayed(monkeypatch):
    monkeypatch.setattr(evidence, "MOST_REQUESTS", 40)
    assert logged_load([tick(15.0 * i, qps=1.0 + i) for i in range(3)], tick_s=15.0) is None
    monkeypatch.setattr(evidence, "MOST_REQUESTS", 80)
    load = logged_load([tick(15.0 * i, qps=1.0 + i) for i in range(3)], tick_s=15.0)
    assert load.arrivals.tolist() == [30, 45]
    assert load.cut_s == 15.0


def test_mean_lengths_follow_the_minutes(monkeypatch):
    early = [tick(15.0 * i, output_tokens_per_s=10.0) for i in range(40)]
    late = [tick(15.0 * i, output_tokens_per_s=100.0) for i in range(40, 80)]
    load = logged_load([*early, *late], tick_s=15.0)
    assert load.output_tokens[0] == pytest.approx(10.0)
    assert load.output_tokens[-1] == pytest.approx(100.0)


def test_the_very_rule_against_itself_gains_nothing(folder, ticks):
    same = target(folder, policy_options={"target": 150.0}, steps={"replicas": Step()})
    found, _ = predict(ticks, same)
    assert found.gain.mean == 0.0
    assert found.gain.ci95 == (0.0, 0.0)
    assert found.attainment.mean == 0.0


def test_a_policy_that_holds_half_the_replicas_is_seen_to_save(folder, ticks):
    found, _ = predict(ticks, target(folder))
    assert found.seeds == 2
    assert 0.15 < found.gain.mean < 0.5
    assert found.policy_gpu_hours < found.rule_gpu_hours
    # Known from the simulation itself: the fleet of the log served 150 tokens/s per replica.
    assert found.rule_attainment > 0.99
    assert any("rebuilt from the rates" in note for note in found.notes)
    assert any("threads is not modelled" in note for note in found.notes)


def test_without_a_profile_nothing_is_predicted(folder, ticks):
    found, why_not = predict(ticks, target(folder, promotion=PromotionConfig()))
    assert found is None
    assert "promotion.profile" in why_not


def test_knobs_that_may_not_be_written_stay_where_they_were_seen(folder):
    seen = [tick(0.0, settings=KnobSettings(replicas=3, batch_size=20))]
    knobs, held = replay_knobs(target(folder), worlds.PROFILE, seen)
    assert (knobs["batch_size"].low, knobs["batch_size"].high) == (20, 20)
    assert (knobs["replicas"].low, knobs["replicas"].high) == (1, 6)
    assert knobs["threads"].low == knobs["threads"].high
    assert held == ("threads is not modelled by the profile",)
    both = target(folder, move=("replicas", "batch_size"))
    knobs, _ = replay_knobs(both, worlds.PROFILE, seen)
    assert (knobs["batch_size"].low, knobs["batch_size"].high) == (1, 32)


def test_nobody_clamps_the_rule_of_today(folder, ticks):
    # The same rule as policy, under a step of 0: it cannot move, the rule of today can.
    held = target(
        folder,
        policy_options={"target": 150.0},
        steps={"replicas": Step(up=0, down=0, fallback_up=0, fallback_down=0)},
    )
    found, _ = predict(ticks, held)
    free, _ = predict(ticks, target(folder, policy_options={"target": 150.0}))
    assert found.policy_gpu_hours != found.rule_gpu_hours
    assert found.rule_gpu_hours == free.rule_gpu_hours


@pytest.mark.parametrize("time_of_day", [False, True])
def test_a_bundle_is_replayed_and_a_clock_that_it_looks_at_is_told(folder, ticks, time_of_day):
    made = worlds.codec(worlds.knobs(), time_of_day=time_of_day)
    path = bundles.write(folder / str(time_of_day), made=made)
    one_seed = PromotionConfig(profile=str(folder / "profile.yaml"), seeds=1)
    bundled = target(folder, policy=str(path), policy_options={}, promotion=one_seed)
    found, _ = predict(ticks[:40], bundled)
    assert found.policy_gpu_hours > 0
    assert found.gain.ci95 is None
    assert any("time of day" in note for note in found.notes) is time_of_day
