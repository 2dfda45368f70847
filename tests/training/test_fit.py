import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ramo_ray.errors import FingerprintError, TrainingError
from ramo_ray.models.adapter import RuleAdapter
from ramo_ray.models.reward import RewardModel
from ramo_ray.settings import TrainingSettings
from ramo_ray.training.launch import fit

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]

IDS = pa.list_(pa.int32())
POOL = [f"rule-{i}" for i in range(6)]
STEPS = 18
COMMON: dict[str, Any] = {
    "epochs": 6,
    "global_batch": 8,
    "learning_rate": 2e-3,
    "weight_decay": 0.1,
    "warmup_steps": 3,
    "checkpoint_every": 3,
}
Rows = list[dict[str, Any]]


def random_texts(seed: int, count: int) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    return [generator.integers(3, 300, size=generator.integers(5, 60)).tolist() for _ in range(count)]


def write_examples(file: Path, **columns: Sequence[Sequence[int]]) -> Path:
    pq.write_table(pa.table({name: pa.array(rows, IDS) for name, rows in columns.items()}), file)
    return file


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """22 pairs, so that an epoch is two batches of 8 and a ragged one of 6."""
    file = tmp_path_factory.mktemp("examples") / "pairs.parquet"
    return write_examples(file, chosen_ids=random_texts(0, 22), rejected_ids=random_texts(1, 22))


@pytest.fixture(scope="module")
def settings(tiny_model: Path) -> Callable[..., TrainingSettings]:
    return lambda **changes: TrainingSettings(model=str(tiny_model), **(COMMON | {"num_cpus": 0.5} | changes))


@pytest.fixture(scope="module")
def reference(
    settings: Callable[..., TrainingSettings],
    pairs: Path,
    tmp_path_factory: pytest.TempPathFactory,
    local_ray: None,  # noqa: ARG001
) -> Path:
    """One worker, no ZeRO, never interrupted."""
    output = tmp_path_factory.mktemp("reference")
    fit(task="reward", settings=settings(), examples=pairs, output=output, seed=5, details={"pairs": 22})
    return output


def rows_of(output: Path) -> Rows:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def column(rows: Rows, name: str) -> list[Any]:
    return [row[name] for row in rows]


