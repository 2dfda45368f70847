"""A run's folder: what may change when it continues, who may write to it, and how it says that it ended."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pyarrow.parquet as pq
import pytest
from support import ROOT, manifest

from jobs.generate_responses import GenerateResponsesConfig
from jobs.inputs import TrioStageConfig, earlier, open_source, refuse_relative_model, rule_pool, source_path
from jobs.overview import manifests
from jobs.pace import Pace
from jobs.stage import Stage, StageConfig, is_held, locate, open_stage, read_json, write_json
from ramo_ray.errors import ConfigError, RamoError, RulePoolError, TooManyBadRowsError
from ramo_ray.settings import JudgeSettings


class DemoConfig(StageConfig):
    job: ClassVar[str] = "demo"
    judge: JudgeSettings = JudgeSettings()
    size: int = 1


class TrioConfig(TrioStageConfig):
    job: ClassVar[str] = "trios"


def demo(folder: Path, **values: Any) -> DemoConfig:
    return DemoConfig.model_validate({"output": str(folder), **values})


def bad_rows(count: int) -> list[dict[str, Any]]:
    return [{"origin": f"f:{n}", "id": None, "reason": f"too long: {n + 100} characters"} for n in range(count)]


def finish(config: StageConfig, rows: int = 10, bad: int = 0) -> None:
    with open_stage(config) as stage:
        stage.finish(counts=stage.counts(rows_in=rows, rows_out=rows - bad, other_split=0, bad=bad_rows(bad)))


def stop(config: StageConfig, seconds: float = 0) -> None:
    """A run that an error ends after some time."""
    with contextlib.suppress(RamoError), open_stage(config) as stage:
        stage.started -= seconds
        raise RamoError("stop")


def texts(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


# A run from beginning to end


def test_what_a_run_costs_sums_over_its_processes(tmp_path: Path) -> None:
    for spent in (0.0, 2.5, 4.0):
        with contextlib.suppress(KeyboardInterrupt), open_stage(demo(tmp_path)) as stage:
            assert stage.spent == spent
            stage.tell(Pace(10, 0, 3600.0, stage.spent).moment({"actor_seconds": 2.5 - spent / 2.5}, 0))
            raise KeyboardInterrupt
    with open_stage(demo(tmp_path)) as stage:
        stage.finish()
    assert manifest(tmp_path)["cost"] == pytest.approx(4.9)
    assert Stage(demo(tmp_path)).spent == pytest.approx(4.9)


def test_a_run_writes_its_config_and_its_manifest(tmp_path: Path) -> None:
    config = demo(tmp_path / "deep" / "run", size=3)
    with open_stage(config) as stage:
        assert not stage.finished
        assert manifest(stage.folder)["status"] == "running"
        stage.update(note="half way")
        stage.finish(counts={"rows_in": 1, "quarantined": 0})
    found = manifest(stage.folder)
    assert (found["job"], found["status"], found["note"]) == ("demo", "finished", "half way")
    assert found["versions"]["ramo_ray"]
    assert found["seconds"] >= 0
    assert DemoConfig.model_validate(read_json(stage.folder / "config.json")) == config


def test_a_finished_run_is_not_touched(tmp_path: Path) -> None:
    finish(demo(tmp_path))
    before = texts(tmp_path)
    with open_stage(demo(tmp_path)) as stage:
        assert stage.finished
    assert texts(tmp_path) == before
    with pytest.raises(KeyError), open_stage(demo(tmp_path)):
        {}["a fault after the end"]
    assert texts(tmp_path) == before


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (RamoError("what is wrong"), "failed", "what is wrong"),
        (KeyError("private text"), "failed", "KeyError"),
        (KeyboardInterrupt(), "interrupted", "KeyboardInterrupt"),
        (SystemExit(1), "failed", "SystemExit"),
    ],
)
def test_a_run_that_stops_says_so_and_can_be_continued(
    tmp_path: Path, error: BaseException, status: str, message: str
) -> None:
    with pytest.raises(type(error)), open_stage(demo(tmp_path)):
        raise error
    assert (manifest(tmp_path)["status"], manifest(tmp_path)["error"]) == (status, message)
    finish(demo(tmp_path))
    assert manifest(tmp_path)["status"] == "finished"
    assert "error" not in manifest(tmp_path)


def test_seconds_sum_over_the_sessions(tmp_path: Path) -> None:
    stop(demo(tmp_path), seconds=100)
    with open_stage(demo(tmp_path)) as stage:
        stage.started -= 50
        stage.finish()
    assert manifest(tmp_path)["seconds"] == pytest.approx(150, abs=5)


def test_json_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    assert read_json(file) == {}
    write_json(file, {"a": "ü\ud800"})
    assert read_json(file) == {"a": "ü\ud800"}
    with pytest.raises(TypeError):
        write_json(file, {"a": object()})
    assert read_json(file) == {"a": "ü\ud800"}
    assert [f.name for f in tmp_path.iterdir()] == ["x.json"]


# What may change


@pytest.mark.parametrize("finished", [True, False])
def test_another_configuration_is_refused_by_name(tmp_path: Path, finished: bool) -> None:
    config = demo(tmp_path, size=1, judge={"labels": ["Yes", "No", "Maybe"]})
    if finished:
        finish(config)
    else:
        stop(config)
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "part-1.parquet").write_bytes(b"")
    before = texts(tmp_path)
    other = demo(tmp_path, size=2, judge={"layout": "rule_last", "labels": ["Yes", "Nay", "Maybe"]})
    with pytest.raises(ConfigError) as caught, open_stage(other):
        pytest.fail("the run was opened")
    message = str(caught.value)
    assert "judge.labels.1 was 'No', is 'Nay'; judge.layout was 'paper', is 'rule_last'; size was 1, is 2." in message
    assert "Give another `output`, or remove that folder" in message
    assert texts(tmp_path) == before


def test_before_anything_is_done_a_configuration_may_be_put_right(tmp_path: Path) -> None:
    stop(demo(tmp_path, size=1))
    finish(demo(tmp_path, size=2))
    assert read_json(tmp_path / "config.json")["size"] == 2


def test_where_and_how_fast_a_run_goes_may_change(tmp_path: Path) -> None:
    stop(demo(tmp_path))
    (tmp_path / "examples.parquet").write_bytes(b"")
    faster = {"batch_size": 64, "threads": 8, "actors": {"max": 9, "num_cpus": 4, "num_gpus": 1}}
    finish(demo(tmp_path, judge=faster, ray={"address": "auto"}, max_bad_fraction=0.5))
    assert read_json(tmp_path / "config.json")["judge"]["batch_size"] == 64


def generating(folder: Path, **values: Any) -> GenerateResponsesConfig:
    generators = [{"name": "one"}, {"name": "two", **values}]
    return GenerateResponsesConfig.model_validate({"output": str(folder), "generators": generators})


def test_that_holds_within_lists_too(tmp_path: Path) -> None:
    finish(generating(tmp_path))
    finish(generating(tmp_path, batch_size=99, actors={"max": 3}))
    with (
        pytest.raises(ConfigError, match=r"generators.1.sampling.top_p was 0.9, is 0.5\."),
        open_stage(generating(tmp_path, sampling={"top_p": 0.5})),
    ):
        pytest.fail("the run was opened")


# One writer

HOLD = """
import sys
from pathlib import Path
sys.path[:0] = ["tests/jobs"]
from test_stage import demo
from jobs.stage import open_stage
with open_stage(demo(Path(sys.argv[1]))) as stage:
    print("open", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the run open."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "open\n"
        yield process
        process.kill()


def test_two_processes_cannot_write_to_one_run(tmp_path: Path, writer: subprocess.Popen[str]) -> None:
    before = texts(tmp_path)
    with pytest.raises(ConfigError, match="another process is writing to this run"), open_stage(demo(tmp_path)):
        pytest.fail("the run was opened")
    assert texts(tmp_path) == before
    assert is_held(tmp_path)
    assert manifests(tmp_path)["demo"]["status"] == "running"
    writer.kill()
    writer.wait()
    assert not is_held(tmp_path)
    # Killed, it could not write so itself.
    assert manifests(tmp_path)["demo"]["status"] == "stopped"
    finish(demo(tmp_path))
    assert manifests(tmp_path)["demo"]["status"] == "finished"


@pytest.mark.parametrize("taken", ["file", "below a file"])
def test_an_output_that_cannot_be_written_is_refused_by_key(tmp_path: Path, taken: str) -> None:
    (tmp_path / "file").write_text("x")
    output = tmp_path / "file" if taken == "file" else tmp_path / "file" / "run"
    with pytest.raises(ConfigError, match=r"`output` = .*file.* cannot be written: "), open_stage(demo(output)):
        pytest.fail("the run was opened")


# Counts


def test_counts_add_up_and_the_quarantine_is_a_table(tmp_path: Path) -> None:
    with open_stage(demo(tmp_path, max_bad_fraction=1)) as stage:
        blank = {"origin": "f:9", "id": "t", "reason": "response is blank"}
        counts = stage.counts(rows_in=10, rows_out=4, other_split=2, bad=[*bad_rows(3), blank])
        stage.finish(counts=counts)
    assert counts == {
        "rows_in": 10,
        "rows_out": 4,
        "quarantined": 4,
        "other_split": 2,
        "reasons": {"too long: … characters": 3, "response is blank": 1},
    }
    rows = pq.read_table(tmp_path / "quarantine.parquet").to_pylist()
    assert rows == [*bad_rows(3), blank]


@pytest.mark.parametrize(("rows_out", "other_split"), [(7, 0), (9, 0), (8, 1)])
def test_counts_that_do_not_add_up_end_the_run(tmp_path: Path, rows_out: int, other_split: int) -> None:
    with pytest.raises(RamoError, match="Rows were lost or doubled"), open_stage(demo(tmp_path)) as stage:
        stage.counts(rows_in=10, rows_out=rows_out, other_split=other_split, bad=bad_rows(2))
    assert manifest(tmp_path)["status"] == "failed"


def test_too_many_bad_rows_end_a_finished_run_with_status_3(tmp_path: Path) -> None:
    finish(demo(tmp_path, max_bad_fraction=0.2), bad=2)
    for _ in range(2):
        with pytest.raises(
            TooManyBadRowsError, match="3 of 10 rows are in quarantine, over max_bad_fraction"
        ) as caught:
            finish(demo(tmp_path / "more", max_bad_fraction=0.2), bad=3)
        assert caught.value.exit_status == 3
        assert manifest(tmp_path / "more")["status"] == "finished"
    finish(demo(tmp_path / "more", max_bad_fraction=0.3), bad=3)
    Stage(demo(tmp_path / "new")).check_bad_fraction()


# Paths


def test_paths_are_taken_from_here_or_from_the_shared_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = demo(tmp_path)
    assert locate(config, "trios", "a/b.jsonl") == tmp_path / "a" / "b.jsonl"
    assert locate(config, "trios", "/x/b.jsonl") == Path("/x/b.jsonl")
    assert locate(config, "trios", "~/b.jsonl") == Path.home() / "b.jsonl"
    shared = demo(tmp_path, storage={"root": "/mnt/shared"})
    assert locate(shared, "trios", "a/b.jsonl") == Path("/mnt/shared/a/b.jsonl")
    assert locate(shared, "trios", "/x/b.jsonl") == Path("/x/b.jsonl")
    assert locate(demo(tmp_path, storage={"root": "shared"}), "trios", "a") == tmp_path / "shared" / "a"


def test_a_submitted_job_refuses_relative_paths_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(ConfigError, match=r"`trios` = a/b.jsonl: a submitted job runs in a temporary copy"):
        locate(demo(tmp_path), "trios", "a/b.jsonl")
    with pytest.raises(ConfigError, match="`output` = runs/x: a submitted job"), open_stage(demo(Path("runs/x"))):
        pytest.fail("the run was opened")
    with pytest.raises(ConfigError, match=r"set storage.root to a folder that every node mounts"):
        locate(demo(tmp_path, storage={"root": "shared"}), "trios", "a/b.jsonl")
    assert locate(demo(tmp_path), "trios", "/x/b") == Path("/x/b")
    assert locate(demo(tmp_path, storage={"root": "/mnt"}), "trios", "b") == Path("/mnt/b")
    assert source_path(demo(tmp_path), "trios", "Anthropic/hh-rlhf") == "Anthropic/hh-rlhf"
    with pytest.raises(ConfigError, match=r"`trios` = data/pairs.jsonl: a submitted job"):
        source_path(demo(tmp_path), "trios", "data/pairs.jsonl")


@pytest.mark.parametrize(("root", "path"), [("s3://bucket", "a"), ("", "s3://bucket/a"), ("", "hf://x/y")])
def test_a_uri_is_refused(tmp_path: Path, root: str, path: str) -> None:
    with pytest.raises(ConfigError, match="give a folder that every node mounts, not a URI"):
        locate(demo(tmp_path, storage={"root": root}), "trios", path)


def test_a_source_here_wins_over_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert source_path(demo(tmp_path), "trios", "owner/name") == "owner/name"
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert source_path(demo(tmp_path), "trios", "owner/name") == str(tmp_path / "owner" / "name")
    for local in ("pairs.jsonl", "data/pairs.jsonl", "data/*.jsonl", "./data", "a/b/c"):
        assert source_path(demo(tmp_path), "trios", local) == str(tmp_path / local)


# Results of earlier stages


def test_an_earlier_stages_result_is_found_or_named(tmp_path: Path) -> None:
    config = TrioConfig(output=str(tmp_path / "x"))
    with pytest.raises(ConfigError, match="`ratings` is missing: give its path, or `run`"):
        earlier(config, "ratings", "", "", "rate/data/ratings")
    with pytest.raises(ConfigError, match=r"`ratings`: .*/rate/data/ratings does not exist\. Run rate first"):
        earlier(config, "ratings", "", str(tmp_path), "rate/data/ratings")
    (tmp_path / "rate" / "data" / "ratings").mkdir(parents=True)
    assert earlier(config, "ratings", "", str(tmp_path), "rate/data/ratings") == tmp_path / "rate/data/ratings"
    assert earlier(config, "ratings", str(tmp_path), "/nowhere", "rate/data/ratings") == tmp_path


def test_what_was_generated_is_read_whole(tmp_path: Path) -> None:
    generated = tmp_path / "generate_responses" / "data" / "trios"
    generated.mkdir(parents=True)
    rows = [{"prompt": f"p{n}", "response_a": "a", "response_b": "b"} for n in range(3)]
    (generated / "part-1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"output": str(tmp_path / "x"), "run": str(tmp_path), "limit": 2}
    assert open_source(TrioConfig.model_validate(config)).limit is None
    given = config | {"trios": str(generated / "part-1.jsonl")}
    assert open_source(TrioConfig.model_validate(given)).limit == 2


def test_a_pool_smaller_than_the_budget_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text("rules: [one, two]")
    config = TrioConfig(output=str(tmp_path), rules=str(tmp_path / "rules.yaml"))
    assert len(rule_pool(config, 2)) == 2
    with pytest.raises(RulePoolError, match=r"selection.r = 3, but the pool `rules` has 2 rules"):
        rule_pool(config, 3)
    assert len(rule_pool(TrioConfig(output=str(tmp_path)), 100)) == 100


def test_another_jobs_folder_and_a_pipelines_are_refused(tmp_path: Path) -> None:
    stop(demo(tmp_path / "run" / "demo"))
    with pytest.raises(ConfigError, match=r"holds a run of a pipeline.*Give another `output`, such as .*/trios"):
        Stage(TrioConfig(output=str(tmp_path / "run"))).begin()
    with pytest.raises(ConfigError, match="holds a run of demo, and this is trios"):
        Stage(TrioConfig(output=str(tmp_path / "run" / "demo"))).begin()


def test_the_next_job_writes_beside_this_one(tmp_path: Path) -> None:
    stage = Stage(demo(tmp_path / "here"))
    assert (
        stage.next_job("label", model="m", trios="") == f"python -m jobs.label CONFIG output={tmp_path}/label model=m"
    )


def test_a_hub_id_may_have_a_dot(tmp_path: Path) -> None:
    assert source_path(demo(tmp_path), "trios", "owner/set-v0.1") == "owner/set-v0.1"


def test_a_submitted_job_refuses_a_models_relative_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    refuse_relative_model("models")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    for name in ("models", "./models"):
        with pytest.raises(ConfigError, match="absolute path"):
            refuse_relative_model(name)
    refuse_relative_model(str(tmp_path / "models"))
    refuse_relative_model("owner/name")
