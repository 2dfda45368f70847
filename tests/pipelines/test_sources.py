"""Sources to prompt groups: counts that add up, splits, repeats, and rows of one prompt brought together."""

from __future__ import annotations

import gzip
import itertools
import json
import random
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support import ROOT

from ramo_ray.core.records import conversation_id, prompt_id, trio_id
from ramo_ray.errors import ConfigError, SourceError
from ramo_ray.pipelines import sources
from ramo_ray.pipelines.grouping import group_source, make_group
from ramo_ray.pipelines.reading import place_of
from ramo_ray.pipelines.shards import Grouped
from ramo_ray.pipelines.sources import Source
from ramo_ray.settings import SPLITS, SourceSettings, SplitSettings

HH_RLHF = ROOT.parent / "shared" / "data" / "hh_rlhf" / "harmless-base.test.jsonl.gz"
SETTINGS = SourceSettings()
SHARES = SplitSettings()


def jsonl(file: Path, rows: list[Any]) -> str:
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(file)


def pair(prompt: str, chosen: str = "good", rejected: str = "bad") -> dict[str, str]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def open_rows(file: Path, rows: list[Any], **settings: Any) -> Source:
    return sources.open_trios(jsonl(file, rows), SourceSettings(**settings), None)


def survey(source: Source, shares: SplitSettings | None, root: Path) -> tuple[Grouped, list[dict[str, Any]]]:
    """What was grouped, and the rows that were set aside, in the source's order."""
    grouped = group_source(source, shares, SPLITS if shares else ("",), tempfile.mkdtemp(dir=root))
    return grouped, sorted(grouped.bad_rows(), key=lambda row: place_of(row["origin"]))


# Formats


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (pair("x"), "preference"),
        ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}, "hh_rlhf"),
        ({"prompt": "x", "response_a": "a", "response_b": "b"}, "trio"),
    ],
)
def test_the_format_is_told_by_the_columns(tmp_path: Path, row: dict[str, Any], kind: str) -> None:
    assert open_rows(tmp_path / "x.jsonl", [row]).kind == kind


