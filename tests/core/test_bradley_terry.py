import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramo_ray.core import bradley_terry

rewards = st.floats(-30, 30)


def test_known_values():
    assert bradley_terry.sigmoid(0.0) == 0.5
    assert bradley_terry.sigmoid(math.log(3)) == pytest.approx(0.75)
    assert bradley_terry.preference_probability([2.0, 1.0], [2.0, 1.0 + math.log(4)]) == pytest.approx([0.5, 0.2])


@given(rewards, rewards)
def test_a_preference_is_the_share_of_the_exponentials(a: float, b: float):
    expected = math.exp(a) / (math.exp(a) + math.exp(b))
    assert bradley_terry.preference_probability(a, b) == pytest.approx(expected, rel=1e-12)


@given(rewards, rewards, st.floats(-100, 100))
def test_only_the_difference_counts_and_the_two_sum_to_one(a: float, b: float, shift: float):
    probability = bradley_terry.preference_probability(a, b)
    assert probability + bradley_terry.preference_probability(b, a) == pytest.approx(1)
    assert bradley_terry.preference_probability(a + shift, b + shift) == pytest.approx(probability, rel=1e-9)


def test_rewards_of_any_size_neither_overflow_nor_vanish():
    assert bradley_terry.log_sigmoid([-1e4, 1e4]).tolist() == [-1e4, 0.0]
    assert bradley_terry.sigmoid([-1e4, 1e4]).tolist() == [0.0, 1.0]
    assert bradley_terry.sigmoid(-700.0) == pytest.approx(math.exp(-700), rel=1e-12)
    assert bradley_terry.negative_log_likelihood([0.0], [1e6]) == 1e6


def test_the_likelihood_of_hand_worked_pairs():
    # σ(log 3) = 3/4 and σ(0) = 1/2.
    expected = -(math.log(0.75) + math.log(0.5)) / 2
    assert bradley_terry.negative_log_likelihood([math.log(3), 7.0], [0.0, 7.0]) == pytest.approx(expected)


def test_the_likelihoods_slope_is_minus_the_chance_of_the_other_choice():
    # d/dm of −log σ(m) is −σ(−m), here by central difference.
    margin, step = 0.7, 1e-5
    above, below = (bradley_terry.negative_log_likelihood([margin + s], [0.0]) for s in (step, -step))
    assert (above - below) / (2 * step) == pytest.approx(-1 / (1 + math.exp(margin)), rel=1e-8)


def test_no_pairs_have_no_likelihood():
    with pytest.raises(ValueError, match="no pairs"):
        bradley_terry.negative_log_likelihood(np.empty(0), np.empty(0))
