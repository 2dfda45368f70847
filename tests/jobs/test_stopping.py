"""Runs that lose a node, or are asked to end: nothing is lost, nothing is rated twice."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from support import ROOT, Setup, after, all_gone, manifest, rated_once, run, stop, wait_until

pytestmark = pytest.mark.slow
RULES = 6


def test_nodes_of_two_kinds_that_are_drained_and_die_cost_no_row(tmp_path: Path, long_context_model: Path) -> None:
    rows = [{"prompt": f"What is {n}?", "chosen": f"A number, {n}.", "rejected": "No idea."} for n in range(90)]
    (tmp_path / "trios.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    program = Path(__file__).with_name("machines.py")
    done = run([sys.executable, str(program), str(tmp_path), str(long_context_model)], PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["rated"], found["most"]) == (180, 1)
    assert (found["counts"]["out"], found["counts"]["pending"], found["counts"]["lost"]) == (90, 0, 0)
    # What was under way where a node was drained has ended there, so nothing was done twice for it.
    assert found["at_the_drained_later"] == found["at_the_killed_later"] == 0
    assert found["after_the_kill"] > 3
    assert found["batches"] <= 45 + 2


def test_a_run_stopped_in_every_way_rates_each_conversation_once(setup: Setup) -> None:
    # So many, and so slowly, that a signal comes while there is work.
    more = [{"prompt": f"Why {n}?", "chosen": f"As {n} is so.", "rejected": f"No, {n} is not."} for n in range(14)]
    with setup.trios.open("a") as stream:
        stream.write("".join(json.dumps(row) + "\n" for row in more))
    command = setup.job("rate", f"trios={setup.trios}", "judge.engine=scripted", "judge.scripted.latency_s=0.4")
    ratings = setup.output / "data/ratings"

    def parts() -> dict[str, int]:
        return {file.name: file.stat().st_mtime_ns for file in ratings.glob("part-*")}

    def stopped(when: Callable[[], bool], how: signal.Signals) -> tuple[int, str]:
        status, told, had = stop(command, when, how)
        wait_until(lambda: all_gone(had), 30)
        assert "Traceback" not in told
        return status, told

    def when_there_are_more(than: int) -> Callable[[], bool]:
        return lambda: len(parts()) > than

    for how, expected, words in (
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "stopped as asked"),
        (signal.SIGKILL, -signal.SIGKILL, ""),
    ):
        status, told = stopped(when_there_are_more(len(parts())), how)
        assert (status, words in told) == (expected, True), told
        if how != signal.SIGKILL:
            assert manifest(setup.output)["status"] == "interrupted"
    # Whatever it does then: it starts, groups, rates or commits. The benchmark does so at 20 moments.
    stopped(after(Random().uniform(1, 12)), signal.SIGKILL)
    kept = parts()

    done = run(command)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert parts().items() >= kept.items()
    rate, rated = manifest(setup.output), rated_once(setup.output / "data")
    assert len(rated) == 2 * rate["counts"]["trios"] == rate["counts"]["conversations_expected"]
    assert all(len(row["rule_ids"]) == RULES for row in rated)
    assert rate["judge"]["calls"] == len(rated) * RULES
