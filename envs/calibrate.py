"""How far a serving profile is from measured engine speed, and the step time that fits it best.

    python -m envs.calibrate PROFILE --points FILE.parquet          error per point, mean, worst
    python -m envs.calibrate PROFILE --points FILE.parquet --fit    coefficients, and how they do
                                                                    on points left out

A measured point is a closed-loop benchmark: `concurrency` clients send one request each and the
next one when it is answered. The points are simulated as they were measured by InferenceX
(SemiAnalysisAI/InferenceX, benchmarks/benchmark_lib.sh and utils/bench_serving at 161e7f6): all
clients start at once, ten requests per client, prompt and output lengths uniform from 0.8 to 1 of
the nominal ones, nothing shared between prompts. The replica follows the rules of `vidur-sarathi`.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from envs.simulator.step_time import seconds_by_batch
from tuner.core.errors import InputError
from tuner.core.profile import ServingProfile, StepTime
from tuner.data.profiles import load_profile

REQUESTS_PER_CLIENT = 10
"""InferenceX: --num-prompts $((CONC * 10))."""
SHORTEST = 0.8
"""InferenceX: --random-range-ratio 0.8, the shortest length as a share of the nominal one."""
DRAWS = 2
"""Simulated repeats of a point. One draw of the smallest point (40 requests) is off by 2 %."""

EXPERTS, EXPERTS_PER_TOKEN = 256, 8
"""Routed experts of a layer of DeepSeek-V3/R1 and how many a token visits (arXiv 2412.19437)."""
FITTED_BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Points of a fitted batch_table; no measurement goes beyond 64."""
TTFT_WEIGHT = 0.1
"""Weight of a relative error in TTFT beside one in TPOT. The benchmark's TTFT also holds its own
start-up queue and client, which are not the engine's."""


@dataclass(frozen=True)
class Point:
    """One measured closed-loop benchmark."""

    prompt_tokens: int
    output_tokens: int
    concurrency: int
    ttft_s: float
    tpot_s: float


@dataclass(frozen=True)
class Simulated:
    """A point as the profile gives it; means over the requests."""

    point: Point
    ttft_s: float
    tpot_s: float

    @property
    def ttft_error(self) -> float:
        """Relative, > 0: too slow."""
        return self.ttft_s / self.point.ttft_s - 1

    @property
    def tpot_error(self) -> float:
        """Relative, > 0: too slow."""
        return self.tpot_s / self.point.tpot_s - 1


