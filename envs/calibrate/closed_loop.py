"""Step time from closed-loop points: the law whose simulated benchmarks meet the measured ones.

    seconds = base + rise x law(sequences) + per_kv_token_s x tokens in the cache
              + prefill_base_s if there are prompt tokens + per_prefill_token_s x prompt tokens

and `frontend.ingress_s`, which delays every first token and no later one. Ten points cannot tell
all of these apart, above all the two prefill figures while only one prompt length was measured. So
each has a prior, a lognormal around what hardware and model give; it decides where the points say
nothing and is outvoted where they do. What is minimised is (log error of TPOT / 2 %)^2 + (log error
of TTFT / 20 %)^2 over the points + the priors' squares: TTFT also holds the benchmark's own
start-up queue and client, which are not the engine's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from envs.calibrate.least_squares import Minimum, levenberg_marquardt
from envs.calibrate.points import Point, Simulated, errors, simulate_point
from envs.calibrate.result import Coefficient, rounded
from tuner.core.errors import InputError
from tuner.core.profile import Frontend, ServingProfile, StepTime

Floats = NDArray[np.float64]

TPOT_SIGMA, TTFT_SIGMA = 0.02, 0.2
"""Relative errors that are expected of a good law; their ratio weighs TPOT against TTFT."""

EXPERTS, EXPERTS_PER_TOKEN = 256, 8
"""Routed experts of a layer of DeepSeek-V3/R1 and how many a token visits (arXiv 2412.19437)."""
PREFILL_FLOPS = 2 * 37e9
"""Per prompt token: two per activated parameter (arXiv 2412.19437: 37 billion)."""
ACHIEVED_FLOPS = 4e14
"""Per GPU and second in a prefill, within a factor of 1.5. DeepSeek's own H800 nodes: 298e12, from
73,700 input tokens/s of which 56.3 % were cached (deepseek-ai/open-infra-index@56d8685), an average
over nodes that are not always full."""
KV_BYTES = 61 * 576 * 2
"""Per token: 61 layers of a 576-wide latent in BF16 (arXiv 2412.19437)."""
MEMORY_BYTES_PER_S: Mapping[str, float] = {
    "a100_sxm": 2.0e12,
    "h100_sxm": 3.35e12,
    "h800_sxm": 3.35e12,
    "h200_sxm": 4.8e12,
    "b200_sxm": 8e12,
    "b300_sxm": 8e12,
    "gb200": 8e12,
    "gb300": 8e12,
}
"""System -> memory bandwidth of one of its GPUs, NVIDIA's data sheets."""

BatchLaw = Literal["experts", "power"]
BATCH_LAWS: tuple[BatchLaw, ...] = ("experts", "power")
"""experts: 1 - (1 - 8/256)^b, the share of a layer's experts that b tokens wake if routing is even;
a decode is bound by reading their weights. power: b^exponent, which fits layouts and speculation
that the share does not."""
TERMS = ("kv", "prefill-base", "ingress")
DEFAULT_TERMS = ("kv", "prefill-base")


@dataclass(frozen=True)
class Prior:
    """Lognormal: a median, and the standard deviation of the logarithm."""

    median: float
    sigma: float


@dataclass(frozen=True)
class ClosedLoopLaw:
    """Which figures are fitted."""

    batch: BatchLaw
    priors: Mapping[str, Prior]
    """By name, in the order of the parameters."""
    sizes: tuple[int, ...]
    """Points of the batch table that is written."""

    def apply(self, profile: ServingProfile, at: Floats) -> ServingProfile:
        """The profile with these parameters (logarithms)."""
        figures = dict(zip(self.priors, np.exp(at).tolist(), strict=True))
        batch = np.array(self.sizes, dtype=np.float64)
        if self.batch == "experts":
            share = 1 - (1 - EXPERTS_PER_TOKEN / EXPERTS) ** batch
        else:
            share = batch ** figures["exponent"]
        seconds = figures["base_s"] + figures["rise_s"] * share
        step_time = StepTime(
            per_prefill_token_s=rounded(figures.get("per_prefill_token_s", 0.0)),
            per_kv_token_s=rounded(figures.get("per_kv_token_s", 0.0)),
            prefill_base_s=rounded(figures.get("prefill_base_s", 0.0)),
            batch_table=tuple(
                (size, rounded(s)) for size, s in zip(self.sizes, seconds.tolist(), strict=True)
            ),
        )
        frontend = profile.frontend
        if "ingress_s" in figures:
            frontend = replace(
                frontend or Frontend(cores=1), ingress_s=rounded(figures["ingress_s"])
            )
        return replace(profile, step_time=step_time, frontend=frontend)

    def coefficients(self, found: Minimum) -> tuple[Coefficient, ...]:
        """Each figure of the profile with its 95 % interval, lognormal."""
        wide = 1.96 * found.deviations()
        value, low, high = (
            np.exp(at).tolist() for at in (found.at, found.at - wide, found.at + wide)
        )
        return tuple(
            Coefficient(_KEYS[name], rounded(value[i]), low[i], high[i])
            for i, name in enumerate(self.priors)
        )

    def words(self, at: Floats) -> str:
        """The batch law with its figures."""
        figures = dict(zip(self.priors, np.exp(at).tolist(), strict=True))
        base, rise = 1e3 * figures["base_s"], 1e3 * figures["rise_s"]
        if self.batch == "experts":
            return (
                f"{base:.3g} ms + {rise:.3g} ms x (1 - (1 - 8/256)^b): reading the weights of the "
                "experts that b tokens wake"
            )
        return f"{base:.3g} ms + {rise:.3g} ms x b^{figures['exponent']:.3g}"


