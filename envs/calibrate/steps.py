"""Step time from a step log: a row per engine iteration, what was in it and how long it took.

    seconds = batch table (sequences) + per_kv_token_s x tokens in the cache before the iteration
              + prefill table (prompt tokens) + per_context_s x pairs of a prompt token and a token
              before it

Relative least squares: the sum of (predicted / measured - 1)^2 is least, so that short iterations
count as much as long ones; no coefficient is negative, and no table falls. Neighbours in a log are
alike, so what is left out of a fit are whole runs, or blocks of consecutive iterations, and the
intervals come from drawing whole blocks anew (block bootstrap: Carlstein, Annals of Statistics
14(3), 1986; percentile bounds). A draw that holds nothing of a figure, as none of the few blocks
with small batches, does not count for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from envs.calibrate.columns import Cell, read_columns
from envs.calibrate.least_squares import non_negative
from envs.calibrate.result import Coefficient, rounded
from tuner.core.errors import InputError
from tuner.core.profile import ServingProfile, StepTime
from tuner.data.profiles import MOST_CHUNK_TOKENS, MOST_KV_TOKENS, MOST_SEQUENCES

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BLOCKS = 60
"""Blocks of consecutive iterations, over all runs: long enough that one knows little of the next,
enough of them to draw from."""
FOLDS = 5
"""Parts of which each is left out of a fit in turn."""
RESAMPLES = 400
FEWEST_STEPS = 600
"""Below it there are too few per block to fit tables and judge them."""

SHORTEST_STEP_S, LONGEST_STEP_S = 1e-6, 60.0
"""No engine iterates faster, and one that takes longer is a pause that belongs to no law."""
_SLOW_STEP_S = 5.0
"""Where half of the iterations take longer, the log is in milliseconds."""

_CELLS = {
    "prefill_tokens": Cell("tokens", 0, MOST_CHUNK_TOKENS, whole=True),
    "batch": Cell("sequences", 1, MOST_SEQUENCES, whole=True),
    "kv_tokens": Cell("tokens", 0, MOST_KV_TOKENS, whole=True),
    "step_s": Cell("seconds", SHORTEST_STEP_S, LONGEST_STEP_S, slip="milliseconds, a pause"),
    "context_pairs": Cell("pairs", 0, float(MOST_CHUNK_TOKENS) * MOST_KV_TOKENS, whole=True),
    "run": Cell("numbers", 0, 2**31 - 1, whole=True),
}

_MOST_BUCKETS = 64
_NARROWEST_BUCKET = 8
"""Prompt tokens."""
_FEWEST_IN_BUCKET = 30
_LEAST_SHARE = 0.005
"""Of all iterations, for a stretch of the batch table."""
_BATCH_GROWTH = 1.2
"""Points of a batch table: every sequence count at first, then 20 % apart."""
_WORTH = 0.98
"""A table is kept if the error on what was left out falls at least to this share."""
_SINGULAR = 1e-12
"""Of the largest eigenvalue: below it the iterations say nothing about a direction."""
TERMS = ("batch-table", "prefill-table", "context")


@dataclass(frozen=True, eq=False)
class StepLog:
    """Iterations in the order in which they ran; `(steps,)` each."""

    prefill_tokens: Floats
    """Prompt tokens of the iteration."""
    batch: Floats
    """Sequences in it, >= 1."""
    kv_tokens: Floats
    """Tokens in the cache before it, summed over the batch."""
    step_s: Floats
    """Seconds it took, > 0."""
    context_pairs: Floats | None
    """Sum over its prompt chunks of their tokens x the request's tokens before; None: unknown."""
    run: Ints | None
    """Number of the recording the row belongs to; None: all of one."""

    def __len__(self) -> int:
        return len(self.step_s)


