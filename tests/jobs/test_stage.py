"""A run's folder: who may write to it, with which settings, and what its manifest says however it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pyarrow.parquet as pq
import pytest
from support import ROOT, manifest, wait_until

from jobs.overview import manifests
from jobs.stage import StageConfig, is_held, locate, open_stage
from ramo_ray.errors import ConfigError, RamoError, TooManyBadRowsError
from ramo_ray.settings import JudgeSettings


class ExampleConfig(StageConfig):
    job: ClassVar[str] = "example"
    limit: int = 3
    judge: JudgeSettings = JudgeSettings()


def config(folder: Path, **values: object) -> ExampleConfig:
    return ExampleConfig.model_validate({"output": str(folder), **values})


def bad(count: int) -> list[dict[str, str | None]]:
    return [{"origin": f"file:{i}", "id": None, "reason": "broken"} for i in range(count)]


def produce(folder: Path) -> None:
    """What a stage leaves behind once it has done something."""
    (folder / "data/ratings").mkdir(parents=True)
    (folder / "data/ratings/part-1.parquet").touch()


def test_a_finished_run_is_left_alone(tmp_path: Path) -> None:
    with open_stage(config(tmp_path / "run")) as stage:
        stage.finish(counts={"rows_in": 1})
    before = (tmp_path / "run/manifest.json").read_bytes()
    with open_stage(config(tmp_path / "run")) as stage:
        assert stage.finished
    assert (tmp_path / "run/manifest.json").read_bytes() == before
    assert {"job", "status", "started", "ended", "seconds", "versions", "counts"} <= manifest(tmp_path / "run").keys()


def test_an_error_and_an_interrupt_are_recorded_and_the_run_can_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(RamoError), open_stage(config(folder)):
        raise RamoError("the disk is full")
    assert manifest(folder)["status"] == "failed"
    assert manifest(folder)["error"] == "the disk is full"
    with pytest.raises(KeyboardInterrupt), open_stage(config(folder)):
        raise KeyboardInterrupt
    assert manifest(folder)["status"] == "interrupted"
    with open_stage(config(folder)) as stage:
        assert "error" not in stage.manifest
        stage.finish()
    assert manifest(folder)["status"] == "finished"


def test_other_settings_are_refused_by_name_once_something_was_done(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with open_stage(config(folder)):
        produce(folder)
    with (
        pytest.raises(ConfigError, match=r"judge\.layout was 'paper', is 'rule_last'"),
        open_stage(config(folder, judge={"layout": "rule_last"})),
    ):
        pass
    with pytest.raises(ConfigError, match="limit was 3, is 4"), open_stage(config(folder, limit=4)):
        pass


def test_settings_may_be_put_right_before_anything_was_done(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(ConfigError), open_stage(config(folder)):
        raise ConfigError("a wrong path")
    with open_stage(config(folder, limit=4)):
        pass
    assert json.loads((folder / "config.json").read_text())["limit"] == 4


def test_settings_of_speed_and_place_may_change(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with open_stage(config(folder)):
        produce(folder)
    faster = {"judge": {"batch_size": 9, "threads": 1, "actors": {"max": 8}}, "ray": {"num_cpus": 4}}
    with open_stage(config(folder, **faster)) as stage:
        assert stage.config.judge.batch_size == 9  # type: ignore[attr-defined]


def test_only_one_process_writes_to_a_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code = (
        "import sys, time; from pathlib import Path; sys.path[:0] = ['tests', 'tests/jobs']\n"
        "from test_stage import config, open_stage\n"
        "with open_stage(config(Path(sys.argv[1]))):\n    print('open', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "open\n"
            assert is_held(folder)
            assert manifests(folder)["example"]["status"] == "running"
            with pytest.raises(ConfigError, match="another process is writing"), open_stage(config(folder)):
                pass
        finally:
            other.kill()
    wait_until(lambda: not is_held(folder), 10)
    # Killed, it could not write so itself.
    assert manifests(folder)["example"]["status"] == "stopped"


def test_counts_that_do_not_add_up_are_an_error_and_the_quarantine_is_a_table(tmp_path: Path) -> None:
    with open_stage(config(tmp_path / "run")) as stage:
        counts = stage.counts(rows_in=10, rows_out=5, other_split=3, bad=bad(2))
        assert counts == {"rows_in": 10, "rows_out": 5, "quarantined": 2, "other_split": 3, "reasons": {"broken": 2}}
        assert pq.read_table(stage.folder / "quarantine.parquet").num_rows == 2
        with pytest.raises(RamoError, match="11 rows in, but 5 out"):
            stage.counts(rows_in=11, rows_out=5, other_split=3, bad=bad(2))
        stage.finish()


@pytest.mark.parametrize(("quarantined", "refused"), [(0, False), (5, False), (6, True)])
def test_too_many_bad_rows_raise_after_the_run_is_finished(tmp_path: Path, quarantined: int, refused: bool) -> None:
    def once() -> None:
        with open_stage(config(tmp_path / "run")) as stage:
            if not stage.finished:
                stage.finish(counts={"rows_in": 100, "quarantined": quarantined})

    for _ in range(2):
        if refused:
            with pytest.raises(TooManyBadRowsError, match="6 of 100"):
                once()
        else:
            once()
        assert manifest(tmp_path / "run")["status"] == "finished"
    assert TooManyBadRowsError.exit_status == 3


def test_relative_paths_are_refused_in_a_submitted_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, shared = config(Path("run")), config(Path("run"), storage={"root": str(tmp_path)})
    assert locate(plain, "output", "run") == Path("run").absolute()
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(ConfigError, match=r"`output` = run: a submitted job .* storage\.root"):
        locate(plain, "output", "run")
    assert locate(shared, "output", "run") == tmp_path / "run"
    assert locate(plain, "output", "/data/run") == Path("/data/run")
    with pytest.raises(ConfigError, match="not a URI"):
        locate(config(Path("run"), storage={"root": "s3://bucket"}), "output", "run")
