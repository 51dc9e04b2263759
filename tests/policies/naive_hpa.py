"""HPA v2 for one target, with lists and loops, straight from the rules: the oracle of `hpa`.

It shares no arithmetic with the policy: whole numbers of thousandths instead of floats, lists that
grow instead of rings, one target instead of n.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Decimal
from math import ceil, trunc

from policies.hpa_spec import HpaConfig, MetricSpec, ScalingPolicy
from tuner.core.observation import Observation, ReplicaState


def milli(value: float) -> int:
    return int((Decimal(repr(float(value))) * 1000).to_integral_value(ROUND_CEILING))


@dataclass
class NaiveHpa:
    config: HpaConfig
    low: int
    high: int
    recommendations: list[tuple[float, int]] = field(default_factory=list)
    ups: list[tuple[float, int]] = field(default_factory=list)
    downs: list[tuple[float, int]] = field(default_factory=list)

    def sync(self, now: Observation) -> tuple[int | None, int | None]:
        """(count to write or to stay at, raw recommendation); None where there is none."""
        n = now.settings.get("replicas")
        if n is None:
            return None, None
        if not self.recommendations:
            self.recommendations.append((now.at_s, n))
        if n == 0:
            return None, None
        if n > self.high:
            return self.high, None
        if n < self.low:
            return self.low, None
        raw = self._metrics(now, n)
        if raw is None:
            return None, None
        if self.config.behavior is None:
            target = self._without_behavior(now.at_s, n, raw)
        else:
            target = self._with_behavior(now.at_s, n, raw)
        self.recommendations.append((now.at_s, raw))
        return target, raw

    def wrote(self, at_s: float, before: int, after: int) -> None:
        """What became of the last answer."""
        if self.config.behavior is None or after == before:
            return
        if after > before:
            events, policies = self.ups, self.config.up_policies
        else:
            events, policies = self.downs, self.config.down_policies
        period = max(policy.period_s for policy in policies)
        old = [i for i, (t, _) in enumerate(events) if not younger(at_s, t, period)]
        if old:
            events[old[-1]] = (at_s, abs(after - before))
        else:
            events.append((at_s, abs(after - before)))

    def _metrics(self, now: Observation, n: int) -> int | None:
        answers = [self._metric(metric, now, n) for metric in self.config.metrics]
        valid = [answer for answer in answers if answer is not None]
        if not valid or (len(valid) < len(answers) and max(valid) < n):
            return None
        return max(0, *valid)

    def _within(self, ratio: float) -> bool:
        return 1.0 - self.config.down_tolerance <= ratio <= 1.0 + self.config.up_tolerance

    def _metric(self, metric: MetricSpec, now: Observation, n: int) -> int | None:
        target = milli(metric.target)
        if metric.type == "Pods":
            return self._pods(metric.name, target, now, n)
        value = getattr(now, metric.name)
        if value is None:
            return None
        usage = milli(value)
        if metric.target_type == "Value":
            ratio = usage / target
            if self._within(ratio):
                return n
            if now.ready_replicas is None:
                return None
            return ceil(ratio * (now.ready_replicas + (now.draining_replicas or 0)))
        exist = now.status_replicas
        if exist is None:
            if now.ready_replicas is None or now.starting_replicas is None:
                return None
            exist = now.ready_replicas + now.starting_replicas
        if exist > 0 and self._within(usage / (target * exist)):
            return int(exist)
        return ceil(usage / target)

    def _pods(self, name: str, target: int, now: Observation, n: int) -> int | None:
        unready, missing, samples = 0, 0, []
        for pod in now.replicas:
            value = getattr(pod, name)
            if pod.state is ReplicaState.DRAINING:
                continue
            if pod.state is ReplicaState.PENDING:
                unready += 1
            elif value is None:
                missing += 1
            else:
                samples.append(milli(value))
        if not samples:
            return None
        ratio = sum(samples) // len(samples) / target
        if not missing and not (unready and ratio > 1.0):
            return n if self._within(ratio) else ceil(ratio * len(samples))
        if ratio < 1.0:
            samples += [target] * missing
        elif ratio > 1.0:
            samples += [0] * (missing + unready)
        again = sum(samples) // len(samples) / target
        flipped = ratio < 1.0 < again or again < 1.0 < ratio
        if self._within(again) or flipped:
            return n
        proposal = ceil(again * len(samples))
        if (again < 1.0 and proposal > n) or (again > 1.0 and proposal < n):
            return n
        return proposal

    def _without_behavior(self, at_s: float, n: int, raw: int) -> int:
        window = self.config.downscale_stabilization_s
        seen = [value for t, value in self.recommendations if younger(at_s, t, window)]
        most = min(self.high, max(2 * n, 4))
        return min(max(raw, self.low, *seen), most)

    def _with_behavior(self, at_s: float, n: int, raw: int) -> int:
        config = self.config
        low = high = raw
        for t, value in self.recommendations:
            if younger(at_s, t, config.up_window_s):
                low = min(low, value)
            if younger(at_s, t, config.down_window_s):
                high = max(high, value)
        wanted = n
        if wanted < low:
            wanted = low
        if wanted > high:
            wanted = high
        if wanted > n:
            most = self._up_limit(at_s, n)
            return min(wanted, self.high, max(most, n))
        if wanted < n:
            least = self._down_limit(at_s, n)
            return max(wanted, self.low, min(least, n))
        return wanted

    def _up_limit(self, at_s: float, n: int) -> int:
        limits = []
        for policy in self.config.up_policies:
            start = self._start(policy, at_s, n)
            if policy.type == "Pods":
                limits.append(start + policy.value)
            else:
                limits.append(ceil(start * (1 + policy.value / 100)))
        return {"Max": max(limits), "Min": min(limits), "Disabled": n}[self.config.up_select]

    def _down_limit(self, at_s: float, n: int) -> int:
        limits = []
        for policy in self.config.down_policies:
            start = self._start(policy, at_s, n)
            if policy.type == "Pods":
                limits.append(start - policy.value)
            else:
                limits.append(trunc(start * (1 - policy.value / 100)))
        return {"Max": min(limits), "Min": max(limits), "Disabled": n}[self.config.down_select]

    def _start(self, policy: ScalingPolicy, at_s: float, n: int) -> int:
        added = sum(change for t, change in self.ups if younger(at_s, t, policy.period_s))
        removed = sum(change for t, change in self.downs if younger(at_s, t, policy.period_s))
        return n - added + removed


def younger(at_s: float, then_s: float, window_s: float) -> bool:
    """An age equal to the window is outside; hundredths of a second are all that the tests use."""
    return round(at_s - then_s, 3) < window_s