def read_step_log(path: Path) -> StepLog:
    """A log from NPZ, Parquet or CSV.

    Columns prefill_tokens, batch, kv_tokens, step_s, and where recorded context_pairs (also read
    from `chunk_context`) and run.

    Raises:
        InputError: see `read_columns`; a value is out of range, or there are too few rows.
    """
    wanted = {name: (name,) for name in ("prefill_tokens", "batch", "kv_tokens", "step_s")}
    optional = {"context_pairs": ("context_pairs", "chunk_context"), "run": ("run",)}
    columns = read_columns(path, wanted, optional, "a step log")
    rows = np.arange(1, len(columns["step_s"]) + 1)
    for name, column in columns.items():
        _CELLS[name].refuse(path, name, column, rows)
    median_s = float(np.median(columns["step_s"]))
    if median_s > _SLOW_STEP_S:
        raise InputError(
            f"{path}: half of the iterations have a step_s of {median_s:.4g} or more; expected "
            "seconds (milliseconds?)"
        )
    if len(columns["step_s"]) < FEWEST_STEPS:
        raise InputError(
            f"{path} holds {len(columns['step_s'])} iterations; expected at least {FEWEST_STEPS}: "
            "ten minutes at low, middle and high load are enough"
        )
    run = columns.pop("run", None)
    pairs = columns.pop("context_pairs", None)
    return StepLog(
        **columns, context_pairs=pairs, run=None if run is None else run.astype(np.int64)
    )


@dataclass(frozen=True)
class Law:
    """Which terms are fitted, and where the tables have their points; empty: a straight line."""

    batch: tuple[int, ...]
    """At least two, rising."""
    prefill: tuple[int, ...]
    """Empty, or at least two; without it one constant and one slope."""
    context: bool

    @property
    def name(self) -> str:
        tables = [
            *(["batch table"] if len(self.batch) > 2 else []),
            *(["prefill table"] if self.prefill else []),
            *(["context"] if self.context else []),
        ]
        return "straight lines" + (f" with {', '.join(tables)}" if tables else "")

    def design(self, log: StepLog) -> Floats:
        """`(steps, coefficients)`; a table's columns are its first value and its rises."""
        prefills = (log.prefill_tokens > 0).astype(np.float64)
        columns = [np.ones(len(log)), *_rises(log.batch, self.batch), log.kv_tokens, prefills]
        points = self.prefill or (0, 1)
        columns += [rise * prefills for rise in _rises(log.prefill_tokens, points)]
        if self.context:
            columns.append(_context(log))
        return np.stack(columns, axis=1)

    def step_time(self, x: Floats) -> StepTime:
        """The profile's section for these coefficients."""
        batch, per_kv, first, prefill, context = self.parts(x)
        tables: dict[str, object] = {}
        if self.prefill:
            seconds = first + np.concatenate(([0.0], np.cumsum(prefill)))
            tables["prefill_table"] = _table(self.prefill, seconds)
        else:
            tables["prefill_base_s"] = rounded(first)
            tables["per_prefill_token_s"] = rounded(prefill[0])
        return StepTime(
            batch_table=_table(self.batch, np.cumsum(batch)),
            per_kv_token_s=rounded(per_kv),
            per_context_s=rounded(context),
            **tables,  # type: ignore[arg-type]
        )

    def parts(self, x: Floats) -> tuple[Floats, float, float, Floats, float]:
        """First value and rises of the batch table, KV, first value and rises of the prefill
        table, context."""
        n = len(self.batch)
        rises = x[n + 2 : len(x) - self.context]
        return x[:n], float(x[n]), float(x[n + 1]), rises, float(x[-1]) if self.context else 0.0

    def readable(self, x: Floats) -> dict[str, float]:
        """Figures of the profile by key; a table's points each."""
        step = self.step_time(x)
        figures = {"step_time.per_kv_token_s": step.per_kv_token_s}
        figures |= {f"step_time.batch_table[{at}]": s for at, s in step.batch_table}
        if self.prefill:
            figures |= {f"step_time.prefill_table[{at}]": s for at, s in step.prefill_table}
        else:
            figures["step_time.prefill_base_s"] = step.prefill_base_s
            figures["step_time.per_prefill_token_s"] = step.per_prefill_token_s
        if self.context:
            figures["step_time.per_context_s"] = step.per_context_s
        return figures


