"""Responses to trios: one for every two that differ, each failure counted, sides by the hash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_server import MODEL, FakeClock, ScriptedServer, serving

from ramo_ray.core.records import conversation_id, first_is_a, trio_id
from ramo_ray.models.templates import load_tokenizer
from ramo_ray.pipelines.formats import to_trio
from ramo_ray.pipelines.responses import ResponseWriter, response_rows
from ramo_ray.pipelines.store import PartStore, served, write_blocks
from ramo_ray.pipelines.tables import packed, table

PROMPT = [{"role": "user", "content": "q"}]


def group(*responses: str, bad: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    return {
        "prompt_id": "p",
        "prompt": PROMPT,
        "bad": bad or [],
        "conversations": [
            {"conversation_id": conversation_id("p", text), "response": text, "source": f"m{place}", "done": False}
            for place, text in enumerate(responses)
        ],
    }


def rows_of(given: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    tables = response_rows(given)
    for name, rows in tables.items():
        table(name, rows)
    return tables


def test_every_two_responses_are_a_trio() -> None:
    tables = rows_of(group(*(f"response {n}" for n in range(6))))
    assert len(tables["conversations"]) == 6
    assert len(tables["trios"]) == 15
    assert tables["failures"] == []
    assert len({row["trio_id"] for row in tables["trios"]}) == 15
    for row in tables["trios"]:
        assert row["trio_id"] == trio_id("p", row["response_a"], row["response_b"])
        assert (row["response_a"] < row["response_b"]) == first_is_a(row["trio_id"])
        assert row["source_a"] == f"m{row['response_a'][-1]}"
        assert row["source_b"] == f"m{row['response_b'][-1]}"
        assert row["label"] is None


def test_blank_and_repeated_responses_are_failures_of_their_generator() -> None:
    tables = rows_of(group("good", "", "good", "nul\0", "fine"))
    assert [row["response"] for row in tables["conversations"]] == ["good", "fine"]
    assert len(tables["trios"]) == 1
    assert [(row["origin"], row["id"], row["reason"]) for row in tables["failures"]] == [
        ("m1", "p", "response is blank"),
        ("m2", "p", "repeats another generator's response"),
        ("m3", "p", "response holds a NUL character"),
    ]


def test_one_usable_response_makes_no_trio() -> None:
    bad = [{"origin": "m9", "id": "p", "reason": "too long for m9"}]
    tables = rows_of(group("only", " ", bad=bad))
    assert tables["trios"] == []
    assert [row["origin"] for row in tables["failures"]] == ["m9", "m1"]
    assert rows_of(group(bad=bad)) == {
        "conversations": [],
        "failures": [row | {"final": True} for row in bad],
        "trios": [],
    }


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), max_size=5))
def test_each_response_is_either_used_or_a_failure(responses: list[str]) -> None:
    tables = rows_of(group(*responses))
    used = len(tables["conversations"])
    assert used + len(tables["failures"]) == len(responses)
    assert len(tables["trios"]) == used * (used - 1) // 2


def test_what_is_written_is_read_as_the_same_trio() -> None:
    identifier = to_trio({"prompt": PROMPT, "response_a": "x", "response_b": "y"}, "trio", 100)["prompt_id"]
    given = {**group("one", "two"), "prompt_id": identifier}
    (row,) = rows_of(given)["trios"]
    assert to_trio(row, "trio", 100) == row


def test_what_a_server_counts_is_charged_whatever_model_wrote_before(tiny_model: Path, tmp_path: Path) -> None:
    costs = {"calls": 0, "tokens": 0, "seconds": 0.0, "adapter_seconds": 0.0}
    prompts = [[{"role": "user", "content": text}] for text in ("Why?", "How?", "Who?")]
    given = [group() | {"prompt_id": str(place), "prompt": own} | costs for place, own in enumerate(prompts)]
    batches = [packed("groups", given[:2]), packed("groups", given[2:])]
    server = ScriptedServer(load_tokenizer(tiny_model), ("completions",), FakeClock())
    usages = []
    with serving(server) as url:
        own = {"base_url": url, "model": MODEL, "input_price": 1.0, "output_price": 8.0}
        for name in ("one", "two"):
            generator = {"name": name, "model": str(tiny_model), "engine": "openai", "openai": own}
            writer = ResponseWriter([generator | {"sampling": {"max_tokens": 20}}])
            batches = [writer(batch) for batch in batches]
            usages.append(writer.engine.usage)
            writer.engine.close()

    store = PartStore(str(tmp_path), ("conversations", "failures", "trios")).open()
    write_blocks(batches, store, response_rows)
    counted = served(store.totals())
    assert counted["requests"] == len(server.paths)
    for name, count in counted.items():
        assert count == pytest.approx(sum(getattr(usage, name) for usage in usages), abs=1e-6)
    assert counted["cost"] == pytest.approx(
        (counted["prompt_tokens"] + 8 * counted["completion_tokens"]) / 1e6, abs=1e-6
    )
    unserved = PartStore(str(tmp_path / "none"), store.names).open()
    write_blocks([packed("groups", given)], unserved, response_rows)
    assert served(unserved.totals()) == {}