@pytest.mark.parametrize("bad", ["no json", "[]", '{"chosen": null, "rejected": "\\n\\nHuman: a\\n\\nAssistant: c"}'])
def test_a_bad_first_row_does_not_decide_the_format(tmp_path: Path, bad: str) -> None:
    marks = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}
    source = open_rows(tmp_path / "x.jsonl", [bad, marks])
    assert source.kind == "hh_rlhf"
    assert len(survey(source, None, tmp_path)[1]) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b"", "holds no row"),
        ("x.jsonl.gz", gzip.compress(b""), "holds no row"),
        ("x.jsonl", b"prompt,chosen,rejected\na,b,c\n", "its first row has: the line is not JSON"),
        ("x.jsonl", b"\x89PNG\r\n\x1a\n\x00\x00", "its first row has: the line is not UTF-8"),
        ("x.jsonl", b'[{"prompt": "a", "chosen": "b", "rejected": "c"}]', "its first row has: not an object"),
        ("x.json", b'["a", "b"]', "its first row has: not an object"),
        ("x.jsonl", b'{"text": "a", "score": 1}', r"its first row has: columns \['score', 'text'\]"),
        (
            "x.jsonl",
            b'{"chosen": "plain", "rejected": "text"}',
            r"expected the columns chosen and rejected \(and prompt",
        ),
    ],
)
def test_a_source_of_another_kind_is_refused_by_name(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(SourceError, match=message) as caught:
        sources.open_trios(str(file), SETTINGS, None)
    assert str(caught.value).startswith(f"{file}: ")


def test_a_source_without_a_usable_row_is_refused_with_its_reasons(tmp_path: Path) -> None:
    rows = [pair("x", "", "b"), pair("y", "", "b"), {"prompt": "z"}]
    with pytest.raises(
        SourceError, match="none of its 3 rows can be used: 2 × chosen: response is blank; 1 × `chosen`"
    ):
        survey(open_rows(tmp_path / "x.jsonl", rows), None, tmp_path)
    with pytest.raises(SourceError, match="holds no row"):
        survey(open_rows(tmp_path / "y.jsonl", [], format="trio"), None, tmp_path)


def test_fewer_prompts_than_splits_are_refused(tmp_path: Path) -> None:
    source = open_rows(tmp_path / "x.jsonl", [pair("x"), pair("y"), pair("z"), pair("z", "a", "b")])
    with pytest.raises(ConfigError, match="3 usable prompts cannot fill 4 splits; give more prompts"):
        survey(source, SHARES, tmp_path)
    assert survey(source, None, tmp_path)[0].prompts == 3


# Counts

BAD_ROWS: list[tuple[Any, str]] = [
    ("no json", "the line is not JSON (Expecting value at column 1)"),
    ("[1]", "the row is a list, not an object with named fields"),
    ("null", "the row is a NoneType, not an object with named fields"),
    (pair("p0"), "repeats an earlier row"),
    (pair("p0", "bad", "good"), "repeats an earlier row"),
    ({"prompt": "p0", "chosen": "good"}, "`rejected` is missing"),
    (pair("q", "", "b"), "chosen: response is blank"),
    (pair("q", "same", "same"), "the two responses are identical"),
    (pair("q", "x" * 100_000), "too long: 100,000 characters in one text, source.max_chars allows 32,000"),
    (pair("q", "a\0"), "chosen: response holds a NUL character"),
    (pair("q", "\ud800"), "chosen: response holds a lone surrogate, which is no character"),
    (
        {"prompt": [{"role": "robot", "content": "q"}], "chosen": "a", "rejected": "b"},
        "prompt[0] has the unknown role 'robot'; known: system, user, assistant",
    ),
]


def test_every_row_is_counted_once(tmp_path: Path) -> None:
    good = [pair(f"p{n}") for n in range(8)] + [pair("p0", "third", "<|im_start|>fourth<|im_end|>")]
    source = open_rows(tmp_path / "x.jsonl", [*good, *(row for row, _ in BAD_ROWS)])
    grouped, bad = survey(source, SHARES, tmp_path)
    assert grouped.rows == 9 + len(BAD_ROWS)
    assert [row["reason"] for row in bad] == [reason for _, reason in BAD_ROWS]
    assert [row["origin"] for row in bad] == [f"{tmp_path}/x.jsonl:{n}" for n in range(10, 10 + len(BAD_ROWS))]
    assert grouped.rows == sum(grouped.trios.values()) + len(bad)
    assert grouped.quarantined == len(bad)
    assert grouped.prompts == 8
    assert grouped.count(SPLITS) == 9
    assert sum(grouped.conversations.values()) == 8 * 2 + 2
    repeated = trio_id(prompt_id([{"role": "user", "content": "p0"}]), "good", "bad")
    assert [row["id"] for row in bad if row["id"]] == [repeated] * 2


def test_a_prompts_source(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("one\ntwo\none\n")
    grouped, bad = survey(sources.open_prompts(str(tmp_path / "x.txt"), SETTINGS, None), None, tmp_path)
    assert (grouped.rows, grouped.prompts) == (3, 2)
    assert [row["reason"] for row in bad] == ["repeats an earlier row"]
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    rows = [{"prompt": messages}, "plain", {"question": "x"}, {"prompt": "x" * 40_000}, {"prompt": " "}, 7]
    (tmp_path / "x.json").write_text(json.dumps(rows))
    grouped, bad = survey(sources.open_prompts(str(tmp_path / "x.json"), SETTINGS, None), None, tmp_path)
    assert grouped.prompts == 2
    assert [row["reason"] for row in bad] == [
        "`prompt` is missing",
        "too long: a prompt of 40,000 characters, source.max_chars allows 32,000",
        "prompt ends with a blank turn",
        "`prompt` is a int, not text or a list of messages",
    ]


def test_the_splits_are_four_disjoint_sets_and_none_is_empty(tmp_path: Path) -> None:
    for n in (4, 5, 24, 100):
        grouped, _ = survey(open_rows(tmp_path / "x.jsonl", [pair(f"p{k}") for k in range(n)]), SHARES, tmp_path)
        assert set(grouped.trios) == set(SPLITS)
        assert min(grouped.trios.values()) >= 1
    assert grouped.trios == {"adapter_train": 45, "adapter_test": 10, "reward_train": 35, "reward_test": 10}


def test_a_prompts_split_does_not_depend_on_where_its_rows_stand(tmp_path: Path) -> None:
    rows = [pair(f"p{k}", f"{n}", "x") for k in range(20) for n in range(3)]
    ids = [prompt_id([{"role": "user", "content": f"p{k}"}]) for k in range(20)]
    found = []
    for seed in range(3):
        random.Random(seed).shuffle(rows)
        cuts = survey(open_rows(tmp_path / "x.jsonl", rows), SHARES, tmp_path)[0].cuts
        found.append([sources.split_of(identifier, cuts) for identifier in ids])
    assert found[0] == found[1] == found[2]


@pytest.mark.skipif(not HH_RLHF.exists(), reason="the HH-RLHF test data is not beside the project")
def test_real_dialogues_are_all_accounted_for(tmp_path: Path) -> None:
    grouped, bad = survey(sources.open_trios(str(HH_RLHF), SETTINGS, None), SHARES, tmp_path)
    assert grouped.rows == 2312
    assert Counter(row["reason"] for row in bad) == {
        "the two dialogues differ before their last turn": 5,
        "chosen: response is blank": 4,
    }
    assert sum(grouped.trios.values()) == 2303
    assert grouped.prompts == 2301
    assert grouped.trios["reward_train"] == pytest.approx(0.35 * 2303, abs=5)
    rows = [row for row in sources.read_rows(sources.open_trios(str(HH_RLHF), SETTINGS, None)) if not row.get("reason")]
    several = sum(len(row["prompt"]) > 1 for row in rows)
    assert several / len(rows) == pytest.approx(0.71, abs=0.01)
    assert sum(row["label"] for row in rows) / len(rows) == pytest.approx(0.5, abs=0.03)


# Groups


def rows_of(tmp_path: Path, rows: list[Any]) -> list[dict[str, Any]]:
    read = sources.read_rows(open_rows(tmp_path / "rows.jsonl", rows))
    return [{"trio_id": None, "reason": None, **row} for row in read]


def test_a_group_holds_each_response_and_each_trio_once(tmp_path: Path) -> None:
    responses = [f"response {n}" for n in range(6)]
    pairs = [pair("p", one, other) for one, other in itertools.combinations(responses, 2)]
    group = make_group(rows_of(tmp_path, [*pairs, pairs[0], pair("p", "response 1", "response 0")]), [])
    assert len(group["conversations"]) == 6
    assert len(group["trios"]) == 15
    identifier = prompt_id([{"role": "user", "content": "p"}])
    assert group["prompt_id"] == identifier
    for conversation in group["conversations"]:
        assert conversation["conversation_id"] == conversation_id(identifier, conversation["response"])
        assert conversation["done"] is False
    for trio in group["trios"]:
        a, b = (group["conversations"][trio[side]]["response"] for side in ("a", "b"))
        assert trio["trio_id"] == trio_id(identifier, a, b)


def test_a_group_does_not_depend_on_the_order_of_its_rows(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, [pair("p", f"{n}", f"{n + 1}") for n in range(12)])
    assert make_group(rows[::-1], [0.2, 0.5, 0.8]) == make_group(rows, [0.2, 0.5, 0.8])


def test_of_a_repeated_trio_the_sources_first_row_counts(tmp_path: Path) -> None:
    # As text, line 10 would come before line 2.
    fillers = [pair(f"p{n}") for n in range(7)]
    repeated = [{"prompt": "p", "response_a": "a", "response_b": "b", "label": label} for label in (0, 1)]
    rows = rows_of(tmp_path, [repeated[1] | {"prompt": "first"}, repeated[0], *fillers, repeated[1]])
    same = [row for row in rows if row.get("prompt") == [{"role": "user", "content": "p"}]]
    assert [row["origin"].rpartition(":")[2] for row in same] == ["2", "10"]
    assert [trio["label"] for trio in make_group(same[::-1], [])["trios"]] == [0]


def test_a_prompt_alone_is_a_group_without_conversations(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("one\n")
    (row,) = sources.read_rows(sources.open_prompts(str(tmp_path / "x.txt"), SETTINGS, None))
    group = make_group([{"trio_id": None, "reason": None, **row}], [])
    assert (group["conversations"], group["trios"], group["split"]) == ([], [], "")
