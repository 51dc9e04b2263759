"""`deepseek-r1-day`: a day of DeepSeek-R1 requests, drawn from published figures.

The shape of the day is DeepSeek's own fleet (deepseek-ai/open-infra-index@56d8685, day 6 of the
open-source week, CC0): how many nodes it ran for V3 and R1 over 24 hours. Who sends what, how long
prompts and answers are and how unevenly requests come is measured on the DeepSeek-R1 profile of
ServeGen (alibaba/ServeGen@f891d11, Apache-2.0; Xiang et al., arXiv 2505.09999): 55 customers in the
first 16 hours of one day on Alibaba Cloud, gathered here into six kinds of traffic.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tuner.core.errors import ConfigError
from tuner.core.trace import LONGEST_S, Trace

NAME = "deepseek-r1-day"

MEAN_QPS = 15.0
"""Requests per second, mean over a day. ServeGen's R1 profile has 15.01 over its 16 hours."""

NODES = (
    # (hour of the day, 8-GPU nodes in use from then on)
    (0.00, 218),
    (1.25, 188),
    (2.00, 158),
    (2.75, 128),
    (3.00, 98),
    (3.50, 68),
    (6.50, 98),
    (7.00, 128),
    (7.50, 188),
    (8.00, 218),
    (8.50, 278),
)
"""Steps of the published chart (27 and 28 February 2025, local time), 226.75 nodes in the mean."""

SMOOTHING_S = 3600.0
"""Half-width of the Hann window over the steps: a fleet is moved in steps, its load is not."""

GRID_S = 30.0
"""Rates are constant over this long."""

DAY_S = 86_400.0

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999, 1.0)
"""Where the length tables of `Traffic` are given; lengths between are interpolated in the log."""


@dataclass(frozen=True)
class Traffic:
    """One kind of traffic; the figures are ServeGen's customers of that kind, over 16 hours."""

    name: str
    share: float
    """Of all requests, 0-1."""
    prompt_tokens: tuple[int, ...]
    """At `QUANTILES`."""
    output_tokens: tuple[int, ...]
    """At `QUANTILES`; 32,768 is the service's own limit."""
    gap_cv: float
    """Standard deviation of the gaps between requests over their mean, at a steady rate."""
    fast_sigma: float
    """Standard deviation of the log rate, wandering over `FAST_S`."""
    slow_sigma: float
    """The same over `SLOW_S`."""
    daily: bool = True
    """Whether it follows the shape of the day."""


FAST_S, SLOW_S = 600.0, 7200.0
"""Correlation times of the log rate, chosen: ServeGen's counts are per 10 minutes. The sigmas are
set so that the log of all requests in 10 minutes steps by 0.16 to 0.20 (ServeGen: 0.22)."""

