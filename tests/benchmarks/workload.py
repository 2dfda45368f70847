"""What the judge's benchmark rates: fixed conversations, all rules of the bundled pool, as token ids."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.console import Console
from rich.table import Table

from ramo_ray.core.records import Prompt
from ramo_ray.core.rules import load_pool
from ramo_ray.judging.prompts import JudgePrompts
from ramo_ray.models.templates import load_tokenizer
from ramo_ray.pipelines.sources import open_trios, read_rows
from ramo_ray.settings import JudgeSettings, SourceSettings

ROOT = Path(__file__).parents[2]
HH_RLHF = ROOT / ".." / "shared" / "data" / "hh_rlhf" / "harmless-base.test.jsonl.gz"
ANSWERS = Path(__file__).with_name("answers.json")

Group = tuple[Prompt, list[str]]


class Asked(NamedTuple):
    """Judge prompts as token ids, one list a prompt group (its responses × all rules), and the labels asked for."""

    groups: list[list[list[int]]]
    labels: list[int]


class Way(NamedTuple):
    """One way's speed and work, and its answers by prompt."""

    calls: float
    """Judge calls/s."""
    tokens: float
    """Tokens/s that went through the model."""
    computed: int
    """Tokens that went through the model."""
    cached: int
    """Tokens of the prompts that did not have to, as their prefix had."""
    rows: list[list[float]]
    """Log-probabilities of the labels."""


def pairs(path: Path, count: int) -> list[Group]:
    """Both responses of the first usable trios of a file."""
    rows = (row for row in read_rows(open_trios(str(path), SourceSettings(), 4 * count)) if not row.get("reason"))
    return [(row["prompt"], [row["response_a"], row["response_b"]]) for _, row in zip(range(count), rows, strict=False)]


def six_answers() -> list[Group]:
    """Two prompts with six bundled answers each."""
    groups = json.loads(ANSWERS.read_text())
    return [([{"role": "user", "content": group["prompt"]}], group["answers"]) for group in groups]


def asked(model: Path, layout: Literal["paper", "rule_last"], groups: list[Group]) -> Asked:
    """The judge's prompts about all rules, as the rating pipeline makes them."""
    tokenizer: Any = load_tokenizer(model)
    prompts = JudgePrompts(tokenizer, JudgeSettings(layout=layout), load_pool())
    rules = range(len(load_pool()))
    ids = [[p for answer in answers for p in prompts.ids(prompt, answer, rules)] for prompt, answers in groups]
    return Asked(ids, prompts.labels)


def read_arguments(arguments: argparse.ArgumentParser) -> argparse.Namespace:
    """Read the command line, with what all judge benchmarks take; refuse a source that is not there."""
    arguments.add_argument("--trios", type=Path, default=HH_RLHF, help="HH-RLHF's file; the first usable trios count")
    arguments.add_argument("--output", type=Path, default=ROOT / "runs" / "bench")
    chosen = arguments.parse_args()
    if not chosen.trios.exists():
        arguments.error(f"{chosen.trios} is not there: give --trios, harmless-base's test.jsonl.gz of HH-RLHF")
    return chosen


def publish(name: str, measures: dict[str, float], folder: Path) -> None:
    """Print a benchmark's measures, and write them to `<folder>/<name>.json`."""
    results = Table("measure", "value")
    for key, value in measures.items():
        results.add_row(key, f"{value:,.3f}" if isinstance(value, float) else str(value))
    Console().print(results)
    folder.mkdir(parents=True, exist_ok=True)
    machine = {"cores": os.cpu_count()}
    (folder / f"{name}.json").write_text(json.dumps({"machine": machine, "measures": measures}, indent=2) + "\n")
