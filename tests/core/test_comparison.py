"""Ways to rate beside each other: by hand, and by what must hold for any ratings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from ramo_ray.core.comparison import RatedWays, WayComparison, compare, judge_trios, overlaps
from ramo_ray.core.resampling import prompt_weights
from ramo_ray.settings import SelectionSettings

PLAIN = SelectionSettings(r=2, gamma=0)


def rated(seed: int = 0, *, ways: int = 2, prompts: int = 6, rules: int = 20) -> RatedWays:
    """Ratings without rhyme or reason: two conversations and one trio a prompt."""
    generator = np.random.default_rng(seed)
    conversations = 2 * prompts
    return RatedWays(
        names=[f"way {i}" for i in range(ways)],
        scores=generator.uniform(-1, 1, (ways, conversations, rules)),
        label_mass=generator.uniform(0.5, 1, (ways, conversations, rules)),
        calls=np.full((ways, prompts), 2.0 * rules),
        seconds=np.outer(1 + np.arange(ways), generator.uniform(1, 2, prompts)),
        prompt_of=np.arange(conversations) // 2,
        sides=np.arange(conversations).reshape(-1, 2),
        relevance=generator.uniform(0, 0.3, (prompts, rules)),
        human=[None] * prompts,
    )


def compared(ways: RatedWays, selection: SelectionSettings = PLAIN, samples: int = 200) -> list[WayComparison]:
    return compare(ways, selection=selection, samples=samples, seed=0)


def small() -> RatedWays:
    """Two prompts, three trios (the second prompt has three responses), three rules, two ways, worked by hand."""
    first = np.array([[0.9, 0.1, 0.0], [0.1, 0.0, 0.0], [0.0, 0.5, 0.0], [0.0, -0.5, 0.1], [0.5, 0.5, 0.0]])
    second = np.array([[0.0, 0.1, 0.0], [0.1, 0.0, 0.0], [0.0, 0.5, 0.0], [0.0, -0.5, 0.2], [0.9, 0.5, 0.0]])
    return RatedWays(
        names=["one", "two"],
        scores=np.stack([first, second]),
        label_mass=np.stack([np.full((5, 3), 0.9), np.full((5, 3), 0.4)]),
        calls=np.array([[6.0, 9], [6, 9]]),
        seconds=np.array([[2.0, 3], [1, 1.5]]),
        prompt_of=np.array([0, 0, 1, 1, 1]),
        sides=np.array([[0, 1], [2, 3], [2, 4]]),
        relevance=np.zeros((3, 3)),
        human=[0, None, 1],
    )


def test_by_hand() -> None:
    reference, other = compared(small(), SelectionSettings(r=1, gamma=0))
    # Trio 0: way one picks rule 0 and A (0.9 > 0.1); way two ties at 0.1 on rules 0 and 1, takes 0, and B.
    # Trio 1: both pick rule 1 and A. Trio 2: both pick rule 0 and B.
    assert (other.flipped, other.flips.value) == (1, pytest.approx(1 / 3))
    assert other.overlap.value == 1
    assert reference.human_agreement is not None
    assert other.human_agreement is not None
    # Of the two trios with a human label (A, B): one says A, B; two says B, B.
    assert (reference.human_agreement.value, other.human_agreement.value) == (1, 0.5)
    assert other.label_mass == (pytest.approx(0.4),) * 3
    assert other.calls_a_second.value == pytest.approx(15 / 2.5)
    assert other.speed == (pytest.approx(2),) * 3
    # Ranks of rule 0: 5 3 1½ 1½ 4 and 1 + (0 0 0 → 2 2 2), 4, 5.
    a, b = np.array([5, 3, 1.5, 1.5, 4]) - 3, np.array([2, 4, 2, 2, 5]) - 3
    first = other.rule_correlations[0]
    assert first is not None
    assert first.value == pytest.approx(a @ b / np.sqrt((a @ a) * (b @ b)))


def test_the_reference_agrees_with_itself() -> None:
    reference = compared(rated())[0]
    assert reference.flipped == 0
    assert reference.overlap.value == reference.speed.value == 1
    assert [found.value for found in reference.rule_correlations if found] == pytest.approx([1] * 20)
    assert reference.human_agreement is None


def test_unrelated_ways_agree_as_chance_has_it() -> None:
    other = compared(rated(prompts=400), SelectionSettings(r=5, gamma=0))[1]
    assert other.overlap_by_chance == pytest.approx(5 / 20, abs=0.01)
    assert other.overlap.low < 5 / 20 < other.overlap.high
    assert other.flips.low < 0.5 < other.flips.high
    assert other.correlation is not None
    assert abs(other.correlation.value) < 0.05


def test_relevance_that_both_share_makes_chance_overlap_more() -> None:
    ways = rated(prompts=50)
    heavy = compared(ways, SelectionSettings(r=5, gamma=1e6))[1]
    assert heavy.overlap_by_chance == heavy.overlap.value == 1
    light = compared(ways, SelectionSettings(r=5, gamma=10))[1]
    assert 5 / 20 < light.overlap_by_chance < 1


def test_by_chance_a_trios_two_ratings_of_a_rule_stay_together() -> None:
    ways = rated()
    # Where both responses have the same scores no rule tells them apart, however the rules are shuffled.
    ways.scores[:, 1::2] = ways.scores[:, ::2]
    assert compared(ways)[1].overlap_by_chance == 1


def test_a_rules_interval_is_that_of_drawing_whole_prompts() -> None:
    ways = rated(prompts=8, rules=3)
    found = compared(ways, samples=60)[1].rule_correlations
    draws = [np.repeat(np.arange(8), counts.astype(int)) for counts in prompt_weights(8, 60, seed=0)]
    for rule, known in enumerate(found):
        conversations = [
            np.concatenate([np.flatnonzero(ways.prompt_of == prompt) for prompt in draw]) for draw in draws
        ]
        values = [spearmanr(*ways.scores[:, drawn, rule]).statistic for drawn in conversations]
        assert known == pytest.approx((values[0], *np.quantile(values, [0.025, 0.975])))


def test_a_constant_rule_is_undefined_not_zero() -> None:
    ways = rated()
    ways.scores[1, :, 3] = 0.5
    other = compared(ways)[1]
    assert [rule for rule, found in enumerate(other.rule_correlations) if found is None] == [3]
    assert other.correlation is not None
    ways.scores[1] = 0.5
    constant = compared(ways)[1]
    assert constant.correlation is None
    assert constant.rule_correlations == [None] * 20
    assert constant.ties.value == 1


def test_the_tie_tolerance_decides_what_flips() -> None:
    ways = small()
    selection = SelectionSettings(r=1, gamma=0, tie_tolerance=0.85)
    reference, other = compared(ways, selection)
    # Margins of one: 0.8, 1.0, −0.5; of two: −0.1, 1.0, −0.9. Trio 0 is B in both now, in both by a tie.
    assert (reference.ties.value, other.ties.value) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert other.flipped == 0


def test_a_threshold_that_nothing_exceeds_is_a_tie() -> None:
    ways = small()
    selection = SelectionSettings(threshold=0.95, gamma=0)
    found = judge_trios(ways.scores[0], ways, selection)
    assert [len(rules) for rules in found.critical] == [0, 1, 0]
    assert found.ties.tolist() == [True, False, True]
    assert found.labels.tolist() == [1, 0, 1]
    assert compared(ways, selection)[1].overlap.value == 1


def test_overlaps_by_hand() -> None:
    first = [np.array([0, 1, 2]), np.array([0]), np.array([], int), np.array([], int)]
    second = [np.array([2, 3, 0]), np.array([0, 1, 2, 3]), np.array([1]), np.array([], int)]
    np.testing.assert_allclose(overlaps(first, second), [2 / 3, 1 / 4, 0, 1])


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_a_growing_transform_changes_no_rank_correlation(seed: int) -> None:
    ways = rated(seed)
    moved = replace(ways, scores=np.stack([ways.scores[0], np.arctanh(0.9 * ways.scores[1])]))
    for before, after in zip(
        compared(ways, samples=20)[1].rule_correlations, compared(moved, samples=20)[1].rule_correlations, strict=True
    ):
        assert before == pytest.approx(after)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.permutations(range(20)))
def test_the_order_of_rules_and_trios_does_not_matter(seed: int, order: list[int]) -> None:
    ways = rated(seed)
    trios = np.random.default_rng(seed).permutation(6)
    moved = replace(
        ways,
        scores=ways.scores[:, :, order],
        relevance=ways.relevance[trios][:, order],
        sides=ways.sides[trios],
    )
    selection = SelectionSettings(r=3, gamma=0.5)
    before, after = compared(ways, selection, 20)[1], compared(moved, selection, 20)[1]
    assert after.flips == before.flips
    assert after.overlap.value == pytest.approx(before.overlap.value)
    assert after.correlation == pytest.approx(before.correlation)
    assert [after.rule_correlations[place] for place in np.argsort(order)] == before.rule_correlations


def test_intervals_narrow_with_prompts_not_with_trios() -> None:
    few = compared(rated(prompts=20))[1].flips
    many = compared(rated(prompts=320))[1].flips
    assert (many.high - many.low) < 0.5 * (few.high - few.low)
    # Every trio four times: no prompt more, so the interval is what it was.
    ways = rated(prompts=20)
    repeated = replace(
        ways, sides=np.tile(ways.sides, (4, 1)), relevance=np.tile(ways.relevance, (4, 1)), human=[None] * 80
    )
    assert compared(repeated)[1].flips == pytest.approx(few)