CHAT = Traffic(
    name="chat",  # one customer, 45 % of the requests: short questions, long reasoning
    share=0.449,
    prompt_tokens=(4, 9, 11, 17, 37, 82, 300, 1378, 3210, 8331),
    output_tokens=(72, 330, 521, 1097, 1599, 3362, 7732, 12477, 18676, 32768),
    gap_cv=1.1,
    fast_sigma=0.35,
    slow_sigma=0.35,
)
APPLICATION = Traffic(
    name="application",  # one customer with a fixed prompt, on for hours and off for hours
    share=0.117,
    prompt_tokens=(246, 255, 258, 264, 278, 415, 464, 570, 618, 819),
    output_tokens=(71, 187, 249, 364, 467, 595, 1301, 2411, 4013, 10185),
    gap_cv=1.0,
    fast_sigma=0.05,
    slow_sigma=0.15,
)
JOBS = Traffic(
    name="jobs",  # one customer that sent 13 requests/s for two hours and nothing else
    share=0.107,
    prompt_tokens=(23, 24, 25, 28, 206, 210, 216, 222, 226, 240),
    output_tokens=(167, 311, 358, 445, 1205, 1437, 1678, 1837, 2031, 32768),
    gap_cv=1.0,
    fast_sigma=0.02,
    slow_sigma=0.0,
    daily=False,
)
REASONING = Traffic(
    name="reasoning",  # one customer, day and night at one rate: answers of 8,000 tokens
    share=0.032,
    prompt_tokens=(13, 19, 26, 43, 62, 92, 165, 265, 487, 1609),
    output_tokens=(200, 1347, 2086, 4161, 7056, 11797, 18972, 22954, 27787, 32768),
    gap_cv=1.3,
    fast_sigma=0.05,
    slow_sigma=0.05,
    daily=False,
)
DOCUMENTS = Traffic(
    name="documents",  # nine customers with prompts above 2,500 tokens in the mean
    share=0.118,
    prompt_tokens=(4, 19, 425, 3563, 5989, 13311, 27775, 33447, 41249, 56956),
    output_tokens=(26, 99, 142, 305, 799, 1236, 2365, 3813, 5212, 32768),
    gap_cv=2.0,  # the burstiest of the nine has 5
    fast_sigma=0.12,
    slow_sigma=0.35,
)
OTHERS = Traffic(
    name="others",  # the other 42 customers
    share=0.177,
    prompt_tokens=(4, 7, 12, 120, 370, 1158, 1990, 3219, 7829, 30700),
    output_tokens=(9, 134, 187, 310, 551, 980, 2327, 9565, 21289, 32216),
    gap_cv=1.1,
    fast_sigma=0.2,
    slow_sigma=0.4,
)
TRAFFIC = (CHAT, APPLICATION, JOBS, REASONING, DOCUMENTS, OTHERS)
"""`client_id` is the place in this list."""

APPLICATION_ON_S, APPLICATION_OFF_S = 10_800.0, 9_000.0
"""Mean lengths of its spans; ServeGen's was on for 3.3, 3.0 and 2.7 hours in the 16."""

JOBS_PER_DAY = 1.5
"""Mean; ServeGen's 16 hours have one."""
JOB_S = 7_200.0
"""Length of a job."""


MOST_REQUESTS = 200_000_000
"""Of one trace, which is in memory; this many take about 10 GB."""

CHUNK = 4096
"""Gaps drawn at once; another number would draw other traces."""


def generate(hours: float, seed: int, mean_qps: float = MEAN_QPS) -> Trace:
    """Requests of so many hours from midnight on; beyond 24 hours the shape of the day repeats.

    The rates are scaled so that whole days have `mean_qps` in the mean. The same seed gives the
    same trace, and within a day a shorter trace is the beginning of a longer one.

    Raises:
        ConfigError: hours or mean_qps is not a positive number, or seed is negative; they come to
            more than `MOST_REQUESTS`, see `parts`; or no request falls into the hours.
    """
    _check(hours, seed, mean_qps)
    if hours * 3600.0 * mean_qps > MOST_REQUESTS:
        raise ConfigError(
            f"{hours:g} hours at {mean_qps:g} requests/s: expected at most {MOST_REQUESTS:,} "
            "requests"
        )
    for whole in parts(hours, seed, mean_qps, part_hours=hours):
        return whole
    raise ConfigError(f"{NAME}: {hours:g} hours at {mean_qps:g} requests/s hold no request")


def parts(
    hours: float, seed: int, mean_qps: float = MEAN_QPS, *, part_hours: float = 1.0
) -> Iterator[Trace]:
    """The trace of `generate`, a span at a time: the same bits behind each other.

    Parts keep the clock of the whole. One without a request is left out. In memory is one part and
    no more, so a fleet's day of 100 million requests can be drawn hour by hour.

    Raises:
        ConfigError: as `generate`, but for the number of requests; or part_hours is none.
    """
    _check(hours, seed, mean_qps)
    if not (math.isfinite(part_hours) and part_hours > 0):
        raise ConfigError(f"{NAME}: part_hours is {part_hours}; expected a number above 0")
    return _parts(hours, seed, mean_qps, part_hours)


def output_tokens_per_request() -> float:
    """Output tokens of a request in the mean over many days, from the tables of `TRAFFIC`."""
    return sum(traffic.share * _mean_tokens(traffic.output_tokens) for traffic in TRAFFIC)


