"""Every route to a real `vllm serve`, against scoring in this process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import numpy as np
import psutil
import pytest
from support import all_gone

from ramo_ray.engines.base import MissingAnswersError
from ramo_ray.engines.openai_engine import OpenAIEngine
from ramo_ray.engines.transformers_engine import TransformersEngine
from ramo_ray.errors import ServerError
from ramo_ray.models.templates import encode_chat, encode_text, load_tokenizer
from ramo_ray.settings import EngineSettings, OpenAISettings, SamplingSettings

pytestmark = pytest.mark.slow

NAME, KEY = "served-judge", "sk-of-the-tests"
CONTEXT = 400
TOLERANCE = 2e-3
OPTIONS = f"--dtype float32 --enforce-eager --block-size 32 --max-model-len {CONTEXT} --enable-prompt-tokens-details"
TEXTS = ("Is it kind?", "Is it kind or is it short? é", "Is it kind or is it short?", "Why", "12345 " * 20)


def _environment(folder: Path) -> dict[str, str]:
    own = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "VLLM_API_KEY": KEY,
    }
    try:
        metadata.version("vllm")
    except metadata.PackageNotFoundError:
        # The command asks for the version of a package `vllm`, and its build for CPUs is called `vllm-cpu`.
        info = folder / "vllm-0.29.0+cpu.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.29.0+cpu\n")
        own["PYTHONPATH"] = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    return os.environ | own


def _is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(url.removesuffix("/v1") + "/health", timeout=2) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def _serve(model: Path, folder: Path, log: IO[bytes]) -> tuple[subprocess.Popen[bytes], str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("vllm")), "serve", str(model), *OPTIONS.split()]
    command += ["--served-model-name", NAME, "--host", "127.0.0.1", "--port", str(port)]
    environment = _environment(folder)
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    return process, f"http://127.0.0.1:{port}/v1"


@pytest.fixture(scope="module")
def url(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("serve")
    with (folder / "log").open("wb") as log:
        process, address = _serve(tiny_model, folder, log)
        try:
            end = time.monotonic() + 150
            while not _is_up(address):
                assert process.poll() is None, (folder / "log").read_text()[-2000:]
                assert time.monotonic() < end, "the server does not start"
                time.sleep(0.3)
            yield address
        finally:
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            os.killpg(process.pid, signal.SIGTERM)
            psutil.wait_procs(family, timeout=15)
            if not all_gone(family):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert all_gone(alive)


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESTS_KEY", KEY)


Start = Callable[..., OpenAIEngine]


@pytest.fixture
def start(url: str, tiny_model: Path) -> Iterator[Start]:
    """Start engines on the server, which end with the test."""
    started: list[OpenAIEngine] = []

    def make(folder: Path = tiny_model, **settings: Any) -> OpenAIEngine:
        base = {"base_url": url, "model": NAME, "api_key_env": "TESTS_KEY", "input_price": 1.0}
        whole = EngineSettings(engine="openai", model=str(folder), openai=OpenAISettings(**base | settings))
        started.append(OpenAIEngine(whole, folder))
        return started[-1]

    yield make
    for engine in started:
        engine.close()


@pytest.fixture(scope="module")
def here(tiny_model: Path) -> TransformersEngine:
    return TransformersEngine(EngineSettings(), tiny_model)


def test_token_ids_give_what_scoring_here_gives(start: Start, tiny_model: Path, here: TransformersEngine) -> None:
    tokenizer = load_tokenizer(tiny_model)
    generator = np.random.default_rng(0)
    trunk = generator.integers(3, 250, size=100).tolist()
    tails = [generator.integers(3, 250, size=size).tolist() for size in (1, 7, 30, 120, 298)]
    prompts = [encode_text(tokenizer, text) for text in TEXTS] + [[*trunk, *tail] for tail in tails] + [[5]]
    labels = [59, 48, 43]
    expected = here.label_logprobs(prompts, labels)
    # Were all rows alike, an answer in the wrong place would go unseen.
    assert np.ptp(expected, axis=0).min() > 10 * TOLERANCE

    for route, requests in (("auto", 1), ("generative_scoring", 3)):
        served = start(route=route)
        before = served.usage
        np.testing.assert_allclose(served.label_logprobs(prompts, labels), expected, atol=TOLERANCE)
        used = served.usage.since(before)
        assert (used.requests, used.retries) == (requests * len(prompts), 0)
        assert used.prompt_tokens == requests * sum(map(len, prompts))
        assert (served.context_length, served.applies_chat_template) == (CONTEXT - 1, False)
        assert served.route.name == {"auto": "completions"}.get(route, route)
        assert used.cost == pytest.approx(used.prompt_tokens / 1e6)
        if route == "auto":
            # Three whole blocks of 32 in the trunk of 100, at least where it was not asked in the same moment.
            assert used.cached_tokens % 32 == 0
            assert used.cached_tokens > 0


def test_chat_gives_what_scoring_here_gives(start: Start, tiny_model: Path, here: TransformersEngine) -> None:
    tokenizer, served = load_tokenizer(tiny_model), start(route="chat")
    readable = [number for number in range(3, 259) if tokenizer.decode([number]).isascii()]
    assert served.applies_chat_template
    for text in TEXTS:
        whole = encode_chat(tokenizer, [{"role": "user", "content": text}], add_generation_prompt=True)
        (everything,) = here.label_logprobs([whole], range(here.vocabulary_size))
        ranks = {label: int((everything > everything[label]).sum()) for label in readable}
        told = sorted((label for label in readable if ranks[label] < 18), key=ranks.__getitem__)
        # The last of all, as the server's numbers may rank neighbours otherwise.
        hidden = max(readable, key=ranks.__getitem__)
        assert ranks[hidden] > 22

        own = encode_text(tokenizer, text)
        np.testing.assert_allclose(served.label_logprobs([own], told), [everything[told]], atol=TOLERANCE)
        with pytest.raises(MissingAnswersError, match=r"is not among the .* likeliest tokens"):
            served.label_logprobs([own], [told[0], hidden])


def test_writing_equals_writing_here(start: Start, tiny_model: Path, here: TransformersEngine) -> None:
    served = start()
    prompts = [encode_text(load_tokenizer(tiny_model), text) for text in TEXTS]
    greedy = SamplingSettings(temperature=0, max_tokens=12)
    assert served.generate(prompts, greedy) == here.generate(prompts, greedy)

    drawn = SamplingSettings(temperature=1.0, max_tokens=6, seed=3)
    together = served.generate(prompts, drawn)
    assert [served.generate([prompt], drawn)[0] for prompt in prompts] == together


def test_what_a_server_does_not_take_is_said_at_the_start(
    start: Start, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ServerError, match=f"no such model; it serves {NAME}"):
        start(model="other")
    monkeypatch.setenv("TESTS_KEY", "sk-wrong")
    with pytest.raises(ServerError, match=r"HTTP 401.*TESTS_KEY.*not accepted"):
        start()
    monkeypatch.setenv("TESTS_KEY", KEY)
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    vocabulary = json.loads(file.read_text())
    words = vocabulary["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    file.write_text(json.dumps(vocabulary))
    with pytest.raises(ServerError, match="tokenizer is not that of"):
        start(tmp_path)
