"""Training end to end, in a small world: the same bits twice, and after a resume."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from envs.randomise import RandomiseConfig
from policies import POLICIES, LearnedRule, build_policy
from tests.envs import worlds
from tests.train.worlds import CONFIG, config, inputs, trained
from tuner.core.errors import ConfigError, TraceError
from tuner.core.history import History
from tuner.core.knobs import KnobSettings
from tuner.core.observation import Observation
from tuner.data.bundles import NETWORK, read_bundle
from tuner.train import checkpoint, ppo
from tuner.train.ppo import Place, check_start, train


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, trained without a stop."""
    out = tmp_path_factory.mktemp("first") / "small-0.3.0"
    trained(out)
    return out


def network(bundle: Path) -> bytes:
    return (bundle / NETWORK).read_bytes()


def best(bundle: Path) -> checkpoint.Checkpoint:
    return checkpoint.load(Place(bundle).checkpoint)


def assert_same_training(one: Path, other: Path) -> None:
    a, b = best(one), best(other)
    assert (a.updates, a.steps) == (b.updates, b.steps)
    for name, tensor in a.network.items():
        assert np.array_equal(tensor.numpy(), b.network[name].numpy()), name
    assert network(one) == network(other)


def test_writes_a_bundle_that_runs(first: Path) -> None:
    bundle = read_bundle(first)
    manifest = bundle.manifest
    assert (manifest.name, manifest.version) == ("small", "0.3.0")
    assert manifest.steps == 1024
    assert manifest.base.options == {"target": 150.0}
    assert set(manifest.pinned) == {"threads"}
    assert manifest.results.verdict
    policy = build_policy(str(first), {}, worlds.knobs(), tick_s=worlds.TICK_S)
    assert isinstance(policy.rule, LearnedRule)
    now = Observation(
        at_s=0.0,
        window_s=15.0,
        age_s=0.0,
        settings=KnobSettings(batch_size=32, replicas=2, threads=4, warmup_requests=0),
        output_tokens_per_s=400.0,
        status_replicas=2.0,
    )
    wanted = policy.propose(History(worlds.knobs()).observed(now)).settings
    assert set(wanted) == {"replicas"}
    assert 1 <= wanted["replicas"] <= 6


def test_trained_it_moves_the_network_away_from_the_base_rule(first: Path) -> None:
    weights = best(first).network["action_net.weight"].numpy()
    assert (weights != 0).all()


def test_the_same_seed_gives_the_same_bits_on_two_threads_too(first: Path, tmp_path: Path) -> None:
    trained(tmp_path / "small-0.3.0", threads=2)
    assert_same_training(first, tmp_path / "small-0.3.0")


def test_another_seed_gives_another_network(first: Path, tmp_path: Path) -> None:
    other = tmp_path / "small-0.3.0"
    train(inputs(), ppo.replace(CONFIG, seed=1), other)
    a, b = (best(path).network["action_net.weight"].numpy() for path in (first, other))
    assert not np.array_equal(a, b)


def test_a_resume_from_a_checkpoint_gives_the_bits_of_a_run_without_a_stop(
    first: Path, tmp_path: Path
) -> None:
    out = tmp_path / "small-0.3.0"
    stop_after(out, stretches=1)
    assert best(out).updates == 4
    trained(out, resume=True)
    assert_same_training(first, out)


def test_worlds_are_drawn_for_training_and_never_for_judging(tmp_path: Path) -> None:
    env = ppo.replace(CONFIG.env, randomise=RandomiseConfig(enabled=True))
    place = ppo.Place(tmp_path / "small-0.3.0")
    run = ppo.Run.prepare(inputs(), ppo.replace(CONFIG, env=env), place, threads=1)
    assert run.training.config.randomise.enabled
    assert not run.validation.config.randomise.enabled
    # What the bundle's manifest will say.
    assert run.config.section["env"]["randomise"]["enabled"] is True
    assert run.config.section["env"]["randomise"]["cold_start"] == [0.5, 3.0]


def stop_after(out: Path, stretches: int) -> None:
    """Train until some stretches are checkpointed, then fail as a machine does."""
    saved = 0
    real = checkpoint.save

    def save(path: Path, state: checkpoint.Checkpoint) -> None:
        nonlocal saved
        real(path, state)
        saved += 1
        if saved == stretches:
            raise RuntimeError("power cut")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ppo.checkpoints, "save", save)
        with pytest.raises(RuntimeError, match="power cut"):
            trained(out)


