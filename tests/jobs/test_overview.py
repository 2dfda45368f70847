"""What `ramo status` says of runs, also of those that could not say it themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.overview import manifests, show_status
from jobs.pace import Pace
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


def test_how_far_a_run_is_and_what_it_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def shown() -> str:
        show_status(tmp_path / "run", as_json=False)
        return capsys.readouterr().out

    with open_stage(ExampleConfig(output=str(tmp_path / "run"))) as stage:
        now = Pace(10, 4, 3600.0).moment({"actor_seconds": 2.5, "actors": 2}, 0)
        stage.tell(now._replace(eta_seconds=60.0))
        assert "example: 4 of 10, 0:01:00 left · 2 actors · 0.00 rows/s · cost 2.50" in shown()
    # Stopped, so none can say when it will be done.
    assert "example: 4 of 10 · 2 actors" in shown()
    with open_stage(ExampleConfig(output=str(tmp_path / "run"))) as stage:
        stage.finish()
    assert "example: cost 2.50" in shown()


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no run"):
        manifests(tmp_path)
