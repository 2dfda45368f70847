"""Rated groups to preferences: equations 4 and 10 by hand, ties, and what cannot be labelled."""

from __future__ import annotations

from typing import Any

import pytest

from ramo_ray.core.records import Message
from ramo_ray.pipelines.labeling import LABELER, label_rows, trios_as_groups
from ramo_ray.pipelines.tables import table, unpacked

PROMPT: list[Message] = [{"role": "user", "content": "q"}]
RULES = ["r1", "r2", "r3"]


def conversation(name: str, *scores: float, rules: list[str] = RULES, error: str | None = None) -> dict[str, Any]:
    return {
        "conversation_id": name,
        "response": f"response {name}",
        "rule_ids": [] if error else rules,
        "score": list(scores),
        **{field: list(scores) for field in ("p_yes", "p_no", "p_irrelevant", "label_mass")},
        "truncated": False,
        "error": error,
        "final": False,
        "asked": rules if error else None,
        "known": None,
        "known_score": None,
    }


def trio(a: int, b: int, rules: list[str] | None = RULES, label: int | None = None) -> dict[str, Any]:
    return {"trio_id": f"t{a}{b}", "a": a, "b": b, "rule_ids": rules, "label": label, "error": None}


def group(conversations: list[dict[str, Any]], *trios: dict[str, Any]) -> dict[str, Any]:
    return {"prompt": PROMPT, "split": "reward_train", "conversations": conversations, "trios": list(trios)}


def label(given: dict[str, Any], tie_tolerance: float = 0.0) -> dict[str, list[dict[str, Any]]]:
    tables = label_rows(given, tie_tolerance=tie_tolerance, fingerprint="label", judge_fingerprint="judge")
    for name, rows in tables.items():
        table(name, rows)
    return tables


def test_a_preference_by_hand() -> None:
    given = group([conversation("A", 0.5, -0.25, 0.5), conversation("B", 1.0, -1.0, 0.25)], trio(0, 1, label=1))
    (row,) = label(given)["preferences"]
    # φ(A) = (0.5 − 0.25 + 0.5) / 3 = 0.25 and φ(B) = (1 − 1 + 0.25) / 3 = 1/12.
    assert row["chosen_is"] == "a"
    assert row["margin"] == pytest.approx(0.25 - 1 / 12)
    assert row["chosen"] == [{"role": "assistant", "content": "response A"}]
    assert row["rejected"] == [{"role": "assistant", "content": "response B"}]
    assert row["scores_chosen"] == [0.5, -0.25, 0.5]
    assert row["scores_rejected"] == [1.0, -1.0, 0.25]
    assert row["rule_ids"] == RULES
    assert (row["tie"], row["label"], row["split"], row["labeler"]) == (False, 1, "reward_train", LABELER)
    assert row["fingerprint"] == "label"
    assert row["prompt"] == PROMPT


def test_the_other_way_round_the_margin_changes_its_sign() -> None:
    given = group([conversation("A", 0.5, -0.25, 0.5), conversation("B", 1.0, -1.0, 0.25)], trio(1, 0))
    (row,) = label(given)["preferences"]
    assert row["chosen_is"] == "b"
    assert row["margin"] == pytest.approx(1 / 12 - 0.25)
    assert row["chosen"][0]["content"] == "response A"


