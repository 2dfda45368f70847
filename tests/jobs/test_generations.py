"""What a run's results depend on: what grows is added, what changed is refused by name or kept apart."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from support import Setup, manifest

from jobs.rate import RateConfig, main
from jobs.stage import data_folder
from ramo_ray.config import load
from ramo_ray.errors import ConfigError, FingerprintError, ModelError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]
SPLIT = "rated=[adapter_train, adapter_test, reward_train, reward_test]"
CONVERSATIONS, RULES = 20, 6


def rate(setup: Setup, *words: str) -> dict[str, Any]:
    """A run's manifest, when it has gone through."""
    given = [f"output={setup.output}", f"trios={setup.trios}", "judge.engine=scripted", SPLIT, *words]
    main(load(RateConfig, setup.configs, given))
    return manifest(setup.output)


def cells(folder: Path) -> Counter[tuple[str, str]]:
    """How often each conversation was rated on each rule."""
    rows = [row for file in sorted(folder.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]
    return Counter((row["conversation_id"], rule) for row in rows for rule in row["rule_ids"])


def set_rules(setup: Setup, rules: list[str]) -> None:
    (setup.configs.parent / "rules.yaml").write_text(yaml.safe_dump({"rules": rules}))


def rules_of(setup: Setup) -> list[str]:
    return list(yaml.safe_load((setup.configs.parent / "rules.yaml").read_text())["rules"])


def test_rules_that_are_added_cost_their_own_cells_and_rules_that_go_cost_none(setup: Setup) -> None:
    first = rate(setup)
    assert first["judge"]["calls"] == first["judge"]["cells"] == CONVERSATIONS * RULES
    kept = {file.name: file.stat().st_mtime_ns for file in (setup.output / "data/ratings").glob("*.parquet")}
    rules = rules_of(setup)

    # A finished run takes up what the pool has gained, within any other settings.
    set_rules(setup, [*rules, "Accept the response that is kind.", "Accept the response that is true."])
    grown = rate(setup)
    assert grown["judge"]["calls"] == CONVERSATIONS * (RULES + 2)
    assert grown["judge"]["cells"] == CONVERSATIONS * (RULES + 2)
    ratings = setup.output / "data/ratings"
    assert {name: (ratings / name).stat().st_mtime_ns for name in kept} == kept
    found = cells(ratings)
    assert set(found.values()) == {1}
    assert len(found) == CONVERSATIONS * (RULES + 2)

    set_rules(setup, rules[1:])
    shrunk = rate(setup)
    assert shrunk["judge"]["calls"] == grown["judge"]["calls"]
    assert shrunk["judge"]["cells"] == CONVERSATIONS * (RULES - 1)
    assert shrunk["counts"]["rows_out"] == CONVERSATIONS // 2
    assert cells(ratings) == found


def test_another_judge_is_refused_by_what_differs_or_kept_apart(setup: Setup, tmp_path: Path) -> None:
    named = yaml.safe_load((setup.configs / "common.yaml").read_text())["judge"]["model"]
    judge = tmp_path / "judge"
    shutil.copytree(named, judge)
    first = rate(setup, f"judge.model={judge}")
    with pytest.raises(ConfigError, match=r"judge\.layout was 'rule_last', is 'paper'.*generation=2"):
        rate(setup, f"judge.model={judge}", "judge.layout=paper")
    assert manifest(setup.output)["status"] == "finished"
    before = cells(setup.output / "data/ratings")
    # One that does not get as far as its first result may be left again.
    with pytest.raises(ModelError):
        rate(setup, "judge.model=/nowhere", "generation=2")
    assert rate(setup, f"judge.model={judge}")["judge"]["calls"] == CONVERSATIONS * RULES

    # The folder's path stays the same, and so does the configuration; the model in it does not. Something is left to
    # do: a rule that the pool has gained.
    config = json.loads((judge / "config.json").read_text())
    (judge / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    rules = rules_of(setup)
    set_rules(setup, [*rules, "Accept the response that is kind."])
    with pytest.raises(FingerprintError, match=r"another origin: model was .*, is .*generation=2"):
        rate(setup, f"judge.model={judge}")
    assert set(pq.read_table(setup.output / "data/ratings")["fingerprint"].to_pylist()) == {first["fingerprint"]}
    assert manifest(setup.output)["status"] == "failed"
    set_rules(setup, rules)

    apart = rate(setup, f"judge.model={judge}", "judge.layout=paper", "generation=2")
    assert apart["fingerprint"] != first["fingerprint"]
    assert apart["judge"]["calls"] == CONVERSATIONS * RULES
    assert cells(setup.output / "data/ratings") == before
    assert set(cells(setup.output / "data-2/ratings")) == set(before)
    # Whoever comes later is given the latest.
    assert data_folder(setup.output, "data/ratings") == setup.output / "data-2/ratings"
    with pytest.raises(ConfigError, match=r"`generation` = 1, but .* is at 2"):
        rate(setup, f"judge.model={judge}")


def test_what_is_final_is_not_tried_again_however_many_tries_are_allowed(setup: Setup) -> None:
    """A judge whose context holds few conversations. (One that is not final comes back in test_server_judge.)"""
    lengths = "judge.max_length=760"
    first = rate(setup, lengths, "judge.max_tries=1", "max_bad_fraction=1")
    assert 0 < first["counts"]["given_up"] < CONVERSATIONS
    again = rate(setup, lengths, "judge.max_tries=5", "max_bad_fraction=1")
    assert again["counts"] == first["counts"]
    assert again["judge"]["calls"] == first["judge"]["calls"]
