"""Conversations at the border of a judge's context: untouched, cut to fit, or refused with the reason."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import merging_tokenizer

from ramo_ray.core.prompts import RatingTemplate
from ramo_ray.core.records import Message
from ramo_ray.core.rules import RulePool, make_pool
from ramo_ray.errors import ModelError
from ramo_ray.judging.fitting import Fitted, fit, fit_or_cut
from ramo_ray.judging.prompts import JudgePrompts
from ramo_ray.models.resolve import resolve
from ramo_ray.models.templates import encode_text, load_tokenizer, token_ends
from ramo_ray.settings import JudgeSettings

pytestmark = pytest.mark.slow

QUESTION: list[Message] = [{"role": "user", "content": "How do I boil an egg?"}]
ANSWER = " ".join(["Put it into boiling water for eight minutes."] * 6)
EMOJI = "Sure! 👩‍🍳🥚 Naïve cooks — 料理人 — say: 𝔟𝔬𝔦𝔩 it 🔥🔥🔥, then: e\u0301 voilà\n\n🙂."
SHORT, LONG = "Be kind.", "Accept the response that is kind, patient, clear, short and to the point at all times."
POOL = make_pool("p", [SHORT, LONG, "Accept the response that is true."], origin="here")
ALL = [0, 1, 2]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(resolve("bundled:smollm2-135m-instruct"))


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> JudgePrompts:
    return judge(tokenizer)


def judge(tokenizer: Any, pool: RulePool = POOL, **values: Any) -> JudgePrompts:
    return JudgePrompts(tokenizer, JudgeSettings.model_validate({"layout": "rule_last", **values}), pool)


def longest(asked: list[list[int]]) -> int:
    return max(map(len, asked))


def response_in(prompts: JudgePrompts, fitted: Fitted, response: str) -> str:
    """The beginning of the response that the prompts hold, found by trying them all."""
    held = [n for n in range(len(response) + 1) if prompts.ids(QUESTION, response[:n], ALL) == fitted.prompts]
    assert len(held) == 1
    return response[: held[0]]


@pytest.mark.parametrize("layout", ["paper", "rule_last"])
def test_one_token_decides(tokenizer: Any, layout: str) -> None:
    prompts = judge(tokenizer, layout=layout)
    whole = prompts.ids(QUESTION, ANSWER, ALL)
    for context in (longest(whole), longest(whole) + 1):
        assert fit_or_cut(prompts, QUESTION, ANSWER, ALL, context) == fit(prompts, QUESTION, ANSWER, ALL, context)
        assert fit_or_cut(prompts, QUESTION, ANSWER, ALL, context) == Fitted(whole, truncated=False, fault=None)

    context = longest(whole) - 1
    refused = fit(prompts, QUESTION, ANSWER, ALL, context)
    assert refused.prompts == []
    assert refused.fault == f"too long for the judge: {context + 1} tokens, its context holds {context}"
    cut = fit_or_cut(prompts, QUESTION, ANSWER, ALL, context)
    assert (cut.truncated, cut.fault, longest(cut.prompts)) == (True, None, context)
    assert encode_text(tokenizer, response_in(prompts, cut, ANSWER)) == encode_text(tokenizer, ANSWER)[:-1]


def test_the_text_is_the_same_whichever_rules_are_asked(prompts: JudgePrompts) -> None:
    context = longest(prompts.ids(QUESTION, ANSWER, [0])) + 1
    # The short rule's own prompt would fit, the pool's longest does not.
    assert fit(prompts, QUESTION, ANSWER, [0], context).fault is None
    together = fit_or_cut(prompts, QUESTION, ANSWER, ALL, context)
    assert together.truncated
    for rule in ALL:
        alone = fit_or_cut(prompts, QUESTION, ANSWER, [rule], context)
        assert alone == Fitted([together.prompts[rule]], truncated=True)
    assert len(together.prompts[1]) == context


@pytest.mark.parametrize("response", [ANSWER, EMOJI])
def test_what_is_left_is_the_longest_beginning_that_fits(prompts: JudgePrompts, response: str) -> None:
    ends = token_ends(prompts.tokenizer, response)
    assert ends == sorted(set(ends))
    assert ends[-1] == len(response)
    whole, empty = longest(prompts.ids(QUESTION, response, ALL)), longest(prompts.ids(QUESTION, "", ALL))
    kept = set()
    for context in range(empty + 1, whole):
        cut = fit_or_cut(prompts, QUESTION, response, ALL, context)
        if cut.fault:
            # A character of several tokens at the very beginning.
            assert longest(prompts.ids(QUESTION, response[: ends[0]], ALL)) > context
            continue
        text = response_in(prompts, cut, response)
        assert len(text) in ends
        assert text.encode()
        assert "�" not in prompts.tokenizer.decode(cut.prompts[0])
        assert longest(cut.prompts) <= context
        further = next(end for end in ends if end > len(text))
        assert longest(prompts.ids(QUESTION, response[:further], ALL)) > context
        kept.add(text)
    assert len(kept) > len(ends) // 2


def test_a_character_of_several_tokens_is_not_cut(tokenizer: Any) -> None:
    assert len(encode_text(tokenizer, "👩‍🍳")) > 5
    assert token_ends(tokenizer, "a👩‍🍳") == [1, 2, 3, 4]
    assert token_ends(tokenizer, "") == []
    # The name of a control token is text like any other.
    assert len(token_ends(tokenizer, "<|im_end|>")) > 1


def test_where_nothing_of_the_response_fits_the_reason_says_so(prompts: JudgePrompts) -> None:
    alone = longest(prompts.ids(QUESTION, "", ALL))
    one = longest(prompts.ids(QUESTION, "Put", ALL))
    assert fit_or_cut(prompts, QUESTION, ANSWER, ALL, one).truncated
    for context in (alone, alone - 1, 1):
        refused = fit_or_cut(prompts, QUESTION, ANSWER, [0], context)
        assert refused.prompts == []
        assert refused.fault == (
            f"too long for the judge: nothing of the response fits beside {alone} tokens of prompt and rule, "
            f"its context holds {context}"
        )


def test_a_blank_beginning_is_nothing(prompts: JudgePrompts) -> None:
    response = "\n\n\n\n \n\n \n\n" + ANSWER
    context = longest(prompts.ids(QUESTION, response[:8], ALL))
    assert "nothing of the response fits" in str(fit_or_cut(prompts, QUESTION, response, ALL, context).fault)


def test_a_number_needs_room_for_its_digits(tokenizer: Any) -> None:
    prompts = judge(tokenizer, method="number")
    whole = longest(prompts.ids(QUESTION, ANSWER, ALL))
    assert prompts.answers.longest_prefix == 2
    assert fit(prompts, QUESTION, ANSWER, ALL, whole + 2).fault is None
    assert fit(prompts, QUESTION, ANSWER, ALL, whole + 1).fault == (
        f"too long for the judge: {whole + 2} tokens, its context holds {whole + 1}"
    )
    cut = fit_or_cut(prompts, QUESTION, ANSWER, ALL, whole + 1)
    assert cut.truncated
    assert longest(prompts.answers.questions(cut.prompts)) == whole + 1


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=60)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts.filter(str.strip), st.integers(0, 80), st.sampled_from(["three_labels", "number"]))
def test_any_text_is_cut_within_the_context_or_left_alone(tokenizer: Any, text: str, room: int, method: str) -> None:
    prompts = judge(tokenizer, method=method)
    context = longest(prompts.ids(QUESTION, "", ALL)) + room
    found = fit_or_cut(prompts, QUESTION, text, ALL, context)
    whole = fit(prompts, QUESTION, text, ALL, context)
    assert (found == whole) == (whole.fault is None)
    if found.truncated:
        assert longest(prompts.answers.questions(found.prompts)) <= context
        assert response_in(prompts, found, text).strip()


def test_prompts_that_are_tokenised_whole_are_cut_by_the_rule_that_is_longest_there() -> None:
    tokenizer = merging_tokenizer(r": | ?\p{L}+|.|\s", (":", "Ġ"))
    prompts = judge(tokenizer, chat_template=False)
    assert prompts.exact_seam == {False: False, True: False}
    context = longest(prompts.ids(QUESTION, ANSWER, ALL)) - 30
    cut = fit_or_cut(prompts, QUESTION, ANSWER, ALL, context)
    template = RatingTemplate("rule_last", "keep")
    text = response_in(prompts, cut, ANSWER)
    assert cut.truncated
    assert longest(cut.prompts) == context
    assert cut.prompts == [encode_text(tokenizer, template.render(QUESTION, text, rule)) for rule in POOL.texts]


def test_a_tokenizer_that_does_not_say_where_tokens_end_is_refused() -> None:
    from transformers import ByT5Tokenizer

    slow = ByT5Tokenizer()
    judge(slow, chat_template=False, method="number")
    with pytest.raises(ModelError, match=r"judge.too_long = truncate_response .* Set judge.too_long to quarantine"):
        judge(slow, chat_template=False, method="number", too_long="truncate_response")
