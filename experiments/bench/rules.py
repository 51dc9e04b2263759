"""What each rule-set makes of one load, with the same step time, and how fast it is simulated.

The load is Poisson with the lengths of the reference workload, the replica that of the profile, on
a fixed number of replicas behind round robin. Every rule-set gets its engine's own defaults. What
SGLang admits depends on what its clients ask for and on how much of that it keeps free, so it comes
three times. The first KV cache is the profile's, the second is `--blocks`: too small for the load.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from envs.simulator import Fleet, FleetSettings
from experiments.bench.load import poisson_load
from experiments.bench.options import Figures, check_positive
from experiments.bench.simulator import OVERTIME_S, simulate_once
from tuner.core.errors import ConfigError
from tuner.core.profile import ServingProfile
from tuner.core.trace import Trace
from tuner.data import load_profile

LOOK_S = 1.0
"""The longest queue is the longest of those seen so often."""


@dataclass(frozen=True)
class Variant:
    """A rule-set with the settings that its engine comes with."""

    scheduler: str
    watermark: float = 0.0
    options: Mapping[str, bool | int | float] = field(default_factory=dict)

    def of(self, profile: ServingProfile, blocks: int) -> ServingProfile:
        """The profile's replica under this rule-set, with so many KV blocks."""
        return replace(
            profile,
            scheduler=self.scheduler,
            scheduler_options=self.options,
            kv=replace(profile.kv, blocks=blocks, watermark=self.watermark),
        )


VARIANTS = {
    "vidur-sarathi": Variant("vidur-sarathi", watermark=0.01),
    "vllm-v1": Variant("vllm-v1"),
    "sglang": Variant("sglang"),
    "sglang, 1000 tokens asked for": Variant("sglang", options={"max_new_tokens": 1000}),
    "sglang, 1000 tokens asked for, conservativeness 0.3": Variant(
        "sglang", options={"max_new_tokens": 1000, "schedule_conservativeness": 0.3}
    ),
}
"""Row of the table -> what runs. 1,000 tokens are the longest output of the load; with
data-parallel attention SGLang multiplies its conservativeness by 0.3."""


def measure_rules(trace: Trace, profile: ServingProfile, replicas: int) -> Figures:
    """Latencies, preemptions, the longest queue and the speed of the simulation."""
    fleet = Fleet(
        trace,
        profile,
        seeds=np.zeros(1, np.uint64),
        slots=replicas,
        router="round_robin",
        record=True,
    )
    one = np.ones(1, np.int64)
    settings = FleetSettings(
        replicas * one, profile.limits.batch_size_max * one, one, warmup_requests=0 * one
    )
    until_s = trace.last_arrival_s + OVERTIME_S
    simulate_once(fleet, settings, until_s)
    before_s = time.process_time()
    ended = simulate_once(fleet, settings, until_s)
    cpu_s = time.process_time() - before_s
    seen = fleet.requests()
    served = np.isfinite(seen.e2e_s)
    return {
        "ttft_s": _spread(seen.ttft_s[served]),
        "tpot_s": _spread(seen.tpot_s[served & (trace.output_tokens > 1)]),
        "e2e_s": _spread(seen.e2e_s[served]),
        "served": int(served.sum()),
        "rejected": int(seen.rejected.sum()),
        "preemptions": int(seen.preemptions.sum()),
        "longest_queue": _longest_queue(fleet, settings, until_s),
        "requests_per_cpu_s": ended / cpu_s,
    }


def _spread(values: NDArray[np.float64]) -> Figures:
    p50, p99 = np.percentile(values, [50, 99])
    return {"mean": float(values.mean()), "p50": float(p50), "p99": float(p99)}


def _longest_queue(fleet: Fleet, settings: FleetSettings, until_s: float) -> int:
    fleet.reset(slice(None), start_s=0.0, seeds=np.zeros(1, np.uint64), settings=settings)
    longest, now_s = 0, 0.0
    while now_s < until_s and not fleet.done()[0]:
        now_s += LOOK_S
        fleet.advance(now_s)
        longest = max(longest, int(fleet.gauges().queue_depth[0]))
    return longest


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--profile", default="reference-affine", help="(reference-affine)")
    parser.add_argument("--qps", type=float, default=50.0, help="requests per second (50)")
    parser.add_argument("--hours", type=float, default=0.5, help="of load (0.5)")
    parser.add_argument("--seed", type=int, default=1, help="of the load (1)")
    parser.add_argument("--replicas", type=int, default=4, help="replicas that serve (4)")
    parser.add_argument("--blocks", type=int, default=2500, help="of the small KV cache (2500)")


def measure(options: argparse.Namespace) -> Figures:
    check_positive(options, "replicas", "blocks")
    if not options.qps * options.hours * 3600.0 >= 1.0:
        raise ConfigError(
            f"--qps {options.qps:g} for --hours {options.hours:g} is less than one request; "
            "expected at least one"
        )
    profile = load_profile(options.profile)
    trace = poisson_load(options.qps, options.hours * 3600.0, options.seed)
    return {
        f"{blocks} KV blocks": {
            name: measure_rules(trace, variant.of(profile, blocks), options.replicas)
            for name, variant in VARIANTS.items()
        }
        for blocks in (profile.kv.blocks, options.blocks)
    } | {"config": vars(options) | {"trace": trace.name, "trace_requests": len(trace)}}
