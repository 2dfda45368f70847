"""Importing ramo_ray's modules, and asking for help, loads nothing heavy: seen in a clean process."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import jobs
import ramo_ray

HEAVY = (
    "ray",
    "torch",
    "transformers",
    "vllm",
    "deepspeed",
    "sentence_transformers",
    "pyarrow",
    "datasets",
    "matplotlib",
)
MODULES = [
    module.name
    for package in (ramo_ray, jobs)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
]


def _loaded_by(statement: str, also: tuple[str, ...] = ()) -> list[str]:
    code = f"import sys, json\n{statement}\nprint(json.dumps([m for m in {HEAVY + also!r} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return list(json.loads(done.stdout.splitlines()[-1]))


def test_no_module_loads_anything_heavy() -> None:
    imports = "\n".join(f"import {name}" for name in MODULES)
    assert len(MODULES) > 40
    assert _loaded_by(imports) == []


def test_the_probe_sees_heavy_modules() -> None:
    assert _loaded_by("import pyarrow") == ["pyarrow"]


def test_the_command_line_loads_neither_numpy_nor_pydantic() -> None:
    assert _loaded_by("import ramo_ray.cli", ("numpy", "pydantic", "yaml")) == []


@pytest.mark.parametrize(
    "words", [["-m", "ramo_ray.cli", "--help"], ["-m", "jobs.rate", "--help"], ["-m", "jobs.pipeline"]]
)
def test_help_is_there(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, cwd=Path(ramo_ray.__file__).parents[1]
    )
    assert "usage" in (done.stdout + done.stderr).lower()
