"""One policy on one trace: the control loop around a simulated cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from envs.reward import Outcome
from envs.simulator.cluster import SimulatedCluster
from experiments.config import RunConfig
from experiments.result import RequestTable, RunResult, TickTable
from tuner.control.loop import ticks
from tuner.core.audit import NoAudit
from tuner.core.clock import VirtualClock
from tuner.core.decision import Decision, Guardrails
from tuner.core.history import History
from tuner.core.knobs import KnobSettings, KnobSpace
from tuner.core.observation import Observation
from tuner.core.profile import ServingProfile
from tuner.core.protocols import Policy
from tuner.core.trace import Trace
from tuner.knobs import KNOBS, knob_space


def target_knobs(profile: ServingProfile, *, max_replicas: int) -> KnobSpace:
    """The knobs of a target that runs this profile.

    A knob that the profile does not model has one allowed value: it is pinned.
    """
    limits = profile.limits
    ranges = {"replicas": (1, max_replicas), "batch_size": (1, limits.batch_size_max)}
    for name in profile.unmodelled_knobs():
        ranges[name] = (KNOBS[name].default, KNOBS[name].default)
    knobs = knob_space(**ranges)
    if limits.batch_size_applied == "hot":
        return knobs
    # The knob is the ceiling itself; the highest is no default where it does not start.
    most = min(limits.batch_size_max, limits.batch_size_oom or limits.batch_size_max)
    return KnobSpace(
        tuple(
            replace(spec, applied="restart", default=most) if spec.name == "batch_size" else spec
            for spec in knobs.specs
        )
    )


def run(
    trace: Trace,
    profile: ServingProfile,
    policy: Policy,
    *,
    config: RunConfig,
    seed: int,
    fallback: Policy,
    guardrails: Guardrails | None = None,
    knobs: KnobSpace | None = None,
    initial: Mapping[str, int] | None = None,
    settings: Mapping[str, object] | None = None,
    progress: Callable[[float], None] | None = None,
) -> RunResult:
    """Simulate a policy until every request has ended, at most `overtime_s` after the last arrival.

    Args:
        trace: the load.
        profile: how fast a replica serves.
        policy: who proposes.
        config: objectives, tick, guardrails and bounds.
        seed: of cold starts and jitter; the same seed gives the same bits.
        fallback: who decides where a guardrail trips.
        guardrails: what stands between proposal and cluster; None: those of `config`.
        knobs: of the target; None: what the profile models, up to `config.max_replicas`.
        initial: settings in force at the first arrival; knobs left out take their default.
        settings: the policy's parameters, for the report.
        progress: called now and then with the share (0-1) that is done.
    """
    knobs = knobs or target_knobs(profile, max_replicas=config.max_replicas)
    # A controller's first look comes one period after it starts, as HPA's first sync does.
    clock = VirtualClock(config.tick_s)
    cluster = SimulatedCluster(
        trace,
        profile,
        knobs,
        clock,
        initial=_initial(knobs, config, initial or {}),
        seed=seed,
        router=config.router,
        slo=config.slo,
        jitter=config.jitter,
        drain_timeout_s=config.drain_timeout_s,
        failures=config.failures,
        scrape=config.scrape,
        record=True,
    )
    # Rows, not records: thousands of decisions with all that led to them would be kept alive, and
    # the collector would walk through them again and again.
    rows: list[dict[str, object]] = []
    actions = 0
    billed_s = 0.0
    before_s = 0.0
    end_s = trace.last_arrival_s + config.overtime_s
    for history in ticks(
        cluster,
        clock,
        History(knobs),
        policy,
        guardrails or config.guardrails.build(),
        fallback,
        NoAudit(),
        "simulate",
        every_s=config.tick_s,
    ):
        assert cluster.outcome is not None
        decision = history.decisions[-1]
        rows.append(_tick_row(history.now, decision, cluster.outcome))
        actions += bool(decision.changes)
        at_s = history.now.at_s
        if not in_a_gap(trace, before_s, at_s):
            billed_s += cluster.billed_s
        before_s = at_s
        if progress is not None and len(rows) % 64 == 0:
            progress(min(1.0, clock.now_s() / end_s))
        if cluster.done or clock.now_s() >= end_s:
            break
    table = TickTable.of(rows)
    replica_hours = billed_s / 3600
    return RunResult(
        policy=policy.name,
        seed=seed,
        requests=_requests(trace, cluster),
        ticks=table,
        replica_hours=replica_hours,
        gpu_hours=replica_hours * profile.gpus_per_replica,
        span_s=trace.last_arrival_s - sum(gap.length_s for gap in trace.gaps),
        actions=actions,
        clamps=int(table.clamped.sum()),
        trips=int(table.tripped.sum()),
        pinned=profile.unmodelled_knobs(),
        settings=settings or {},
    )


def _initial(knobs: KnobSpace, config: RunConfig, initial: Mapping[str, int]) -> KnobSettings:
    start = dict(knobs.defaults())
    if config.initial_replicas is not None:
        start["replicas"] = config.initial_replicas
    return KnobSettings({**start, **initial})


def _requests(trace: Trace, cluster: SimulatedCluster) -> RequestTable:
    requests = cluster.requests()
    return RequestTable(
        arrival_s=trace.arrival_s,
        prompt_tokens=trace.prompt_tokens,
        output_tokens=trace.output_tokens,
        ttft_s=requests.ttft_s,
        e2e_s=requests.e2e_s,
        tpot_s=requests.tpot_s,
        replica=requests.replica,
        preemptions=requests.preemptions,
        rejected=requests.rejected,
        failed=requests.failed,
    )


def in_a_gap(trace: Trace, from_s: float, to_s: float) -> bool:
    """Whether a tick's time overlaps a masked gap: what it cost is nobody's fault."""
    return any(gap.start_s < to_s and from_s < gap.end_s for gap in trace.gaps)


def _tick_row(seen: Observation, decision: Decision, outcome: Outcome) -> dict[str, object]:
    target = {**decision.settings, **decision.target}
    return {
        **{name: getattr(seen, name) for name in _SEEN},
        "wanted_replicas": target.get("replicas"),
        "batch_size": target.get("batch_size"),
        "threads": target.get("threads"),
        "warmup_requests": target.get("warmup_requests"),
        "met": int(outcome.met[0]),
        "missed": int(outcome.missed[0]),
        "finished": int(outcome.finished[0]),
        "source": decision.source,
        "clamped": bool(decision.clamps),
        "tripped": bool(decision.trips),
        "sentence": decision.sentence(),
    }


_SEEN = (
    "at_s",
    "window_s",
    "qps",
    "prompt_tokens_per_s",
    "output_tokens_per_s",
    "ttft_p50_s",
    "ttft_p95_s",
    "ttft_p99_s",
    "tpot_p50_s",
    "tpot_p99_s",
    "queue_depth",
    "running",
    "kv_cache_usage",
    "gpu_util",
    "ready_replicas",
    "starting_replicas",
    "draining_replicas",
)
