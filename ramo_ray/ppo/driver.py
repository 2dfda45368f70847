"""Runs OpenRLHF's PPO inside a Ray: a process of its own, followed by the job that started it.

The job writes a `Launch` to disk and calls `train`; the process reads it, connects to the same Ray and hands over to
OpenRLHF's own command line. Curves come back by `metrics.jsonl`, samples by `samples.jsonl`, all other words by
`logs/openrlhf.log`; texts of prompts and responses never get into that log.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from ramo_ray.errors import MissingPackageError, TrainingError
from ramo_ray.ppo import cpu_rehearsal
from ramo_ray.ppo.redirect import on_import
from ramo_ray.step_log import Follower, Row, append, rewind

METRICS, SAMPLES, LOG = "metrics.jsonl", "samples.jsonl", "logs/openrlhf.log"
FAILURE = "failure.json"
"""Where our own code in the workers says why it stopped the run."""
POLL_SECONDS, GRACE_SECONDS = 0.5, 30.0
LOG_TAIL = 2**20
ROLES = {
    "PolicyModelActor": "policy",
    "ReferenceModelActor": "reference",
    "CriticModelActor": "critic",
    "RewardModelActor": "reward model",
    "RolloutRayActor": "rollouts",
    "PPOTrainer": "trainer",
    "PPOTrainerAsync": "trainer",
    "TrainingActor": "trainer",
    "GenerateSamplesActor": "rollouts",
}
ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "true",
    "NCCL_DEBUG": "WARN",
    "RAY_ENABLE_ZERO_COPY_TORCH_TENSORS": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
}
"""Of every process of a run, where the user has not set it otherwise: OpenRLHF's own, and no telemetry."""


class Launch(NamedTuple):
    """What the process is told: OpenRLHF's flags, the Ray to join, and what its workers find in their environment."""

    flags: list[str]
    address: str
    environment: dict[str, str]

    def write(self, file: Path) -> None:
        """Save it for the process."""
        file.write_text(json.dumps(self._asdict(), indent=2), encoding="utf-8")


def environment(*, rehearsal: bool, endpoints: Mapping[str, str]) -> dict[str, str]:
    """The workers' environment variables. `endpoints` are those of `reward_function`."""
    found = {name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()} | dict(endpoints)
    if rehearsal:
        found |= {cpu_rehearsal.SWITCH: "1", "VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1")}
    return found


def check_packages(*, rehearsal: bool) -> None:
    """Refuse to start without OpenRLHF, or to rehearse without the entry point that vLLM's processes come by.

    Raises:
        MissingPackageError: names what to install.
    """
    try:
        metadata.version("openrlhf")
    except metadata.PackageNotFoundError:
        raise MissingPackageError(
            "PPO needs OpenRLHF: `make setup`, or pip install --no-deps openrlhf==0.11.2 with the packages of the "
            "extra `ramo_ray[ppo]`."
        ) from None
    plugins = metadata.entry_points(group="vllm.general_plugins")
    if rehearsal and "ramo_cpu_rehearsal" not in plugins.names:
        raise MissingPackageError(
            "a CPU rehearsal needs ramo_ray to be installed (pip install -e .), not only to be found: vLLM's own "
            "processes load it by its entry point."
        )


def train(launch: Launch, folder: Path, on_step: Callable[[Row], None]) -> None:
    """Run PPO to its end; calling it again continues from the last checkpoint.

    `on_step` gets each step's row once and in order, those of an interrupted call before this one included. The
    process ends with the caller, however that ends.

    Raises:
        TrainingError: an endpoint was away for too long or gave no usable reward, a step's numbers are not finite, or
            OpenRLHF failed: names what, or the role whose process did.
    """
    file, log, failure = folder / "launch.json", folder / LOG, folder / FAILURE
    launch.write(file)
    log.parent.mkdir(exist_ok=True)
    failure.unlink(missing_ok=True)
    follower = Follower(folder / METRICS)
    with log.open("ab") as written:
        start = written.tell()
        command = [sys.executable, "-m", "ramo_ray.ppo.driver", str(file), str(os.getpid())]
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=written, stderr=subprocess.STDOUT, start_new_session=True
        ) as process:
            try:
                while process.poll() is None:
                    _report(follower, on_step)
                    if failure.exists():
                        break
                    time.sleep(POLL_SECONDS)
            finally:
                _end(process)
    _report(follower, on_step)
    if failure.exists():
        raise TrainingError(json.loads(failure.read_text(encoding="utf-8"))["error"])
    if process.returncode:
        raise TrainingError(f"{_failed_role(log, start)} The whole account is in {log}.")


