"""The engines against one prompt at a time, on real conversations and the bundled rules."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest
from support import ROOT

from ramo_ray.core.rules import load_pool
from ramo_ray.engines import build_engine
from ramo_ray.engines.base import Engine
from ramo_ray.engines.transformers_engine import TransformersEngine
from ramo_ray.engines.vllm_engine import CPU_BLOCK_SIZE, VLLMEngine
from ramo_ray.judging.prompts import JudgePrompts
from ramo_ray.models.resolve import resolve
from ramo_ray.models.templates import load_tokenizer
from ramo_ray.pipelines.sources import open_trios, read_rows
from ramo_ray.settings import EngineSettings, JudgeSettings, SourceSettings, VLLMSettings

HH_RLHF = ROOT.parent / "shared" / "data" / "hh_rlhf" / "harmless-base.test.jsonl.gz"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not HH_RLHF.exists(), reason="HH-RLHF's test file is not beside the project"),
]

LAYOUTS: tuple[Literal["rule_last", "paper"], ...] = ("rule_last", "paper")
TOLERANCES = {"transformers": 1e-4, "vllm": 2e-3}


def real_prompts(layout: Literal["paper", "rule_last"], conversations: int) -> tuple[list[list[list[int]]], list[int]]:
    """Judge prompts of the shortest conversations (both responses of a trio are two), and the labels."""
    tokenizer = load_tokenizer(resolve("bundled:smollm2-135m-instruct"))
    prompts = JudgePrompts(tokenizer, JudgeSettings(layout=layout), load_pool())
    rows = [row for row in read_rows(open_trios(str(HH_RLHF), SourceSettings(), 60)) if not row.get("reason")]
    both = [(row["prompt"], row[side]) for row in rows for side in ("response_a", "response_b")]
    both.sort(key=lambda conversation: len(prompts.ids(*conversation, [0])[0]))
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
        # vLLM's attention on CPU takes 32 and more.
        head_dim=32,
        max_position_embeddings=4096,
        initializer_range=0.2,
    )
    folder = tmp_path_factory.mktemp("two-layers")
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


class Cells(NamedTuple):
    """Judge prompts of each conversation, the labels, and what each prompt gives alone."""

    conversations: list[list[list[int]]]
    labels: list[int]
    expected: np.ndarray

    @property
    def prompts(self) -> list[list[int]]:
        return [prompt for rules in self.conversations for prompt in rules]


@pytest.fixture(scope="module", params=LAYOUTS)
def cells(request: pytest.FixtureRequest, two_layers: Path) -> Cells:
    """Twenty conversations on a hundred rules."""
    conversations, labels = real_prompts(request.param, 20)
    expected = one_by_one(two_layers, [prompt for rules in conversations for prompt in rules], labels)
    assert expected.shape == (2000, 3)
    return Cells(conversations, labels, expected)


@pytest.fixture(scope="module")
def vllm_engine(two_layers: Path) -> Iterator[VLLMEngine]:
    engine = VLLMEngine(EngineSettings(engine="vllm", vllm=VLLMSettings(kv_cache_gib=0.25)), two_layers)
    yield engine
    engine.close()


def test_twenty_conversations_on_a_hundred_rules(two_layers: Path, cells: Cells) -> None:
    engine = TransformersEngine(EngineSettings(), two_layers)
    rows = engine.label_logprobs(cells.prompts, cells.labels)
    alone = engine.label_logprobs(cells.conversations[7], cells.labels)
    engine.close()

    np.testing.assert_allclose(rows, cells.expected, atol=1e-4)
    np.testing.assert_allclose(rows[700:800], alone, atol=2e-5, err_msg="depends on what it was batched with")


def test_twenty_conversations_on_a_hundred_rules_through_vllm(vllm_engine: VLLMEngine, cells: Cells) -> None:
    order = np.random.default_rng(0).permutation(len(cells.prompts))
    shuffled = [cells.prompts[i] for i in order]
    rows = np.empty_like(cells.expected)
    vllm_engine.llm.reset_prefix_cache()
    vllm_engine.computed = vllm_engine.cached = 0
    rows[order] = vllm_engine.label_logprobs(shuffled, cells.labels)
    computed, cached = vllm_engine.computed, vllm_engine.cached
    vllm_engine.llm.reset_prefix_cache()
    alone = vllm_engine.label_logprobs(cells.conversations[7], cells.labels)

    np.testing.assert_allclose(rows, cells.expected, atol=2e-3)
    np.testing.assert_allclose(rows[700:800], alone, atol=1e-3, err_msg="depends on what it was batched with")
    assert computed + cached == sum(map(len, cells.prompts))
    assert computed == block_tokens(sorted(cells.prompts), CPU_BLOCK_SIZE)


def block_tokens(prompts: Sequence[Sequence[int]], size: int) -> int:
    """Tokens to compute where prompts share whole blocks, and each computes at least its last token."""
    known: set[tuple[int, ...]] = set()
    tokens = 0
    for prompt in prompts:
        blocks = [tuple(prompt[:end]) for end in range(size, len(prompt) + 1, size)]
        shared = [block for block in blocks if len(block) < len(prompt) and block in known]
        tokens += len(prompt) - max(map(len, shared), default=0)
        known.update(blocks)
    return tokens


@pytest.fixture(scope="module", params=TOLERANCES)
def smollm2(request: pytest.FixtureRequest) -> Iterator[tuple[Engine, float]]:
    """Each engine on a real model, and how far off it may be."""
    settings = EngineSettings(engine=request.param, vllm=VLLMSettings(kv_cache_gib=0.5))
    engine = build_engine(settings, resolve("bundled:smollm2-135m-instruct"))
    yield engine, TOLERANCES[request.param]
    engine.close()


@pytest.fixture(scope="module")
def thirty_cells() -> dict[str, tuple[list[list[int]], list[int], np.ndarray]]:
    """Of each layout ten conversations on three rules: prompts, labels, and what each prompt gives alone."""
    found = {}
    for layout in LAYOUTS:
        conversations, labels = real_prompts(layout, 10)
        prompts = [rules[i] for rules in conversations for i in (0, 50, 99)]
        found[layout] = prompts, labels, one_by_one(resolve("bundled:smollm2-135m-instruct"), prompts, labels)
    return found


def test_sixty_cells_of_a_real_model(
    smollm2: tuple[Engine, float], thirty_cells: dict[str, tuple[list[list[int]], list[int], np.ndarray]]
) -> None:
    engine, tolerance = smollm2
    for prompts, labels, expected in thirty_cells.values():
        np.testing.assert_allclose(engine.label_logprobs(prompts, labels), expected, atol=tolerance)
