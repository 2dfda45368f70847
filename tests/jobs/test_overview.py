"""What `ramo status` says of runs, also of those that could not say it themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.overview import manifests, show_status
from jobs.stage import StageConfig, open_stage
from ramo_ray.errors import ConfigError


class ExampleConfig(StageConfig):
    job = "example"


def test_a_run_that_was_killed_shows_as_stopped(tmp_path: Path) -> None:
    with open_stage(ExampleConfig(output=str(tmp_path / "run"))):
        assert manifests(tmp_path / "run")["example"]["status"] == "running"
    # Nothing was finished and nobody holds the lock: as after kill -9.
    assert manifests(tmp_path / "run")["example"]["status"] == "stopped"


def test_a_pipelines_stages_come_in_the_order_in_which_they_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, started in (("rate", "2026-01-02"), ("generate_responses", "2026-01-01"), ("label", "2026-01-03")):
        (tmp_path / name).mkdir()
        values = {"job": name, "status": "failed", "error": f"{name} broke", "started": started, "seconds": 61.4}
        (tmp_path / name / "manifest.json").write_text(json.dumps(values))
    assert list(manifests(tmp_path)) == ["generate_responses", "rate", "label"]
    show_status(tmp_path, as_json=False)
    assert "label: label broke" in capsys.readouterr().out
    show_status(tmp_path, as_json=True)
    assert json.loads(capsys.readouterr().out)["rate"]["seconds"] == 61.4


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no run"):
        manifests(tmp_path)
