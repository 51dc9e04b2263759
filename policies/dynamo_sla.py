"""`dynamo-sla`: NVIDIA Dynamo's planner with latency objectives and a model of its engines.

ai-dynamo 1.6.1, dynamo/planner/core/load_scaling.py, throughput_scaling.py and
plugins/builtins/local_planner.py. Two loops:

- *load*, every 5 s: from what each replica has to do, the model says which TTFT and ITL a next
  request would meet there. One replica more if one of the two is above its objective on all of
  them, one less if the survivors would keep both with room to spare (`sensitivity`).
- *throughput*, every 180 s: forecast of requests and their sizes, over what one replica carries
  within the objectives, moved by at most 8 replicas at once. With both loops it is the load loop's
  lower bound.

The planner fits its model to what its engines report; here the model is the serving profile
(`PerfModel`), in the simulator the truth itself: the best that the rule can do. Prefix hits, which
the planner takes off the prompts, are not among what policies see. `dynamo_pool` says what it sees
of a replica and what holds it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from policies.dynamo_pool import POOLS, TICK_S, Limits, Sizes, Workers
from policies.dynamo_sla_load import LoadLoop
from policies.dynamo_sla_throughput import Throughput
from policies.dynamo_sla_words import SlaWords
from policies.entry import Entry, Load, Parameter, Target
from policies.options import Options
from policies.perf_model import PerfModel
from policies.predictors import PREDICTORS
from policies.rule import RulePolicy, RuleResult
from tuner.core.errors import ConfigError
from tuner.core.observation import ObservationArrays
from tuner.core.protocols import FloatArray

NAME = "dynamo-sla"
MODES = ("both", "load", "throughput")


@dataclass(frozen=True)
class SlaRule:
    """Dynamo's planner with objectives over n targets.

    NaN where it makes no decision for want of data; n where it stays.
    """

    load: LoadLoop | None
    throughput: Throughput | None
    """At least one of the two."""
    kv_tokens: int
    """That a replica's cache holds."""
    limits: Limits
    tick_s: float

    @property
    def memory_size(self) -> int:
        return Sizes.SIZE + (self.throughput.size if self.throughput else 0)

    def decide(self, now: ObservationArrays, memory: FloatArray) -> RuleResult:
        memory = memory.copy()
        sizes = Sizes.updated(memory[:, : Sizes.SIZE], now, self.tick_s, self.kv_tokens)
        memory[:, : Sizes.SIZE] = sizes.memory
        workers = Workers.of(now, self.kv_tokens, sizes.prompt_tokens)
        ready = workers.ready
        need = wish = np.full(len(ready), np.nan)
        cancels = np.zeros(len(ready), dtype=bool)
        known = (workers.n > 0) & ~np.isnan(ready)
        forecast, latencies = None, {}
        if self.throughput:
            forecast = self.throughput.step(memory[:, Sizes.SIZE :], now, ready, sizes.queue)
            need, wish, cancels = forecast.needed, forecast.wish, ~np.isnan(forecast.needed)
        if self.load:
            latencies = self.load.latencies(workers, sizes)
            up = np.any([each.above for each in latencies.values()], axis=0)
            down = np.all([each.safe for each in latencies.values()], axis=0) & ~up
            down &= (ready > 1) | (workers.starting > 0)
            fewer = np.maximum(ready - 1, self.limits.min_endpoint)
            wish = np.where(up, ready + 1, np.where(down, fewer, ready))
            wish = wish if forecast is None else np.maximum(wish, forecast.bound)
            known = workers.known
            wish, cancels = np.where(workers.decide, wish, np.nan), down

        target = np.where(known, self.limits.settle(workers, wish, cancels), np.nan)
        settings = np.full(now.settings.shape, np.nan)
        settings[:, now.knobs.column("replicas")] = target
        words = SlaWords(self.limits, workers, wish, target, self.load, latencies, forecast)
        return RuleResult(settings, np.where(known, wish, np.nan), need, memory, words)


def build(options: Options, target: Target) -> RulePolicy:
    """Policy `dynamo-sla`.

    Options: `mode` both (default), load or throughput; `pool` aggregated (default), decode or
    prefill; `predictor` ar (default), kalman or constant; `slo_scale`, a factor on both objectives;
    `sensitivity`, the share (0-1) of an objective that survivors of a move down may use up;
    `max_delta`, the largest step of a forecast; `min_endpoint`, `max_gpu_budget`.

    Raises:
        ConfigError: an option is unknown or does not fit, or there is no profile.
    """
    profile = target.serving(NAME)
    mode = options.choice("mode", MODES, "both")
    pool = options.choice("pool", POOLS, "aggregated")
    predictor = PREDICTORS[_predictor(options)]()
    scale = options.number("slo_scale", 1.0)
    sensitivity = options.number("sensitivity", 0.8)
    max_delta = options.whole("max_delta", 8)
    if scale <= 0:
        raise ConfigError(f"{NAME}: slo_scale is {scale:g}; expected more than 0")
    if not 0 <= sensitivity <= 1:
        raise ConfigError(f"{NAME}: sensitivity is {sensitivity:g}; expected a share from 0 to 1")
    if max_delta < 1:
        raise ConfigError(f"{NAME}: max_delta is {max_delta}; expected at least 1")
    limits = Limits.build(NAME, options, target.knobs["replicas"], profile.gpus_per_replica)
    options.finish()
    model = PerfModel(profile)
    objectives = (scale * target.slo.ttft_s, scale * target.slo.tpot_s)
    rule = SlaRule(
        load=None if mode == "throughput" else LoadLoop(model, pool, *objectives, sensitivity),
        throughput=None
        if mode == "load"
        else Throughput(model, pool, *objectives, predictor, max_delta, limits),
        kv_tokens=model.kv_tokens,
        limits=limits,
        tick_s=target.tick_s,
    )
    return RulePolicy(NAME, rule)


def _predictor(options: Options) -> str:
    """The forecast's name; those of the planner that are not here are refused with a reason."""
    near = {
        "arima": "is not repeated here: pmdarima, which searches its order, is no dependency; ar "
        "is one model of its family",
        "prophet": "is not here: it needs a library of its own; kalman follows a trend too",
    }
    given = options.text("predictor", "ar")
    if given in near:
        raise ConfigError(f"{NAME}: predictor {given} {near[given]}")
    return options.choice("predictor", tuple(PREDICTORS), "ar")


def search(load: Load) -> tuple[Parameter, ...]:
    """How much of the objectives the model may use up, and how much of that after a move down."""
    return (
        Parameter("slo_scale", 0.2, 2.0, "of the objectives", log=True),
        Parameter("sensitivity", 0.2, 1.0, ""),
        Parameter("max_delta", 1, 16, "replicas", log=True, whole=True),
    )


ENTRY = Entry(build, search, tick_s=TICK_S, modelled=True)
