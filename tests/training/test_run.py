import json
from pathlib import Path
from typing import Any

import pytest

from ramo_ray.errors import TrainingError
from ramo_ray.settings import TrainingSettings
from ramo_ray.training.card import model_card
from ramo_ray.training.engine import deepspeed_config
from ramo_ray.training.run import TrainingRun, claim

LAST = {"step": 12, "loss": 0.25, "accuracy": 0.75}


def training(folder: Path, *, seed: int = 0, **settings: Any) -> TrainingRun:
    examples = folder / "examples.parquet"
    if not examples.exists():
        examples.write_bytes(b"examples")
    return TrainingRun(
        task="reward",
        settings=TrainingSettings(**settings),
        examples=examples,
        output=folder / "out",
        seed=seed,
        details={"pairs": 40, "left_out": 2},
    )


def test_a_run_survives_the_way_to_a_worker(tmp_path: Path) -> None:
    run = training(tmp_path, zero_stage=3, workers=2)

    assert TrainingRun.model_validate(json.loads(json.dumps(run.model_dump(mode="json")))) == run


def test_a_training_may_change_what_does_not_change_its_result(tmp_path: Path) -> None:
    claim(training(tmp_path))
    claim(training(tmp_path, micro_batch=4, checkpoint_every=3, threads=1, num_cpus=0.5))


def test_another_training_is_refused_with_what_differs(tmp_path: Path) -> None:
    claim(training(tmp_path))

    with pytest.raises(TrainingError, match=r"another training: learning_rate was 2e-05 and is 0\.1; seed was 0"):
        claim(training(tmp_path, learning_rate=0.1, seed=1))
    (tmp_path / "examples.parquet").write_bytes(b"others")
    with pytest.raises(TrainingError, match="examples was"):
        claim(training(tmp_path))


def test_bfloat16_never_runs_without_float32_master_weights() -> None:
    def stage(**settings: Any) -> int:
        return int(deepspeed_config(TrainingSettings(**settings))["zero_optimization"]["stage"])

    assert stage() == 0
    assert stage(dtype="bfloat16") == 1
    assert stage(dtype="bfloat16", zero_stage=3) == 3


def test_offload_without_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="offload_optimizer needs zero_stage 1, 2 or 3"):
        TrainingSettings(offload_optimizer=True)


def test_the_model_card_states_base_data_settings_results_and_limits(tmp_path: Path) -> None:
    card = model_card(training(tmp_path, model="acme/base", learning_rate=3e-5), LAST)

    head = card.split("---")[1]
    assert "base_model: 'acme/base'" in head
    for fact in (
        "`acme/base`",
        "- pairs: 40",
        "- left out: 2",
        "- learning rate: 3e-05",
        "- seed: 0",
        "0.2500",
        "0.750",
    ):
        assert fact in card
    assert card.index("## Data") < card.index("## Training") < card.index("## Results") < card.index("## Limitations")
