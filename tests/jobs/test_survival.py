"""Rows that kill, actors and nodes that go: every conversation is rated once all the same, or set aside by name."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fragile import fragile_work

from jobs.flow import Result, Work, run_groups

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]


def checked(done: Work, result: Result, trios: int, lost: set[str]) -> list[dict[str, Any]]:
    """The rows of a finished run, each conversation once."""
    rows: list[dict[str, Any]] = done.store.read("ratings").to_pylist()
    ids = Counter(row["conversation_id"] for row in rows)
    assert set(ids.values()) == {1}
    assert len(ids) == 2 * trios
    assert result.counts["pending"] == 0
    assert result.counts["out"] + len(result.lost) == trios
    assert {row["id"] for row in result.lost} == lost
    return rows


def test_rows_that_kill_are_set_aside_and_their_neighbours_rated(tmp_path: Path, long_context_model: Path) -> None:
    given = fragile_work(tmp_path, str(long_context_model), 24, poisoned=(9, 10), block=2)
    result = run_groups(given)
    assert len(result.lost) == 2
    rows = checked(given, result, 24, {row["id"] for row in result.lost})
    failed = [row for row in rows if row["error"]]
    assert len(failed) == 2
    assert all("killed its actor" in row["error"] and row["final"] for row in failed)
    assert all(len(row["score"]) == 2 for row in rows if not row["error"])
    # A later run leaves them alone.
    assert run_groups(given).lost == result.lost


def test_an_accident_costs_no_row(tmp_path: Path, long_context_model: Path) -> None:
    given = fragile_work(tmp_path, str(long_context_model), 30)
    (tmp_path / "accident").touch()
    result = run_groups(given)
    assert not (tmp_path / "accident").exists()
    assert all(not row["error"] for row in checked(given, result, 30, set()))


def test_an_object_store_that_is_full_costs_no_row(tmp_path: Path, long_context_model: Path) -> None:
    import ray

    given = fragile_work(tmp_path, str(long_context_model), 30)
    # More than it holds, so that everything else has to be put on disk and read again.
    held = [ray.put(np.zeros(20 * 2**20, dtype=np.uint8)) for _ in range(20)]
    assert sum(node["Resources"]["object_store_memory"] for node in ray.nodes()) < len(held) * 20 * 2**20
    result = run_groups(given)
    assert all(not row["error"] for row in checked(given, result, 30, set()))
    del held