def weights_of(output: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(output / "model" / "model.safetensors")


def assert_same_training(output: Path, reference: Path) -> None:
    ours, theirs = rows_of(output), rows_of(reference)
    assert column(ours, "step") == list(range(1, STEPS + 1))
    for name in ("epoch", "learning_rate", "tokens", "accuracy", "steps"):
        assert column(ours, name) == column(theirs, name)
    np.testing.assert_allclose(column(ours, "loss"), column(theirs, "loss"), atol=1e-6)
    expected = weights_of(reference)
    for name, weight in weights_of(output).items():
        np.testing.assert_allclose(weight, expected[name], atol=1e-6, err_msg=name)


def test_rows_tell_of_every_step(reference: Path) -> None:
    rows = rows_of(reference)
    lengths = [sum(map(len, pair)) for pair in zip(random_texts(0, 22), random_texts(1, 22), strict=True)]

    assert column(rows, "step") == list(range(1, STEPS + 1))
    assert column(rows, "epoch") == pytest.approx([step / 3 for step in range(1, STEPS + 1)])
    assert sum(column(rows, "tokens")) == 6 * sum(lengths)
    assert column(rows, "learning_rate")[:4] == pytest.approx([2e-3 / 3, 4e-3 / 3, 2e-3, 2e-3 * 15 / 16])
    assert all(row["seconds"] > 0 for row in rows)


def test_a_finished_training_leaves_a_model_and_no_checkpoints(reference: Path) -> None:
    assert sorted(path.name for path in reference.iterdir()) == ["metrics.jsonl", "model", "training.json"]
    names = {path.name for path in (reference / "model").iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    assert "- pairs: 22" in (reference / "model" / "README.md").read_text()


def test_transformers_alone_loads_the_export_and_gives_the_same_scores(reference: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    plain = AutoModelForSequenceClassification.from_pretrained(reference / "model")
    texts = random_texts(7, 5)
    with torch.inference_mode():
        expected = [float(plain(torch.tensor([ids])).logits) for ids in texts]

    np.testing.assert_allclose(RewardModel(reference / "model").score(texts), expected, atol=1e-5)
    assert AutoTokenizer.from_pretrained(reference / "model").chat_template
    assert plain.config.pad_token_id != plain.config.eos_token_id


def test_the_first_loss_is_that_of_the_base_and_the_last_is_lower(reference: Path) -> None:
    losses = column(rows_of(reference), "loss")

    assert losses[0] == pytest.approx(np.log(2), abs=0.05)
    assert losses[-1] < 0.1
    assert column(rows_of(reference), "accuracy")[-1] == 1


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_two_workers_under_zero_equal_one_without(
    zero_stage: int, settings: Callable[..., TrainingSettings], pairs: Path, reference: Path, tmp_path: Path
) -> None:
    shared = settings(workers=2, zero_stage=zero_stage, micro_batch=3, gradient_checkpointing=True)
    seen: Rows = []
    last = fit(task="reward", settings=shared, examples=pairs, output=tmp_path, seed=5, on_step=seen.append)

    assert column(seen, "loss") == pytest.approx(column(rows_of(reference), "loss"), abs=1e-3)
    assert column(seen, "accuracy") == column(rows_of(reference), "accuracy")
    assert column(seen, "tokens") == column(rows_of(reference), "tokens")
    assert seen == rows_of(tmp_path)
    assert last == seen[-1]
    texts = random_texts(7, 5)
    expected = RewardModel(reference / "model").score(texts)
    np.testing.assert_allclose(RewardModel(tmp_path / "model").score(texts), expected, atol=1e-3)


DRIVER = """
import os, signal, sys, json
from pathlib import Path
import psutil, ray
from ramo_ray.settings import TrainingSettings
from ramo_ray.training.launch import fit

def die_in_the_middle(row):
    if row["step"] >= 8:
        below = psutil.Process().children(recursive=True)
        training = [process.pid for process in below if "Train" in " ".join(process.cmdline())]
        Path(sys.argv[4]).write_text(json.dumps(training))
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=300 * 1024**2,
             log_to_driver=False)
    settings = TrainingSettings.model_validate_json(sys.argv[1])
    fit(task="reward", settings=settings, examples=Path(sys.argv[2]), output=Path(sys.argv[3]), seed=5,
        on_step=die_in_the_middle)
"""


def test_a_killed_training_resumes_to_the_same_weights(
    settings: Callable[..., TrainingSettings], pairs: Path, tiny_model: Path, tmp_path: Path
) -> None:
    # Dropout: the continuation must draw what the uninterrupted training drew.
    model = shutil.copytree(tiny_model, tmp_path / "dropout")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.3}))
    ours = settings().model_copy(update={"model": str(model)})
    whole, output = tmp_path / "whole", tmp_path / "killed"
    fit(task="reward", settings=ours, examples=pairs, output=whole, seed=5)

    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    # Reports are handed over one at a time: at two seconds each, the training cannot end before the kill.
    environment = os.environ | {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "2", "PYTHONPATH": os.getcwd()}
    arguments = [ours.model_dump_json(), pairs, output, tmp_path / "below.json"]
    driver = subprocess.run([sys.executable, script, *map(str, arguments)], env=environment, check=False, timeout=120)
    training = json.loads((tmp_path / "below.json").read_text())
    wait_until(lambda: not alive(training))

    assert driver.returncode == -signal.SIGKILL
    assert training
    before = rows_of(output)
    assert 8 <= len(before) < STEPS
    assert not (output / "model").exists()
    seen: Rows = []
    fit(task="reward", settings=ours, examples=pairs, output=output, seed=5, on_step=seen.append)

    assert_same_training(output, whole)
    assert column(seen, "step") == list(range(1, STEPS + 1))
    # Seconds are of the clock: rows that are the same to the last of them were not computed again.
    kept = [row for row in before if row in rows_of(output)]
    assert len(kept) >= COMMON["checkpoint_every"]


