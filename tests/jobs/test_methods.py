"""`label` with a number for a score, and with conversations that the judge's context cannot hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.dataset as pads
import pytest
from support import Setup, manifest, run

from jobs.reporting import collect
from ramo_ray.core.rules import load_pool
from ramo_ray.models.templates import load_tokenizer
from ramo_ray.pipelines.prompts import JudgePrompts
from ramo_ray.settings import SPLITS, JudgeSettings

pytestmark = pytest.mark.slow
EVERYTHING = f"[{', '.join(SPLITS)}]"
LONG_RESPONSE = {"prompt": "What is tea?", "chosen": "Leaves. " * 60, "rejected": "A drink."}
LONG_PROMPT = {"prompt": "Is it so? " * 60, "chosen": "It is.", "rejected": "It is not."}


def rows(folder: Path) -> list[dict[str, Any]]:
    return list(pads.dataset(sorted(map(str, folder.glob("*.parquet"))), format="parquet").to_table().to_pylist())


def judge_words(setup: Setup, model: Path) -> list[str]:
    """Settings under which ten trios fit, one has a response to cut, and one a prompt that leaves no room."""
    trios = [json.loads(line) for line in setup.trios.read_text().splitlines()]
    pool = load_pool(str(setup.configs.parent / "rules.yaml"))
    prompts = JudgePrompts(load_tokenizer(model), JudgeSettings(layout="rule_last", method="number"), pool)
    longest = max(
        len(ids) + prompts.answers.longest_prefix
        for trio in trios
        for side in ("chosen", "rejected")
        for ids in prompts.ids([{"role": "user", "content": trio["prompt"]}], trio[side], range(len(pool)))
    )
    with setup.trios.open("a") as stream:
        stream.write("".join(json.dumps(row) + "\n" for row in (LONG_RESPONSE, LONG_PROMPT)))
    own = ["method=number", "too_long=truncate_response", f"max_length={longest}", "engine=scripted"]
    return [f"trios={setup.trios}", *(f"judge.{word}" for word in own)]


def test_labelling_by_numbers_with_responses_cut(setup: Setup, long_context_model: Path, tmp_path: Path) -> None:
    from ramo_ray.models.adapter import new_adapter

    pool = load_pool(str(tmp_path / "rules.yaml"))
    new_adapter(long_context_model, pool.ids).save_pretrained(tmp_path / "adapter")
    load_tokenizer(long_context_model).save_pretrained(tmp_path / "adapter")
    words = judge_words(setup, long_context_model)
    done = run(setup.job("label", *words, f"labelled={EVERYTHING}", f"model={tmp_path / 'adapter'}"))
    assert done.returncode == 0, done.stderr
    preferences, counts = rows(setup.output / "data/preferences"), manifest(setup.output)["counts"]
    assert len(preferences) == 11
    good = [row for row in rows(setup.output / "data/ratings") if not row["error"]]
    assert len(good) == 2 * 11
    assert {round(score, 1) for row in good for score in row["score"]} <= {n / 10 for n in range(11)}
    assert len({score for row in good for score in row["score"]}) > 2
    for row in good:
        assert row["p_yes"] == row["p_no"] == row["p_irrelevant"] == [None] * 2
        assert all(0 < mass < 1 for mass in row["label_mass"])
    assert manifest(setup.output)["judge"]["calls"] == 2 * len(good)
    (reason,) = {row["reason"] for row in rows(setup.output / "data/failures")}
    assert "nothing of the response fits" in reason
    (cut,) = [row for row in preferences if row["truncated"]]
    texts = {cut[side][0]["content"] for side in ("chosen", "rejected")}
    assert texts == {LONG_RESPONSE["chosen"], LONG_RESPONSE["rejected"]}
    assert (counts["rows_in"], counts["rows_out"], counts["quarantined"]) == (12, 11, 1)
    assert counts["truncated"] == 1
    for row in preferences:
        side = {"a": 1, "b": -1}[row["chosen_is"]]
        means = [sum(row[f"scores_{fate}"]) / 2 for fate in ("chosen", "rejected")]
        assert row["margin"] == pytest.approx(side * (means[0] - means[1]), abs=1e-6)
        assert row["tie"] == (means[0] == means[1])
    assert "with a response cut for the judge" in done.stdout
    report = collect(setup.output)
    assert [trio.truncated for trio in report.trios].count(True) == 1
    assert report.facts["method"] == "number"
