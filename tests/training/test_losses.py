import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ramo_ray.core import bradley_terry
from ramo_ray.training.losses import bradley_terry_loss, multi_label_loss, pairs_in_order, rules_recalled

REWARDS = st.lists(st.tuples(*[st.floats(-50, 50)] * 2), min_size=1, max_size=12)


def test_bradley_terry_loss_of_hand_worked_pairs() -> None:
    # σ(0) = 1/2 and σ(log 3) = 3/4.
    loss = bradley_terry_loss(torch.tensor([1.0, math.log(3)]), torch.tensor([1.0, 0.0]), torch.tensor([1.0, 2.0]))

    assert loss.item() == pytest.approx(math.log(2) + 2 * math.log(4 / 3))


@given(REWARDS)
def test_bradley_terry_loss_is_the_negative_log_likelihood(pairs: list[tuple[float, float]]) -> None:
    chosen, rejected = np.array(pairs).T
    weights = torch.full((len(pairs),), 1 / len(pairs))
    loss = bradley_terry_loss(torch.tensor(chosen), torch.tensor(rejected), weights)

    assert loss.item() == pytest.approx(bradley_terry.negative_log_likelihood(chosen, rejected), rel=1e-4, abs=1e-6)


def test_bradley_terry_loss_stays_finite_and_exact_for_far_rewards() -> None:
    loss = bradley_terry_loss(torch.tensor([-500.0]), torch.tensor([500.0]), torch.ones(1))

    assert loss.item() == 1000


def test_multi_label_loss_is_the_mean_over_rules_of_the_cross_entropy() -> None:
    # Two rules: σ(log 3) = 3/4 where 1 is true, σ(0) = 1/2 where 0 is true.
    logits, targets = torch.tensor([[math.log(3), 0.0]]), torch.tensor([[1, 0]])
    expected = (math.log(4 / 3) + math.log(2)) / 2

    assert multi_label_loss(logits, targets, torch.ones(1)).item() == pytest.approx(expected)
    twice = multi_label_loss(logits.repeat(2, 1), targets.repeat(2, 1), torch.tensor([0.25, 0.0]))
    assert twice.item() == pytest.approx(expected / 4)


def test_losses_in_bfloat16_are_computed_in_float32() -> None:
    chosen, rejected = torch.tensor([3.0], dtype=torch.bfloat16), torch.tensor([1.0], dtype=torch.bfloat16)

    assert bradley_terry_loss(chosen, rejected, torch.ones(1)).item() == pytest.approx(math.log1p(math.exp(-2)))


def test_a_tie_is_a_wrong_pair_and_weight_0_is_not_counted() -> None:
    answers = pairs_in_order(
        torch.tensor([2.0, 1.0, 0.0, 9.0]), torch.tensor([1.0, 1.0, 1.0, 0.0]), torch.tensor([1.0, 1.0, 1.0, 0.0])
    )

    assert [value.item() for value in answers] == [1, 3]


def test_recall_counts_true_rules_among_the_r_highest_outputs() -> None:
    logits = torch.tensor([[5.0, 4.0, 3.0, 2.0], [1.0, 2.0, 3.0, 4.0], [9.0, 9.0, 9.0, 9.0]])
    targets = torch.tensor([[1, 0, 1, 1], [0, 0, 1, 0], [1, 1, 1, 1]])
    answers = rules_recalled(logits, targets, torch.tensor([0.5, 0.5, 0.0]), r=2)

    assert [value.item() for value in answers] == [2, 4]
    assert [value.item() for value in rules_recalled(logits, targets, torch.ones(3), r=9)] == [8, 8]
