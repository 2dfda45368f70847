import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramo_ray.engines import radix

suite = settings(deadline=None, derandomize=True, max_examples=300)
# Two tokens and short sequences: prefixes, duplicates and forks at every depth come by themselves.
SEQUENCES = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=6), min_size=1, max_size=9)


def prefixes(sequences: Sequence[Sequence[int]]) -> set[tuple[int, ...]]:
    return {tuple(sequence[:end]) for sequence in sequences for end in range(1, len(sequence) + 1)}


def spelled(tree: radix.Tree, node: int) -> list[int]:
    """The tokens from the root to a node."""
    return [*tree.token_ids[radix.path_to(tree, node)].tolist(), int(tree.token_ids[node])]


def seen_by(tree: radix.Tree, node: int) -> list[int]:
    return [other for other in range(len(tree)) if other <= node < tree.subtree_end[other]]


def walk(tree: radix.Tree, size: int, most_asked: int = 10**9) -> list[radix.Pass]:
    passes: list[radix.Pass] = []
    while not passes or passes[-1].stop < len(tree):
        passes.append(radix.next_pass(tree, passes[-1].stop if passes else 0, size=size, most_asked=most_asked))
    return passes


@given(SEQUENCES)
@suite
def test_a_node_is_one_token_after_one_distinct_prefix(sequences: list[list[int]]) -> None:
    tree = radix.build(sequences)
    nodes = [tuple(spelled(tree, node)) for node in range(len(tree))]

    assert len(nodes) == len(set(nodes))
    assert set(nodes) == prefixes(sequences)
    assert tree.positions.tolist() == [len(node) - 1 for node in nodes]


@given(SEQUENCES)
@suite
def test_every_sequence_ends_at_its_own_node_in_the_order_asked(sequences: list[list[int]]) -> None:
    tree = radix.build(sequences)

    assert [spelled(tree, int(node)) for node in tree.last] == sequences
    assert tree.ends.tolist() == sorted(set(tree.last.tolist()))


@given(SEQUENCES)
@suite
def test_a_node_sees_exactly_its_own_prefix(sequences: list[list[int]]) -> None:
    tree = radix.build(sequences)

    for node in range(len(tree)):
        assert tree.token_ids[seen_by(tree, node)].tolist() == spelled(tree, node)
        assert [*radix.path_to(tree, node), node] == seen_by(tree, node)


@given(SEQUENCES, st.integers(1, 8), st.integers(1, 3))
@suite
def test_passes_cover_each_node_once_within_their_limits(sequences: list[list[int]], size: int, asked: int) -> None:
    tree = radix.build(sequences)
    passes = walk(tree, size, asked)

    assert [p.start for p in passes] == [0, *(p.stop for p in passes[:-1])]
    assert passes[-1].stop == len(tree)
    assert all(0 < p.stop - p.start <= size and len(p.asked) <= asked for p in passes)
    assert [node for p in passes for node in p.asked + p.start] == tree.ends.tolist()


@given(SEQUENCES, st.integers(1, 8))
@suite
def test_what_is_handed_on_is_all_that_the_next_pass_needs(sequences: list[list[int]], size: int) -> None:
    tree = radix.build(sequences)
    held = np.empty(0, dtype=np.int32)
    for one in walk(tree, size):
        assert held.tolist() == one.ancestors.tolist()
        own = np.arange(one.start, one.stop)
        needed = {other for node in own for other in seen_by(tree, int(node))} - set(own.tolist())
        assert needed <= set(held.tolist())
        held = np.concatenate([held, own])[one.handed_on]
    assert len(held) == 0


def seen_through(stretch: radix.Stretch, keys: np.ndarray, nodes: np.ndarray) -> dict[int, list[int]]:
    """What each node of a stretch sees by its trunk and its blocks, in order."""
    seen = {}
    for block in stretch.blocks:
        for node, visible in zip(nodes[block.queries].tolist(), block.visible, strict=True):
            seen[node] = [*keys[stretch.trunk].tolist(), *keys[block.keys][visible].tolist()]
    return seen


