import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hn

from ramo_ray.core.rating import NUMBERS, number_ratings, ratings_by_method, ratings_from_logprobs, two_label_ratings
from ramo_ray.settings import Method


def logs(*probabilities: float) -> np.ndarray:
    return np.log(np.array([probabilities]))


def test_a_hand_worked_rating():
    (rating,) = ratings_from_logprobs(logs(0.3, 0.1, 0.2))
    assert rating.p_yes == pytest.approx(1 / 2)
    assert rating.p_no == pytest.approx(1 / 6)
    assert rating.p_irrelevant == pytest.approx(1 / 3)
    assert rating.score == pytest.approx(1 / 3)
    assert rating.label_mass == pytest.approx(0.6)
    # The score over the whole vocabulary, as the authors' code has it.
    assert rating.label_mass * rating.score == pytest.approx(0.3 - 0.1)


def test_rows_stay_in_order_and_may_be_none():
    first, second = ratings_from_logprobs(np.concatenate([logs(0.8, 0.1, 0.1), logs(0.1, 0.8, 0.1)]))
    assert first.score == pytest.approx(0.7)
    assert second.score == pytest.approx(-0.7)
    assert ratings_from_logprobs(np.zeros((0, 3))) == []


def test_labels_that_hold_almost_no_mass_are_still_compared():
    (rating,) = ratings_from_logprobs(np.array([[-900.0, -901.0, -902.0]]))
    weights = [1, math.exp(-1), math.exp(-2)]
    assert rating.p_yes == pytest.approx(1 / sum(weights))
    assert rating.label_mass == 0.0


@given(hn.arrays(np.float32, (5, 3), elements=st.floats(-80, -1.125, width=32)))
def test_sums_and_ranges(logprobs: np.ndarray):
    for row, rating in zip(logprobs.astype(np.float64), ratings_from_logprobs(logprobs), strict=True):
        assert rating.p_yes + rating.p_no + rating.p_irrelevant == pytest.approx(1)
        assert -1 <= rating.score <= 1
        assert rating.score == pytest.approx(rating.p_yes - rating.p_no)
        assert 0 <= rating.label_mass <= 1
        assert rating.label_mass == pytest.approx(np.exp(row).sum())
        assert rating.score == pytest.approx((math.exp(row[0]) - math.exp(row[1])) / sum(map(math.exp, row)), abs=1e-12)


@given(st.floats(-30, -2), st.floats(-30, -2), st.floats(-30, -2))
def test_swapping_yes_and_no_turns_the_score_round(yes: float, no: float, irrelevant: float):
    one, other = ratings_from_logprobs(np.array([[yes, no, irrelevant], [no, yes, irrelevant]]))
    assert one.score == pytest.approx(-other.score)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(value: float):
    with pytest.raises(ValueError, match="not finite"):
        ratings_from_logprobs(np.array([[-1.0, -2.0, -3.0], [-1.0, value, -3.0]]))


def test_a_mass_over_one_is_refused_but_rounding_is_not():
    with pytest.raises(ValueError, match="sum to more than 1"):
        ratings_from_logprobs(logs(0.6, 0.3, 0.2))
    (rating,) = ratings_from_logprobs(logs(0.6, 0.3, 0.1001))
    assert rating.label_mass == 1.0


# Appendix D's other two ways


def test_two_labels_by_hand():
    (rating,) = two_label_ratings(logs(0.3, 0.1))
    assert rating.score == rating.p_yes == pytest.approx(3 / 4)
    assert rating.p_no == pytest.approx(1 / 4)
    assert rating.p_irrelevant is None
    assert rating.label_mass == pytest.approx(0.4)


@given(hn.arrays(np.float32, (4, 3), elements=st.floats(-30, -1.125, width=32)))
def test_two_labels_are_three_of_which_one_is_left_out(logprobs: np.ndarray):
    for two, three in zip(two_label_ratings(logprobs[:, :2]), ratings_from_logprobs(logprobs), strict=True):
        assert two.score == pytest.approx(three.p_yes / (three.p_yes + three.p_no), abs=1e-6)
        assert 0 <= two.score <= 1
        assert two.label_mass <= three.label_mass + 1e-9


def test_a_number_by_hand():
    assert NUMBERS == ("0.0", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9", "1.0")
    (rating,) = number_ratings(logs(*[0.05] * 7, 0.2, *[0.05] * 3))
    assert rating == (0.7, None, None, None, pytest.approx(0.7))


def test_of_equally_likely_numbers_the_smaller_is_taken():
    low, high, flat = number_ratings(
        np.concatenate([logs(*p) for p in ([0.3, *[0.01] * 9, 0.3], [*[0.01] * 9, 0.3, 0.3], [0.05] * 11)])
    )
    assert [low.score, high.score, flat.score] == [0.0, 0.9, 0.0]


@pytest.mark.parametrize(("method", "answers"), [("three_labels", 3), ("two_labels", 2), ("number", 11)])
def test_each_method_has_its_own_answers_and_the_same_faults(method: Method, answers: int):
    even = logs(*[0.8 / answers] * answers)
    (rating,) = ratings_by_method(method, even)
    assert rating.score == pytest.approx({"three_labels": 0.0, "two_labels": 0.5, "number": 0.0}[method])
    assert rating.label_mass == pytest.approx(0.8)
    assert ratings_by_method(method, even[:0]) == []
    with pytest.raises(ValueError, match="sum to more than 1"):
        ratings_by_method(method, logs(*[1.1 / answers] * answers))
    with pytest.raises(ValueError, match="not finite"):
        ratings_by_method(method, np.concatenate([even, np.full_like(even, np.nan)]))
