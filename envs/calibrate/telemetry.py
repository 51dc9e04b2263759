"""Step time from telemetry alone: the law whose simulated fleet leaves the recorded histograms.

    seconds = base_s + per_sequence_s x sequences + per_prefill_token_s x prompt tokens
              + per_kv_token_s x tokens in the cache

and, where asked for, a constant of iterations with prompt tokens and `frontend.ingress_s`. The
requests are rebuilt from the recorded counts and served again by candidate profiles. What must
agree, block of time by block of time, are the quantiles of TTFT, TPOT and E2E, read off the
recording's own buckets on both sides, and the mean number of requests in flight, which is not
rounded by any bucket and by Little's law tells the mean latency.

Minimised is the sum of (log(simulated / measured) / sigma)^2 over blocks and figures, those above 1
counted by their root, plus the squares of a wide prior around the base profile. Optuna searches the
whole range, Levenberg and Marquardt go down from its best trials.

Intervals are the spread of the fit: its sandwich variance with a block of time as the unit, so that
what is alike within a block counts once (Liang and Zeger, Biometrika 73(1), 1986), plus a
parametric bootstrap: another reconstruction is served by the fitted profile, taken for the
recording, and fitted again.
How far that comes out from what it was made with, bias included, is what not knowing the single
requests costs. Where the recording says nothing, the interval is the prior's. What the intervals do
not hold: lengths that lie in their buckets unlike those rebuilt, and a fleet whose speed changes. A
known fleet with lengths even from 1 to 75 had its constant within 6 %, and what a sequence costs,
which trades against it, at 0.5 to 1 times the truth, outside of the interval in two runs of three:
they are no 95 % intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.calibrate.least_squares import Minimum, levenberg_marquardt
from envs.calibrate.replay import served
from envs.calibrate.result import Coefficient, rounded
from envs.workloads.recorded import from_telemetry, histograms_of
from tuner.core.errors import InputError
from tuner.core.histograms import histogram_quantile
from tuner.core.profile import Frontend, ServingProfile
from tuner.core.step_time import seconds_by_batch, seconds_by_prefill
from tuner.core.trace import Trace
from tuner.data.telemetry import Telemetry

Floats = NDArray[np.float64]

TERMS = ("sequences", "prefill", "kv", "prefill-base", "ingress")
DEFAULT_TERMS = ("sequences", "prefill", "kv")
_KEYS = {
    "base": "step_time.base_s",
    "sequences": "step_time.per_sequence_s",
    "prefill": "step_time.per_prefill_token_s",
    "kv": "step_time.per_kv_token_s",
    "prefill-base": "step_time.prefill_base_s",
    "ingress": "frontend.ingress_s",
}

KINDS = ("ttft_s", "tpot_s", "e2e_s")
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
"""That are fitted, of each histogram."""
SIGMAS = {"p50": 0.05, "p90": 0.1, "p99": 0.3, "in_flight": 0.05}
"""Relative errors that a good law has within a block; rare requests are few in it."""
KIND_SIGMAS = {"ttft_s": 2.0, "tpot_s": 1.0, "e2e_s": 2.0}
"""Times those: TTFT and E2E go with lengths, which inside a bucket are not known; rebuilt requests
served by the truth itself had medians of E2E 6 to 9 % off, and of TPOT 1 %."""
SHOWN = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
"""That errors are told of."""
FAR = 2.0
"""A figure counts as no further off than by this factor's exponential: a candidate ten times too
slow says nothing about how the next one should be."""

RANGE = 30.0
"""Candidates lie within this factor of the base profile, after it has been scaled as a whole to the
recorded TPOT: the order of magnitude between terms of one engine and of another."""
PRIOR_SIGMA = float(np.log(RANGE)) / 1.96

BLOCKS = 24
"""At most; at least a minute's worth of requests should be in each."""
FEWEST_PER_BLOCK = 30
"""Finished requests: below it a p90 is a single request."""
FEWEST_BLOCKS = 6
FOLDS = 4
"""Spans of consecutive blocks of which each is left out of a fit in turn."""
RECONSTRUCTIONS = 3
"""Rebuilt at once and counted together: one alone has bursts that were not."""
DOUBLES = 6
"""Recordings made with the fitted profile and fitted again."""
_STUDENT = 2.447
"""97.5 % quantile of Student's t with as many degrees of freedom."""
_STARTS = 2
"""Best trials to go down from: queues make the surface rough."""
_POLISH_ROUNDS = 12


