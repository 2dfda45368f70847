import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ramo_ray.engines.trunks import PASS_COST, Group, pack, plan, shared_length

TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=7)
suite = settings(deadline=None, derandomize=True, max_examples=200)


@st.composite
def families(draw: st.DrawFn) -> list[list[int]]:
    """Prompts with long shared beginnings, so that trunks are worth their cost, and some with none."""
    beginnings = draw(st.lists(st.integers(1, 3).map(lambda k: [7] * (k * PASS_COST)), min_size=1, max_size=3))
    chosen = draw(st.lists(st.tuples(st.sampled_from([[], *beginnings]), TOKENS), min_size=1, max_size=6))
    return [[*beginning, *tail] for beginning, tail in chosen]


def cost(prompts: Sequence[Sequence[int]], groups: Sequence[Group]) -> int:
    """Tokens computed, and `PASS_COST` for each trunk."""
    computed = sum(len(prompts[i]) - group.trunk for group in groups for i in group.members)
    return computed + sum(group.trunk + PASS_COST for group in groups if group.trunk)


def partitions(items: list[int]) -> Iterator[list[list[int]]]:
    if not items:
        yield []
        return
    first, *rest = items
    for size in range(len(rest) + 1):
        for others in itertools.combinations(rest, size):
            left = [i for i in rest if i not in others]
            yield from ([[first, *others], *more] for more in partitions(left))


def common(prompts: Sequence[Sequence[int]], members: Sequence[int]) -> int:
    longest = min(len(prompts[i]) for i in members) - 1
    return next((k for k in range(longest) if len({prompts[i][k] for i in members}) > 1), longest)


@given(families())
@suite
def test_a_plan_covers_each_prompt_once_and_shares_what_is_shared(prompts: list[list[int]]) -> None:
    groups = plan(prompts)

    assert sorted(i for group in groups for i in group.members) == list(range(len(prompts)))
    for group in groups:
        beginnings = {tuple(prompts[i][: group.trunk]) for i in group.members}
        assert len(beginnings) == 1
        assert all(len(prompts[i]) > group.trunk for i in group.members)


@given(families())
@suite
def test_no_other_grouping_computes_fewer_tokens(prompts: list[list[int]]) -> None:
    best = min(
        cost(prompts, [Group(common(prompts, m) if len(m) > 1 else 0, m) for m in grouping])
        for grouping in partitions(list(range(len(prompts))))
    )

    assert cost(prompts, plan(prompts)) <= best


def test_rules_of_two_conversations_make_two_trunks() -> None:
    frame, tails = [1] * 150, [[8, rule, 9] for rule in range(100)]
    prompts = [[*frame, *[conversation] * 60, *tail] for tail in tails for conversation in (2, 3)]

    assert sorted((group.trunk, len(group.members)) for group in plan(prompts)) == [(211, 100), (211, 100)]


def test_lonely_prompts_stay_apart() -> None:
    assert plan([[1, 2], [3, 4, 5], [1, 2, 3]]) == [Group(0, [1, 2, 0])]
    assert plan([]) == []


def test_a_prompt_that_begins_another_keeps_a_token_of_its_own() -> None:
    long = list(range(100))

    assert plan([long, long[:90]]) == [Group(89, [1, 0])]


def test_shared_length() -> None:
    assert shared_length([1, 2, 3], [1, 2, 4, 5]) == 2
    assert shared_length([1, 2], [1, 2, 3]) == 2
    assert shared_length([5], [6]) == 0


@given(families(), st.integers(1, 300))
@suite
def test_every_packed_token_sees_its_own_prompt_so_far_and_nothing_else(prompts: list[list[int]], budget: int) -> None:
    seen: list[int] = []
    for group in plan(prompts):
        trunk = np.array(prompts[group.members[0]][: group.trunk], dtype=np.int64)
        for packed in pack(prompts, group, budget):
            row = np.concatenate([trunk, packed.token_ids])
            starts = [0, *(packed.last[:-1] + 1)]
            for member, start, last in zip(packed.members, starts, packed.last, strict=True):
                for token in range(start, last + 1):
                    position = packed.positions[token]
                    assert row[packed.visible[token]].tolist() == prompts[member][: position + 1]
                assert packed.positions[last] == len(prompts[member]) - 1
            seen += packed.members
    assert sorted(seen) == list(range(len(prompts)))


@given(families(), st.integers(1, 300))
@suite
def test_a_pass_keeps_to_the_budget_unless_one_tail_exceeds_it(prompts: list[list[int]], budget: int) -> None:
    for group in plan(prompts):
        for packed in pack(prompts, group, budget):
            assert len(packed.token_ids) <= budget or len(packed.members) == 1
