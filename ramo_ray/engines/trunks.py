"""Which prompts share a beginning, and how their ends are packed into one forward pass. Knows no model.

A *trunk* is the shared beginning of some prompts, computed once; a *tail* is what one of them has behind it. One
level of sharing: a prompt belongs to one trunk. Any plan whose groups cover each prompt once is right; a better
plan only saves work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

PASS_COST = 32
"""Tokens that one more forward pass costs: sharing less than this is not worth a trunk of its own."""

TokenIds = Sequence[int]


class Group(NamedTuple):
    """Prompts (indices) that share their first `trunk` tokens; 0 where they are better computed apart."""

    trunk: int
    members: list[int]


class Packed(NamedTuple):
    """T tokens of several tails behind one trunk, laid side by side for one forward pass."""

    token_ids: np.ndarray
    """int64 [T]"""
    positions: np.ndarray
    """int64 [T]: a token's place in its own prompt."""
    visible: np.ndarray
    """bool [T, trunk + T]: a token sees the trunk, and of its own tail what is not behind it."""
    last: np.ndarray
    """int64 [tails]: where each tail ends."""
    members: list[int]
    """The prompts (indices) whose tails these are."""


def shared_length(one: TokenIds, other: TokenIds) -> int:
    """Number of tokens at the beginning that two prompts share."""
    shorter = min(len(one), len(other))
    same = np.asarray(one[:shorter]) == np.asarray(other[:shorter])
    return shorter if same.all() else int(same.argmin())


def plan(prompts: Sequence[TokenIds]) -> list[Group]:
    """Group prompts so that the fewest tokens are computed, counting `PASS_COST` for every trunk.

    In sorted order the prompts that share a beginning are neighbours, so the best cut of that order into runs is
    found by dynamic programming. A trunk always leaves each member a tail of at least one token: the token whose
    successor is asked for.
    """
    order = sorted(range(len(prompts)), key=lambda i: tuple(prompts[i]))
    # saved[e]: the most tokens that the first e prompts (in order) can save; cut[e]: where their last run begins.
    saved, cut = np.zeros(len(order) + 1), np.zeros(len(order) + 1, dtype=int)
    shared = np.zeros(len(order))  # shared[s]: tokens that prompts s to e - 1 share, for the current e
    for end in range(1, len(order) + 1):
        newest = prompts[order[end - 1]]
        if end > 1:
            overlap = shared_length(prompts[order[end - 2]], newest)
            shared[: end - 1] = np.minimum(shared[: end - 1], overlap)
        shared[end - 1] = len(newest) - 1
        starts = np.arange(end)
        gain = np.where(end - starts > 1, (end - starts - 1) * shared[:end] - PASS_COST, 0.0)
        cut[end] = int(np.argmax(saved[:end] + gain))
        saved[end] = saved[cut[end]] + gain[cut[end]]
    return _groups(prompts, order, cut)


def _groups(prompts: Sequence[TokenIds], order: Sequence[int], cut: np.ndarray) -> list[Group]:
    groups: list[Group] = []
    alone: list[int] = []
    end = len(order)
    while end > 0:
        start = int(cut[end])
        members = list(order[start:end])
        if len(members) == 1:
            alone += members
        else:
            # Sorted order: what the first and the last share, all share.
            first, last = prompts[members[0]], prompts[members[-1]]
            shortest = min(len(prompts[i]) for i in members)
            groups.append(Group(min(shared_length(first, last), shortest - 1), members))
        end = start
    return [*groups, Group(0, alone)] if alone else groups


def pack(prompts: Sequence[TokenIds], group: Group, budget: int) -> Iterator[Packed]:
    """Lay a group's tails side by side, at most `budget` tokens a pass (a longer tail has a pass of its own)."""
    waiting: list[int] = []
    size = 0
    for member in group.members:
        length = len(prompts[member]) - group.trunk
        if waiting and size + length > budget:
            yield _lay(prompts, group.trunk, waiting)
            waiting, size = [], 0
        waiting.append(member)
        size += length
    if waiting:
        yield _lay(prompts, group.trunk, waiting)


def _lay(prompts: Sequence[TokenIds], trunk: int, members: list[int]) -> Packed:
    lengths = np.array([len(prompts[i]) - trunk for i in members])
    ends = np.cumsum(lengths)
    owner = np.repeat(np.arange(len(members)), lengths)
    place = np.arange(ends[-1])
    own = (owner[:, None] == owner[None, :]) & (place[:, None] >= place[None, :])
    return Packed(
        token_ids=np.concatenate([np.asarray(prompts[i][trunk:], dtype=np.int64) for i in members]),
        positions=trunk + place - (ends - lengths)[owner],
        visible=np.concatenate([np.ones((len(place), trunk), dtype=bool), own], axis=1),
        last=ends - 1,
        members=members,
    )
