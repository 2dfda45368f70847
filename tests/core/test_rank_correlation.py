"""Spearman's correlation against scipy, by hand, and by its laws."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import ConstantInputWarning, spearmanr

from ramo_ray.core.rank_correlation import centred_ranks, rank_correlations

# Few distinct values, so that most columns have ties.
TIED = arrays(np.float64, (7, 3), elements=st.sampled_from([-1.0, -0.5, 0.0, 0.1, 0.25]))
DISTINCT = st.lists(st.integers(-1000, 1000), min_size=3, max_size=30, unique=True)


def plain(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return rank_correlations([b, a], np.ones((1, len(a))))[1, 0]


def one(a: list[float], b: list[float]) -> float:
    return float(plain(np.array([a]).T, np.array([b]).T)[0])


def by_scipy(a: np.ndarray, b: np.ndarray) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)
        return float(spearmanr(a, b).statistic)


def test_the_first_way_is_what_all_are_held_against() -> None:
    ways = np.random.default_rng(0).normal(size=(3, 9, 4))
    found = rank_correlations(ways, np.ones((1, 9)))
    np.testing.assert_allclose(found[0], 1)
    np.testing.assert_allclose(found[2, 0], plain(ways[2], ways[0]))


def test_by_hand() -> None:
    # Ranks 1 2 3 4 and 2 1 3 4: 1 − 6·2 / (4·15).
    assert one([10, 20, 30, 40], [5, 1, 6, 9]) == pytest.approx(0.8)
    # With a tie: ranks 1 2½ 2½ 4 and 1 2 3 4.
    assert one([0, 1, 1, 2], [0, 1, 2, 3]) == pytest.approx(4.5 / np.sqrt(4.5 * 5))
    assert one([1, 2, 3], [3, 2, 1]) == -1


@given(TIED, TIED)
def test_equals_scipy_with_ties(a: np.ndarray, b: np.ndarray) -> None:
    expected = [by_scipy(x, y) for x, y in zip(a.T, b.T, strict=True)]
    np.testing.assert_allclose(plain(a, b), expected, atol=1e-12)


@given(TIED, TIED, arrays(np.int64, (4, 7), elements=st.integers(0, 3)).filter(lambda w: w.sum(axis=1).all()))
def test_a_weight_is_a_repetition(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> None:
    found = rank_correlations([b, a], weights.astype(float))[1]
    for row, counts in zip(found, weights, strict=True):
        repeated = [np.repeat(side, counts, axis=0) for side in (a, b)]
        expected = [by_scipy(x, y) if len(x) > 1 else np.nan for x, y in zip(*(s.T for s in repeated), strict=True)]
        np.testing.assert_allclose(row, expected, atol=1e-12)


@given(DISTINCT)
def test_a_monotone_transform_correlates_fully(values: list[int]) -> None:
    x = [float(v) for v in values]
    assert one(x, [v**3 for v in x]) == pytest.approx(1)
    assert one(x, [-np.exp(v / 500) for v in x]) == pytest.approx(-1)


@given(TIED, TIED, st.permutations(range(7)))
def test_the_order_of_observations_and_of_sides_does_not_matter(a: np.ndarray, b: np.ndarray, order: list[int]) -> None:
    np.testing.assert_allclose(plain(a[order], b[order]), plain(a, b), atol=1e-12)
    np.testing.assert_allclose(plain(b, a), plain(a, b), atol=1e-12)


def test_a_constant_has_no_correlation_however_its_value_rounds() -> None:
    a = np.full((1001, 1), 0.1)
    b = np.arange(1001.0)[:, None]
    assert np.isnan(plain(a, b)).all()
    # In the second resample only what is equal is drawn.
    mixed = np.array([[1.0], [1.0], [2.0]])
    found = rank_correlations([mixed, b[:3]], np.array([[1.0, 1, 1], [2.0, 1, 0]]))[1]
    assert np.isfinite(found[0]).all()
    assert np.isnan(found[1]).all()


def test_centred_ranks_by_hand() -> None:
    weights = np.array([[1.0, 1, 1, 1], [2.0, 0, 1, 1]])
    np.testing.assert_array_equal(
        centred_ranks(np.array([5.0, 7, 5, 9]), weights.T).T, [[-1, 0.5, -1, 1.5], [-0.5, 1, -0.5, 1.5]]
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_has_no_rank_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        plain(np.array([[1.0], [bad]]), np.array([[1.0], [2.0]]))


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        rank_correlations(np.ones((2, 3, 2)), np.ones((1, 4)))
    with pytest.raises(ValueError, match="do not fit"):
        rank_correlations(np.ones((3, 2)), np.ones((1, 3)))
