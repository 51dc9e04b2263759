"""A serving profile: how fast one replica of an engine, model and GPU serves.

The values come from measurements or a calibration; `origin` and `error` say which and how far off.
Files are read and checked by `tuner.data.profiles`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

SCHEMA: Literal["tuner.profile/1"] = "tuner.profile/1"


@dataclass(frozen=True)
class KvCache:
    """Paged KV cache of one replica."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    block_tokens: int
    """Tokens per block, >= 1."""
    blocks: int
    """Blocks per replica, >= 1."""
    watermark: float = 0.01
    """Share of the blocks (0-1) that admission leaves free; int(watermark x blocks) blocks."""
    prefix_cache: bool = False
    """Whether a trace's `prefix_hit_tokens` are taken from the cache, where the rule-set can."""

    @property
    def watermark_blocks(self) -> int:
        return int(self.watermark * self.blocks)

    @property
    def tokens(self) -> int:
        return self.blocks * self.block_tokens


@dataclass(frozen=True)
class EngineLimits:
    """Start-up limits of one replica."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    batch_size_max: int
    """Most sequences at once; the ceiling of the `batch_size` knob."""
    chunk_tokens: int
    """Token budget of one engine iteration."""
    batch_size_oom: int | None = None
    """A replica that is started with a ceiling above this runs out of memory; None: none does."""
    batch_size_applied: Literal["hot", "restart"] = "hot"
    """How the engine takes a new batch size. `hot`: every replica is started with batch_size_max as
    its ceiling, and the knob moves below it while the engine runs. `restart`: the knob is the
    ceiling itself, and a change is a rolling restart."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of one engine iteration.

    base_s + per_prefill_token_s x prompt tokens of the iteration + per_sequence_s x sequences
    + per_kv_token_s x tokens processed before it, summed over the batch, + prefill_base_s if the
    iteration holds any prompt token + per_context_s x pairs of a prompt token and a token before
    it; all of it x straggler. With `batch_table`, the table over sequences (linear between its
    points, level before the first, and beyond its last point along its last segment) stands in for
    base_s + per_sequence_s x sequences; with `prefill_table` another one for the prompt tokens.
    """

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    base_s: float = 0.0
    """Seconds per iteration."""
    per_prefill_token_s: float = 0.0
    """Seconds per prompt token of the iteration."""
    per_sequence_s: float = 0.0
    """Seconds per sequence in the batch."""
    per_kv_token_s: float = 0.0
    """Seconds per token in the batch's KV cache."""
    batch_table: tuple[tuple[int, float], ...] = ()
    """(sequences, seconds) points, sequences rising; empty: base_s and per_sequence_s hold."""
    prefill_base_s: float = 0.0
    """Seconds more of an iteration with prompt tokens, however few: engines replay decodes as
    CUDA graphs and launch prefills kernel by kernel."""
    prefill_table: tuple[tuple[int, float], ...] = ()
    """(prompt tokens, seconds) points, as `batch_table`; stands in for prefill_base_s and
    per_prefill_token_s. 0 without prompt tokens."""
    per_context_s: float = 0.0
    """Seconds per pair of a prompt token of the iteration and a token that its request had before
    the iteration: attention of a chunk over its context."""
    straggler: tuple[tuple[int, float], ...] = ()
    """(sequences, factor) points, as `batch_table`: how much longer an iteration of so many
    sequences takes, every term of it, because all ranks wait for the slowest (expert or data
    parallel). At least 1; empty: 1."""


@dataclass(frozen=True)
class Stage:
    """One stage of a start; lognormal, cut at 3 sigma."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    median_s: float = 0.0
    """Median seconds; 0: the stage takes no time."""
    spread: float = 0.0
    """Sigma of the logarithm: 0.3 puts two thirds of the draws within about 30 %."""


@dataclass(frozen=True)
class Stages:
    """The stages of a start, in their order; each is drawn on its own."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    schedule: Stage = field(default_factory=Stage)
    """From the wish for a replica to nodes that take it."""
    image: Stage = field(default_factory=Stage)
    """Pulling and extracting the container image."""
    weights: Stage = field(default_factory=Stage)
    """Weights into GPU memory, download included."""
    compile: Stage = field(default_factory=Stage)
    """Everything else up to the first answer: memory profiling, kernels, graphs."""

    @property
    def sum_s(self) -> float:
        """Sum of the medians, s; the median of a whole start is a little above it."""
        stages = (self.schedule, self.image, self.weights, self.compile)
        return sum(stage.median_s for stage in stages)