def _check(hours: float, seed: int, mean_qps: float) -> None:
    for name, value in (("hours", hours), ("mean_qps", mean_qps)):
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{NAME}: {name} is {value}; expected a number above 0")
    if seed < 0:
        raise ConfigError(f"{NAME}: seed is {seed}; expected a whole number from 0 on")
    if hours * 3600.0 > LONGEST_S:
        raise ConfigError(f"{NAME}: hours is {hours:g}; expected at most {LONGEST_S / 3600:g}")


def _parts(hours: float, seed: int, mean_qps: float, part_hours: float) -> Iterator[Trace]:
    end_s = hours * 3600.0
    streams = np.random.SeedSequence(seed).spawn(1 + 2 * len(TRAFFIC))
    rates = _rates(math.ceil(hours / 24), np.random.default_rng(streams[0])) * mean_qps
    sources = []
    for client, traffic in enumerate(TRAFFIC):
        gaps, lengths = map(np.random.default_rng, streams[1 + 2 * client : 3 + 2 * client])
        sources.append(_Source(traffic, rates[client], end_s, gaps, lengths))
    header = {
        "workload": NAME,
        "seed": str(seed),
        "hours": f"{hours:g}",
        "mean_qps": f"{mean_qps:g}",
        "clients": ", ".join(traffic.name for traffic in TRAFFIC),
    }
    count = math.ceil(hours / part_hours)
    for part in range(count):
        drawn = [source.before(min((part + 1) * part_hours * 3600.0, end_s)) for source in sources]
        arrival_s, prompts, outputs = (
            np.concatenate(column) for column in zip(*drawn, strict=True)
        )
        if not len(arrival_s):
            continue
        sizes = [len(one[0]) for one in drawn]
        order = np.argsort(arrival_s, kind="stable")
        yield Trace(
            arrival_s=arrival_s[order],
            prompt_tokens=prompts[order],
            output_tokens=outputs[order],
            client_id=np.repeat(np.arange(len(TRAFFIC), dtype=np.int32), sizes)[order],
            name=NAME,
            header=header if count == 1 else {**header, "part": f"{part + 1} of {count}"},
        )


class _Source:
    """Requests of one kind of traffic, in order.

    Arrivals are a Gamma renewal process whose clock runs at the rate. Both generators are read in
    one order, whatever the borders at which requests are asked for: parts and whole are the same.

    Args:
        rate: requests/s on the grid, `(steps,)`.
        end_s: no request comes then or later.
        gaps: draws the gaps.
        lengths: draws two numbers per request.
    """

    def __init__(
        self,
        traffic: Traffic,
        rate: NDArray[np.float64],
        end_s: float,
        gaps: np.random.Generator,
        lengths: np.random.Generator,
    ) -> None:
        self._traffic = traffic
        self._shape = traffic.gap_cv**-2
        self._at_s = GRID_S * np.arange(len(rate) + 1)
        self._expected = np.concatenate([[0.0], np.cumsum(rate * GRID_S)])
        self._end_s = end_s
        self._until = float(np.interp(end_s, self._at_s, self._expected))
        self._gaps, self._lengths = gaps, lengths
        self._passed = 0.0
        """Requests expected until the last one drawn."""
        self._waiting = np.zeros(0)
        """Arrivals that are drawn and belong to a later part."""

    def before(
        self, border_s: float
    ) -> tuple[NDArray[np.float64], NDArray[np.int32], NDArray[np.int32]]:
        """Arrivals, prompt and output tokens of the next requests before a border."""
        drawn = [self._waiting]
        while self._passed < self._until and not (len(drawn[-1]) and drawn[-1][-1] >= border_s):
            drawn.append(self._next())
        arrival_s = np.concatenate(drawn)
        row = int(np.searchsorted(arrival_s, border_s))
        self._waiting = arrival_s[row:].copy()
        shares = self._lengths.random((row, 2))
        return (
            arrival_s[:row],
            tokens_at(self._traffic.prompt_tokens, shares[:, 0]),
            tokens_at(self._traffic.output_tokens, shares[:, 1]),
        )

    def _next(self) -> NDArray[np.float64]:
        """Some more arrivals before the end; none once it is reached."""
        gaps = self._gaps.standard_gamma(self._shape, size=CHUNK) / self._shape
        passed = self._passed + np.cumsum(gaps)
        self._passed = float(passed[-1])
        arrival_s = np.interp(passed, self._expected, self._at_s)
        return np.asarray(arrival_s[(passed < self._until) & (arrival_s < self._end_s)])


