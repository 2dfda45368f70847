"""The model card of a policy that PPO aligned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ramo_ray.ppo.launcher import Spread
from ramo_ray.ppo.settings import PPOSettings

LIMITS = (
    "It was trained to please a reward model that itself learned from a judge model's labels by safety rules, not from "
    "people. It may have found what that model overlooks. Measure it before use, and do not take it for a content "
    "filter."
)
SHOWN = {
    "step": "Steps",
    "rollout/reward_mean": "Mean reward of the last step",
    "kl": "KL from the first policy, last step",
    "rollout/response_length_mean": "Tokens of a response, last step",
}


def policy_card(policy: str, settings: PPOSettings, spread: Spread, last: Mapping[str, Any], *, rehearsal: bool) -> str:
    """Markdown with Hugging Face's metadata ahead: base, reward, hyperparameters, last numbers, limits."""
    base = "" if policy.startswith("bundled:") else f"base_model: {policy!r}\n"
    head = f"---\nlibrary_name: transformers\npipeline_tag: text-generation\n{base}tags:\n- safety\n- ramo\n- ppo\n---"
    results = [f"- {title}: {last[name]:.4g}" for name, title in SHOWN.items() if name in last]
    chosen = settings.model_dump(mode="json", exclude={"reward": {"endpoints"}})
    sections = [
        head,
        "# Aligned policy",
        "Answers in its chat template; aligned by proximal policy optimisation against a safety reward model"
        + (", in a rehearsal without a GPU." if rehearsal else "."),
        f"- Base model: `{policy}`",
        f"- Rewards of its first answers: {spread.mean:.4g} ± {spread.deviation:.4g}, the unit of KL and clipping",
        "## Training",
        "\n".join(f"- {name.replace('_', ' ')}: {value}" for name, value in chosen.items()),
        "## Results",
        "\n".join(results) or "None were counted.",
        "## Limitations",
        LIMITS,
    ]
    return "\n\n".join(sections) + "\n"