def _report(follower: Follower, on_step: Callable[[Row], None]) -> None:
    for row in follower.new_rows():
        on_step(row)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()


def _failed_role(log: Path, start: int) -> str:
    """Which role's process failed first, by what Ray wrote of it, and the kind of its error: not what it said."""
    with log.open("rb") as stream:
        stream.seek(max(start, log.stat().st_size - LOG_TAIL))
        text = stream.read().decode("utf-8", errors="replace")
    role = re.search(rf"ray::({'|'.join(ROLES)})\.", text)
    errors = re.findall(r"^(?:\S*\)\S*\s)?([A-Za-z_.]*(?:Error|Exception|Died))\b", text, re.MULTILINE)
    who = f"the {ROLES[role[1]]} failed" if role else "OpenRLHF failed"
    return f"PPO ended early: {who}{f' ({errors[-1]})' if errors else ''}."


# In Ray's workers


def prepare_worker() -> None:
    """What each worker does first: a rehearsal's redirections, curves into our files, texts out of the logs."""
    cpu_rehearsal.install()
    on_import({"openrlhf.utils.logging_utils": _own_logs})


def _own_logs(module: Any) -> None:
    module._default_handler.addFilter(_without_texts)
    module.TensorboardLogger = type("TensorboardLogger", (_Curves, module.TensorboardLogger), {})


def _without_texts(record: logging.LogRecord) -> bool:
    """OpenRLHF logs a response of every step, and its warnings may hold texts of an endpoint's."""
    return not record.getMessage().startswith("Sample: ")


class _Curves:
    """Beside TensorBoard's files, a row a step in `metrics.jsonl`, and the step's first response in `samples.jsonl`."""

    def __init__(self, args: Any) -> None:
        super().__init__(args)  # type: ignore[call-arg]
        self.folder, self.rewound = Path(args.logger.tensorboard_dir).parent, False

    def log_train(self, global_step: int, logs_dict: Mapping[str, Any]) -> None:
        if not self.rewound:
            # What came after the checkpoint that a run goes on from is done again.
            for name in (METRICS, SAMPLES):
                rewind(self.folder / name, global_step - 1)
            self.rewound = True
        text, reward = logs_dict["generated_samples"]
        self._check(global_step, logs_dict)
        numbers = {name: float(value) for name, value in logs_dict.items() if isinstance(value, int | float)}
        append(self.folder / METRICS, {"step": global_step, **numbers})
        append(self.folder / SAMPLES, {"step": global_step, "text": text, "reward": reward})
        super().log_train(global_step, {**logs_dict, "generated_samples": None})  # type: ignore[misc]

    def _check(self, step: int, numbers: Mapping[str, Any]) -> None:
        bad = [name for name, value in numbers.items() if isinstance(value, float) and not math.isfinite(value)]
        if bad:
            error = (
                f"step {step}: {', '.join(sorted(bad))} not finite, so nothing is learnt any more. Lower the learning "
                "rates, or look at the reward model; the last checkpoint is from before."
            )
            (self.folder / FAILURE).write_text(json.dumps({"error": error}), encoding="utf-8")
            raise TrainingError(error)


# In the process


def main(file: Path, parent: int) -> None:
    """Join the Ray and hand over to OpenRLHF."""
    launch = Launch(**json.loads(file.read_text(encoding="utf-8")))
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.environ.update(launch.environment)
    prepare_worker()

    # A submitted job's own variables, which may be among ours, are in `launch.environment` already; Ray refuses both.
    os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")

    import ray

    ray.init(
        address=launch.address,
        runtime_env={
            "env_vars": launch.environment,
            "worker_process_setup_hook": "ramo_ray.ppo.driver.prepare_worker",
        },
    )
    if cpu_rehearsal.wanted():
        print(cpu_rehearsal.ANNOUNCEMENT, flush=True)
    sys.argv = ["train_ppo_ray", *launch.flags]
    runpy.run_module("openrlhf.cli.train_ppo_ray", run_name="__main__", alter_sys=True)


def _end_with(parent: int) -> None:
    """End this process when the one that started it has gone, so that no run goes on that nobody follows."""
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
