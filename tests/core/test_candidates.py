"""Probabilities of whole answers against a language model that is small enough to enumerate."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramo_ray.core.candidates import Candidates, plan_candidates
from ramo_ray.errors import LabelError

VOCABULARY = 6


def next_logprobs(prompt: list[int]) -> np.ndarray:
    """A model whose next token depends on every token before."""
    logits = np.random.default_rng([7, *prompt]).normal(size=VOCABULARY)
    return logits - np.log(np.exp(logits).sum())


def ask(plan: Candidates, prompts: list[list[int]]) -> np.ndarray:
    rows = [next_logprobs(question)[list(plan.tokens)] for question in plan.questions(prompts)]
    return plan.logprobs(np.array(rows, dtype=np.float32).reshape(-1, len(plan.tokens)))


def test_a_plan_by_hand() -> None:
    plan = plan_candidates(["0.0", "0.1", "1.0", "x"], [[5, 9, 5], [5, 9, 6], [6, 9, 5], [7]])
    assert plan.prefixes == ((), (5,), (5, 9), (6,), (6, 9))
    assert plan.tokens == (5, 9, 6, 7)
    assert plan.paths == (((0, 0), (1, 1), (2, 0)), ((0, 0), (1, 1), (2, 2)), ((0, 2), (3, 1), (4, 0)), ((0, 3),))
    assert plan.longest_prefix == 2
    assert plan.questions([[1, 2], [3]])[:6] == [[1, 2], [1, 2, 5], [1, 2, 5, 9], [1, 2, 6], [1, 2, 6, 9], [3]]
    assert plan.question_tokens([[1, 2], [3]]) == sum(map(len, plan.questions([[1, 2], [3]]))) == 27


def test_probabilities_by_hand() -> None:
    plan = plan_candidates(["a", "bc", "bd"], [[1], [2, 3], [2, 4]])
    assert plan.prefixes == ((), (2,))
    # Rows: after the prompt, and after the prompt and 2; columns 1, 2, 3, 4. The halves are asked for in vain.
    rows = np.log([[0.25, 0.5, 0.5, 0.5], [0.5, 0.5, 0.1, 0.8]])
    np.testing.assert_allclose(np.exp(plan.logprobs(rows)), [[0.25, 0.5 * 0.1, 0.5 * 0.8]])


def test_answers_of_one_token_are_the_engines_own_numbers() -> None:
    plan = plan_candidates(["Yes", "No", "Irrelevant"], [[31], [7], [12]])
    assert plan.prefixes == ((),)
    assert plan.tokens == (31, 7, 12)
    assert plan.questions([[1, 2]]) == [[1, 2]]
    rows = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    np.testing.assert_array_equal(plan.logprobs(rows), rows.astype(np.float64))
    assert plan.logprobs(np.zeros((0, 3), dtype=np.float32)).shape == (0, 3)


tokens = st.integers(0, VOCABULARY - 1)
answers = st.lists(st.lists(tokens, min_size=1, max_size=4), min_size=1, max_size=8)


@given(answers, st.lists(st.lists(tokens, max_size=3), max_size=3))
def test_each_answer_has_the_product_of_its_steps(given_answers: list[list[int]], prompts: list[list[int]]) -> None:
    chosen: list[list[int]] = []
    for answer in given_answers:
        if not any(answer[: len(other)] == other or other[: len(answer)] == answer for other in chosen):
            chosen.append(answer)
    plan = plan_candidates([str(answer) for answer in chosen], chosen)
    assert len(set(plan.prefixes)) == len(plan.prefixes)
    assert plan.prefixes[0] == ()
    found = ask(plan, prompts)
    expected = [
        [sum(next_logprobs([*prompt, *answer[:i]])[answer[i]] for i in range(len(answer))) for answer in chosen]
        for prompt in prompts
    ]
    np.testing.assert_allclose(found, np.array(expected).reshape(len(prompts), len(chosen)), atol=1e-5)
    assert plan.question_tokens(prompts) == sum(map(len, plan.questions(prompts)))


def test_all_answers_of_one_length_have_the_whole_mass() -> None:
    pairs = [[a, b] for a in range(VOCABULARY) for b in range(VOCABULARY)]
    found = ask(plan_candidates([str(pair) for pair in pairs], pairs), [[1], [2, 3]])
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1, atol=1e-6)
    assert not math.isclose(found[0, 0], found[1, 0])


@pytest.mark.parametrize(
    ("spelled", "message"),
    [
        ([[1], [1, 2], [3]], r"`one` begins `two` \(token ids \[1\]\)"),
        ([[1, 2], [3], [1, 2]], r"`one` begins `three` .*`three` begins `one`"),
        ([[1], [], [3]], "`two` has no token"),
    ],
)
def test_answers_that_cannot_be_told_apart_are_named(spelled: list[list[int]], message: str) -> None:
    with pytest.raises(LabelError, match=message):
        plan_candidates(["one", "two", "three"], spelled)
