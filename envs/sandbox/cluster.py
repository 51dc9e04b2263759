"""A simulated fleet that lives in somebody's time, with replicas that have names and a life.

Not thread-safe: whoever serves it holds one lock around every call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from envs.sandbox.counting import Counters, OpenRequests, length_bounds
from envs.simulator import Fleet, FleetSettings, Gauges, ReplicaState, Window
from tuner.core.clock import Clock
from tuner.core.errors import ConfigError
from tuner.core.profile import ServingProfile
from tuner.core.slo import Slo
from tuner.core.trace import Trace
from tuner.engines.contract import Contract, Knob, Status

DRAINING_SLOTS = 8
"""Slots beyond the most replicas, for those that drain while others start."""

STATES: Mapping[int, str] = {
    ReplicaState.STARTING: "starting",
    ReplicaState.WARMING: "warming",
    ReplicaState.READY: "ready",
    ReplicaState.DRAINING: "draining",
}
"""Words of the simulator's states; `tuner.core.observation.ReplicaState` has the same."""


class StaleVersionError(Exception):
    """Somebody wrote since the version that was quoted."""


@dataclass(eq=False)
class Instance:
    """One replica from its start to its end; a slot that is used again holds another one."""

    number: int
    """Counts up; part of its name."""
    slot: int
    started_s: float
    """Simulated."""
    state: int
    """Of ReplicaState, at the last look."""
    contract: Contract
    counters: Counters
    running: int = 0
    waiting: int = 0
    kv_cache_usage: float = 0.0
    """0-1."""

    @property
    def name(self) -> str:
        return f"replica-{self.number}"

    @property
    def serves(self) -> bool:
        """Whether its engine is up."""
        return self.state >= ReplicaState.WARMING


@dataclass
class Totals:
    """Of the whole fleet since the beginning."""

    arrivals: int = 0
    finished: int = 0
    rejected: int = 0
    met: int = 0
    missed: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    preemptions: int = 0
    starts: int = 0
    replica_s: float = 0.0

    def add(self, window: Window) -> None:
        for name in self.__dataclass_fields__:
            value = getattr(self, name) + getattr(window, name)[0].item()
            setattr(self, name, value)


