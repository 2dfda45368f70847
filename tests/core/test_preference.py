import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramo_ray.core.preference import aggregate, prefer

scores = st.floats(-1, 1)


def test_a_hand_worked_aggregation():
    table = [[1.0, 0.5, -0.5, 0.25], [0.0, 1.0, -1.0, 0.5]]
    assert aggregate(table, [[0, 2], [1, 3]]).tolist() == [0.25, 0.75]
    assert aggregate(table, np.array([[0, 2], [1, 3]])).tolist() == [0.25, 0.75]


def test_rows_may_select_different_numbers_of_rules():
    assert aggregate([[1.0, 0.5], [0.0, 1.0]], [[1], [0, 1]]).tolist() == [0.5, 0.5]


def test_cells_that_are_not_selected_need_no_rating():
    nan = math.nan
    assert aggregate([[nan, 0.5, 1.0]], [[1, 2]]).tolist() == [0.75]
    with pytest.raises(ValueError, match="row 0 selects a rule whose score is not finite"):
        aggregate([[nan, 0.5, 1.0]], [[0, 2]])


def test_a_row_without_rules_has_no_score():
    with pytest.raises(ValueError, match="row 1 selects no rule"):
        aggregate([[1.0], [1.0]], [[0], []])


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 1\) do not fit 1 rows"):
        aggregate([[1.0], [1.0]], [[0]])


@given(st.integers(1, 5), st.data())
def test_the_mean_is_the_weighted_sum_of_equation_2(rules: int, data: st.DataObject):
    row = data.draw(st.lists(scores, min_size=rules, max_size=rules))
    indicator = data.draw(st.lists(st.booleans(), min_size=rules, max_size=rules).filter(any))
    expected = sum(s * psi for s, psi in zip(indicator, row, strict=True)) / sum(indicator)
    assert aggregate([row], [np.flatnonzero(indicator)])[0] == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("phi_a", "phi_b", "tolerance", "expected"),
    [
        (0.5, 0.25, 0.0, ("a", 0.25, False)),
        (0.25, 0.5, 0.0, ("b", -0.25, False)),
        (0.5, 0.5, 0.0, ("b", 0.0, True)),
        (0.5, 0.25, 0.25, ("b", 0.25, True)),
        (0.25, 0.5, 0.25, ("b", -0.25, True)),
        (0.75, 0.25, 0.25, ("a", 0.5, False)),
        (0.25, 0.75, 0.25, ("b", -0.5, False)),
    ],
)
def test_a_is_chosen_only_if_strictly_better(phi_a, phi_b, tolerance, expected):
    assert prefer(phi_a, phi_b, tolerance) == expected


def test_a_preference_of_numpy_scores_holds_plain_values():
    assert [type(value) for value in prefer(*aggregate([[0.5], [0.25]], [[0], [0]]))] == [str, float, bool]


@given(scores, scores, st.floats(0, 0.5))
def test_swapping_the_responses_swaps_the_choice_unless_it_is_a_tie(phi_a: float, phi_b: float, tolerance: float):
    one, other = prefer(phi_a, phi_b, tolerance), prefer(phi_b, phi_a, tolerance)
    assert one.margin == -other.margin
    assert one.tie == other.tie
    assert (one.chosen_is == other.chosen_is == "b") if one.tie else (one.chosen_is != other.chosen_is)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_gives_no_preference(bad: float):
    with pytest.raises(ValueError, match="both must be finite"):
        prefer(bad, 0.0)
    with pytest.raises(ValueError, match="both must be finite"):
        prefer(0.0, bad)
