"""The judge's actor: each method's ratings against a model asked one whole answer at a time, and what is counted."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ramo_ray.core.candidates import Candidates
from ramo_ray.core.rating import NUMBERS
from ramo_ray.core.rules import make_pool
from ramo_ray.judging.prompts import JudgePrompts
from ramo_ray.models.templates import encode_text, load_tokenizer
from ramo_ray.pipelines.rating import RuleJudge, rating_rows
from ramo_ray.pipelines.tables import packed, table, unpacked
from ramo_ray.settings import JudgeSettings

pytestmark = pytest.mark.slow

RULES = ["Accept the response that is polite.", "Accept the response that is short."]
PROMPT = [{"role": "user", "content": "Tell me about bread."}]
RESPONSES = ["Gladly: flour, water, salt, time.", "No. Bread bores me.", "Why?"]


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's tokenizer, and a network that has opinions and holds a judge's prompt in bytes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("judge") / "model"
    shutil.copytree(tiny_model, folder)
    config = LlamaConfig.from_pretrained(
        tiny_model, max_position_embeddings=4096, initializer_range=0.3, tie_word_embeddings=False
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def group(responses: list[str]) -> dict[str, Any]:
    conversations = [
        {"conversation_id": f"c{place}", "response": response, "done": False}
        for place, response in enumerate(responses)
    ]
    costs = {"calls": 0, "tokens": 0, "seconds": 0.0, "adapter_seconds": 0.0}
    return {"prompt": PROMPT, "conversations": conversations, "trios": [], **costs}


def judged(model: Path, responses: list[str] = RESPONSES, **values: Any) -> dict[str, Any]:
    settings = {"model": str(model), "layout": "rule_last", "threads": 1, **values}
    judge = RuleJudge(settings, RULES, "all_rules")
    found: dict[str, Any]
    (found,) = unpacked(judge(packed("groups", [group(responses)])))
    judge.engine.close()
    return found


def judge_prompts(model: Path, **values: Any) -> JudgePrompts:
    settings = JudgeSettings.model_validate({"model": str(model), "layout": "rule_last", **values})
    return JudgePrompts(load_tokenizer(model), settings, make_pool("p", RULES, origin="here"))


def answer_logprobs(model: Path, prompt: list[int], answers: list[list[int]]) -> np.ndarray:
    """Log-probability of each whole answer behind a prompt, by a forward pass of its own."""
    import torch
    from transformers import AutoModelForCausalLM

    network: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    sums = []
    with torch.inference_mode():
        for answer in answers:
            logprobs = network(torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
            sums.append(sum(float(logprobs[len(prompt) - 1 + i, token]) for i, token in enumerate(answer)))
    return np.array(sums)


@pytest.mark.parametrize("chat", [True, False])
def test_numbers_are_what_scoring_each_whole_number_gives(model: Path, chat: bool) -> None:
    found = judged(model, method="number", chat_template=chat)
    prompts, tokenizer = judge_prompts(model, method="number", chat_template=chat), load_tokenizer(model)
    answers = [encode_text(tokenizer, word if chat else f" {word}") for word in NUMBERS]
    scores = []
    for conversation, response in zip(found["conversations"], RESPONSES, strict=True):
        assert conversation["p_yes"] == conversation["p_no"] == conversation["p_irrelevant"] == [None, None]
        asked = prompts.ids(PROMPT, response, [0, 1])
        for ids, score, mass in zip(asked, conversation["score"], conversation["label_mass"], strict=True):
            expected = answer_logprobs(model, ids, answers)
            assert score == pytest.approx(float(NUMBERS[int(expected.argmax())]))
            assert mass == pytest.approx(np.exp(expected).sum(), rel=1e-3)
            scores.append(score)
    assert len(set(scores)) > 1

    # A call is a cell, however many of a number's tokens were asked for.
    questions = prompts.answers.questions([i for r in RESPONSES for i in prompts.ids(PROMPT, r, [0, 1])])
    assert found["calls"] == 6
    assert found["tokens"] == sum(map(len, questions))
    assert len(questions) == 6 * (5 if chat else 6)


def test_two_labels_are_yes_and_no_of_what_follows_their_own_question(model: Path) -> None:
    found = judged(model, method="two_labels")
    prompts = judge_prompts(model, method="two_labels")
    for conversation, response in zip(found["conversations"], RESPONSES, strict=True):
        for rule, ids in enumerate(prompts.ids(PROMPT, response, [0, 1])):
            yes, no = np.exp(answer_logprobs(model, ids, [[label] for label in prompts.labels]))
            assert conversation["score"][rule] == conversation["p_yes"][rule] == pytest.approx(yes / (yes + no), 1e-4)
            assert conversation["p_no"][rule] == pytest.approx(no / (yes + no), 1e-4)
            assert conversation["label_mass"][rule] == pytest.approx(yes + no, 1e-3)
        assert conversation["p_irrelevant"] == [None, None]
    assert found["tokens"] == sum(len(i) for r in RESPONSES for i in prompts.ids(PROMPT, r, [0, 1]))


def test_a_long_response_is_cut_and_marked_and_the_others_are_as_before(model: Path) -> None:
    prompts = judge_prompts(model)
    longest = max(len(ids) for response in RESPONSES for ids in prompts.ids(PROMPT, response, [0, 1]))
    responses = [*RESPONSES, "Long. " * 40]
    settings: dict[str, Any] = {"engine": "scripted", "max_length": longest}
    plain = judged(model, RESPONSES, **settings)
    refused = judged(model, responses, **settings)
    cut = judged(model, responses, too_long="truncate_response", **settings)

    assert refused["conversations"][:3] == cut["conversations"][:3] == plain["conversations"]
    assert [c["truncated"] for c in cut["conversations"]] == [False, False, False, True]
    assert [c["truncated"] for c in refused["conversations"]] == [False] * 4
    assert "too long for the judge: " in refused["conversations"][3]["error"]
    assert (refused["calls"], cut["calls"]) == (6, 8)
    # The record keeps the whole response; only the judge read less.
    assert cut["conversations"][3]["response"] == responses[3]
    (*_, row) = rating_rows(cut, "f")
    assert (row["conversation_id"], row["truncated"], row["error"], len(row["score"])) == ("c3", True, None, 2)
    table("ratings", rating_rows(cut, "f"))


def test_what_fits_not_at_all_is_an_error_on_its_own_row(model: Path) -> None:
    found = judged(model, engine="scripted", max_length=600, too_long="truncate_response")
    assert all("nothing of the response fits" in c["error"] for c in found["conversations"])
    assert all(c["score"] == c["rule_ids"] == [] for c in found["conversations"])
    assert (found["calls"], found["tokens"]) == (0, 0)


def test_the_plan_of_labels_asks_each_prompt_once(model: Path) -> None:
    answers: Candidates = judge_prompts(model).answers
    assert answers.questions([[1, 2], [3]]) == [[1, 2], [3]]
