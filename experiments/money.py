"""What a run costs in money, and what a million tokens cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from experiments.comparison import Comparison, Estimate, PolicyOutcome
from experiments.digest import RunDigest
from experiments.statistics import seeds_interval

HOURS_PER_MONTH = 730.5
"""365.25 days / 12."""
LEAST_H = 1.0
"""Hours of load from which a month is extrapolated: of less not even the order is known."""


@dataclass(frozen=True)
class Price:
    """What one GPU costs per hour."""

    usd: float
    source: str
    """Who says so."""


def price_of(comparison: Comparison) -> Price | None:
    """The configuration's price, else the profile's; None where neither names one."""
    configured = comparison.config.run.price_per_gpu_hour_usd
    if configured is not None:
        return Price(configured, "run.price_per_gpu_hour_usd of the configuration")
    listed = comparison.profile.price_per_gpu_hour_usd
    if listed is not None:
        return Price(listed, f"the profile {comparison.profile.name}")
    return None


@dataclass(frozen=True)
class Bill:
    """One policy's costs, USD: means over the seeds with 95 % intervals over them."""

    policy: str
    run: Estimate
    """The whole run, to the last arrival."""
    million_tokens: Estimate
    """Per million tokens of completed requests, prompt and output."""
    million_output_tokens: Estimate
    """The same cost per million output tokens alone."""
    saved: Estimate | None
    """What the baseline's run costs more; None of the baseline itself."""
    month: float
    """The run's cost stretched to HOURS_PER_MONTH: a month in which every hour is like these."""


def bills(comparison: Comparison, price: Price) -> list[Bill]:
    """Every policy's costs, in the order of the comparison."""
    months = HOURS_PER_MONTH / simulated_h(comparison) if simulated_h(comparison) > 0 else 0.0
    return [_bill(comparison, outcome, price, months) for outcome in comparison.policies]


def simulated_h(comparison: Comparison) -> float:
    """Hours of load that costs are counted over."""
    trace = comparison.trace
    return (trace.last_arrival_s - sum(gap.length_s for gap in trace.gaps)) / 3600


def usd(value: float, around: float | None = None) -> str:
    """`USD 1,234`; cents below a hundred.

    Args:
        around: the figure that this is a bound of, whose digits it gets; None: the value itself.
    """
    size = abs(value if around is None else around)
    sign = "\N{MINUS SIGN}" if value < 0 else ""
    return f"{sign}USD {abs(value):,.{0 if size >= 100 else 2}f}"


def rough_usd(value: float) -> str:
    """Three digits, as an extrapolation has at most: `USD 297 k`, `USD 1.23 M`."""
    rounded = float(f"{value:.3g}")
    for unit, name in ((1e9, " bn"), (1e6, " M"), (1e3, " k")):
        if rounded >= unit:
            digits = 2 - math.floor(math.log10(rounded / unit))
            return f"USD {rounded / unit:.{digits}f}{name}"
    return usd(value)


def _bill(comparison: Comparison, outcome: PolicyOutcome, price: Price, months: float) -> Bill:
    def over_seeds(cost: Callable[[RunDigest], float]) -> Estimate:
        return _estimate([cost(run) for run in outcome.runs])

    run = over_seeds(lambda run: run.figures.gpu_hours * price.usd)
    gap = outcome.differences.get("gpu_hours")
    return Bill(
        policy=outcome.name,
        run=run,
        million_tokens=over_seeds(
            lambda run: _per_million(
                run.figures.gpu_hours * price.usd,
                run.figures.prompt_tokens + run.figures.output_tokens,
            )
        ),
        million_output_tokens=over_seeds(
            lambda run: _per_million(run.figures.gpu_hours * price.usd, run.figures.output_tokens)
        ),
        saved=None if gap is None else _turned(gap, price.usd),
        month=run.mean * months,
    )


def _per_million(cost: float, tokens: float) -> float:
    return 1e6 * cost / tokens if tokens > 0 else float("nan")


def _estimate(values: Sequence[float]) -> Estimate:
    return Estimate(sum(values) / len(values), seeds_interval(values), None)


def _turned(gap: Estimate, price_usd: float) -> Estimate:
    """GPU hours more, as money less."""

    def flipped(bounds: tuple[float, float] | None) -> tuple[float, float] | None:
        return None if bounds is None else (-bounds[1] * price_usd, -bounds[0] * price_usd)

    return Estimate(-gap.mean * price_usd, flipped(gap.ci95), flipped(gap.ci95_load))
