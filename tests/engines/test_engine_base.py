import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ramo_ray.engines import build_engine, check_engine
from ramo_ray.engines.base import (
    NOT_FINITE,
    MissingAnswersError,
    check_labels,
    check_prompts,
    checked,
    context_within,
    end_ids,
    prompt_seed,
)
from ramo_ray.engines.scripted_engine import ScriptedEngine
from ramo_ray.errors import EngineError, ModelError
from ramo_ray.settings import EngineSettings, OpenAISettings, SamplingSettings


def test_prompts_that_fit_pass() -> None:
    check_prompts([[1], [1, 2, 3]], 3)


def test_faulty_prompts_are_named_by_index_and_length() -> None:
    with pytest.raises(EngineError, match=r"prompt 1 is empty; prompt 2 has 4 tokens; .*1 to 3 tokens"):
        check_prompts([[1], [], [1, 2, 3, 4]], 3)


def test_many_faulty_prompts_make_a_short_message() -> None:
    with pytest.raises(EngineError, match=r"prompt 4 is empty and 95 more"):
        check_prompts([[]] * 100, 3)


@pytest.mark.parametrize("labels", [[], [5, 5], [10], [-1]])
def test_labels_are_distinct_tokens_of_the_vocabulary(labels: list[int]) -> None:
    with pytest.raises(EngineError, match="distinct token ids below 10"):
        check_labels(labels, 10)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_answer_that_is_not_finite_is_never_a_score(value: float) -> None:
    rows = np.zeros((4, 2), dtype=np.float32)
    rows[2, 1] = value

    with pytest.raises(EngineError, match=r"1 of 4 prompts \(index 2\)"):
        checked(rows)


def test_of_missing_answers_the_others_come_along() -> None:
    rows = np.array([[-1, -2], [-3, -np.inf], [-4, -5], [np.nan, -6]], dtype=np.float32)

    with pytest.raises(MissingAnswersError) as caught:
        checked(rows, {3: "the server is busy"})
    found = caught.value
    np.testing.assert_array_equal(found.logprobs, [[-1, -2], [np.nan, np.nan], [-4, -5], [np.nan, np.nan]])
    assert found.reasons == {1: NOT_FINITE, 3: "the server is busy"}
    assert str(pickle.loads(pickle.dumps(found))) == str(found)
    # The caller's rows are its own.
    assert rows[1, 0] == -3


def test_finite_answers_pass() -> None:
    rows = np.full((2, 3), -1e30, dtype=np.float32)

    assert checked(rows) is rows


def test_seeds_depend_on_prompt_and_sampling() -> None:
    seeds = [
        prompt_seed(prompt, SamplingSettings(seed=seed, temperature=temperature))
        for prompt in ([1, 23], [12, 3])
        for seed in (0, 1)
        for temperature in (0.5, 1.0)
    ]

    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert prompt_seed((1, 23), SamplingSettings(temperature=0.5)) == seeds[0]


def test_scripted_is_built_without_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"vocab_size": 50, "max_position_embeddings": 64}')
    engine = build_engine(EngineSettings(engine="scripted", max_length=32), tmp_path)

    assert isinstance(engine, ScriptedEngine)
    assert (engine.vocabulary_size, engine.context_length) == (50, 32)


def test_scripted_without_config_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        build_engine(EngineSettings(engine="scripted"), tmp_path)


def test_installed_engines_pass_the_check() -> None:
    for name in ("transformers", "vllm", "scripted"):
        check_engine(EngineSettings(engine=name))
    server = OpenAISettings(base_url="http://localhost:1/v1", model="m")
    check_engine(EngineSettings(engine="openai", openai=server))


def test_the_context_is_the_models_or_less(tmp_path: Path) -> None:
    config = SimpleNamespace(max_position_embeddings=512)

    assert context_within(config, None, tmp_path) == 512
    assert context_within(config, 100, tmp_path) == 100
    assert context_within(config, 1000, tmp_path) == 512
    assert context_within(SimpleNamespace(), 100, tmp_path) == 100
    with pytest.raises(ModelError, match="set max_length"):
        context_within(SimpleNamespace(), None, tmp_path)


def test_end_tokens_are_the_first_that_are_stated() -> None:
    assert end_ids(None, 2) == {2}
    assert end_ids([2, 3], 4) == {2, 3}
    assert end_ids(0, 4) == {0}
    assert end_ids(None, None) == set()
