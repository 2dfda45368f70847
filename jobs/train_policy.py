"""A policy aligned with a reward model: PPO by OpenRLHF (equation 8)."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from jobs.display import console, heading, progress, summary
from jobs.inputs import earlier, refuse_relative_model
from jobs.policy_inputs import (
    HELD_PROMPTS,
    Prompts,
    PromptStageConfig,
    check_policy,
    check_reward,
    prompt_rows,
    write_prompts,
)
from jobs.session import ray_session, submitted
from jobs.stage import Stage, locate, open_stage, read_json, write_json
from ramo_ray.config import run
from ramo_ray.errors import ConfigError, TrainingError
from ramo_ray.ppo import cpu_rehearsal, driver
from ramo_ray.ppo.launcher import Paths, Spread, flags
from ramo_ray.ppo.placement import check_cluster, gpu_hours, memory, needs
from ramo_ray.ppo.settings import PPOSettings
from ramo_ray.settings import SamplingSettings


class TrainPolicyConfig(PromptStageConfig):
    job: ClassVar[str] = "train_policy"
    policy: str = "bundled:smollm2-135m-instruct"
    """The policy to align: hub id, folder or bundled name, with a chat template."""
    policy_revision: str | None = None
    reward_model: str = ""
    """Folder of the reward model. Empty: what train_reward wrote in `run`; unused where ppo.reward.endpoints are."""
    run: str = ""
    """Output of the pipeline whose reward model is used."""
    rehearsal: bool = False
    """Run OpenRLHF's PPO without a GPU, to try a configuration before renting a cluster."""
    ppo: PPOSettings = PPOSettings()


class Models(NamedTuple):
    """Folders of the policy and of the reward model; None where endpoints give the rewards."""

    policy: Path
    reward: Path | None


def check(config: TrainPolicyConfig) -> Models:
    """Refuse, before any GPU is taken, packages, models or a machine that PPO cannot do with."""
    from ramo_ray.models.resolve import resolve

    driver.check_packages(rehearsal=config.rehearsal)
    if config.rehearsal:
        if config.ray.address or submitted():
            raise ConfigError(
                "rehearsal=true starts a Ray of its own: leave `ray.address` empty, and do not submit it."
            )
        cpu_rehearsal.refuse_gpu()
    # OpenRLHF takes commas between data sets, and what follows an @ for a version.
    if set(str(locate(config, "output", config.output))) & set(",@"):
        raise ConfigError(
            f"`output` = {config.output}: OpenRLHF cannot read a path with a comma or an @. Give another."
        )
    refuse_relative_model(config.policy)
    policy = resolve(config.policy, config.policy_revision).resolve()
    check_policy(policy)
    if config.ppo.reward.endpoints:
        return Models(policy, None)
    reward = earlier(config, "reward_model", config.reward_model, config.run, "train_reward/model").resolve()
    check_reward(reward, policy)
    return Models(policy, reward)


def main(config: TrainPolicyConfig) -> list[str]:
    """Align a policy with a reward model by PPO."""
    with open_stage(config) as stage:
        if not stage.finished:
            _train(config, stage)
        counts, last = stage.manifest["counts"], stage.manifest["training"]
        summary(
            f"policy in {stage.folder / 'model'}",
            {
                "prompts": counts["rows_out"],
                "prompts set aside": counts["quarantined"],
                "steps": last["step"],
                "reward of the last step": last["rollout/reward_mean"],
                "KL from the first policy": last["kl"],
                "tokens of a response": last["rollout/response_length_mean"],
            },
        )
    given = {"run": config.run, "reward_model": config.reward_model, "policy": stage.folder / "model"}
    return [stage.next_job("evaluate_policy", **given)]


def _train(config: TrainPolicyConfig, stage: Stage) -> None:
    heading("Policy")
    models = check(config)
    prompts = write_prompts(prompt_rows(config), models.policy, config.ppo, stage.folder / "prompts.jsonl")
    with ray_session(config.ray, stand_ins=_stand_ins(config)):
        check_cluster(config.ppo, _gpus_by_node())
        spread = _spread(config, stage, models, prompts)
        _announce(config, models, spread, prompts)
        final = _learn(config, stage, models, spread, len(prompts.used))
    counts = stage.counts(rows_in=prompts.read, rows_out=len(prompts.used), other_split=0, bad=prompts.bad)
    stage.finish(counts=counts, training=final, spread=spread._asdict(), rehearsal=config.rehearsal)


def _stand_ins(config: TrainPolicyConfig) -> dict[str, int]:
    """What a Ray of this run's own says it has in a rehearsal: a label for each GPU, and a CPU for each process."""
    if not config.rehearsal:
        return {}
    gpus = sum(need.gpus for need in needs(config.ppo))
    return {"num_gpus": gpus, "num_cpus": gpus + 2}


def _gpus_by_node() -> list[float]:
    import ray

    return [node["Resources"].get("GPU", 0.0) for node in ray.nodes() if node["Alive"]]


