"""Whether the simulator picks the policy that would have been picked by the truth.

The truth is one profile, its doubles are the same profile perturbed within its own error. Every
policy runs on both; what counts is not its score but the order: Kendall's tau between the two
orders (tau-a: pairs in the same order minus pairs in the other, over all pairs; Kendall,
Biometrika 30, 1938), and the regret of the double's best policy, judged by the truth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from envs.reward import RewardWeights
from experiments.cells import Cells
from experiments.config import RunConfig
from experiments.fanout import Watch
from experiments.job import Job, RunTask
from experiments.runner import SimulationRunner
from experiments.summary import Figures
from policies import OptionValue
from tuner.core.profile import ServingProfile
from tuner.core.trace import Trace


@dataclass(frozen=True)
class Candidate:
    """A policy with its options."""

    policy: str
    options: Mapping[str, OptionValue]

    @property
    def name(self) -> str:
        return " ".join([self.policy, *(f"{value:g}" for value in self.options.values())])


@dataclass(frozen=True)
class Double:
    """The simulator with other coefficients, and what it makes of the candidates."""

    factors: tuple[float, float, float]
    """Of the whole step time, the terms of prompt tokens and those of KV tokens."""
    scores: tuple[float, ...]
    """By candidate."""
    tau: float
    """Kendall's tau against the truth, -1 to 1."""
    regret: float
    """How much more its best candidate costs in truth than the truth's best, relative."""


@dataclass(frozen=True)
class Decisions:
    """What became of the order of the candidates."""

    candidates: tuple[Candidate, ...]
    truth: tuple[float, ...]
    """Score of each candidate, lower is better; see `score`."""
    doubles: tuple[Double, ...]

    @property
    def tau(self) -> float:
        """Mean over the doubles."""
        return float(np.mean([double.tau for double in self.doubles]))

    @property
    def regret(self) -> float:
        """The worst of the doubles."""
        return max(double.regret for double in self.doubles)


def candidates_around(replicas: float, tokens_per_s: float) -> tuple[Candidate, ...]:
    """Ten policies of which none is a straw man: fixed fleets and HPA around what the load needs,
    no two alike.

    Args:
        replicas: that the load needs in the mean.
        tokens_per_s: output tokens/s of a busy replica there.
    """
    counts: list[int] = []
    for share in (0.95, 1.2, 1.5, 1.8, 2.2):
        counts.append(max([1, round(replicas * share), *(count + 1 for count in counts)]))
    targets = [round(tokens_per_s * share) for share in (0.5, 0.6, 0.7, 0.8, 0.9)]
    return (
        *(Candidate("static", {"replicas": count}) for count in counts),
        *(Candidate("hpa", {"target": target}) for target in targets),
    )


def score(figures: Figures, span_s: float, reference: float, weights: RewardWeights) -> float:
    """Cost of a run as training weighs it, lower is better: replica-hours over those of the
    reference fleet, and the share of requests that missed an objective."""
    held = figures.replica_hours / (reference * span_s / 3600)
    return weights.resources * held + weights.stability * (1 - figures.slo_attainment)


def perturbed(profile: ServingProfile, factors: tuple[float, float, float]) -> ServingProfile:
    """The profile with other step times; see `Double.factors`."""
    step, prefill, kv = factors
    law = profile.step_time
    changed = replace(
        law,
        base_s=step * law.base_s,
        per_sequence_s=step * law.per_sequence_s,
        batch_table=tuple((batch, step * seconds) for batch, seconds in law.batch_table),
        per_kv_token_s=step * kv * law.per_kv_token_s,
        prefill_base_s=step * prefill * law.prefill_base_s,
        per_prefill_token_s=step * prefill * law.per_prefill_token_s,
        per_context_s=step * prefill * law.per_context_s,
        prefill_table=tuple(
            (tokens, step * prefill * seconds) for tokens, seconds in law.prefill_table
        ),
    )
    return replace(profile, step_time=changed)


@dataclass(frozen=True)
class Study:
    """What is asked: which policies, on which load, how far off the profile is."""

    trace: Trace
    profile: ServingProfile
    candidates: tuple[Candidate, ...]
    config: RunConfig
    """Of every run; the doubles have other seeds of cold starts and jitter."""
    reference: float
    """Replicas that costs are relative to."""
    error: tuple[float, float]
    """Standard deviations of the logarithms of the first two factors of a double: how far the
    profile is off in TPOT and in TTFT. KV tokens vary as prompt tokens do."""
    doubles: int
    seed: int


def decisions(study: Study, *, jobs: int, watch: Watch) -> Decisions:
    """Run every candidate on the truth and on its doubles.

    Args:
        jobs: processes.
        watch: told what runs.
    """
    rng = np.random.default_rng(study.seed)
    step, prefill = study.error
    sigmas = np.array([step, prefill, prefill])
    drawn = np.exp(sigmas * rng.standard_normal((study.doubles, 3)))
    worlds: list[tuple[float, float, float]] = [(1.0, 1.0, 1.0)]
    worlds += [(float(a), float(b), float(c)) for a, b, c in drawn]
    tasks = [
        RunTask(
            SimulationRunner(),
            study.trace,
            perturbed(study.profile, factors),
            Job(one.policy, one.name, one.options, study.config, study.seed + number),
            f"{one.name}, {f'double {number}' if number else 'truth'}",
        )
        for number, factors in enumerate(worlds)
        for one in study.candidates
    ]
    with TemporaryDirectory() as cells:
        digests = Cells(Path(cells)).run(tasks, jobs, watch)
    span_s = study.trace.last_arrival_s
    scores = [score(digest.figures, span_s, study.reference, RewardWeights()) for digest in digests]
    n = len(study.candidates)
    truth, *others = [tuple(scores[at : at + n]) for at in range(0, len(scores), n)]
    doubles = [
        Double(factors, own, tau(truth, own), regret(truth, own))
        for factors, own in zip(worlds[1:], others, strict=True)
    ]
    return Decisions(study.candidates, truth, tuple(doubles))


def tau(truth: Sequence[float], scores: Sequence[float]) -> float:
    """Kendall's tau-a of two orders of the same candidates."""
    pairs = list(combinations(range(len(truth)), 2))
    agreed = sum(np.sign(truth[a] - truth[b]) * np.sign(scores[a] - scores[b]) for a, b in pairs)
    return float(agreed) / len(pairs)


def regret(truth: Sequence[float], scores: Sequence[float]) -> float:
    """How much worse the candidate with the lowest score is in truth than the truth's best."""
    chosen = min(range(len(scores)), key=lambda place: scores[place])
    best = min(truth)
    return (truth[chosen] - best) / best