class SandboxCluster:
    """The cluster behind the server.

    Args:
        trace: the load, played once; then there is none.
        profile: how fast a replica serves.
        clock: simulated time. The trace begins at its present time.
        replicas: ready at the start.
        max_replicas: most that may be asked for.
        seed: of cold starts and jitter.
        jitter: sigma of the noise on an iteration's time.

    Raises:
        ConfigError: `replicas` is not 1 to `max_replicas`.
    """

    def __init__(
        self,
        trace: Trace,
        profile: ServingProfile,
        clock: Clock,
        *,
        replicas: int,
        max_replicas: int = 32,
        seed: int = 0,
        jitter: float = 0.0,
        slo: Slo | None = None,
    ) -> None:
        if not 1 <= replicas <= max_replicas:
            raise ConfigError(f"--replicas is {replicas}; expected 1 to {max_replicas}")
        self.profile = profile
        self.max_replicas = max_replicas
        self.model = profile.name
        self.trace = trace
        self.wanted = replicas
        self.warmup_requests: int | None = None if profile.startup is None else 0
        """None: the profile says nothing about starts."""
        self.version = 1
        """Of the wish for replicas."""
        self.totals = Totals()
        self.instances: dict[str, Instance] = {}
        """Alive, by name, oldest first."""
        self.gone: list[Instance] = []
        self.batch_size = profile.limits.batch_size_max
        """In force in the simulation."""
        self._clock = clock
        self._seeds = np.array([seed], dtype=np.uint64)
        self._fleet = Fleet(
            trace,
            profile,
            seeds=self._seeds,
            slots=max_replicas + DRAINING_SLOTS,
            jitter=jitter,
            slo=slo or Slo(),
            record=True,
        )
        self._fleet.reset(slice(None), start_s=0.0, seeds=self._seeds, settings=self._settings())
        self._lengths = length_bounds(profile.kv.tokens)
        self._open = OpenRequests()
        self._numbered = 0
        self._slots: dict[int, Instance] = {}
        self.now_s = 0.0
        """Simulated seconds since the trace's beginning, at the last look."""
        self.in_flight = 0
        """Arrived and not ended, those at the router included."""
        # The first time on a machine, each of these compiles for seconds: time begins after them.
        self._fleet.advance(0.0)
        self._apply()
        self.epoch_s = clock.now_s()
        """Of the clock at the trace's beginning."""

    # Time.

    def look(self) -> None:
        """Let the simulation catch up with the clock, and count what has happened."""
        self.now_s = max(self._clock.now_s() - self.epoch_s, self.now_s)
        self._fleet.advance(self.now_s)
        self._count()
        for instance in list(self.instances.values()):
            instance.contract.expire()
        self._agree()

    @property
    def load_ended(self) -> bool:
        """Whether the trace's last request has arrived."""
        return self.totals.arrivals >= len(self.trace)

    # The pool.

    def scale(self, replicas: int, version: str | None) -> None:
        """Ask for so many replicas.

        Raises:
            ValueError: not 1 to `max_replicas`.
            StaleVersionError: `version` is not the present one.
        """
        if not 1 <= replicas <= self.max_replicas:
            raise ValueError(f"replicas is {replicas}; expected 1 to {self.max_replicas}")
        if version != str(self.version):
            raise StaleVersionError(
                f"version {version} is not {self.version}, the present one; read and decide again"
            )
        if replicas != self.wanted:
            self.wanted = replicas
            self.version += 1
            self._apply()

    def set_warmup(self, requests: int) -> None:
        """Warm-up requests of the replicas that start from now on.

        Raises:
            ValueError: below 0, or the profile has no starts.
        """
        if self.warmup_requests is None:
            raise ValueError(f"profile {self.profile.name} has no startup section: no warm-up")
        if requests < 0:
            raise ValueError(f"requests is {requests}; expected 0 or more")
        self.warmup_requests = requests
        self._apply()

    def _apply(self) -> None:
        self._fleet.apply(self._settings())
        self._count()

    def _settings(self) -> FleetSettings:
        frontend = self.profile.frontend
        return FleetSettings(
            replicas=np.array([self.wanted]),
            batch_size=np.array([self.batch_size]),
            threads=np.array([frontend.cores if frontend else 1]),
            warmup_requests=np.array([self.warmup_requests or 0]),
        )

    # Run-time configuration.

    def _agree(self) -> None:
        """Put a batch size in force once every serving replica has it.

        The simulator has one for the whole fleet. While replicas differ (a round of writes is
        under way, a new one has not been written to yet, a share is tried out) the last one that
        all had stays in force.
        """
        values = {
            one.contract.values["batch_size"]
            for one in self.instances.values()
            if one.state == ReplicaState.READY
        }
        if len(values) == 1 and values != {self.batch_size}:
            (self.batch_size,) = values
            self._apply()

    def _contract(self, slot: int) -> Contract:
        def status() -> Status:
            one = self._slots[slot]
            return Status(
                running=one.running,
                waiting=one.waiting,
                draining=one.state == ReplicaState.DRAINING,
            )

        most = self.profile.limits.batch_size_max
        return Contract(
            {"batch_size": Knob(value=most, low=1, high=most, unit="sequences")},
            apply=lambda values: None,  # `_agree` brings it about, at the end of the call
            status=status,
            engine="vllm",
            engine_version="sandbox",
            model=self.model,
            token=None,
            clock=self._clock.now_s,
            new_instance_id=lambda: f"{self._clock.now_s():.3f}-{self._numbered}",
        )

    # Counting.

    def _count(self) -> None:
        window = self._fleet.window()
        arrived = self.totals.arrivals
        self.totals.add(window)
        self._open.arrived(arrived, self.totals.arrivals - arrived)
        gauges = self._fleet.gauges()
        before = dict(self._slots)
        was_ready = {slot for slot, one in before.items() if one.state == ReplicaState.READY}
        self._follow(gauges)
        self.in_flight = int(gauges.in_flight[0])
        candidates = {one.number: one for one in (*before.values(), *self._slots.values())}
        self._count_requests(candidates, before, was_ready)
        counted = self._fleet.counters()
        for slot, one in self._slots.items():
            one.counters.read(counted, slot)

    def _follow(self, gauges: Gauges) -> None:
        """Instances that came, went, or moved on in life."""
        for slot, state in enumerate(gauges.replica_state[0].tolist()):
            one = self._slots.get(slot)
            started_s = float(gauges.replica_started_s[0, slot])
            if one is not None and (state == ReplicaState.OFF or started_s != one.started_s):
                self.gone.append(self.instances.pop(one.name))
                del self._slots[slot]
                one = None
            if state == ReplicaState.OFF:
                continue
            if one is None:
                one = self._begin(slot, started_s, state)
            one.state = state
            one.running = int(gauges.replica_running[0, slot])
            one.waiting = int(gauges.replica_queue_depth[0, slot])
            usage = float(gauges.replica_kv_cache_usage[0, slot])
            one.kv_cache_usage = 0.0 if np.isnan(usage) else usage

    def _begin(self, slot: int, started_s: float, state: int) -> Instance:
        one = Instance(
            number=self._numbered,
            slot=slot,
            started_s=started_s,
            state=state,
            contract=self._contract(slot),
            counters=Counters(self._lengths),
        )
        self._numbered += 1
        self._slots[slot] = self.instances[one.name] = one
        return one

    def _count_requests(
        self,
        candidates: Mapping[int, Instance],
        before: Mapping[int, Instance],
        was_ready: set[int],
    ) -> None:
        rows = self._open
        seen = self._fleet.requests(rows=rows.request)
        for row in np.flatnonzero((rows.owner < 0) & (seen.replica >= 0)).tolist():
            arrival_s = float(self.trace.arrival_s[rows.request[row]])
            slot = int(seen.replica[row])
            rows.owner[row] = self._owner(slot, arrival_s, before, was_ready).number
        begun = ~np.isnan(seen.ttft_s) & ~rows.begun
        ended = ~np.isnan(seen.e2e_s)
        prompts = self.trace.prompt_tokens[rows.request].astype(np.int64)
        outputs = self.trace.output_tokens[rows.request].astype(np.int64)
        for number in np.unique(rows.owner[begun | ended]).tolist():
            counters = candidates[number].counters
            mine = rows.owner == number
            first, last = begun & mine, ended & mine
            counters.first_tokens(seen.ttft_s[first])
            counters.ended(prompts[last], outputs[last], seen.e2e_s[last], seen.tpot_s[last])
        rows.begun |= begun
        rows.keep(~ended & ~seen.rejected)

    def _owner(
        self, slot: int, arrival_s: float, before: Mapping[int, Instance], was_ready: set[int]
    ) -> Instance:
        """Which instance of the slot a request went to since the last look."""
        old, new = before.get(slot), self._slots.get(slot)
        if old is None or old is new:
            return self._slots[slot]
        if new is None or (slot in was_ready and arrival_s < new.started_s):
            return old
        return new
