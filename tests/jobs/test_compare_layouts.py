"""Ways to rate, compared as a whole job: what is refused, what is written, and that a stopped run goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from support import ROOT, Setup, manifest, run, wait_until

from jobs.compare_layouts import CompareLayoutsConfig, check, main
from jobs.comparison import read_results, write_results
from ramo_ray.config import load, validate
from ramo_ray.core.comparison import WayComparison
from ramo_ray.core.resampling import Estimate
from ramo_ray.core.rules import make_pool
from ramo_ray.errors import ConfigError, RulePoolError, SourceError

RULES, TRIOS, WAYS = 6, 10, 6
CONFIGS = ROOT / "jobs" / "configs"


def config(**values: Any) -> CompareLayoutsConfig:
    return validate(CompareLayoutsConfig, {"output": "out", **values}, "here")


# Configuration


def test_all_six_ways_are_compared_with_the_papers() -> None:
    assert [way.name for way in config().ways] == [
        "paper/three_labels",
        "rule_last/three_labels",
        "paper/two_labels",
        "rule_last/two_labels",
        "paper/number",
        "rule_last/number",
    ]


@pytest.mark.parametrize(
    ("ways", "message"),
    [
        ([], r"`ways` = \[\]: give two ways or more"),
        ([{"layout": "paper"}], r"give two ways or more, such as \[\{layout: paper\}, \{layout: rule_last\}\]"),
        ([{"layout": "paper"}, {"layout": "paper", "method": "three_labels"}], "paper/three_labels is there twice"),
        ([{"layout": "paper"}, {"layout": "last"}], r"`ways.1.layout` = 'last'"),
        ([{"layout": "paper"}, {"layuot": "paper"}], "did you mean `layout`"),
        ([{"layout": "paper"}, {"layout": "paper", "method": "stars"}], r"`ways.1.method` = 'stars'"),
    ],
)
def test_ways_that_cannot_be_compared_are_refused_by_name(ways: list[dict[str, str]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(ways=ways)


@pytest.mark.parametrize("folder", ["laptop", "paper"])
def test_the_shipped_configs(folder: str) -> None:
    found = load(CompareLayoutsConfig, CONFIGS / folder, ["trios=pairs.jsonl"])
    assert found.output == "runs/layouts"
    assert found.limit
    assert found.ways == config().ways


def test_the_pool_and_the_source_are_checked_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text("rules: [one, two]")
    with pytest.raises(RulePoolError, match=r"selection\.r = 5"):
        check(config(rules=str(tmp_path / "rules.yaml")))
    with pytest.raises(SourceError, match=r"/nowhere.jsonl does not exist"):
        check(config(trios="/nowhere.jsonl"))


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    some, pool = Estimate(0.5, 0.25, 0.75), make_pool("p", ["one", "two"], origin="here")
    ways = [
        WayComparison(name, [some, None], None, some, 0.3, some, 2, some, None, some, some, some)
        for name in ("paper/number", "rule_last/number")
    ]
    write_results(tmp_path, ways, pool)
    assert read_results(tmp_path) == ways
    rows = pq.read_table(tmp_path / "per_rule.parquet").to_pylist()
    assert rows[:2] == [
        {"way": "paper/number", "rule_id": pool.ids[0], "correlation": 0.5, "low": 0.25, "high": 0.75},
        {"way": "paper/number", "rule_id": pool.ids[1], "correlation": None, "low": None, "high": None},
    ]
    assert json.loads((tmp_path / "comparison.json").read_text())["ways"][0]["rules_without_correlation"] == 1


# Whole runs


def job(setup: Setup, *words: str) -> list[str]:
    return setup.job("compare_layouts", f"trios={setup.trios}", "samples=50", *words)


@pytest.mark.slow
def test_a_dry_run_compares_all_ways_and_returns_at_once_when_it_is_finished(setup: Setup) -> None:
    command = [sys.executable, "-m", "ramo_ray.cli", "compare-layouts", *job(setup, "judge.engine=scripted")[3:]]
    done = run(command)
    assert done.returncode == 0, done.stderr
    assert "Agreement with paper/three_labels" in done.stdout
    assert "labels flip" in done.stdout
    assert "next: open" in done.stdout
    found = manifest(setup.output)
    assert found["status"] == "finished"
    assert (
        found["counts"] | {"rows_in": TRIOS, "rows_out": TRIOS, "prompts": TRIOS, "conversations": 20}
        == found["counts"]
    )
    assert found["judge"]["calls"] == 2 * TRIOS * RULES * WAYS
    assert len(set(found["fingerprints"].values())) == WAYS
    reference, *others = read_results(setup.output)
    assert reference.flipped == 0
    assert len(others) == WAYS - 1
    # Hashes agree as chance has it: two of six rules, but for the relevance that all ways share.
    assert all(0 < way.overlap_by_chance < 1 and way.overlap.value < 1 for way in others)
    page = (setup.output / "comparison.html").read_text()
    assert "its answers are hashes" in page
    assert "Tell me about" not in page

    before = {file: file.stat().st_mtime_ns for file in setup.output.rglob("*") if file.name != ".lock"}
    again = run(command)
    assert again.returncode == 0, again.stderr
    assert "labels flip" in again.stdout
    assert {file: file.stat().st_mtime_ns for file in before} == before
    with pytest.raises(ConfigError, match="samples was 50, is 60"):
        main(load(CompareLayoutsConfig, setup.configs, [*job(setup, "judge.engine=scripted")[4:], "samples=60"]))


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_run_that_is_killed_goes_on_where_it_stood(setup: Setup) -> None:
    words = ["ways=[{layout: paper}, {layout: rule_last}]"]
    command = job(setup, *words)
    parts = setup.output / "data" / "compared"
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: len(list(parts.glob("part-*"))) >= 2)
        os.kill(process.pid, signal.SIGKILL)
    kept = {file.name: file.stat().st_mtime_ns for file in parts.glob("part-*")}
    assert manifest(setup.output)["status"] == "running"

    main(load(CompareLayoutsConfig, setup.configs, command[4:]))
    assert {name: (parts / name).stat().st_mtime_ns for name in kept} == kept
    compared = [row["trio_id"] for file in parts.glob("*.parquet") for row in pq.read_table(file).to_pylist()]
    assert len(compared) == len(set(compared)) == TRIOS
    found = manifest(setup.output)
    assert found["judge"]["calls"] == 2 * TRIOS * RULES * 2
    ratings = [
        (row["conversation_id"], row["fingerprint"])
        for file in (setup.output / "data" / "ratings").glob("*.parquet")
        for row in pq.read_table(file).to_pylist()
    ]
    assert len(ratings) == len(set(ratings)) == 2 * TRIOS * 2
    ways = read_results(setup.output)
    assert all(way.calls_a_second.value > 0 and way.label_mass.value > 0 for way in ways)
    # A random model hardly ever means to answer at all.
    assert all(way.label_mass.high < 0.5 for way in ways)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"prompt": "One.", "chosen": "Yes.", "rejected": "No."}],
            "the 1 rows that were read hold one prompt; intervals need two",
        ),
        ([{"prompt": "One.", "chosen": "Same.", "rejected": "Same."}] * 2, "none of its 2 rows can be used"),
    ],
)
def test_a_source_with_too_little_is_refused_by_name(setup: Setup, rows: list[dict[str, str]], message: str) -> None:
    setup.trios.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(SourceError, match=message) as refused:
        main(load(CompareLayoutsConfig, setup.configs, [f"output={setup.output}", f"trios={setup.trios}"]))
    assert refused.value.exit_status == 2
