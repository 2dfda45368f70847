"""Rewards a second over HTTP: our endpoint, OpenRLHF's and vLLM's, with the same model on the same machine.

Run by `make bench-serving`. 64 requests of mixed lengths are under way at a time, as OpenRLHF sends them. Prints a
table, and writes runs/bench/serving.json and serving.png. Each server runs alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import endpoints
import numpy as np
from rich.console import Console
from support import ROOT
from workload import HH_RLHF, Group, pairs, publish

from ramo_ray.evaluation.svg import BLUE, GREY
from ramo_ray.models.resolve import resolve
from ramo_ray.models.reward import new_reward_model
from ramo_ray.models.templates import load_tokenizer, prompt_text, reward_token_ids

BUNDLED = "bundled:smollm2-135m-instruct"
CONCURRENT, LAYERS, SAMPLES = 64, 2, 4
NARROW = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
}
SPREAD = 30
"""By which the new head's weights are multiplied, so that rewards differ by tenths."""
WARM = 16
WORDS = "how do I lock a bicycle when it rains and the city is full of people".split()  # noqa: SIM905
Body = dict[str, Any]


class Load(NamedTuple):
    """What came of a round: requests/s, the 99th percentile of their milliseconds, and the replies."""

    rate: float
    p99_ms: float
    replies: list[Any]


def conversations(count: int) -> list[Group]:
    """Prompts with two responses: of the tests' real data, or made up where that is not there."""
    if HH_RLHF.exists():
        return pairs(HH_RLHF, count)
    random = Random(0)
    return [
        (
            [{"role": "user", "content": " ".join(random.choices(WORDS, k=random.randint(10, 150)))}],
            [" ".join(random.choices(WORDS, k=random.randint(5, 120))) for _ in range(2)],
        )
        for _ in range(count)
    ]


def openrlhf_bodies(tokenizer: Any, groups: Sequence[Group]) -> list[Body]:
    """One request a response, as OpenRLHF sends them of a policy with the reward model's template."""
    bodies = []
    for prompt, responses in groups:
        asked, label = prompt_text(tokenizer, prompt), json.dumps(prompt)
        for response in responses:
            query = tokenizer.decode(reward_token_ids(tokenizer, prompt, response))
            bodies.append({"query": [query], "prompts": [asked], "labels": [label]})
    return bodies


def mixed(groups: Sequence[Group]) -> list[Group]:
    """One response a prompt."""
    return [(prompt, responses[:1]) for prompt, responses in groups]


def sampled(groups: Sequence[Group]) -> list[Group]:
    """Four responses a prompt: its own two, and those of the next."""
    turned = [*groups[1:], *groups[:1]]
    return [(prompt, [*own, *others][:SAMPLES]) for (prompt, own), (_, others) in zip(groups, turned, strict=True)]


async def _load(url: str, bodies: Sequence[Body]) -> Load:
    import aiohttp

    gate, times, replies = asyncio.Semaphore(CONCURRENT), list[float](), [None] * len(bodies)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:

        async def ask(place: int) -> None:
            async with gate:
                began = time.perf_counter()
                async with session.post(url, json=bodies[place]) as reply:
                    assert reply.status == 200, await reply.text()
                    replies[place] = await reply.json()
                times.append(time.perf_counter() - began)

        await asyncio.gather(*(ask(place) for place in range(min(WARM, len(bodies)))))
        times.clear()
        began = time.perf_counter()
        await asyncio.gather(*(ask(place) for place in range(len(bodies))))
        seconds = time.perf_counter() - began
    return Load(len(bodies) / seconds, 1000 * float(np.quantile(times, 0.99)), replies)


def load(url: str, bodies: Sequence[Body]) -> Load:
    """Send requests, 64 at a time."""
    return asyncio.run(_load(url, bodies))