@given(SEQUENCES, st.integers(1, 12), st.integers(1, 4), st.integers(0, 3))
@suite
def test_trunk_and_block_together_show_each_node_its_own_prefix(
    sequences: list[list[int]], size: int, block: int, slack: int
) -> None:
    tree = radix.build(sequences)
    for one in walk(tree, size):
        nodes = np.arange(one.start, one.stop)
        keys = np.concatenate([one.ancestors, nodes])
        expected = {node: seen_by(tree, node) for node in nodes.tolist()}
        cut = list(radix.stretches(tree, one, block=block, slack=slack))

        assert [node for stretch in cut for node in nodes[stretch.queries]] == nodes.tolist()
        assert {k: v for stretch in cut for k, v in seen_through(stretch, keys, nodes).items()} == expected
        assert seen_through(radix.blocks(tree, one, block), keys, nodes) == expected


def test_stretches_are_cut_where_the_trunk_changes() -> None:
    conversations, tails = [[100 + c] * 60 for c in range(2)], [[200 + t] * 5 for t in range(8)]
    tree = radix.build([[*[1] * 50, *c, *t] for c in conversations for t in tails])
    one = radix.next_pass(tree, 0, size=1000, most_asked=100)
    cut = [(s.queries.start, s.queries.stop, len(s.trunk)) for s in radix.stretches(tree, one, block=64, slack=20)]

    # The first conversation down to its first tail's end, its other tails; the second likewise.
    assert cut == [(0, 115, 0), (115, 150, 110), (150, 215, 50), (215, 250, 110)]


def test_a_tree_worked_by_hand() -> None:
    # 1 ── 2 ── 3, with 4 below 1 as well; [1, 2] is asked twice and begins another.
    tree = radix.build([[1, 4], [1, 2], [1, 2, 3], [1, 2]])

    assert tree.token_ids.tolist() == [1, 2, 3, 4]
    assert tree.positions.tolist() == [0, 1, 2, 1]
    assert tree.subtree_end.tolist() == [4, 3, 3, 4]
    assert tree.last.tolist() == [3, 1, 2, 1]
    second = radix.next_pass(tree, 2, size=2, most_asked=9)
    assert (second.ancestors.tolist(), second.asked.tolist(), second.handed_on.tolist()) == ([0, 1], [0, 1], [])
    first = radix.next_pass(tree, 0, size=3, most_asked=9)
    assert (first.asked.tolist(), first.handed_on.tolist()) == ([1, 2], [0])


def test_shares_at_every_level_of_both_layouts() -> None:
    frame, opening, foot = [1] * 50, [2, 3, 4], [5, 6]
    conversations = [[100 + c] * 60 for c in range(3)]
    rules = [[*opening, 200 + r, 7, 8] for r in range(10)]
    questions, answers = [[300 + q] * 40 for q in range(2)], [[400 + a] * 30 for a in range(6)]

    rule_last = radix.build([[*frame, *c, *r, *foot] for r in rules for c in conversations])
    paper = radix.build([[*frame, *r, *q, *a, *foot] for q in questions for a in answers for r in rules])

    assert len(rule_last) == 50 + 3 * (60 + 3 + 10 * (3 + 2))
    assert len(paper) == 50 + 3 + 10 * (3 + 2 * (40 + 6 * (30 + 2)))


def rule_last_ids(conversations: int, rules: int) -> list[list[int]]:
    random = np.random.default_rng(0)
    beginnings = random.integers(0, 49_152, (conversations, 380)).tolist()
    return [[*c, *tail] for tail in random.integers(0, 49_152, (rules, 20)).tolist() for c in beginnings]


@pytest.mark.parametrize("conversations", [1, 100, 10_000])
def test_ten_thousand_prompts_are_planned_in_a_gigabyte(conversations: int) -> None:
    prompts = rule_last_ids(conversations, 10_000 // conversations)
    tracemalloc.start()
    walk(radix.build(prompts), 1024)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**30


def test_no_sequence_no_node() -> None:
    assert len(radix.build([])) == 0
