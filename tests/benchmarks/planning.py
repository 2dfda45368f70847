"""What it takes to plan 10,000 prompts of 400 tokens, however many conversations they share."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np

from ramo_ray.engines import radix

PROMPTS, TOKENS, TAIL = 10_000, 400, 20
CONVERSATIONS = (1, 100, 10_000)


def plan(prompts: list[list[int]]) -> None:
    """Build the tree and cut it into passes and stretches, as the transformers engine does."""
    tree, stop = radix.build(prompts), 0
    while stop < len(tree):
        one = radix.next_pass(tree, stop, size=1024, most_asked=1024)
        list(radix.stretches(tree, one, block=64, slack=64))
        stop = one.stop


def prompts_about(conversations: int) -> list[list[int]]:
    """10,000 prompts of 400 tokens: so many conversations, each with the same rules behind it."""
    random = np.random.default_rng(0)
    beginnings = random.integers(0, 49_152, (conversations, TOKENS - TAIL)).tolist()
    tails = random.integers(0, 49_152, (PROMPTS // conversations, TAIL)).tolist()
    return [[*beginning, *tail] for tail in tails for beginning in beginnings]


def planning() -> dict[str, float]:
    """Most seconds, and most GiB, of the plan where prompts share one conversation, a hundred, or nothing."""
    seconds, peaks = [], []
    for conversations in CONVERSATIONS:
        prompts = prompts_about(conversations)
        started = time.perf_counter()
        plan(prompts)
        seconds.append(time.perf_counter() - started)
        tracemalloc.start()
        # Passes come one at a time, so the tree is what a plan holds.
        radix.build(prompts)
        peaks.append(tracemalloc.get_traced_memory()[1] / 2**30)
        tracemalloc.stop()
    return {"plan_seconds": max(seconds), "plan_gib": max(peaks)}
