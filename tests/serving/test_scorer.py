"""Rewards of packed rows against those of the reward model itself, row by row."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramo_ray.errors import ModelError
from ramo_ray.models.reward import RewardModel
from ramo_ray.serving.scorer import RewardScorer

pytestmark = pytest.mark.slow
ROWS = st.lists(st.lists(st.integers(3, 319), min_size=1, max_size=60), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def scorer(reward_model: Path) -> RewardScorer:
    return RewardScorer(reward_model)


@pytest.fixture(scope="module")
def one_by_one(reward_model: Path) -> RewardModel:
    return RewardModel(reward_model)


@settings(max_examples=30)
@given(rows=ROWS, prefix=st.lists(st.integers(3, 319), max_size=150))
def test_a_reward_is_the_models_own_whatever_is_in_the_batch(
    scorer: RewardScorer, one_by_one: RewardModel, rows: list[list[int]], prefix: list[int]
) -> None:
    asked = [*rows, *([*prefix, *row] for row in rows)]
    expected = np.concatenate([one_by_one.score([row]) for row in asked])
    np.testing.assert_allclose(scorer.score(asked), expected, atol=1e-4)


def test_a_beginning_that_rows_share_is_computed_once(scorer: RewardScorer) -> None:
    assert scorer.tree.shares
    prompt, before = list(range(3, 103)), scorer.computed
    scorer.score([[*prompt, 5, answer] for answer in (7, 8, 9, 10)])
    assert scorer.computed - before == len(prompt) + 1 + 4


def test_many_passes_give_what_one_gives(scorer: RewardScorer, one_by_one: RewardModel) -> None:
    random = np.random.default_rng(0)
    rows = [random.integers(3, 319, length).tolist() for length in random.integers(1, 200, 60)]
    whole, scorer.tree.budget = scorer.tree.budget, 100
    try:
        np.testing.assert_allclose(scorer.score(rows), one_by_one.score(rows), atol=1e-4)
    finally:
        scorer.tree.budget = whole


def test_rows_that_do_not_fit_and_models_that_are_none_are_refused(
    scorer: RewardScorer, reward_model: Path, tiny_model: Path, tmp_path: Path
) -> None:
    assert len(scorer.score([])) == 0
    for row in ([], [5] * 513):
        with pytest.raises(ModelError, match=f"row 1 has {len(row)} tokens; the model takes 1 to 512"):
            scorer.score([[4], row])
    with pytest.raises(ModelError, match="is no classifier"):
        RewardScorer(tiny_model)
    two = tmp_path / "two"
    shutil.copytree(reward_model, two)
    config = json.loads((two / "config.json").read_text())
    (two / "config.json").write_text(json.dumps(config | {"id2label": {"0": "a", "1": "b"}}))
    with pytest.raises(ModelError):
        RewardScorer(two)