def read_points(
    path: Path, *, model: str, system: str, engine: str, engine_version: str
) -> list[Point]:
    """Measured points of one engine that serves prompts and outputs together.

    Reads the columns model_path, system, backend, backend_version, mode, isl, osl, concurrency,
    ttft_ms, tpot_ms.

    Raises:
        InputError: the file cannot be read, lacks a column, or holds no such point.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read as Parquet ({error}); expected points") from error
    wanted = {
        "model_path": model,
        "system": system,
        "backend": engine,
        "backend_version": engine_version,
        "mode": "agg",
    }
    figures = ["isl", "osl", "concurrency", "ttft_ms", "tpot_ms"]
    missing = [name for name in (*wanted, *figures) if name not in table.column_names]
    if missing:
        raise InputError(f"{path}: column {missing[0]!r} is missing; expected measured points")
    for name, value in wanted.items():
        table = table.filter(pc.equal(table[name], value))
    points = [
        Point(
            row["isl"],
            row["osl"],
            int(row["concurrency"]),
            row["ttft_ms"] / 1e3,
            row["tpot_ms"] / 1e3,
        )
        for row in table.select(figures).to_pylist()
    ]
    if not points:
        raise InputError(f"{path} has no point of {wanted}; name a measured engine")
    return sorted(points, key=lambda point: (point.prompt_tokens, point.concurrency))


def simulate_point(profile: ServingProfile, point: Point, draws: int = DRAWS) -> Simulated:
    """TTFT and TPOT of the benchmark on one replica; the same lengths on every call."""
    ttft_s, tpot_s = [], []
    for draw in range(draws):
        rng = np.random.default_rng([draw, point.prompt_tokens, point.concurrency])
        requests = REQUESTS_PER_CLIENT * point.concurrency
        prompts = _lengths(rng, point.prompt_tokens, requests)
        outputs = _lengths(rng, point.output_tokens, requests)
        ttft, tpot = closed_loop(profile, point.concurrency, prompts, outputs)
        ttft_s.append(ttft.mean())
        tpot_s.append(tpot.mean())
    return Simulated(point, float(np.mean(ttft_s)), float(np.mean(tpot_s)))


def _lengths(rng: np.random.Generator, nominal: int, requests: int) -> NDArray[np.int64]:
    return rng.integers(int(SHORTEST * nominal), nominal + 1, requests)


def closed_loop(
    profile: ServingProfile,
    concurrency: int,
    prompt_tokens: NDArray[np.int64],
    output_tokens: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """TTFT and TPOT in seconds of every request, `(requests,)` each, in order of sending.

    Args:
        output_tokens: >= 2 each, so that every request has a TPOT.

    Raises:
        InputError: a request does not fit the profile's KV cache.
    """
    longest = int((prompt_tokens + output_tokens).max())
    if longest > profile.kv.tokens - (profile.kv.watermark_blocks + 1) * profile.kv.block_tokens:
        raise InputError(
            f"profile {profile.name}: a request of {longest} tokens exceeds the KV cache of "
            f"{profile.kv.tokens}; measure shorter requests or raise kv.blocks"
        )
    replica = _Replica(profile)
    requests = [
        _Request(int(prompt), int(prompt + output))
        for prompt, output in zip(prompt_tokens, output_tokens, strict=True)
    ]
    unsent = deque(requests)
    for _ in range(min(concurrency, len(requests))):
        replica.waiting.append(unsent.popleft())
    while replica.waiting or replica.running:
        for _ in replica.iterate():
            if unsent:
                unsent[0].sent_s = replica.now_s
                replica.waiting.append(unsent.popleft())
    ttft_s = np.array([request.first_token_s - request.sent_s for request in requests])
    e2e_s = np.array([request.end_s - request.sent_s for request in requests])
    return ttft_s, (e2e_s - ttft_s) / (output_tokens - 1)


@dataclass(eq=False)
class _Request:
    target: int
    """Tokens to prefill: the prompt, after a preemption also the output so far."""
    total: int
    """Prompt and output tokens."""
    done: int = 0
    blocks: int = 0
    decoding: bool = False
    sent_s: float = 0.0
    first_token_s: float = math.nan
    end_s: float = math.nan


class _Replica:
    """One replica under `vidur-sarathi`; arrivals come only at the end of an iteration.

    The rules, in the order of one iteration: decodes take blocks (preempting from the end of the
    batch when none is free), running prefills go on, new requests are admitted in order. Runs of
    identical decode iterations are done in one step.
    """

    def __init__(self, profile: ServingProfile) -> None:
        self.block_tokens = profile.kv.block_tokens
        self.free = profile.kv.blocks
        self.watermark = profile.kv.watermark_blocks
        self.cap = profile.limits.batch_size_max
        self.budget = profile.limits.chunk_tokens
        self.step_time = profile.step_time
        self.batch_s = seconds_by_batch(profile)
        self.now_s = 0.0
        self.waiting: deque[_Request] = deque()
        self.running: list[_Request] = []

    def iterate(self) -> list[_Request]:
        """Does the next iteration, or a run of them; gives the requests that it finished."""
        leap = self._decodes_ahead()
        if leap > 1:
            self._decode(leap)
            batch = self.running
        else:
            batch = self._one_iteration()
        finished = [request for request in batch if request.done == request.total]
        for request in finished:
            request.end_s = self.now_s
            self._release(request)
        self.running = [request for request in batch if request.done != request.total]
        return finished

    def _seconds(self, prefill: int, sequences: int, kv_tokens: float) -> float:
        step = self.step_time
        seconds = self.batch_s[sequences] + step.per_kv_token_s * kv_tokens
        if prefill:
            seconds += step.prefill_base_s + step.per_prefill_token_s * prefill
        return float(seconds)

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)

    def _admissible(self, request: _Request) -> bool:
        return self.free - self._blocks_for(request.target) >= self.watermark

    def _release(self, request: _Request) -> None:
        self.free += request.blocks
        request.blocks = 0

    def _decodes_ahead(self) -> int:
        """Iterations that surely are nothing but decodes of the running batch; 0 if none."""
        sequences = len(self.running)
        if not sequences or not all(request.decoding for request in self.running):
            return 0
        if self.waiting and sequences < self.cap and self._admissible(self.waiting[0]):
            return 0
        shortest = min(request.total - request.done for request in self.running)
        # In so many iterations the batch cannot take more than the free blocks less one.
        return min(shortest, self.block_tokens * ((self.free - 1) // sequences))

    def _decode(self, iterations: int) -> None:
        sequences = len(self.running)
        kv_tokens = sum(request.done for request in self.running)
        # The KV cache grows by one token per sequence and iteration.
        mean_kv_tokens = kv_tokens + sequences * (iterations - 1) / 2
        self.now_s += iterations * self._seconds(0, sequences, mean_kv_tokens)
        for request in self.running:
            request.done += iterations
            # A block is taken when the token before last has filled the ones held.
            blocks = max(request.blocks, self._blocks_for(request.done - 1))
            self.free -= blocks - request.blocks
            request.blocks = blocks

    def _one_iteration(self) -> list[_Request]:
        decodes, prefills = self._take_decode_blocks()
        chunks: list[tuple[_Request, int]] = []
        budget = self.budget - len(decodes)
        for request in prefills:
            chunks.append((request, min(request.target - request.done, budget)))
            budget -= chunks[-1][1]
        while (
            self.waiting
            and budget > 0
            and len(decodes) + len(chunks) < self.cap
            and self._admissible(self.waiting[0])
        ):
            request = self.waiting.popleft()
            request.blocks = self._blocks_for(request.target)
            self.free -= request.blocks
            chunks.append((request, min(request.target, budget)))
            budget -= chunks[-1][1]
        batch = [*decodes, *(request for request, _ in chunks)]
        self.now_s += self._seconds(
            sum(chunk for _, chunk in chunks), len(batch), sum(request.done for request in batch)
        )
        for request in decodes:
            request.done += 1
        for request, chunk in chunks:
            request.done += chunk
            if request.done == request.target:
                request.decoding = True
                request.done += 1
                if math.isnan(request.first_token_s):
                    request.first_token_s = self.now_s
        return batch

    def _take_decode_blocks(self) -> tuple[list[_Request], list[_Request]]:
        """Decodes that go on, and the running prefills, in the order of the batch."""
        decodes: list[_Request] = []
        prefills: list[_Request] = []
        left = deque(self.running)
        while left:
            request = left.popleft()
            if not request.decoding:
                prefills.append(request)
                continue
            while self.free < 1:
                victim = left.pop() if left else request
                self._preempt(victim)
                if victim is request:
                    return decodes, prefills
            if request.done > self.block_tokens * request.blocks:
                request.blocks += 1
                self.free -= 1
            decodes.append(request)
        return decodes, prefills

    def _preempt(self, request: _Request) -> None:
        self._release(request)
        request.target, request.done, request.decoding = request.done, 0, False
        self.waiting.appendleft(request)


def fit_step_time(
    profile: ServingProfile, points: Sequence[Point], start: StepTime | None = None
) -> StepTime:
    """Step time of the profile's replica that fits the points best.

    Five coefficients, none negative: base + read x (share of experts that the batch wakes)
    + per_prefill_token_s, per_kv_token_s, prefill_base_s. A batch of b tokens wakes
    1 - (1 - 8/256)^b of a layer's experts if routing is even, and a decode is bound by reading
    their weights, so that its time rises steeply at first and then flattens.
    Minimises squared log errors (Levenberg-Marquardt), those of TTFT with `TTFT_WEIGHT`.

    Args:
        start: a fit to begin from; a round guess without.
    """
    coefficients = _coefficients(start) if start else np.array([8e-3, 1e-2, 3e-5, 1e-8, 0.1])
    theta = np.log(coefficients)

    def residuals(theta: NDArray[np.float64]) -> NDArray[np.float64]:
        fitted = replace(profile, step_time=_step_time(np.exp(theta)))
        simulated = [simulate_point(fitted, point) for point in points]
        tpot = np.log([1 + result.tpot_error for result in simulated])
        ttft = np.log([1 + result.ttft_error for result in simulated])
        return np.concatenate([tpot, TTFT_WEIGHT * ttft])

    return _step_time(np.exp(_least_squares(residuals, theta)))


def _share_of_experts(batch: float) -> float:
    return float(1 - (1 - EXPERTS_PER_TOKEN / EXPERTS) ** batch)


def _step_time(coefficients: NDArray[np.float64]) -> StepTime:
    base_s, read_s, per_prefill_token_s, per_kv_token_s, prefill_base_s = map(float, coefficients)
    return StepTime(
        per_prefill_token_s=per_prefill_token_s,
        per_kv_token_s=per_kv_token_s,
        prefill_base_s=prefill_base_s,
        batch_table=tuple(
            (batch, base_s + read_s * _share_of_experts(batch)) for batch in FITTED_BATCHES
        ),
    )


def _coefficients(step_time: StepTime) -> NDArray[np.float64]:
    """The five coefficients of a fitted step time."""
    (low, low_s), (high, high_s) = step_time.batch_table[0], step_time.batch_table[-1]
    read_s = (high_s - low_s) / (_share_of_experts(high) - _share_of_experts(low))
    return np.array(
        [
            low_s - read_s * _share_of_experts(low),
            read_s,
            step_time.per_prefill_token_s,
            step_time.per_kv_token_s,
            step_time.prefill_base_s,
        ]
    )


def _least_squares(
    residuals: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    theta: NDArray[np.float64],
    rounds: int = 30,
) -> NDArray[np.float64]:
    """Levenberg-Marquardt with finite differences; stops when a step no longer gains 0.1 %."""
    current = residuals(theta)
    damping = 1e-2
    for _ in range(rounds):
        jacobian = np.empty((len(current), len(theta)))
        for column in range(len(theta)):
            moved = theta.copy()
            moved[column] += 0.02  # 2 %: well above the jumps that finishing orders make
            jacobian[:, column] = (residuals(moved) - current) / 0.02
        normal = jacobian.T @ jacobian
        while True:
            step = np.linalg.solve(
                normal + damping * np.diag(np.diag(normal) + 1e-9), -jacobian.T @ current
            )
            candidate = theta + np.clip(step, -1, 1)
            trial = residuals(candidate)
            if trial @ trial < current @ current:
                break
            damping *= 10
            if damping > 1e6:
                return theta
        gain = 1 - (trial @ trial) / (current @ current)
        theta, current, damping = candidate, trial, damping / 3
        if gain < 1e-3:
            break
    return theta


def errors(results: Sequence[Simulated]) -> dict[str, float]:
    """Mean and worst relative error over the points, as the `error` section of a profile."""
    tpot = np.abs([result.tpot_error for result in results])
    ttft = np.abs([result.ttft_error for result in results])
    return {
        "tpot_mean": float(tpot.mean()),
        "tpot_worst": float(tpot.max()),
        "ttft_mean": float(ttft.mean()),
        "ttft_worst": float(ttft.max()),
    }


def left_out(profile: ServingProfile, points: Sequence[Point], start: StepTime) -> dict[str, float]:
    """Errors at points that took no part in the fit: each concurrency left out in turn."""
    results = []
    for concurrency in sorted({point.concurrency for point in points}):
        kept = [point for point in points if point.concurrency != concurrency]
        fitted = replace(profile, step_time=fit_step_time(profile, kept, start))
        results += [
            simulate_point(fitted, point) for point in points if point.concurrency == concurrency
        ]
    return errors(results)


def _table(results: Sequence[Simulated]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("prompt/output", no_wrap=True)
    for title in ("clients", "TTFT meas.", "sim. ms", "error", "TPOT meas.", "sim. ms", "error"):
        table.add_column(title, justify="right", no_wrap=True)
    for result in results:
        point = result.point
        table.add_row(
            f"{point.prompt_tokens}/{point.output_tokens}",
            f"{point.concurrency}",
            f"{point.ttft_s * 1e3:.0f}",
            f"{result.ttft_s * 1e3:.0f}",
            f"{result.ttft_error:+.1%}",
            f"{point.tpot_s * 1e3:.1f}",
            f"{result.tpot_s * 1e3:.1f}",
            f"{result.tpot_error:+.1%}",
        )
    return table


def _error_line(title: str, figures: dict[str, float]) -> str:
    return (
        f"{title}: TPOT mean {figures['tpot_mean']:.1%}, worst {figures['tpot_worst']:.1%}; "
        f"TTFT mean {figures['ttft_mean']:.1%}, worst {figures['ttft_worst']:.1%}"
    )


def _step_time_yaml(step_time: StepTime) -> str:
    lines = [
        "step_time:",
        f"  prefill_base_s: {step_time.prefill_base_s:.3f}",
        f"  per_prefill_token_s: {step_time.per_prefill_token_s:.2e}",
        f"  per_kv_token_s: {step_time.per_kv_token_s:.2e}",
        "  batch_table:",
    ]
    lines += [f"    - [{batch}, {seconds:.6f}]" for batch, seconds in step_time.batch_table]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0, or 2 with one sentence where the input is wrong."""
    parser = argparse.ArgumentParser(prog="python -m envs.calibrate", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("profile", help="built-in name, or path of a YAML file")
    parser.add_argument("--points", type=Path, required=True, help="Parquet of measured points")
    parser.add_argument("--fit", action="store_true", help="fit step_time and print it")
    parser.add_argument("--model", default="deepseek-ai/DeepSeek-R1", help="column model_path")
    parser.add_argument("--system", default="h200_sxm", help="column system")
    parser.add_argument("--engine", default="sglang", help="column backend")
    parser.add_argument("--engine-version", default="0.5.9", help="column backend_version")
    options = parser.parse_args(arguments)
    console = Console(highlight=False, soft_wrap=True)
    try:
        profile = load_profile(options.profile)
        points = read_points(
            options.points,
            model=options.model,
            system=options.system,
            engine=options.engine,
            engine_version=options.engine_version,
        )
        if options.fit:
            fitted = fit_step_time(profile, points)
            console.print(_step_time_yaml(fitted) + "\n")
            held_out = left_out(profile, points, fitted)
            profile = replace(profile, step_time=fitted)
        results = [simulate_point(profile, point) for point in points]
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    console.print(_table(results))
    console.print("\n" + _error_line("all points", errors(results)))
    if options.fit:
        console.print(_error_line("each concurrency left out of the fit", held_out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
