"""Judge calls a second: 100 rules on fixed conversations, naive ways and ours, beside what the machine can do.

Run by `make bench`. Prints a table and writes judge.json, judge.svg and judge.png; `exact.py` compares the answers in
full, here a sample of them is.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
from ceiling import ceiling_tokens
from drawing import draw
from planning import planning
from rich.console import Console
from rich.table import Column, Table
from vllm_ways import vllm_ways
from workload import Asked, Way, asked, pairs, read_arguments, six_answers

from ramo_ray.engines.transformers_engine import TransformersEngine
from ramo_ray.models.resolve import resolve
from ramo_ray.settings import EngineSettings

TRIOS = 8
GROUPS_A_CALL = 4
EVERY = 101
"""One in so many prompts is asked one by one: rules and conversations take turns, in a hundredth of the time."""
PLAN_SECONDS, PLAN_GIB = 2.0, 1.0
TOLERANCES = {"transformers": 1e-4, "vllm": 2e-3}
"""Largest difference from one-by-one scoring in float32, by engine."""


def naive_transformers(model: Any, work: Asked) -> Way:
    """One prompt at a time through transformers, as its documentation shows."""
    import torch

    prompts = [prompt for group in work.groups for prompt in group][::EVERY]
    with torch.inference_mode():
        model(torch.tensor([prompts[0]], device=model.device))
        started = time.perf_counter()
        rows = [_one(model, prompt, work.labels) for prompt in prompts]
    seconds, tokens = time.perf_counter() - started, sum(map(len, prompts))
    return Way(len(prompts) / seconds, tokens / seconds, tokens, 0, rows)


def _one(model: Any, prompt: list[int], labels: list[int]) -> list[float]:
    import torch

    logits = model(torch.tensor([prompt], device=model.device), logits_to_keep=1).logits[0, -1].float()
    row: list[float] = logits.log_softmax(-1)[labels].tolist()
    return row


def shared(engine: TransformersEngine, work: Asked) -> Way:
    """Our engine, called as the rating pipeline calls it, a few prompt groups at a time: the quicker of two rounds.

    The ceiling is a best of several too: what else runs on a machine only ever takes from both.
    """
    engine.label_logprobs(work.groups[0][:20], work.labels)
    return max((_round(engine, work) for _ in range(2)), key=lambda way: way.calls)


def _round(engine: TransformersEngine, work: Asked) -> Way:
    before, started = engine.scorer.computed, time.perf_counter()
    rows: list[list[float]] = []
    for first in range(0, len(work.groups), GROUPS_A_CALL):
        prompts = [prompt for group in work.groups[first : first + GROUPS_A_CALL] for prompt in group]
        rows += engine.label_logprobs(prompts, work.labels).tolist()
    seconds, computed = time.perf_counter() - started, engine.scorer.computed - before
    tokens = sum(len(prompt) for group in work.groups for prompt in group)
    return Way(len(rows) / seconds, computed / seconds, computed, tokens - computed, rows)


def transformers_ways(
    path: Path, dtype: str, works: dict[str, Asked]
) -> tuple[dict[str, Way], dict[str, list[list[float]]], float, dict[str, Any]]:
    """Ways through transformers; a sample of answers one by one; the ceiling in tokens/s; the machine."""
    from transformers import AutoModelForCausalLM

    engine = TransformersEngine(EngineSettings.model_validate({"dtype": dtype}), path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval().to(engine.device)
    ceilings, ways = [ceiling_tokens(model)], {"naive_transformers": naive_transformers(model, works["naive"])}
    for name in ("rule_last", "paper_six"):
        ways[f"transformers_{name}"] = shared(engine, works[name])
        ceilings.append(ceiling_tokens(model))
    references = {name: naive_transformers(model, works[name]).rows for name in ("rule_last", "paper_six")}
    return ways, references, max(ceilings), machine(engine)


def main() -> None:
    """Measure, print, write; exit with 1 where an answer is wrong."""
    chosen = _arguments()
    path = resolve(chosen.model)
    trios, six = pairs(chosen.trios, TRIOS), six_answers()
    works = {
        "naive": asked(path, "paper", trios),
        "rule_last": asked(path, "rule_last", trios),
        "paper_six": asked(path, "paper", six),
    }
    planned = planning()
    ways, references, ceiling, where = transformers_ways(path, chosen.dtype, works)
    # Both models at once would share the machine's memory for nothing.
    _free_memory()
    ways |= vllm_ways(path, dtype=chosen.dtype, trios=trios, six=six, groups_a_call=GROUPS_A_CALL)
    errors = {name: _error(references, name, way) for name, way in ways.items() if "naive" not in name}

    show(ways, ceiling, errors)
    Console().print(
        "10,000 prompts of 400 tokens: planned in {plan_seconds:.2f} s, {plan_gib:.2f} GiB".format(**planned)
    )
    chosen.output.mkdir(parents=True, exist_ok=True)
    measures = {
        **{name: way.calls for name, way in ways.items()},
        "ceiling_tokens": ceiling,
        **{f"{name}_distinct_tokens": way.tokens for name, way in ways.items() if name.startswith("transformers")},
        **{f"{name}_largest_error": error for name, error in errors.items()},
        **planned,
    }
    (chosen.output / "judge.json").write_text(json.dumps({"machine": where, "measures": measures}, indent=2) + "\n")
    draw(ways, ceiling, chosen.output / "judge")
    if planned["plan_seconds"] > PLAN_SECONDS or planned["plan_gib"] > PLAN_GIB:
        raise SystemExit(f"the plan exceeds {PLAN_SECONDS} s or {PLAN_GIB} GiB")
    wrong = [name for name, error in errors.items() if error > TOLERANCES[name.split("_")[0]]]
    if chosen.dtype == "float32" and wrong:
        raise SystemExit(f"further from one-by-one scoring than promised: {', '.join(wrong)}")


def _free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _arguments() -> argparse.Namespace:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--model", default="bundled:smollm2-135m-instruct", help="hub id, folder or bundled name")
    arguments.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    return read_arguments(arguments)


def _error(references: dict[str, list[list[float]]], name: str, way: Way) -> float:
    reference = references[name.split("_", 1)[1]]
    return float(np.abs(np.array(way.rows[::EVERY]) - np.array(reference)).max())


def show(ways: dict[str, Way], ceiling: float, errors: dict[str, float]) -> None:
    """Print the table."""
    columns = ("calls/s", "× naive vLLM", "tokens computed", "shared", "tokens/s", "of the ceiling", "largest error")
    table = Table(Column("way", no_wrap=True))
    for column in columns:
        table.add_column(column, justify="right")
    for name, way in sorted(ways.items(), key=lambda item: ("six" in item[0], item[1].calls)):
        naive = ways["naive_vllm_six" if "six" in name else "naive_vllm"].calls
        table.add_row(
            name,
            f"{way.calls:.2f}",
            f"{way.calls / naive:.2f}",
            f"{way.computed:,}",
            f"{way.cached / (way.cached + way.computed):.0%}",
            f"{way.tokens:.0f}",
            f"{way.tokens / ceiling:.0%}",
            f"{errors[name]:.1e}" if name in errors else "",
        )
    table.add_row("ceiling", "", "", "", "", f"{ceiling:.0f}", "100%", "")
    Console(width=120).print(table)


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