@dataclass(frozen=True, eq=False)
class StepFit:
    """A fitted law, and how it does on iterations that took no part."""

    law: Law
    step_time: StepTime
    coefficients: tuple[Coefficient, ...]
    errors: dict[str, float]
    """Mean absolute relative error of a step in the fit and left out (all, decodes, with prompt
    tokens), and the bias of the summed time left out."""
    tried: dict[str, float]
    """Name of each law that was tried -> its error left out."""
    log: StepLog
    predicted_s: Floats
    """`(steps,)` by a fit that did not see the iteration; NaN where all fits did."""


def fit_steps(
    log: StepLog,
    profile: ServingProfile,
    *,
    terms: Sequence[str] | None = None,
    hold_out: Sequence[int] = (),
    seed: int = 0,
    watch: Callable[[str, float], None] = lambda label, share: None,
) -> StepFit:
    """The step time that fits a log.

    Args:
        profile: gives the token budget, up to which a prefill table reaches.
        terms: of TERMS; None: those that lower the error on what is left out.
        hold_out: runs to leave out of the fit and judge it on; empty: every run in turn, or a
            fifth of the blocks in turn where there are fewer than two runs.
        seed: of the bootstrap.
        watch: told a label and a share (0-1) of the work done.

    Raises:
        InputError: a term or a run is not known.
    """
    blocks = _blocks(log)
    folds = _folds(log, blocks, hold_out)
    candidates = _candidates(log, profile, terms)
    best, best_fit, tried = candidates[0], None, {}
    for number, law in enumerate(candidates):
        watch("choosing terms", number / len(candidates))
        fit = _Blockwise.of(law, log, blocks)
        error = float(np.nanmean(np.abs(fit.left_out(folds))))
        tried[law.name] = error
        if best_fit is None or error < _WORTH * tried[best.name]:
            best, best_fit = law, fit
    watch("choosing terms", 1.0)
    assert best_fit is not None
    kept = np.ones(blocks.max() + 1, dtype=np.bool_)
    if hold_out:
        kept = ~folds[0]
    x = best_fit.solve(np.flatnonzero(kept))
    step_time = best.step_time(x)
    left_out = best_fit.left_out(folds)
    return StepFit(
        law=best,
        step_time=step_time,
        coefficients=_intervals(best, best_fit, x, np.flatnonzero(kept), seed, watch),
        errors=_errors(best_fit.errors(x)[kept[blocks]], left_out, log),
        tried=tried,
        log=log,
        predicted_s=(1 + left_out) * log.step_s,
    )


def _errors(inside: Floats, left_out: Floats, log: StepLog) -> dict[str, float]:
    judged = np.isfinite(left_out)
    decodes = judged & (log.prefill_tokens == 0)
    prompts = judged & (log.prefill_tokens > 0)
    size = np.abs(left_out)
    errors = {"step_mean": float(np.abs(inside).mean()), "step_mean_left_out": size[judged].mean()}
    if decodes.any():
        errors["step_mean_decodes_left_out"] = size[decodes].mean()
    if prompts.any():
        errors["step_mean_prompts_left_out"] = size[prompts].mean()
    busy_s = log.step_s[judged]
    errors["busy_time_left_out"] = float(left_out[judged] @ busy_s / busy_s.sum())
    return {name: float(value) for name, value in errors.items()}


