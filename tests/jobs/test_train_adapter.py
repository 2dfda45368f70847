"""The adapter's figures beside its baselines, also where it picked nothing."""

from __future__ import annotations

import pytest

from jobs.train_adapter import _scores
from ramo_ray.core.rules import make_pool

POOL = make_pool("ten", [f"Rule {i}." for i in range(10)], origin="test")
TRAIN = [{"critical": [0, 1]}, {"critical": [0, 2]}, {"critical": [0, 2]}]
HELD_OUT = [{"critical": [0, 3]}, {"critical": [2, 4]}]


def test_adapter_and_baselines_by_hand() -> None:
    scores = _scores([[0, 3], [5, 4]], TRAIN, HELD_OUT, POOL, 2)
    assert scores["adapter"] == {"precision": 0.75, "recall": 0.75, "f1": 0.75}
    # The most frequent rules of the training trios are 0 and 2: one hit in each held-out trio.
    assert scores["most frequent rules"]["recall"] == 0.5
    # A random pair of ten rules finds a given one with probability 2 / 10.
    assert scores["random rules"]["recall"] == pytest.approx(0.2)


def test_an_adapter_that_could_pick_nothing_scores_zero() -> None:
    assert _scores([[], []], TRAIN, HELD_OUT, POOL, 2)["adapter"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0}
