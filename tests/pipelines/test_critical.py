"""Ratings to critical rules: merged from the table, selected by hand-worked objectives, refused where incomplete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ramo_ray.errors import FingerprintError, SourceError
from ramo_ray.pipelines.critical import critical_rows, ratings_fingerprint, read_scores
from ramo_ray.pipelines.tables import table
from ramo_ray.settings import SelectionSettings

SCORES_A, SCORES_B = [1.0, 0.0, 0.5, -1.0], [0.5, 0.0, -0.5, -0.75]
RELEVANCE = [0.0, 0.5, 0.25, 0.5]


def group(*trios: dict[str, Any], error: str | None = None) -> dict[str, Any]:
    conversations = [
        {"response": "one", "score": SCORES_A, "error": None},
        {"response": "two", "score": SCORES_B, "error": None},
        {"response": "three", "score": [], "error": error},
    ]
    return {
        "prompt": [{"role": "user", "content": "q"}],
        "split": "adapter_train",
        "conversations": conversations,
        "trios": list(trios),
    }


def trio(a: int, b: int, label: int | None = None) -> dict[str, Any]:
    return {"trio_id": f"t{a}{b}", "a": a, "b": b, "label": label, "relevance": RELEVANCE}


def select(given: dict[str, Any], **settings: Any) -> dict[str, list[dict[str, Any]]]:
    tables = critical_rows(given, selection=SelectionSettings(**settings))
    for name, rows in tables.items():
        table(name, rows)
    return tables


@pytest.mark.parametrize(
    ("gamma", "critical"),
    [
        # |ψ(A) − ψ(B)| = 0.5, 0, 1, 0.25
        (0.0, [2, 0, 3]),
        # + 1·cos = 0.5, 0.5, 1.25, 0.75
        (1.0, [2, 3, 0]),
        # + 2·cos = 0.5, 1, 1.5, 1.25
        (2.0, [2, 3, 1]),
    ],
)
def test_the_best_rules_of_equation_12(gamma: float, critical: list[int]) -> None:
    (row,) = select(group(trio(0, 1, 1)), r=3, gamma=gamma)["critical"]
    assert row["critical"] == critical
    assert (row["scores_a"], row["scores_b"], row["relevance"]) == (SCORES_A, SCORES_B, RELEVANCE)
    assert (row["response_a"], row["response_b"], row["label"]) == ("one", "two", 1)
    assert row["split"] == "adapter_train"


def test_swapped_responses_have_the_same_critical_rules() -> None:
    rows = select(group(trio(0, 1), trio(1, 0)), r=2)["critical"]
    assert rows[0]["critical"] == rows[1]["critical"]
    assert rows[0]["scores_a"] == rows[1]["scores_b"]


def test_all_rules_over_a_threshold() -> None:
    (row,) = select(group(trio(0, 1)), gamma=0, threshold=0.3)["critical"]
    assert row["critical"] == [2, 0]
    (row,) = select(group(trio(0, 1)), gamma=0, threshold=0.3, cap=1)["critical"]
    assert row["critical"] == [2]
    (row,) = select(group(trio(0, 1)), gamma=0, threshold=1.0)["critical"]
    assert row["critical"] == []


def test_a_conversation_that_is_not_fully_rated_spoils_its_trios() -> None:
    tables = select(group(trio(0, 1), trio(0, 2), error="not rated on every rule of the pool"), r=1)
    assert [row["trio_id"] for row in tables["critical"]] == ["t01"]
    assert tables["failures"] == [
        {"origin": "train_adapter", "id": "t02", "reason": "not rated on every rule of the pool", "final": True}
    ]


# The ratings table


def write(folder: Path, name: str, *rows: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    pq.write_table(table("ratings", rows), folder / name)


def rating(conversation: str, scores: dict[str, float], fingerprint: str = "f") -> dict[str, Any]:
    return {
        "conversation_id": conversation,
        "rule_ids": list(scores),
        "score": list(scores.values()),
        "fingerprint": fingerprint,
        "error": None if scores else "no answer",
    }


def test_cells_of_one_conversation_are_merged(tmp_path: Path) -> None:
    write(tmp_path, "part-1.parquet", rating("c", {"r1": 0.5, "r2": -1.0}), rating("d", {}), rating("e", {"r1": 1.0}))
    write(tmp_path, "part-2.parquet", rating("c", {"r3": 0.25}), rating("d", {"r1": -0.5}))
    assert read_scores(str(tmp_path), ["c", "d", "x"]) == {"c": {"r1": 0.5, "r2": -1.0, "r3": 0.25}, "d": {"r1": -0.5}}


def test_ratings_have_one_fingerprint(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"holds no ratings\. Run jobs.rate first"):
        ratings_fingerprint(str(tmp_path))
    write(tmp_path, "part-1.parquet", rating("c", {"r1": 0.5}))
    write(tmp_path, "part-2.parquet", rating("d", {"r1": 0.5}))
    assert ratings_fingerprint(str(tmp_path)) == "f"
    write(tmp_path, "part-3.parquet", rating("e", {"r1": 0.5}, "another"))
    with pytest.raises(FingerprintError, match="ratings of 2 different judges or templates"):
        ratings_fingerprint(str(tmp_path))