@dataclass(frozen=True, eq=False)
class _Blockwise:
    """Normal equations block by block, so that any set of blocks is fitted by adding them up."""

    scaled: Floats
    """`(steps, k)` the design over the measured seconds."""
    blocks: Ints
    gram: Floats
    """`(blocks, k, k)`."""
    moment: Floats
    """`(blocks, k)`."""

    @classmethod
    def of(cls, law: Law, log: StepLog, blocks: Ints) -> _Blockwise:
        scaled = law.design(log) / log.step_s[:, None]
        parts = [scaled[blocks == block] for block in range(int(blocks.max()) + 1)]
        gram = np.stack([part.T @ part for part in parts])
        return cls(scaled, blocks, gram, np.stack([part.sum(axis=0) for part in parts]))

    def solve(self, chosen: Ints, near: Floats | None = None) -> Floats:
        return non_negative(self.gram[chosen].sum(axis=0), self.moment[chosen].sum(axis=0), near)

    def tells(self, chosen: Ints, figures: Floats, scale: Floats) -> NDArray[np.bool_]:
        """`(figures,)` whether these blocks determine them.

        Args:
            figures: `(figures, k)` weights of the coefficients in each.
            scale: `(k,)` size of each coefficient's column.
        """
        gram = self.gram[chosen].sum(axis=0) / scale[:, None] / scale
        strength, directions = np.linalg.eigh(gram)
        unseen = directions[:, strength <= _SINGULAR * strength[-1]]
        weights = figures / scale
        lost = np.linalg.norm(weights @ unseen, axis=1)
        return np.asarray(lost <= 1e-4 * np.linalg.norm(weights, axis=1))

    def errors(self, x: Floats) -> Floats:
        """Relative error of each step."""
        errors: Floats = self.scaled @ x - 1
        return errors

    def left_out(self, folds: Sequence[NDArray[np.bool_]]) -> Floats:
        """Relative error of each step by a fit without its fold; NaN for steps in no fold."""
        errors = np.full(len(self.blocks), np.nan)
        for fold in folds:
            out = fold[self.blocks]
            errors[out] = self.scaled[out] @ self.solve(np.flatnonzero(~fold)) - 1
        return errors


def _intervals(
    law: Law,
    fit: _Blockwise,
    x: Floats,
    blocks: Ints,
    seed: int,
    watch: Callable[[str, float], None],
) -> tuple[Coefficient, ...]:
    rng = np.random.default_rng(seed)
    # Every figure is a sum of coefficients.
    figures = np.array([list(law.readable(one).values()) for one in np.eye(len(x))]).T
    length = np.sqrt(np.diag(fit.gram[blocks].sum(axis=0)))
    scale = np.where(length > 0, length, 1.0)
    hopeless = ~fit.tells(blocks, figures, scale)
    drawn = []
    for number in range(RESAMPLES):
        watch("intervals", number / RESAMPLES)
        chosen = rng.choice(blocks, size=len(blocks))
        again = np.array(list(law.readable(fit.solve(chosen, near=x)).values()))
        drawn.append(np.where(fit.tells(chosen, figures, scale) | hopeless, again, np.nan))
    watch("intervals", 1.0)
    low, high = np.nanquantile(np.array(drawn), (0.025, 0.975), axis=0)
    return tuple(
        Coefficient(key, value, float(low[i]), float(high[i]))
        for i, (key, value) in enumerate(law.readable(x).items())
    )


def _blocks(log: StepLog) -> Ints:
    """Block of each step: consecutive ones of one run, about equally many in each."""
    size = len(log) / BLOCKS
    if log.run is None:
        return (np.arange(len(log)) / size).astype(np.int64)
    blocks = np.empty(len(log), dtype=np.int64)
    first = 0
    for run in np.unique(log.run):
        rows = np.flatnonzero(log.run == run)
        parts = max(1, round(len(rows) / size))
        blocks[rows] = first + np.arange(len(rows)) * parts // len(rows)
        first += parts
    return blocks


