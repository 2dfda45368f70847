"""A source to shards of prompt groups, on a Ray of the tests' own."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ramo_ray.config import find_ramo_error
from ramo_ray.core.records import prompt_id
from ramo_ray.errors import ModelError, SourceError
from ramo_ray.pipelines import grouping
from ramo_ray.pipelines.actors import pool_options
from ramo_ray.pipelines.grouping import group_source
from ramo_ray.pipelines.shards import Grouped, groups_a_shard, read_grouped
from ramo_ray.pipelines.sources import Source, open_trios, split_of
from ramo_ray.settings import SPLITS, ActorSettings, SourceSettings, SplitSettings

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]
PROMPTS, RESPONSES = 12, ("one", "two", "three", "four")


@pytest.fixture(autouse=True)
def by_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """No source is too small for Ray's tasks."""
    monkeypatch.setattr(grouping, "SMALL_BYTES", -1)


def jsonl(file: Path, rows: list[Any]) -> None:
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def identifier(prompt: str) -> str:
    return prompt_id([{"role": "user", "content": prompt}])


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """Two files: each prompt's trios lie in both, some of them twice, between rows that are bad."""
    first = [
        {"prompt": f"p{n}", "response_a": a, "response_b": b, "label": 0}
        for a, b in (("one", "two"), ("one", "three"))
        for n in range(PROMPTS)
    ]
    second = [
        {"prompt": f"p{n}", "response_a": a, "response_b": b, "label": 1}
        for a, b in (("four", "three"), ("two", "one"))
        for n in range(PROMPTS)
    ]
    jsonl(tmp_path / "first.jsonl", [*first, "no json", {"prompt": "x"}])
    jsonl(tmp_path / "second.jsonl", [{"prompt": "y", "response_a": "a", "response_b": "a"}, *second])
    return open_trios(str(tmp_path), SourceSettings(), None)


def groups_of(grouped: Grouped) -> list[dict[str, Any]]:
    return [group for shard in range(len(grouped.shards)) for group in grouped.groups(shard)]


def test_a_small_source_is_read_by_several_tasks(tmp_path: Path) -> None:
    jsonl(tmp_path / "trios.jsonl", [{"prompt": f"p{n}", "response_a": "a", "response_b": "b"} for n in range(130)])
    opened = open_trios(str(tmp_path / "trios.jsonl"), SourceSettings(), None)
    grouped = group_source(opened, None, [""], str(tmp_path / "data"))
    assert sorted(len(grouped.groups(shard)) for shard in range(len(grouped.shards))) == [2, 64, 64]
    # Of a large one, no task looks through more than it can hold.
    assert [groups_a_shard(prompts) for prompts in (1, 800, 10**8)] == [64, 100, 1024]


def test_trios_of_one_prompt_come_together_from_two_files(source: Source, tmp_path: Path) -> None:
    grouped = group_source(source, None, [""], str(tmp_path / "data"))
    groups = groups_of(grouped)
    assert sorted(group["prompt_id"] for group in groups) == sorted(identifier(f"p{n}") for n in range(PROMPTS))
    for group in groups:
        assert sorted(c["response"] for c in group["conversations"]) == sorted(RESPONSES)
        assert len({c["conversation_id"] for c in group["conversations"]}) == 4
        pairs = [{group["conversations"][trio[side]]["response"] for side in ("a", "b")} for trio in group["trios"]]
        assert pairs == [{"one", "two"}, {"one", "three"}, {"four", "three"}]
        # Of the trio that both files hold, the first file's label.
        assert [trio["label"] for trio in group["trios"]] == [0, 0, 1]
    assert grouped.conversations == {"": 4 * PROMPTS}
    assert grouped.count([""]) == 3 * PROMPTS
    assert grouped.prompts == PROMPTS
    bad = list(grouped.bad_rows())
    assert Counter(row["reason"] for row in bad)["repeats an earlier row"] == PROMPTS
    assert grouped.rows == 4 * PROMPTS + 3 == grouped.count([""]) + len(bad)


def test_the_driver_groups_a_small_source_as_the_tasks_do_a_large_one(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_tasks = group_source(source, SplitSettings(), SPLITS, str(tmp_path / "tasks"))
    monkeypatch.undo()
    monkeypatch.setattr(grouping, "_scan_all", None)
    here = group_source(source, SplitSettings(), SPLITS, str(tmp_path / "here"))
    assert here._replace(root="") == by_tasks._replace(root="")
    assert groups_of(here) == groups_of(by_tasks)
    assert sorted(map(str, here.bad_rows())) == sorted(map(str, by_tasks.bad_rows()))


def test_it_is_grouped_once_and_what_was_interrupted_is_done_again(source: Source, tmp_path: Path) -> None:
    root = str(tmp_path / "data")
    debris = tmp_path / "data" / "groups" / "shard-000099-0000.parquet"
    debris.parent.mkdir(parents=True)
    debris.write_bytes(b"half")
    assert read_grouped(root) is None
    grouped = group_source(source, None, [""], root)
    assert not debris.exists()
    before = {file: file.stat().st_mtime_ns for file in debris.parent.iterdir()}
    assert group_source(source._replace(files=["/gone.jsonl"]), None, [""], root) == grouped == read_grouped(root)
    assert {file: file.stat().st_mtime_ns for file in debris.parent.iterdir()} == before


def test_each_split_has_its_own_prompts(source: Source, tmp_path: Path) -> None:
    found = {split: group_source(source, SplitSettings(), [split], str(tmp_path / split)) for split in SPLITS}
    by_split = {split: [group["prompt_id"] for group in groups_of(one)] for split, one in found.items()}
    assert all(by_split.values())
    assert sorted(i for ids in by_split.values() for i in ids) == sorted(identifier(f"p{n}") for n in range(PROMPTS))
    for split, one in found.items():
        assert one.trios == {other: 3 * len(ids) for other, ids in by_split.items()}
        assert one.cuts == found[SPLITS[0]].cuts
        assert {split_of(i, one.cuts) for i in by_split[split]} == {split}
        assert one.count([split]) + one.others([split]) == 3 * PROMPTS
        assert one.quarantined == PROMPTS + 3


def test_a_limit_reads_the_first_rows_only(source: Source, tmp_path: Path) -> None:
    grouped = group_source(source._replace(limit=PROMPTS + 3), None, [""], str(tmp_path / "data"))
    assert Counter(len(group["trios"]) for group in groups_of(grouped)) == {1: PROMPTS - 3, 2: 3}
    assert grouped.rows == PROMPTS + 3


def test_a_source_without_a_usable_row_leaves_nothing_behind(tmp_path: Path) -> None:
    jsonl(tmp_path / "x.jsonl", [{"prompt": "x", "chosen": "a", "rejected": "a"}] * 3)
    source = open_trios(str(tmp_path / "x.jsonl"), SourceSettings(), None)
    with pytest.raises(SourceError, match="none of its 3 rows can be used: 3 × the two responses are identical"):
        group_source(source, None, [""], str(tmp_path / "data"))
    assert read_grouped(str(tmp_path / "data")) is None


class CannotStart:
    def __init__(self) -> None:
        raise ModelError("no weights: there")

    def __call__(self, batch: Any) -> Any:
        return batch


def test_an_actor_that_cannot_start_says_why() -> None:
    import ray

    pool = pool_options(ActorSettings(num_cpus=0.5))
    with pytest.raises(ray.exceptions.ActorDiedError) as caught:
        ray.data.range(2).map_batches(CannotStart, **pool).take_all()
    found = find_ramo_error(caught.value)
    assert type(found) is ModelError
    assert str(found) == "no weights: there"
