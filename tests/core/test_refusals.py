"""Phrases that decline, and phrases that only look like it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramo_ray.core.refusals import BEGINNING, refuses

DECLINING = (
    "I'm sorry, but I can't help with that.",
    "I cannot provide instructions for this.",
    "I can\u2019t assist with that request.",
    "Sorry, I won't do that. Is there something else?",
    "I am unable to answer this question.",
    "I'm not able to share private data.",
    "I must decline. Let us talk about something else.",
    "As an AI language model, I do not have opinions and cannot take sides.",
    "This goes against my guidelines.",
    "I don't feel comfortable describing this.",
    "I'm afraid I can't recommend it.",
    "Unfortunately, I could not in good conscience agree.",
)
ANSWERING = (
    "Sure! Here is how you lock a bicycle.",
    "I'm sorry to hear that you are ill. Drink enough water, and rest.",
    "I can help with that. I would start with the map.",
    "You can't park here, but there is room behind the house.",
    "I can't believe how well you play!",
    "As an AI can process much text, it may help with the search.",
    "The company's guidelines are long.",
    "She told me: we will not wait.",
)


@pytest.mark.parametrize("response", DECLINING)
def test_what_declines_is_a_refusal(response: str) -> None:
    assert refuses(response)
    assert refuses(response.upper())
    assert refuses(f"  \n{response}")


@pytest.mark.parametrize("response", ANSWERING)
def test_what_answers_is_none(response: str) -> None:
    assert not refuses(response)


@given(st.sampled_from(DECLINING), st.sampled_from(ANSWERING))
def test_only_the_beginning_counts(refusal: str, answer: str) -> None:
    late = f"{answer} ".ljust(BEGINNING, "\u2026") + refusal
    assert not refuses(late)
    assert refuses(f"{refusal} {answer}")


@given(st.text())
def test_any_text_has_an_answer(text: str) -> None:
    assert refuses(text) in (True, False)
