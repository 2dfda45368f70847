"""What a plan says, against the counts of the run that it plans."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import pytest
from support import ROOT, Setup
from typer.testing import CliRunner

from jobs.planning import make_plan
from jobs.rate import RateConfig
from ramo_ray.cli import app
from ramo_ray.config import load
from ramo_ray.errors import ConfigError
from ramo_ray.pipelines.reading import COUNTED_LINES, count_rows

pytestmark = pytest.mark.slow
RULES, R, TRIOS = 6, 2, 10


def words(setup: Setup, *more: str) -> list[str]:
    return [f"trios={setup.trios}", f"output={setup.output}", "judge.engine=scripted", *more]


def test_the_calls_and_tokens_of_a_small_source_are_exact(setup: Setup) -> None:
    plan = make_plan(setup.configs, words(setup, "judge.actors.price_per_hour=3"), "", sample=100)
    assert plan.size == (TRIOS, True, TRIOS, 2 * TRIOS, TRIOS)
    assert plan.all_rules.calls == 2 * TRIOS * RULES
    assert plan.adapter.calls == 2 * TRIOS * R
    assert 0 < plan.all_rules.computed < plan.all_rules.tokens
    assert plan.adapter.tokens < plan.all_rules.tokens
    # Rule last, a conversation is computed once however many rules ask about it.
    assert plan.adapter.computed > plan.all_rules.computed * R / RULES
    for cost in (plan.all_rules, plan.adapter):
        assert cost.actor_hours == pytest.approx(cost.computed / plan.rate.tokens_a_second / 3600)
        assert cost.days == pytest.approx(cost.actor_hours / 24)
        assert cost.price == pytest.approx(3 * cost.actor_hours)
        assert cost.gpu_hours == 0


def test_a_rate_is_taken_from_a_run(setup: Setup) -> None:
    folder = setup.output / "rate"
    folder.mkdir(parents=True)
    judge = {"calls": 600, "tokens": 30_000, "computed": 30_000, "seconds": 15.0}
    (folder / "manifest.json").write_text(json.dumps({"job": "rate", "judge": judge}))
    own = load(RateConfig, setup.configs, words(setup)).model_dump(mode="json")
    (folder / "config.json").write_text(json.dumps(own))
    actors = ["judge.actors.max=4", "judge.actors.num_gpus=2"]
    plan = make_plan(setup.configs, words(setup, *actors), str(setup.output), sample=3)
    assert plan.rate.tokens_a_second == 2000
    assert "600 calls" in plan.rate.measured
    assert plan.all_rules.days == pytest.approx(plan.all_rules.actor_hours / 24 / 4)
    assert plan.all_rules.gpu_hours == 2 * plan.all_rules.actor_hours
    other = load(RateConfig, setup.configs, words(setup, "judge.layout=paper")).model_dump(mode="json")
    (folder / "config.json").write_text(json.dumps(other))
    with pytest.raises(ConfigError, match=r"another judge: layout was 'paper', is 'rule_last'"):
        make_plan(setup.configs, words(setup, *actors), str(setup.output), sample=3)
    with pytest.raises(ConfigError, match="no manifest there says"):
        make_plan(setup.configs, words(setup), str(setup.configs), sample=3)


def test_splits_say_what_is_asked_in_which_way(setup: Setup) -> None:
    plan = make_plan(setup.configs, words(setup, "rated=[adapter_train]", "labelled=[reward_test]"), "", sample=2)
    assert (plan.rated, plan.labelled) == pytest.approx((0.45, 0.1))
    assert make_plan(setup.configs, words(setup, "labelled=all"), "", sample=2).labelled == 1.0
    assert plan.configured.calls == pytest.approx(0.45 * plan.all_rules.calls + 0.1 * plan.adapter.calls)


def test_a_limit_and_repeats_count(setup: Setup) -> None:
    lines = setup.trios.read_text()
    setup.trios.write_text(lines + lines)
    assert make_plan(setup.configs, words(setup), "", sample=2).size.rows == 2 * TRIOS
    assert make_plan(setup.configs, words(setup, "limit=5"), "", sample=2).size == (5, True, 5, 10, 5)


def test_of_a_large_file_the_beginning_tells_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gzip

    from ramo_ray.pipelines import reading

    monkeypatch.setattr(reading, "COUNTED_BYTES", 1000)
    # As hard to compress as texts are: the reader's buffer must be small beside the sample.
    text = "".join(json.dumps({"prompt": sha256(b"%d" % n).hexdigest()}) + "\n" for n in range(2 * COUNTED_LINES))
    (tmp_path / "x.jsonl").write_text(text)
    with gzip.open(tmp_path / "x.jsonl.gz", "wt") as stream:
        stream.write(text)
    for name in ("x.jsonl", "x.jsonl.gz"):
        rows, exact = count_rows([str(tmp_path / name)], None, "train")
        assert not exact
        assert rows == pytest.approx(2 * COUNTED_LINES, rel=0.02)
    monkeypatch.undo()
    assert count_rows([str(tmp_path / "x.jsonl")], None, "train") == (2 * COUNTED_LINES, True)


def test_the_command_prints_both_ways(setup: Setup) -> None:
    runner = CliRunner()
    done = runner.invoke(app, ["plan", str(setup.configs), *words(setup), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["all_rules"]["calls"] == 2 * TRIOS * RULES
    done = runner.invoke(app, ["plan", str(setup.configs), *words(setup)])
    assert "with the adapter" in done.output


def test_the_laptops_configuration_can_be_planned() -> None:
    assert load(RateConfig, ROOT / "jobs" / "configs" / "laptop", ["trios=x.jsonl"]).judge.actors.price_per_hour == 0
