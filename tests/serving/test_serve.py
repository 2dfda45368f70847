"""The endpoint as it is started: Serve's proxy, its replica, who asks them, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import httpx
import psutil
import pytest
from browser import needs_chromium, opened
from served import TOKEN
from support import ROOT, all_gone, descendants, free_port, run, wait_until
from tiny import write_adapter

from jobs.serve_reward import ServeRewardConfig, main
from ramo_ray.client import EndpointError, RewardClient
from ramo_ray.config import load
from ramo_ray.core.rules import load_pool
from ramo_ray.errors import ConfigError, RamoError
from ramo_ray.models.reward import RewardModel
from ramo_ray.models.templates import load_tokenizer, reward_token_ids
from ramo_ray.ppo import reward_function
from ramo_ray.serving.app import build_app

pytestmark = pytest.mark.slow
WORDS = "how do I lock a bicycle when it rains and the city is full of people who look".split()  # noqa: SIM905

RULES = [
    "Accept the response that is polite.",
    "Accept the response that is short.",
    "Accept the response that gives an example.",
]


class Served(NamedTuple):
    """An endpoint that is up."""

    url: str
    tokens: Path
    model: Path
    process: subprocess.Popen[str]


@pytest.fixture(scope="module")
def explaining(long_context_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What makes an endpoint explain: three rules, an adapter of them and a judge."""
    folder = tmp_path_factory.mktemp("explaining")
    (folder / "rules.yaml").write_text(json.dumps({"rules": RULES}))
    write_adapter(long_context_model, folder / "adapter", load_pool(str(folder / "rules.yaml")).ids)
    words = [f"adapter_model={folder / 'adapter'}", f"rules={folder / 'rules.yaml'}", "adapter.max_length=500"]
    judge = [f"judge.model={long_context_model}", "judge.actors.num_cpus=0.5", "judge.threads=1"]
    return ["explain=true", "selection.r=2", *words, *judge]


