"""Rule-sets of engine schedulers that the simulator knows, their options and their premises."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches

from tuner.core.errors import ProfileError
from tuner.core.profile import ServingProfile


@dataclass(frozen=True)
class Option:
    """One of a rule-set's `scheduler_options`; what its default is: a flag, a count or, as a
    float, a number above 0."""

    default: bool | int | float | None
    """None: no limit, which only leaving the option out can say."""
    low: int = 0
    """Smallest count."""


@dataclass(frozen=True)
class Scheduler:
    """A rule-set, as a profile names it."""

    imitates: str
    """The system and version that its rules are those of, and where they are written."""
    options: Mapping[str, Option] = field(default_factory=dict)


SCHEDULERS = {
    "sglang": Scheduler(
        "scheduler of SGLang 0.5.23 (policy FCFS); `sglang.py`",
        {
            "max_new_tokens": Option(4096, low=1),
            "max_prefill_tokens": Option(16384, low=1),
            "overlap": Option(True),
            "schedule_conservativeness": Option(1.0),
        },
    ),
    "vidur-sarathi": Scheduler("Sarathi scheduler of microsoft/vidur@7d47513; `vidur_sarathi.py`"),
    "vllm-v1": Scheduler(
        "scheduler of vLLM 0.33.0 (V1 engine, policy FCFS); `vllm_v1.py`",
        {
            "async": Option(True),
            "long_prefill_token_threshold": Option(0),
            "max_queued_requests": Option(None, low=1),
            "reserve_full_isl": Option(True),
        },
    ),
}
"""Name in a profile -> what it is."""


def check_scheduler(profile: ServingProfile) -> None:
    """Refuse a profile whose rule-set or options are not known, or whose limits break its premise.

    Raises:
        ProfileError: see above, one line per mistake.
    """
    mistakes = list(_mistakes(profile))
    if mistakes:
        raise ProfileError("\n".join(f"profile {profile.name}: {one}" for one in mistakes))


def options_of(profile: ServingProfile) -> dict[str, bool | int | float | None]:
    """Every option of the profile's rule-set: the profile's value, or the default."""
    options = SCHEDULERS[profile.scheduler].options
    return {name: profile.scheduler_options.get(name, one.default) for name, one in options.items()}


@dataclass(frozen=True)
class Room:
    """What an empty replica can take."""

    blocks: int
    """KV blocks that requests can hold."""
    prompt_blocks_max: int
    """Most blocks of a prompt that is admitted."""
    total_tokens_max: int
    """Most prompt and output tokens of a request that can be finished."""


def room_of(profile: ServingProfile) -> Room:
    """What an empty replica of this profile can take under its rule-set.

    vLLM keeps one block for itself (vllm/v1/core/block_pool.py, the null block), applies its
    watermark only while something runs, and never computes the KV of a last token. SGLang has no
    watermark, and cuts the output of a request that comes near the size of the cache: room for
    its prompt in whole pages, its output, a page and a token (init_req_max_new_tokens in
    sglang/srt/managers/scheduler.py); a prompt must stay 6 tokens below that size.
    """
    kv = profile.kv
    if profile.scheduler == "vllm-v1":
        blocks = kv.blocks - 1
        return Room(blocks, blocks, blocks * kv.block_tokens + 1)
    if profile.scheduler == "sglang":
        return Room(kv.blocks, kv.blocks, kv.tokens - max(2 * kv.block_tokens, 6))
    return Room(kv.blocks, kv.blocks - kv.watermark_blocks, kv.tokens)


def _mistakes(profile: ServingProfile) -> Iterator[str]:
    if profile.scheduler not in SCHEDULERS:
        yield (
            f"scheduler is {profile.scheduler!r}; expected one of: {', '.join(sorted(SCHEDULERS))}"
        )
        return
    options = SCHEDULERS[profile.scheduler].options
    for name, value in profile.scheduler_options.items():
        if name in options:
            yield from _bad_value(f"scheduler_options.{name}", value, options[name])
        else:
            yield _unknown(name, profile.scheduler, options)
    limits = profile.limits
    if profile.scheduler == "sglang":
        if limits.chunk_tokens % profile.kv.block_tokens:
            yield (
                f"limits.chunk_tokens is {limits.chunk_tokens}; expected a multiple of "
                f"kv.block_tokens {profile.kv.block_tokens}, as SGLang does"
            )
    elif limits.batch_size_max > limits.chunk_tokens:
        yield (
            f"limits.batch_size_max is {limits.batch_size_max}, above "
            f"limits.chunk_tokens {limits.chunk_tokens}; a batch must fit into one iteration"
        )


def _bad_value(key: str, value: bool | int | float, option: Option) -> Iterator[str]:
    if isinstance(option.default, bool):
        if not isinstance(value, bool):
            yield f"{key} is {value!r}; expected true or false"
    elif isinstance(option.default, float):
        if isinstance(value, bool) or not 0 < value < math.inf:
            yield f"{key} is {value!r}; expected a number above 0"
    elif isinstance(value, bool) or not isinstance(value, int) or value < option.low:
        limit = ", or leave it out for no limit" if option.default is None else ""
        yield f"{key} is {value!r}; expected a whole number of at least {option.low}{limit}"


def _unknown(name: str, scheduler: str, options: Mapping[str, Option]) -> str:
    if not options:
        return f"scheduler_options.{name} is unknown; {scheduler} has no options, so remove it"
    near = get_close_matches(name, options, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"expected one of: {', '.join(options)}"
    return f"scheduler_options.{name} is unknown to {scheduler}; {hint}"
