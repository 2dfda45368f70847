from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ramo_ray.core import selection
from ramo_ray.settings import SelectionSettings

# Steps of 1/8 are exact in binary, so that sums compare exactly, and they tie often.
eighths = st.integers(-8, 8).map(lambda n: n / 8)


@st.composite
def trios(draw: st.DrawFn, most_rules: int = 7) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, most_rules)))
    a, b, relevance = (draw(arrays(np.float64, shape, elements=eighths)) for _ in range(3))
    return a, b, relevance


gammas = st.integers(0, 40).map(lambda n: n / 8)


def test_a_hand_worked_trio():
    # Discrepancies 0.75, 0, 1, 0.25; with twice the relevance 0.75 + 0.25, 1.5, 1 - 0.5, 0.25 + 1.
    a, b = [[0.5, -0.5, -0.25, 0.0]], [[-0.25, -0.5, 0.75, 0.25]]
    relevance = [[0.125, 0.75, -0.25, 0.5]]
    assert selection.discrepancy(a, b).tolist() == [[0.75, 0.0, 1.0, 0.25]]
    assert selection.objective(a, b, relevance, 2.0).tolist() == [[1.0, 1.5, 0.5, 1.25]]
    assert selection.select_top(selection.objective(a, b, relevance, 2.0), 3).tolist() == [[1, 3, 0]]
    assert selection.select_top(selection.objective(a, b, relevance, 0.0), 3).tolist() == [[2, 0, 3]]


@given(trios(), gammas, st.data())
def test_selection_maximises_the_sum_over_all_subsets(trio, gamma: float, data: st.DataObject):
    a, b, relevance = trio
    r = data.draw(st.integers(1, a.shape[1]))
    chosen = selection.select_top(selection.objective(a, b, relevance, gamma), r)
    for row, rules in enumerate(chosen):
        sums = {
            subset: sum(abs(a[row, i] - b[row, i]) + gamma * relevance[row, i] for i in subset)
            for subset in combinations(range(a.shape[1]), r)
        }
        assert sums[tuple(sorted(rules))] == max(sums.values())


@given(trios(), st.data())
def test_rules_come_best_first_and_ties_go_to_the_lower_index(trio, data: st.DataObject):
    values = trio[0]
    r = data.draw(st.integers(1, values.shape[1]))
    expected = [sorted(range(len(row)), key=lambda i, row=row: (-row[i], i))[:r] for row in values]
    assert selection.select_top(values, r).tolist() == expected


@given(st.permutations(range(8)), st.integers(1, 8))
def test_renumbering_the_rules_renumbers_the_selection(order: list[int], r: int):
    values = np.array([[0.1, -0.4, 0.9, 0.3, 0.8, -0.2, 0.5, 0.0]])
    moved = selection.select_top(values[:, order], r)
    assert np.take(order, moved).tolist() == selection.select_top(values, r).tolist()


@given(trios(), gammas)
def test_swapping_the_responses_changes_nothing(trio, gamma: float):
    a, b, relevance = trio
    settings = SelectionSettings(r=1, gamma=gamma)
    one, other = (selection.select(*pair, relevance, settings=settings) for pair in ((a, b), (b, a)))
    assert [row.tolist() for row in one] == [row.tolist() for row in other]


def test_differences_below_float32_still_count():
    # In float32 both differences round to 1, and the tie would go to rule 0.
    a, b = np.ones((1, 2), np.float32), np.array([[0.0, -(2.0**-26)]], np.float32)
    assert selection.select_top(selection.discrepancy(a, b), 1).tolist() == [[1]]
    assert selection.select_top(selection.objective(a, b, np.zeros((1, 2), np.float32), 2.0), 1).tolist() == [[1]]


def test_all_rules_over_a_threshold_at_most_cap_best_objective_first():
    differences = [[0.5, 0.75, 0.25, 1.0], [0.5, 0.25, 0.0, 0.5], [1.0, 1.0, 1.0, 1.0]]
    values = [[2.0, 1.0, 9.0, 3.0], [1.0, 1.0, 1.0, 1.0], [0.0, -1.0, 2.0, 2.0]]
    found = selection.select_over_threshold(differences, values, 0.5, 3)
    assert [row.tolist() for row in found] == [[3, 1], [], [2, 3, 0]]


@given(trios(), gammas, st.integers(0, 16).map(lambda n: n / 8), st.integers(1, 7))
def test_the_threshold_variant_against_a_loop(trio, gamma: float, threshold: float, cap: int):
    a, b, relevance = trio
    settings = SelectionSettings(gamma=gamma, threshold=threshold, cap=cap)
    found = selection.select(a, b, relevance, settings=settings)
    for row, rules in enumerate(found):
        difference = np.abs(a[row] - b[row])
        value = difference + gamma * relevance[row]
        over = [i for i in range(a.shape[1]) if difference[i] > threshold]
        assert rules.tolist() == sorted(over, key=lambda i, value=value: (-value[i], i))[:cap]
        assert rules.dtype == np.int64


def test_the_settings_choose_r_rules():
    a, b = np.array([[0.0, 1.0, 0.5]]), np.zeros((1, 3))
    found = selection.select(a, b, np.zeros((1, 3)), settings=SelectionSettings(r=2))
    assert [row.tolist() for row in found] == [[1, 2]]


def test_no_trios_select_nothing():
    assert selection.select_top(np.empty((0, 4)), 2).shape == (0, 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused(bad: float):
    values = np.zeros((2, 3))
    values[1, 2] = bad
    with pytest.raises(ValueError, match="row 1, rule 2 is not finite"):
        selection.select_top(values, 1)
    with pytest.raises(ValueError, match="row 1, rule 2 is not finite"):
        selection.select_over_threshold(np.ones((2, 3)), values, 0.5, 2)
    with pytest.raises(ValueError, match="row 1, rule 2 is not finite"):
        selection.select(values, np.zeros((2, 3)), np.zeros((2, 3)), settings=SelectionSettings(r=1, gamma=0))


@pytest.mark.parametrize("r", [-1, 0, 4])
def test_r_outside_the_pool_is_refused(r: int):
    with pytest.raises(ValueError, match=f"r = {r} is outside 1 to 3"):
        selection.select_top(np.zeros((1, 3)), r)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"scores_a \(1, 3\), scores_b \(1, 1\)"):
        selection.discrepancy(np.zeros((1, 3)), np.zeros((1, 1)))
    with pytest.raises(ValueError, match=r"relevance \(3,\)"):
        selection.objective(np.zeros((1, 3)), np.zeros((1, 3)), np.zeros(3), 1.0)
    with pytest.raises(ValueError, match=r"expected an array \[N, R\]"):
        selection.select_top(np.zeros(3), 1)
