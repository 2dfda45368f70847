"""The engine against one prompt at a time, on real conversations and the bundled rules."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from support import ROOT

from ramo_ray.core.rules import load_pool
from ramo_ray.engines.transformers_engine import TransformersEngine
from ramo_ray.models.resolve import resolve
from ramo_ray.models.templates import load_tokenizer
from ramo_ray.pipelines.prompts import JudgePrompts
from ramo_ray.pipelines.sources import open_trios, read_rows
from ramo_ray.settings import EngineSettings, JudgeSettings, SourceSettings

HH_RLHF = ROOT.parent / "shared" / "data" / "hh_rlhf" / "harmless-base.test.jsonl.gz"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not HH_RLHF.exists(), reason="HH-RLHF's test file is not beside the project"),
]

LAYOUTS = ["rule_last", "paper"]


def real_prompts(layout: Literal["paper", "rule_last"], conversations: int) -> tuple[list[list[list[int]]], list[int]]:
    """Judge prompts of each conversation (both responses of a trio are two), and the labels."""
    tokenizer = load_tokenizer(resolve("bundled:smollm2-135m-instruct"))
    prompts = JudgePrompts(tokenizer, JudgeSettings(layout=layout), load_pool())
    rows = [row for row in read_rows(open_trios(str(HH_RLHF), SourceSettings(), 60)) if not row.get("reason")]
    both = [(row["prompt"], row[side]) for row in rows for side in ("response_a", "response_b")]
    rules = range(len(load_pool()))
    return [prompts.ids(prompt, response, rules) for prompt, response in both[:conversations]], prompts.labels


def one_by_one(folder: Path, prompts: Sequence[list[int]], labels: list[int]) -> np.ndarray:
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        rows = [model(torch.tensor([p]), logits_to_keep=1).logits[0, -1].log_softmax(-1)[labels] for p in prompts]
    return torch.stack(rows).numpy()


@pytest.fixture(scope="module")
def two_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two layers with SmolLM2's vocabulary."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.2,
    )
    folder = tmp_path_factory.mktemp("two-layers")
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_twenty_conversations_on_a_hundred_rules(two_layers: Path, layout: Literal["paper", "rule_last"]) -> None:
    conversations, labels = real_prompts(layout, 20)
    prompts = [prompt for rules in conversations for prompt in rules]
    engine = TransformersEngine(EngineSettings(), two_layers)
    rows = engine.label_logprobs(prompts, labels)
    alone = engine.label_logprobs(conversations[7], labels)
    engine.close()

    assert rows.shape == (2000, 3)
    np.testing.assert_allclose(rows, one_by_one(two_layers, prompts, labels), atol=1e-4)
    np.testing.assert_allclose(rows[700:800], alone, atol=2e-5, err_msg="depends on what it was batched with")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_thirty_cells_of_a_real_model(layout: Literal["paper", "rule_last"]) -> None:
    folder = resolve("bundled:smollm2-135m-instruct")
    conversations, labels = real_prompts(layout, 6)
    engine = TransformersEngine(EngineSettings(), folder)
    rows = np.stack([engine.label_logprobs(rules[:30], labels) for rules in conversations[:2]])
    rest = engine.label_logprobs([rules[i] for rules in conversations[2:] for i in (0, 99)], labels)
    engine.close()

    some = range(0, 30, 3)
    cells = [rules[i] for rules in conversations[:2] for i in some] + [c[i] for c in conversations[2:] for i in (0, 99)]
    found = np.concatenate([rows[:, list(some)].reshape(-1, 3), rest])
    np.testing.assert_allclose(found, one_by_one(folder, cells, labels), atol=1e-4)