def day_shape() -> NDArray[np.float64]:
    """Load over one day from midnight on, `(DAY_S / GRID_S,)`, mean 1."""
    hours = np.arange(0, 24, GRID_S / 3600)
    starts, nodes = np.array(NODES).T
    steps = nodes[np.searchsorted(starts, hours, side="right") - 1]
    half = int(SMOOTHING_S / GRID_S)
    window = np.hanning(2 * half + 3)[1:-1]
    around = np.concatenate([steps[-half:], steps, steps[:half]])
    smooth = np.convolve(around, window / window.sum(), mode="valid")
    return np.asarray(smooth / smooth.mean())


def _rates(days: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Rate of each kind of traffic on the grid, `(kinds, steps)`, their sum 1 in the mean."""
    shape = np.tile(day_shape(), days)
    fast = _wandering(len(shape), FAST_S, rng)
    slow = _wandering(len(shape), SLOW_S, rng)
    rates = np.empty((len(TRAFFIC), len(shape)))
    for client, traffic in enumerate(TRAFFIC):
        log_rate = traffic.fast_sigma * fast[client] + traffic.slow_sigma * slow[client]
        rates[client] = traffic.share * np.exp(log_rate) * (shape if traffic.daily else 1.0)
    on_share = APPLICATION_ON_S / (APPLICATION_ON_S + APPLICATION_OFF_S)
    rates[TRAFFIC.index(APPLICATION)] *= _on_and_off(len(shape), rng) / on_share
    rates[TRAFFIC.index(JOBS)] *= _running_jobs(shape, days, rng)
    return np.asarray(rates / rates.sum(0).mean())


def _wandering(steps: int, correlation_s: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Autoregressive noise of mean 0 and variance 1 for each kind, `(kinds, steps)`."""
    kept = math.exp(-GRID_S / correlation_s)
    noise = rng.standard_normal((steps, len(TRAFFIC)))
    noise[1:] *= math.sqrt(1 - kept**2)
    for step in range(1, steps):
        noise[step] += kept * noise[step - 1]
    return noise.T


def _on_and_off(steps: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """1 where the application is on, else 0, `(steps,)`; spans are exponential."""
    on = np.empty(steps)
    span_s = (APPLICATION_OFF_S, APPLICATION_ON_S)
    state = int(rng.random() < APPLICATION_ON_S / sum(span_s))
    start = 0
    while start < steps:
        end = start + max(1, round(rng.exponential(span_s[state]) / GRID_S))
        on[start:end] = state
        start, state = end, 1 - state
    return on


def _running_jobs(
    shape: NDArray[np.float64], days: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Rate of the jobs over their mean, `(steps,)`: each starts at once and is sized by the hour.

    A job sends as much of the load of its hour as ServeGen's did of its: more by day than by night.
    """
    rate = np.zeros(len(shape))
    busy = JOBS_PER_DAY * JOB_S / DAY_S
    starts = rng.choice(len(shape), size=rng.poisson(JOBS_PER_DAY * days), p=shape / shape.sum())
    for start in np.sort(starts):
        rate[start : start + int(JOB_S / GRID_S)] += shape[start] / busy
    return rate


def tokens_at(quantiles: tuple[int, ...], shares: NDArray[np.float64]) -> NDArray[np.int32]:
    """Lengths at the given shares of the distribution, 0-1."""
    return np.rint(np.exp(np.interp(shares, QUANTILES, np.log(quantiles)))).astype(np.int32)


def _mean_tokens(quantiles: tuple[int, ...]) -> float:
    """Mean of the lengths that `tokens_at` gives: exponentials between the quantiles."""
    total = 0.0
    for (low, high), (first, last) in zip(pairwise(quantiles), pairwise(QUANTILES), strict=True):
        mean = low if low == high else (high - low) / math.log(high / low)
        total += (last - first) * mean
    return total
