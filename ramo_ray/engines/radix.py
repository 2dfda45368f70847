"""The prefix tree of some token sequences, and how a model walks it. Knows no model.

A node of the tree is one token after one distinct prefix, so a tree's size is the work that its sequences really ask
for. Nodes are numbered depth first, parents before children. Two facts of that order carry everything here:

- The nodes below a node follow it without a gap. So node i sees node j (j is an ancestor of i, or i itself) exactly
  where `j <= i < subtree_end[j]`: the ancestor mask is two comparisons.
- Whatever nodes of a stretch `start..stop` see before it, node `start` sees too. So a tree may be cut into passes
  anywhere, each node is computed once, and all that has to be kept from earlier passes is the path to the next node.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain
from typing import NamedTuple

import numpy as np

TokenIds = Sequence[int]


class Tree(NamedTuple):
    """T nodes in depth-first order. The branches are stretches of nodes in which each is the parent of the next."""

    token_ids: np.ndarray
    """int32 [T]"""
    positions: np.ndarray
    """int32 [T]: a node's depth, which is its token's place in the sequence."""
    subtree_end: np.ndarray
    """int32 [T]: the node after the last one below this node."""
    last: np.ndarray
    """int32 [sequences]: the node of each sequence's last token."""
    ends: np.ndarray
    """int32 [E]: the nodes at which sequences end, each once, in order."""
    branches: np.ndarray
    """int32 [branches]: the first node of each branch."""
    parents: np.ndarray
    """int32 [branches]: the node that each branch grows from; -1 at the root."""

    def __len__(self) -> int:
        return len(self.token_ids)


class Block(NamedTuple):
    """Neighbouring nodes of a pass that attend together."""

    queries: slice
    """Which of the pass's nodes."""
    keys: np.ndarray
    """int32 [K]: what any of them sees beyond a trunk, counted over the pass's ancestors and then its own nodes."""
    visible: np.ndarray
    """bool [queries, K]: which of it each of them sees."""


class Stretch(NamedTuple):
    """Neighbouring nodes of a pass below one trunk, which all of them see."""

    queries: slice
    """Which of the pass's nodes."""
    trunk: np.ndarray
    """int32 [A]: the trunk, counted as the keys of blocks are."""
    blocks: list[Block]
    """The same nodes, cut up, with what they see below the trunk."""


class Pass(NamedTuple):
    """Nodes `start` to `stop`, for one forward pass."""

    start: int
    stop: int
    ancestors: np.ndarray
    """int32 [A]: the nodes before `start` that node `start` sees: what earlier passes have to hand on."""
    asked: np.ndarray
    """int64 [E]: those of its own nodes, counted from its first, at which a sequence ends."""
    handed_on: np.ndarray
    """int32 [H]: what node `stop` will see of this pass, counted over its ancestors and then its own nodes."""


def build(sequences: Sequence[TokenIds]) -> Tree:
    """The tree of sequences of one token or more, in any order, equal ones among them."""
    lengths = np.fromiter(map(len, sequences), dtype=np.int64, count=len(sequences))
    flat = np.fromiter(chain.from_iterable(sequences), dtype=np.int32, count=int(lengths.sum()))
    offsets = np.cumsum(lengths) - lengths
    order = _sorted(flat, offsets, lengths)
    rows = [flat[offsets[i] : offsets[i] + lengths[i]] for i in order]
    shared = np.array([0, *map(_shared_length, rows, rows[1:])][: len(rows)], dtype=np.int64)
    ends = np.cumsum(lengths[order] - shared)
    starts = ends - (lengths[order] - shared)
    parents, last_sorted = _links(starts, shared, lengths[order])
    last = np.empty(len(rows), dtype=np.int32)
    last[order] = last_sorted
    grows = ends > starts
    return Tree(
        token_ids=_joined([row[s:] for row, s in zip(rows, shared, strict=True)]),
        positions=_joined([np.arange(s, len(row), dtype=np.int32) for row, s in zip(rows, shared, strict=True)]),
        subtree_end=_subtree_ends(starts, shared, lengths[order]),
        last=last,
        ends=np.unique(last),
        branches=starts[grows].astype(np.int32),
        parents=parents[grows],
    )


def _sorted(flat: np.ndarray, offsets: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    # Bytes compare in C, and with the highest first they compare as the tokens do.
    text = flat.astype(">i4").tobytes()
    keys = [text[4 * o : 4 * (o + n)] for o, n in zip(offsets.tolist(), lengths.tolist(), strict=True)]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)


def _shared_length(one: np.ndarray, other: np.ndarray) -> int:
    shorter = min(len(one), len(other))
    same = one[:shorter] == other[:shorter]
    return shorter if same.all() else int(same.argmin())


