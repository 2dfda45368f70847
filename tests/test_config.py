"""Configuration: from YAML and words to a checked config, and from a fault to one sentence and an exit status."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import PositiveInt

from jobs.pipeline import STAGES, plan
from jobs.stage import StageConfig
from jobs.train_policy import TrainPolicyConfig
from ramo_ray.config import (
    Config,
    JobConfig,
    describe,
    find_ramo_error,
    load,
    merge,
    parse_overrides,
    read_yaml,
    validate,
)
from ramo_ray.errors import ConfigError, EngineError, ModelError, SourceError
from ramo_ray.settings import CommonSettings, JudgeSettings

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "jobs" / "configs"


class Oven(Config):
    degrees: PositiveInt = 180
    """How hot."""
    label: str = "top"


class Shelf(Config):
    name: str
    """What is on it."""
    height: float = 1.0


class Kitchen(Config):
    oven: Oven = Oven()
    seed: int = 0
    fan: bool = False


class Bake(JobConfig):
    job: ClassVar[str] = "bake"
    common: ClassVar[type[Config]] = Kitchen
    dish: str
    """What is baked."""
    oven: Oven = Oven()
    shelves: tuple[Shelf, ...] = ()
    fan: bool = False


def config_class_of(job: str) -> type[StageConfig]:
    return next(
        value
        for value in vars(import_module(f"jobs.{job}")).values()
        if isinstance(value, type) and issubclass(value, StageConfig) and vars(value).get("job") == job
    )


# YAML and words


def test_words_become_nested_values() -> None:
    words = ["a=1", "b.c=true", "b.d=[1, 2]", "e=2.5", "f=plain text", "g=x=y", "h=", "b.c=false"]
    assert parse_overrides(words) == {
        "a": 1,
        "b": {"c": False, "d": [1, 2]},
        "e": 2.5,
        "f": "plain text",
        "g": "x=y",
        "h": None,
    }


@pytest.mark.parametrize("text", ["[1, 2", "a: b: c", "%", "2026-13-45", "1" * 5000])
def test_a_value_that_is_no_yaml_is_text(text: str) -> None:
    assert parse_overrides([f"key={text}"]) == {"key": text}


def test_judges_words_and_dates_stay_words() -> None:
    assert parse_overrides(["labels=[Yes, No, Irrelevant]", "output=2026-01-31", "x=on"]) == {
        "labels": ["Yes", "No", "Irrelevant"],
        "output": "2026-01-31",
        "x": "on",
    }
    judge = JudgeSettings.model_validate(parse_overrides(["labels=[Yes, No, Irrelevant]", "chat_template=no"]))
    assert judge == JudgeSettings(chat_template=False)


@pytest.mark.parametrize("word", ["a", "=1", "a.=1", ".a=1", "a..b=1", "--help"])
def test_a_word_that_is_no_override_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match="an override has the form key=value"):
        parse_overrides([word])


def test_merging_goes_key_by_key_and_replaces_lists() -> None:
    below = {"a": {"b": 1, "c": [1, 2]}, "d": 1, "e": {"f": 1}}
    over = {"a": {"c": [3]}, "d": {"x": 1}, "e": None, "g": 2}
    assert merge(below, over) == {"a": {"b": 1, "c": [3]}, "d": {"x": 1}, "e": None, "g": 2}
    assert below == {"a": {"b": 1, "c": [1, 2]}, "d": 1, "e": {"f": 1}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", "not readable as YAML"),
        (b"- 1\n- 2\n", "must hold `key: value` lines, but holds a list"),
        (b"just text", "holds a str"),
        (b"a: \xff\xfe", "not readable as YAML"),
        (b"a: !!python/object/apply:os.system [true]", "not readable as YAML"),
        (b"n: " + b"1" * 5000, "not readable as YAML"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "odd.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_yaml(file)
    assert str(caught.value).startswith(f"{file}: ")


def test_files_that_can_be_read(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    for content, values in ((b"", {}), (b"# nothing\n", {}), (b"\xef\xbb\xbfa: 1\r\n", {"a": 1})):
        file.write_bytes(content)
        assert read_yaml(file) == values


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file or folder\. Give a YAML file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_yaml(tmp_path)


# Faults


def test_an_unknown_key_is_met_with_the_close_one() -> None:
    with pytest.raises(ConfigError, match=r"origin: unknown key `oven.degress`; did you mean `degrees`\?"):
        validate(Bake, {"dish": "pie", "oven": {"degress": 200}}, "origin")
    with pytest.raises(ConfigError, match=r"unknown key `oven.x`; known here: degrees, label\."):
        validate(Bake, {"dish": "pie", "oven": {"x": 200}}, "origin")
    with pytest.raises(ConfigError, match=r"unknown key `shelves.1.hight`; did you mean `height`\?"):
        validate(Bake, {"dish": "pie", "shelves": [{"name": "a"}, {"name": "b", "hight": 1}]}, "origin")


def test_a_missing_key_is_explained() -> None:
    with pytest.raises(ConfigError, match=r"`dish` is missing: What is baked\."):
        validate(Bake, {}, "origin")
    with pytest.raises(ConfigError, match=r"`shelves.0.name` is missing: What is on it\."):
        validate(Bake, {"dish": "pie", "shelves": [{}]}, "origin")


def test_every_fault_is_listed_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        validate(Bake, {"oven": {"degrees": -1, "label": 3}, "extra": 1}, "origin")
    message = str(caught.value)
    assert "`oven.degrees` = -1: Input should be greater than 0" in message
    assert "`oven.label` = 3: Input should be a valid string (quote it" in message
    assert "unknown key `extra`" in message
    assert "`dish` is missing" in message


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "many", "[1]", "~", "{a: 1}"])
def test_a_number_must_be_one(value: str) -> None:
    with pytest.raises(ConfigError, match=r"`shelves.0.height` = "):
        validate(Bake, parse_overrides([f"shelves=[{{name: a, height: {value}}}]", "dish=pie"]), "origin")


def test_a_long_value_is_shown_in_short() -> None:
    with pytest.raises(ConfigError) as caught:
        validate(Oven, {"degrees": "x" * 10_000}, "origin")
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("text", ["1: 2", "true: 1", "? [a]\n: b", "oven: 3", "oven: [1]", "~: 1"])
def test_odd_yaml_is_refused_without_a_traceback(tmp_path: Path, text: str) -> None:
    (tmp_path / "bake.yaml").write_text(text)
    with pytest.raises(ConfigError):
        load(Bake, tmp_path / "bake.yaml")
    (tmp_path / "common.yaml").write_text(text)
    with pytest.raises(ConfigError):
        load(Bake, tmp_path, ["dish=pie"])


def test_a_block_that_checks_itself_is_named() -> None:
    with pytest.raises(ConfigError, match=r"`judge.actors` = .*: min \(3\) exceeds max \(1\); raise max or lower min"):
        validate(CommonSettings, {"judge": {"actors": {"min": 3}}}, "origin")


# Folders


def write(folder: Path, **texts: str) -> Path:
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


def test_words_go_over_the_jobs_file_and_that_over_the_common_one(tmp_path: Path) -> None:
    write(tmp_path, common="oven: {degrees: 100, label: common}\nfan: true", bake="dish: pie\noven: {label: own}")
    config = load(Bake, tmp_path, ["oven.degrees=220"])
    assert config == Bake(dish="pie", oven=Oven(degrees=220, label="own"), fan=True)


def test_a_file_alone_is_the_whole_config(tmp_path: Path) -> None:
    write(tmp_path, common="fan: true", other="dish: soup")
    assert load(Bake, tmp_path / "other.yaml") == Bake(dish="soup")


def test_either_file_of_a_folder_will_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has neither common\.yaml nor bake\.yaml"):
        load(Bake, tmp_path)
    write(tmp_path, common="fan: true")
    assert load(Bake, tmp_path, ["dish=pie"]).fan
    (tmp_path / "common.yaml").unlink()
    write(tmp_path, bake="dish: pie")
    assert load(Bake, tmp_path) == Bake(dish="pie")


def test_common_keys_of_other_jobs_are_left_out_and_unknown_ones_refused(tmp_path: Path) -> None:
    write(tmp_path, common="seed: 3", bake="dish: pie")
    assert load(Bake, tmp_path) == Bake(dish="pie")
    write(tmp_path, common="sead: 3")
    with pytest.raises(ConfigError, match=r"common\.yaml: unknown key `sead`; did you mean `seed`\?"):
        load(Bake, tmp_path)
    write(tmp_path, common="seed: three")
    with pytest.raises(ConfigError, match=r"common\.yaml: `seed` = 'three'"):
        load(Bake, tmp_path)
    write(tmp_path, common="", bake="dish: pie\nseed: 3")
    with pytest.raises(ConfigError, match="unknown key `seed`"):
        load(Bake, tmp_path)


def test_help_lists_every_key_below_its_parent() -> None:
    rows = describe(Bake)
    assert ("dish", "required", "What is baked.") in rows
    assert ("oven.degrees", "180", "How hot.") in rows
    assert [key for key, _, _ in rows][:3] == ["dish", "oven", "oven.degrees"]


def test_a_config_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Oven().degrees = 3  # type: ignore[misc]


# The configurations that ship


@pytest.mark.parametrize("folder", ["laptop", "paper"])
@pytest.mark.parametrize("job", STAGES)
def test_every_stage_has_a_valid_shipped_config(folder: str, job: str) -> None:
    config = load(config_class_of(job), CONFIGS / folder, [] if job == "generate_responses" else ["run=runs/x"])
    assert config.output == f"runs/{folder}"


@pytest.mark.parametrize("folder", ["laptop", "paper"])
def test_ppo_has_a_valid_shipped_config(folder: str) -> None:
    config = load(TrainPolicyConfig, CONFIGS / folder, [])
    assert (config.output, config.run) == (f"runs/{folder}/train_policy", f"runs/{folder}")
    assert config.rehearsal == (folder == "laptop")


def test_every_shipped_file_is_of_a_job() -> None:
    files = {file.relative_to(CONFIGS).as_posix() for file in CONFIGS.rglob("*.yaml")}
    jobs = (*STAGES, "common", "compare_layouts", "train_policy", "evaluate_policy")
    assert {Path(file).stem for file in files} <= set(jobs)
    assert {"laptop/common.yaml", "paper/common.yaml"} <= files


def test_the_papers_numbers() -> None:
    stages = {stage.name: stage.config.model_dump() for stage in plan(CONFIGS / "paper", ["trios=t.jsonl"])}
    assert stages["rate"]["judge"]["model"] == "meta-llama/Meta-Llama-3-70B-Instruct"
    assert stages["rate"]["judge"]["layout"] == "paper"
    assert stages["label"]["selection"]["r"] == 5
    assert stages["train_adapter"]["selection"]["gamma"] == 2
    assert stages["train_adapter"]["training"]["model"] == "meta-llama/Llama-3.2-3B"
    assert stages["train_adapter"]["training"]["epochs"] == 3
    assert stages["train_adapter"]["training"]["weight_decay"] == 0.01
    assert stages["train_reward"]["training"]["model"] == "Skywork/Skywork-Reward-Llama-3.1-8B-v0.2"
    assert stages["train_reward"]["training"]["epochs"] == 2
    assert {stages[name]["training"]["learning_rate"] for name in ("train_adapter", "train_reward")} == {2e-5}
    generators = plan(CONFIGS / "paper", [])[0].config.model_dump()["generators"]
    assert {
        (g["sampling"]["temperature"], g["sampling"]["top_p"], g["sampling"]["max_tokens"]) for g in generators
    } == {(0.6, 0.9, 256)}


# The pipeline's plan


@pytest.mark.parametrize("folder", ["laptop", "paper"])
def test_a_plan_gives_each_stage_its_folder(folder: str) -> None:
    stages = plan(CONFIGS / folder, ["output=/tmp/x"])
    assert tuple(stage.name for stage in stages) == STAGES
    assert [stage.config.output for stage in stages] == [f"/tmp/x/{name}" for name in STAGES]
    assert {getattr(stage.config, "run", "/tmp/x") for stage in stages} == {"/tmp/x"}
    assert all(stage.main.__module__ == f"jobs.{stage.name}" for stage in stages)


def test_with_trios_nothing_is_generated() -> None:
    stages = plan(CONFIGS / "laptop", ["trios=pairs.jsonl", "limit=24"])
    assert tuple(stage.name for stage in stages) == STAGES[1:]
    assert {stage.config.trios for stage in stages if hasattr(stage.config, "trios")} == {"pairs.jsonl"}
    assert {stage.config.limit for stage in stages if hasattr(stage.config, "limit")} == {24}


def test_the_plans_precedence(tmp_path: Path) -> None:
    write(
        tmp_path,
        common="output: runs/x\ntrios: t.jsonl\nselection: {r: 3, gamma: 1}\njudge: {model: common, layout: paper}",
        label="selection: {r: 4}\njudge: {model: own}",
    )
    rate, adapter, label, *_ = (stage.config.model_dump() for stage in plan(tmp_path, []))
    assert (rate["judge"]["model"], adapter["selection"]["r"]) == ("common", 3)
    assert label["selection"] == adapter["selection"] | {"r": 4}
    assert (label["judge"]["model"], label["judge"]["layout"]) == ("own", "paper")

    words = ["judge.model=word", "selection.r=5", "label.selection.r=6", "train_adapter.training.epochs=7"]
    rate, adapter, label, *_ = (stage.config.model_dump() for stage in plan(tmp_path, words))
    assert rate["judge"] == label["judge"] | {"model": "word"}
    assert (adapter["selection"]["r"], label["selection"]["r"]) == (5, 6)
    assert adapter["training"]["epochs"] == 7


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["judge.layuot=paper"], r"unknown key `judge.layuot`; did you mean `layout`"),
        (["rate.judge.layuot=paper"], r"rate\.yaml: unknown key `judge.layuot`; did you mean `layout`"),
        (["rate=3"], "unknown key `rate`"),
        (["training.epochs=3"], "unknown key `training`"),
        (["output="], "`output` is missing|`output` = None"),
        (["judge.layout=last"], r"`judge.layout` = 'last': Input should be 'paper' or 'rule_last'"),
        (["limit=0"], "`limit` = 0: Input should be greater than 0"),
        (["splits.adapter_test=0"], "`splits.adapter_test` = 0"),
        (["train_reward.ties=some"], "`ties` = 'some'"),
    ],
)
def test_a_plan_refuses_what_no_stage_can_run(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(CONFIGS / "laptop", words)


def test_a_plan_needs_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"common\.yaml: not a folder"):
        plan(CONFIGS / "laptop" / "common.yaml", [])
    with pytest.raises(ConfigError, match="`output` is missing"):
        plan(write(tmp_path, common="seed: 1"), [])


# Errors that Ray wraps


def ray_task_error(cause: Exception, text: str = "a remote traceback") -> Exception:
    from ray.exceptions import RayTaskError

    return RayTaskError("task", text, cause, proctitle="worker", pid=1, ip="127.0.0.1")


def test_our_error_is_found_as_it_was_raised() -> None:
    assert find_ramo_error(None) is None
    assert find_ramo_error(KeyError("x")) is None
    error = SourceError("a file")
    assert find_ramo_error(error) is error


def test_our_error_is_found_inside_rays() -> None:
    from ray.exceptions import RayTaskError

    error = SourceError("a file")
    wrapped = ray_task_error(error)
    assert isinstance(wrapped, RayTaskError)
    dual = wrapped.as_instanceof_cause()
    for found in (wrapped, dual, ray_task_error(dual)):
        assert str(find_ramo_error(found)) == "a file"
        assert type(find_ramo_error(found)) is SourceError
    assert find_ramo_error(ray_task_error(KeyError("x"))) is None


def test_our_error_is_found_in_the_text_of_an_actor_that_could_not_start() -> None:
    from ray.exceptions import ActorDiedError, RayTaskError

    text = 'Traceback (most recent call last):\n  File "x.py", line 1\nramo_ray.errors.ModelError: no weights: there'
    cause = ray_task_error(ModelError("no weights: there"), text)
    assert isinstance(cause, RayTaskError)
    cause._actor_id = "00" * 16
    found = find_ramo_error(ActorDiedError(cause))
    assert type(found) is ModelError
    assert str(found) == "no weights: there"
    handled = "During handling of the above exception, another exception occurred:"
    later = f"{text}\n\n{handled}\n\nTraceback (most recent call last):\n  File \"x.py\", line 2\nKeyError: 'x'"
    assert find_ramo_error(ray_task_error(KeyError("x"), later)) is None
    assert find_ramo_error(ray_task_error(KeyError("x"), text)) is None


def test_a_defect_while_our_error_was_handled_stays_a_defect() -> None:
    def handle() -> None:
        try:
            raise EngineError("no answer")
        except EngineError:
            {}["missing"]

    with pytest.raises(KeyError) as caught:
        handle()
    assert isinstance(caught.value.__context__, EngineError)
    assert find_ramo_error(caught.value) is None


# Whole processes


def job(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["jobs.rate", "nowhere.yaml"], "nowhere.yaml: no such file or folder"),
        (["jobs.rate", "jobs/configs/laptop", "judge.layuot=x"], "did you mean `layout`"),
        (["jobs.rate", "jobs/configs/laptop", "output={}", "rules=jobs"], "jobs: cannot be read: Is a directory"),
        (
            ["jobs.evaluate_reward", "jobs/configs/laptop", "output={}", "run=/nowhere"],
            "/nowhere/label/data/preferences does not exist",
        ),
        (["jobs.pipeline", "jobs/configs/laptop", "output={}", "prompts=/none.txt"], "/none.txt does not exist"),
        (["jobs.pipeline", "jobs/configs/laptop", "output={}", "trios=/none.txt"], "/none.txt does not exist"),
        (["ramo_ray.cli", "status", "{}"], "holds no run"),
    ],
)
def test_a_fault_ends_a_job_with_its_sentence_and_status_2(tmp_path: Path, words: list[str], message: str) -> None:
    done = job(*(word.format(tmp_path) for word in words))
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ")


def test_no_words_ask_for_help_with_status_2() -> None:
    done = job("jobs.rate")
    assert done.returncode == 2
    assert "usage: python -m jobs.rate CONFIG" in done.stdout
    assert "judge.layout" in done.stdout


SERVER = {"base_url": "http://host:8000/v1", "model": "m"}


def test_a_server_is_named_before_anything_starts() -> None:
    for openai, missing in (({}, "openai.base_url and openai.model"), ({"model": "m"}, "openai.base_url:")):
        with pytest.raises(ConfigError, match=f"engine openai needs {missing}"):
            validate(JudgeSettings, {"engine": "openai", "openai": openai}, "x")
    assert validate(JudgeSettings, {"engine": "openai", "openai": SERVER}, "x").openai.route == "auto"
    assert JudgeSettings().openai.base_url == ""


@pytest.mark.parametrize(
    "url", ["host:8000/v1", "ftp://host/v1", "http://", "http://me:word@host/v1", "http://host/v1?k=1"]
)
def test_a_servers_address_is_an_address_without_secrets(url: str) -> None:
    with pytest.raises(ConfigError, match="base_url"):
        validate(JudgeSettings, {"engine": "openai", "openai": SERVER | {"base_url": url}}, "x")