@dataclass(frozen=True)
class Startup:
    """How a replica starts. A profile without this section starts replicas at once."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    stages: Stages = field(default_factory=Stages)
    """The cold start. A container that restarts after a crash begins at `weights`."""
    warmup_request_s: float = 0.0
    """Seconds at full speed that each warm-up request adds before the replica is ready; those
    within the ramp take as much longer as the ramp is slower."""
    ramp: tuple[tuple[int, float], ...] = ()
    """(requests, speed 0-1) stages: so many first requests run at this speed; then 1. Warm-up
    requests count. Kernels that compile when they are first called belong here, those that are
    compiled ahead into `stages.compile`, and none into both."""


@dataclass(frozen=True)
class Frontend:
    """CPU work in front of the engine: `threads` workers on `cores` cores.

    A request occupies one worker for per_request_s + per_token_s x prompt tokens, and each of its
    output tokens occupies the workers for per_output_token_s; both take longer by threads / cores
    where there are more threads than cores. Requests enter the engine in order, and the engine does
    not wait for the streaming. No public measurement stands behind this model.
    """

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    cores: int
    """CPU cores of the host that the workers share."""
    per_request_s: float = 0.0
    """CPU seconds per request."""
    per_token_s: float = 0.0
    """CPU seconds per prompt token."""
    per_output_token_s: float = 0.0
    """CPU seconds per output token that is streamed; taken from the same workers."""
    ingress_s: float = 0.0
    """Seconds that every request is on its way from its worker to the engine, however many
    threads."""

    @property
    def uses_cpu(self) -> bool:
        """Whether `threads` make a difference."""
        return any((self.per_request_s, self.per_token_s, self.per_output_token_s))


@dataclass(frozen=True)
class ServingProfile:
    """Performance of one replica; everything the simulator needs besides the load."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    schema: Literal["tuner.profile/1"]
    name: str
    scheduler: str
    """Rule-set of the engine's scheduler; see `envs.simulator`."""
    gpus_per_replica: int
    kv: KvCache
    limits: EngineLimits
    step_time: StepTime
    startup: Startup | None = None
    frontend: Frontend | None = None
    scheduler_options: Mapping[str, bool | int | float] = field(default_factory=dict)
    """Options of the rule-set by name; each rule-set names its own and their defaults."""
    price_per_gpu_hour_usd: float | None = None
    """For reports; None leaves money out of them."""
    origin: Mapping[str, str] = field(default_factory=dict)
    """Key of this file -> where its figure comes from."""
    error: Mapping[str, float] = field(default_factory=dict)
    """Name of a measured figure -> relative error of this profile against it."""
    interval: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Key of a fitted figure, a table's point as `step_time.batch_table[64]` -> its 95 %
    interval."""
    assumed: tuple[str, ...] = ()
    """Keys of this file, whole sections too, whose figures are chosen, not measured."""
    not_modelled: tuple[str, ...] = ()
    """Sentences: what the engine does that the simulator leaves out."""

    def assumptions(self) -> tuple[str, ...]:
        """What no measurement stands behind, as one reads it: assumed keys, in their order, then
        sections that do not say where their figures come from."""
        named = [f"threads ({key})" if _section(key) == "frontend" else key for key in self.assumed]
        told = {_section(key) for key in (*self.origin, *self.assumed)}
        return (*named, *(f"{name} (no origin)" for name in self._sections() if name not in told))

    def _sections(self) -> list[str]:
        """Sections with figures that this profile has."""
        found = ["kv", "step_time"]
        found += ["startup"] if self.startup is not None else []
        return found + (["frontend"] if self.frontend is not None else [])

    def unmodelled_knobs(self) -> dict[str, str]:
        """Knobs that this profile says nothing about, and why; they are pinned."""
        unmodelled = {}
        if self.frontend is None:
            unmodelled["threads"] = f"profile {self.name} has no frontend section"
        elif not self.frontend.uses_cpu:
            unmodelled["threads"] = f"profile {self.name} gives the frontend no CPU work"
        if self.startup is None:
            unmodelled["warmup_requests"] = f"profile {self.name} has no startup section"
        elif self.startup.ramp and not self.startup.warmup_request_s:
            # A free way past the ramp would always be taken.
            unmodelled["warmup_requests"] = (
                f"profile {self.name} does not say what one costs (startup.warmup_request_s)"
            )
        return unmodelled


def _section(key: str) -> str:
    """Section of a key path."""
    return key.split(".")[0]
