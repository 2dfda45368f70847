"""Two figures of each prompt: their means, and how far the difference is certain."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramo_ray.core.change import change

FIGURES = st.lists(st.tuples(*[st.floats(-100, 100)] * 2), min_size=2, max_size=40)


@given(FIGURES, st.integers(0, 3))
def test_values_are_means_within_their_intervals(pairs: list[tuple[float, float]], seed: int) -> None:
    before, after = np.array(pairs).T
    found = change(before, after, seed)
    assert found is not None
    assert found.before.value == pytest.approx(before.mean())
    assert found.after.value == pytest.approx(after.mean())
    assert found.difference.value == pytest.approx(after.mean() - before.mean(), abs=1e-9)
    for one in found[:3]:
        assert one.low - 1e-9 <= one.value <= one.high + 1e-9
    assert found.prompts == len(pairs)


@given(FIGURES)
def test_a_change_and_its_reverse_mirror_each_other(pairs: list[tuple[float, float]]) -> None:
    before, after = np.array(pairs).T
    there, back = change(before, after, 0), change(after, before, 0)
    assert there is not None
    assert back is not None
    assert there.difference == pytest.approx((-back.difference.value, -back.difference.high, -back.difference.low))


def test_what_a_prompt_does_to_both_leaves_the_difference_certain() -> None:
    random = np.random.default_rng(0)
    prompt = random.normal(0, 10, 50)
    found = change(prompt, prompt + 1 + random.normal(0, 0.1, 50), 0)
    assert found is not None
    assert found.difference.low > 0.9
    assert found.after.high - found.after.low > 1


def test_an_interval_covers_what_it_shall() -> None:
    random = np.random.default_rng(1)
    covered = 0
    for seed in range(200):
        found = change(random.normal(0, 1, 60), random.normal(0.5, 1, 60), seed)
        assert found is not None
        covered += found.difference.low <= 0.5 <= found.difference.high
    # Nineteen of twenty, give or take three deviations.
    assert 180 <= covered <= 199


def test_a_share_of_none_has_a_bound_all_the_same() -> None:
    none = change([0.0] * 10, [0.0] * 10, 0, shares=True)
    assert none is not None
    assert none.before.value == none.after.value == 0
    assert 0.2 < none.after.high < 0.4
    assert (none.difference.low, none.difference.high) == (0, 0)


def test_a_figure_that_is_missing_takes_its_pair_along() -> None:
    found = change([1.0, np.nan, 3.0], [2.0, 9.0, 6.0], 0)
    assert found is not None
    assert (found.before.value, found.after.value, found.prompts) == (2.0, 4.0, 2)
    assert change([1.0, np.nan], [2.0, 3.0], 0) is None
    with pytest.raises(ValueError, match="two figures of each prompt"):
        change([1.0], [2.0, 3.0], 0)
