"""Every engine and layout against one prompt at a time, on 20 real conversations × 100 rules with a real model.

Run by `make bench-exact`. Takes 40 minutes on 2 cores, most of it for the reference, which is kept in the output
folder: stopped, it continues. The conversations are the shortest of the first 50 trios, for the same reason. Prints a
table, writes exact.json, and ends with 1 where an answer is further off than the engine promises.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from workload import Asked, Group, asked, pairs, read_arguments

from ramo_ray.engines import build_engine
from ramo_ray.models.resolve import resolve
from ramo_ray.settings import EngineSettings

TRIOS, CONVERSATIONS = 50, 20
MODEL = "bundled:smollm2-135m-instruct"
LAYOUTS: tuple[Literal["rule_last", "paper"], ...] = ("rule_last", "paper")
TOLERANCES = {"transformers": 1e-4, "vllm": 2e-3}
"""Largest difference of a log-probability in float32."""


def conversations(path: Path) -> list[Group]:
    """The shortest conversations of a file's first trios, one response a group."""
    every = [(prompt, [response]) for prompt, responses in pairs(path, TRIOS) for response in responses]
    return sorted(every, key=lambda group: sum(len(m["content"]) for m in group[0]) + len(group[1][0]))[:CONVERSATIONS]


def reference(model: Path, work: Asked, folder: Path) -> np.ndarray:
    """Log-probabilities [prompts, labels] of one prompt at a time through transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    loaded: Any = None
    parts = []
    for prompts in track(work.groups, description="one by one"):
        kept = (
            folder / f"{hashlib.blake2b(json.dumps([prompts, work.labels]).encode(), digest_size=12).hexdigest()}.npy"
        )
        if not kept.exists():
            if loaded is None:
                loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
            with torch.inference_mode():
                logits = [loaded(torch.tensor([p]), logits_to_keep=1).logits[0, -1] for p in prompts]
            np.save(kept, torch.stack(logits).log_softmax(-1)[:, work.labels].numpy())
        parts.append(np.load(kept))
    return np.concatenate(parts)


def differences(model: Path, works: dict[str, Asked], references: dict[str, np.ndarray]) -> Iterator[tuple[str, float]]:
    """Each way's largest difference from the reference."""
    for name in TOLERANCES:
        engine = build_engine(EngineSettings.model_validate({"engine": name}), model)
        for layout, work in works.items():
            rows = engine.label_logprobs([prompt for group in work.groups for prompt in group], work.labels)
            yield f"{name}_{layout}", float(np.abs(rows - references[layout]).max())
        engine.close()


def main() -> None:
    """Compare, print, write."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=LAYOUTS)
    chosen = read_arguments(arguments)
    folder = chosen.output / "reference"
    folder.mkdir(parents=True, exist_ok=True)

    model = resolve(MODEL)
    works = {layout: asked(model, layout, conversations(chosen.trios)) for layout in chosen.layouts}
    references = {layout: reference(model, work, folder) for layout, work in works.items()}
    found = dict(differences(model, works, references))

    table = Table("way", "answers", "largest difference", "allowed")
    for name, difference in found.items():
        engine, layout = name.split("_", 1)
        allowed = TOLERANCES[engine]
        table.add_row(name, f"{len(references[layout]):,}", f"{difference:.1e}", f"{allowed:.0e}")
    Console().print(table)
    (chosen.output / "exact.json").write_text(json.dumps({"measures": found}, indent=2))
    if wrong := [name for name, difference in found.items() if difference > TOLERANCES[name.split("_")[0]]]:
        raise SystemExit(f"further from one-by-one scoring than promised: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
