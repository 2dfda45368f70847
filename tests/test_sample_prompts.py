import json
from pathlib import Path

import ramo_ray
from ramo_ray.core.records import ROLES

SAMPLES = Path(ramo_ray.__file__).parent / "samples" / "prompts.jsonl"


def test_sample_prompts_are_two_dozen_short_questions_of_which_some_have_several_turns() -> None:
    prompts = [json.loads(line)["prompt"] for line in SAMPLES.read_text(encoding="utf-8").splitlines()]
    dialogues = [[{"role": "user", "content": p}] if isinstance(p, str) else p for p in prompts]
    last = [dialogue[-1] for dialogue in dialogues]
    assert len({message["content"] for message in last}) == len(prompts) == 24
    assert all(message["role"] == "user" and 10 <= len(message["content"].split()) <= 30 for message in last)
    assert all(message["role"] in ROLES and message["content"].strip() for turns in dialogues for message in turns)
    assert sum(len(dialogue) > 1 for dialogue in dialogues) == 2
