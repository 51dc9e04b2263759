"""A DeepSeek-V3 of 1.4 million random weights: the real architecture for the real engine.

Run by the engine's own interpreter, which has the tokenizers: `python model.py FOLDER`. Nothing is
downloaded; the engine draws the weights itself (`--load-format dummy`).
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

NAME = "deepseek-tiny"
LONGEST = 512
"""Tokens of prompt and answer together that the engine is started for."""

CONFIG = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "vocab_size": 512,
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    # The CPU's attention backend takes this head size alone (512 + 64): a smaller latent starts,
    # passes /health and dies at the first request.
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "q_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "intermediate_size": 256,
    "moe_intermediate_size": 64,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "n_group": 2,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000,
    "max_position_embeddings": 2048,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}

SPECIAL = ["<pad>", "<bos>", "<eos>"]
TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}"


def words(seed: int = 1, count: int = 400) -> list[str]:
    """Made-up words; the same list everywhere."""
    draw = random.Random(seed)
    syllables = ["ka", "lo", "mi", "ru", "sen", "tor", "va", "ze"]
    return ["".join(draw.choices(syllables, k=draw.randint(1, 3))) for _ in range(count)]


def write(folder: Path) -> None:
    """config.json and a byte-level tokenizer of fewer entries than `vocab_size`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=349,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(words())], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        model_max_length=CONFIG["max_position_embeddings"],
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    # Last: a folder with a config is a finished one.
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
