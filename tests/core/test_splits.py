import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramo_ray.core import splits
from ramo_ray.core.records import prompt_id, unit_interval

hashes = st.lists(st.floats(0, 1, exclude_max=True), min_size=4, max_size=60, unique=True)
shares = st.lists(st.floats(0.01, 1), min_size=4, max_size=4)


def sizes(units: list[float], cuts: np.ndarray) -> list[int]:
    return np.bincount([splits.assign(unit, cuts) for unit in units], minlength=len(cuts) + 1).tolist()


def test_a_hand_worked_cut():
    units = [0.9, 0.1, 0.5, 0.3, 0.7]
    cuts = splits.boundaries(np.array(units), [0.4, 0.2, 0.4])
    assert [splits.assign(unit, cuts) for unit in sorted(units)] == [0, 0, 1, 2, 2]
    assert cuts.tolist() == [0.5, 0.7]


def test_a_cut_belongs_to_the_set_above_it():
    cuts = np.array([0.25, 0.5])
    assert [splits.assign(unit, cuts) for unit in (0.0, 0.24, 0.25, 0.49, 0.5, 0.99)] == [0, 0, 1, 1, 2, 2]


@given(hashes, shares)
def test_no_set_is_empty_and_every_prompt_is_in_one(units: list[float], wanted: list[float]):
    cuts = splits.boundaries(np.array(units), wanted)
    found = sizes(units, cuts)
    assert min(found) >= 1
    assert sum(found) == len(units)
    assert (np.diff(cuts) > 0).all()


@given(st.integers(4, 500), shares)
def test_sizes_are_within_one_of_the_shares(n: int, wanted: list[float]):
    exact = np.array(wanted) / sum(wanted) * n
    found = sizes([k / n for k in range(n)], splits.boundaries(np.arange(n) / n, wanted))
    if exact.min() >= 1:
        assert np.abs(np.array(found) - exact).max() < 1
    assert all(size <= 1 for size, share in zip(found, exact, strict=True) if share < 1)


def test_a_tiny_share_takes_its_one_prompt_from_the_largest_set():
    units = [0.1, 0.2, 0.3, 0.4, 0.5]
    assert sizes(units, splits.boundaries(np.array(units), [0.97, 0.01, 0.01, 0.01])) == [2, 1, 1, 1]


@given(hashes, shares, st.randoms())
def test_the_order_of_the_prompts_does_not_matter(units: list[float], wanted: list[float], random):
    cuts = splits.boundaries(np.array(units), wanted)
    shuffled = random.sample(units, len(units))
    assert splits.boundaries(np.array(shuffled), wanted).tolist() == cuts.tolist()


@pytest.mark.parametrize("factor", [0.25, 0.5, 2.0, 1024.0])
def test_shares_have_no_unit(factor: float):
    prompts = [prompt_id([{"role": "user", "content": f"prompt {n}"}]) for n in range(37)]
    units = np.array([unit_interval(prompt, "split") for prompt in prompts])
    wanted = np.array([4.0, 1.0, 3.0, 2.0])
    assert splits.boundaries(units, wanted * factor).tolist() == splits.boundaries(units, wanted).tolist()


def test_the_least_neighbours_are_told_apart():
    low = 0.25
    units = [low]
    while len(units) < 4:
        units.append(float(np.nextafter(units[-1], 1)))
    assert sizes(units, splits.boundaries(np.array(units), [1, 1, 1, 1])) == [1, 1, 1, 1]


def test_fewer_prompts_than_sets_are_refused():
    with pytest.raises(ValueError, match="3 usable prompts cannot fill 4 splits"):
        splits.boundaries(np.array([0.1, 0.2, 0.3]), [1, 1, 1, 1])
    with pytest.raises(ValueError, match="3 usable prompts cannot fill 4 splits"):
        splits.boundaries(np.array([0.1, 0.2, 0.3, 0.3]), [1, 1, 1, 1])


def test_of_very_many_prompts_the_shares_are_the_cuts():
    n = splits.EXACT_UP_TO + 1
    cuts = splits.boundaries(np.arange(n) / n, [0.45, 0.1, 0.35, 0.1])
    assert cuts == pytest.approx([0.45, 0.55, 0.9])
