"""What is known of a target at one moment: the state of the decision problem."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.core.faults import Fault
from tuner.core.knobs import KnobSettings, KnobSpace


@dataclass(frozen=True)
class FieldSpec:
    """One scalar field of the state."""

    name: str
    unit: str
    meaning: str


FIELDS: tuple[FieldSpec, ...] = (
    FieldSpec("qps", "requests/s", "arrivals per second, mean over the window"),
    FieldSpec(
        "prompt_tokens_per_s", "tokens/s", "prompt tokens of requests that got a first token"
    ),
    FieldSpec("output_tokens_per_s", "tokens/s", "generated tokens per second"),
    FieldSpec("ttft_p50_s", "s", "median time to first token in the window"),
    FieldSpec("ttft_p95_s", "s", "95th percentile of the time to first token"),
    FieldSpec("ttft_p99_s", "s", "99th percentile of the time to first token"),
    FieldSpec("tpot_p50_s", "s/token", "median time per output token of finished requests"),
    FieldSpec("tpot_p99_s", "s/token", "99th percentile of the time per output token"),
    FieldSpec("e2e_p99_s", "s", "99th percentile of submit to last token"),
    FieldSpec("gpu_util", "0-1", "share of time a kernel ran; not headroom"),
    FieldSpec("kv_cache_usage", "0-1", "mean share of KV blocks in use"),
    FieldSpec("queue_depth", "requests", "waiting for a slot, summed over replicas and router"),
    FieldSpec("running", "requests", "being prefilled or decoded"),
    FieldSpec("in_flight", "requests", "sent and not yet answered, seen by client or gateway"),
    FieldSpec("error_rate", "0-1", "share of the window's ended requests that failed"),
    FieldSpec("preemptions_per_s", "1/s", "requests put back into the queue per second"),
    FieldSpec("ready_replicas", "replicas", "replicas that serve"),
    FieldSpec("starting_replicas", "replicas", "pending, starting or warming replicas"),
    FieldSpec("draining_replicas", "replicas", "replicas that finish their requests and leave"),
    FieldSpec("status_replicas", "replicas", "replicas that exist and are not leaving"),
    FieldSpec("business", "any", "optional business signal, any PromQL"),
)
"""Order of the columns wherever a state is a row of numbers."""

FIELD_NAMES: tuple[str, ...] = tuple(spec.name for spec in FIELDS)
COLUMN: Mapping[str, int] = {name: column for column, name in enumerate(FIELD_NAMES)}
"""Field name -> column of a state row."""


class ReplicaState(StrEnum):
    """Life of a replica."""

    PENDING = "pending"
    STARTING = "starting"
    WARMING = "warming"
    READY = "ready"
    DRAINING = "draining"


@dataclass(frozen=True)
class ReplicaObservation:
    """One replica as the metrics source saw it; None where there is no sample."""

    name: str
    state: ReplicaState
    age_s: float
    """Seconds since the replica was asked for."""
    running: float | None = None
    queue_depth: float | None = None
    queued_prompt_tokens: float | None = None
    kv_cache_usage: float | None = None
    """0-1."""
    kv_tokens: float | None = None


REPLICA_FIELDS: tuple[str, ...] = (
    "running",
    "queue_depth",
    "queued_prompt_tokens",
    "kv_cache_usage",
    "kv_tokens",
)
"""Order of the last axis wherever replicas are arrays."""

REPLICA_STATES: tuple[ReplicaState, ...] = tuple(ReplicaState)
"""Codes of replica states in arrays; -1 is no replica."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One window of measurements of one target. None means not measured, never 0."""

    at_s: float
    """When the controller looked, on its clock."""
    window_s: float
    """Length of the window that rates and percentiles cover."""
    age_s: float | None = None
    """Age at `at_s` of the newest sample, of the engines' own series where a source has several;
    None when there is no sample at all."""
    settings: KnobSettings = field(default_factory=KnobSettings)
    """Knobs in force; a knob that could not be read is absent."""
    replicas: Sequence[ReplicaObservation] = ()
    ages_s: Mapping[str, float] = field(default_factory=dict)
    """Scalar field -> age of its newest sample, s; empty where all are as old as `age_s` says."""
    estimates: tuple[str, ...] = ()
    """Scalar fields that were worked out from others because no source measures them."""
    faults: tuple[Fault, ...] = ()
    """What could not be read, and why."""

    qps: float | None = None
    prompt_tokens_per_s: float | None = None
    output_tokens_per_s: float | None = None
    ttft_p50_s: float | None = None
    ttft_p95_s: float | None = None
    ttft_p99_s: float | None = None
    tpot_p50_s: float | None = None
    tpot_p99_s: float | None = None
    e2e_p99_s: float | None = None
    gpu_util: float | None = None
    kv_cache_usage: float | None = None
    queue_depth: float | None = None
    running: float | None = None
    in_flight: float | None = None
    error_rate: float | None = None
    preemptions_per_s: float | None = None
    ready_replicas: float | None = None
    starting_replicas: float | None = None
    draining_replicas: float | None = None
    status_replicas: float | None = None
    business: float | None = None

    def row(self) -> NDArray[np.float64]:
        """The scalar fields as `(len(FIELDS),)` float64 in the order of FIELDS, None as NaN."""
        values = [getattr(self, name) for name in FIELD_NAMES]
        return np.array([np.nan if v is None else v for v in values], dtype=np.float64)

    @classmethod
    def from_row(
        cls,
        row: NDArray[np.float64],
        *,
        at_s: float,
        window_s: float,
        age_s: float | None,
        settings: KnobSettings,
        replicas: Sequence[ReplicaObservation] = (),
    ) -> Observation:
        """The inverse of `row`: NaN becomes None."""
        # mypy cannot see that these names are the scalar fields.
        scalars: dict[str, Any] = {
            name: None if math.isnan(value) else value
            for name, value in zip(FIELD_NAMES, row.tolist(), strict=True)
        }
        return cls(
            at_s=at_s,
            window_s=window_s,
            age_s=age_s,
            settings=settings,
            replicas=replicas,
            **scalars,
        )

    def to_json(self) -> dict[str, object]:
        """Plain data for the audit log; absent values are null."""
        scalars = {name: getattr(self, name) for name in FIELD_NAMES}
        return {
            "at_s": self.at_s,
            "window_s": self.window_s,
            "age_s": self.age_s,
            "settings": dict(self.settings),
            "replicas": [
                {f.name: getattr(replica, f.name) for f in fields(replica)}
                for replica in self.replicas
            ],
            "ages_s": dict(self.ages_s),
            "estimates": list(self.estimates),
            "faults": [fault.to_json() for fault in self.faults],
            **scalars,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Observation:
        """The inverse of `to_json`.

        Raises:
            KeyError: if a key is missing.
            TypeError: if a key is not known.
        """
        replicas = tuple(
            ReplicaObservation(**{**replica, "state": ReplicaState(replica["state"])})
            for replica in data["replicas"]
        )
        return cls(
            **{
                **data,
                "settings": KnobSettings(data["settings"]),
                "replicas": replicas,
                "estimates": tuple(data["estimates"]),
                "faults": tuple(Fault.from_json(fault) for fault in data["faults"]),
            }
        )


@dataclass(frozen=True)
class ReplicaArrays:
    """The replicas of n targets as columns, padded to the largest target."""

    state: NDArray[np.int64]
    """`(n, replicas)` positions in REPLICA_STATES, -1 for no replica."""
    age_s: NDArray[np.float64]
    """`(n, replicas)` s since the replica was asked for."""
    values: NDArray[np.float64]
    """`(n, replicas, len(REPLICA_FIELDS))`, NaN where there is no sample."""

    @classmethod
    def of(cls, replicas: Sequence[ReplicaObservation]) -> ReplicaArrays:
        """The replicas of one target as a batch of one."""
        values = [[getattr(replica, name) for name in REPLICA_FIELDS] for replica in replicas]
        shape = (1, len(replicas), len(REPLICA_FIELDS))
        return cls(
            state=np.array(
                [[REPLICA_STATES.index(replica.state) for replica in replicas]], dtype=np.int64
            ).reshape(1, len(replicas)),
            age_s=np.array([[replica.age_s for replica in replicas]]).reshape(1, len(replicas)),
            values=np.array(values, dtype=np.float64).reshape(shape),
        )

    def at(self, places: NDArray[np.intp]) -> ReplicaArrays:
        """The replicas in these `(k,)` places of every target."""
        return ReplicaArrays(
            state=self.state.take(places, axis=1),
            age_s=self.age_s.take(places, axis=1),
            values=self.values.take(places, axis=1),
        )


@dataclass(frozen=True)
class ObservationArrays:
    """Observations of n targets as columns: what rules and guardrails compute on."""

    knobs: KnobSpace
    at_s: NDArray[np.float64]
    """`(n,)` s."""
    age_s: NDArray[np.float64]
    """`(n,)` s, NaN where there is no sample at all."""
    values: NDArray[np.float64]
    """`(n, len(FIELDS))` in the order of FIELDS, NaN where not measured."""
    settings: NDArray[np.float64]
    """`(n, knobs)` in force, NaN where not known."""
    replicas: ReplicaArrays

    def column(self, name: str) -> NDArray[np.float64]:
        """`(n,)` one scalar field."""
        return self.values[:, COLUMN[name]]

    def take(self, rows: NDArray[np.intp]) -> ObservationArrays:
        """Some of the targets."""
        return ObservationArrays(
            knobs=self.knobs,
            at_s=self.at_s[rows],
            age_s=self.age_s[rows],
            values=self.values[rows],
            settings=self.settings[rows],
            replicas=ReplicaArrays(
                state=self.replicas.state[rows],
                age_s=self.replicas.age_s[rows],
                values=self.replicas.values[rows],
            ),
        )

    def replaced(self, rows: NDArray[np.intp], others: ObservationArrays) -> ObservationArrays:
        """These targets with some of them exchanged for `others`, row by row."""
        return ObservationArrays(
            knobs=self.knobs,
            at_s=exchanged(self.at_s, rows, others.at_s),
            age_s=exchanged(self.age_s, rows, others.age_s),
            values=exchanged(self.values, rows, others.values),
            settings=exchanged(self.settings, rows, others.settings),
            replicas=ReplicaArrays(
                state=exchanged(self.replicas.state, rows, others.replicas.state),
                age_s=exchanged(self.replicas.age_s, rows, others.replicas.age_s),
                values=exchanged(self.replicas.values, rows, others.replicas.values),
            ),
        )

    @classmethod
    def of(cls, knobs: KnobSpace, now: Observation) -> ObservationArrays:
        """One observation as a batch of one, which nobody may write to.

        The latest is kept: policy, fallback and guardrails look at the same one in turn, and making
        it takes longer than most rules.
        """
        if _latest is not None and _latest[0] is now and _latest[1].knobs is knobs:
            return _latest[1]
        return cls(
            knobs=knobs,
            at_s=np.array([now.at_s], dtype=np.float64),
            age_s=np.array([np.nan if now.age_s is None else now.age_s], dtype=np.float64),
            values=now.row()[None, :],
            settings=knobs.row(now.settings)[None, :],
            replicas=ReplicaArrays.of(now.replicas),
        )._kept_for(now)

    def observation(
        self, window_s: float, replicas: Sequence[ReplicaObservation] = ()
    ) -> Observation:
        """The inverse of `of`: the only target as an observation.

        From here on nobody may write to these arrays: `of` hands them out again.

        Args:
            window_s: length of the window that rates and percentiles cover.
            replicas: the same that the arrays hold, with their names.
        """
        age_s = float(self.age_s[0])
        now = Observation.from_row(
            self.values[0],
            at_s=float(self.at_s[0]),
            window_s=window_s,
            age_s=None if math.isnan(age_s) else age_s,
            settings=self.knobs.settings(self.settings[0]),
            replicas=replicas,
        )
        self._kept_for(now)
        return now

    def _kept_for(self, now: Observation) -> ObservationArrays:
        """These arrays, read-only, for who next asks `of` about this observation."""
        global _latest
        of_replicas = (self.replicas.state, self.replicas.age_s, self.replicas.values)
        for array in (self.at_s, self.age_s, self.values, self.settings, *of_replicas):
            array.flags.writeable = False
        # One reference, exchanged at once: another thread finds the old pair or the new one.
        _latest = (now, self)
        return self


_latest: tuple[Observation, ObservationArrays] | None = None


def exchanged(mine: NDArray[Any], rows: NDArray[np.intp], theirs: NDArray[Any]) -> NDArray[Any]:
    """A copy of `mine` with `theirs` in the given rows."""
    result = mine.copy()
    result[rows] = theirs
    return result
