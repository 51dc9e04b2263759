"""Everything that is measured of a target at one tick: engines, traffic, GPUs, business, probe.

Each source fails by itself: what it would have given is absent, the fault says why, and the others
go on.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack

import numpy as np

from tuner.config import ScrapeConfig, TargetConfig
from tuner.core.clock import Clock
from tuner.core.errors import ConfigError
from tuner.core.faults import Fault, FaultError, FaultReason
from tuner.core.observation import ReplicaState
from tuner.engines.engine import Engine, Metrics
from tuner.live.metrics.extras import (
    Business,
    DcgmCards,
    Extra,
    ExtraSource,
    NodeCards,
    ServerTraffic,
    TrafficPage,
    TrafficSource,
    traffic_of,
)
from tuner.live.metrics.fields import Traffic, fields_of, wanted_names
from tuner.live.metrics.measured import Measured
from tuner.live.metrics.probe import Probe, Probed
from tuner.live.metrics.prometheus import PrometheusSource
from tuner.live.metrics.samples import SampleSeries, SampleSource
from tuner.live.metrics.scrape import ScrapeSource
from tuner.live.pool import Member


class Collector:
    """Measures a target; no trouble of a source ever becomes an exception.

    Args:
        source: of the engines' samples; closed with the collector.
        metrics: what the engine calls things.
        window_s: that rates and quantiles cover.
        timeout_s: longest that everything asked of one Prometheus server takes in one tick.
        traffic: names at the gateway or client, and where to read them.
        extras: sources of single fields.
        probe: sends small requests, if wanted.
    """

    def __init__(
        self,
        source: SampleSource,
        metrics: Metrics,
        *,
        window_s: float,
        timeout_s: float,
        traffic: tuple[Traffic, TrafficSource] | None = None,
        extras: Sequence[ExtraSource] = (),
        probe: Probe | None = None,
    ) -> None:
        self._source = source
        self._metrics = metrics
        self._names = wanted_names(metrics)
        self._window_s = window_s
        self._timeout_s = timeout_s
        self._traffic = traffic
        self._extras = tuple(extras)
        self._probe = probe
        self._member_s: dict[str, float] = {}
        self._present: set[str] = set()
        self._ready_since_s: dict[str, float] = {}
        self._watched_since_s: float | None = None

    def collect(self, members: Sequence[Member], *, at_s: float) -> Measured:
        """Look at all sources once.

        Args:
            members: the replicas as their orchestrator sees them now.
            at_s: now, later than at the look before.
        """
        self._remember(members, at_s)
        deadline_s = time.monotonic() + self._timeout_s
        faults: list[Fault] = []
        series = self._engines(members, at_s, faults)
        gone = {fault.reason for fault in faults if fault.where == "prometheus"}
        if gone & {FaultReason.UNREACHABLE, FaultReason.TIMED_OUT}:
            # One server, one verdict: asking it again would only stretch the tick.
            deadline_s = 0.0
        traffic, traffic_series = self._outside(at_s, deadline_s, faults)
        seen = fields_of(
            series,
            self._metrics,
            at_s=at_s,
            source=self._source.name,
            current={member.name for member in members},
            traffic=traffic,
            traffic_series=traffic_series,
        )
        values, ages_s = dict(seen.values), dict(seen.ages_s)
        for extra in self._extra_fields(at_s, deadline_s, faults):
            values[extra.field], ages_s[extra.field] = extra.value, extra.age_s
        if series:
            faults += self._silent(members, seen.heard, at_s, {fault.where for fault in faults})
        probed = self._probed(members, faults)
        return Measured(
            values=values,
            age_s=seen.age_s,
            ages_s=ages_s,
            estimates=seen.estimates,
            faults=(*faults, *seen.faults),
            replicas=seen.replicas,
            probed=probed,
        )

    def close(self) -> None:
        """Let go of connections and threads."""
        with ExitStack() as parts:
            parts.callback(self._source.close)
            if self._traffic is not None:
                parts.callback(self._traffic[1].close)
            for extra in self._extras:
                parts.callback(extra.close)
            if self._probe is not None:
                parts.callback(self._probe.close)

    def _remember(self, members: Sequence[Member], at_s: float) -> None:
        """Who belongs, and since when each is ready."""
        if self._watched_since_s is None:
            self._watched_since_s = at_s
        # One that is missing was here until the look before, and may have been until just now.
        for name in self._present | {member.name for member in members}:
            self._member_s[name] = at_s
        self._present = {member.name for member in members}
        ready = {member.name for member in members if member.state is ReplicaState.READY}
        self._ready_since_s = {name: self._ready_since_s.get(name, at_s) for name in ready}
        self._member_s = {
            name: last_s
            for name, last_s in self._member_s.items()
            if last_s > at_s - self._window_s or last_s == at_s
        }

    def _engines(
        self, members: Sequence[Member], at_s: float, faults: list[Fault]
    ) -> list[SampleSeries]:
        """The series of the target's own replicas, those that left within the window included."""
        try:
            found = self._source.samples(self._names, members, at_s=at_s, window_s=self._window_s)
        except FaultError as error:
            faults.append(error.fault)
            # What each replica said is more than the first of them.
            faults += [fault for fault in self._source.missed if fault != error.fault]
            return []
        faults += self._source.missed
        mine = [one for one in found if one.replica in self._member_s]
        if found and not mine and self._member_s:
            faults.append(self._strangers(found))
        return mine

    def _strangers(self, found: Iterable[SampleSeries]) -> Fault:
        names = sorted({one.replica for one in found})
        return Fault(
            self._source.name,
            FaultReason.NO_SERIES,
            f"{self._source.name}: the series found belong to {_few(names)}, the replicas are "
            f"{_few(sorted(self._member_s))}; set prometheus.replica_label to the label that "
            "holds a replica's name, and check prometheus.selector",
        )

    def _outside(
        self, at_s: float, deadline_s: float, faults: list[Fault]
    ) -> tuple[Traffic | None, list[SampleSeries]]:
        if self._traffic is None:
            return None, []
        names, source = self._traffic
        try:
            left_s = deadline_s - time.monotonic()
            return names, source.read(at_s=at_s, window_s=self._window_s, timeout_s=left_s)
        except FaultError as error:
            faults.append(error.fault)
            return names, []

    def _extra_fields(self, at_s: float, deadline_s: float, faults: list[Fault]) -> list[Extra]:
        found = []
        for extra in self._extras:
            try:
                left_s = deadline_s - time.monotonic()
                one = extra.read(at_s=at_s, window_s=self._window_s, timeout_s=left_s)
            except FaultError as error:
                faults.append(error.fault)
                continue
            if one is not None and np.isfinite(one.value):
                found.append(one)
        return found

    def _silent(
        self, members: Sequence[Member], heard: frozenset[str], at_s: float, told: set[str]
    ) -> list[Fault]:
        """Replicas that have been ready for a window and of which nothing is seen."""
        silent = [
            member.name
            for member in members
            if member.state is ReplicaState.READY
            and member.name not in heard
            and member.name not in told
            and self._was_ready_for_a_window(member.name, at_s)
        ]
        return [
            Fault(
                name,
                FaultReason.NO_SERIES,
                f"{name}: no fresh sample within {self._window_s:g} s; is the pod scraped, and "
                "does it answer?",
            )
            for name in silent
        ]

    def _was_ready_for_a_window(self, name: str, at_s: float) -> bool:
        since_s = self._ready_since_s[name]
        # Ready when we came: for how long, nobody told us.
        return since_s == self._watched_since_s or at_s - since_s >= self._window_s

    def _probed(self, members: Sequence[Member], faults: list[Fault]) -> Probed | None:
        if self._probe is None:
            return None
        self._probe.aim(
            [
                member.replica
                for member in members
                if member.replica is not None and member.state is ReplicaState.READY
            ]
        )
        overdue_s = self._probe.overdue_s()
        if overdue_s is not None:
            what = f"probe: no result for {overdue_s:.0f} s; a request hangs longer than it may"
            faults.append(Fault("probe", FaultReason.TIMED_OUT, what))
        probed = self._probe.last()
        if probed is not None and probed.fault is not None:
            faults.append(probed.fault)
        return probed


