"""vLLM's own scheduler in virtual time, without a model: `python vllm_schedule.py MODEL_FOLDER`.

Runs under the engine's interpreter and imports nothing of tuner. Reads one case per line from
standard input, as JSON, and prints what became of its requests: when each had its first and its
last token, in seconds, and how often it was preempted. The loop is that of `EngineCore.step` and
`step_with_batch_queue` (vllm/v1/engine/core.py), with a step's seconds from the case's law in the
place of the device. Keys of a case: see `test_vllm_rules.py`.
"""

from __future__ import annotations

import json
import sys
from collections import deque

import torch
from vllm.config import CacheConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

MAX_MODEL_LEN = 2048
SAMPLED, SHARED, OWN = 0, 1, 2
"""Token ids: of outputs, of the prefix that prompts share, and from there on of each its own."""


class Told:
    """Makes a scheduler tell, in each output, what the model runner would find out.

    For every scheduled request: whether it decodes, and whether it samples a token.
    """

    def _update_after_schedule(self, output) -> None:
        fresh = {request.req_id for request in output.scheduled_new_reqs}
        fresh |= set(output.scheduled_cached_reqs.resumed_req_ids)
        names = list(output.num_scheduled_tokens)
        output.decodes = {
            name: name not in fresh and not self.requests[name].is_prefill_chunk for name in names
        }
        super()._update_after_schedule(output)
        output.samples = {name: not self.requests[name].is_prefill_chunk for name in names}


class ToldScheduler(Told, Scheduler):
    pass


class ToldAsyncScheduler(Told, AsyncScheduler):
    pass


def make_scheduler(case: dict, model: ModelConfig) -> Scheduler:
    block_tokens, blocks = case["block_tokens"], case["blocks"]
    scheduling = SchedulerConfig(
        max_num_seqs=case["batch_size_max"],
        max_num_batched_tokens=case["chunk_tokens"],
        max_model_len=MAX_MODEL_LEN,
        is_encoder_decoder=False,
        async_scheduling=case["async"],
        scheduler_reserve_full_isl=case["reserve_full_isl"],
        watermark=case["watermark"],
    )
    cache = CacheConfig(block_size=block_tokens, enable_prefix_caching=case["prefix_cache"])
    config = VllmConfig(scheduler_config=scheduling, model_config=model, cache_config=cache)
    # On a CPU vLLM takes these back for the model's attention; the scheduler itself can do them.
    config.scheduler_config.enable_chunked_prefill = True
    config.scheduler_config.max_num_batched_tokens = case["chunk_tokens"]
    config.scheduler_config.long_prefill_token_threshold = case["long_prefill_token_threshold"]
    config.cache_config.enable_prefix_caching = case["prefix_cache"]
    config.cache_config.block_size = block_tokens
    config.cache_config.num_gpu_blocks = blocks
    spec = FullAttentionSpec(
        block_size=block_tokens, num_kv_heads=1, head_size=1, dtype=torch.float32
    )
    kind = ToldAsyncScheduler if case["async"] else ToldScheduler
    return kind(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(
            num_blocks=blocks,
            kv_cache_tensors=[],
            kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
        ),
        structured_output_manager=StructuredOutputManager(config),
        block_size=block_tokens,
        log_stats=False,
    )


def make_request(number: int, row: list, block_tokens: int) -> Request:
    _, prompt, output, shared = row
    return Request(
        request_id=str(number),
        prompt_token_ids=[SHARED] * shared + [OWN + number] * (prompt - shared),
        sampling_params=SamplingParams(max_tokens=output, ignore_eos=True),
        pooling_params=None,
        block_hasher=get_request_block_hasher(block_tokens, sha256),
    )


def seconds(case: dict, output) -> float:
    prefill_tokens = sum(
        tokens for name, tokens in output.num_scheduled_tokens.items() if not output.decodes[name]
    )
    return (
        case["base_s"]
        + case["per_sequence_s"] * len(output.num_scheduled_tokens)
        + case["per_prefill_token_s"] * prefill_tokens
    )


def run(case: dict, model: ModelConfig) -> dict:
    scheduler = make_scheduler(case, model)
    coming, caps = deque(enumerate(case["rows"])), deque(case["caps"])
    requests: dict[str, Request] = {}
    first_s, end_s = {}, {}
    pipeline: deque = deque()
    now_s = 0.0
    while coming or pipeline or scheduler.has_requests():
        if not pipeline and not scheduler.has_requests():
            now_s = max(now_s, coming[0][1][0])
        while caps and caps[0][0] <= now_s:
            scheduler.max_num_active_reqs = caps.popleft()[1]
        while coming and coming[0][1][0] <= now_s:
            request = make_request(*coming.popleft(), case["block_tokens"])
            requests[request.request_id] = request
            scheduler.add_request(request)
        if scheduler.has_requests():
            pipeline.append(scheduler.schedule())
            if case["async"] and len(pipeline) < 2:
                continue
        output = pipeline.popleft()
        names = list(output.num_scheduled_tokens)
        if names:
            now_s += seconds(case, output)
        result = ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: row for row, name in enumerate(names)},
            sampled_token_ids=[[SAMPLED] if output.samples[name] else [] for name in names],
        )
        scheduler.update_from_output(output, result)
        for name in names:
            if requests[name].num_output_tokens:
                first_s.setdefault(name, now_s)
            if requests[name].is_finished():
                end_s.setdefault(name, now_s)
    order = [str(number) for number in range(len(case["rows"]))]
    return {
        "first_s": [first_s[name] for name in order],
        "end_s": [end_s[name] for name in order],
        "preemptions": [requests[name].num_preemptions for name in order],
    }


def main() -> None:
    init_none_hash(sha256)
    model = ModelConfig(
        model=sys.argv[1],
        dtype="float32",
        seed=0,
        skip_tokenizer_init=True,
        max_model_len=MAX_MODEL_LEN,
    )
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line), model)), flush=True)


if __name__ == "__main__":
    main()
