"""The learned policy: a bundle that fits is run exactly, any other is refused in one sentence."""

from __future__ import annotations

import pickle
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policies import POLICIES, LearnedRule, build_policy
from policies.rule import RulePolicy, empty_memory
from tests.envs import worlds
from tests.policies import bundles
from tuner.core.decision import PolicyFault, Proposal, Reason, propose
from tuner.core.errors import BundleError, ConfigError
from tuner.core.history import History
from tuner.core.knobs import KnobSettings, KnobSpace
from tuner.core.observation import Observation, ObservationArrays, ReplicaArrays
from tuner.knobs import knob_space

KNOBS = worlds.knobs()


def build(path: Path, knobs: KnobSpace = KNOBS) -> RulePolicy:
    return build_policy(str(path), {}, knobs, tick_s=worlds.TICK_S)


def observation(tick: int, rng: np.random.Generator) -> Observation:
    return Observation(
        at_s=15.0 * tick,
        window_s=15.0,
        age_s=0.0,
        settings=KnobSettings(
            {"batch_size": 32, "replicas": 3, "threads": 4, "warmup_requests": 0}
        ),
        qps=float(rng.gamma(2, 2)),
        output_tokens_per_s=float(rng.gamma(4, 120)),
        ttft_p99_s=float(rng.gamma(1, 2)),
        ready_replicas=3.0,
        starting_replicas=0.0,
        status_replicas=3.0,
        in_flight=float(rng.integers(0, 90)),
    )


def stacked(rows: list[Observation]) -> ObservationArrays:
    one = [ObservationArrays.of(KNOBS, row) for row in rows]
    return ObservationArrays(
        knobs=KNOBS,
        at_s=np.concatenate([o.at_s for o in one]),
        age_s=np.concatenate([o.age_s for o in one]),
        values=np.concatenate([o.values for o in one]),
        settings=np.concatenate([o.settings for o in one]),
        replicas=ReplicaArrays(
            *(
                np.concatenate([getattr(o.replicas, f) for o in one])
                for f in ("state", "age_s", "values")
            )
        ),
    )


def test_a_bundle_is_a_policy_by_the_name_of_its_folder(tmp_path: Path) -> None:
    policy = build(bundles.write(tmp_path))
    assert policy.name == "small-1.2.3"
    assert isinstance(policy.rule, LearnedRule)


def test_one_target_at_a_time_decides_as_many_at_once_to_the_bit(tmp_path: Path) -> None:
    policy = build(bundles.write(tmp_path))
    n, rng = 9, np.random.default_rng(0)
    memory = empty_memory(policy.rule, n)
    histories = [History(KNOBS) for _ in range(n)]
    moved = set()
    for tick in range(40):
        rows = [observation(tick, rng) for _ in range(n)]
        result = policy.rule.decide(stacked(rows), memory)
        memory = result.memory
        for i in range(n):
            histories[i] = histories[i].observed(rows[i])
            proposal = policy.propose(histories[i])
            assert np.array_equal(KNOBS.row(proposal.settings), result.settings[i], equal_nan=True)
            assert np.array_equal(np.array(proposal.memory), memory[i], equal_nan=True)
            histories[i] = replace(histories[i], memory=proposal.memory)
            moved.add(proposal.settings.get("replicas"))
    assert len(moved) > 3  # the network really moves something


def test_a_network_that_answers_0_is_the_base_rules_need(tmp_path: Path) -> None:
    made = bundles.codec(hold_s=0.0)
    content = bundles.linear_network(len(made.features), 4, weight=0.0)
    policy = build(bundles.write(tmp_path, made=made, content=content))
    now = observation(0, np.random.default_rng(1))
    wanted = policy.propose(History(KNOBS).observed(now)).settings
    assert now.output_tokens_per_s is not None
    need = now.output_tokens_per_s / 150.0
    assert wanted == {"replicas": min(max(np.ceil(need), 1), 6)}


def test_it_travels_to_another_process(tmp_path: Path) -> None:
    policy = build(bundles.write(tmp_path))
    history = History(KNOBS).observed(observation(0, np.random.default_rng(2)))
    there = pickle.loads(pickle.dumps(policy))  # noqa: S301 - our own bytes, as joblib sends them
    here, from_there = policy.propose(history), there.propose(history)
    assert from_there.settings == here.settings
    assert np.array_equal(from_there.memory, here.memory, equal_nan=True)


def test_an_answer_that_is_not_finite_is_a_failed_policy(tmp_path: Path) -> None:
    policy = build(bundles.write(tmp_path))
    assert isinstance(policy.rule, LearnedRule)
    content = bundles.linear_network(len(policy.rule.codec.features), 4, bias=float("nan"))
    broken = replace(policy.rule.network, content=content)
    policy = replace(policy, rule=replace(policy.rule, network=broken))
    history = History(KNOBS).observed(observation(0, np.random.default_rng(2)))
    fault = propose(policy, history)
    assert isinstance(fault, PolicyFault)
    assert fault.reason is Reason.PolicyRaised
    assert "the network's answer is not finite" in fault.detail


def test_missing_metrics_leave_the_replicas_alone(tmp_path: Path) -> None:
    policy = build(bundles.write(tmp_path))
    blind = Observation(at_s=0.0, window_s=15.0, settings=KnobSettings(replicas=3))
    proposal = propose(policy, History(KNOBS).observed(blind))
    assert isinstance(proposal, Proposal)
    assert dict(proposal.settings) == {}


def _features(change: Callable[[list[Any]], object]) -> Callable[[dict[str, Any]], object]:
    def edit(data: dict[str, Any]) -> None:
        change(data["features"])
        data["network"]["inputs"] = len(data["features"])

    return edit


