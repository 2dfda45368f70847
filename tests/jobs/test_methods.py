"""`rate` and `label` with a number for a score, conversations that the judge cannot hold, and too many bad rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.dataset as pads
import pytest
from support import Setup, manifest, run

from jobs.label import LabelConfig, main
from jobs.reporting import collect
from ramo_ray.config import load
from ramo_ray.core.rules import load_pool
from ramo_ray.judging.prompts import JudgePrompts
from ramo_ray.models.templates import load_tokenizer
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


def test_rating_by_numbers_with_responses_cut_and_too_many_bad_rows(setup: Setup, long_context_model: Path) -> None:
    words = judge_words(setup, long_context_model)
    bad = ['{"prompt": "Hi."}', "no json", '{"prompt": "a", "chosen": "\\ud800", "rejected": "b"}']
    with setup.trios.open("a") as stream:
        stream.write("\n".join(bad) + "\n")
    done = run(setup.job("rate", *words, f"rated={EVERYTHING}", "max_bad_fraction=0.05"))
    # All else is done all the same.
    assert done.returncode == 3, done.stderr
    assert "4 of 15 rows are in quarantine" in done.stderr
    assert "with a response cut for the judge" in done.stdout
    rated, found = rows(setup.output / "data/ratings"), manifest(setup.output)
    counts, good = found["counts"], [row for row in rated if not row["error"]]
    assert (counts["rows_in"], counts["rows_out"], counts["quarantined"]) == (15, 11, 4)
    assert counts["conversations"] == len(good) == 2 * 11
    assert {round(score, 1) for row in good for score in row["score"]} <= {n / 10 for n in range(11)}
    assert len({score for row in good for score in row["score"]}) > 2
    for row in good:
        assert row["p_yes"] == row["p_no"] == row["p_irrelevant"] == [None] * 6
        assert all(0 < mass < 1 for mass in row["label_mass"])
    assert sum(row["truncated"] for row in rated) == counts["truncated"] == 1
    assert found["judge"]["calls"] == 6 * len(good)
    reasons = [row["reason"] for row in pads.dataset(str(setup.output / "quarantine.parquet")).to_table().to_pylist()]
    assert len(reasons) == 4
    assert sum("nothing of the response fits" in reason for reason in reasons) == 1
    assert all("\ud800" not in reason for reason in reasons)
    (stage,) = collect(setup.output).stages
    assert stage.truncated == 1


@pytest.mark.usefixtures("local_ray")
def test_labelling_by_numbers_with_responses_cut(
    setup: Setup, long_context_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ramo_ray.models.adapter import new_adapter

    pool = load_pool(str(tmp_path / "rules.yaml"))
    new_adapter(long_context_model, pool.ids).save_pretrained(tmp_path / "adapter")
    load_tokenizer(long_context_model).save_pretrained(tmp_path / "adapter")
    words = judge_words(setup, long_context_model)
    own = [f"output={setup.output}", f"labelled={EVERYTHING}", f"model={tmp_path / 'adapter'}"]
    main(load(LabelConfig, setup.configs, [*words, *own]))
    preferences, counts = rows(setup.output / "data/preferences"), manifest(setup.output)["counts"]
    assert len(preferences) == 11
    (cut,) = [row for row in preferences if row["truncated"]]
    texts = {cut[side][0]["content"] for side in ("chosen", "rejected")}
    assert texts == {LONG_RESPONSE["chosen"], LONG_RESPONSE["rejected"]}
    assert counts["truncated"] == 1
    assert counts["quarantined"] == 1
    for row in preferences:
        side = {"a": 1, "b": -1}[row["chosen_is"]]
        means = [sum(row[f"scores_{fate}"]) / 2 for fate in ("chosen", "rejected")]
        assert row["margin"] == pytest.approx(side * (means[0] - means[1]), abs=1e-6)
        assert row["tie"] == (means[0] == means[1])
    assert "with a response cut for the judge" in capsys.readouterr().out
    report = collect(setup.output)
    assert [trio.truncated for trio in report.trios].count(True) == 1
    assert report.facts["method"] == "number"
