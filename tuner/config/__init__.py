"""`tuner.yaml`: what to steer, how to see it, how to reach it, and what it takes to be trusted.

The string under each field is its documentation: `tuner config explain` prints it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from tuner.core.slo import Slo
from tuner.guardrails.max_delta import Step

SCHEMA = "tuner.config/1"

_STRICT: Mapping[str, object] = {"extra": "forbid", "use_attribute_docstrings": True}


@dataclass(frozen=True)
class KnobRange:
    """Range of one knob on this target."""

    __pydantic_config__: ClassVar[Mapping[str, object]] = _STRICT

    low: int
    """Smallest value that may ever be asked for."""
    high: int
    """Largest value that may ever be asked for."""


@dataclass(frozen=True)
class EngineConfig:
    """The engine in each replica."""

    __pydantic_config__: ClassVar[Mapping[str, object]] = _STRICT

    kind: str
    """vllm, sglang, triton; tensorrt-llm and lmdeploy can only be watched."""
    model: str = ""
    """Served model; empty takes the first one that the engine names."""
    token_file: str | None = None
    """File with the bearer token of the run-time configuration port (a mounted Secret)."""
    api_key_file: str | None = None
    """File with the key of the serving port, if it has one."""
    timeout_s: float = 10.0
    """Longest wait for one control call, s. An engine short of CPU takes seconds to answer."""
    ttl_s: float = 180.0
    """Life of a hot value that is not renewed, s: the engine goes back by itself when the
    controller is gone. Renewed at every tick."""
    concurrency: int = 16
    """Most replicas talked to at once."""


@dataclass(frozen=True)
class PrometheusConfig:
    """Metrics from a Prometheus server."""

    __pydantic_config__: ClassVar[Mapping[str, object]] = _STRICT

    url: str
    """Base address, `http://prometheus.monitoring:9090`."""
    selector: Mapping[str, str] = field(default_factory=dict)
    """Labels that single out this target's engine series: `{namespace: llm, app: r1}`."""
    replica_label: str = "pod"
    """Label that holds the replica's name; `instance` where replicas are named HOST:PORT."""
    timeout_s: float = 5.0
    """Longest wait for one query, s."""
    token_file: str | None = None
    """File with a bearer token, if the server wants one."""


@dataclass(frozen=True)
class ScrapeConfig:
    """Metrics straight from the engines' pages, for users without Prometheus."""

    __pydantic_config__: ClassVar[Mapping[str, object]] = _STRICT

    timeout_s: float = 2.0
    """Longest wait for one page, s."""
    concurrency: int = 16
    """Most pages read at once."""


@dataclass(frozen=True)
class TrafficConfig:
    """Requests as the gateway or the client side sees them; without it arrivals are estimated."""

    __pydantic_config__: ClassVar[Mapping[str, object]] = _STRICT

    arrivals: str
    """Counter of requests sent to this target, each counted when it is sent."""
    in_flight: str | None = None
    """Gauge of requests sent and not yet answered."""
    selector: Mapping[str, str] = field(default_factory=dict)
    """Labels that single out this target."""
    url: str | None = None
    """Metrics page to read it from; needed without Prometheus."""


@dataclass(frozen=True)
class GpuConfig:
    """Where GPU utilisation comes from."""

    __pydantic_config__: ClassVar[Mapping[str, object]] = _STRICT

    source: Literal["dcgm", "nvml"]
    """dcgm: the exporter's series in Prometheus; nvml: this node's own cards."""
    selector: Mapping[str, str] = field(default_factory=dict)
    """Labels that single out this target's GPUs (dcgm)."""
    indices: tuple[int, ...] = ()
    """Cards that belong to the target (nvml); empty takes all."""


@dataclass(frozen=True)
class BusinessConfig:
    """A signal of your own."""

    __pydantic_config__: ClassVar[Mapping[str, object]] = _STRICT

    query: str
    """PromQL that gives one number."""


