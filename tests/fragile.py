"""A judge whose process one word kills: for tests and benchmarks of survival."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from ray import cloudpickle
from works import RULES, rating_work, scripted, write_trios

from jobs.flow import Work
from ramo_ray.engines.scripted_engine import ScriptedEngine, hashed_answer
from ramo_ray.pipelines.rating import RuleJudge
from ramo_ray.pipelines.telemetry import Telemetry

POISON = "Zyzzyva"
# Workers cannot import what only tests can.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


class FragileJudge(RuleJudge):
    """A judge whose process is killed by one word, and once by nothing at all if a file is there to be taken."""

    def __init__(self, settings: dict[str, Any], accident: str, told_as: str, overseer: Any) -> None:
        engine = ScriptedEngine(self._answer, latency_s=settings["scripted"]["latency_s"])
        super().__init__(settings, RULES, "all_rules", overseer, engine)
        self.accident = Path(accident)
        if told_as:
            self.telemetry = Telemetry(told_as)

    def _answer(self, prompt: Any, labels: Any) -> Any:
        # Not by its tokens: they differ with what stands before them.
        if POISON in self.judge.prompts.tokenizer.decode(prompt):
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
    told_as: str = "",
) -> Work:
    """Rate trios, of which some have a response that kills; a file `accident` in the folder kills once.

    What other tests' actors tell the same Ray stays apart where the stage's metrics are `told_as` another's.
    """
    write_trios(folder, trios, lambda n: POISON if n in poisoned else "No idea.")
    settings = scripted(model, batch=block, latency_s=latency_s, actors={"min": 1, "max": 2, "num_cpus": 0.2})
    given = {"accident": str(folder / "accident"), "told_as": told_as}
    return rating_work(folder, settings, FragileJudge, given, part=block, root=root)
