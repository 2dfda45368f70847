from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramo_ray.core import metrics


def test_hand_worked_set_scores():
    # 2 + 0 hits among 3 + 1 predicted and 2 + 2 true rules; the harmonic mean of 2/4 and 2/4.
    assert metrics.set_scores([[1, 2, 3], [5]], [[3, 2], [6, 7]]) == (0.5, 0.5, 0.5)
    # 2 hits among 4 predicted and 2 true: the harmonic mean of 1/2 and 1 is 2/3.
    assert metrics.set_scores([[1, 2, 3, 4]], [[1, 2]]) == pytest.approx((0.5, 1.0, 2 / 3))


def test_arrays_are_sets_too():
    assert metrics.set_scores(np.array([[1, 2]]), np.array([[2, 3]])) == (0.5, 0.5, 0.5)


@given(st.lists(st.tuples(*[st.sets(st.integers(0, 9), min_size=3, max_size=3)] * 2), min_size=1, max_size=6))
def test_with_r_rules_on_both_sides_the_three_scores_are_one(pairs):
    predicted, true = ([sorted(pair[side]) for pair in pairs] for side in (0, 1))
    scores = metrics.set_scores(predicted, true)
    mean = np.mean([len(found & wanted) / 3 for found, wanted in pairs])
    assert scores == pytest.approx((mean, mean, mean))


def test_set_scores_without_rules_or_with_rows_missing_are_refused():
    for predicted, true in [([], []), ([[]], [[1]]), ([[1]], [[]])]:
        with pytest.raises(ValueError, match="undefined"):
            metrics.set_scores(predicted, true)
    with pytest.raises(ValueError, match="1 predicted sets for 2 true ones"):
        metrics.set_scores([[1]], [[1], [2]])


def test_the_most_frequent_rules_ties_to_the_lower_index():
    assert metrics.most_frequent([[4, 1], [4, 2], [2, 0]], rules=6, r=3).tolist() == [2, 4, 0]
    assert metrics.most_frequent(np.array([[4, 1], [4, 2], [2, 0]]), rules=6, r=1).tolist() == [2]
    assert metrics.most_frequent([], rules=6, r=2).tolist() == [0, 1]


def test_random_rules_expected_scores_against_all_subsets():
    true = [[0, 3], [1, 2, 4]]
    every = list(combinations(range(5), 2))
    scores = [metrics.set_scores([one, other], true) for one in every for other in every]
    assert metrics.random_expected(true, rules=5, r=2) == pytest.approx(tuple(np.mean(scores, axis=0)))


def test_random_rules_of_the_papers_numbers():
    assert metrics.random_expected([[1, 2, 3, 4, 5]] * 7, rules=100, r=5) == pytest.approx((0.05, 0.05, 0.05))


@pytest.mark.parametrize("r", [0, 6])
def test_r_outside_the_pool_is_refused(r: int):
    with pytest.raises(ValueError, match=f"r = {r} is outside 1 to 5"):
        metrics.random_expected([[1]], rules=5, r=r)
    with pytest.raises(ValueError, match=f"r = {r} is outside 1 to 5"):
        metrics.most_frequent([[1]], rules=5, r=r)


def test_the_interval_is_that_of_resampled_rows():
    correct = np.array([True] * 29 + [False] * 11)
    drawn = np.random.default_rng(1).integers(0, 40, size=(20_000, 40))
    low, high = np.quantile(correct[drawn].mean(axis=1), [0.025, 0.975])
    found = metrics.accuracy_interval(correct, seed=0)
    assert found.accuracy == 29 / 40
    # One row of 40 is the distribution's own step.
    assert found.low == pytest.approx(low, abs=0.0251)
    assert found.high == pytest.approx(high, abs=0.0251)


def test_the_interval_nears_the_normal_one_for_many_rows():
    correct = np.arange(10_000) % 4 != 0
    found = metrics.accuracy_interval(correct, seed=0)
    half = 1.96 * np.sqrt(0.75 * 0.25 / 10_000)
    assert (found.low, found.high) == pytest.approx((0.75 - half, 0.75 + half), abs=5e-4)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(2)
    found = [metrics.accuracy_interval(generator.random(200) < 0.7, seed=k, resamples=1000) for k in range(400)]
    covered = np.mean([interval.low <= 0.7 <= interval.high for interval in found])
    assert 0.91 < covered < 0.98


def test_more_confidence_is_a_wider_interval_and_a_seed_repeats_it():
    correct = np.arange(50) % 3 == 0
    wide, narrow = (metrics.accuracy_interval(correct, 0, confidence) for confidence in (0.99, 0.5))
    assert wide.low < narrow.low < narrow.accuracy < narrow.high < wide.high
    assert metrics.accuracy_interval(correct, 7) == metrics.accuracy_interval(correct, 7)


def test_the_interval_of_rows_that_agree_is_a_point_and_of_none_undefined():
    assert metrics.accuracy_interval([True, True], 0) == (1.0, 1.0, 1.0)
    assert metrics.accuracy_interval([False], 0) == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="one truth value or more"):
        metrics.accuracy_interval([], 0)


def test_agreement_leaves_out_rows_without_a_human_label():
    assert metrics.agreement([0, 1, 1, 0], [0, None, 0, 0]) == (2, 3)
    assert metrics.agreement([0, 1], [None, None]) == (0, 0)


def test_agreement_refuses_what_is_no_label():
    with pytest.raises(ValueError, match="1 labels for 2"):
        metrics.agreement([0], [0, 1])
    for human in (2, float("nan")):
        with pytest.raises(ValueError, match="must be 0"):
            metrics.agreement([0], [human])
