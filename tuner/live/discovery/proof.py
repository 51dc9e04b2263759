"""Proof that a configuration meets its surroundings: each field has a series, rights fit, and what
the engine lets itself be told. Reading only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from tuner.config import TargetConfig
from tuner.core.clock import Clock, ScaledClock, WallClock
from tuner.core.errors import ConfigError
from tuner.core.faults import FaultError
from tuner.core.observation import FIELDS, ReplicaState
from tuner.engines.engine import Engine, Replica
from tuner.guardrails.stale_metrics import REQUIRED
from tuner.live.metrics.measured import Measured, Measuring
from tuner.live.pool import Member, Pool

SCRAPE_GAP_S = 5.0
"""Seconds between the two looks at a page that rates and percentiles need."""

_COUNTED = ("ready_replicas", "starting_replicas", "draining_replicas", "status_replicas")
"""Fields that come from the pool."""
_LATENCIES = ("ttft_", "tpot_", "e2e_")
_WHERE_FROM: Mapping[str, str] = {
    "business": "not configured, and optional: set `business.query`",
    "gpu_util": "not configured, and optional: set `gpu`",
    "in_flight": "set `traffic.in_flight` to a gauge of the gateway or client",
}
"""What to do about a field that engines do not give."""


@dataclass(frozen=True)
class ProofRow:
    """One thing that the configuration promises, held against what is there."""

    field: str
    """A field of the Observation; `rights`, `replicas`, `engine`; or `knob.NAME`."""
    found: bool
    value: float | None
    age_s: float | None
    sentence: str
    """How it was found, or why not, with the next move."""
    unit: str = ""
    """Of the value."""
    needed: bool = False
    """Whether the controller cannot do its work without it."""


def live_proof(target: TargetConfig) -> list[ProofRow]:
    """Ask everything that the target's configuration names, once.

    Raises:
        ConfigError: a section cannot be used at all.
    """
    from tuner.live.connect import engine_of, pool_of
    from tuner.live.metrics.collector import connect_collector

    clock = _clock_of(target)
    with ExitStack() as opened:
        engine, close_engine = engine_of(target)
        opened.callback(close_engine)
        asked = pool_of(target, engine, clock)
        opened.callback(asked.close)
        # Whoever looks after being allowed to write holds the Lease, and gives it back at the end:
        # the proof must not do that to a controller that runs, so another pool looks.
        pool = pool_of(target, engine, clock)
        opened.callback(pool.close)
        collector = connect_collector(target, engine.metrics, clock, engine=engine)
        opened.callback(collector.close)
        return proof_rows(target, asked, pool, engine, collector, clock)


def _clock_of(target: TargetConfig) -> Clock:
    if target.sandbox is None:
        return WallClock()
    return ScaledClock(target.sandbox.speed, target.sandbox.epoch_s)


def proof_rows(
    target: TargetConfig,
    asked: Pool,
    pool: Pool,
    engine: Engine,
    collector: Measuring,
    clock: Clock,
) -> list[ProofRow]:
    """Every row, in the order in which a person would ask.

    Args:
        asked: is asked for its rights, and nothing else.
        pool: the same one, to look at.
    """
    rows = [_rights(target, asked)]
    try:
        members = pool.look().members
    except FaultError as error:
        rows.append(ProofRow("replicas", False, None, None, str(error)))
        return _marked(target, rows)
    rows.append(_replicas(members))
    measured = collector.collect(members, at_s=clock.now_s())
    if target.scrape is not None:
        # A page is one moment: a rate needs two.
        clock.sleep_until(clock.now_s() + min(SCRAPE_GAP_S, target.tick_s))
        measured = collector.collect(members, at_s=clock.now_s())
    rows += _fields(target, members, measured)
    rows += _engine(members, engine)
    return _marked(target, rows)


def _marked(target: TargetConfig, rows: Sequence[ProofRow]) -> list[ProofRow]:
    """The rows, each with whether the controller can do without it."""
    rules = (target.policy_options, target.fallback_options)
    needed = {"rights", "replicas", "engine", *REQUIRED}
    needed |= {str(options["metric"]) for options in rules if "metric" in options}
    # The pool moves the replicas, whatever the engine says of them.
    needed |= {f"knob.{name}" for name in target.move if name != "replicas"}
    return [replace(row, needed=row.field in needed) for row in rows]


def _rights(target: TargetConfig, pool: Pool) -> ProofRow:
    """Whether the account fits a mode. It fits one of two: shadow must not be able to write."""
    refusals: dict[str, str] = {}
    modes = {"shadow": False, "active": True} if target.kubernetes else {"shadow": False}
    for mode, writes in modes.items():
        refused = _refused(lambda writes=writes: pool.check(writes=writes))  # type: ignore[misc]
        if refused is None:
            rest = "".join(f"; not {other}: {why}" for other, why in refusals.items())
            return ProofRow("rights", True, None, None, f"fit {mode} mode{rest}")
        refusals[mode] = refused
    sentence = "; ".join(f"not {mode}: {why}" for mode, why in refusals.items())
    return ProofRow("rights", False, None, None, sentence)


def _refused(check: Callable[[], None]) -> str | None:
    try:
        check()
    except (ConfigError, FaultError) as error:
        return str(error)
    return None


def _replicas(members: Sequence[Member]) -> ProofRow:
    states = [str(member.state) for member in members]
    ready = states.count(ReplicaState.READY)
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    sentence = counts or "none at all; is the Deployment scaled to 0?"
    return ProofRow("replicas", ready > 0, float(ready), None, sentence, "replicas")


def _fields(
    target: TargetConfig, members: Sequence[Member], measured: Measured
) -> Iterator[ProofRow]:
    for spec in FIELDS:
        if spec.name in _COUNTED:
            yield ProofRow(spec.name, True, None, None, "counted by who runs the replicas")
            continue
        value = measured.values.get(spec.name)
        if value is None:
            yield ProofRow(spec.name, False, None, None, _why(spec.name, target, measured))
            continue
        age_s = measured.ages_s.get(spec.name, measured.age_s)
        estimated = spec.name in measured.estimates
        sentence = spec.meaning
        if estimated:
            sentence = "an estimate from other fields; set `traffic` to have it measured"
        if age_s is not None and age_s > target.max_age_s:
            sentence = f"{age_s:.0f} s old, and nothing above {target.max_age_s:g} s is acted on"
            yield ProofRow(spec.name, False, value, age_s, sentence, spec.unit)
            continue
        yield ProofRow(spec.name, True, value, age_s, sentence, spec.unit)


def _why(name: str, target: TargetConfig, measured: Measured) -> str:
    """Why a field was not measured: a fault that speaks of it, or what usually is the matter."""
    configured = {
        "business": target.business is not None,
        "gpu_util": target.gpu is not None,
        "in_flight": target.traffic is not None and target.traffic.in_flight is not None,
    }
    if name in configured and not configured[name]:
        return _WHERE_FROM[name]
    for fault in measured.faults:
        if name in fault.sentence or not measured.values:
            return fault.sentence
    if name.startswith(_LATENCIES):
        return f"no request ended in the last {target.window_s:g} s, or no series; send one"
    return "this engine gives no such series, or the window holds too few samples"


def _engine(members: Sequence[Member], engine: Engine) -> Iterator[ProofRow]:
    """What one ready replica lets itself be told."""
    replica = _answering(members)
    if replica is None:
        yield ProofRow("engine", False, None, None, "no ready replica with an address to ask")
        return
    try:
        capabilities = engine.capabilities(replica)
    except FaultError as error:
        yield ProofRow("engine", False, None, None, str(error))
        return
    yield ProofRow("engine", True, None, None, f"{engine.name} ({engine.standing}), {replica.name}")
    for each in capabilities:
        sentence = f"{each.sentence} ({each.applied}; {each.route})"
        yield ProofRow(f"knob.{each.knob}", each.movable, None, None, sentence)


def _answering(members: Sequence[Member]) -> Replica | None:
    ready = (member for member in members if member.state is ReplicaState.READY)
    return next((member.replica for member in ready if member.replica is not None), None)
