"""What is done, left and given up of a shard: cells, tries, and counts that add up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramo_ray.pipelines.progress import Goal, account, pending
from ramo_ray.pipelines.store import PartStore

RULES = ("r1", "r2", "r3")
RATED = Goal("conversations", "ratings", max_tries=2, rule_ids=RULES)
LABELLED = Goal("trios", "preferences", max_tries=2, rule_ids=RULES)
WRITTEN = Goal("prompts", "trios")


def group(prompt: str, conversations: int, *trios: tuple[int, int]) -> dict[str, Any]:
    return {
        "prompt_id": prompt,
        "conversations": [{"conversation_id": f"{prompt}{place}"} for place in range(conversations)],
        "trios": [{"trio_id": f"{prompt}:{a}{b}", "a": a, "b": b} for a, b in trios],
    }


def rating(
    conversation: str,
    *rules: str,
    error: str | None = None,
    final: bool = False,
    asked: tuple[str, ...] | None = None,
) -> dict[str, Any]:
    scores = [float(rule[1:]) / 4 for rule in rules]
    return {
        "conversation_id": conversation,
        "rule_ids": list(rules),
        "score": scores,
        "truncated": False,
        "error": error,
        "final": final,
        "asked": asked,
        "fingerprint": "f",
    }


def failure(identifier: str, *, final: bool = False) -> dict[str, Any]:
    return {"origin": "label", "id": identifier, "reason": "no answer", "final": final}


@pytest.fixture
def store(tmp_path: Path) -> PartStore:
    return PartStore(str(tmp_path), ("ratings",)).open()


def write(store: PartStore, table: str, *rows: dict[str, Any]) -> None:
    """A part of a round of its own."""
    store.open().write_part({name: list(rows) if name == table else [] for name in store.names}, {})


def parts(store: PartStore) -> list[str]:
    return store.by_shard().get(0, [])


def left(store: PartStore, goal: Goal, *groups: dict[str, Any]) -> list[dict[str, Any]]:
    return pending(groups, store, parts(store), goal)


# Conversations


def test_a_new_shard_is_pending_whole(store: PartStore) -> None:
    groups = [group("p", 2, (0, 1)), group("q", 3, (0, 1), (1, 2))]
    assert left(store, RATED, *groups) == groups
    found = account(groups, store, [], RATED)
    assert (found.out, found.pending, found.lost, found.members, found.cells) == (0, 5, [], 5, 0)


def test_only_cells_that_are_missing_are_left(store: PartStore) -> None:
    write(store, "ratings", rating("p0", "r1", "r2", "r3"), rating("p1", "r2"))
    write(store, "ratings", rating("p1", "r1"))
    (found,) = left(store, RATED, group("p", 2, (0, 1)))
    assert [c["done"] for c in found["conversations"]] == [True, False]
    assert dict(zip(found["conversations"][1]["known"], found["conversations"][1]["known_score"], strict=True)) == {
        "r1": 0.25,
        "r2": 0.5,
    }
    write(store, "ratings", rating("p1", "r3"))
    assert left(store, RATED, group("p", 2, (0, 1))) == []
    found = account([group("p", 2, (0, 1))], store, parts(store), RATED)
    assert (found.out, found.pending, found.complete, found.cells) == (1, 0, 2, 6)


def test_rules_that_are_added_are_all_that_is_left_and_removed_ones_cost_nothing(store: PartStore) -> None:
    write(store, "ratings", rating("p0", *RULES), rating("p1", *RULES))
    assert left(store, RATED._replace(rule_ids=("r1", "r3")), group("p", 2, (0, 1))) == []
    more = RATED._replace(rule_ids=(*RULES, "r4", "r5"))
    (found,) = left(store, more, group("p", 2, (0, 1)))
    assert [sorted(c["known"]) for c in found["conversations"]] == [list(RULES)] * 2
    assert account([group("p", 2, (0, 1))], store, parts(store), more).pending == 2


def test_an_error_is_tried_again_so_often_and_then_given_up(store: PartStore) -> None:
    own = group("p", 3, (0, 1), (1, 2))
    write(store, "ratings", rating("p0", *RULES), rating("p2", *RULES), rating("p1", error="no answer"))
    assert len(left(store, RATED, own)) == 1
    write(store, "ratings", rating("p1", error="no answer at all"))
    assert left(store, RATED, own) == []
    found = account([own], store, parts(store), RATED)
    assert (found.out, found.pending) == (0, 0)
    assert found.lost == [
        {"origin": "p1", "id": trio, "reason": "no answer at all (tried 2 times)"} for trio in ("p:01", "p:12")
    ]
    # More patience brings it back.
    assert len(left(store, RATED._replace(max_tries=3), own)) == 1
    write(store, "ratings", rating("p1", *RULES))
    assert account([own], store, parts(store), RATED).out == 2


def test_what_is_final_is_not_tried_again(store: PartStore) -> None:
    write(store, "ratings", rating("p0", *RULES), rating("p1", error="too long", final=True))
    assert left(store, RATED._replace(max_tries=9), group("p", 2, (0, 1))) == []
    assert account([group("p", 2, (0, 1))], store, parts(store), RATED).lost[0]["reason"] == "too long"


def test_what_a_rule_spoilt_is_tried_without_it(store: PartStore) -> None:
    spoilt = rating("p1", error="too long", final=True, asked=RULES)
    write(store, "ratings", rating("p0", *RULES), spoilt)
    assert left(store, RATED, group("p", 2, (0, 1))) == []
    (found,) = left(store, RATED._replace(rule_ids=RULES[1:]), group("p", 2, (0, 1)))
    assert [c["done"] for c in found["conversations"]] == [True, False]
    # With more rules it is as long.
    (found,) = left(store, RATED._replace(rule_ids=(*RULES, "r4")), group("p", 2, (0, 1)))
    assert [c["done"] for c in found["conversations"]] == [False, True]


# Trios and prompts


def test_trios_are_done_failed_or_left_and_cells_are_kept(tmp_path: Path) -> None:
    store = PartStore(str(tmp_path), ("ratings", "failures", "preferences")).open()
    own = group("p", 4, (0, 1), (1, 2), (2, 3), (0, 3))
    write(store, "preferences", {"trio_id": "p:01"})
    write(store, "failures", failure("p:12"), failure("p:23", final=True))
    write(store, "ratings", rating("p1", "r1"))
    (found,) = left(store, LABELLED, own)
    assert [trio["trio_id"] for trio in found["trios"]] == ["p:12", "p:03"]
    assert found["conversations"][1]["known"] == ["r1"]
    assert not any(c["done"] for c in found["conversations"])
    counted = account([group("p", 4, (0, 1), (1, 2), (2, 3), (0, 3))], store, parts(store), LABELLED)
    assert (counted.out, counted.pending, counted.members) == (1, 2, 4)
    assert [row["id"] for row in counted.lost] == ["p:23"]


def test_a_failure_that_was_mended_is_none(tmp_path: Path) -> None:
    store = PartStore(str(tmp_path), ("failures", "trios")).open()
    write(store, "failures", failure("p"), failure("q"))
    write(store, "trios", {"trio_id": "t", "prompt_id": "p"})
    groups = [group("p", 0), group("q", 0), group("s", 0)]
    assert [one["prompt_id"] for one in left(store, WRITTEN, *groups)] == ["s"]
    found = account(groups, store, parts(store), WRITTEN)
    assert (found.out, found.pending, [row["id"] for row in found.lost]) == (1, 1, ["q"])


# Laws

EVENTS = st.lists(
    st.tuples(st.integers(0, 3), st.sets(st.sampled_from(RULES)), st.booleans(), st.booleans()), max_size=12
)


@given(EVENTS, st.integers(1, 3))
def test_marking_and_accounting_agree_whatever_happened(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[int, set[str], bool, bool]], max_tries: int
) -> None:
    store = PartStore(str(tmp_path_factory.mktemp("laws")), ("ratings",)).open()
    goal = RATED._replace(max_tries=max_tries)
    for place, rules, failed, final in events:
        row = rating(f"p{place}", error="x", final=final) if failed else rating(f"p{place}", *sorted(rules))
        write(store, "ratings", row)
    own = group("p", 4, (0, 1), (1, 2), (2, 3))
    found = account([own], store, parts(store), goal)
    marked = left(store, goal, own)
    undone = sum(not c["done"] for one in marked for c in one["conversations"])
    assert found.pending == undone
    assert found.out + len(found.lost) <= 3
    if not found.pending:
        assert found.out + len(found.lost) == 3
    cells = {(place, rule) for place, rules, failed, _ in events if not failed for rule in rules}
    assert found.cells == len(cells)
