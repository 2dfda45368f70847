"""Judge calls a second through vLLM: as its documentation shows it, and by our engine.

Each in a process of its own, as the engine sets environment variables that vLLM's defaults do without.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from workload import Asked, Group, Way, asked

from ramo_ray.core.prompts import RatingTemplate
from ramo_ray.core.rules import load_pool
from ramo_ray.engines.vllm_engine import VLLMEngine
from ramo_ray.settings import EngineSettings

NAIVE_CACHE_GIB = "4"
"""KV cache of the naive way on a CPU. Left alone it takes nine tenths of the machine, or does not start."""
LIKELY_TOKENS = 20
"""Most log-probabilities of one token that vLLM gives by default."""


def vllm_ways(
    model: Path, *, dtype: str, trios: Sequence[Group], six: Sequence[Group], groups_a_call: int
) -> dict[str, Way]:
    """Measure `naive_vllm`, `naive_vllm_six`, `vllm_rule_last` and `vllm_paper_six`.

    Args:
        model: the model's folder.
        dtype: numbers that every way computes with.
        trios: prompts with both responses of a trio; the naive way rates the one nearest the mean length.
        six: prompts with six responses; the naive way rates the one nearest the mean length.
        groups_a_call: prompt groups that one call of the engine rates.
    """
    work = {"dtype": dtype, "trios": list(trios), "six": list(six), "groups_a_call": groups_a_call}
    ways: dict[str, Way] = {}
    with TemporaryDirectory() as folder:
        for kind in ("naive", "engine"):
            given, found = Path(folder, f"{kind}.given.json"), Path(folder, f"{kind}.found.json")
            given.write_text(json.dumps(work))
            subprocess.run([sys.executable, __file__, kind, str(model), str(given), str(found)], check=True)
            ways |= {name: Way(**fields) for name, fields in json.loads(found.read_text()).items()}
    return ways


def _naive(model: str, work: dict[str, Any]) -> dict[str, Way]:
    """`LLM.chat` with vLLM's defaults, one conversation's rules a call, so its own prefix cache works as it may."""
    os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": NAIVE_CACHE_GIB}
    from vllm import LLM

    llm = LLM(model, dtype=work["dtype"])
    return {
        "naive_vllm": _chatted(llm, Path(model), work["trios"]),
        "naive_vllm_six": _chatted(llm, Path(model), work["six"]),
    }


def _chatted(llm: Any, model: Path, groups: list[Group]) -> Way:
    from vllm import SamplingParams

    prompt, answers, own = _typical(model, groups)
    template = RatingTemplate("paper", "keep")
    texts = [[template.render(prompt, answer, rule) for rule in load_pool().texts] for answer in answers]
    chats = [[[{"role": "user", "content": text}] for text in own_texts] for own_texts in texts]
    one_token = SamplingParams(max_tokens=1, temperature=0, logprobs=LIKELY_TOKENS)
    # The first two calls are slow: they compile what is only then known.
    for count in (1, 3):
        llm.chat([[{"role": "user", "content": f"Count to {count}."}]] * count, one_token, use_tqdm=False)
    started = time.perf_counter()
    outputs = [output for chat in chats for output in llm.chat(chat, one_token, use_tqdm=False)]
    seconds = time.perf_counter() - started
    if [list(output.prompt_token_ids) for output in outputs] != own.groups[0]:
        raise SystemExit("vLLM's chat makes other prompts than the rating pipeline: the ways would not compare")
    found = [output.outputs[0].logprobs[0] for output in outputs]
    rows = [[row[label].logprob if label in row else math.nan for label in own.labels] for row in found]
    return _way(seconds, sum(map(len, own.groups[0])), sum(output.num_cached_tokens for output in outputs), rows)


def _typical(model: Path, groups: list[Group]) -> tuple[Any, list[str], Asked]:
    """The group whose prompts are nearest the mean in tokens."""
    every = asked(model, "paper", groups)
    tokens = [sum(map(len, prompts)) for prompts in every.groups]
    chosen = min(range(len(groups)), key=lambda i: abs(tokens[i] - sum(tokens) / len(tokens)))
    return *groups[chosen], Asked([every.groups[chosen]], every.labels)


def _engine(model: str, work: dict[str, Any]) -> dict[str, Way]:
    """The engine, called as the rating pipeline calls it: a few prompt groups at a time."""
    engine = VLLMEngine(EngineSettings(engine="vllm", dtype=work["dtype"]), Path(model))
    last, six = asked(Path(model), "rule_last", work["trios"]), asked(Path(model), "paper", work["six"])
    ways = {
        "vllm_rule_last": _scored(engine, last, work["groups_a_call"]),
        "vllm_paper_six": _scored(engine, six, work["groups_a_call"]),
    }
    engine.close()
    return ways


def _scored(engine: VLLMEngine, work: Asked, groups_a_call: int) -> Way:
    engine.label_logprobs([[1, 2, 3], [4, 5], [6]], work.labels)
    computed, cached, started = engine.computed, engine.cached, time.perf_counter()
    rows: list[list[float]] = []
    for first in range(0, len(work.groups), groups_a_call):
        prompts = [prompt for group in work.groups[first : first + groups_a_call] for prompt in group]
        rows += engine.label_logprobs(prompts, work.labels).tolist()
    seconds = time.perf_counter() - started
    computed, cached = engine.computed - computed, engine.cached - cached
    return _way(seconds, computed + cached, cached, rows)


def _way(seconds: float, tokens: int, cached: int, rows: list[list[float]]) -> Way:
    computed = tokens - cached
    return Way(len(rows) / seconds, computed / seconds, computed, cached, rows)


def main() -> None:
    """Measure one kind of way; what to rate and what was found are files."""
    kind, model, given, found = sys.argv[1:]
    measured = {"naive": _naive, "engine": _engine}[kind](model, json.loads(Path(given).read_text()))
    Path(found).write_text(json.dumps({name: way._asdict() for name, way in measured.items()}))


if __name__ == "__main__":
    main()
