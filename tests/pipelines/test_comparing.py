"""One engine asked in several ways: the same ratings as alone, failures by name, arrays back from the tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ramo_ray.core.rules import make_pool
from ramo_ray.engines.base import TokenIds, Usage
from ramo_ray.engines.scripted_engine import ScriptedEngine
from ramo_ray.errors import SourceError
from ramo_ray.pipelines.actors import Bill
from ramo_ray.pipelines.comparing import JudgedWay, WaysJudge, read_ways, way_rows
from ramo_ray.pipelines.grouping import make_group
from ramo_ray.pipelines.rating import RuleJudge
from ramo_ray.pipelines.store import PartStore
from ramo_ray.pipelines.tables import packed, unpacked
from ramo_ray.settings import JudgeSettings

POOL = make_pool("p", [f"Accept the response that is {virtue}." for virtue in ("kind", "true", "short")], origin="here")
TABLES = ("failures", "ratings", "costs", "compared")


def row(place: int, prompt: str, a: str, b: str) -> dict[str, Any]:
    return {
        "origin": f"f:{place}",
        "reason": None,
        "trio_id": f"trio-{prompt}-{place}",
        "prompt_id": prompt,
        "prompt": [{"role": "user", "content": f"Tell me about {prompt}."}],
        "response_a": a,
        "response_b": b,
        "source_a": None,
        "source_b": None,
        "label": place % 2,
    }


def group(prompt: str, *pairs: tuple[str, str]) -> dict[str, Any]:
    made = make_group([row(place, prompt, a, b) for place, (a, b) in enumerate(pairs)], [])
    for trio in made["trios"]:
        trio["relevance"] = [0.5, 0.25, 0.125]
    return made


def ways_of(model: Path, **values: Any) -> list[JudgedWay]:
    judge = JudgeSettings(engine="scripted", model=str(model), **values)
    updates: list[dict[str, Any]] = [{"layout": "paper"}, {"layout": "rule_last"}, {"method": "number"}]
    return [JudgedWay(f"way {i}", judge.model_copy(update=update), f"f{i}") for i, update in enumerate(updates)]


def made(ways: list[JudgedWay]) -> WaysJudge:
    plain = [(way.name, way.judge.model_dump(mode="json"), way.fingerprint) for way in ways]
    return WaysJudge(plain, POOL.texts)


def committed(folder: Path, groups: list[dict[str, Any]]) -> PartStore:
    store = PartStore(str(folder), TABLES).open()
    for rated in groups:
        store.write_part(way_rows(rated), {})
    return store


@pytest.mark.slow
def test_each_way_gives_what_it_gives_alone_and_one_engine_serves_all(long_context_model: Path, tmp_path: Path) -> None:
    ways = ways_of(long_context_model, max_length=4096)
    judge = made(ways)
    assert len({id(own.engine) for _, own, _ in judge.judges}) == 1
    groups = [group("tea", ("Hot.", "Cold."), ("Hot.", "Sweet.")), group("bread", ("Rye.", "Oat."))]
    batch = packed("groups", groups)
    rated = unpacked(judge(batch))
    # Five conversations on three rules in three ways.
    assert sum(one["calls"] for one in rated) == 5 * 3 * 3
    again = unpacked(judge(batch))
    assert [one["calls"] for one in again] == [one["calls"] for one in rated]

    arrays = read_ways(committed(tmp_path / "data", rated), ways, POOL.ids)
    assert arrays.scores.shape == (3, 5, 3)
    assert np.isfinite([arrays.scores, arrays.label_mass]).all()
    np.testing.assert_array_equal(arrays.calls, [[6, 9]] * 3)
    assert (arrays.seconds > 0).all()
    assert sorted(map(str, arrays.human)) == ["0", "0", "1"]
    np.testing.assert_array_equal(arrays.relevance, [[0.5, 0.25, 0.125]] * 3)
    for place, way in enumerate(ways):
        alone = unpacked(RuleJudge(way.judge.model_dump(mode="json"), POOL.texts, "all_rules")(batch))
        expected = {c["conversation_id"]: c["score"] for one in alone for c in one["conversations"]}
        order = sorted(expected)
        np.testing.assert_allclose(arrays.scores[place], [expected[identifier] for identifier in order])
        sides = [[c["conversation_id"] for c in one["conversations"]] for one in alone]
        for trio, (a, b) in zip(
            sorted((t for one in groups for t in one["trios"]), key=lambda t: t["trio_id"]), arrays.sides, strict=True
        ):
            (own,) = [names for names, one in zip(sides, groups, strict=True) if trio in one["trios"]]
            assert (order[a], order[b]) == (own[trio["a"]], own[trio["b"]])


@pytest.mark.slow
def test_a_conversation_that_one_way_cannot_rate_spoils_its_trios_only(
    long_context_model: Path, tmp_path: Path
) -> None:
    ways = ways_of(long_context_model, max_length=1500)
    groups = [
        group("tea", ("Hot.", "Cold."), ("Hot.", "Long " * 200), ("Cold.", "Long " * 200)),
        group("bread", ("Rye.", "Oat.")),
    ]
    rated = unpacked(made(ways)(packed("groups", groups)))
    store = committed(tmp_path / "data", rated)
    failures = store.read("failures").to_pylist()
    assert [row["id"] for row in failures] == ["trio-tea-1", "trio-tea-2"]
    assert all(row["reason"].startswith("way 0: too long for the judge: ") for row in failures)
    assert not any("Long" in row["reason"] for row in failures)
    arrays = read_ways(store, ways, POOL.ids)
    assert arrays.scores.shape == (3, 4, 3)
    np.testing.assert_array_equal(arrays.calls, [[6, 6]] * 3)


class Served(ScriptedEngine):
    """Counts as a server's engine does: a request a prompt."""

    usage = Usage()

    def label_logprobs(self, prompts: Sequence[TokenIds], labels: TokenIds) -> np.ndarray:
        self.usage = self.usage._replace(requests=self.usage.requests + len(prompts), cost=self.usage.cost + 0.5)
        return super().label_logprobs(prompts, labels)