def _knobs(names: list[str]) -> Callable[[dict[str, Any]], object]:
    def edit(data: dict[str, Any]) -> None:
        by_name = {knob["name"]: knob for knob in data["knobs"]}
        data["knobs"] = [by_name.get(name, {**data["knobs"][0], "name": name}) for name in names]
        data["network"]["outputs"] = len(names)

    return edit


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a knob too few": (
        _knobs(["batch_size", "replicas", "threads"]),
        "knobs are batch_size, replicas, threads; "
        "expected batch_size, replicas, threads, warmup_requests, in this order",
    ),
    "an unknown knob": (
        _knobs(["batch_size", "replicas", "threads", "gears"]),
        "knobs are batch_size, replicas, threads, gears; expected",
    ),
    "knobs in another order": (
        _knobs(["replicas", "batch_size", "threads", "warmup_requests"]),
        "knobs are replicas, batch_size, threads, warmup_requests; expected",
    ),
    "an unknown feature": (
        _features(lambda f: f[3].update(name="moon_phase")),
        "feature moon_phase is not known to this version",
    ),
    "a feature too few": (_features(lambda f: f.pop(5)), "feature need_vs_1m is missing"),
    "features in another order": (
        _features(lambda f: f.insert(0, f.pop(4))),
        "the features stand in another order than in this version",
    ),
    "a feature of another range": (
        _features(lambda f: f[3].update(high=9.0)),
        "feature need_log2 has the range -3..9 (missing 0); expected -3..7 (missing 0)",
    ),
    "an unknown key of the codec": (
        lambda d: d["codec"].update(factor_hi=2.0),
        "codec: factor_hi is not a known key; did you mean 'factor_high'?",
    ),
    "a codec that cannot be": (
        lambda d: d["codec"].update(factor_high=0.5),
        "codec: codec.factor_low is 0.7 and factor_high 0.5",
    ),
    "an unknown base rule": (
        lambda d: d["base"].update(policy="crystal_ball"),
        f"base.policy is 'crystal_ball'; expected one of {', '.join(POLICIES)}",
    ),
    "an unknown option of the base rule": (
        lambda d: d["base"]["options"].update(targt=3.0),
        "hpa: unknown option 'targt'; did you mean 'target'?",
    ),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_refuses_a_bundle_with(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    path = bundles.write(tmp_path, change=change)
    with pytest.raises(BundleError, match=re.escape(message)) as refused:
        build(path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no network that onnxruntime can read"),
        (pickle.dumps({"weights": [1.0]}), "is no network that onnxruntime can read"),
        (bundles.linear_network(36, 4)[:400], "is no network that onnxruntime can read"),
        (bundles.linear_network(35, 4), "[('features', 'tensor(float)', [35])]"),
        (bundles.linear_network(36, 3), "expected [('features', 'tensor(float)', [36])] to"),
    ],
    ids=["nothing", "a pickle", "a truncated network", "35 inputs", "3 outputs"],
)
def test_refuses_a_network_that_is(tmp_path: Path, content: bytes, message: str) -> None:
    path = bundles.write(tmp_path, content=content)
    with pytest.raises(BundleError, match=re.escape(message)):
        build(path)


def test_refuses_a_network_that_answers_no_number(tmp_path: Path) -> None:
    path = bundles.write(tmp_path, content=bundles.linear_network(36, 4, bias=float("nan")))
    with pytest.raises(BundleError, match=r"with something else than finite numbers of shape"):
        build(path)


def test_refuses_a_bundle_whose_base_rule_is_itself(tmp_path: Path) -> None:
    itself = str(tmp_path / "small-1.2.3")
    path = bundles.write(tmp_path, change=lambda d: d["base"].update(policy=itself, options={}))
    with pytest.raises(
        BundleError, match=f"base.policy is .*; expected one of {', '.join(POLICIES)}"
    ):
        build(path)


def test_a_target_may_allow_less_than_was_trained_but_not_more(tmp_path: Path) -> None:
    path = bundles.write(tmp_path)
    build(path, worlds.knobs(max_replicas=4))
    with pytest.raises(
        BundleError,
        match=re.escape("knob replicas was trained for 1..6, but this target allows 1..9"),
    ):
        build(path, worlds.knobs(max_replicas=9))


def test_the_range_of_a_knob_without_a_head_does_not_matter(tmp_path: Path) -> None:
    path = bundles.write(tmp_path)
    build(path, knob_space(replicas=(1, 6), batch_size=(1, 512)))


def test_says_what_to_install_where_onnxruntime_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bundles.write(tmp_path)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BundleError, match=re.escape("pip install 'deepseek-tuner[live]'")):
        build(path)


def test_a_bundle_takes_no_options(tmp_path: Path) -> None:
    path = bundles.write(tmp_path)
    with pytest.raises(ConfigError, match="unknown option 'target'"):
        build_policy(str(path), {"target": 3.0}, KNOBS, tick_s=15.0)
    # Options of other policies of a comparison are passed over.
    build_policy(str(path), {"hpa.target": 3.0}, KNOBS, tick_s=15.0)


def test_a_name_that_is_neither_policy_nor_folder_is_told_both() -> None:
    with pytest.raises(ConfigError, match="or the folder of a trained bundle"):
        build_policy("r1-day", {}, KNOBS, tick_s=15.0)
    with pytest.raises(BundleError, match="does not exist; expected a bundle"):
        build_policy("bundles/r1-day", {}, KNOBS, tick_s=15.0)
