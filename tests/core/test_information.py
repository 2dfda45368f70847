import math
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ramo_ray.core import information
from ramo_ray.core.selection import select_top

positive = st.floats(0.01, 1)
differences = st.floats(-3, 3)


def normalised(weights: list[float]) -> np.ndarray:
    return np.array(weights) / np.sum(weights)


def sigma(t: float) -> float:
    return 1 / (1 + math.exp(-t))


def test_entropy_of_known_distributions():
    assert information.entropy([0.25] * 4) == pytest.approx(math.log(4))
    assert information.entropy([0.5, 0.25, 0.25]) == pytest.approx(1.5 * math.log(2))
    assert information.entropy([1.0, 0.0]) == 0


def test_divergence_of_known_distributions():
    assert information.kullback_leibler([0.5, 0.5], [0.75, 0.25]) == pytest.approx(0.5 * math.log(4 / 3))
    assert information.kullback_leibler([1.0, 0.0], [0.5, 0.5]) == pytest.approx(math.log(2))
    assert information.kullback_leibler([0.5, 0.5], [1.0, 0.0]) == math.inf


def test_the_jensen_shannon_divergence_is_log_2_between_disjoint_distributions():
    assert information.jensen_shannon([1.0, 0.0], [0.0, 1.0]) == pytest.approx(math.log(2))
    assert information.jensen_shannon([0.3, 0.7], [0.3, 0.7]) == pytest.approx(0)


def test_mutual_information_of_known_tables():
    assert information.mutual_information(np.outer([0.2, 0.8], [0.5, 0.3, 0.2])) == pytest.approx(0)
    assert information.mutual_information([[0.5, 0.0], [0.0, 0.5]]) == pytest.approx(math.log(2))


@given(st.lists(positive, min_size=6, max_size=6))
def test_mutual_information_is_the_entropy_that_knowing_the_other_removes(weights: list[float]):
    table = normalised(weights).reshape(2, 3)
    conditional = sum(column.sum() * information.entropy(column / column.sum()) for column in table.T)
    expected = information.entropy(table.sum(axis=1)) - conditional
    assert information.mutual_information(table) == pytest.approx(expected, abs=1e-12)


@given(st.lists(positive, min_size=4, max_size=4), st.lists(positive, min_size=4, max_size=4))
def test_lemma_a5_information_about_a_fair_label_is_the_jensen_shannon_divergence(one: list[float], other: list[float]):
    p, q = normalised(one), normalised(other)
    joint = np.stack([p, q]) / 2
    assert information.mutual_information(joint) == pytest.approx(information.jensen_shannon(p, q), abs=1e-12)


@given(differences)
def test_lemma_a6_gives_the_divergence_of_two_opposite_votes(d: float):
    p = sigma(d)
    assert information.bernoulli_js(d) == pytest.approx(math.log(2) - information.entropy([p, 1 - p]), abs=1e-12)
    assert information.bernoulli_js(d) == pytest.approx(information.jensen_shannon([p, 1 - p], [1 - p, p]), abs=1e-12)
    assert information.bernoulli_js(d) == pytest.approx(information.bernoulli_js(-d), abs=1e-15)


def test_lemma_a6_rises_strictly_from_0_to_log_2():
    values = information.bernoulli_js(np.linspace(0, 12, 500))
    assert (np.diff(values) > 0).all()
    assert information.bernoulli_js([0.0, 1e3, -1e3]) == pytest.approx([0, math.log(2), math.log(2)], abs=1e-15)


@given(st.lists(differences, max_size=4))
def test_votes_information_against_the_definition_outcome_by_outcome(d: list[float]):
    total = 0.0
    for votes in product((1, -1), repeat=len(d)):
        given_a, given_b = (
            math.prod(sigma(hidden * vote * x) for vote, x in zip(votes, d, strict=True)) for hidden in (1, -1)
        )
        either = (given_a + given_b) / 2
        total += sum(0.5 * p * math.log(p / either) for p in (given_a, given_b))
    assert information.vote_information(d) == pytest.approx(total, abs=1e-12)


def test_the_proofs_sum_exceeds_the_joint_information():
    assert information.bernoulli_js([1, 1]).sum() == pytest.approx(0.222, abs=5e-4)
    assert information.vote_information([1, 1]) == pytest.approx(0.199, abs=5e-4)
    assert information.bernoulli_js([2] * 5).sum() == pytest.approx(1.64, abs=5e-3)
    assert information.vote_information([2] * 5) < math.log(2) < 1.63


@given(st.lists(differences, min_size=1, max_size=6))
def test_joint_information_is_at_most_the_sum_and_at_least_the_best_single_vote(d: list[float]):
    single, joint = information.bernoulli_js(d), information.vote_information(d)
    assert single.max() - 1e-12 <= joint <= single.sum() + 1e-12
    assert joint <= math.log(2) + 1e-12


@given(st.lists(differences, min_size=1, max_size=5), st.data())
def test_neither_the_order_nor_a_sign_changes_the_information(d: list[float], data: st.DataObject):
    order = data.draw(st.permutations(d))
    signs = data.draw(st.lists(st.sampled_from((1, -1)), min_size=len(d), max_size=len(d)))
    moved = [sign * x for sign, x in zip(signs, order, strict=True)]
    assert information.vote_information(moved) == pytest.approx(information.vote_information(d), abs=1e-12)


def test_theorem_3_4_the_largest_discrepancies_maximise_the_joint_information():
    generator = np.random.default_rng(34)
    for _ in range(300):
        rules = int(generator.integers(2, 9))
        r = int(generator.integers(1, min(rules, 5) + 1))
        d = generator.uniform(-2, 2, rules)
        best = max(combinations(range(rules), r), key=lambda subset, d=d: information.vote_information(d[list(subset)]))
        assert set(select_top(np.abs(d)[None], r)[0].tolist()) == set(best)


@given(st.lists(differences, max_size=4), differences, differences)
def test_a_vote_of_larger_discrepancy_never_tells_less_beside_any_others(rest: list[float], x: float, y: float):
    assume(abs(x) >= abs(y))
    assert information.vote_information([*rest, x]) >= information.vote_information([*rest, y]) - 1e-12


@pytest.mark.parametrize("bad", [[0.5, 0.6], [-0.5, 1.5], [math.nan, 1.0], []])
def test_what_is_no_distribution_is_refused(bad: list[float]):
    with pytest.raises(ValueError, match="not a distribution"):
        information.entropy(bad)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="different supports"):
        information.kullback_leibler([0.5, 0.5], [1.0])
    with pytest.raises(ValueError, match="expected a table"):
        information.mutual_information([0.5, 0.5])
    with pytest.raises(ValueError, match="at most 16 differences"):
        information.vote_information([1.0] * 17)
