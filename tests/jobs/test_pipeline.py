"""Pipelines that are begun with wrong words, or on what other rules were made with."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from support import Setup, run

from jobs.inputs import SourceStageConfig, rule_pool
from jobs.pipeline import plan, run_pipeline
from jobs.stage import write_json
from ramo_ray.errors import ConfigError

pytestmark = pytest.mark.slow


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


def test_a_finished_pipeline_is_not_passed_off_as_one_with_other_rules(setup: Setup) -> None:
    stages = plan(setup.configs, [f"trios={setup.trios}"])
    for stage in stages:
        folder = Path(stage.config.output)
        folder.mkdir(parents=True)
        write_json(folder / "config.json", stage.config.model_dump(mode="json"))
        done = {"job": stage.name, "status": "finished"}
        if isinstance(stage.config, SourceStageConfig):
            done["rules"] = rule_pool(stage.config, 1).fingerprint
        write_json(folder / "manifest.json", done)
    (setup.configs.parent / "rules.yaml").write_text(yaml.safe_dump({"rules": ["Accept the response that is kind."]}))
    with pytest.raises(ConfigError, match=r"rate was made with other rules than `rules` = .*rules\.yaml has now"):
        run_pipeline(stages)