_KEYS = {
    "base_s": "step_time.batch_table, base",
    "rise_s": "step_time.batch_table, rise",
    "exponent": "step_time.batch_table, exponent",
    "per_prefill_token_s": "step_time.per_prefill_token_s",
    "per_kv_token_s": "step_time.per_kv_token_s",
    "prefill_base_s": "step_time.prefill_base_s",
    "ingress_s": "frontend.ingress_s",
}


@dataclass(frozen=True, eq=False)
class PointFit:
    """A fitted profile and how it does on the points, seen and unseen."""

    profile: ServingProfile
    coefficients: tuple[Coefficient, ...]
    batch_law: str
    """In words."""
    results: tuple[Simulated, ...]
    """Every point by the profile."""
    left_out: Mapping[str, tuple[Simulated, ...]]
    """What was left out in turn ("clients", "shape", or "held out") -> points by fits without
    them."""

    @property
    def errors(self) -> dict[str, float]:
        """As in the `error` section of a profile."""
        held = {result.point for result in self.left_out.get("held_out", ())}
        figures = errors([result for result in self.results if result.point not in held])
        for what, results in self.left_out.items():
            figures |= errors(results, f"_{what}_left_out")
        return figures


def law_of(
    points: Sequence[Point],
    profile: ServingProfile,
    *,
    system: str,
    batch_law: BatchLaw = "experts",
    terms: Sequence[str] = DEFAULT_TERMS,
    attention_ranks: int = 1,
) -> ClosedLoopLaw:
    """The law to fit, with priors for DeepSeek-V3/R1 on these GPUs.

    Args:
        system: of MEMORY_BYTES_PER_S.
        terms: of TERMS.
        attention_ranks: data-parallel ranks that share the cache's reads among them.

    Raises:
        InputError: a system or term is not known.
    """
    if system not in MEMORY_BYTES_PER_S:
        raise InputError(
            f"system {system!r} has no known memory bandwidth, which the prior of the KV term "
            f"needs; expected one of: {', '.join(MEMORY_BYTES_PER_S)}"
        )
    unknown = [term for term in terms if term not in TERMS]
    if unknown:
        raise InputError(f"term {unknown[0]!r} is not known; expected of: {', '.join(TERMS)}")
    priors = {"base_s": Prior(8e-3, 2.0), "rise_s": Prior(1e-2, 2.0)}
    if batch_law == "power":
        priors |= {"rise_s": Prior(1.5e-3, 2.0), "exponent": Prior(0.5, 0.3)}
    decode_only = points[0].decode_only
    if not decode_only:
        seconds = PREFILL_FLOPS / (ACHIEVED_FLOPS * profile.gpus_per_replica)
        priors["per_prefill_token_s"] = Prior(seconds, 0.4)
    if "kv" in terms:
        seconds = KV_BYTES / MEMORY_BYTES_PER_S[system] / attention_ranks
        priors["per_kv_token_s"] = Prior(seconds, 0.4)
    if "prefill-base" in terms and not decode_only:
        priors["prefill_base_s"] = Prior(0.1, 1.0)
    if "ingress" in terms and not decode_only:
        # Data-parallel ranks wait for one another's prompts: InferenceX lets TensorRT-LLM hold them
        # back for up to 60 iterations (attention_dp_config in dsr1_fp8_h200_trt_mtp.sh at 1fc5d73).
        priors["ingress_s"] = Prior(0.06, 0.7) if attention_ranks == 1 else Prior(1.0, 1.0)
    largest = min(max(point.clients for point in points), profile.limits.batch_size_max)
    sizes = [1, 2, 3, 4, 6, 8]
    while sizes[-1] < largest:
        sizes.append(round(sizes[-2] * 2))
    return ClosedLoopLaw(batch_law, priors, tuple(sizes))


