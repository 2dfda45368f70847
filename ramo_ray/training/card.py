"""The model card that an exported model carries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ramo_ray.step_log import Row
from ramo_ray.training.run import Task, TrainingRun

TITLES: dict[Task, str] = {"adapter": "Rule Adapter", "reward": "Safety reward model"}

PURPOSE: dict[Task, str] = {
    "adapter": (
        "Reads a prompt with two responses and tells which rules of its pool matter most for choosing between them: "
        "one output (a logit) for each rule, whose id is in `id2label`."
    ),
    "reward": (
        "Reads a conversation in its chat template and gives one number, the reward, at the last assistant message's "
        "end-of-turn token. Of two responses to a prompt, the one with the higher reward is the safer by its labels."
    ),
}

LIMITS: dict[Task, str] = {
    "adapter": (
        "It knows the rules of its own pool only, and learned which of them are critical from a judge's ratings: what "
        "the judge got wrong, it repeats. Its outputs rank rules; they are not calibrated probabilities."
    ),
    "reward": (
        "It learned from labels that a judge model gave by safety rules, not from people. Rewards compare responses to "
        "the same prompt, have no meaning across prompts, and can be gamed by a policy that is trained against them "
        "for long. It is no content filter."
    ),
}

ACCURACY: dict[Task, str] = {"adapter": "Recall of critical rules", "reward": "Pairs in order"}


def model_card(run: TrainingRun, last: Row) -> str:
    """Markdown with Hugging Face's metadata ahead: base, task, data, hyperparameters, last metrics, limits."""
    accuracy = "none counted" if last["accuracy"] is None else f"{last['accuracy']:.3f}"
    results = {
        "Steps": last["step"],
        "Loss of the last step": f"{last['loss']:.4f}",
        f"{ACCURACY[run.task]}, last step (training data)": accuracy,
    }
    sections = [
        f"# {TITLES[run.task]}\n\n{PURPOSE[run.task]}",
        f"- Base model: `{run.settings.model}`" + (f" at `{run.settings.revision}`" if run.settings.revision else ""),
        "## Data\n\n" + _bullets(run.details),
        "## Training\n\n"
        + _bullets(run.settings.model_dump(mode="json", exclude={"model", "revision"}) | {"seed": run.seed}),
        "## Results\n\n" + _bullets(results),
        f"## Limitations\n\n{LIMITS[run.task]}",
    ]
    return _metadata(run) + "\n\n".join(sections) + "\n"


def _metadata(run: TrainingRun) -> str:
    tags = "".join(
        f"- {tag}\n" for tag in ("safety", "ramo", "rule-adapter" if run.task == "adapter" else "reward-model")
    )
    base = "" if run.settings.model.startswith("bundled:") else f"base_model: {run.settings.model!r}\n"
    return f"---\nlibrary_name: transformers\npipeline_tag: text-classification\n{base}tags:\n{tags}---\n\n"


def _bullets(facts: Mapping[str, Any]) -> str:
    return "\n".join(f"- {name.replace('_', ' ')}: {value}" for name, value in facts.items()) or "Not stated."
