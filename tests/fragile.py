"""A judge whose process one word kills: for tests and benchmarks of survival."""

from __future__ import annotations

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

from ray import cloudpickle

from jobs.flow import Work
from ramo_ray.core.rules import make_pool
from ramo_ray.engines.scripted_engine import ScriptedEngine, hashed_answer
from ramo_ray.pipelines.actors import pool_options
from ramo_ray.pipelines.progress import Goal
from ramo_ray.pipelines.rating import RuleJudge, rated_rows
from ramo_ray.pipelines.sources import open_trios
from ramo_ray.pipelines.store import PartStore
from ramo_ray.settings import ActorSettings, JudgeSettings, SourceSettings

RULES = ["Accept the response that is polite.", "Accept the response that is short."]
POISON = "Zyzzyva"
# Workers cannot import what only tests can.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


class FragileJudge(RuleJudge):
    """A judge whose process is killed by one word, and once by nothing at all if a file is there to be taken."""

    def __init__(self, model: str, accident: str, latency_s: float, overseer: Any) -> None:
        settings = {"model": model, "layout": "rule_last", "engine": "scripted", "batch_size": 4}
        super().__init__(settings, RULES, "all_rules", overseer, ScriptedEngine(self._answer, latency_s=latency_s))
        self.poison = self.prompts.tokenizer(POISON, add_special_tokens=False)["input_ids"]
        self.accident = Path(accident)

    def _answer(self, prompt: Any, labels: Any) -> Any:
        text = ",".join(map(str, prompt))
        if ",".join(map(str, self.poison)) in text:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.accident.exists():
            self.accident.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return hashed_answer(prompt, labels)


def fragile_work(
    folder: Path,
    model: str,
    trios: int,
    *,
    poisoned: tuple[int, ...] = (),
    block: int = 4,
    latency_s: float = 0.0,
    root: str = "",
) -> Work:
    """Rate trios, of which some have a response that kills; a file `accident` in the folder kills once."""
    rows = [
        {"prompt": f"What is {n}?", "chosen": f"A number, {n}.", "rejected": POISON if n in poisoned else "No idea."}
        for n in range(trios)
    ]
    (folder / "trios.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pool = make_pool("judge", RULES, origin="here")
    given = {"model": model, "accident": str(folder / "accident"), "latency_s": latency_s}
    actors = ActorSettings(min=1, max=2, num_cpus=0.2)

    def through(groups: Any, overseer: Any) -> Any:
        return groups.map_batches(
            FragileJudge,
            fn_constructor_kwargs={**given, "overseer": overseer},
            batch_format="pyarrow",
            batch_size=block,
            **pool_options(actors, overseer),
        )

    return Work(
        title="rating",
        source=open_trios(str(folder / "trios.jsonl"), SourceSettings(), None),
        shares=None,
        wanted=[""],
        store=PartStore(root or str(folder / "data"), ("ratings",)),
        goal=Goal("conversations", "ratings", JudgeSettings().max_tries, tuple(pool.ids)),
        block=block,
        part=block,
        through=through,
        convert=partial(rated_rows, fingerprint="f"),
        actors=actors,
    )
