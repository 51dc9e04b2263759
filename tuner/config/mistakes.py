"""What is wrong with a tuner.yaml whose types are right: ranges, names, what contradicts.

Each sentence begins with the path of the key it is about.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from difflib import get_close_matches
from urllib.parse import urlsplit

from policies import build_policy
from tuner.config import (
    ControllerConfig,
    EngineConfig,
    KubernetesConfig,
    ProcessesConfig,
    PromotionConfig,
    TargetConfig,
)
from tuner.core.errors import ConfigError, InputError
from tuner.core.knobs import KnobSpace
from tuner.data import load_profile
from tuner.engines import ENGINES
from tuner.knobs import KNOBS, knob_space

READ_ONLY_ENGINES = ("tensorrt-llm", "lmdeploy")
"""Nothing of them can be turned while they run: only the number of replicas moves."""
THREADS_ENGINES = ("triton",)
"""Engines that change their number of workers while they run; the others restart for it."""
LEAST_TICK_S = 0.1
"""A rule remembers its windows tick by tick: minutes of much shorter ticks fill the memory."""
LIVES = 2
"""Ticks that a hot value must outlive: one that comes late, and the one after it."""
LEASE_TICKS = 3
"""Ticks that a Lease must outlive: it is renewed once in each, and one may come late."""
AUDIT_SCHEMES = ("sqlite", "postgresql")
MOST_PORTS = 65_535
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
"""Names of targets: they stand in metric labels, file names and addresses."""
_PART = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
NAMESPACE = re.compile(rf"(?=.{{1,63}}\Z){_PART}")
DEPLOYMENT = re.compile(rf"(?=.{{1,253}}\Z){_PART}(\.{_PART})*")
"""A DNS label and a DNS subdomain of RFC 1123, as Kubernetes checks them
(apimachinery/pkg/util/validation/validation.go)."""
METRIC = re.compile(r"[A-Za-z_:][A-Za-z0-9_:]*")
LABEL = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def knobs_allowed(target: TargetConfig) -> KnobSpace:
    """Every knob with the range that this target allows.

    Raises:
        ConfigError: a range is empty, or belongs to no knob.
    """
    unknown = [name for name in target.knobs if name not in KNOBS]
    if unknown:
        raise ConfigError(f"knobs.{unknown[0]} is not a known knob; {_nearest(unknown[0], KNOBS)}")
    return knob_space(**{name: (r.low, r.high) for name, r in target.knobs.items()})


def config_mistakes(config: ControllerConfig) -> Iterator[str]:
    """One sentence for each mistake of the whole file."""
    if not config.targets:
        yield "targets is empty; expected at least one"
    names = [target.name for target in config.targets]
    for index, name in enumerate(names):
        if name in names[:index]:
            first = names.index(name)
            yield f"targets[{index}].name is '{name}', as of targets[{first}]; names are unique"
    for index, target in enumerate(config.targets):
        yield from (f"targets[{index}].{sentence}" for sentence in target_mistakes(target))
    if not 0 <= config.server.port <= MOST_PORTS:
        yield f"server.port is {config.server.port}; expected 0 to {MOST_PORTS}"
    if not config.server.host:
        yield "server.host is empty; expected an address to listen on, such as 127.0.0.1"
    scheme = config.audit.partition("://")[0].partition("+")[0]
    if "://" not in config.audit or scheme not in AUDIT_SCHEMES:
        # The address is not repeated: it may hold a password.
        yield (
            f"audit begins with '{scheme[:20]}'; expected a SQLAlchemy URL of "
            f"{' or '.join(AUDIT_SCHEMES)}, such as sqlite:///tuner-audit.db"
        )


def target_mistakes(target: TargetConfig) -> Iterator[str]:
    """One sentence for each mistake of one target, paths from the target on."""
    if not NAME.fullmatch(target.name):
        yield (
            f"name is {target.name!r}; expected 1 to 63 letters, digits, dots, dashes and "
            "underscores, beginning with a letter or digit"
        )
    yield from _engine(target.engine)
    yield from _one_of(target, "prometheus", "scrape")
    yield from _one_of(target, "kubernetes", "processes", "sandbox")
    yield from _times(target)
    yield from _sources(target)
    yield from _places(target)
    yield from _knobs(target)
    yield from _moves(target)
    yield from _policies(target)
    yield from _promotion(target.promotion)


def _engine(engine: EngineConfig) -> Iterator[str]:
    if engine.kind not in ENGINES:
        yield f"engine.kind is '{engine.kind}'; {_nearest(engine.kind, ENGINES)}"
    yield from _above_0("engine", timeout_s=engine.timeout_s, ttl_s=engine.ttl_s)
    yield from _at_least(1, "engine", concurrency=engine.concurrency)


def _one_of(target: TargetConfig, *names: str) -> Iterator[str]:
    given = [name for name in names if getattr(target, name) is not None]
    if not given:
        yield f"{names[0]} is missing, and so is {_or(names[1:])}; expected exactly one of them"
    elif len(given) > 1:
        yield f"{given[0]} stands beside {' and '.join(given[1:])}; expected exactly one of them"


def _times(target: TargetConfig) -> Iterator[str]:
    yield from _at_least(LEAST_TICK_S, "", tick_s=target.tick_s)
    yield from _above_0(
        "",
        window_s=target.window_s,
        max_age_s=target.max_age_s,
        **{"slo.ttft_s": target.slo.ttft_s, "slo.tpot_s": target.slo.tpot_s},
    )
    if target.window_s < target.tick_s:
        yield (
            f"window_s is {target.window_s:g}; expected at least tick_s ({target.tick_s:g}), or "
            "what happens between two windows is never seen"
        )
    if 0 < target.engine.ttl_s <= LIVES * target.tick_s:
        yield (
            f"engine.ttl_s is {target.engine.ttl_s:g}; expected above {LIVES} x tick_s "
            f"({LIVES * target.tick_s:g}), or a hot value ends before it is renewed"
        )


def _sources(target: TargetConfig) -> Iterator[str]:
    if (source := target.prometheus) is not None:
        yield from _url("prometheus.url", source.url)
        yield from _labels("prometheus.selector", source.selector)
        if not LABEL.fullmatch(source.replica_label):
            yield f"prometheus.replica_label is {source.replica_label!r}; expected a label's name"
        yield from _above_0("prometheus", timeout_s=source.timeout_s)
    if (pages := target.scrape) is not None:
        yield from _above_0("scrape", timeout_s=pages.timeout_s)
        yield from _at_least(1, "scrape", concurrency=pages.concurrency)
    yield from _traffic(target)
    yield from _gpu(target)
    if target.business is not None:
        if target.prometheus is None:
            yield "business needs prometheus: its query is PromQL; add it, or leave business out"
        if not target.business.query.strip():
            yield "business.query is empty; expected PromQL that gives one number"
    if (probe := target.probe) is not None:
        yield from _above_0("probe", every_s=probe.every_s, timeout_s=probe.timeout_s)
        yield from _at_least(1, "probe", output_tokens=probe.output_tokens)


def _traffic(target: TargetConfig) -> Iterator[str]:
    traffic = target.traffic
    if traffic is None:
        return
    for name, metric in (("arrivals", traffic.arrivals), ("in_flight", traffic.in_flight)):
        if metric is not None and not METRIC.fullmatch(metric):
            yield f"traffic.{name} is {metric!r}; expected the name of a metric"
    yield from _labels("traffic.selector", traffic.selector)
    if traffic.url is not None:
        yield from _url("traffic.url", traffic.url, path_too=True)
    if target.scrape is not None and traffic.url is None:
        yield "traffic.url is missing; with scrape, name the page that shows these metrics"
    if target.prometheus is not None and traffic.url is not None:
        yield "traffic.url stands beside prometheus, which has these metrics; leave url out"


def _gpu(target: TargetConfig) -> Iterator[str]:
    gpu = target.gpu
    if gpu is None:
        return
    yield from _labels("gpu.selector", gpu.selector)
    if gpu.source == "dcgm":
        if target.prometheus is None:
            yield "gpu.source is dcgm, which is read from Prometheus; add prometheus, or take nvml"
        if gpu.indices:
            yield "gpu.indices are for nvml; with dcgm, single the cards out by gpu.selector"
    elif gpu.selector:
        yield "gpu.selector is for dcgm; with nvml, name the cards in gpu.indices"
    if any(card < 0 for card in gpu.indices) or len(set(gpu.indices)) < len(gpu.indices):
        yield f"gpu.indices is {list(gpu.indices)}; expected numbers of cards from 0, each once"


def _places(target: TargetConfig) -> Iterator[str]:
    if target.kubernetes is not None:
        yield from _kubernetes(target.kubernetes)
        yield from _lease(target.kubernetes, target.tick_s)
    if target.processes is not None:
        yield from _processes(target.processes)
    if (sandbox := target.sandbox) is not None:
        yield from _url("sandbox.url", sandbox.url)
        yield from _above_0("sandbox", speed=sandbox.speed)


def _kubernetes(place: KubernetesConfig) -> Iterator[str]:
    for mistake in (namespace_mistake(place.namespace), deployment_mistake(place.deployment)):
        if mistake:
            yield f"kubernetes.{mistake}"
    yield from _port("kubernetes.serving_port", place.serving_port)
    for name in ("control_port", "metrics_port"):
        if (port := getattr(place, name)) is not None:
            yield from _port(f"kubernetes.{name}", port)
    yield from _above_0("kubernetes", timeout_s=place.timeout_s)


def namespace_mistake(name: str) -> str:
    """What is wrong with the name of a namespace; empty where nothing is."""
    if NAMESPACE.fullmatch(name):
        return ""
    return (
        f"namespace is {name!r}; expected 1 to 63 lower-case letters, digits and dashes, beginning "
        "and ending with a letter or digit"
    )


def deployment_mistake(name: str) -> str:
    """What is wrong with the name of a Deployment; empty where nothing is."""
    if DEPLOYMENT.fullmatch(name):
        return ""
    return (
        f"deployment is {name!r}; expected 1 to 253 lower-case letters, digits, dashes and dots, "
        "each part beginning and ending with a letter or digit"
    )


def _lease(place: KubernetesConfig, tick_s: float) -> Iterator[str]:
    if place.lease is not None and place.lease_s < LEASE_TICKS * tick_s:
        yield (
            f"kubernetes.lease_s is {place.lease_s:g}; expected {LEASE_TICKS * tick_s:g} or more, "
            f"{LEASE_TICKS} ticks, or another controller takes the Lease between two of them"
        )


def _processes(place: ProcessesConfig) -> Iterator[str]:
    if not place.endpoints and not place.command:
        yield "processes.endpoints is empty, and there is no command to start an engine; name one"
    names = [endpoint.name for endpoint in place.endpoints]
    for index, endpoint in enumerate(place.endpoints):
        path = f"processes.endpoints[{index}]"
        if not endpoint.name:
            yield f"{path}.name is empty; expected the name of the replica"
        elif endpoint.name in names[:index]:
            yield f"{path}.name is '{endpoint.name}' for the second time; names are unique"
        yield from _url(f"{path}.url", endpoint.url)
        if endpoint.control_url is not None:
            yield from _url(f"{path}.control_url", endpoint.control_url, path_too=True)
        if endpoint.metrics_url:
            yield from _url(f"{path}.metrics_url", endpoint.metrics_url)
    if place.command and not any("{port}" in word for word in place.command):
        yield "processes.command has no {port}; an engine must be told where to listen"
    yield from _above_0(
        "processes",
        start_timeout_s=place.start_timeout_s,
        drain_timeout_s=place.drain_timeout_s,
    )


def _knobs(target: TargetConfig) -> Iterator[str]:
    for name, allowed in target.knobs.items():
        if name not in KNOBS:
            yield f"knobs.{name} is not a known knob; {_nearest(name, KNOBS)}"
            continue
        if allowed.low > allowed.high:
            yield f"knobs.{name}.low is {allowed.low}, above high ({allowed.high})"
        if allowed.low < KNOBS[name].low:
            yield f"knobs.{name}.low is {allowed.low}; expected at least {KNOBS[name].low}"
    for name, step in target.steps.items():
        if name not in KNOBS:
            yield f"steps.{name} is not a known knob; {_nearest(name, KNOBS)}"
        for side, width in vars(step).items():
            if width is not None and width < 0:
                yield f"steps.{name}.{side} is {width}; expected at least 0"


def _moves(target: TargetConfig) -> Iterator[str]:
    for index, name in enumerate(target.move):
        path = f"move[{index}]"
        if name not in KNOBS:
            yield f"{path} is '{name}', which is no knob; {_nearest(name, KNOBS)}"
        elif name in target.move[:index]:
            yield f"{path} is '{name}' for the second time"
        elif why := _not_movable(target, name):
            yield f"{path} is '{name}', {why}"


def _not_movable(target: TargetConfig, name: str) -> str:
    """Why a knob cannot be moved on this target; empty where it can."""
    kind, kubernetes, processes = target.engine.kind, target.kubernetes, target.processes
    if name == "replicas":
        if processes is not None and not processes.command:
            return "but processes.command is empty: there is nothing to start a replica with"
        return ""
    if name == "warmup_requests":
        if kubernetes is not None and kubernetes.warmup_configmap is None:
            return "but kubernetes.warmup_configmap is not set: there is nowhere to write it"
        return ""
    if kind in READ_ONLY_ENGINES:
        return f"but {kind} can only be watched; move replicas, or leave it out"
    if name == "threads" and kind not in THREADS_ENGINES:
        return f"which {kind} reads at its start; expected replicas or a knob that is hot"
    if kubernetes is not None and kubernetes.control_port is None:
        return "but kubernetes.control_port is not set: nothing is hot without it"
    return ""


def _policies(target: TargetConfig) -> Iterator[str]:
    """Policy and fallback are really built: a bundle that does not fit is told here."""
    try:
        knobs = knobs_allowed(target)
    except ConfigError:
        return  # told where the ranges are checked
    if target.tick_s < LEAST_TICK_S:
        return
    for key, name, options in (
        ("policy", target.policy, target.policy_options),
        ("fallback", target.fallback, target.fallback_options),
    ):
        try:
            build_policy(name, options, knobs, tick_s=target.tick_s)
        except InputError as error:
            yield f"{key}: {error}"


def _promotion(promotion: PromotionConfig) -> Iterator[str]:
    yield from _at_least(
        0,
        "promotion",
        min_hours=promotion.min_hours,
        max_trips_per_day=promotion.max_trips_per_day,
    )
    yield from _at_least(1, "promotion", min_load_span=promotion.min_load_span)
    yield from _at_least(2, "promotion", seeds=promotion.seeds)
    for name in ("max_fault_share", "max_attainment_loss"):
        share = getattr(promotion, name)
        if not 0 <= share <= 1:
            yield f"promotion.{name} is {share:g}; expected a share, 0 to 1"
    if not -1 <= promotion.min_gain < 1:
        yield f"promotion.min_gain is {promotion.min_gain:g}; expected a share, -1 to below 1"
    if promotion.profile is not None:
        try:
            load_profile(promotion.profile)
        except InputError as error:
            yield f"promotion.profile: {error}"


def _url(path: str, url: str, *, path_too: bool = False) -> Iterator[str]:
    expected = "expected http:// or https:// with a host, such as http://127.0.0.1:8000"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        yield f"{path} is no address that can be read; {expected}"
        return
    if parts.username is not None or parts.password is not None:
        yield f"{path} holds a user or password; keep them out of this file, take a token_file"
    elif parts.scheme not in ("http", "https") or not host:
        yield f"{path} is {url!r}; {expected}"
    elif port == 0 or parts.query or parts.fragment:
        yield f"{path} is {url!r}; expected scheme, host and port, and nothing after them"
    elif parts.path.strip("/") and not path_too:
        yield f"{path} is {url!r}; expected no path after host and port"


def _labels(path: str, labels: Mapping[str, str]) -> Iterator[str]:
    for name in labels:
        if not LABEL.fullmatch(name):
            yield f"{path}.{name} is no name of a label; expected letters, digits, underscores"


def _port(path: str, port: int) -> Iterator[str]:
    if not 1 <= port <= MOST_PORTS:
        yield f"{path} is {port}; expected 1 to {MOST_PORTS}"


def _above_0(section: str, **values: float) -> Iterator[str]:
    for name, value in values.items():
        if not value > 0:
            yield f"{_path(section, name)} is {value:g}; expected above 0"


def _at_least(least: float, section: str, **values: float) -> Iterator[str]:
    for name, value in values.items():
        if value < least:
            yield f"{_path(section, name)} is {value:g}; expected at least {least:g}"


def _path(section: str, name: str) -> str:
    return f"{section}.{name}" if section else name


def _nearest(name: str, known: Collection[str]) -> str:
    near = get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}"


def _or(names: Iterable[str]) -> str:
    return " or ".join(names)
