"""The bootstrap over prompts, against one that is written out draw by draw."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from ramo_ray.core.resampling import estimate, prompt_weights, ratios, share, sum_by_prompt


def test_the_first_row_is_the_data_and_the_others_draw_as_many() -> None:
    weights = prompt_weights(5, 400, seed=1)
    assert weights.shape == (401, 5)
    np.testing.assert_array_equal(weights[0], 1)
    np.testing.assert_array_equal(weights.sum(axis=1), 5)
    assert weights[1:].mean(axis=0) == pytest.approx(np.ones(5), abs=0.15)
    np.testing.assert_array_equal(weights, prompt_weights(5, 400, seed=1))
    assert (weights != prompt_weights(5, 400, seed=2)).any()
    with pytest.raises(ValueError, match="two prompts or more, got 1"):
        prompt_weights(1, 10, seed=0)


def test_sums_and_ratios_by_hand() -> None:
    sums = sum_by_prompt([1, 0, 1, 1], np.array([0, 0, 2, 2]), 3)
    np.testing.assert_array_equal(sums, [1, 0, 2])
    weights = np.array([[1.0, 1, 1], [0.0, 0, 3], [0.0, 3, 0]])
    found = ratios(sums, np.array([2.0, 0, 2]), weights)
    np.testing.assert_array_equal(found, [0.75, 1, np.nan])


def test_the_interval_is_that_of_drawing_whole_prompts() -> None:
    generator = np.random.default_rng(3)
    prompt_of = np.repeat(np.arange(12), generator.integers(1, 6, 12))
    values = (generator.random(len(prompt_of)) < 0.3).astype(float)
    counts, sums = sum_by_prompt(np.ones(len(values)), prompt_of, 12), sum_by_prompt(values, prompt_of, 12)
    found = share(sums, counts, prompt_weights(12, 20_000, seed=5))
    means = []
    for _ in range(4000):
        drawn = np.concatenate([values[prompt_of == prompt] for prompt in generator.integers(0, 12, 12)])
        means.append(drawn.mean())
    low, high = np.quantile(means, [0.025, 0.975])
    assert found is not None
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == (pytest.approx(low, abs=0.015), pytest.approx(high, abs=0.015))


def test_undefined_stays_undefined_and_undefined_resamples_are_left_out() -> None:
    assert estimate(np.array([np.nan, 1.0, 2.0])) is None
    assert estimate(np.array([1.0, np.nan, 1.0])) == (1, 1, 1)
    nothing = np.zeros(3)
    assert share(nothing, nothing, prompt_weights(3, 10, seed=0)) is None


@pytest.mark.parametrize("prompts", [2, 12, 100])
def test_what_all_prompts_agree_on_has_the_exact_bound(prompts: int) -> None:
    ones, weights = np.ones(prompts), prompt_weights(prompts, 50, seed=0)
    exact = binomtest(0, prompts).proportion_ci(0.95, "exact").high
    assert share(0 * ones, ones, weights) == (0, 0, pytest.approx(exact))
    assert share(ones, ones, weights) == (1, pytest.approx(1 - exact), 1)
    # Prompts without anything to count tell nothing.
    half = np.r_[ones, 0 * ones]
    assert share(0 * half, half, prompt_weights(2 * prompts, 50, seed=0)) == (0, 0, pytest.approx(exact))


@given(st.lists(st.integers(0, 4), min_size=2, max_size=20))
def test_an_interval_holds_its_value_in_the_unit_interval(hits: list[int]) -> None:
    found = share(np.array(hits, float), np.full(len(hits), 4.0), prompt_weights(len(hits), 200, seed=0))
    assert found is not None
    assert 0 <= found.low <= found.value + 1e-12
    assert found.value <= found.high + 1e-12 <= 1 + 1e-9