def _folds(log: StepLog, blocks: Ints, hold_out: Sequence[int]) -> list[NDArray[np.bool_]]:
    """Sets of blocks to leave out, `(blocks,)` each."""
    count = int(blocks.max()) + 1
    run = np.zeros(len(log), dtype=np.int64) if log.run is None else log.run
    runs = [] if log.run is None else np.unique(run).tolist()
    unknown = [named for named in hold_out if named not in runs]
    if unknown:
        known = ", ".join(map(str, runs)) or "none: the log has no column run"
        raise InputError(f"run {unknown[0]} is not in the step log (its runs: {known})")

    def of_runs(chosen: Sequence[int]) -> NDArray[np.bool_]:
        fold = np.zeros(count, dtype=np.bool_)
        fold[np.unique(blocks[np.isin(run, chosen)])] = True
        return fold

    if hold_out:
        if len(set(hold_out)) == len(runs):
            raise InputError(f"all runs {runs} are held out; leave one for the fit")
        return [of_runs(hold_out)]
    if len(runs) > 1:
        return [of_runs([one]) for one in runs]
    return [np.arange(count) % FOLDS == fold for fold in range(FOLDS)]


def _candidates(log: StepLog, profile: ServingProfile, terms: Sequence[str] | None) -> list[Law]:
    """Laws to try, simplest first."""
    unknown = [term for term in terms or () if term not in TERMS]
    if unknown:
        raise InputError(f"term {unknown[0]!r} is not known; expected of: {', '.join(TERMS)}")
    line = tuple(sorted({int(log.batch.min()), max(2, int(log.batch.max()))}))
    batch, prefill = _batch_points(log), _prefill_points(log, profile.limits.chunk_tokens)
    plain = Law(line, (), False)
    if terms is not None:
        if "context" in terms and log.context_pairs is None:
            raise InputError("term 'context' needs a column context_pairs in the step log")
        return [
            Law(
                batch if "batch-table" in terms else line,
                prefill if "prefill-table" in terms else (),
                "context" in terms,
            )
        ]
    laws = [plain, replace(plain, prefill=prefill), Law(batch, prefill, False)]
    if log.context_pairs is not None:
        laws += [replace(law, context=True) for law in laws]
    return list(dict.fromkeys(laws))


def _batch_points(log: StepLog) -> tuple[int, ...]:
    """Batch sizes, thinned out upwards, each stretch with iterations enough to stand on its own.

    The last stretch goes on beyond what was seen, so that a handful of iterations must not set it.
    """
    sizes, counts = np.unique(log.batch, return_counts=True)
    needed = max(_FEWEST_IN_BUCKET, _LEAST_SHARE * len(log))
    points = [int(sizes[0])]
    since = 0
    for size, count in zip(sizes[1:].astype(int).tolist(), counts[1:].tolist(), strict=True):
        since += count
        if size >= points[-1] * _BATCH_GROWTH and since >= needed:
            points.append(size)
            since = 0
    return tuple(points) if len(points) > 1 else (points[0], points[0] + 1)


def _prefill_points(log: StepLog, budget: int) -> tuple[int, ...]:
    """Ends of buckets of prompt tokens, each with enough iterations to stand on its own."""
    tokens = np.sort(log.prefill_tokens[log.prefill_tokens > 0])
    if not len(tokens):
        return ()
    width = max(_NARROWEST_BUCKET, -(-budget // _MOST_BUCKETS))
    points = [int(tokens[0])]
    below = 0
    for end in range(width, int(tokens[-1]) + width, width):
        seen = int(np.searchsorted(tokens, end, side="right"))
        if end > points[-1] and seen - below >= _FEWEST_IN_BUCKET:
            points.append(end)
            below = seen
    return tuple(points) if len(points) > 1 else ()


def _rises(values: Floats, points: Sequence[int]) -> list[Floats]:
    """How far along each stretch between two points the values are; the last goes on beyond 1."""
    shares = []
    for place, (low, high) in enumerate(pairwise(points)):
        last = place == len(points) - 2
        shares.append(np.clip((values - low) / (high - low), 0.0, None if last else 1.0))
    return shares


def _context(log: StepLog) -> Floats:
    assert log.context_pairs is not None
    return log.context_pairs


def _table(points: Sequence[int], seconds: Floats) -> tuple[tuple[int, float], ...]:
    return tuple((at, rounded(s)) for at, s in zip(points, seconds.tolist(), strict=True))