@pytest.mark.slow
def test_what_a_server_counts_is_charged_once(long_context_model: Path) -> None:
    judge, engine = made(ways_of(long_context_model)), Served()
    judge.bill = Bill(engine)
    for _, own, _ in judge.judges:
        own.judge.engine = engine
    batches = [packed("groups", [group(name, ("Yes.", "No.")), group(f"no {name}", ("Yes.", "No."))]) for name in "ab"]
    rated = [one for batch in batches for one in unpacked(judge(batch))]
    assert engine.usage.requests > 0
    for field in ("requests", "cost"):
        assert sum(one[field] or 0 for one in rated) == getattr(engine.usage, field)


def test_a_fault_in_any_way_is_a_failure_with_its_name() -> None:
    given = group("tea", ("Hot.", "Cold."), ("Hot.", "Sweet."))
    names = [c["conversation_id"] for c in given["conversations"]]
    good = [{"conversation_id": name, "error": None} for name in names]
    bad = [*good[:2], {"conversation_id": names[2], "error": "the judge gave no answer"}]
    given["ways"] = [
        {"way": way, "calls": 3, "tokens": 9, "seconds": 0.5, "ratings": ratings}
        for way, ratings in (("one", good), ("two", bad), ("three", bad))
    ]
    rows = way_rows(given)
    reason = "two: the judge gave no answer"
    assert rows["failures"] == [{"origin": names[2], "id": "trio-tea-1", "reason": reason, "final": True}]
    assert [row["trio_id"] for row in rows["compared"]] == ["trio-tea-0"]
    assert [(row["way"], row["calls"]) for row in rows["costs"]] == [("one", 3), ("two", 3), ("three", 3)]
    assert len(rows["ratings"]) == 9


def test_one_prompt_is_too_few(tmp_path: Path) -> None:
    store = PartStore(str(tmp_path / "data"), TABLES).open()
    with pytest.raises(SourceError, match="trios of 0 prompts only, and intervals need two or more"):
        read_ways(store, [], POOL.ids)
