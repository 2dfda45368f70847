import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ramo_ray.engines.tree_scorer import TreeScorer
from ramo_ray.errors import EngineError

pytestmark = pytest.mark.slow

LABELS = [10, 250, 31]


@pytest.fixture
def model(tiny_model: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype="float32").eval()


def prompts_of_two_trunks() -> list[list[int]]:
    random = np.random.default_rng(0)
    trunks, tails = random.integers(0, 320, (2, 90)).tolist(), random.integers(0, 320, (15, 6)).tolist()
    return [[*trunk, *tail] for tail in tails for trunk in trunks]


def with_memory_for(model: Any, tokens: int) -> list[int]:
    """Let a model run out of memory above so many tokens; returns the list of what it was asked."""
    import torch

    asked: list[int] = []

    def refuse(_: Any, __: Any, inputs: dict[str, Any]) -> None:
        asked.append(inputs["input_ids"].numel())
        if asked[-1] > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    model.register_forward_pre_hook(refuse, with_kwargs=True)
    return asked


def test_a_pass_that_does_not_fit_is_split_and_tried_again(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    prompts = prompts_of_two_trunks()
    expected = TreeScorer(model).label_logprobs(prompts, LABELS)
    scorer = TreeScorer(model)
    asked = with_memory_for(model, 50)
    with caplog.at_level(logging.WARNING):
        rows = scorer.label_logprobs(prompts, LABELS)

    np.testing.assert_allclose(rows, expected, atol=1e-5)
    assert scorer.computed == len({tuple(p[:end]) for p in prompts for end in range(1, len(p) + 1)})
    assert scorer.budget <= 50
    assert "does not fit into memory" in caplog.text

    failed = sum(size > 50 for size in asked)
    scorer.label_logprobs(prompts, LABELS)
    assert sum(size > 50 for size in asked) == failed, "what did not fit is not tried again"


def test_no_memory_for_one_token_is_an_error_that_says_what_would_do(model: Any) -> None:
    scorer = TreeScorer(model)
    with_memory_for(model, 0)

    with pytest.raises(EngineError, match=r"one token.*smaller model"):
        scorer.label_logprobs([[1, 2, 3]], LABELS)


def test_other_faults_are_not_taken_for_a_lack_of_memory(model: Any) -> None:
    scorer = TreeScorer(model)

    def fail(*_: Any) -> None:
        raise RuntimeError("a fault")

    model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="a fault"):
        scorer.label_logprobs([[1, 2, 3]], LABELS)


def test_few_logits_at_once_give_the_same(model: Any) -> None:
    prompts = [[1, 2, last] for last in range(100)]
    scorer = TreeScorer(model)
    expected = scorer.label_logprobs(prompts, LABELS)
    scorer.most_asked, before = 7, scorer.passes

    np.testing.assert_allclose(scorer.label_logprobs(prompts, LABELS), expected, atol=1e-5)
    assert scorer.passes - before == 15


def test_a_model_that_does_not_agree_is_scored_one_by_one(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    import torch

    prompts = prompts_of_two_trunks()
    expected = TreeScorer(model).label_logprobs(prompts, LABELS)

    def counts_places_itself(_: Any, arguments: Any, keywords: dict[str, Any]) -> Any:
        ids = keywords["input_ids"]
        return arguments, keywords | {"position_ids": torch.arange(ids.shape[1])[None]}

    model.register_forward_pre_hook(counts_places_itself, with_kwargs=True)
    with caplog.at_level(logging.WARNING):
        scorer = TreeScorer(model)
    assert not scorer.shares
    assert "one by one" in caplog.text
    np.testing.assert_allclose(scorer.label_logprobs(prompts, LABELS), expected, atol=1e-5)


def test_scores_do_not_depend_on_company(model: Any) -> None:
    prompts = prompts_of_two_trunks()
    scorer = TreeScorer(model)
    together = scorer.label_logprobs(prompts, LABELS)
    alone = np.concatenate([scorer.label_logprobs([prompt], LABELS) for prompt in prompts])

    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_array_equal(scorer.label_logprobs(prompts[::-1], LABELS)[::-1], together)


def test_the_model_keeps_its_own_attention_for_everything_else(model: Any) -> None:
    scorer = TreeScorer(model)
    scorer.label_logprobs([[1, 2, 3]], LABELS)

    assert model.config._attn_implementation == "sdpa"