def test_only_the_trios_own_rules_count() -> None:
    # Rated for other trios too, and in another order.
    rules = ["r9", "r2", "r1"]
    given = group(
        [conversation("A", -1.0, 0.2, 0.4, rules=rules), conversation("B", 1.0, 0.1, 0.3, rules=rules)],
        trio(0, 1, ["r1", "r2"]),
    )
    (row,) = label(given)["preferences"]
    assert row["chosen_is"] == "a"
    assert row["scores_chosen"] == [0.4, 0.2]
    assert row["margin"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("phi_a", "tolerance", "chosen", "tie"),
    [
        (0.5, 0.0, "b", True),
        (0.6, 0.0, "a", False),
        (0.6, 0.25, "b", True),
        (0.4, 0.25, "b", True),
        (0.9, 0.25, "a", False),
    ],
)
def test_a_tie_goes_to_b_and_is_marked(phi_a: float, tolerance: float, chosen: str, tie: bool) -> None:
    given = group([conversation("A", phi_a, rules=["r1"]), conversation("B", 0.5, rules=["r1"])], trio(0, 1, ["r1"]))
    (row,) = label(given, tolerance)["preferences"]
    assert (row["chosen_is"], row["tie"]) == (chosen, tie)


def test_a_conversation_in_two_trios_is_one_row_of_ratings() -> None:
    conversations = [conversation("A", 0.1, 0.1, 0.1), conversation("B", 0.2, 0.2, 0.2), conversation("C", 0, 0, 0)]
    tables = label(group(conversations, trio(0, 1), trio(1, 2)))
    assert [row["conversation_id"] for row in tables["ratings"]] == ["A", "B", "C"]
    assert {row["fingerprint"] for row in tables["ratings"]} == {"judge"}
    assert [row["chosen_is"] for row in tables["preferences"]] == ["b", "a"]
    assert tables["failures"] == []


@pytest.mark.parametrize("cut", [(), (0,), (1,), (0, 1)])
def test_a_response_cut_for_the_judge_on_either_side_marks_the_preference(cut: tuple[int, ...]) -> None:
    conversations = [conversation("A", 1, 1, 1), conversation("B", 0, 0, 0)]
    for place in cut:
        conversations[place]["truncated"] = True
    tables = label(group(conversations, trio(0, 1)))
    assert [row["truncated"] for row in tables["preferences"]] == [bool(cut)]
    assert [row["truncated"] for row in tables["ratings"]] == [place in cut for place in (0, 1)]


def test_an_error_spoils_its_own_trios_only() -> None:
    conversations = [conversation("A", 1, 1, 1), conversation("B", error="no answer"), conversation("C", 0, 0, 0)]
    tables = label(group(conversations, trio(0, 1), trio(0, 2), trio(1, 2)))
    assert [row["trio_id"] for row in tables["preferences"]] == ["t02"]
    assert tables["failures"] == [
        {"origin": "label", "id": identifier, "reason": "no answer", "final": False} for identifier in ("t01", "t12")
    ]
    assert [(row["conversation_id"], row["error"]) for row in tables["ratings"]][1] == ("B", "no answer")


def test_what_was_rated_before_counts_too() -> None:
    known = {"known": ["r1", "r2"], "known_score": [0.5, -0.25]}
    given = group([conversation("A", 0.5, rules=["r3"]) | known, conversation("B", 1.0, -1.0, 0.25)], trio(0, 1))
    tables = label(given)
    assert tables["preferences"][0]["scores_chosen"] == [0.5, -0.25, 0.5]
    # Cells are kept once.
    assert [row["rule_ids"] for row in tables["ratings"]] == [["r3"], RULES]


def test_a_trio_that_the_adapter_cannot_read_fails_for_good() -> None:
    conversations = [conversation("A", rules=[]), conversation("B", rules=[])]
    tables = label(group(conversations, trio(0, 1, None) | {"error": "too long for the adapter"}))
    assert tables["preferences"] == tables["ratings"] == []
    assert tables["failures"] == [{"origin": "label", "id": "t01", "reason": "too long for the adapter", "final": True}]


def test_rows_of_the_critical_table_become_groups_that_the_adapter_reads() -> None:
    rows = [{"trio_id": "t", "prompt": PROMPT, "response_a": "one", "response_b": "two"}]
    (given,) = unpacked(trios_as_groups(rows))
    (one,) = given["trios"]
    assert [given["conversations"][one[side]]["response"] for side in ("a", "b")] == ["one", "two"]
    assert given["prompt"] == PROMPT
