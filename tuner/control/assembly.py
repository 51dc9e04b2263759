"""From a configuration to a running controller: every part built, and who may act asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial

from structlog.typing import FilteringBoundLogger

from policies import build_policy
from tuner.config import ControllerConfig, TargetConfig
from tuner.config.file import missing_files
from tuner.config.mistakes import knobs_allowed
from tuner.control.audit_store import AuditStore, PromotionKind, RunIdentity
from tuner.control.claim import Hold, held
from tuner.control.health import Pulse, not_ready, stuck
from tuner.control.identity import Mode, identity_of
from tuner.control.metrics import ControllerMetrics
from tuner.control.page import ControllerPage
from tuner.control.service import RunningCluster, Service, TargetLoop, TargetPlan
from tuner.core.clock import Clock, ScaledClock, WallClock
from tuner.core.errors import ConfigError, PermanentError
from tuner.core.history import LENGTH, History
from tuner.core.knobs import KnobSpace
from tuner.guardrails import guardrails_with


@dataclass(frozen=True)
class Reach:
    """How targets are reached: `tuner.live.connect`, or a stand-in."""

    connect: Callable[[TargetConfig, Clock, bool], RunningCluster]
    """A target's cluster on a clock, with or without writes; raises a TunerError."""
    connect_demoted: Callable[[TargetConfig, Clock], RunningCluster] | None = None
    """The same for a shadow that follows on an active controller, whose account may still write;
    None: as any other shadow."""

    def demoted(self, target: TargetConfig, clock: Clock) -> RunningCluster:
        """What goes on where an active controller was demoted."""
        if self.connect_demoted is None:
            return self.connect(target, clock, False)
        return self.connect_demoted(target, clock)


@dataclass(frozen=True)
class Orders:
    """What the command line asks for."""

    mode: Mode
    ticks: int | None = None
    """So many of each target, then the end; None: until told to stop."""
    without_evidence: str | None = None
    """Why a policy may act that nobody has promoted."""


def chosen(config: ControllerConfig, names: Sequence[str]) -> ControllerConfig:
    """The configuration with the named targets only; all of them where none is named.

    Raises:
        ConfigError: there is no target of that name.
    """
    known = [target.name for target in config.targets]
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known targets: {', '.join(known)}"
            raise ConfigError(f"target '{name}' is not in the configuration; {hint}")
    if not names:
        return config
    return replace(config, targets=tuple(t for t in config.targets if t.name in names))


@contextmanager
def assembled(
    config: ControllerConfig, orders: Orders, reach: Reach, log: FilteringBoundLogger
) -> Iterator[Service]:
    """The controller, ready to connect and run; the audit log is closed with the block.

    Raises:
        ConfigError: a secret cannot be read, the audit log cannot be used, a target may not act,
            another controller acts on it, or the page's address is taken.
    """
    if missing := missing_files(config):
        raise ConfigError("\n".join(missing))
    services: list[Service] = []

    def running() -> list[str]:
        return [name for service in services for name in service.still_running()]

    store = AuditStore.open(config.audit)
    try:
        with ExitStack() as ends:
            allowed: Mapping[str, RunIdentity] = {}
            holds: Mapping[str, Hold] = {}
            if orders.mode == "active":
                holds = ends.enter_context(held(store, config.targets, log, running))
                allowed = allow(store, config.targets, orders.without_evidence)
            services.append(service := _service(config, orders, reach, log, store, allowed, holds))
            ends.callback(service.close)
            yield service
    finally:
        store.close()


def allow(
    store: AuditStore, targets: Sequence[TargetConfig], without_evidence: str | None
) -> dict[str, RunIdentity]:
    """Ask whether each target's policy may act, or record that someone lets it without evidence.

    Returns:
        Target -> what may act on it: this and nothing else.

    Raises:
        ConfigError: one line for each target that may not.
    """
    from tuner.control.promote import check_active, record_without_evidence

    refused, allowed = [], {}
    for target in targets:
        allowed[target.name] = identity = identity_of(target, "active")
        if without_evidence is not None:
            record_without_evidence(store, target, identity, without_evidence)
            continue
        try:
            check_active(store, target, identity)
        except ConfigError as error:
            refused.append(str(error))
    if refused:
        raise ConfigError("\n".join(refused))
    return allowed


