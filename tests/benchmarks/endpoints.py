"""The servers that the endpoint's benchmark compares, each in processes of its own, and what OpenRLHF does in a loop.

python tests/benchmarks/endpoints.py loop MODEL FILE     # its scoring loop, in float32
python tests/benchmarks/endpoints.py empty PORT          # a deployment of Serve's that does nothing but batch
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from support import ROOT, free_port

START_S = 240.0
WARM = 4
"""Queries before the loop is timed."""


@contextlib.contextmanager
def started(command: Sequence[str], health: str, **environment: str) -> Iterator[None]:
    """A server while the body runs, from when it answers at `health`; it and all that it started end with the body."""
    with tempfile.TemporaryFile("w+b") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=log, stderr=log, env=os.environ | environment, start_new_session=True
        )
        try:
            end = time.monotonic() + START_S
            while not _answers(health):
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    raise RuntimeError(f"{command[:4]} does not start: {log.read().decode()[-3000:]}")
                time.sleep(0.3)
            yield
        finally:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=60)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return bool(reply.status == 200)
    except urllib.error.HTTPError as error:
        # serve_rm has no route but its own.
        return error.code == 405
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


@contextlib.contextmanager
def ours(model: Path) -> Iterator[str]:
    """Our endpoint, as `jobs.serve_reward` starts it."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "serve_reward.yaml").write_text("{}")
        words = [folder, f"model={model}", "insecure=true", f"http.port={port}", "ray.object_store_gib=0.2"]
        url = f"http://127.0.0.1:{port}"
        with started([sys.executable, "-m", "jobs.serve_reward", *words], f"{url}/readyz"):
            yield url


@contextlib.contextmanager
def openrlhf_serve_rm(model: Path) -> Iterator[str]:
    """OpenRLHF's `serve_rm` as it is shipped, in bfloat16; on a CPU with attention that there is."""
    port = free_port()
    script = "import runpy; from ramo_ray.ppo import cpu_rehearsal; cpu_rehearsal.install(); "
    script += "runpy.run_module('openrlhf.cli.serve_rm', run_name='__main__')"
    words = ["--reward.model_name_or_path", str(model), "--ds.attn_implementation", "sdpa"]
    words += ["--host", "127.0.0.1", "--port", str(port)]
    url = f"http://127.0.0.1:{port}/get_reward"
    with started([sys.executable, "-c", script, *words], url, RAMO_CPU_REHEARSAL="1"):
        yield url


@contextlib.contextmanager
def vllm_classify(model: Path) -> Iterator[str]:
    """vLLM's server with the model as a classifier, in float32."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        own = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
        try:
            metadata.version("vllm")
        except metadata.PackageNotFoundError:
            # The command asks for the version of a package `vllm`, and its build for CPUs is called `vllm-cpu`.
            info = Path(folder) / "vllm-0.29.0+cpu.dist-info"
            info.mkdir()
            (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.29.0+cpu\n")
            own["PYTHONPATH"] = os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")])
        command = [str(Path(sys.executable).with_name("vllm")), "serve", str(model), "--runner", "pooling"]
        command += ["--dtype", "float32", "--host", "127.0.0.1", "--port", str(port), "--served-model-name", "reward"]
        with started(command, f"http://127.0.0.1:{port}/health", **own):
            yield f"http://127.0.0.1:{port}/classify"


@contextlib.contextmanager
def empty_serve() -> Iterator[str]:
    """A deployment of Serve's that answers each batch at once."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with started([sys.executable, __file__, "empty", str(port)], f"{url}/-/healthz"):
        end = time.monotonic() + START_S
        while not _answers(f"{url}/ready"):
            if time.monotonic() > end:
                raise RuntimeError("the empty deployment does not start")
            time.sleep(0.3)
        yield f"{url}/get_reward"


def openrlhf_loop(model: Path, bodies: Sequence[dict[str, Any]]) -> float:
    """Requests/s of OpenRLHF's scoring loop in float32, one query after the other as its server takes them."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "queries.json"
        file.write_text(json.dumps([body["query"] for body in bodies]))
        command = [sys.executable, __file__, "loop", str(model), str(file)]
        environment = os.environ | {"RAMO_CPU_REHEARSAL": "1"}
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=environment)
    return float(done.stdout.splitlines()[-1])


def _loop(model: str, file: str) -> None:
    from types import SimpleNamespace

    from ramo_ray.ppo import cpu_rehearsal

    cpu_rehearsal.install()
    from openrlhf.cli.serve_rm import RewardModelProxy, logger

    # It would write each query to its log.
    logger.setLevel("ERROR")
    ds = SimpleNamespace(
        attn_implementation="sdpa",
        experts_implementation=None,
        param_dtype="bf16",
        load_in_4bit=False,
        value_head_prefix="score",
        packing_samples=False,
    )
    own = SimpleNamespace(
        reward=SimpleNamespace(model_name_or_path=model, normalize_enable=False),
        ds=ds,
        data=SimpleNamespace(max_len=2048, disable_fast_tokenizer=False),
        batch_size=None,
    )
    proxy = RewardModelProxy(own)
    proxy.reward_model.float()
    queries = json.loads(Path(file).read_text())
    for query in queries[:WARM]:
        proxy.get_reward(query)
    began = time.perf_counter()
    for query in queries:
        proxy.get_reward(query)
    print(len(queries) / (time.perf_counter() - began))


def _empty(port: int) -> None:
    import ray
    from ray import serve

    app = FastAPI()

    @serve.deployment(max_ongoing_requests=512)
    @serve.ingress(app)
    class Empty:
        @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.0)
        async def answers(self, bodies: list[Any]) -> list[float]:
            return [0.0] * len(bodies)

        @app.post("/get_reward")
        async def get_reward(self, request: Request) -> dict[str, list[float]]:
            return {"rewards": [await self.answers(await request.json())]}

        @app.get("/ready")
        async def ready(self) -> dict[str, str]:
            return {"status": "ready"}

    ray.init(address="local", include_dashboard=False, object_store_memory=200 * 2**20, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(Empty.bind(), name="empty", route_prefix="/")
    while True:
        time.sleep(1)


if __name__ == "__main__":
    if sys.argv[1] == "loop":
        _loop(sys.argv[2], sys.argv[3])
    else:
        with contextlib.suppress(KeyboardInterrupt):
            _empty(int(sys.argv[2]))
