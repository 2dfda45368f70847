"""Whole pipelines with a tiny model: stopped in every way, continued, and begun with wrong words."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import psutil
import pyarrow.dataset as pads
import pytest
from support import ROOT, Setup, all_gone, descendants, manifest, run, wait_until

RULES = 6
pytestmark = pytest.mark.slow


def rows(folder: Path) -> list[dict[str, object]]:
    return list(pads.dataset(sorted(map(str, folder.glob("*.parquet"))), format="parquet").to_table().to_pylist())


def stop(command: list[str], when: object, how: signal.Signals) -> tuple[int, list[psutil.Process]]:
    """Start a job, send it a signal when a condition holds; its exit status and all processes it had."""
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_until(when)
        had = descendants(psutil.Process(process.pid))
        os.kill(process.pid, how)
        return process.wait(timeout=60), had


def test_a_run_that_is_interrupted_and_killed_ends_as_if_it_had_not_been(setup: Setup) -> None:
    # So many that a signal comes while there is work.
    more = [{"prompt": f"Why {n}?", "chosen": f"As {n} is so.", "rejected": f"No, {n} is not."} for n in range(12)]
    with setup.trios.open("a") as stream:
        stream.write("".join(json.dumps(row) + "\n" for row in more))
    command = setup.job("rate", f"trios={setup.trios}")
    ratings = setup.output / "data/ratings"

    status, had = stop(command, lambda: len(list(ratings.glob("part-*"))) >= 1, signal.SIGINT)
    assert status == 130
    assert len(had) > 3
    wait_until(lambda: all_gone(had), 30)
    assert manifest(setup.output)["status"] == "interrupted"

    before = len(list(ratings.glob("part-*")))
    status, had = stop(command, lambda: len(list(ratings.glob("part-*"))) > before, signal.SIGKILL)
    assert status == -signal.SIGKILL
    wait_until(lambda: all_gone(had), 30)

    done = run(command)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    rate, rated = manifest(setup.output), rows(ratings)
    assert len({row["conversation_id"] for row in rated}) == len(rated) == 2 * rate["counts"]["trios"]
    assert all(len(row["rule_ids"]) == RULES for row in rated)  # type: ignore[arg-type]
    assert rate["judge"]["calls"] == len(rated) * RULES


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["judge.layuot=paper"], "did you mean `layout`"),
        (["selection.r=7"], "selection.r = 7, but the pool"),
        (["trios=/nowhere.jsonl"], "/nowhere.jsonl does not exist"),
        (["judge.labels=[Yes, Yesterday, No]", "judge.engine=transformers"], "Yesterday"),
        (["rate.judge.model=/nowhere"], "/nowhere"),
    ],
)
def test_wrong_words_are_refused_by_name(setup: Setup, words: list[str], message: str) -> None:
    done = run(setup.job("pipeline", f"trios={setup.trios}", *words))
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
