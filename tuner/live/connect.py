"""From a target's section of `tuner.yaml` to a cluster that can be observed, and perhaps moved."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from difflib import get_close_matches
from pathlib import Path

from tuner.config import TargetConfig
from tuner.config.mistakes import knobs_allowed
from tuner.core.clock import Clock
from tuner.core.errors import ConfigError
from tuner.engines.engine import Engine
from tuner.live.cluster import LiveCluster
from tuner.live.pool import Pool
from tuner.live.shadow import Shadow


def connect(
    target: TargetConfig, clock: Clock, *, writes: bool, demoted: bool = False
) -> LiveCluster | Shadow:
    """Everything that a target needs, built and checked.

    Args:
        clock: of the observations; a sandbox has one of its own speed.
        writes: False gives a shadow, which cannot write.
        demoted: a shadow that follows on an active controller, with its rights.

    Raises:
        ConfigError: the section contradicts itself, a secret cannot be read, or the orchestrator
            does not allow what the controller is about to do.
        FaultError: the orchestrator does not answer.
    """
    # Imported here: what a target does not use is not loaded, and the start is quicker.
    from tuner.live.metrics.collector import connect_collector

    _check_sections(target)
    knobs = knobs_allowed(target)
    with ExitStack() as opened:
        engine, close_engine = engine_of(target)
        opened.callback(close_engine)
        pool = pool_of(target, engine, clock, demoted=demoted)
        opened.callback(pool.close)
        pool.check(writes=writes)
        collector = connect_collector(target, engine.metrics, clock, engine=engine)
        # From here on all of it is the cluster's to close.
        opened.pop_all()
    cluster = LiveCluster(
        pool,
        engine,
        collector,
        knobs,
        clock,
        move=target.move,
        ttl_s=target.engine.ttl_s,
        concurrency=target.engine.concurrency,
        window_s=target.window_s,
        call_s=target.engine.timeout_s,
        closers=(close_engine,),
    )
    return cluster if writes else Shadow(cluster, move=target.move)


def _check_sections(target: TargetConfig) -> None:
    """Exactly one source of measurements and exactly one orchestrator.

    Raises:
        ConfigError: none, or several.
    """
    _one_of(target, "prometheus", "scrape")
    _one_of(target, "kubernetes", "processes", "sandbox")


def _one_of(target: TargetConfig, *names: str) -> None:
    given = [name for name in names if getattr(target, name) is not None]
    if len(given) != 1:
        found = " and ".join(given) or "none of them"
        raise ConfigError(f"{target.name}: expected one of {', '.join(names)}; found {found}")


def engine_of(target: TargetConfig) -> tuple[Engine, Callable[[], None]]:
    """The adapter, and what closes its connections.

    Raises:
        ConfigError: there is no such engine, or a secret cannot be read.
    """
    from tuner.engines import ENGINES, EngineHttp

    config = target.engine
    if config.kind not in ENGINES:
        near = get_close_matches(config.kind, ENGINES, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known engines: {', '.join(ENGINES)}"
        raise ConfigError(f"{target.name}: engine.kind '{config.kind}' is unknown; {hint}")
    http = EngineHttp(
        timeout_s=config.timeout_s,
        token=_secret(target, "token_file", config.token_file),
        api_key=_secret(target, "api_key_file", config.api_key_file),
    )
    return ENGINES[config.kind](http), http.close


def _secret(target: TargetConfig, key: str, path: str | None) -> str | None:
    """What the file holds, without the white space around it; None where no file is named.

    Raises:
        ConfigError: it cannot be read, or is empty; the message holds the path and never the text.
    """
    if path is None:
        return None
    place = f"{target.name}: engine.{key}: {path}"
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"{place} cannot be read ({error.strerror}); mount it") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{place} is not text; expected one secret in it") from None
    if not text:
        raise ConfigError(f"{place} is empty; expected one secret in it")
    return text


def pool_of(target: TargetConfig, engine: Engine, clock: Clock, *, demoted: bool = False) -> Pool:
    """Who runs the target's replicas; nothing is asked of it yet.

    Raises:
        ConfigError: the section cannot be used.
    """
    if target.kubernetes is not None:
        from tuner.live.kubernetes.pool import KubernetesPool

        model = target.engine.model
        return KubernetesPool(target.kubernetes, clock=clock, model=model, demoted=demoted)
    if target.processes is not None:
        from tuner.live.processes.pool import ProcessPool

        model = target.engine.model
        return ProcessPool(target.processes, engine, clock=clock, model=model)
    if target.sandbox is not None:
        from tuner.live.sandbox import SandboxPool

        return SandboxPool(target.sandbox, timeout_s=target.engine.timeout_s)
    raise ConfigError(f"{target.name}: expected one of kubernetes, processes, sandbox")