def alive(pids: Sequence[int]) -> list[int]:
    return [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def test_a_killed_worker_is_replaced_and_the_result_is_the_same(
    settings: Callable[..., TrainingSettings], pairs: Path, reference: Path, tmp_path: Path
) -> None:
    killed: list[int] = []

    def kill_a_worker(row: dict[str, Any]) -> None:
        if row["step"] == 5 and not killed:
            below = psutil.Process().children(recursive=True)
            workers = [process for process in below if "RayTrainWorker" in " ".join(process.cmdline())]
            killed.append(workers[0].pid)
            workers[0].kill()

    seen: Rows = []
    fit(
        task="reward",
        settings=settings(workers=2, zero_stage=3),
        examples=pairs,
        output=tmp_path,
        seed=5,
        on_step=lambda row: (seen.append(row), kill_a_worker(row)),
    )

    assert killed
    assert column(seen, "step") == list(range(1, STEPS + 1))
    assert column(rows_of(tmp_path), "loss") == pytest.approx(column(rows_of(reference), "loss"), abs=1e-3)


def test_a_finished_training_returns_at_once(
    settings: Callable[..., TrainingSettings], pairs: Path, reference: Path
) -> None:
    started = time.monotonic()
    last = fit(task="reward", settings=settings(), examples=pairs, output=reference, seed=5)

    assert time.monotonic() - started < 2
    assert last == rows_of(reference)[-1]
    with pytest.raises(TrainingError, match="seed was 5 and is 6"):
        fit(task="reward", settings=settings(), examples=pairs, output=reference, seed=6)


def test_an_adapter_learns_which_rules_are_critical(settings: Callable[..., TrainingSettings], tmp_path: Path) -> None:
    texts = random_texts(3, 8)
    critical = [sorted({row % 6, (row * 2 + 1) % 6}) for row in range(8)]
    examples = write_examples(tmp_path / "trios.parquet", input_ids=texts, labels=critical)
    output = tmp_path / "out"
    last = fit(
        task="adapter",
        settings=settings(epochs=60, global_batch=4, checkpoint_every=1000, learning_rate=5e-3, weight_decay=0.0),
        examples=examples,
        output=output,
        seed=0,
        rule_ids=POOL,
        r=2,
    )

    assert rows_of(output)[0]["loss"] == pytest.approx(np.log(2), abs=0.02)
    assert last["loss"] < 0.05
    assert last["accuracy"] == 1
    top = np.argsort(-RuleAdapter(output / "model", POOL).logits(texts), axis=1)
    assert [sorted(row[: len(true)].tolist()) for row, true in zip(top, critical, strict=True)] == critical
    with pytest.raises(FingerprintError, match="in another order"):
        RuleAdapter(output / "model", POOL[::-1])


def test_a_loss_that_is_not_finite_ends_the_training_by_its_step_and_at_once(
    settings: Callable[..., TrainingSettings], pairs: Path, tmp_path: Path
) -> None:
    hopeless = settings(learning_rate=1e30, warmup_steps=0, max_failures=20)
    seen: Rows = []
    started = time.monotonic()

    with pytest.raises(TrainingError, match=r"^step \d: the loss is not finite"):
        fit(task="reward", settings=hopeless, examples=pairs, output=tmp_path, seed=5, on_step=seen.append)
    # Twenty more attempts would take minutes.
    assert time.monotonic() - started < 40
    assert len(seen) < 8
    assert np.isfinite(column(seen, "loss")).all()
    assert not (tmp_path / "model").exists()


def test_no_examples_are_refused_before_anything_starts(
    settings: Callable[..., TrainingSettings], tmp_path: Path
) -> None:
    examples = write_examples(tmp_path / "none.parquet", chosen_ids=[], rejected_ids=[])

    with pytest.raises(TrainingError, match="holds no examples to train on"):
        fit(task="reward", settings=settings(), examples=examples, output=tmp_path / "out", seed=0)
    assert not (tmp_path / "out").exists()
