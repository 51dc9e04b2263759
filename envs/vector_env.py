"""Many serving targets at once: one `gymnasium.vector` environment without a loop over targets."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from envs.config import EnvConfig
from envs.episodes import EpisodeDraws, episode_seeds
from envs.failures import with_failures
from envs.reward import RewardScale, reward
from envs.simulator.fleet import Fleet
from envs.simulator.observe import ObservedFleet
from envs.spaces import action_space, observation_space
from policies.codec import Codec, Seen
from policies.rule import Rule, RuleResult, empty_memory
from tuner.core.decision import Arbitration, Guardrails, Reason, Tick, arbitrate_arrays
from tuner.core.observation import ObservationArrays, exchanged
from tuner.core.profile import ServingProfile
from tuner.core.protocols import BoolArray, FloatArray
from tuner.core.trace import Trace


class VectorServingEnv(VectorEnv[NDArray[np.float32], FloatArray, Any]):
    """n simulated targets on one trace, each in an episode of its own.

    Spaces, reward, start and end are those of `ServingEnv`; here they are arrays. An environment
    that ends is reset within the same step (`AutoresetMode.SAME_STEP`): its last observation is in
    `infos["final_obs"]`, the observation returned is the first of its next episode.

    Episode e of environment i depends on (seed, i, e) only, so the number of environments beside
    it and the number of threads change nothing.

    Args:
        trace: the load; episodes begin at random places of it.
        profile: how fast a replica serves.
        codec: features and actions.
        n_envs: environments.
        guardrails: the same objects that act in production.
        fallback: the rule that decides where a guardrail trips.
        config: scenario family.
        scale: what the reward is relative to.
        seed: of everything that is drawn.
        slots: most replicas held at once per target, draining ones included.
        threads: simulation threads; the results do not depend on it.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012 - gymnasium's own form

    def __init__(
        self,
        trace: Trace,
        profile: ServingProfile,
        codec: Codec,
        *,
        n_envs: int,
        guardrails: Guardrails,
        fallback: Rule,
        config: EnvConfig,
        scale: RewardScale,
        seed: int = 0,
        slots: int | None = None,
        threads: int = 1,
    ) -> None:
        config.validate()
        self.num_envs = n_envs
        self.single_observation_space = observation_space(codec)
        self.single_action_space = action_space(codec)
        self.observation_space = batch_space(self.single_observation_space, n_envs)
        self.action_space = batch_space(self.single_action_space, n_envs)
        self.codec = codec
        self.guardrails = guardrails
        self.fallback = fallback
        self.config = config
        self.scale = scale
        self.trace = trace
        self._seed = seed
        self._fleet = ObservedFleet(
            Fleet(
                trace,
                profile,
                seeds=np.zeros(n_envs, dtype=np.uint64),
                slots=slots or codec.knobs["replicas"].high + 8,
                router=config.router,
                slo=config.slo,
                jitter=config.jitter,
                drain_timeout_s=config.drain_timeout_s,
                crash_per_hour=config.failures.crash_per_hour,
                scrape=config.scrape,
                threads=threads,
            ),
            codec.knobs,
            outage=config.scrape.outage,
        )
        self._episode = np.zeros(n_envs, dtype=np.int64)
        self._ticks = np.zeros(n_envs, dtype=np.int64)
        self._at_s = np.zeros(n_envs)
        self._memory = codec.empty_memory(n_envs)
        self._fallback_memory = empty_memory(fallback, n_envs)
        self._now: ObservationArrays
        self._seen: Seen
        self.last: tuple[Tick, Arbitration] | None = None
        """What the last step looked at and decided; for tests and recordings."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start every environment afresh: at its first episode if a seed is given, else its next.

        Options are not used.
        """
        if seed is not None:
            self._seed = seed
            self._episode[:] = 0
        self._begin(np.arange(self.num_envs))
        self._now, _ = self._fleet.look()
        self._seen = self.codec.observe(self._now, self._memory)
        return self._seen.features, {}

    def step(
        self, actions: FloatArray
    ) -> tuple[NDArray[np.float32], FloatArray, BoolArray, BoolArray, dict[str, Any]]:
        """One tick of every environment.

        Args:
            actions: `(n, knobs)` in [-1, 1]; a row that is not finite is a failed policy.

        Returns:
            features, reward, terminated (never), truncated, and infos: the arrays of `Outcome`,
            `tripped`, `clamped`, and at the end of an episode `final_obs` with its mask
            `_final_obs`.
        """
        self._decide(np.asarray(actions, dtype=np.float64))
        self._at_s += self.config.tick_s
        self._ticks += 1
        self._fleet.fleet.advance(self._at_s)
        self._now, outcome = self._fleet.look()
        self._seen = self.codec.observe(self._now, self._memory)
        gained = reward(outcome, self.config.weights, self.scale)
        for gap in self.trace.gaps:
            # Nobody knows what was asked for in a gap: nothing is learned from it.
            inside = (gap.start_s < self._at_s) & (self._at_s - self.config.tick_s < gap.end_s)
            gained = np.where(inside, 0.0, gained)
        truncated = self._ticks >= self.config.episode_ticks
        infos: dict[str, Any] = vars(outcome) | {
            "tripped": self._decided.tripped,
            "clamped": self._decided.clamped,
        }
        if truncated.any():
            infos |= {"final_obs": self._seen.features, "_final_obs": truncated}
            self._restart(np.flatnonzero(truncated))
        return self._seen.features, gained, np.zeros_like(truncated), truncated, infos

    def _decide(self, actions: FloatArray) -> None:
        before = self._memory
        failed: BoolArray = np.any(~np.isfinite(actions), axis=1)
        settings, memory = self.codec.act(
            np.where(failed[:, None], 0.0, actions), self._now, self._seen
        )
        asked = self._ask_fallback()
        tick = Tick(
            now=self._now,
            proposed=np.where(failed[:, None], np.nan, settings),
            fault=np.where(failed, Reason.ProposalNotFinite, Reason.Trusted).astype(np.int64),
        )
        decided = arbitrate_arrays(tick, asked.settings, self.guardrails)
        # A policy that failed keeps the memory it had, as in `History.decided`.
        self._memory = np.where(failed[:, None], before, memory)
        self._fallback_memory = np.array(asked.memory)
        self._fleet.apply(decided.target)
        self.last = (tick, decided)
        self._decided = decided

    def _ask_fallback(self) -> RuleResult:
        """What the fallback says: in training it is the base rule, which has been asked already.

        Their memories part where a policy failed: its own stays as it was.
        """
        if self.fallback is self.codec.base:
            remembered = self._memory[:, : self.fallback.memory_size]
            if np.array_equal(remembered, self._fallback_memory, equal_nan=True):
                return self._seen.base
        return self.fallback.decide(self._now, self._fallback_memory)

    def _begin(self, rows: NDArray[np.intp]) -> None:
        """Draw and start an episode for some environments, up to its first observation."""
        draws = EpisodeDraws.of(
            self.config, self.trace, episode_seeds(self._seed, rows, self._episode[rows])
        )
        knobs = self.codec.knobs
        settings = np.tile(knobs.row(knobs.defaults()), (len(rows), 1))
        settings[:, knobs.column("replicas")] = draws.replicas
        self._fleet.reset(
            rows,
            start_s=draws.start_s,
            seeds=draws.seeds,
            settings=settings,
            keep=draws.keep,
            factors=with_failures(draws.factors, self.config.failures, draws.seeds, draws.replicas),
            scrape_lag_s=draws.scrape_lag_s,
            scrape_loss=draws.scrape_loss,
        )
        self._episode[rows] += 1
        self._ticks[rows] = 0
        self._memory[rows] = np.nan
        self._fallback_memory[rows] = np.nan
        # The first decision follows one tick of load, as a controller's first sync does.
        self._at_s[rows] = draws.start_s + self.config.tick_s
        self._fleet.fleet.advance(self._at_s)

    def _restart(self, rows: NDArray[np.intp]) -> None:
        """Begin the next episodes of some environments; the others keep what they have seen."""
        kept_now, kept = self._now, self._seen
        self._begin(rows)
        fresh_now, _ = self._fleet.look()
        fresh = self.codec.observe(fresh_now.take(rows), self._memory[rows])
        self._now = kept_now.replaced(rows, fresh_now.take(rows))
        old, new = kept.base, fresh.base
        # Without words: nobody asks for them here.
        base = RuleResult(
            settings=exchanged(old.settings, rows, new.settings),
            raw=exchanged(old.raw, rows, new.raw),
            need=exchanged(old.need, rows, new.need),
            memory=exchanged(old.memory, rows, new.memory),
        )
        self._seen = Seen(
            features=exchanged(kept.features, rows, fresh.features),
            base=base,
            memory=exchanged(kept.memory, rows, fresh.memory),
        )
