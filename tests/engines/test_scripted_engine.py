import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramo_ray.engines.scripted_engine import ScriptedEngine
from ramo_ray.errors import EngineError
from ramo_ray.settings import SamplingSettings

PROMPTS = st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=8), min_size=1, max_size=5)
suite = settings(deadline=None, derandomize=True)


def test_it_answers_from_the_function_in_the_order_asked() -> None:
    engine = ScriptedEngine(lambda prompt, labels: [-float(prompt[0] + label) for label in labels])

    assert engine.label_logprobs([[5], [3]], [1, 2]).tolist() == [[-6.0, -7.0], [-4.0, -5.0]]
    assert engine.label_logprobs([], [1, 2]).shape == (0, 2)


def test_a_function_that_fails_to_answer_is_an_error() -> None:
    with pytest.raises(EngineError, match="no finite answer"):
        ScriptedEngine(lambda _, labels: [float("nan")] * len(labels)).label_logprobs([[1]], [1])


@given(PROMPTS)
@suite
def test_the_default_gives_probabilities_that_leave_some_to_other_tokens(prompts: list[list[int]]) -> None:
    rows = ScriptedEngine().label_logprobs(prompts, [4, 5, 6])
    mass = np.exp(rows).sum(axis=1)

    assert rows.dtype == np.float32
    assert ((mass > 0.05) & (mass < 0.95)).all()


@given(PROMPTS)
@suite
def test_the_default_depends_on_prompt_and_label_only(prompts: list[list[int]]) -> None:
    engine = ScriptedEngine()
    rows = engine.label_logprobs(prompts, [4, 5, 6])

    np.testing.assert_array_equal(engine.label_logprobs(prompts, [6, 4, 5]), rows[:, [2, 0, 1]])
    np.testing.assert_array_equal(engine.label_logprobs(prompts[::-1], [4, 5, 6]), rows[::-1])


def test_the_default_differs_between_prompts() -> None:
    rows = ScriptedEngine().label_logprobs([[1, 2], [12], [2, 1]], [4, 5, 6])

    assert len({tuple(row) for row in rows.tolist()}) == 3


@given(PROMPTS, st.integers(1, 20))
@suite
def test_writing_is_repeatable_short_enough_and_in_the_vocabulary(prompts: list[list[int]], allowed: int) -> None:
    sampling = SamplingSettings(max_tokens=allowed)
    written = ScriptedEngine().generate(prompts, sampling)

    assert written == [ScriptedEngine().generate([prompt], sampling)[0] for prompt in prompts]
    for prompt, completion in zip(prompts, written, strict=True):
        assert 1 <= len(completion.token_ids) <= allowed
        assert set(completion.token_ids) <= set(prompt)
        assert (completion.finish_reason == "length") == (len(completion.token_ids) == allowed)


def test_prompts_beyond_the_context_are_refused() -> None:
    engine = ScriptedEngine(context_length=4)

    with pytest.raises(EngineError, match="prompt 1 has 5 tokens"):
        engine.label_logprobs([[1], [1] * 5], [1])
    with pytest.raises(EngineError, match="prompt 0 has 4 tokens"):
        engine.generate([[1] * 4], SamplingSettings())
