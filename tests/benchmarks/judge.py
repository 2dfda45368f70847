"""Judge calls a second: 100 rules on fixed conversations, naive ways and ours, beside what the machine can do.

Run by `make bench`. Prints a table and writes runs/bench/judge.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ceiling import ceiling_tokens
from rich.console import Console
from rich.table import Table
from workload import HH_RLHF, ROOT, Asked, asked, pairs, six_answers

from ramo_ray.engines.transformers_engine import TransformersEngine
from ramo_ray.models.resolve import resolve
from ramo_ray.settings import EngineSettings

TRIOS = 8
GROUPS_A_CALL = 4
NAIVE_EVERY = 101
"""The naive way answers one in so many prompts: rules and conversations take turns, in a hundredth of the time."""
TOLERANCE = 1e-4


class Measured(NamedTuple):
    """One way's speed, and its answers by prompt."""

    calls: float
    tokens: float
    distinct: int
    rows: np.ndarray


def naive_transformers(model: Any, work: Asked) -> Measured:
    """One prompt at a time through transformers, as its documentation shows."""
    import torch

    prompts = [prompt for group in work.groups for prompt in group][::NAIVE_EVERY]
    with torch.inference_mode():
        model(torch.tensor([prompts[0]]))
        started = time.perf_counter()
        rows = [_one(model, prompt, work.labels) for prompt in prompts]
    seconds = time.perf_counter() - started
    tokens = sum(map(len, prompts))
    return Measured(len(prompts) / seconds, tokens / seconds, tokens, np.stack(rows))


def _one(model: Any, prompt: list[int], labels: list[int]) -> np.ndarray:
    import torch

    ids = torch.tensor([prompt], device=model.device)
    logits = model(ids, use_cache=False, logits_to_keep=1).logits[0, -1].float()
    row: np.ndarray = logits.log_softmax(-1)[labels].cpu().numpy()
    return row


def ours(engine: TransformersEngine, work: Asked) -> Measured:
    """The engine, called as the rating pipeline calls it: a few prompt groups at a time."""
    engine.label_logprobs(work.groups[0][:20], work.labels)
    computed, started = engine.scorer.computed, time.perf_counter()
    rows = []
    for first in range(0, len(work.groups), GROUPS_A_CALL):
        prompts = [prompt for group in work.groups[first : first + GROUPS_A_CALL] for prompt in group]
        rows.append(engine.label_logprobs(prompts, work.labels))
    seconds = time.perf_counter() - started
    distinct = engine.scorer.computed - computed
    answers = np.concatenate(rows)
    return Measured(len(answers) / seconds, distinct / seconds, distinct, answers)


def largest_error(model: Any, work: Asked, measured: Measured) -> float:
    """Largest difference from one-by-one scoring, over a sample that takes all rules and conversations in turn."""
    return float(np.abs(measured.rows[::NAIVE_EVERY] - naive_transformers(model, work).rows).max())


def main() -> None:
    """Measure, print, write; exit with 1 where an answer is wrong."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--model", default="bundled:smollm2-135m-instruct", help="hub id, folder or bundled name")
    arguments.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    arguments.add_argument("--trios", type=Path, default=HH_RLHF, help="HH-RLHF's file; the first usable trios count")
    arguments.add_argument("--output", type=Path, default=ROOT / "runs" / "bench")
    chosen = arguments.parse_args()

    from transformers import AutoModelForCausalLM

    path = resolve(chosen.model)
    engine = TransformersEngine(EngineSettings(model=chosen.model, dtype=chosen.dtype), path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=chosen.dtype).eval().to(engine.device)
    trios = pairs(chosen.trios, TRIOS)
    last, six = asked(path, "rule_last", trios), asked(path, "paper", six_answers())

    ceiling = ceiling_tokens(model)
    naive = naive_transformers(model, asked(path, "paper", trios))
    ways = {"transformers_rule_last": ours(engine, last), "transformers_paper_six": ours(engine, six)}
    ceiling = max(ceiling, ceiling_tokens(model))
    errors = {
        "transformers_rule_last": largest_error(model, last, ways["transformers_rule_last"]),
        "transformers_paper_six": largest_error(model, six, ways["transformers_paper_six"]),
    }

    measures = {
        "naive_transformers": naive.calls,
        **{name: way.calls for name, way in ways.items()},
        "ceiling_tokens": ceiling,
        "transformers_rule_last_distinct_tokens": ways["transformers_rule_last"].tokens,
        "transformers_paper_six_distinct_tokens": ways["transformers_paper_six"].tokens,
        **{f"{name}_largest_error": error for name, error in errors.items()},
    }
    show({"naive_transformers": naive, **ways}, ceiling, errors)
    chosen.output.mkdir(parents=True, exist_ok=True)
    (chosen.output / "judge.json").write_text(json.dumps({"machine": machine(engine), "measures": measures}, indent=2))
    if chosen.dtype == "float32" and max(errors.values()) > TOLERANCE:
        raise SystemExit(f"answers differ from one-by-one scoring by more than {TOLERANCE}")


def show(ways: dict[str, Measured], ceiling: float, errors: dict[str, float]) -> None:
    """Print the table."""
    table = Table("way", "calls/s", "tokens computed", "tokens/s", "of the ceiling", "largest error")
    for name, way in ways.items():
        share, error = f"{way.tokens / ceiling:.0%}", f"{errors[name]:.1e}" if name in errors else ""
        table.add_row(name, f"{way.calls:.2f}", f"{way.distinct:,}", f"{way.tokens:.0f}", share, error)
    table.add_row("ceiling", "", "", f"{ceiling:.0f}", "100%", "")
    Console().print(table)


def machine(engine: TransformersEngine) -> dict[str, Any]:
    """What it was measured on."""
    import torch

    card = torch.cuda.get_device_name() if engine.device.type == "cuda" else None
    names = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "accelerator": card,
        "dtype": str(engine.model.dtype).removeprefix("torch."),
        "torch": torch.__version__,
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


if __name__ == "__main__":
    main()