def _links(starts: np.ndarray, shared: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each row's parent node and last node, with the path to the newest node kept by depth."""
    path = np.full(int(lengths.max(initial=0)) + 1, -1, dtype=np.int32)
    parents, last = np.empty(len(starts), dtype=np.int32), np.empty(len(starts), dtype=np.int32)
    for row, (start, depth, length) in enumerate(zip(starts.tolist(), shared.tolist(), lengths.tolist(), strict=True)):
        # path[0] stands above the root's children, so a node of depth d is at path[d + 1].
        parents[row] = path[depth]
        path[depth + 1 : length + 1] = np.arange(start, start + length - depth, dtype=np.int32)
        last[row] = path[length]
    return parents, last


def _subtree_ends(starts: np.ndarray, shared: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """A node of depth d ends where the next row begins that branches off at d or above."""
    size = int((lengths - shared).sum())
    ends = np.empty(size, dtype=np.int32)
    following = np.full(int(lengths.max(initial=0)), size, dtype=np.int32)
    for row in range(len(starts) - 1, -1, -1):
        start, depth, length = starts[row], shared[row], lengths[row]
        ends[start : start + length - depth] = following[depth:length]
        following[depth:] = start
    return ends


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    joined: np.ndarray = np.concatenate([*parts, np.empty(0, dtype=np.int32)])
    return joined


def path_to(tree: Tree, node: int) -> np.ndarray:
    """The ancestors of a node, int32 [depth], the root's child first; none for the node after the last."""
    parts: list[np.ndarray] = []
    stop = node if node < len(tree) else -1
    while stop >= 0:
        branch = int(tree.branches.searchsorted(stop, side="right")) - 1
        parts.append(np.arange(tree.branches[branch], stop + (stop != node), dtype=np.int32))
        stop = int(tree.parents[branch])
    return _joined(parts[::-1])


def next_pass(tree: Tree, start: int, *, size: int, most_asked: int) -> Pass:
    """The pass that begins at node `start`: at most `size` nodes, of which at most `most_asked` end a sequence."""
    stop = min(start + size, len(tree))
    first, last = np.searchsorted(tree.ends, [start, stop])
    if last - first > most_asked:
        last = first + most_asked
        stop = int(tree.ends[last])
    ancestors = path_to(tree, start)
    handed_on = _places(path_to(tree, stop), ancestors, start)
    return Pass(start, stop, ancestors, tree.ends[first:last].astype(np.int64) - start, handed_on)


def _places(path: np.ndarray, ancestors: np.ndarray, start: int) -> np.ndarray:
    """Where nodes of a path, from its first on, stand among a pass's ancestors and its own nodes; all are there."""
    places: np.ndarray = path - np.int32(start - len(ancestors))
    own = int(path.searchsorted(start))
    places[:own] = np.arange(own, dtype=np.int32)
    return places


def stretches(tree: Tree, one: Pass, *, block: int, slack: int) -> Iterator[Stretch]:
    """A pass's nodes in stretches, each as long as its nodes share all but some `slack` nodes of their paths."""
    first = one.start
    for cut in [*_cuts(tree, one, slack), one.stop]:
        path = path_to(tree, first)
        trunk = path[tree.subtree_end[path] >= cut]
        own = [_block(tree, one, b, min(b + block, cut), len(trunk)) for b in range(first, cut, block)]
        yield Stretch(slice(first - one.start, cut - one.start), _places(trunk, one.ancestors, one.start), own)
        first = cut


def _cuts(tree: Tree, one: Pass, slack: int) -> Iterator[int]:
    """The branches of a pass at which the trunk of what came before would lose, or could gain, more than `slack`."""
    trunk = int(tree.positions[one.start])
    begin, end = np.searchsorted(tree.branches, [one.start + 1, one.stop])
    for node in tree.branches[begin:end].tolist():
        # A node's depth is the length of its path, and at a branch all of the path that is lost is lost at its end.
        depth = int(tree.positions[node])
        if depth < trunk - slack or depth > trunk + slack:
            yield node
            trunk = depth
        trunk = min(trunk, depth)


def blocks(tree: Tree, one: Pass, size: int) -> Stretch:
    """A pass's nodes as one stretch in blocks of at most `size`, without a trunk: each block sees the path to it."""
    cut = [_block(tree, one, first, min(first + size, one.stop), 0) for first in range(one.start, one.stop, size)]
    return Stretch(slice(0, one.stop - one.start), np.empty(0, dtype=np.int32), cut)


def _block(tree: Tree, one: Pass, first: int, stop: int, trunk: int) -> Block:
    """Some nodes with what they see below the first `trunk` nodes of their paths."""
    own = np.arange(first, stop, dtype=np.int32)
    path = np.concatenate([path_to(tree, first), own])
    ends = tree.subtree_end[path[trunk:]]
    # Often the whole block sees all of its path.
    visible = np.ones((len(own), len(ends)), dtype=np.bool_) if ends.min() >= stop else own[:, None] < ends
    visible[:, -len(own) :] &= _causal(len(own))
    return Block(
        queries=slice(first - one.start, stop - one.start),
        keys=_places(path, one.ancestors, one.start)[trunk:],
        visible=visible,
    )


@cache
def _causal(nodes: int) -> np.ndarray:
    return np.tri(nodes, dtype=np.bool_)