def reward_model(folder: Path, layers: int | None = None) -> Path:
    """A reward model on the bundled language model, or on a narrow one of few layers, with a head from a seed."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    base = resolve(BUNDLED)
    if layers is not None:
        # So narrow that next to nothing of the time is the model's.
        config, narrow = AutoConfig.from_pretrained(base), folder / "base"
        config.update(NARROW | {"num_hidden_layers": layers, "layer_types": ["full_attention"] * layers})
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(narrow)
        load_tokenizer(base).save_pretrained(narrow)
        base = narrow
    model, path = new_reward_model(base, seed=0), folder / "reward"
    with torch.no_grad():
        model.score.weight.mul_(SPREAD)
    model.save_pretrained(path)
    load_tokenizer(base).save_pretrained(path)
    return path


def busy_seconds(url: str) -> float:
    """Seconds that our endpoint has spent in the model."""
    with urllib.request.urlopen(f"{url}/metrics") as reply:
        found = re.search(r"^ramo_reward_busy_seconds (\S+)", reply.read().decode(), re.MULTILINE)
    assert found
    return float(found[1])


def whole_model(folder: Path, count: int, tell: Callable[[str, float], None]) -> None:
    """All ways with SmolLM2-135M."""
    model = reward_model(folder)
    tokenizer = load_tokenizer(model)
    groups = conversations(count)
    one, four = openrlhf_bodies(tokenizer, mixed(groups)), openrlhf_bodies(tokenizer, sampled(groups[: count // 2]))
    with endpoints.ours(model) as url:
        load(f"{url}/get_reward", one[:CONCURRENT])
        before, began = busy_seconds(url), time.perf_counter()
        found = load(f"{url}/get_reward", one)
        tell("ours", found.rate)
        tell("ours_p99_ms", found.p99_ms)
        tell("ours_outside_model", 1 - (busy_seconds(url) - before) / (time.perf_counter() - began))
        tell("ours_four_samples", load(f"{url}/get_reward", four).rate)
    own = [reply["rewards"][0] for reply in found.replies]
    tell("openrlhf_loop_fp32", endpoints.openrlhf_loop(model, one))
    tell("openrlhf_loop_fp32_four_samples", endpoints.openrlhf_loop(model, four))
    with endpoints.vllm_classify(model) as url:
        bodies = [{"model": "reward", "input": body["query"], "use_activation": False} for body in one]
        theirs = load(url, bodies)
        tell("vllm_classify", theirs.rate)
    # The same texts, so the same rewards, whoever computes them.
    apart = np.abs(np.array([reply["data"][0]["probs"][0] for reply in theirs.replies]) - own)
    tell("largest_difference_to_vllm", float(apart.max()))
    with endpoints.openrlhf_serve_rm(model) as url:
        tell("openrlhf_serve_rm", load(url, one).rate)


def tiny_model(folder: Path, count: int, tell: Callable[[str, float], None]) -> None:
    """What is not the model's: two narrow layers, and none."""
    model = reward_model(folder, LAYERS)
    bodies = openrlhf_bodies(load_tokenizer(model), mixed(conversations(count)))
    with endpoints.ours(model) as url:
        load(f"{url}/get_reward", bodies)
        tell("ours_tiny", load(f"{url}/get_reward", bodies).rate)
    with endpoints.openrlhf_serve_rm(model) as url:
        tell("openrlhf_serve_rm_tiny", load(url, bodies).rate)
    with endpoints.empty_serve() as url:
        load(url, bodies)
        tell("empty_serve", load(url, bodies).rate)


def draw(measures: dict[str, float], file: Path) -> None:
    """Bars of the rates, ours in blue."""
    from matplotlib.figure import Figure

    tiny = [name for name in measures if name.endswith("_tiny") or name == "empty_serve"]
    whole = [name for name in measures if name not in tiny and not name.endswith(("_ms", "_model", "_to_vllm"))]
    figure = Figure(figsize=(9, 4), layout="constrained")
    for panel, names, title in zip(
        figure.subplots(2, 1), (whole, tiny), ("SmolLM2-135M", "two narrow layers"), strict=True
    ):
        ordered = sorted(names, key=lambda name: measures[name])
        colours = [BLUE if name.startswith("ours") else GREY for name in ordered]
        bars = panel.barh([name.replace("_", " ") for name in ordered], [measures[n] for n in ordered], color=colours)
        panel.bar_label(bars, [f" {measures[name]:.1f}" for name in ordered])
        panel.set_title(f"{title}: requests a second, {CONCURRENT} under way", loc="left", fontsize=9)
        panel.margins(x=0.12)
    figure.savefig(file, dpi=160)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=192, help="with the whole model")
    parser.add_argument("--tiny-requests", type=int, default=1200, help="with two layers, and with none")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "bench")
    given = parser.parse_args()
    measures: dict[str, float] = {}

    def tell(name: str, value: float) -> None:
        measures[name] = value
        Console().print(f"{name}: {value:,.3f}", highlight=False)

    with tempfile.TemporaryDirectory(prefix="ramo-serving-") as folder:
        for name, measured, count in (
            ("whole", whole_model, given.requests),
            ("tiny", tiny_model, given.tiny_requests),
        ):
            own = Path(folder) / name
            own.mkdir()
            measured(own, count, tell)
    publish("serving", measures, given.output)
    draw(measures, given.output / "serving.png")


if __name__ == "__main__":
    main()