def connect_collector(
    target: TargetConfig, metrics: Metrics, clock: Clock, *, engine: Engine | None = None
) -> Collector:
    """The collector that a target's configuration asks for; nothing is sent yet.

    Args:
        target: what to measure.
        metrics: what its engine calls things.
        clock: stamps probes.
        engine: sends probes; needed where `probe` is configured.

    Raises:
        ConfigError: sources are missing, or ask for what is not there.
    """
    if target.probe is not None and engine is None:
        raise ConfigError(f"target {target.name}: probe needs the engine that sends it")
    source, server = _source(target, metrics)
    traffic, extras = _traffic(target, server), _extras(target, server)
    probe = Probe(engine, target.probe, clock) if engine and target.probe else None
    return Collector(
        source,
        metrics,
        window_s=target.window_s,
        timeout_s=target.prometheus.timeout_s if target.prometheus else np.inf,
        traffic=traffic,
        extras=extras,
        probe=probe,
    )


def _source(target: TargetConfig, metrics: Metrics) -> tuple[SampleSource, PrometheusSource | None]:
    """Where the engines' samples come from, and the Prometheus server if that is it."""
    if target.prometheus is not None and target.scrape is None:
        server = PrometheusSource(target.prometheus)
        return server, server
    if target.scrape is not None and target.prometheus is None:
        return ScrapeSource(target.scrape, wanted_names(metrics), metrics.path), None
    found = "both are there" if target.prometheus else "neither is there"
    raise ConfigError(f"target {target.name}: needs prometheus or scrape; {found}")


def _extras(target: TargetConfig, server: PrometheusSource | None) -> list[ExtraSource]:
    extras: list[ExtraSource] = []
    if target.gpu is not None and target.gpu.source == "nvml":
        extras.append(NodeCards(target.gpu.indices))
    elif target.gpu is not None:
        asked = _needed(target, "gpu.source dcgm", server)
        extras.append(DcgmCards(asked, target.gpu.selector))
    if target.business is not None:
        extras.append(Business(_needed(target, "business", server), target.business.query))
    return extras


def _traffic(
    target: TargetConfig, server: PrometheusSource | None
) -> tuple[Traffic, TrafficSource] | None:
    config = target.traffic
    if config is None:
        return None
    if config.url is not None:
        # The page is not filtered where it comes from.
        names = traffic_of(config, config.selector)
        timeout_s = (target.scrape or ScrapeConfig()).timeout_s
        return names, TrafficPage(config.url, names, timeout_s)
    names = traffic_of(config, {})
    asked = _needed(target, "traffic without a url", server)
    return names, ServerTraffic(asked, names, config.selector)


def _needed(target: TargetConfig, what: str, server: PrometheusSource | None) -> PrometheusSource:
    if server is None:
        raise ConfigError(f"target {target.name}: {what} needs prometheus; add it or take it out")
    return server


def _few(names: Sequence[str]) -> str:
    quoted = [repr(name) for name in names[:3]]
    return ", ".join(quoted) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