@dataclass(frozen=True)
class ProbeConfig:
    """One small real request on a period, as a second opinion on latency and life."""

    __pydantic_config__: ClassVar[Mapping[str, object]] = _STRICT

    every_s: float = 60.0
    """Seconds between two probes."""
    output_tokens: int = 4
    """Tokens that a probe asks for."""
    timeout_s: float = 30.0
    """A probe that takes longer has failed."""


@dataclass(frozen=True)
class KubernetesConfig:
    """A Deployment in a cluster."""

    __pydantic_config__: ClassVar[Mapping[str, object]] = _STRICT

    namespace: str
    """Namespace of the Deployment."""
    deployment: str
    """Name of the Deployment whose pods are the replicas."""
    authority: Literal["direct"] = "direct"
    """Who writes replicas: we, through the scale sub-resource. Refused where an HPA or a
    ScaledObject targets the Deployment."""
    context: str | None = None
    """Context of the kubeconfig; inside a cluster the service account is used."""
    serving_port: int = 8000
    """Port of each pod's API and health."""
    metrics_port: int | None = None
    """Port of each pod's metrics page, such as Triton's 8002; none: the serving port."""
    control_port: int | None = None
    """Port of each pod's run-time configuration; none: nothing is hot."""
    warmup_configmap: str | None = None
    """ConfigMap whose key `warmup_requests` the in-pod warm-up script reads; none: no warm-up."""
    lease: str | None = None
    """Lease that only the writing controller holds; it must exist. None: nothing but the
    resourceVersion of each write keeps two controllers apart."""
    lease_s: float = 60.0
    """How long the Lease lasts without renewal, s; at least three ticks."""
    timeout_s: float = 3.0
    """Longest wait for one call to the API server, s."""


@dataclass(frozen=True)
class EndpointConfig:
    """One engine that someone else started."""

    __pydantic_config__: ClassVar[Mapping[str, object]] = _STRICT

    name: str
    """Name of the replica; with Prometheus, what its replica label holds."""
    url: str
    """Scheme, host and port of the API and health."""
    control_url: str | None = None
    """Run-time configuration; the serving address if it answers there."""
    metrics_url: str = ""
    """Scheme, host and port of the metrics page; empty: the serving address."""


@dataclass(frozen=True)
class ProcessesConfig:
    """Engine processes on this host: some that run already, and more that may be started."""

    __pydantic_config__: ClassVar[Mapping[str, object]] = _STRICT

    endpoints: tuple[EndpointConfig, ...]
    """Engines that run already. They are steered, and never stopped."""
    command: tuple[str, ...] = ()
    """Starts one more engine; `{port}`, `{control_port}` and `{metrics_port}` stand for its ports.
    Empty: the number of replicas cannot be moved."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Added to the environment of what is started, with its ports as above."""
    state_dir: str = "tuner-processes"
    """Where process numbers and logs are kept, so that a restarted controller finds its own."""
    endpoints_file: str | None = None
    """JSON list of the addresses that take traffic, kept up to date for whatever routes it."""
    start_timeout_s: float = 600.0
    """An engine that is not ready by then is stopped and counts as failed."""
    warmup_timeout_s: float = 300.0
    """A new engine takes traffic by then, however many warm-up requests it has answered."""
    drain_timeout_s: float = 120.0
    """A leaving engine that still has requests by then is stopped all the same."""


@dataclass(frozen=True)
class SandboxConfig:
    """A simulated cluster made by `tuner sandbox`."""

    __pydantic_config__: ClassVar[Mapping[str, object]] = _STRICT

    url: str
    """Address of the sandbox."""
    speed: float = 1.0
    """Simulated seconds per second: the controller's clock runs as fast."""
    epoch_s: float = 0.0
    """Unix time at which the sandbox began: there both clocks show the same."""


