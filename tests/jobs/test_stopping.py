"""Runs that lose a node, or are asked to end: nothing is lost, nothing is rated twice."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import psutil
import pytest
import works
from support import ROOT, Setup, after, all_gone, manifest, rated_once, run, stop, wait_until

from jobs.flow import run_groups
from jobs.observer import asked_to_stop
from jobs.pace import Moment
from jobs.pipeline import plan, run_pipeline
from jobs.rate import RateConfig
from jobs.rate import main as rate
from jobs.session import ended_by_sigterm
from ramo_ray.config import load
from ramo_ray.errors import StoppedError
from ramo_ray.pipelines.rating import RuleJudge

pytestmark = pytest.mark.slow
RULES = 6


def test_nodes_of_two_kinds_that_are_drained_and_die_cost_no_row(tmp_path: Path, long_context_model: Path) -> None:
    program = Path(__file__).with_name("machines.py")
    path = f"{ROOT}:{ROOT / 'tests'}"
    done = run([sys.executable, str(program), str(tmp_path), str(long_context_model)], PYTHONPATH=path)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["rated"], found["most"]) == (60, 1)
    assert (found["counts"]["out"], found["counts"]["pending"], found["counts"]["lost"]) == (30, 0, 0)
    batches = found["batches"]
    # What was under way where a node was drained has ended there, so nothing was done twice for it.
    assert batches["drained"] + batches["stands_in"] + batches["killed"] == 15, found
    assert found["at_the_drained_later"] <= 2, found
    # The killed one took a batch along, that another did again.
    assert batches["killed"] == 3, found


def test_a_stop_between_rounds_is_one_too() -> None:
    with pytest.raises(StoppedError, match="run the same command again"), ended_by_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_second_stop_ends_at_once() -> None:
    with asked_to_stop() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_set()
        with pytest.raises(StoppedError, match="as asked again"):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.usefixtures("local_ray")
def test_a_run_that_no_machine_has_room_for_can_be_stopped(tmp_path: Path, long_context_model: Path) -> None:
    nowhere = {"min": 1, "max": 1, "kinds": [{"resources": {"nowhere": 1}}]}
    settings = works.scripted(str(long_context_model), batch=2, latency_s=0.0, actors=nowhere)
    works.write_trios(tmp_path, 4)
    given = works.rating_work(tmp_path, settings, RuleJudge, {"rules": works.RULES, "asked": "all_rules"}, part=2)
    told: list[Moment] = []

    def at_the_first(moment: Moment) -> None:
        if not told:
            os.kill(os.getpid(), signal.SIGTERM)
        told.append(moment)

    with pytest.raises(StoppedError, match="run the same command again"):
        run_groups(given._replace(tell=at_the_first))
    assert told
    assert given.store.files("ratings") == []


def test_a_stop_while_the_last_batch_of_a_stage_ends_is_one_of_the_pipeline(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[str] = []

    def asked_at_its_end(config: RateConfig) -> None:
        began.append(config.job)
        with asked_to_stop():
            os.kill(os.getpid(), signal.SIGTERM)

    # Stages that do nothing need no Ray.
    monkeypatch.setattr("jobs.pipeline.ray_session", lambda _: contextlib.nullcontext())
    stages = plan(setup.configs, [f"trios={setup.trios}"])
    with pytest.raises(StoppedError, match="after rate"):
        run_pipeline([stage._replace(check=lambda _: None, main=asked_at_its_end) for stage in stages])
    assert began == ["rate"]


@pytest.mark.usefixtures("local_ray")
def test_a_run_stopped_in_every_way_rates_each_conversation_once(setup: Setup) -> None:
    # So many, and so slowly, that a signal comes while there is work.
    more = [{"prompt": f"Why {n}?", "chosen": f"As {n} is so.", "rejected": f"No, {n} is not."} for n in range(14)]
    with setup.trios.open("a") as stream:
        stream.write("".join(json.dumps(row) + "\n" for row in more))
    words = (f"trios={setup.trios}", "judge.engine=scripted")
    slowly = setup.job("rate", *words, "judge.scripted.latency_s=0.7")
    ratings = setup.output / "data/ratings"
    had: list[psutil.Process] = []

    def parts() -> dict[str, int]:
        return {file.name: file.stat().st_mtime_ns for file in ratings.glob("part-*")}

    def stopped(when: Callable[[], bool], how: signal.Signals) -> tuple[int, str]:
        # The next run may start while those that a killed one leaves are on their way out.
        status, told, its_own = stop(slowly, when, how)
        had.extend(its_own)
        assert "Traceback" not in told
        return status, told

    def a_moment_after_the_next(than: int) -> Callable[[], bool]:
        """Whatever it does then: it rates, commits, or both."""
        moment: list[Callable[[], bool]] = []

        def holds() -> bool:
            if not moment and len(parts()) > than:
                moment.append(after(Random().uniform(0, 2)))
            return bool(moment) and moment[0]()

        return holds

    for how, expected, said in (
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "stopped as asked"),
        (signal.SIGKILL, -signal.SIGKILL, ""),
    ):
        status, told = stopped(a_moment_after_the_next(len(parts())), how)
        assert (status, said in told) == (expected, True), told
        if how != signal.SIGKILL:
            assert manifest(setup.output)["status"] == "interrupted"
    # The benchmark kills at 20 moments, those of the start among them.
    kept = parts()

    rate(load(RateConfig, setup.configs, [f"output={setup.output}", *words]))
    assert parts().items() >= kept.items()
    found, rated = manifest(setup.output), rated_once(setup.output / "data")
    assert len(rated) == 2 * found["counts"]["trios"] == found["counts"]["conversations_expected"]
    assert all(len(row["rule_ids"]) == RULES for row in rated)
    assert found["judge"]["calls"] == len(rated) * RULES
    wait_until(lambda: all_gone(had), 30)
