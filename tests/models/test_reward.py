from pathlib import Path

import numpy as np
import pytest

from ramo_ray.errors import ModelError
from ramo_ray.models.adapter import new_adapter
from ramo_ray.models.classifier import BATCH_TOKENS, _batches, pad_right
from ramo_ray.models.reward import RewardModel, load_reward_model, new_reward_model
from ramo_ray.models.templates import load_tokenizer, reward_token_ids


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward")
    new_reward_model(tiny_model, seed=1).save_pretrained(folder)
    load_tokenizer(tiny_model).save_pretrained(folder)
    return folder


def random_rows(seed: int, count: int, longest: int) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    return [generator.integers(3, 300, size=generator.integers(1, longest)).tolist() for _ in range(count)]


@pytest.mark.slow
def test_a_score_does_not_depend_on_the_batch_it_is_computed_in(trained: Path) -> None:
    rows = random_rows(0, 40, 400)
    model = RewardModel(trained)
    together = model.score(rows)

    alone = np.concatenate([model.score([ids]) for ids in rows])
    np.testing.assert_allclose(together, alone, atol=1e-4)
    np.testing.assert_allclose(model.score(rows[::-1]), together[::-1], atol=1e-4)
    assert together.dtype == np.float32
    assert together.std() > 1e-3


@pytest.mark.slow
def test_the_score_is_read_at_the_end_of_turn_token(trained: Path) -> None:
    import torch

    model, tokenizer = RewardModel(trained), load_tokenizer(trained)
    rows = [reward_token_ids(tokenizer, [{"role": "user", "content": "Why?"}], text) for text in ("So.", "Because…")]
    with torch.inference_mode():
        every = [model.model.score(model.model.model(torch.tensor([ids])).last_hidden_state)[0, :, 0] for ids in rows]

    assert [ids[-1] for ids in rows] == [tokenizer.eos_token_id] * 2
    np.testing.assert_allclose(model.score(rows), [scores[-1] for scores in every], atol=1e-5)


@pytest.mark.slow
def test_a_reward_model_keeps_its_head_as_a_base(trained: Path) -> None:
    assert new_reward_model(trained, seed=9).score.weight.equal(load_reward_model(trained).score.weight)


@pytest.mark.slow
def test_a_classifier_with_more_outputs_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    new_adapter(tiny_model, ["a", "b", "c"]).save_pretrained(tmp_path)
    load_tokenizer(tiny_model).save_pretrained(tmp_path)

    with pytest.raises(ModelError, match="its head has 3 outputs, but 1 are needed"):
        new_reward_model(tmp_path)
    with pytest.raises(ModelError, match="has 3 outputs, but a reward model has one"):
        RewardModel(tmp_path)


@pytest.mark.slow
def test_transformers_alone_gives_the_same_scores(trained: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    plain = AutoModelForSequenceClassification.from_pretrained(trained)
    rows = random_rows(5, 6, 50)
    with torch.inference_mode():
        expected = [float(plain(torch.tensor([ids])).logits) for ids in rows]

    np.testing.assert_allclose(RewardModel(trained).score(rows), expected, atol=1e-5)


def test_batches_hold_every_row_once_and_keep_to_their_size() -> None:
    lengths = [*np.random.default_rng(0).integers(1, 900, size=200).tolist(), BATCH_TOKENS + 1]
    batches = list(_batches(lengths))

    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    sizes = [len(rows) * max(lengths[row] for row in rows) for rows in batches]
    assert max(sizes[:-1]) <= BATCH_TOKENS
    assert batches[-1].tolist() == [200]


def test_padding_stands_on_the_right_under_a_mask_of_zeros() -> None:
    padded, mask = pad_right([[7, 8, 9], [5], [6, 0]], 0)

    assert padded.tolist() == [[7, 8, 9], [5, 0, 0], [6, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
