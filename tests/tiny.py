"""A small real model: what tests and benchmarks train, serve and ask where any will do."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

TINY_VOCABULARY = 320
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tiny_model(folder: Path) -> None:
    """A Llama of two layers with random weights from a seed, and a byte-level tokenizer with a chat template."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=TINY_VOCABULARY,
        hidden_size=64,
        # ZeRO 3 leaves whole what has fewer than 100,000 elements.
        intermediate_size=2048,
        num_hidden_layers=2,
        num_attention_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    _write_tokenizer(folder)


def write_moved_model(source: Path, folder: Path, *, by: float) -> None:
    """A model whose weights have moved from another's, by so large a deviation of each."""
    import torch
    from transformers import AutoModelForCausalLM

    shutil.copytree(source, folder)
    model = AutoModelForCausalLM.from_pretrained(source)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(by * torch.randn(weights.shape, generator=generator))
    model.save_pretrained(folder)


def write_reward_model(source: Path, folder: Path, *, spread: float) -> None:
    """A language model with a new head of one output, whose weights are so many times those of a new head."""
    import torch

    from ramo_ray.models.reward import new_reward_model
    from ramo_ray.models.templates import load_tokenizer

    model = new_reward_model(source, seed=3)
    with torch.no_grad():
        model.score.weight.mul_(spread)
    model.save_pretrained(folder)
    load_tokenizer(source).save_pretrained(folder)


def write_adapter(source: Path, folder: Path, rule_ids: Sequence[str]) -> None:
    """A language model with a new head for the rules of a pool."""
    from ramo_ray.models.adapter import new_adapter
    from ramo_ray.models.templates import load_tokenizer

    new_adapter(source, rule_ids).save_pretrained(folder)
    load_tokenizer(source).save_pretrained(folder)


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({name: number for number, name in enumerate([*special, *characters])}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True) for name in special])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=special[0], bos_token=special[1], eos_token=special[2]
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
