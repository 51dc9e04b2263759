"""Training a policy: PPO over simulated targets, from the base rule to a bundle.

    measure rewards under the base rule -> stretches of updates -> evaluate, keep the best,
    checkpoint -> meet the base rule on unseen scenarios -> export what is better

A stretch draws everything random from the seed and the number of updates before it, and begins new
episodes. So a run that is resumed from a checkpoint gives the same bits as one that was never
stopped. After Ctrl-C the state of the last whole update is kept; a resume then begins its stretch
there, which is as good, but not the same bits.

The base rule alone, factor 1, is always a candidate: where no network does better, the bundle holds
one that answers 0, and says so.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, replace
from enum import IntEnum
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger, configure
from stable_baselines3.common.utils import set_random_seed

from envs.vector_env import VectorServingEnv
from policies import build_policy
from policies.codec import Codec
from policies.learned import codec_section, feature_ranges
from tuner.core.decision import Guardrails
from tuner.core.errors import ConfigError
from tuner.core.knobs import KnobSpace
from tuner.core.profile import ServingProfile
from tuner.core.trace import Trace
from tuner.data.bundles import (
    SCHEMA,
    Code,
    Digests,
    Manifest,
    NetworkShape,
    Results,
    Score,
    Section,
    digest_of,
    knob_ranges,
    name_and_version,
    sealed,
    sha256,
)
from tuner.train import checkpoint as checkpoints
from tuner.train.bundle import check_place, export, write_bundle
from tuner.train.checkpoint import Candidate, Checkpoint
from tuner.train.config import TrainConfig
from tuner.train.digests import profile_digest, trace_digest
from tuner.train.evaluation import Act, Evaluation, base_rule, evaluate, paired_ci95, reward_map
from tuner.train.network import ActionNetwork, policy_arguments, start_at_base_rule
from tuner.train.progress import Display, score_figures
from tuner.train.sb3_vec_env import Sb3VecEnv, Tally
from tuner.train.scenarios import Scenarios, parts, reward_scale


class _Purpose(IntEnum):
    """What a seed is for: streams of one run never meet."""

    STRETCH = 0
    EPISODES = 1
    VALIDATION = 2
    CONFIRMATION = 3
    BOOTSTRAP = 4
    NETWORK = 5


@dataclass(frozen=True)
class Inputs:
    """What a policy is trained from."""

    trace: Trace
    profile: ServingProfile
    knobs: KnobSpace
    """The knobs of a target that runs the profile."""
    guardrails: Guardrails
    """The very guardrails that will act."""
    code: Code
    """What trains, for the manifest."""


@dataclass(frozen=True)
class Place:
    """Where a training run writes."""

    bundle: Path

    @property
    def work(self) -> Path:
        """Beside the bundle: checkpoint and TensorBoard logs."""
        return self.bundle.parent / f"{self.bundle.name}.training"

    @property
    def checkpoint(self) -> Path:
        return self.work / checkpoints.FILE

    @property
    def name_and_version(self) -> tuple[str, str]:
        """From the folder's name.

        Raises:
            ConfigError: it is not NAME-MAJOR.MINOR.PATCH.
        """
        return name_and_version(self.bundle.name)


def train(
    inputs: Inputs,
    config: TrainConfig,
    out: Path,
    *,
    resume: bool = False,
    threads: int = 1,
    console: Console | None = None,
) -> Manifest:
    """Train a policy and write its bundle.

    Args:
        inputs: trace, profile, knobs, guardrails.
        config: everything else; its base rule should be tuned on the trace.
        out: the bundle's folder, which must not exist; checkpoints lie beside it.
        resume: go on from the checkpoint there.
        threads: of the simulation; the results do not depend on it.
        console: for progress; None is silent.

    Raises:
        InputError: the trace is too short, the place is taken, or the checkpoint does not fit.
        KeyboardInterrupt: after a checkpoint was written.
    """
    problems = list(config.problems())
    if problems:
        raise ConfigError("\n".join(problems))
    check_start(out, resume=resume)
    place = Place(out)
    # More threads cost several times the CPU per gradient step of so small a network.
    torch.set_num_threads(1)
    run = Run.prepare(inputs, config, place, threads)
    start = checkpoints.load(place.checkpoint) if resume else None
    if start is not None:
        checkpoints.check_same_run(place.checkpoint, start.inputs, run.identity)
    try:
        place.work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{place.work} cannot be made ({error.strerror}); name another place"
        ) from error
    console = console or Console(quiet=True)
    with Display(
        console,
        total=run.updates * run.update_steps,
        done=start.steps if start else 0,
        tick_s=config.env.tick_s,
    ) as display:
        return run.train(start, display)


def check_start(out: Path, *, resume: bool) -> None:
    """Whether a run that writes to `out` can start; asked before hours of work.

    Raises:
        ConfigError: the place is taken or its name is not NAME-MAJOR.MINOR.PATCH, or it holds a
            checkpoint that is not to be resumed.
    """
    check_place(out)
    place = Place(out)
    if place.checkpoint.exists() and not resume:
        raise ConfigError(
            f"{place.checkpoint} is there from a run before; go on with --resume, or remove "
            f"{place.work} to train anew"
        )


def started_with(out: Path) -> Section:
    """The configuration that the run at `out` was started with, from its checkpoint.

    Raises:
        ConfigError: there is no checkpoint, or it cannot be read.
    """
    config = checkpoints.load(Place(out).checkpoint).inputs["config"]
    assert isinstance(config, dict)
    return config


def build_codec(config: TrainConfig, profile: ServingProfile, knobs: KnobSpace) -> Codec:
    """Features and heads over the base rule, for a target that runs the profile.

    Raises:
        ConfigError: the base rule or one of its options is unknown, `codec.move` names a knob that
            the target lacks, or no knob is left to move.
    """
    base = build_policy(config.base.policy, config.base.options, knobs, tick_s=config.env.tick_s)
    codec = Codec(knobs, base.rule, config.codec_config, profile.unmodelled_knobs())
    if not codec.moves:
        raise ConfigError(
            f"codec.move is {list(config.codec.move)}, all of them pinned by profile "
            f"{profile.name}: there is nothing to learn"
        )
    return codec


@dataclass(frozen=True)
class Run:
    """One training run with all that is made from its inputs."""

    inputs: Inputs
    config: TrainConfig
    place: Place
    codec: Codec
    training: Scenarios
    validation: Scenarios
    identity: Section

    @classmethod
    def prepare(cls, inputs: Inputs, config: TrainConfig, place: Place, threads: int) -> Run:
        codec = build_codec(config, inputs.profile, inputs.knobs)
        learn, hold_out = parts(inputs.trace, config)
        scenarios = Scenarios(
            trace=inputs.trace,
            profile=inputs.profile,
            codec=codec,
            guardrails=inputs.guardrails,
            fallback=codec.base,
            config=config.env,
            scale=reward_scale(learn, config.env),
            threads=threads,
        )
        return cls(
            inputs=inputs,
            config=config,
            place=place,
            codec=codec,
            training=scenarios.on(learn),
            # Whatever training draws: a network is chosen and judged in the world as calibrated.
            validation=replace(scenarios, config=config.env.nominal).on(hold_out),
            identity={
                "config": config.section,
                "trace": trace_digest(inputs.trace),
                "profile": profile_digest(inputs.profile),
                "knobs": [[k.name, k.low, k.high, k.default] for k in knob_ranges(inputs.knobs)],
            },
        )

    # The story ---------------------------------------------------------------------------------

    def train(self, start: Checkpoint | None, display: Display) -> Manifest:
        face = self.face()
        model = self.model(face)
        if start is None:
            start = self._first(model, display)
        else:
            display.line(f"resumed after {start.steps:,} steps")
        face.rewards = start.rewards
        _restore(model, start)
        watcher = _Watcher(face, self.update_steps, display, start)
        try:
            last = self._stretches(model, face, watcher, display)
        except KeyboardInterrupt:
            checkpoints.save(self.place.checkpoint, watcher.state)
            display.line(
                f"interrupted after {watcher.state.steps:,} steps; kept in "
                f"{self.place.checkpoint}, go on with --resume"
            )
            raise
        return self._finish(model, last, display)

    def _first(self, model: PPO, display: Display) -> Checkpoint:
        """Training before its first update."""
        display.doing("measuring the base rule")
        env = self.validation.env(self.config.validation.scenarios)
        base = self._evaluate(env, base_rule(env), _Purpose.VALIDATION)
        display.line(f"base rule alone: {score_figures(base.score)}")
        return Checkpoint(
            inputs=self.identity,
            updates=0,
            steps=0,
            gradient_updates=0,
            network=copy.deepcopy(model.policy.state_dict()),
            optimizer=copy.deepcopy(model.policy.optimizer.state_dict()),
            rewards=reward_map(base, self.config.ppo.gamma),
            base=base.score,
            best=None,
        )

    def _stretches(
        self, model: PPO, face: Sb3VecEnv, watcher: _Watcher, display: Display
    ) -> Checkpoint:
        """Updates to the last, in stretches that end with evaluation and checkpoint."""
        model.set_logger(_tensorboard(self.place.work))
        env = self.validation.env(self.config.validation.scenarios)
        while watcher.state.updates < self.updates:
            done = watcher.state.updates
            count = min(self.config.validation.every_updates, self.updates - done)
            set_random_seed(self._seed(_Purpose.STRETCH, done))
            face.seed(self._seed(_Purpose.EPISODES, done))
            model._last_obs = None  # learn() resets the environment where this is None
            display.doing("training")
            model.learn(count * self.update_steps, callback=watcher, reset_num_timesteps=False)
            watcher.keep()

            display.doing("evaluating")
            network = self._network(model)
            found = self._evaluate(env, network.act, _Purpose.VALIDATION).score
            watcher.candidate(found)
            checkpoints.save(self.place.checkpoint, watcher.state)
            _log_scores(model.logger, found, watcher.state)
            display.line(f"after {watcher.state.steps:,} steps: {score_figures(found)}")
        return watcher.state

    def _finish(self, model: PPO, last: Checkpoint, display: Display) -> Manifest:
        """Meet the base rule on scenarios that chose nothing, and write down the better one."""
        assert last.best is not None  # every run ends with an evaluation
        display.doing("confirming")
        model.policy.load_state_dict(last.best.network)
        trained = self._network(model)
        env = self.validation.env(self.config.validation.confirm_scenarios)
        policy = self._evaluate(env, trained.act, _Purpose.CONFIRMATION)
        base = self._evaluate(env, base_rule(env), _Purpose.CONFIRMATION)
        difference = policy.reward - base.reward
        better = bool(difference.mean() > 0 and last.best.score.reward > last.base.reward)
        interval = paired_ci95(difference, self._seed(_Purpose.BOOTSTRAP))
        results = Results(
            chosen_step=last.best.step if better else 0,
            beats_base=better,
            verdict=_verdict(better, last, policy.score, base.score, interval, self._unseen),
            scenarios=self.config.validation.confirm_scenarios,
            policy=policy.score,
            base=base.score,
            difference=float(difference.mean()),
            difference_ci95=interval,
        )
        if not better:
            start_at_base_rule(model.policy)
        manifest = self._write(trained, results, last.steps)
        display.line(results.verdict)
        display.doing("done")
        return manifest

    # Parts -------------------------------------------------------------------------------------

    @property
    def update_steps(self) -> int:
        """Environment steps between two updates."""
        return self.config.ppo.envs * self.config.ppo.rollout_ticks

    @property
    def updates(self) -> int:
        """Updates in all."""
        return -(-self.config.ppo.steps // self.update_steps)

    @property
    def _unseen(self) -> str:
        """What the scenarios of the last word are made of."""
        if self.validation.trace is self.training.trace:
            return "other draws of the training load"
        return "load that was held out"

    def _seed(self, purpose: _Purpose, number: int = 0) -> int:
        state = np.random.SeedSequence((self.config.seed, purpose, number)).generate_state(1)
        return int(state[0])

    def face(self) -> Sb3VecEnv:
        """The training environments as stable-baselines3 sees them."""
        env = self.training.env(self.config.ppo.envs)
        return Sb3VecEnv(env, warm_up_ticks=self.config.warm_up_ticks)

    def _evaluate(self, env: VectorServingEnv, act: Act, purpose: _Purpose) -> Evaluation:
        return evaluate(env, act, self._seed(purpose), self.config.warm_up_ticks)

    def model(self, face: Sb3VecEnv) -> PPO:
        """PPO before its first update: every action 0."""
        ppo = self.config.ppo
        model = PPO(
            "MlpPolicy",
            face,
            learning_rate=ppo.learning_rate,
            n_steps=ppo.rollout_ticks,
            batch_size=min(ppo.minibatch_size, self.update_steps),
            n_epochs=ppo.epochs,
            gamma=ppo.gamma,
            gae_lambda=ppo.gae_lambda,
            clip_range=ppo.clip_range,
            target_kl=ppo.target_kl,
            vf_coef=ppo.value_weight,
            max_grad_norm=ppo.max_grad_norm,
            use_sde=True,
            sde_sample_freq=ppo.noise_ticks,
            policy_kwargs=policy_arguments(ppo.hidden, ppo.noise_log_std),
            seed=self._seed(_Purpose.NETWORK),
            device="cpu",
        )
        total = self.updates * self.update_steps
        # PPO's own progress counts from the start of a stretch; this one from the start of the run.
        model.lr_schedule = lambda _: (
            ppo.learning_rate * max(0.0, 1 - (model.num_timesteps - self.update_steps) / total)
        )
        start_at_base_rule(model.policy)
        return model

    def _network(self, model: PPO) -> ActionNetwork:
        return ActionNetwork(model.policy, self.codec).eval()

    def _write(self, network: ActionNetwork, results: Results, steps: int) -> Manifest:
        content, error = export(network, self.codec)
        name, version = self.place.name_and_version
        section = self.config.section
        manifest = sealed(
            Manifest(
                schema=SCHEMA,
                name=name,
                version=version,
                trace=self.inputs.trace.name,
                profile=self.inputs.profile.name,
                seed=self.config.seed,
                steps=steps,
                knobs=knob_ranges(self.codec.knobs),
                pinned=dict(self.codec.pinned),
                features=feature_ranges(self.codec),
                base=self.config.base,
                codec=codec_section(self.codec.config),
                network=NetworkShape(
                    inputs=len(self.codec.features),
                    hidden=self.config.ppo.hidden,
                    activation="tanh",
                    outputs=len(self.codec.knobs.names),
                    parity_error=error,
                ),
                results=results,
                digests=Digests(
                    network=sha256(content),
                    config=digest_of(section),
                    trace=str(self.identity["trace"]),
                    profile=str(self.identity["profile"]),
                ),
                code=self.inputs.code,
                config=section,
            )
        )
        write_bundle(self.place.bundle, manifest, content)
        return manifest


class _Watcher(BaseCallback):
    """Follows stable-baselines3 through its updates: progress, log, and a state to fall back to."""

    def __init__(self, face: Sb3VecEnv, update_steps: int, display: Display, state: Checkpoint):
        super().__init__()
        self.state = state
        """Training after the last whole update."""
        self._face = face
        self._update_steps = update_steps
        self._display = display

    def keep(self) -> None:
        """Remember training as it is now, between two updates."""
        model = self.model
        assert isinstance(model, PPO)
        self.state = replace(
            self.state,
            updates=model.num_timesteps // self._update_steps,
            steps=model.num_timesteps,
            gradient_updates=model._n_updates,
            network=copy.deepcopy(model.policy.state_dict()),
            optimizer=copy.deepcopy(model.policy.optimizer.state_dict()),
        )

    def candidate(self, score: Score) -> None:
        """Keep the present network if it is the best so far."""
        best = self.state.best
        if best is None or score.reward > best.score.reward:
            best = Candidate(self.state.steps, score, self.state.network)
            self.state = replace(self.state, best=best)

    def _on_rollout_start(self) -> None:
        self.keep()
        self._face.tally = Tally()

    def _on_step(self) -> bool:
        self._display.trained(self.num_timesteps, self._face.tally)
        return True

    def _on_rollout_end(self) -> None:
        tally = self._face.tally
        self.logger.record("rollout/reward", tally.reward / tally.steps)
        self.logger.record("rollout/attainment", tally.attainment)
        self.logger.record("rollout/replica_hours_per_step", tally.replica_s / tally.steps / 3600)


def _restore(model: PPO, state: Checkpoint) -> None:
    model.policy.load_state_dict(state.network)
    model.policy.optimizer.load_state_dict(dict(state.optimizer))
    model.num_timesteps = state.steps
    model._n_updates = state.gradient_updates


def _tensorboard(work: Path) -> Logger:
    return configure(str(work / "tensorboard"), ["tensorboard"])


def _log_scores(logger: Logger, found: Score, state: Checkpoint) -> None:
    for name, score in (("policy", found), ("base", state.base)):
        for figure, value in asdict(score).items():
            logger.record(f"validation/{name}_{figure}", value)
    logger.dump(state.steps)


def _verdict(
    better: bool,
    last: Checkpoint,
    policy: Score,
    base: Score,
    interval: tuple[float, float],
    unseen: str,
) -> str:
    """What training came to, in a sentence."""
    low, high = interval
    figures = (
        f"reward {policy.reward:.4f} against {base.reward:.4f} "
        f"(95 % interval of the difference {low:+.4f} to {high:+.4f}), "
        f"attainment {policy.attainment:.2%} against {base.attainment:.2%}, "
        f"replicas {policy.replicas:.2f} against {base.replicas:.2f}"
    )
    assert last.best is not None
    if not better:
        return (
            f"PPO did not beat its base rule on {unseen}: {figures}; "
            "the bundle holds the base rule alone, factor 1"
        )
    luck = "" if low > 0 else "; the interval contains 0, so this may be luck"
    return (
        f"the network of step {last.best.step:,} beats its base rule on {unseen}: {figures}{luck}"
    )
