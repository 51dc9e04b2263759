"""Rule-sets of engine schedulers that the simulator knows, their options and their premises."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches

from tuner.core.errors import ProfileError
from tuner.core.profile import ServingProfile


@dataclass(frozen=True)
class Option:
    """One of a rule-set's `scheduler_options`; a flag if its default is one, else a count."""

    default: bool | int | None
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
    watermark only while something runs, and never computes the KV of a last token.
    """
    kv = profile.kv
    if profile.scheduler == "vllm-v1":
        blocks = kv.blocks - 1
        return Room(blocks, blocks, blocks * kv.block_tokens + 1)
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
    if limits.batch_size_max > limits.chunk_tokens:
        yield (
            f"limits.batch_size_max is {limits.batch_size_max}, above "
            f"limits.chunk_tokens {limits.chunk_tokens}; a batch must fit into one iteration"
        )


def _bad_value(key: str, value: bool | int | float, option: Option) -> Iterator[str]:
    if isinstance(option.default, bool):
        if not isinstance(value, bool):
            yield f"{key} is {value!r}; expected true or false"
    elif isinstance(value, bool) or not isinstance(value, int) or value < option.low:
        limit = ", or leave it out for no limit" if option.default is None else ""
        yield f"{key} is {value!r}; expected a whole number of at least {option.low}{limit}"


def _unknown(name: str, scheduler: str, options: Mapping[str, Option]) -> str:
    if not options:
        return f"scheduler_options.{name} is unknown; {scheduler} has no options, so remove it"
    near = get_close_matches(name, options, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"expected one of: {', '.join(options)}"
    return f"scheduler_options.{name} is unknown to {scheduler}; {hint}"