@dataclass(frozen=True, eq=False)
class Blocks:
    """What was recorded, or simulated, in each block of time."""

    counts: Mapping[str, NDArray[np.int64]]
    """Of KINDS: `(blocks, buckets + 1)` requests by latency, the last above every bound."""
    in_flight: Floats
    """`(blocks,)` mean; NaN where not measured."""


@dataclass(frozen=True, eq=False)
class Recording:
    """Telemetry made ready for a fit."""

    telemetry: Telemetry
    measured: Blocks
    bounds: Mapping[str, Floats]
    """Of KINDS: `(buckets,)` seconds."""
    edge_s: Floats
    """`(blocks + 1,)` on the clock of the rebuilt requests."""
    looks: NDArray[np.int64]
    """`(blocks,)` rows that tell the requests in flight."""
    judged: NDArray[np.bool_]
    """`(blocks,)`; the first one is not, because the simulation starts empty, nor are those with a
    gap."""

    def figures(self, blocks: Blocks) -> Floats:
        """`(blocks, figures)`: quantiles of each kind, then requests in flight; NaN where there is
        nothing."""
        columns = [
            histogram_quantile(share, self.bounds[kind], blocks.counts[kind])
            for kind in KINDS
            for share in QUANTILES.values()
        ]
        return np.column_stack([*columns, blocks.in_flight])


@dataclass(frozen=True, eq=False)
class TelemetryFit:
    """A fitted profile, and how it does on the recording, seen and unseen."""

    profile: ServingProfile
    coefficients: tuple[Coefficient, ...]
    recording: Recording
    simulated: Blocks
    left_out: Blocks
    """Each block by a fit that saw nothing of its span of time."""
    trials: int

    @property
    def requests(self) -> int:
        """That finished in the recording."""
        return int(self.recording.measured.counts["e2e_s"].sum())

    @property
    def errors(self) -> dict[str, float]:
        """As in the `error` section of a profile; > 0: simulated too slow, or too many."""
        return {
            **self._errors(self.simulated, ""),
            **self._errors(self.left_out, "_left_out"),
        }

    def quantiles(self, blocks: Blocks, kind: str) -> dict[str, float]:
        """Seconds, by names of SHOWN, over all judged blocks."""
        pooled = blocks.counts[kind][self.recording.judged].sum(axis=0)[None, :]
        return {
            name: float(histogram_quantile(share, self.recording.bounds[kind], pooled)[0])
            for name, share in SHOWN.items()
        }

    def _errors(self, blocks: Blocks, suffix: str) -> dict[str, float]:
        found = {}
        for kind in KINDS:
            simulated = self.quantiles(blocks, kind)
            for name, value in self.quantiles(self.recording.measured, kind).items():
                found[f"{kind.removesuffix('_s')}_{name}{suffix}"] = simulated[name] / value - 1
        judged = self.recording.judged & np.isfinite(self.recording.measured.in_flight)
        if judged.any():
            own, true = blocks.in_flight[judged], self.recording.measured.in_flight[judged]
            found[f"in_flight_mean{suffix}"] = float(own.mean() / true.mean() - 1)
        return found


