"""Whether PPO learns: a reward that counts one letter, 20 steps of OpenRLHF's own PPO, without a GPU.

Run by `make bench-ppo`, which takes 5 minutes on 2 cores. Prints a table, and writes runs/bench/ppo.json and ppo.png.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import yaml
from scipy.stats import mannwhitneyu
from support import ROOT
from tiny import write_tiny_model
from workload import publish

from jobs.policy_inputs import HELD_PROMPTS
from ramo_ray.ppo.driver import METRICS
from ramo_ray.step_log import read_rows

LETTER = "e"
PROMPTS_A_STEP, BATCH, NEW_TOKENS = 64, 32, 24


@contextlib.contextmanager
def counting_endpoint(rewards: list[float]) -> Iterator[str]:
    """A server whose reward is how often a response has the letter; notes each in the order of asking."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            response = body["query"][0].removeprefix(body["prompts"][0])
            rewards.append(float(response.count(LETTER)))
            reply = json.dumps({"rewards": [rewards[-1]]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/get_reward"
    server.shutdown()
    server.server_close()


def learn(steps: int, learning_rate: float, figure: Path) -> dict[str, float]:
    """Align a policy with random weights; rewards of its first answers against those of its last step."""
    rewards: list[float] = []
    with tempfile.TemporaryDirectory(prefix="ramo-ppo-") as name, counting_endpoint(rewards) as url:
        folder = Path(name)
        write_tiny_model(folder / "policy")
        prompts = (json.dumps({"prompt": f"What is {n}?"}) + "\n" for n in range(steps * PROMPTS_A_STEP))
        (folder / "prompts.jsonl").write_text("".join(prompts))
        values = {
            "policy": str(folder / "policy"),
            "prompts": str(folder / "prompts.jsonl"),
            "output": str(folder / "run"),
            "rehearsal": True,
            "ray": {"object_store_gib": 0.3},
            "ppo": {
                "reward": {"endpoints": [url], "clip_deviations": 50},
                "rollout": {"prompts_per_step": PROMPTS_A_STEP, "max_new_tokens": NEW_TOKENS},
                "batch_size": BATCH,
                "micro_batch": 8,
                "epochs": 2,
                "max_length": 128,
                "kl_coefficient": 0.001,
                "policy_optimiser": {"learning_rate": learning_rate},
                "critic_optimiser": {"learning_rate": learning_rate},
                "save_every": 1000,
            },
        }
        (folder / "train_policy.yaml").write_text(yaml.safe_dump(values))
        started = time.perf_counter()
        command = [sys.executable, "-m", "jobs.train_policy", str(folder / "train_policy.yaml")]
        subprocess.run(command, cwd=ROOT, check=True)
        seconds = time.perf_counter() - started
        rows = read_rows(folder / "run" / METRICS)
    first, last = rewards[:HELD_PROMPTS], rewards[-PROMPTS_A_STEP:]
    draw([row["rollout/reward_mean"] for row in rows], float(np.mean(first)), figure)
    return {
        "steps": len(rows),
        "letters_untrained": float(np.mean(first)),
        "letters_last_step": float(np.mean(last)),
        "p_value": float(mannwhitneyu(last, first, alternative="greater").pvalue),
        "kl": rows[-1]["kl"],
        "seconds": seconds,
    }


def draw(means: list[float], untrained: float, file: Path) -> None:
    """The mean reward over the steps, beside that of the untrained policy."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(range(1, len(means) + 1), means, marker="o", label="PPO")
    axes.axhline(untrained, color="grey", linestyle="--", label="untrained")
    axes.set(xlabel="step", ylabel=f"letters “{LETTER}” in {NEW_TOKENS} tokens", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)


def main() -> None:
    """Measure, print, write."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--output", type=Path, default=ROOT / "runs" / "bench")
    arguments.add_argument("--steps", type=int, default=20)
    arguments.add_argument("--learning-rate", type=float, default=3e-3)
    chosen = arguments.parse_args()
    publish("ppo", learn(chosen.steps, chosen.learning_rate, chosen.output / "ppo.png"), chosen.output)


if __name__ == "__main__":
    main()