def test_ctrl_c_leaves_a_checkpoint_of_the_last_whole_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "small-0.3.0"
    steps = 0
    real = ppo._Watcher._on_step

    def interrupted(self: ppo._Watcher) -> bool:
        nonlocal steps
        steps += 1
        if steps == 16 * 2 + 5:  # in the middle of the third rollout
            raise KeyboardInterrupt
        return real(self)

    with monkeypatch.context() as patch:
        patch.setattr(ppo._Watcher, "_on_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trained(out)
    assert not out.exists()
    assert best(out).updates == 2
    manifest = trained(out, resume=True)
    assert manifest.steps == 1024
    assert best(out).updates == 8


def test_more_steps_may_follow_a_finished_run(first: Path, tmp_path: Path) -> None:
    out = tmp_path / "small-0.3.0"
    trained(out)
    out.rename(tmp_path / "before")
    manifest = train(inputs(), config(steps=1536), out, resume=True)
    assert manifest.steps == 1536


def test_where_no_network_is_better_the_base_rule_is_shipped_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "small-0.3.0"
    real = ppo.evaluate

    def worse(env: object, act: object, seed: int, warm_up_ticks: int) -> object:
        found = real(env, act, seed, warm_up_ticks)  # type: ignore[arg-type]
        trained_one = getattr(act, "__self__", None) is not None
        return ppo.replace(found, rewards=found.rewards - 9.0) if trained_one else found

    monkeypatch.setattr(ppo, "evaluate", worse)
    manifest = trained(out)
    assert not manifest.results.beats_base
    assert manifest.results.chosen_step == 0
    assert "did not beat its base rule" in manifest.results.verdict
    assert "factor 1" in manifest.results.verdict
    rule = build_policy(str(out), {}, worlds.knobs(), tick_s=worlds.TICK_S).rule
    assert isinstance(rule, LearnedRule)
    assert (rule.network(np.ones((3, 34), np.float32)) == 0).all()


def test_prints_what_it_does(tmp_path: Path) -> None:
    console = Console(record=True, width=200)
    trained(tmp_path / "small-0.3.0", config(steps=256), console=console)
    text = console.export_text()
    assert "base rule alone: reward" in text
    assert "after 256 steps: reward" in text
    assert "base rule on load that was held out: reward" in text


def test_logs_to_tensorboard(first: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(Place(first).work / "tensorboard"))
    log.Reload()
    assert {"rollout/reward", "validation/policy_reward", "train/approx_kl"} <= set(
        log.Tags()["scalars"]
    )


# Refusals ------------------------------------------------------------------------------------


def test_refuses_a_place_that_is_taken(first: Path) -> None:
    with pytest.raises(ConfigError, match="exists already; bundles are never overwritten"):
        trained(first)


def test_refuses_to_overwrite_a_checkpoint_without_resume(first: Path, tmp_path: Path) -> None:
    work = Place(tmp_path / "small-0.3.0").work
    work.mkdir()
    (work / checkpoint.FILE).write_bytes(Place(first).checkpoint.read_bytes())
    with pytest.raises(ConfigError, match="go on with --resume"):
        trained(tmp_path / "small-0.3.0")


def test_refuses_to_resume_nothing_a_wreck_or_another_run(first: Path, tmp_path: Path) -> None:
    out = tmp_path / "small-0.3.0"
    with pytest.raises(ConfigError, match="there is nothing to resume; drop --resume"):
        trained(out, resume=True)
    work = Place(out).work
    work.mkdir()
    whole = Place(first).checkpoint.read_bytes()
    Place(out).checkpoint.write_bytes(whole[:1000])
    with pytest.raises(ConfigError, match="cannot be read as a checkpoint"):
        trained(out, resume=True)
    Place(out).checkpoint.write_bytes(whole)
    with pytest.raises(ConfigError, match=r"config\.ppo\.gamma = 0\.\d+, this run has 0\.5"):
        trained(out, config(gamma=0.5), resume=True)


def test_refuses_a_trace_too_short_for_episodes(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"\(validation part\) spans .* expected at least 315 s"):
        train(inputs(seconds=700.0), CONFIG, tmp_path / "x-1.0.0")
    assert list(tmp_path.iterdir()) == []


def test_refuses_episodes_that_are_over_with_the_warm_up(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"gives episodes of 24 ticks; expected at least 40"):
        train(inputs(), ppo.replace(CONFIG, warm_up_ticks=20), tmp_path / "x-1.0.0")


def test_refuses_a_head_that_the_profile_pins(tmp_path: Path) -> None:
    pinned = ppo.replace(CONFIG, codec=ppo.replace(CONFIG.codec, move=("threads",)))
    with pytest.raises(ConfigError, match="there is nothing to learn"):
        train(inputs(), pinned, tmp_path / "x-1.0.0")


@pytest.mark.parametrize(
    ("name", "version"),
    [("r1-1.2.3", ("r1", "1.2.3")), ("a-b_c.d-0.0.10", ("a-b_c.d", "0.0.10"))],
)
def test_the_folders_name_gives_name_and_version(name: str, version: tuple[str, str]) -> None:
    assert Place(Path("/x") / name).name_and_version == version


@pytest.mark.parametrize(
    "name",
    [
        "my policy-1.0.0",
        "x-01.2.3",
        "-1.0.0",
        "ümlaut-1.0.0",
        "x-1.2",
        "x-1.2.3.4",
        "x-1.2.1٣",
        "x",
        "1.0.0",
    ],
)
def test_refuses_a_name_that_no_bundle_can_have_before_any_work(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected NAME-MAJOR\.MINOR\.PATCH"):
        check_start(tmp_path / "new" / name, resume=False)
    assert list(tmp_path.iterdir()) == []


def test_refuses_an_update_of_a_single_transition(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ppo\.envs x rollout_ticks is 1; expected at least 2"):
        trained(tmp_path / "x-1.0.0", config(envs=1, rollout_ticks=1))
    assert not list(config(envs=1, rollout_ticks=2).problems())


def test_refuses_a_bundle_as_base_rule(first: Path, tmp_path: Path) -> None:
    on_bundle = ppo.replace(CONFIG, base=ppo.replace(CONFIG.base, policy=str(first), options={}))
    with pytest.raises(ConfigError, match=f"a folder; expected {', '.join(POLICIES)}"):
        trained(tmp_path / "x-1.0.0", on_bundle)


def test_says_that_the_work_folder_cannot_be_made(tmp_path: Path) -> None:
    Place(tmp_path / "x-1.0.0").work.write_text("")
    with pytest.raises(ConfigError, match=r"training cannot be made \(File exists\)"):
        trained(tmp_path / "x-1.0.0")