def ready_for_fit(telemetry: Telemetry, name: str) -> Recording:
    """Blocks of time and what was recorded in each.

    Args:
        name: of the recording, for messages.

    Raises:
        InputError: no latencies were recorded, or too little.
    """
    table = telemetry.table.sort_by("at_s")
    trace = from_telemetry(telemetry, 0, name=name).trace
    end_s = _column(table, "at_s")
    end_s = end_s - (end_s[0] - _column(table, "counted_s")[0])
    finished = np.nansum(_column(table, "requests_finished"))
    wanted = int(min(BLOCKS, finished / FEWEST_PER_BLOCK, len(end_s)))
    if wanted < FEWEST_BLOCKS:
        raise InputError(
            f"{name}: {finished:,.0f} requests finished in {len(end_s):,} rows; expected at least "
            f"{FEWEST_BLOCKS * FEWEST_PER_BLOCK} in {FEWEST_BLOCKS}: record a longer span"
        )
    rows_per_block = -(-len(end_s) // wanted)
    block = np.arange(len(end_s)) // rows_per_block
    blocks = int(block[-1]) + 1
    edge_s = np.concatenate(([0.0], end_s[np.searchsorted(block, np.arange(blocks), "right") - 1]))
    counts, bounds = {}, {}
    for kind in KINDS:
        seen = histograms_of(table, kind, np.arange(len(end_s)), block)
        if seen is None:
            raise InputError(f"{name}: no {kind} was recorded; record an engine that tells it")
        counts[kind], bounds[kind] = seen.counts, seen.bounds
    flight = _column(table, "running") + _column(table, "queue_depth")
    known = np.isfinite(flight)
    looks = np.bincount(block[known], minlength=blocks)
    with np.errstate(invalid="ignore"):
        in_flight = np.bincount(block[known], weights=flight[known], minlength=blocks) / looks
    judged = np.arange(blocks) > 0
    for gap in trace.gaps:
        judged &= (edge_s[1:] <= gap.start_s) | (edge_s[:-1] >= gap.end_s)
    if judged.sum() < FEWEST_BLOCKS - 1:
        raise InputError(f"{name}: {int(judged.sum())} blocks without a gap; record a longer span")
    return Recording(telemetry, Blocks(counts, in_flight), bounds, edge_s, looks, judged)


def simulated_blocks(
    recording: Recording, trace: Trace, profile: ServingProfile, *, replicas: int, router: str
) -> Blocks:
    """The rebuilt requests served by a profile, counted as the recording counts."""
    profile = replace(profile, startup=None, limits=replace(profile.limits, batch_size_oom=None))
    seen = served(trace, profile, replicas=replicas, router=router)
    first_s, last_s = trace.arrival_s + seen.ttft_s, trace.arrival_s + seen.e2e_s
    at_s = {"ttft_s": first_s, "tpot_s": last_s, "e2e_s": last_s}
    many = trace.output_tokens > 1
    counts = {}
    for kind in KINDS:
        known = np.isfinite(at_s[kind]) & (many | (kind != "tpot_s"))
        counts[kind] = _counted(
            at_s[kind][known],
            getattr(seen, kind)[known],
            recording.edge_s,
            recording.bounds[kind],
        )
    leaves_s = np.where(np.isfinite(last_s), last_s, np.inf)
    return Blocks(counts, _mean_inside(np.asarray(trace.arrival_s), leaves_s, recording.edge_s))


def _pooled(parts: Sequence[Blocks]) -> Blocks:
    """Several servings of one load counted together."""
    counts = {kind: np.sum([part.counts[kind] for part in parts], axis=0) for kind in KINDS}
    return Blocks(counts, np.mean([part.in_flight for part in parts], axis=0))


def _counted(at_s: Floats, value_s: Floats, edge_s: Floats, bounds: Floats) -> NDArray[np.int64]:
    """`(blocks, buckets + 1)` events by block and bucket; a bucket holds its upper bound."""
    block = np.searchsorted(edge_s, at_s, side="left") - 1
    inside = (block >= 0) & (block < len(edge_s) - 1)
    width = len(bounds) + 1
    place = block[inside] * width + np.searchsorted(bounds, value_s[inside], side="left")
    return np.bincount(place, minlength=(len(edge_s) - 1) * width).reshape(-1, width)


def _mean_inside(from_s: Floats, to_s: Floats, edge_s: Floats) -> Floats:
    """`(blocks,)` mean number of spans that hold an instant of the block."""

    def seconds_before(moments_s: Floats) -> Floats:
        """Sum over the moments of the time from each to an edge, at every edge."""
        rising = np.sort(moments_s[np.isfinite(moments_s)])
        number = np.searchsorted(rising, edge_s, side="right")
        sums = np.concatenate(([0.0], np.cumsum(rising)))
        return np.asarray(number * edge_s - sums[number])

    inside_s = seconds_before(from_s) - seconds_before(to_s)
    return np.asarray(np.diff(inside_s) / np.diff(edge_s))


def _soft(errors: Floats) -> Floats:
    """Small errors as they are, the square of a large one as 2 x the error: a queue that builds up
    in one block, or a minute in which somebody else had the machine, must not decide the fit."""
    return np.asarray(np.sign(errors) * np.sqrt(2 * (np.sqrt(1 + errors**2) - 1)))


@dataclass(frozen=True, eq=False)
class _Law:
    """Which figures are fitted, and where the search begins; parameters are logarithms."""

    base: ServingProfile
    terms: tuple[str, ...]
    start: Floats

    def profile(self, at: Floats) -> ServingProfile:
        figures = dict(zip(self.terms, (rounded(v) for v in np.exp(at).tolist()), strict=True))
        step_time = replace(
            self.base.step_time,
            base_s=figures["base"],
            per_sequence_s=figures.get("sequences", 0.0),
            per_prefill_token_s=figures.get("prefill", 0.0),
            per_kv_token_s=figures.get("kv", 0.0),
            prefill_base_s=figures.get("prefill-base", 0.0),
            batch_table=(),
            prefill_table=(),
        )
        frontend = self.base.frontend
        if "ingress" in figures:
            frontend = replace(frontend or Frontend(cores=1), ingress_s=figures["ingress"])
        return replace(self.base, step_time=step_time, frontend=frontend)


def _law(base: ServingProfile, terms: Sequence[str]) -> _Law:
    unknown = [term for term in terms if term not in TERMS]
    if unknown:
        raise InputError(f"term {unknown[0]!r} is not known; expected of: {', '.join(TERMS)}")
    step = base.step_time
    batch_s = seconds_by_batch(base)
    most = len(batch_s) - 1
    slope_s = (batch_s[most] - batch_s[1]) / max(most - 1, 1)
    one_s = float(batch_s[1])
    given = {
        "base": one_s - slope_s,
        "sequences": slope_s,
        "prefill": float(seconds_by_prefill(base)[-1]) / base.limits.chunk_tokens,
        "kv": step.per_kv_token_s,
        "prefill-base": step.prefill_base_s,
        "ingress": base.frontend.ingress_s if base.frontend else 0.0,
    }
    # Where the base profile says nothing: what an engine's terms are beside one decode, roughly.
    usual = {
        "base": one_s / 2,
        "sequences": one_s / 50,
        "prefill": one_s / 500,
        "kv": one_s / 5e5,
        "prefill-base": one_s / 2,
        "ingress": one_s,
    }
    taken = ("base", *(term for term in TERMS if term in terms))
    seconds = [given[term] if given[term] > 0 else usual[term] for term in taken]
    return _Law(base, taken, np.log(seconds))


class _Judge:
    """Residuals of simulated figures against recorded ones."""

    def __init__(self, recording: Recording, measured: Blocks) -> None:
        figures = recording.figures(measured)
        self._known = np.isfinite(figures) & (figures > 0) & recording.judged[:, None]
        self._log_measured = np.log(np.where(self._known, figures, 1.0))
        sigmas = [KIND_SIGMAS[kind] * SIGMAS[name] for kind in KINDS for name in QUANTILES]
        self._sigmas = np.tile([*sigmas, SIGMAS["in_flight"]], (len(figures), 1))
        # A gauge is read once per row: as many requests as a Poisson process has at an instant.
        seen = np.maximum(figures[:, -1] * recording.looks, 1.0)
        self._sigmas[:, -1] = np.sqrt(
            SIGMAS["in_flight"] ** 2 + 1 / np.where(self._known[:, -1], seen, 1.0)
        )

    def residuals(self, simulated: Floats) -> Floats:
        """`(blocks, figures)` of both; 0 where nothing was measured."""
        with np.errstate(divide="ignore", invalid="ignore"):
            off = np.log(simulated) - self._log_measured
        # What did not happen at all, because the candidate is far too slow, is far off.
        off = np.clip(np.where(np.isfinite(off), off, FAR), -FAR, FAR)
        return _soft(np.where(self._known, off, 0.0) / self._sigmas)


def fit_telemetry(
    recording: Recording,
    base: ServingProfile,
    *,
    terms: Sequence[str] = DEFAULT_TERMS,
    replicas: int = 1,
    router: str = "round_robin",
    trials: int = 200,
    seed: int = 0,
    watch: Callable[[str, float], None] = lambda label, share: None,
) -> TelemetryFit:
    """Fit a law to a recording, and judge it on spans of time left out.

    Args:
        base: gives everything that is not fitted: rule-set, cache, limits.
        terms: of TERMS.
        replicas: that served, all the time.
        trials: candidates that the search simulates.
        seed: of the search and the reconstructions.
        watch: told a label and a share (0-1) of the work done.

    Raises:
        InputError: a term is not known, or optuna is not installed.
    """
    if find_spec("optuna") is None:
        raise InputError(
            "a fit to telemetry searches with optuna, which is not installed; "
            "install deepseek-tuner[train]"
        )
    law = _law(base, terms)
    traces = [from_telemetry(recording.telemetry, seed + n).trace for n in range(RECONSTRUCTIONS)]
    everything = np.ones(len(recording.judged), np.bool_)
    fold = _folds(recording.judged)
    rounds = 1 + FOLDS + DOUBLES

    def blocks(at: Floats, rebuilt: Sequence[Trace] = traces) -> Blocks:
        profile = law.profile(at)
        return _pooled(
            [
                simulated_blocks(recording, trace, profile, replicas=replicas, router=router)
                for trace in rebuilt
            ]
        )

    def figures(at: Floats) -> Floats:
        return recording.figures(blocks(at))

    law = replace(law, start=law.start + _scale(recording, blocks(law.start)))
    judge = _Judge(recording, recording.measured)
    watch("search", 0.0)
    tried = _search(figures, judge, law.start, trials, seed, lambda share: watch("search", share))
    done = 0

    def fit(judge: _Judge, kept: NDArray[np.bool_]) -> Minimum:
        nonlocal done

        def residuals(at: Floats) -> Floats:
            own = judge.residuals(figures(at))[kept].ravel()
            return np.concatenate([own, (at - law.start) / PRIOR_SIGMA])

        costs = [
            (judge.residuals(seen)[kept] ** 2).sum() + (((at - law.start) / PRIOR_SIGMA) ** 2).sum()
            for at, seen in tried
        ]
        best = np.argsort(costs, kind="stable")[:_STARTS]
        found = [levenberg_marquardt(residuals, tried[i][0], _POLISH_ROUNDS) for i in best]
        done += 1
        watch("fits", done / rounds)
        return min(found, key=lambda one: one.cost)

    watch("fits", 0.0)
    found = fit(judge, everything)
    parts = [(fold == number, blocks(fit(judge, fold != number).at)) for number in range(FOLDS)]
    errors = []
    for number in range(DOUBLES):
        double = from_telemetry(recording.telemetry, seed + RECONSTRUCTIONS + number).trace
        made = _Judge(recording, blocks(found.at, [double]))
        errors.append(fit(made, everything).at - found.at)
    variance = _sandwich(found, len(recording.judged)) + np.mean(np.square(errors), axis=0)
    values, wide = np.exp(found.at), np.exp(_STUDENT * np.sqrt(variance))
    return TelemetryFit(
        profile=law.profile(found.at),
        coefficients=tuple(
            Coefficient(_KEYS[term], rounded(v), rounded(v / w), rounded(v * w))
            for term, v, w in zip(law.terms, values.tolist(), wide.tolist(), strict=True)
        ),
        recording=recording,
        simulated=blocks(found.at),
        left_out=_joined(parts),
        trials=trials,
    )


def _scale(recording: Recording, simulated: Blocks) -> float:
    """Logarithm of how much slower the recorded TPOT is than the base profile's."""
    medians = []
    for blocks in (recording.measured, simulated):
        pooled = blocks.counts["tpot_s"].sum(axis=0)[None, :]
        medians.append(float(histogram_quantile(0.5, recording.bounds["tpot_s"], pooled)[0]))
    return float(np.log(medians[0] / medians[1])) if medians[1] > 0 else 0.0


def _search(
    figures: Callable[[Floats], Floats],
    judge: _Judge,
    start: Floats,
    trials: int,
    seed: int,
    told: Callable[[float], None],
) -> list[tuple[Floats, Floats]]:
    """Candidates and their figures."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(trials // 4, 1))
    study = optuna.create_study(sampler=sampler)
    study.enqueue_trial({str(i): 0.0 for i in range(len(start))})
    reach = float(np.log(RANGE))
    tried: list[tuple[Floats, Floats]] = []

    def cost(trial: optuna.Trial) -> float:
        moved = np.array([trial.suggest_float(str(i), -reach, reach) for i in range(len(start))])
        seen = figures(start + moved)
        tried.append((start + moved, seen))
        told(len(tried) / trials)
        return float((judge.residuals(seen) ** 2).sum() + ((moved / PRIOR_SIGMA) ** 2).sum())

    study.optimize(cost, n_trials=trials)
    return tried


def _folds(judged: NDArray[np.bool_]) -> NDArray[np.int64]:
    """`(blocks,)` number of the span in which a block is left out; -1 where it is not judged."""
    place = np.cumsum(judged) - 1
    return np.asarray(np.where(judged, place * FOLDS // int(judged.sum()), -1))


def _joined(parts: Sequence[tuple[NDArray[np.bool_], Blocks]]) -> Blocks:
    """Of each part its own blocks."""
    counts = {kind: np.zeros_like(parts[0][1].counts[kind]) for kind in KINDS}
    in_flight = np.full(len(parts[0][0]), np.nan)
    for own, blocks in parts:
        for kind in KINDS:
            counts[kind][own] = blocks.counts[kind][own]
        in_flight[own] = blocks.in_flight[own]
    return Blocks(counts, in_flight)


def _sandwich(found: Minimum, blocks: int) -> Floats:
    """Variance of each logarithm, blocks of time being independent of one another."""
    parameters = len(found.at)
    prior = np.eye(parameters) / PRIOR_SIGMA**2
    jacobian = found.jacobian[:-parameters].reshape(blocks, -1, parameters)
    residuals = found.residuals[:-parameters].reshape(blocks, -1)
    bread = np.linalg.inv(np.einsum("bfi,bfj->ij", jacobian, jacobian) + prior)
    scores = np.einsum("bfi,bf->bi", jacobian, residuals)
    seen = max(int(np.any(residuals, axis=1).sum()), 2)
    meat = seen / (seen - 1) * scores.T @ scores + prior
    return np.asarray(np.diag(bread @ meat @ bread))


def _column(table: Any, name: str) -> Floats:
    """`(rows,)`, NaN where null."""
    return np.asarray(table[name].to_numpy(), dtype=np.float64)
