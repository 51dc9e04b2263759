"""Why `dynamo-sla` wants what it wants, in one line, of the numbers that it used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from policies.dynamo_pool import Limits, Workers
from policies.dynamo_sla_load import Latency, LoadLoop
from policies.dynamo_sla_throughput import Forecast
from tuner.core.figures import figure
from tuner.core.protocols import FloatArray


@dataclass(frozen=True)
class SlaWords:
    """What one call of SlaRule worked with; called with a row, it tells that row."""

    limits: Limits
    workers: Workers
    wish: FloatArray
    """`(n,)` replicas to go to, before budget and starts; NaN: no loop decides."""
    target: FloatArray
    """`(n,)` replicas asked for."""
    load: LoadLoop | None
    latencies: Mapping[str, Latency]
    """Of the load loop, where it runs."""
    forecast: Forecast | None
    """Of the throughput loop, where it runs."""

    def __call__(self, row: int) -> str:
        """See `RuleResult.why`."""
        workers = self.workers
        if missing := workers.missing(row, silent_counts=self.load is not None):
            return missing
        n, ready, starting = (
            float(column[row]) for column in (workers.n, workers.ready, workers.starting)
        )
        wish, target = float(self.wish[row]), float(self.target[row])
        said = [*self._forecast(row), *self._load(row, ready)]
        if starting and max(wish, target) > ready:
            said.append(f"{starting:.0f} still start{'s' if starting == 1 else ''}")
        elif starting and target < n:
            said.append("what starts is cancelled")
        elif target < wish:
            said.append(f"at most {target:.0f} allowed")
        return f"{', '.join(said)}: {target:.0f}"

    def _forecast(self, row: int) -> list[str]:
        """What the throughput loop says now; where it decides alone, when it will."""
        said = self.forecast
        if said is None:
            return []
        if np.isnan(said.wish[row]):
            waits = f"the next forecast is due in {said.next_s[row]:.0f} s"
            return [] if self.load else [waits]
        coming = (
            f"{figure(float(said.qps[row]))} requests/s of {said.prompt_tokens[row]:,.0f} + "
            f"{said.output_tokens[row]:,.0f} tokens to come"
        )
        if np.isnan(said.needed[row]):
            return [f"{coming}, the model has no answer"]
        needed, wish = float(said.needed[row]), float(said.wish[row])
        each = figure(float(said.capacity_qps[row]))
        words = [f"{coming}, {each} each makes {figure(needed)} replicas"]
        if wish != max(np.ceil(needed), self.limits.min_endpoint):
            words.append(f"{wish:.0f} in one step")
        return words

    def _load(self, row: int, ready: float) -> list[str]:
        """What a next request would meet, against the objectives, and the lower bound."""
        if self.load is None:
            return []
        if moves := self.workers.moves(row):
            return [moves]
        words = [self._latencies(row, ready)]
        bound = 0.0 if self.forecast is None else float(self.forecast.bound[row])
        # Only where the forecast is what decides.
        lifts = bound > ready or (bound == ready > 1 and self._safe(row))
        if self.wish[row] == bound and lifts:
            words.append(f"the forecast asks for {bound:.0f}")
        return words

    def _safe(self, row: int) -> bool:
        return all(each.safe[row] for each in self.latencies.values())

    def _latencies(self, row: int, ready: float) -> str:
        everywhere = "on the replica" if ready == 1 else f"on all {ready:.0f} replicas"
        for name, each in self.latencies.items():
            if each.above[row]:
                least, most = _time(name, each.least_s[row]), self._objective(name)
                return f"{name} of at least {least} {everywhere}, objective {most}"
        met = " and ".join(
            f"{name} of up to {_time(name, each.most_s[row])}"
            for name, each in self.latencies.items()
        )
        if ready == 1:
            return f"{met} on the replica"
        fewer = f"{ready - 1:.0f} would {'' if self._safe(row) else 'not '}be enough"
        return f"{met} on {ready:.0f} replicas, {fewer}"

    def _objective(self, name: str) -> str:
        if self.load is None:
            return ""
        return _time(name, self.load.ttft_s if name == "TTFT" else self.load.itl_s)


def _time(name: str, seconds: float) -> str:
    """As people read it: gaps between tokens are milliseconds."""
    if name == "TTFT":
        return f"{figure(float(seconds))} s"
    return f"{figure(1e3 * float(seconds))} ms"
