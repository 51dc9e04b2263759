"""What engines do not know of themselves: requests at the gateway, GPUs, the business signal."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tuner.config import TrafficConfig
from tuner.core.faults import Fault, FaultError, FaultReason
from tuner.engines.engine import Series
from tuner.live.metrics.fields import Samples, Traffic
from tuner.live.metrics.prometheus import PrometheusSource, selecting
from tuner.live.metrics.samples import SampleSeries
from tuner.live.metrics.scrape import PageSource

DCGM_UTILISATION = Series("DCGM_FI_DEV_GPU_UTIL", unit=0.01)
"""Percent, one series per card (NVIDIA/dcgm-exporter, etc/default-counters.csv)."""


@dataclass(frozen=True)
class Extra:
    """One field that no engine gives."""

    field: str
    value: float
    age_s: float


class ExtraSource(Protocol):
    """A place that knows one field of the whole target, and nothing of replicas."""

    def read(self, *, at_s: float, window_s: float, timeout_s: float) -> Extra:
        """The field now; NaN where it has no value.

        Raises:
            FaultError: it cannot be read.
        """

    def close(self) -> None: ...


class TrafficSource(Protocol):
    """A place that counts requests outside the engines."""

    def read(self, *, at_s: float, window_s: float, timeout_s: float) -> list[SampleSeries]:
        """Samples of the window.

        Raises:
            FaultError: it cannot be read.
        """

    def close(self) -> None: ...


def traffic_of(config: TrafficConfig, labels: Mapping[str, str]) -> Traffic:
    """The configured names, with the labels that samples must still have."""
    return Traffic(
        Series(config.arrivals, labels),
        Series(config.in_flight, labels) if config.in_flight else None,
    )


def _names(traffic: Traffic) -> list[str]:
    return [one.name for one in (traffic.arrivals, traffic.in_flight) if one is not None]


class ServerTraffic:
    """Requests as a gateway's series in Prometheus count them."""

    def __init__(
        self, server: PrometheusSource, traffic: Traffic, selector: Mapping[str, str]
    ) -> None:
        self._server = server
        self._names = _names(traffic)
        self._selector = selector
        selecting(self._names, selector)  # a mistake in the configuration is told at once

    def read(self, *, at_s: float, window_s: float, timeout_s: float) -> list[SampleSeries]:
        _check_time("traffic", timeout_s)
        return self._server.matching(
            self._names, self._selector, at_s=at_s, window_s=window_s, timeout_s=timeout_s
        )

    def close(self) -> None:
        """The server's connections belong to the collector."""


class TrafficPage:
    """Requests as the metrics page of a gateway or client counts them."""

    def __init__(self, url: str, traffic: Traffic, timeout_s: float) -> None:
        self._url = url
        self._pages = PageSource(_names(traffic), timeout_s=timeout_s, concurrency=1)

    def read(self, *, at_s: float, window_s: float, timeout_s: float) -> list[SampleSeries]:
        series, faults = self._pages.look({"": self._url}, at_s=at_s, window_s=window_s)
        if faults and not series:
            raise FaultError(faults[0])
        return series

    def close(self) -> None:
        self._pages.close()


class DcgmCards:
    """`gpu_util` as the DCGM exporter's series say: the mean over the target's cards."""

    def __init__(self, server: PrometheusSource, selector: Mapping[str, str]) -> None:
        self._server = server
        self._selector = selector
        selecting((), selector)  # a mistake in the configuration is told at once

    def read(self, *, at_s: float, window_s: float, timeout_s: float) -> Extra:
        _check_time("gpu_util", timeout_s)
        samples = Samples(
            self._server.matching(
                [DCGM_UTILISATION.name],
                self._selector,
                at_s=at_s,
                window_s=window_s,
                timeout_s=timeout_s,
            )
        )
        found = mean_utilisation(samples)
        value, newest_s = found if found is not None else (np.nan, at_s)
        return Extra("gpu_util", value, at_s - newest_s)

    def close(self) -> None:
        """The server's connections belong to the collector."""


def mean_utilisation(samples: Samples) -> tuple[float, float] | None:
    """0-1 over the cards that are not silent, and the time of the newest sample; None without."""
    rows = [row for row in samples.named(DCGM_UTILISATION) if samples.fresh(row)]
    if not rows:
        return None
    values = [DCGM_UTILISATION.unit * float(row.values[-1]) for row in rows]
    return float(np.mean(values)), max(float(row.at_s[-1]) for row in rows)


class NodeCards:
    """`gpu_util` as this node's driver says: the mean over the target's cards."""

    def __init__(self, indices: Collection[int]) -> None:
        # The driver's library is opened where it is wanted only.
        from tuner.live.metrics.nvml import Nvml

        self._nvml = Nvml(indices)

    def read(self, *, at_s: float, window_s: float, timeout_s: float) -> Extra:
        cards = self._nvml.read()
        return Extra("gpu_util", float(np.mean([card.utilisation for card in cards])), 0.0)

    def close(self) -> None:
        self._nvml.close()


class Business:
    """`business`: what the user's own expression gives now."""

    def __init__(self, server: PrometheusSource, query: str) -> None:
        self._server = server
        self._query = query

    def read(self, *, at_s: float, window_s: float, timeout_s: float) -> Extra:
        _check_time("business", timeout_s)
        return Extra(
            "business", self._server.number(self._query, at_s=at_s, timeout_s=timeout_s), 0.0
        )

    def close(self) -> None:
        """The server's connections belong to the collector."""


def _check_time(what: str, left_s: float) -> None:
    """One server, one time-out per tick: who comes after it is used up is not asked."""
    if left_s <= 0:
        raise FaultError(
            Fault(
                "prometheus",
                FaultReason.TIMED_OUT,
                f"prometheus: {what} was not asked for, the time-out went into the questions "
                "before; see why the server is slow",
            )
        )
