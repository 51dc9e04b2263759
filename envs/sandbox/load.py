"""What a sandbox begins with: its load, a fleet that fits it, and a rule's target for both."""

from __future__ import annotations

import math

import numpy as np

from tuner.core.profile import ServingProfile
from tuner.core.step_time import decode_seconds
from tuner.core.trace import Trace

TOKENS_IN_CACHE = 2000
"""Of a running request, for the estimate of how fast a full replica decodes."""
TARGET_SHARE = 1 / 3
"""Of what a full replica decodes; the rest is prefill, bursts and cold starts. On the DeepSeek-R1
day the target that the sweep of `tuner compare` finds is 1,540 output tokens/s; this
gives 1,600."""
FIRST_S = 1800.0
"""The beginning of the load that the fleet at the start is sized for."""


def repeated(trace: Trace, times: int) -> Trace:
    """The trace played so many times on end, a mean interval between the last and the first."""
    if times == 1:
        return trace
    span_s = trace.last_arrival_s + trace.last_arrival_s / max(len(trace) - 1, 1)
    starts = np.repeat(np.arange(times) * span_s, len(trace))
    return Trace(
        arrival_s=np.tile(trace.arrival_s, times) + starts,
        prompt_tokens=np.tile(trace.prompt_tokens, times),
        output_tokens=np.tile(trace.output_tokens, times),
        name=trace.name,
        header=trace.header,
    )


def sensible_target(profile: ServingProfile) -> float:
    """Output tokens/s per replica for an HPA rule on this profile, two digits."""
    batch = profile.limits.batch_size_max
    kv_s = profile.step_time.per_kv_token_s * batch * TOKENS_IN_CACHE
    decoded = batch / (float(decode_seconds(profile)[batch]) + kv_s)
    return float(f"{TARGET_SHARE * decoded:.2g}")


def sensible_replicas(trace: Trace, target: float, most: int) -> int:
    """Replicas that the rule would ask for in the trace's first half hour, 1 to `most`."""
    until_s = min(FIRST_S, max(trace.last_arrival_s, 1.0))
    tokens = int(trace.output_tokens[trace.arrival_s <= until_s].sum())
    return min(max(math.ceil(tokens / until_s / target), 1), most)
