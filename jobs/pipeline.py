"""All stages in order for one folder of configs: each writes to `<output>/<stage>`, the report to `<output>`.

    python -m jobs.pipeline FOLDER [key=value ...] [<stage>.key=value ...]

An override without a stage's name goes to what the stages have in common. With `trios` set nothing is generated.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from jobs.display import console, heading
from jobs.inputs import SourceStageConfig, rule_pool
from jobs.observer import ASKED
from jobs.overview import show_status
from jobs.session import ray_session
from jobs.stage import Stage, StageConfig, locate
from ramo_ray.config import finish_with, keys_for, load_values, merge, parse_overrides, read_yaml, validate
from ramo_ray.errors import ConfigError, StoppedError, TooManyBadRowsError
from ramo_ray.settings import CommonSettings

STAGES = ("generate_responses", "rate", "train_adapter", "label", "train_reward", "evaluate_reward")
USAGE = """usage: python -m jobs.pipeline FOLDER [key=value ...] [STAGE.key=value ...]

Runs {stages} in order.
FOLDER holds common.yaml and, where a stage needs more, STAGE.yaml. `python -m jobs.STAGE --help` lists its keys."""


class Planned(NamedTuple):
    """A stage with its configuration, checked before anything starts."""

    name: str
    config: StageConfig
    check: Callable[[Any], object]
    main: Callable[[Any], object]


def plan(folder: Path, words: Sequence[str]) -> list[Planned]:
    """Build and check the configurations of all stages.

    Raises:
        ConfigError: naming the stage's file and key.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: not a folder. The pipeline takes a folder with common.yaml and a YAML a stage.")
    overrides = parse_overrides(words)
    own = {name: overrides.pop(name) for name in STAGES if isinstance(overrides.get(name), Mapping)}
    file = folder / "common.yaml"
    common = merge(read_yaml(file) if file.exists() else {}, overrides)
    validate(CommonSettings, common, str(file))
    output = str(common.get("output") or "")
    if not output:
        raise ConfigError(f"{file}: `output` is missing: the folder that the run writes, also as output=… here.")
    names = [name for name in STAGES if not (name == "generate_responses" and common.get("trios"))]
    return [_stage(name, folder, overrides | {"output": output}, own.get(name, {})) for name in names]


def _stage(name: str, folder: Path, overrides: Mapping[str, Any], own: Mapping[str, Any]) -> Planned:
    module = import_module(f"jobs.{name}")
    config_class = next(
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, StageConfig) and vars(value).get("job") == name
    )
    run = str(overrides["output"])
    shared = {**overrides, "output": f"{run}/{name}", "run": run}
    values = merge(load_values(config_class, folder), keys_for(config_class, shared, "overrides"))
    return Planned(name, validate(config_class, merge(values, own), f"{folder / name}.yaml"), module.check, module.main)


def run_pipeline(stages: Sequence[Planned]) -> None:
    """Run the stages under one Ray and write the report; start nothing if all of them are finished."""
    first = stages[0].config
    output = locate(first, "output", first.output).parent
    runs = [Stage(stage.config) for stage in stages]
    if all(run.finished for run in runs):
        for run in runs:
            run.begin()
        _refuse_other_rules(runs)
        console.print(f"finished already: {output}. Give another output=… for another run.", markup=False)
        _show(output)
        for run in runs:
            run.check_bad_fraction()
        return
    for stage, run in zip(stages, runs, strict=True):
        if not run.finished:
            stage.check(stage.config)
    too_many: TooManyBadRowsError | None = None
    with ray_session(first.ray):
        for stage in stages:
            try:
                stage.main(stage.config)
            except TooManyBadRowsError as error:
                console.print(f"{stage.name}: {error}", style="yellow", markup=False)
                too_many = error
            if ASKED.is_set() and stage is not stages[-1]:
                raise StoppedError(f"stopped as asked, after {stage.name}; run the same command again to continue.")
    from jobs.reporting import write_report

    heading("Report")
    write_report(output)
    _show(output)
    if too_many:
        raise too_many


def _refuse_other_rules(runs: Sequence[Stage]) -> None:
    """Refuse a pool whose file was changed: what was learnt and labelled would be that of another."""
    for run in runs:
        pool = run.manifest.get("rules")
        if isinstance(run.config, SourceStageConfig) and pool and pool != rule_pool(run.config, 1).fingerprint:
            raise ConfigError(
                f"{run.folder} was made with other rules than `rules` = {run.config.rules} has now. Give another "
                f"output=… for a whole run with these; jobs.rate alone takes up what a pool has gained."
            )


def _show(output: Path) -> None:
    show_status(output, as_json=False)
    for step in (
        f"open {output / 'report.html'}",
        "label your own pairs: the same command with trios=FILE output=FOLDER",
    ):
        console.print(f"  next: {step}", soft_wrap=True, markup=False)


def main(words: Sequence[str]) -> None:
    """Plan and run."""
    run_pipeline(plan(Path(words[0]), words[1:]))


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(USAGE.format(stages=", ".join(STAGES)))
        raise SystemExit(0 if len(sys.argv) > 1 else 2)
    finish_with(main, sys.argv[1:])