def _spread(config: TrainPolicyConfig, stage: Stage, models: Models, prompts: Prompts) -> Spread:
    """Where rewards of the policy's first answers lie; measured once a run."""
    import ray

    from ramo_ray.ppo import measure

    file = stage.folder / "spread.json"
    if not file.exists():
        rollout = config.ppo.rollout
        sampling = SamplingSettings(
            temperature=rollout.temperature, top_p=rollout.top_p, max_tokens=rollout.max_new_tokens, seed=config.seed
        )
        held = prompts.used[:HELD_PROMPTS]
        task = ray.remote(num_gpus=0 if config.rehearsal else 1)(measure.first_rewards)
        with progress("first answers", None, lambda: (0, f"{len(held)} prompts")):
            rewards = ray.get(
                task.remote(
                    models.policy,
                    models.reward,
                    _endpoints(config, stage.folder),
                    held,
                    sampling,
                    dtype="float32" if config.rehearsal else "bfloat16",
                )
            )
        write_json(file, measure.spread_of(rewards, str(models.reward or "the endpoint"))._asdict())
    return Spread(**read_json(file))


def _endpoints(config: TrainPolicyConfig, folder: Path) -> dict[str, str]:
    """What our reward function finds in its environment; nothing where the reward model runs in the job."""
    from ramo_ray.ppo import reward_function as asked

    reward = config.ppo.reward
    if not reward.endpoints:
        return {}
    return {
        asked.URLS: ",".join(reward.endpoints),
        asked.PATIENCE: str(reward.patience_s),
        asked.TIMEOUT: str(reward.timeout_s),
        asked.FAILURE: str(folder / driver.FAILURE),
    }


def _announce(config: TrainPolicyConfig, models: Models, spread: Spread, prompts: Prompts) -> None:
    """What is to be known before it starts."""
    if config.rehearsal:
        console.print(cpu_rehearsal.ANNOUNCEMENT, markup=False)
    lines = [
        f"{len(prompts.used):,} prompts, {len(prompts.bad):,} set aside",
        f"rewards of first answers: {spread.mean:.3f} ± {spread.deviation:.3f}; clipped "
        f"{config.ppo.reward.clip_deviations:g} deviations from their mean, with the KL coefficient in deviations too",
        f"the critic starts from the {'reward model' if models.reward else 'policy'}",
        "GPUs: " + "; ".join(f"{need.role}: {need.gpus}" for need in needs(config.ppo)),
    ]
    policy, reward = (_parameters(folder) for folder in (models.policy, models.reward or models.policy))
    held = memory(config.ppo, policy, reward)
    hours = gpu_hours(config.ppo, policy, reward, len(prompts.used), prompts.tokens + config.ppo.rollout.max_new_tokens)
    lines += [
        "memory a GPU, GiB, beside activations and vLLM: "
        + ", ".join(f"{role} {gib:.1f}" for role, gib in held.items()),
        f"at most {hours:,.2g} GPU-hours, where a GPU does {config.ppo.gpu_tflops:g} TFLOPS (ppo.gpu_tflops)",
    ]
    for line in lines:
        console.print(f"  {line}", markup=False)


def _parameters(folder: Path) -> int:
    """Parameters of a model, by the headers of its weights."""
    from safetensors import safe_open

    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="np") as weights:
            total += sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    return total


def _learn(config: TrainPolicyConfig, stage: Stage, models: Models, spread: Spread, prompts: int) -> dict[str, Any]:
    """Run PPO, and put what it saved where a model belongs; returns the last step's numbers."""
    import ray

    from ramo_ray.models.templates import load_tokenizer
    from ramo_ray.ppo.card import policy_card
    from ramo_ray.ppo.checkpoints import settle
    from ramo_ray.step_log import read_rows

    folder, model, partial_model = stage.folder, stage.folder / "model", stage.folder / "model.partial"
    if not model.exists():
        paths = Paths(
            policy=models.policy,
            critic=models.reward or models.policy,
            reward=models.reward,
            prompts=folder / "prompts.jsonl",
            model=partial_model,
            checkpoints=folder / "checkpoints",
            tensorboard=folder / "tensorboard",
        )
        shutil.rmtree(partial_model, ignore_errors=True)
        if step := settle(paths.checkpoints):
            console.print(f"  goes on from step {step}", markup=False)
        launch = driver.Launch(
            flags=flags(config.ppo, paths, spread, config.seed, rehearsal=config.rehearsal),
            address=ray.get_runtime_context().gcs_address,
            environment=driver.environment(rehearsal=config.rehearsal, endpoints=_endpoints(config, folder)),
        )
        last: dict[str, Any] = {}
        steps = prompts // config.ppo.rollout.prompts_per_step * config.ppo.episodes
        with progress("PPO", steps, lambda: (last.get("step", 0), _remark(last))):
            driver.train(launch, folder, last.update)
        if not (partial_model / "config.json").exists():
            raise TrainingError(f"{folder}: PPO ended without a model. The account is in {folder / driver.LOG}.")
        load_tokenizer(models.policy).save_pretrained(partial_model)
        (partial_model / "README.md").write_text(
            policy_card(config.policy, config.ppo, spread, last, rehearsal=config.rehearsal), encoding="utf-8"
        )
        partial_model.replace(model)
        # A finished run is not taken up again, and they are many times the model's size.
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return read_rows(folder / driver.METRICS)[-1]


def _remark(row: dict[str, Any]) -> str:
    if not row:
        return "starting the models"
    return f"reward {row['rollout/reward_mean']:+.3f}, KL {row.get('kl', 0.0):.4f}"


if __name__ == "__main__":
    run(main)