def _service(
    config: ControllerConfig,
    orders: Orders,
    reach: Reach,
    log: FilteringBoundLogger,
    store: AuditStore,
    allowed: Mapping[str, RunIdentity],
    holds: Mapping[str, Hold],
) -> Service:
    stop, metrics = threading.Event(), ControllerMetrics()
    loops = []
    for target in config.targets:
        hold = holds.get(target.name)
        plan = plan_of(target, orders.mode, reach, store, clock_of(target, stop), log, hold=hold)
        if plan.identity != allowed.get(target.name, plan.identity):
            raise _replaced(target)
        loops.append(TargetLoop(plan, metrics, log))
    page = _page(config, metrics, [loop.pulse for loop in loops])
    log.info("page", url=page.url)
    return Service(loops, stop, page=page, log=log, ticks=orders.ticks)


def plan_of(
    target: TargetConfig,
    mode: Mode,
    reach: Reach,
    store: AuditStore,
    clock: Clock,
    log: FilteringBoundLogger,
    *,
    hold: Hold | None = None,
) -> TargetPlan:
    """All that the loop of one target needs, from its configuration.

    Raises:
        ConfigError: the policy's bundle was replaced while it was read.
    """
    knobs, tick_s = knobs_allowed(target), target.tick_s
    identity = identity_of(target, "shadow")
    shadow = TargetPlan(
        name=target.name,
        mode="shadow",
        identity=identity,
        every_s=tick_s,
        clock=clock,
        policy=build_policy(target.policy, target.policy_options, knobs, tick_s=tick_s),
        fallback=build_policy(target.fallback, target.fallback_options, knobs, tick_s=tick_s),
        guardrails=guardrails_with(max_age_s=target.max_age_s, steps=target.steps),
        history=resumed(store, target, identity, knobs, clock.now_s(), log),
        audit=store.writer(target.name, identity=identity),
        connect=partial(reach.connect, target, clock, False),
        writes=False,
        speed=1.0 if target.sandbox is None else target.sandbox.speed,
    )
    # Digest and policy are read one after the other: both must be of the same bundle.
    if identity_of(target, "shadow") != identity:
        raise _replaced(target)
    if mode == "shadow":
        return shadow
    identity = identity_of(target, "active")
    return replace(
        shadow,
        mode="active",
        identity=identity,
        audit=store.writer(target.name, identity=identity, claim=hold.claim if hold else None),
        hold=hold,
        connect=partial(reach.connect, target, clock, True),
        writes=True,
        demoted=partial(demotion, store, target.name),
        in_shadow=replace(shadow, connect=partial(reach.demoted, target, clock)),
    )


def _replaced(target: TargetConfig) -> ConfigError:
    return ConfigError(
        f"target '{target.name}': the bundle {target.policy} was replaced while the controller "
        "started; start it again"
    )


def demotion(store: AuditStore, target: str) -> str:
    """Who demoted a target and why, if that is the latest word on it; else empty."""
    latest = store.promotion(target)
    if latest is None or latest.kind is not PromotionKind.DEMOTED:
        return ""
    return f"{latest.who} demoted it" + (f" ({latest.reason})" if latest.reason else "")


def clock_of(target: TargetConfig, stop: threading.Event) -> Clock:
    """The clock of a target: the sandbox's own, else the wall's; `stop` wakes its sleeper."""
    if target.sandbox is None:
        return WallClock(stop)
    return ScaledClock(target.sandbox.speed, target.sandbox.epoch_s, stop)


def resumed(
    store: AuditStore,
    target: TargetConfig,
    identity: RunIdentity,
    knobs: KnobSpace,
    now_s: float,
    log: FilteringBoundLogger,
) -> History:
    """The history that a restarted controller goes on from.

    Older than a history is long, records say nothing about now; from the future, they are of
    another clock, such as that of an earlier sandbox. Where they cannot be understood, perhaps
    because a newer version wrote them, the controller begins as a new one does.
    """
    try:
        history = store.history(
            target.name,
            knobs,
            policy_digest=identity.policy_digest,
            config_digest=identity.config_digest,
            after_s=now_s - LENGTH * target.tick_s,
        )
    except PermanentError as error:
        log.warning("history dropped", target=target.name, why=str(error))
        return History(knobs)
    if history.observations and history.now.at_s > now_s:
        log.warning(
            "history dropped",
            target=target.name,
            why="its newest record is from the future",
            now_s=now_s,
        )
        return History(knobs)
    if history.observations:
        age_s = round(now_s - history.now.at_s, 1)
        log.info("resumed", target=target.name, decisions=len(history.decisions), age_s=age_s)
    return history


def _page(
    config: ControllerConfig, metrics: ControllerMetrics, pulses: Sequence[Pulse]
) -> ControllerPage:
    return ControllerPage(
        config.server.host,
        config.server.port,
        registry=metrics.registry,
        stuck=lambda: stuck(pulses, time.monotonic()),
        not_ready=lambda: not_ready(pulses),
    )