@dataclass(frozen=True)
class PromotionConfig:
    """What the evidence must show before the controller may act."""

    __pydantic_config__: ClassVar[Mapping[str, object]] = _STRICT

    profile: str | None = None
    """Serving profile to replay the logged load in; without one there is no predicted gain."""
    min_hours: float = 48.0
    """Hours watched in shadow, gaps not counted."""
    max_trips_per_day: float = 4.0
    """Ticks a day on which a guardrail took the decision from the policy, as episodes."""
    max_fault_share: float = 0.05
    """Share (0-1) of ticks with a fault of reading."""
    min_load_span: float = 1.5
    """Highest over lowest tenth-percentile load seen: a flat day proves little."""
    min_gain: float = 0.0
    """Lower end of the 95 % interval of the predicted gain in GPU hours, share of the rule's."""
    max_attainment_loss: float = 0.005
    """Most that predicted SLO attainment may lie below the rule's, 0-1."""
    seeds: int = 5
    """Replays of the logged load."""


@dataclass(frozen=True)
class TargetConfig:
    """One pool of replicas to steer."""

    __pydantic_config__: ClassVar[Mapping[str, object]] = _STRICT

    name: str
    """Name in logs, metrics and the audit log."""
    policy: str
    """hpa, static, or the folder of a trained bundle."""
    engine: EngineConfig
    """The engine in each replica."""
    policy_options: Mapping[str, float | int | str] = field(default_factory=dict)
    """Parameters of the policy, as `--set` of `tuner simulate`."""
    fallback: str = "hpa"
    """The rule that decides where a guardrail trips: yours of today."""
    fallback_options: Mapping[str, float | int | str] = field(default_factory=dict)
    """Parameters of the fallback: `{target: 1500}`."""
    prometheus: PrometheusConfig | None = None
    """This or `scrape`."""
    scrape: ScrapeConfig | None = None
    """This or `prometheus`."""
    kubernetes: KubernetesConfig | None = None
    """This, `processes` or `sandbox`."""
    processes: ProcessesConfig | None = None
    """This, `kubernetes` or `sandbox`."""
    sandbox: SandboxConfig | None = None
    """This, `kubernetes` or `processes`."""
    traffic: TrafficConfig | None = None
    """Requests as the gateway sees them; without it arrivals are estimated."""
    gpu: GpuConfig | None = None
    """Where GPU utilisation comes from; without it there is none."""
    business: BusinessConfig | None = None
    """A signal of your own, beside the others."""
    probe: ProbeConfig | None = None
    """Small real requests as a second opinion; without it none are sent."""
    tick_s: float = 15.0
    """Seconds between two decisions."""
    window_s: float = 60.0
    """Seconds that rates and percentiles cover; at least four scrapes."""
    max_age_s: float = 60.0
    """Older samples than this are not acted on."""
    knobs: Mapping[str, KnobRange] = field(default_factory=dict)
    """Ranges; a knob that is not named keeps the range of its file."""
    move: tuple[str, ...] = ("replicas",)
    """Knobs that may be written. The others are watched."""
    steps: Mapping[str, Step] = field(default_factory=dict)
    """Largest step per tick, by knob; see `max_delta`."""
    slo: Slo = field(default_factory=Slo)
    """Objectives that each request meets or misses."""
    promotion: PromotionConfig = field(default_factory=PromotionConfig)
    """What the evidence must show before the controller may act here."""


@dataclass(frozen=True)
class ServerConfig:
    """The controller's own page: /metrics, /healthz, /readyz."""

    __pydantic_config__: ClassVar[Mapping[str, object]] = _STRICT

    host: str = "127.0.0.1"
    """Address to listen on; `0.0.0.0` in a pod."""
    port: int = 9109
    """0 takes a free one."""


@dataclass(frozen=True)
class ControllerConfig:
    """The whole file."""

    __pydantic_config__: ClassVar[Mapping[str, object]] = _STRICT

    schema: Literal["tuner.config/1"]
    """Version of this file's form."""
    targets: tuple[TargetConfig, ...]
    """Pools of replicas, each steered by itself."""
    audit: str = "sqlite:///tuner-audit.db"
    """SQLAlchemy URL of the audit log; PostgreSQL where the disk does not outlive the pod."""
    server: ServerConfig = field(default_factory=ServerConfig)
    """The controller's own page."""