@pytest.fixture(scope="module")
def served(reward_model: Path, explaining: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`python -m jobs.serve_reward`, guarded by a token; ended by Ctrl-C, and nothing of it is left."""
    folder, port = tmp_path_factory.mktemp("served"), free_port()
    tokens = folder / "tokens"
    tokens.write_text(TOKEN + "\n")
    (folder / "serve_reward.yaml").write_text("{}")
    words = [f"model={reward_model}", f"tokens_file={tokens}", f"http.port={port}", "threads=1"]
    words += ["ray.num_cpus=2", "ray.object_store_gib=0.2", "limits.body_seconds=2", "limits.queue_tokens=200000"]
    words += [*explaining, "replicas.num_cpus=0.5"]
    command = [sys.executable, "-m", "jobs.serve_reward", str(folder), *words]
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # As where a shell runs the tests in its background; processes inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with (folder / "told").open("w+") as told:
        process = subprocess.Popen(command, cwd=ROOT, stdout=told, stderr=subprocess.STDOUT, text=True)
        try:
            own = Served(f"http://127.0.0.1:{port}", tokens, reward_model, process)
            wait_until(lambda: "ready: " in (folder / "told").read_text() or process.poll() is not None)
            assert process.poll() is None, (folder / "told").read_text()
            yield own
            had = descendants(psutil.Process(process.pid))
            # What is under way is answered first.
            with ThreadPoolExecutor(1) as pool, RewardClient(own.url, TOKEN, patience_s=1) as client:
                last = pool.submit(client.rewards, conversations(200))
                wait_until(lambda: waiting_tokens(own) > 0 or last.done())
                process.send_signal(signal.SIGINT)
                assert len(last.result()) == 200
            assert process.wait(timeout=60) == 0
            wait_until(lambda: all_gone(had), 30)
            assert "Traceback" not in (folder / "told").read_text()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def waiting_tokens(served: Served) -> float:
    """Tokens that wait at the replica."""
    with httpx.Client() as client:
        told = client.get(f"{served.url}/metrics", headers={"authorization": f"Bearer {TOKEN}"}).text
    found = re.search(r"^ramo_reward_waiting_tokens (\S+)", told, re.MULTILINE)
    return float(found[1]) if found else 0.0


def conversations(count: int) -> list[dict[str, str]]:
    random = Random(0)
    return [
        {name: " ".join(random.choices(WORDS, k=random.randint(1, 40))) for name in ("prompt", "response")}
        for _ in range(count)
    ]


def expected(model: Path, asked: list[dict[str, str]]) -> list[float]:
    tokenizer, own = load_tokenizer(model), RewardModel(model)
    rows = [reward_token_ids(tokenizer, [{"role": "user", "content": one["prompt"]}], one["response"]) for one in asked]
    return [float(own.score([row])[0]) for row in rows]


def test_rewards_over_http_are_the_models_own_whatever_is_asked_beside_them(served: Served) -> None:
    asked = conversations(120)
    own = expected(served.model, asked)
    with RewardClient(served.url, TOKEN) as client, ThreadPoolExecutor(16) as pool:
        alone = list(pool.map(lambda one: client.rewards([one])[0], asked))
        together = client.rewards(asked)
        compared = client.compare(asked[0]["prompt"], asked[0]["response"], asked[1]["response"])
    assert alone == pytest.approx(own, abs=1e-4)
    assert together == pytest.approx(own, abs=1e-4)
    assert compared.probability_a == pytest.approx(1 / (1 + math.exp(compared.reward_b - compared.reward_a)))
    for token, status in ((None, "401"), (TOKEN + "x", "403")):
        with RewardClient(served.url, token) as stranger, pytest.raises(EndpointError, match=status):
            stranger.rewards(asked[:1])


def remote(one: dict[str, str]) -> tuple[str, str, str]:
    """A query, its prompt and its label, as OpenRLHF sends those of a policy with another template."""
    prompt = f"<s>[INST] {one['prompt']} [/INST] "
    return f"{prompt}{one['response']}</s>", prompt, json.dumps([{"role": "user", "content": one["prompt"]}])


def test_openrlhfs_own_client_gets_its_rewards(served: Served) -> None:
    from openrlhf.utils.agent import SingleTurnAgentExecutor

    asked = conversations(6)
    # It can be given an address and no header, so the token is the address's password.
    url = served.url.replace("http://", f"http://anyone:{TOKEN}@") + "/get_reward"
    executor = SingleTurnAgentExecutor(url)
    queries, prompts, labels = (list(side) for side in zip(*map(remote, asked), strict=True))
    (found,) = asyncio.run(executor._fetch_rewards_via_http(queries, prompts, labels))
    assert found["rewards"] == pytest.approx(expected(served.model, asked), abs=1e-4)


def test_our_reward_function_gets_its_rewards(served: Served, tmp_path: Path) -> None:
    asked = conversations(3)
    url = served.url.replace("http://", f"http://anyone:{TOKEN}@") + "/get_reward"
    environment = {
        reward_function.URLS: url,
        reward_function.PATIENCE: "10",
        reward_function.TIMEOUT: "10",
        reward_function.FAILURE: str(tmp_path / "failure.json"),
    }
    client = reward_function.RewardClient(environment)
    try:
        found = [client.ask(*([part] for part in remote(one)))["rewards"] for one in asked]
    finally:
        client.close()
    assert [float(one) for one in found] == pytest.approx(expected(served.model, asked), abs=1e-4)


def test_a_whole_file_is_rewarded_from_the_command_line(served: Served, tmp_path: Path) -> None:
    asked = conversations(50)
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in asked))
    command = [sys.executable, "-m", "ramo_ray.cli", "reward", served.url, str(file)]
    done = run(command, RAMO_REWARD_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "pairs.rewards.jsonl").read_text().splitlines()]
    found = [row["reward"] for row in sorted(rows, key=lambda row: row["line"])]
    assert found == pytest.approx(expected(served.model, asked), abs=1e-4)


def test_a_token_is_changed_while_it_runs(served: Served) -> None:
    fresh = "another-that-nobody-guesses"
    served.tokens.write_text(f"{TOKEN}\n{fresh}\n")

    def known() -> bool:
        with httpx.Client() as client:
            asked = client.get(f"{served.url}/metrics", headers={"authorization": f"Bearer {fresh}"})
        return asked.status_code == 200

    wait_until(known, 10)


def test_hostile_clients_harm_nobody_else(served: Served) -> None:
    address = served.url.removeprefix("http://").split(":")
    fine = conversations(1)
    own = expected(served.model, fine)
    slow = [socket.create_connection((address[0], int(address[1]))) for _ in range(20)]
    head = f"POST /reward HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n"
    for one in slow[:10]:
        one.sendall((head + "Content-Length: 100\r\n\r\n{").encode())
    for one in slow[10:]:
        # A head that never ends.
        one.sendall(head.encode())
    stop = threading.Event()

    def flood() -> list[int]:
        statuses = []
        with httpx.Client(timeout=60) as client:
            body = {"items": conversations(200)}
            while not stop.is_set():
                asked = client.post(f"{served.url}/reward", json=body, headers={"authorization": f"Bearer {TOKEN}"})
                statuses.append(asked.status_code)
        return statuses

    with ThreadPoolExecutor(3) as pool:
        flooding = [pool.submit(flood) for _ in range(3)]
        try:
            with RewardClient(served.url, TOKEN) as client:
                assert [client.rewards(fine)[0] for _ in range(10)] == pytest.approx(own * 10, abs=1e-4)
        finally:
            stop.set()
        assert {status for one in flooding for status in one.result()} <= {200, 429}
    slow[0].settimeout(20)
    assert b"408" in slow[0].recv(4096)
    for one in slow:
        one.close()


async def compare_on_the_page(served: Served, token: str) -> dict[str, Any]:
    """What a person sees who pastes three texts, and is told of on the console."""
    texts = {"prompt": "How do I lock a bicycle?", "response-a": "Through the <b>frame</b>.", "response-b": "Do not."}
    async with opened(served.url + "/") as tab:
        for name, text in {**texts, "token": token}.items():
            await tab.run(f"document.getElementById({name!r}).value = {text!r}")
        await tab.run("document.getElementById('go').click()")
        await tab.until(
            "!document.getElementById('go').disabled && document.querySelector('#fault:not([hidden]), #rules td')"
        )
        shown = await tab.run("document.body.innerText")
        loaded = await tab.run("performance.getEntriesByType('resource').map((one) => one.name)")
        rules = await tab.run("[...document.querySelectorAll('#rules tr')].map((row) => row.cells[0].textContent)")
        # Its policy forbids all else, which the page finds out by trying: of a server that is there.
        with listening() as (port, reached):
            script = f"fetch('http://127.0.0.1:{port}/', {{mode: 'no-cors'}}).then(() => 'reached', () => 'refused')"
            foreign = [await tab.run(script), len(reached)]
        bold = await tab.run("document.querySelectorAll('b').length")
        return {"shown": shown, "loaded": loaded, "rules": rules, "foreign": foreign, "bold": bold, "told": tab.told}


@contextlib.contextmanager
def listening() -> Iterator[tuple[int, list[str]]]:
    """A server that notes who reaches it."""
    reached: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            reached.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port, reached
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@needs_chromium
def test_a_person_compares_two_responses_on_the_page(served: Served) -> None:
    seen = asyncio.run(compare_on_the_page(served, TOKEN))
    with RewardClient(served.url, TOKEN) as client:
        own = client.compare("How do I lock a bicycle?", "Through the <b>frame</b>.", "Do not.")
    better = "A" if own.probability_a >= 0.5 else "B"
    share = max(own.probability_a, 1 - own.probability_a)
    assert f"{better} is preferred, with probability {share:.3f}" in seen["shown"]
    assert f"A: reward {own.reward_a:.3f}".replace("-", "\u2212") in seen["shown"]
    assert len(seen["rules"]) == 2
    assert set(seen["rules"]) < set(RULES)
    assert {url.removeprefix(served.url) for url in seen["loaded"]} == {"/compare", "/explain"}
    assert seen["foreign"] == ["refused", 0]
    assert any("Content Security Policy" in line for line in seen["told"])
    assert seen["bold"] == 0

    refused = asyncio.run(compare_on_the_page(served, "not-the-token"))
    assert "this token is not known here" in refused["shown"]
    assert refused["rules"] == []


def ask(served: Served, method: str, path: str, **more: Any) -> httpx.Response:
    with httpx.Client(timeout=30) as client:
        return client.request(method, served.url + path, **more)


def test_bodies_that_are_too_long_or_torn_are_refused(served: Served) -> None:
    known = {"authorization": f"Bearer {TOKEN}"}
    huge = ask(served, "POST", "/reward", content=b" " * 10_000_000, headers=known)
    assert huge.status_code == 413
    assert "the body exceeds" in huge.json()["error"]
    torn = ask(served, "POST", "/reward", content=b"{", headers=known | {"content-type": "application/json"})
    assert torn.status_code == 400
    assert torn.headers["x-request-id"]
    assert ask(served, "GET", "/healthz").json() == {"status": "ok"}
    assert ask(served, "GET", "/nowhere", headers=known).status_code == 404


def test_what_cannot_be_served_is_refused_before_anything_starts(
    reward_model: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*_: Any) -> None:
        raise AssertionError("a Ray is started, or joined")

    monkeypatch.setattr("jobs.serve_reward.ray_session", started)
    for words, sentence in (
        ([f"model={reward_model}"], "nobody could ask: name a file of bearer tokens"),
        ([f"model={tiny_model}", "insecure=true"], "is a language model, and a reward model has one output"),
        ([f"model={reward_model}", "tokens_file=/nowhere/tokens"], "cannot be read: No such file"),
        (["model=/nowhere", "insecure=true"], "`model`: /nowhere does not exist"),
        ([f"model={reward_model}", "insecure=true", "explain=true"], "`adapter_model` is missing"),
        ([f"model={reward_model}", "insecure=true", "http.ssl_keyfile=key"], "belong together"),
    ):
        with pytest.raises(RamoError, match=re.escape(sentence)):
            main(load(ServeRewardConfig, ROOT / "jobs" / "configs" / "laptop", words))


def test_a_serve_that_is_there_already_is_refused_and_left_as_it_is(
    reward_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def touched(*_: Any, **__: Any) -> None:
        raise AssertionError("another's Serve is touched")

    monkeypatch.setattr("jobs.serve_reward.ray_session", lambda _: contextlib.nullcontext())
    monkeypatch.setattr("jobs.serve_reward._running", lambda: True)
    for name in ("start", "run", "delete", "status"):
        monkeypatch.setattr(f"ray.serve.{name}", touched)
    words = [f"model={reward_model}", "insecure=true"]
    with pytest.raises(ConfigError, match="has a Serve already"):
        main(load(ServeRewardConfig, ROOT / "jobs" / "configs" / "laptop", words))


def test_arguments_of_the_application_are_checked(reward_model: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)replicas\.maxx.*max"):
        build_app({"model": str(reward_model), "insecure": True, "replicas": {"maxx": 2}})
    with pytest.raises(ConfigError, match="nobody could ask"):
        build_app({"model": str(reward_model)})


def test_a_trio_is_explained(served: Served) -> None:
    known = {"authorization": f"Bearer {TOKEN}"}
    trio = {"prompt": "How do I lock a bicycle?", "response_a": "Through the frame.", "response_b": "Do not."}
    asked = ask(served, "POST", "/explain", json=trio, headers=known)
    assert asked.status_code == 200, asked.text
    found = asked.json()
    assert len(found["rules"]) == 2
    assert found["rules"][0]["probability"] >= found["rules"][1]["probability"]
    assert {rule["text"] for rule in found["rules"]} < set(RULES)
    for side in ("a", "b"):
        scores = [rule[f"score_{side}"] for rule in found["rules"]]
        assert all(-1 <= score <= 1 for score in scores)
        assert found[f"phi_{side}"] == pytest.approx(sum(scores) / 2)
    assert found["margin"] == pytest.approx(found["phi_a"] - found["phi_b"])
    assert found["chosen_is"] == ("a" if found["margin"] > 0 else "b")
    swapped = trio | {"response_a": trio["response_b"], "response_b": trio["response_a"]}
    assert ask(served, "POST", "/explain", json=swapped, headers=known).status_code == 200
    too_long = ask(served, "POST", "/explain", json=trio | {"response_a": "x" * 450}, headers=known)
    assert too_long.status_code == 422
    assert "the adapter reads 500" in too_long.json()["error"]
