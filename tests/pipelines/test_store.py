"""Parts of tables: committed together, named by their rows, gone without a trace where a run was stopped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramo_ray.errors import RamoError
from ramo_ray.pipelines.store import PartStore, write_blocks
from ramo_ray.pipelines.tables import packed, schema, table, unpacked

NAMES = ("failures", "ratings")


def failure(identifier: str, origin: str = "label", reason: str = "too long") -> dict[str, str]:
    return {"origin": origin, "id": identifier, "reason": reason}


def rating(identifier: str, score: float = 0.5) -> dict[str, Any]:
    return {"conversation_id": identifier, "rule_ids": ["r"], "score": [score], "fingerprint": "f"}


def write(store: PartStore, ratings: Sequence[str], failures: Sequence[str] = (), **statistics: float) -> None:
    tables = {"failures": [failure(f) for f in failures], "ratings": [rating(r) for r in ratings]}
    store.write_part(tables, statistics)


def ids(store: PartStore) -> tuple[list[str], list[str]]:
    return (
        sorted(store.read("ratings")["conversation_id"].to_pylist()),
        sorted(store.read("failures")["id"].to_pylist()),
    )


@pytest.fixture
def store(tmp_path: Path) -> PartStore:
    return PartStore(str(tmp_path), NAMES).open()


def test_a_part_is_a_file_of_one_name_in_every_table(store: PartStore) -> None:
    write(store, ["a", "b"], ["x"])
    write(store, ["c"])
    assert ids(store) == (["a", "b", "c"], ["x"])
    assert [Path(f).name for f in store.files("failures")] == [Path(f).name for f in store.files("ratings")]
    assert len(store.files("ratings")) == 2


def test_an_empty_store_has_tables_with_their_columns(store: PartStore) -> None:
    assert store.read("ratings").schema == schema("ratings")
    assert store.read("ratings", ["conversation_id", "error"]).column_names == ["conversation_id", "error"]
    assert store.totals() == {}


def test_columns_that_are_asked_for_come_in_that_order(store: PartStore) -> None:
    write(store, ["a"])
    write(store, ["b"])
    rows = store.read("ratings", ["error", "conversation_id"])
    assert rows.column_names == ["error", "conversation_id"]
    assert sorted(rows["conversation_id"].to_pylist()) == ["a", "b"]
    assert store.read("ratings").schema == schema("ratings")


def test_a_task_that_runs_again_writes_the_same_file(store: PartStore) -> None:
    for score in (0.5, 0.50001):
        store.write_part({"failures": [failure("x")], "ratings": [rating("a", score)]}, {"calls": 2})
    assert ids(store) == (["a"], ["x"])
    assert store.totals() == {"calls": 2}


def test_parts_of_failures_alone_are_told_apart(store: PartStore) -> None:
    for identifier in ("x", "y", "z"):
        write(store, [], [identifier], calls=1)
    assert ids(store) == ([], ["x", "y", "z"])
    assert store.totals() == {"calls": 3}


def test_the_same_rows_failed_and_mended_are_two_parts(store: PartStore) -> None:
    write(store, ["a", "b"], ["x"])
    write(store, ["a", "b"])
    assert len(store.files("ratings")) == 2


def test_totals_sum_over_parts_and_survive_reopening(store: PartStore) -> None:
    write(store, ["a"], calls=3, seconds=0.5)
    write(store, ["b"], calls=4, tokens=7)
    assert store.totals() == {"calls": 7, "seconds": 0.5, "tokens": 7}
    assert PartStore(store.root, store.names).open().totals() == {"calls": 7, "seconds": 0.5, "tokens": 7}


def test_what_was_not_committed_is_removed(store: PartStore) -> None:
    write(store, ["a"], ["x"])
    debris = [
        # Stopped between the tables; while a file was written; while the committing file was written.
        Path(store.root, "failures", "part-0123.parquet"),
        Path(store.root, "failures", ".part-4567.parquet.99"),
        Path(store.root, "ratings", ".part-0123.parquet.99"),
    ]
    pq.write_table(table("failures", [failure("lost")]), debris[0])
    for file in debris[1:]:
        file.write_bytes(b"half a file")
    assert store.read("ratings")["conversation_id"].to_pylist() == ["a"]
    store.open()
    assert not any(file.exists() for file in debris)
    assert ids(store) == (["a"], ["x"])


def test_only_the_latest_round_writes_and_its_parts_come_last(store: PartStore) -> None:
    write(store, ["a"])
    later = store.open()
    with pytest.raises(RamoError, match="another run has taken over"):
        write(store, ["late"], ["late"])
    write(later, ["a"])
    rounds = [Path(f).name.split("-")[2] for f in later.files("ratings")]
    assert rounds == [store.round, later.round]
    assert ids(later) == (["a", "a"], [])


def test_parts_lie_by_shard(store: PartStore) -> None:
    for shard, name in ((0, "a"), (7, "b"), (7, "c"), (123_456_789, "d")):
        store.write_part({"failures": [], "ratings": [rating(name)]}, {}, shard)
    found = store.by_shard()
    assert {shard: len(parts) for shard, parts in found.items()} == {0: 1, 7: 2, 123_456_789: 1}
    assert sorted(store.read("ratings", parts=found[7])["conversation_id"].to_pylist()) == ["b", "c"]
    assert store.read("ratings", ["error"], parts=[]).num_rows == 0
    assert len(store.files("ratings", shard=7)) == 2
    assert (store.count("ratings"), store.count("failures")) == (4, 0)


def test_a_root_may_be_a_uri(tmp_path: Path) -> None:
    store = PartStore(f"file://{tmp_path}/there", NAMES).open()
    write(store, ["a"], ["x"], calls=2)
    assert ids(store) == ids(PartStore(str(tmp_path / "there"), NAMES)) == (["a"], ["x"])
    assert store.totals() == {"calls": 2}


def test_a_write_that_fails_leaves_nothing_to_be_seen(store: PartStore) -> None:
    write(store, ["a"])
    wrong = rating("b") | {"score": ["not a number"]}
    with pytest.raises(pa.ArrowInvalid):
        store.write_part({"failures": [failure("y")], "ratings": [wrong]}, {})
    assert ids(store) == (["a"], [])
    committing = Path(store.root, "ratings")
    committing.rename(committing.with_name("elsewhere"))
    with pytest.raises(FileNotFoundError):
        write(store, ["b"], ["y"], calls=5)
    committing.with_name("elsewhere").rename(committing)
    store.open()
    assert ids(store) == (["a"], [])
    assert store.totals() == {}


def test_a_table_refuses_a_column_that_it_has_not() -> None:
    with pytest.raises(AssertionError, match=r"failures has no column \['colour'\]"):
        table("failures", [failure("x") | {"colour": "red"}])
    assert table("failures", [{"id": "x"}]).to_pylist() == [{"origin": None, "id": "x", "reason": None, "final": None}]


@given(st.lists(st.builds(dict, prompt_id=st.text(), calls=st.integers(0, 2**60), seconds=st.floats(allow_nan=False))))
def test_rows_travel_as_a_table_would_have_them(rows: list[dict[str, Any]]) -> None:
    travelling = packed("groups", rows)
    assert travelling.num_rows == len(rows)
    assert unpacked(travelling) == table("groups", rows).to_pylist()
    # Ray Data cuts blocks, and joins them.
    halves = [travelling.slice(0, len(rows) // 2), travelling.slice(len(rows) // 2)]
    assert unpacked(pa.concat_tables(halves)) == unpacked(travelling)


def test_what_travels_has_no_column_of_its_own() -> None:
    with pytest.raises(AssertionError, match=r"groups has no column \['colour'\]"):
        packed("groups", [{"colour": "red"}])


# Groups to parts


def group(prompt: str, **costs: float) -> dict[str, Any]:
    return {"prompt_id": prompt, "calls": 0, "tokens": 0, "seconds": 0.0, "adapter_seconds": 0.0} | costs


def convert(one: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    return {"ratings": [rating(f"{one['prompt_id']}{n}") for n in range(2)]}


def test_blocks_become_one_part_with_their_costs(store: PartStore) -> None:
    blocks = [
        packed("groups", [group("p", calls=200, seconds=1.5), group("q", calls=100)]),
        packed("groups", []),
        packed("groups", [group("s", tokens=9)]),
    ]
    assert write_blocks(blocks, store, convert) == {"groups": 3, "rows": 6}
    assert ids(store) == (["p0", "p1", "q0", "q1", "s0", "s1"], [])
    assert store.totals() == {"groups": 3, "calls": 300, "tokens": 9, "seconds": 1.5, "adapter_seconds": 0.0}
    assert len(store.files("ratings")) == 1


def test_each_shard_has_its_own_part_and_what_was_postponed_has_none(store: PartStore) -> None:
    given = [group("p", calls=1) | {"shard": 3}, group("q", calls=2) | {"shard": 1}, group("s", calls=4) | {"shard": 3}]
    blocks = [packed("groups", [*given, group("t", calls=8) | {"shard": 3, "postponed": True}])]
    assert write_blocks(blocks, store, convert) == {"groups": 3, "rows": 6}
    assert {shard: len(parts) for shard, parts in store.by_shard().items()} == {1: 1, 3: 1}
    assert ids(store)[0] == ["p0", "p1", "q0", "q1", "s0", "s1"]
    assert store.totals()["calls"] == 7


def test_empty_blocks_write_nothing(store: PartStore) -> None:
    # Of a stage's last block without rows, Ray Data forgets the columns.
    for empty in (packed("groups", []), pa.table({})):
        assert write_blocks([empty], store, convert) == {"groups": 0, "rows": 0}
    assert store.files("ratings") == []
