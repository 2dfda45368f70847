"""PPO by OpenRLHF, for real and without a GPU: rollouts by vLLM, KL, advantages, weights to vLLM, saving."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from support import after, all_gone, manifest, run, stop, wait_until

from jobs.reporting import write_report
from ramo_ray.ppo.driver import LOG, METRICS, SAMPLES
from ramo_ray.step_log import read_rows

pytestmark = pytest.mark.slow
PROMPTS, STEPS = 16, 2
AWAY_S = 30.0


@pytest.fixture
def config(tmp_path: Path, tiny_model: Path, reward_model: Path) -> Path:
    """Two steps of eight prompts, with learning rates that move the policy; one prompt spells a control token."""
    rows = [{"prompt": f"What is {n} and {n + 1}?"} for n in range(PROMPTS)]
    rows += [{"prompt": "What is <|im_end|> for?"}, {"prompt": "far " * 100}, {"prompt": "What is 0 and 1?"}]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "policy": str(tiny_model),
        "reward_model": str(reward_model),
        "prompts": str(tmp_path / "prompts.jsonl"),
        "output": str(tmp_path / "run"),
        "max_bad_fraction": 0.5,
        "rehearsal": True,
        "ray": {"object_store_gib": 0.3},
        "ppo": {
            "placement": "spread",
            "rollout": {"prompts_per_step": PROMPTS // STEPS, "max_new_tokens": 16},
            "batch_size": PROMPTS // STEPS,
            "micro_batch": 4,
            "max_length": 128,
            "policy_optimiser": {"learning_rate": 1e-2, "warmup_ratio": 0},
            "critic_optimiser": {"learning_rate": 1e-3, "warmup_ratio": 0},
            "save_every": 1,
        },
    }
    file = tmp_path / "train_policy.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def command(config: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "jobs.train_policy", str(config), *words]


def check_steps(folder: Path) -> list[dict[str, Any]]:
    """The curves: each step once, all numbers finite, the first policy its own reference, vLLM as the policy is."""
    rows = read_rows(folder / METRICS)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert abs(rows[1]["kl"]) > 1e-3
    # bfloat16 on either side; without the update the second step would be as far off as the policy has moved.
    assert all(abs(row["vllm_kl"]) < 0.02 for row in rows)
    assert all(row["rollout/reward_std"] > 0 for row in rows)
    assert all(row["critic_loss"] > 0 for row in rows)
    return rows


def check_model(folder: Path, before: Path) -> None:
    """What was saved is a model that answers in its chat template, and differs from the one that it was."""
    import torch
    from transformers import AutoModelForCausalLM

    from ramo_ray.models.templates import load_tokenizer

    new, old = (AutoModelForCausalLM.from_pretrained(at, dtype=torch.float32) for at in (folder / "model", before))
    moved = [float((a - b).detach().abs().max()) for a, b in zip(new.parameters(), old.parameters(), strict=True)]
    assert all(np.isfinite(moved))
    assert max(moved) > 1e-3
    assert load_tokenizer(folder / "model").chat_template == load_tokenizer(before).chat_template
    assert "## Limitations" in (folder / "model/README.md").read_text()


def test_a_run_that_is_killed_goes_on_and_ends_with_another_policy(config: Path, tiny_model: Path) -> None:
    folder = config.parent / "run"
    saved = [folder / "checkpoints" / role / "latest" for role in ("_actor", "_critic")]
    # Its models and vLLM take a minute to start where nothing else runs, and DeepSpeed's optimiser is compiled once.
    status, _, had = stop(command(config), lambda: all(map(Path.exists, saved)), signal.SIGKILL, within=300)
    assert status == -signal.SIGKILL
    wait_until(lambda: all_gone(had), 60)

    other = run(command(config, "seed=5"))
    assert other.returncode == 2
    assert "seed was 0, is 5" in other.stderr
    done = run(command(config))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    check_steps(folder)
    check_model(folder, tiny_model)
    assert "goes on from step " in done.stdout
    found = manifest(folder)
    assert (found["status"], found["rehearsal"]) == ("finished", True)
    assert (found["counts"]["rows_out"], found["counts"]["quarantined"]) == (PROMPTS, 3)
    assert set(found["counts"]["reasons"]) == {
        "spells a control token of the policy's",
        "too long: … tokens, and max_length less max_new_tokens leaves …",
        "the same prompt again",
    }
    log = (folder / LOG).read_text()
    assert "Loading the checkpoint" in log
    assert "CPU rehearsal" in log
    samples = read_rows(folder / SAMPLES)
    assert [sample["step"] for sample in samples] == [1, 2]
    assert "What is" in samples[0]["text"]
    # Texts stay out of the log.
    assert "What is" not in log
    assert any((folder / "tensorboard").rglob("events.*"))
    assert not (folder / "checkpoints").exists()
    report = write_report(folder).read_text()
    assert "Curves of PPO: mean reward, KL from the first policy" in report
    assert "Step 2, reward" in report
    assert run(command(config)).returncode == 0


class Endpoint:
    """A server that scores with the real reward model, and can be away."""

    def __init__(self, model: Path, port: int = 0) -> None:
        from ramo_ray.models.reward import RewardModel
        from ramo_ray.models.templates import load_tokenizer

        self.model, self.tokenizer, self.lock = RewardModel(model), load_tokenizer(model), threading.Lock()
        self.asked: list[dict[str, Any]] = []
        self.server: ThreadingHTTPServer
        self.port = port
        self.open()

    def open(self) -> None:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                ids = [outer.tokenizer(text, add_special_tokens=False)["input_ids"] for text in body["query"]]
                with outer.lock:
                    outer.asked.append(body)
                    rewards = [float(score) for score in outer.model.score(ids)]
                reply = json.dumps({"rewards": rewards}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def leave_once(self, after_requests: int, seconds: float) -> None:
        """Go when so many have asked, and come back after some time."""
        wait_until(lambda: len(self.asked) >= after_requests, 300)
        self.close()
        wait_until(after(seconds), seconds + 10)
        self.open()


@pytest.fixture
def endpoint(reward_model: Path) -> Iterator[Endpoint]:
    server = Endpoint(reward_model)
    yield server
    with contextlib.suppress(OSError):
        server.close()


def test_an_endpoint_that_is_away_for_a_while_does_not_end_a_run(
    config: Path, tiny_model: Path, endpoint: Endpoint
) -> None:
    folder = config.parent / "run"
    # All first answers, and some of the first step's.
    gone = threading.Thread(target=endpoint.leave_once, args=(PROMPTS + 3, AWAY_S))
    gone.start()
    words = ["ppo.placement=colocate", f'ppo.reward.endpoints=["http://127.0.0.1:{endpoint.port}/get_reward"]']
    done = run(command(config, *words))
    gone.join()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = check_steps(folder)
    assert max(row["timing/generation"] for row in rows) > AWAY_S / 2
    check_model(folder, tiny_model)
    asked = endpoint.asked[PROMPTS:]
    assert len(asked) >= PROMPTS
    for body in asked:
        assert body["query"][0].startswith(body["prompts"][0])
        assert json.loads(body["labels"][0])[0]["role"] == "user"
    assert "the critic starts from the policy" in done.stdout


def test_an_endpoint_without_a_number_ends_the_run_by_name(config: Path, endpoint: Endpoint) -> None:
    score = endpoint.model.score

    def first_answers_only(ids: list[list[int]]) -> Any:
        return score(ids) if len(endpoint.asked) <= PROMPTS else [float("nan")] * len(ids)

    endpoint.model.score = first_answers_only  # type: ignore[method-assign,assignment]
    words = [f'ppo.reward.endpoints=["http://127.0.0.1:{endpoint.port}/get_reward"]']
    done = run(command(config, *words))
    assert done.returncode == 1
    assert "gives no reward: rewards holds a number that is NaN or infinite" in done.stderr
    assert "Traceback" not in done.stderr
    assert read_rows(config.parent / "run" / METRICS) == []
    assert manifest(config.parent / "run")["status"] == "failed"
