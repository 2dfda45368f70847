"""The Ray Data pipeline of prompt groups, on a Ray of the tests' own."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ramo_ray.config import find_ramo_error
from ramo_ray.core.records import prompt_id, trio_id
from ramo_ray.errors import ModelError
from ramo_ray.pipelines.actors import Meter, pool_options
from ramo_ray.pipelines.sources import (
    Member,
    Source,
    keep_pending,
    open_prompts,
    open_trios,
    prompt_groups,
    split_of,
    survey,
)
from ramo_ray.pipelines.store import PartStore, write_groups
from ramo_ray.settings import SPLITS, ActorSettings, SourceSettings, SplitSettings

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]
PROMPTS, RESPONSES = 12, ("one", "two", "three", "four")


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


def groups_of(source: Source, cuts: list[float], wanted: tuple[str, ...] = ("",)) -> list[dict[str, Any]]:
    return list(prompt_groups(source, cuts, wanted, 2).take_all())


def test_trios_of_one_prompt_come_together_from_two_files(source: Source) -> None:
    groups = groups_of(source, [])
    assert sorted(group["prompt_id"] for group in groups) == sorted(identifier(f"p{n}") for n in range(PROMPTS))
    for group in groups:
        assert sorted(c["response"] for c in group["conversations"]) == sorted(RESPONSES)
        assert len({c["conversation_id"] for c in group["conversations"]}) == 4
        pairs = [{group["conversations"][trio[side]]["response"] for side in ("a", "b")} for trio in group["trios"]]
        assert pairs == [{"one", "two"}, {"one", "three"}, {"four", "three"}]
        # Of the trio that both files hold, the first file's label.
        assert [trio["label"] for trio in group["trios"]] == [0, 0, 1]
    found = survey(source, None)
    assert found.conversations[""] == sum(len(group["conversations"]) for group in groups)
    assert found.count([""]) == sum(len(group["trios"]) for group in groups)
    assert found.rows == 4 * PROMPTS + 3 == found.count([""]) + len(found.bad)


def test_each_split_has_its_own_prompts(source: Source) -> None:
    found = survey(source, SplitSettings())
    by_split = {split: [g["prompt_id"] for g in groups_of(source, found.cuts, (split,))] for split in SPLITS}
    assert all(by_split.values())
    assert sorted(i for ids in by_split.values() for i in ids) == sorted(identifier(f"p{n}") for n in range(PROMPTS))
    assert {split: 3 * len(ids) for split, ids in by_split.items()} == found.trios
    for split, ids in by_split.items():
        assert {split_of(i, found.cuts) for i in ids} == {split}


def test_a_limit_reads_the_first_rows_only(source: Source) -> None:
    limited = source._replace(limit=PROMPTS + 3)
    groups = groups_of(limited, [])
    assert Counter(len(group["trios"]) for group in groups) == {1: PROMPTS - 3, 2: 3}
    assert survey(limited, None).rows == PROMPTS + 3


def test_prompts_alone_are_groups(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("one\ntwo\none\n")
    groups = groups_of(open_prompts(str(tmp_path / "x.txt"), SourceSettings(), None), [])
    assert sorted(group["prompt"][0]["content"] for group in groups) == ["one", "two"]
    assert all(group["conversations"] == [] for group in groups)


def test_what_is_done_is_left_out(source: Source) -> None:
    groups = prompt_groups(source, [], [""], 2).materialize()
    everything = groups.take_all()

    def left(done: list[str], member: Member) -> list[dict[str, Any]]:
        return list(keep_pending(groups, done, member).take_all())

    prompts = [group["prompt_id"] for group in everything]
    assert sorted(group["prompt_id"] for group in left(prompts[:5], "prompts")) == sorted(prompts[5:])

    trios = [trio["trio_id"] for group in everything for trio in group["trios"]]
    (group,) = left(trios[1:], "trios")
    assert [trio["trio_id"] for trio in group["trios"]] == trios[:1]
    assert len(group["conversations"]) == 4

    conversations = [c["conversation_id"] for group in everything for c in group["conversations"]]
    (group,) = left(conversations[2:], "conversations")
    assert [c["done"] for c in group["conversations"]] == [False, False, True, True]
    assert len(group["trios"]) == 3
    assert left(conversations, "conversations") == []
    assert len(left([], "conversations")) == PROMPTS


def failing_rows(group: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Every trio a failure of one origin, and nothing else."""
    return {"failures": [{"origin": "label", "id": trio["trio_id"], "reason": "x"} for trio in group["trios"]]}


def test_every_group_is_written_once_however_it_travels(source: Source, tmp_path: Path) -> None:
    import ray

    store = PartStore(str(tmp_path / "data"), ("failures", "preferences")).open()
    meter = ray.remote(num_cpus=0)(Meter).remote()
    for _ in range(2):
        write_groups(prompt_groups(source, [], [""], 1), store, failing_rows, meter)
        written = store.read("failures")["id"].to_pylist()
        expected = {
            trio_id(identifier(f"p{n}"), *pair)
            for n in range(PROMPTS)
            for pair in (("one", "two"), ("one", "three"), ("three", "four"))
        }
        assert len(written) == len(expected) == 3 * PROMPTS
        assert set(written) == expected
        assert store.totals()["groups"] == PROMPTS
    assert ray.get(meter.totals.remote()) == {"groups": 2 * PROMPTS, "rows": 0}


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