def fit_points(
    points: Sequence[Point],
    profile: ServingProfile,
    law: ClosedLoopLaw,
    *,
    hold_out: Callable[[Point], bool] | None = None,
    seed: int = 0,
    watch: Callable[[str, float], None] = lambda label, share: None,
) -> PointFit:
    """Fit a law to points, and judge it on points left out.

    Args:
        hold_out: which points to leave out of the fit and judge it on; None: every number of
            clients in turn, then every shape in turn, and the fit itself sees all.
        seed: of the lengths of the requests.
        watch: told a label and a share (0-1) of the work done.

    Raises:
        InputError: nothing would be left to fit, or a request exceeds the cache.
    """
    folds = _folds(points, hold_out)
    seen = points if hold_out is None else [p for p in points if not hold_out(p)]
    total = 1 if hold_out else 1 + sum(len(parts) for parts in folds.values())
    done = 0

    def fit(kept: Sequence[Point]) -> Minimum:
        nonlocal done
        found = _fit(kept, profile, law, seed)
        done += 1
        watch("fits", done / total)
        return found

    watch("fits", 0.0)
    found = fit(seen)
    fitted = law.apply(profile, found.at)
    left_out: dict[str, tuple[Simulated, ...]] = {}
    for what, parts in folds.items():
        results: list[Simulated] = []
        for part in parts:
            kept = [point for point in points if point not in part]
            other = fitted
            if hold_out is None:  # else the fit above did not see them
                other = law.apply(profile, fit(kept).at)
            results += [simulate_point(other, point, seed) for point in part]
        left_out[what] = tuple(results)
    return PointFit(
        profile=fitted,
        coefficients=law.coefficients(found),
        batch_law=law.words(found.at),
        results=tuple(simulate_point(fitted, point, seed) for point in points),
        left_out=left_out,
    )


def _fit(
    points: Sequence[Point], profile: ServingProfile, law: ClosedLoopLaw, seed: int
) -> Minimum:
    medians = np.log([prior.median for prior in law.priors.values()])
    sigmas = np.array([prior.sigma for prior in law.priors.values()])

    def residuals(at: Floats) -> Floats:
        fitted = law.apply(profile, at)
        simulated = [simulate_point(fitted, point, seed) for point in points]
        parts = [np.log([1 + r.tpot_error for r in simulated]) / TPOT_SIGMA]
        if not points[0].decode_only:
            parts.append(np.log([1 + r.ttft_error for r in simulated]) / TTFT_SIGMA)
        return np.concatenate([*parts, (at - medians) / sigmas])

    found = [levenberg_marquardt(residuals, start) for start in _starts(law)]
    return min(found, key=lambda minimum: minimum.cost)


def _starts(law: ClosedLoopLaw) -> list[Floats]:
    """The medians; and where prompts hold the engine up little, which is another valley."""
    names = list(law.priors)
    medians = np.log([prior.median for prior in law.priors.values()])
    if "prefill_base_s" not in names:
        return [medians]
    other = medians.copy()
    other[names.index("prefill_base_s")] -= 2.0
    return [medians, other]


def _folds(
    points: Sequence[Point], hold_out: Callable[[Point], bool] | None
) -> dict[str, list[list[Point]]]:
    if hold_out is not None:
        held = [point for point in points if hold_out(point)]
        if not held or len(held) == len(points):
            raise InputError(
                f"--hold-out leaves {len(points) - len(held)} of {len(points)} points to the fit; "
                "expected some on both sides"
            )
        return {"held_out": [held]}
    keys: dict[str, Callable[[Point], object]] = {
        "clients": lambda point: point.clients / point.replicas,
        "shape": lambda point: point.shape,
    }
    folds = {}
    for what, key in keys.items():
        groups = dict.fromkeys(key(point) for point in points)
        if len(groups) > 1:
            folds[what] = [[p for p in points if key(p) == group] for group in groups]
    return folds
