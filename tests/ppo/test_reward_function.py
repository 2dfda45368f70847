"""Rewards asked of a real HTTP server: whose reward, how patiently, and how a run ends that cannot have one."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from ramo_ray.errors import ConfigError
from ramo_ray.ppo import reward_function
from ramo_ray.ppo.reward_function import RewardClient, RewardStopped, Settings, settings_from

TEXTS = (["SECRET query"], ["SECRET prompt"], ["SECRET label"])
Answer = tuple[int, bytes]


def given(reward: float) -> Answer:
    """A sound reply."""
    return 200, json.dumps({"rewards": [reward]}).encode()


class Endpoint:
    """Gives `answers` in order, the last for ever; a function is asked with the request's body.

    Attributes:
        asked: the bodies that came. keys: their Authorization headers. connections: how many were opened.
    """

    def __init__(self, *answers: Answer | Callable[[Any], Answer], listening: bool = True) -> None:
        self.answers = list(answers)
        self.asked, self.keys = list[Any](), list[str | None]()
        self.connections = 0
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self), bind_and_activate=False)
        self.server.server_bind()
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.address = f"127.0.0.1:{self.server.server_port}"
        self.url = f"http://{self.address}/reward"
        if listening:
            self.listen()

    def listen(self) -> None:
        """Until then its port refuses connections."""
        self.server.server_activate()
        self.thread.start()

    def answer(self, body: Any) -> Answer:
        """The next answer."""
        with self.lock:
            self.asked.append(body)
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return answer(body) if callable(answer) else answer

    def close(self) -> None:
        """Stop listening."""
        if self.thread.ident is not None:
            self.server.shutdown()
            self.thread.join()
        self.server.server_close()


def _handler(endpoint: Endpoint) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self) -> None:
            super().setup()
            with endpoint.lock:
                endpoint.connections += 1

        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            endpoint.keys.append(self.headers["authorization"])
            status, content = endpoint.answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            # Who asked may have gone.
            with suppress(ConnectionError):
                self.wfile.write(content)

    return Handler


class Time:
    """Passes only in sleep; `during` is called in each."""

    def __init__(self, during: Callable[[], None] = lambda: None) -> None:
        self.now, self.sleeps, self.during = 1000.0, list[float](), during

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds
        self.during()


Serve = Callable[..., Endpoint]
Connect = Callable[..., RewardClient]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts endpoints, which end with the test."""
    endpoints = list[Endpoint]()

    def started(*answers: Answer | Callable[[Any], Answer], **options: Any) -> Endpoint:
        endpoints.append(Endpoint(*answers, **options))
        return endpoints[-1]

    yield started
    for endpoint in endpoints:
        endpoint.close()


@pytest.fixture
def connect(serve: Serve, tmp_path: Path) -> Iterator[Connect]:
    """Makes clients of addresses, which close before the endpoints do. Their failure file is failure.json."""
    del serve
    clients = list[RewardClient]()

    def made(*urls: str, patience: float = 60, timeout: float = 60, passing: Time | None = None) -> RewardClient:
        environment = {
            "RAMO_REWARD_URLS": ",".join(urls),
            "RAMO_REWARD_PATIENCE_S": str(patience),
            "RAMO_REWARD_TIMEOUT_S": str(timeout),
            "RAMO_REWARD_FAILURE": str(tmp_path / "failure.json"),
        }
        own = {} if passing is None else {"clock": passing.clock, "sleep": passing.sleep}
        clients.append(RewardClient(environment, **own))
        return clients[-1]

    yield made
    for client in clients:
        client.close()


def written(folder: Path) -> str:
    """The failure file's reason; nothing else may lie beside it."""
    (path,) = folder.iterdir()
    assert path.name == "failure.json"
    failure = json.loads(path.read_text())
    assert list(failure) == ["error"]
    return str(failure["error"])


def test_a_reward_is_asked_for_and_given_back(serve: Serve, connect: Connect, tmp_path: Path) -> None:
    full = {"rewards": [1.5], "scores": [-2], "extra_logs": {"margin": [0.25]}}
    endpoint = serve(given(-7), (201, json.dumps(full).encode()), (200, b'{"rewards":[0],"scores":null}'))
    client = connect(endpoint.url)
    assert client.ask(*TEXTS) == {"rewards": -7.0, "scores": -7.0, "extra_logs": {}}
    assert client.ask(["q \ud800"], ["p"], ["l"]) == {"rewards": 1.5, "scores": -2.0, "extra_logs": {"margin": 0.25}}
    integer = client.ask(*TEXTS)
    assert [type(integer[name]) for name in ("rewards", "scores")] == [float, float]
    assert endpoint.asked[0] == dict(zip(("query", "prompts", "labels"), TEXTS, strict=True))
    assert endpoint.asked[1] == {"query": ["q \ud800"], "prompts": ["p"], "labels": ["l"]}
    assert endpoint.connections == 1
    assert list(tmp_path.iterdir()) == []


def test_calls_take_the_endpoints_in_turn(serve: Serve, connect: Connect) -> None:
    endpoints = [serve(given(n)) for n in range(3)]
    client = connect(*(endpoint.url for endpoint in endpoints))
    assert [client.ask(*TEXTS)["rewards"] for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize("status", [408, 425, 429, 500, 503, 504])
def test_a_busy_endpoint_is_asked_again(serve: Serve, connect: Connect, status: int) -> None:
    passing, endpoint = Time(), serve((status, b""), (status, b""), given(3))
    assert connect(endpoint.url, passing=passing).ask(*TEXTS)["rewards"] == 3
    assert len(endpoint.asked) == 3
    assert 0.1 <= passing.sleeps[0] <= 0.2 <= passing.sleeps[1] <= 0.4


def test_an_endpoint_that_comes_up_is_asked_again(serve: Serve, connect: Connect) -> None:
    endpoint = serve(given(4), listening=False)
    passing = Time(lambda: endpoint.listen() if len(passing.sleeps) == 2 else None)
    assert connect(endpoint.url, passing=passing).ask(*TEXTS)["rewards"] == 4
    assert len(passing.sleeps) == 2


def test_a_try_that_failed_goes_to_the_next_endpoint(serve: Serve, connect: Connect) -> None:
    down, busy, well = serve(given(0), listening=False), serve((503, b"")), serve(given(5))
    client = connect(down.url, busy.url, well.url, passing=Time())
    assert [client.ask(*TEXTS)["rewards"] for _ in range(3)] == [5, 5, 5]
    assert (len(down.asked), len(busy.asked), len(well.asked)) == (0, 2, 3)


def test_patience_ends_with_the_reason_written_down(serve: Serve, connect: Connect, tmp_path: Path) -> None:
    passing, endpoint = Time(), serve((503, b"SECRET"))
    client = connect(endpoint.url, patience=60, passing=passing)
    with pytest.raises(RewardStopped) as stopped:
        client.ask(*TEXTS)
    assert 55 <= passing.now - 1000 < 60
    assert max(passing.sleeps) <= 5
    assert 11 <= len(passing.sleeps) + 1 == len(endpoint.asked) <= 28
    reason = str(stopped.value)
    assert written(tmp_path) == reason == client.stopped
    assert f"tries: {len(endpoint.asked)}, the last at {endpoint.url}: HTTP 503)." in reason
    assert "RAMO_REWARD_PATIENCE_S" in reason
    assert "SECRET" not in reason


@pytest.fixture
def silence() -> Iterator[Callable[[Any], Answer]]:
    """What an endpoint says that hangs until the test is over."""
    over = threading.Event()

    def hang(_: Any) -> Answer:
        over.wait(20)
        return given(0)

    yield hang
    over.set()


def test_a_request_that_hangs_is_made_again(serve: Serve, connect: Connect, silence: Callable[[Any], Answer]) -> None:
    endpoint = serve(silence, given(6))
    assert connect(endpoint.url, timeout=0.2, passing=Time()).ask(*TEXTS)["rewards"] == 6


def test_a_request_ends_with_patience(serve: Serve, connect: Connect, silence: Callable[[Any], Answer]) -> None:
    client, start = connect(serve(silence).url, patience=0.2, timeout=60), time.monotonic()
    with pytest.raises(RewardStopped, match=r"no answer \(\w+Timeout\)"):
        client.ask(*TEXTS)
    assert time.monotonic() - start < 10


def test_a_sleep_that_overruns_patience_is_no_defect(serve: Serve, connect: Connect) -> None:
    passing = Time(lambda: setattr(passing, "now", passing.now + 100))
    with pytest.raises(RewardStopped, match=r"tries: 2\b"):
        connect(serve((503, b"")).url, passing=passing).ask(*TEXTS)


GARBAGE = {
    "not JSON": (b"SECRET", "6 bytes is no JSON"),
    "empty": (b"", "0 bytes is no JSON"),
    "not text": (b"\xff\xfe\x00", "no JSON"),
    "too deep": (b"[" * 100_000, "no JSON"),
    "a list": (b"[1.0]", 'no "rewards"'),
    "no rewards": (b'{"SECRET": [1.0]}', 'no "rewards"'),
    "no list": (b'{"rewards": 1.0}', "rewards is a float"),
    "null": (b'{"rewards": null}', "rewards is a NoneType"),
    "none": (b'{"rewards": []}', "rewards holds 0 values"),
    "two": (b'{"rewards": [1.0, 2.0]}', "rewards holds 2 values"),
    "nested": (b'{"rewards": [[1.0]]}', "rewards holds a list, not a number"),
    "text": (b'{"rewards": ["SECRET"]}', "rewards holds a str"),
    "truth": (b'{"rewards": [true]}', "rewards holds a bool"),
    "NaN": (b'{"rewards": [NaN]}', "rewards holds a number that is NaN or infinite"),
    "infinite": (b'{"rewards": [-Infinity]}', "NaN or infinite"),
    "a huge float": (b'{"rewards": [1e999]}', "NaN or infinite"),
    "a huge integer": (b'{"rewards": [%s]}' % (b"9" * 5000), "NaN or infinite"),
    "scores": (b'{"rewards": [1.0], "scores": [NaN]}', "scores holds a number that is NaN"),
    "logs no object": (b'{"rewards": [1.0], "extra_logs": [1.0]}', "extra_logs is a list"),
    "logs": (b'{"rewards": [1.0], "extra_logs": {"SECRET": ["SECRET"]}}', "extra_logs holds a str"),
}
REFUSALS = {f"HTTP {status}": ((status, b"SECRET"), f"HTTP {status}") for status in (400, 401, 404, 422, 301)}
HOPELESS = REFUSALS | {name: ((200, content), what) for name, (content, what) in GARBAGE.items()}


@pytest.mark.parametrize(("answer", "what"), HOPELESS.values(), ids=HOPELESS)
def test_what_waiting_cannot_mend_ends_the_run_at_once(
    serve: Serve, connect: Connect, tmp_path: Path, caplog: pytest.LogCaptureFixture, answer: Answer, what: str
) -> None:
    caplog.set_level("INFO")
    passing, endpoint = Time(), serve(answer)
    client = connect(f"http://user:SECRET@{endpoint.address}/reward?key=SECRET", passing=passing)
    reasons = set()
    for _ in range(3):
        with pytest.raises(RewardStopped) as stopped:
            client.ask(*TEXTS)
        reasons.add(str(stopped.value))
    assert reasons == {written(tmp_path)}
    (reason,) = reasons
    assert what in reason
    assert endpoint.url in reason
    assert "SECRET" not in reason + caplog.text
    assert (len(endpoint.asked), passing.sleeps) == (1, [])
    assert endpoint.keys == ["Basic dXNlcjpTRUNSRVQ="]


def test_a_call_that_waits_ends_when_another_gives_up(serve: Serve, connect: Connect, tmp_path: Path) -> None:
    endpoint = serve((503, b""), (400, b""), given(0))

    def another_call() -> None:
        with pytest.raises(RewardStopped):
            client.ask(*TEXTS)

    client = connect(endpoint.url, passing=Time(another_call))
    with pytest.raises(RewardStopped, match="HTTP 400"):
        client.ask(*TEXTS)
    assert len(endpoint.asked) == 2
    assert "HTTP 400" in written(tmp_path)


def test_a_failure_file_that_cannot_be_written_hides_no_reason(serve: Serve, tmp_path: Path) -> None:
    endpoint = serve((400, b""))
    failure = tmp_path / "absent" / "failure.json"
    with closing(RewardClient({"RAMO_REWARD_URLS": endpoint.url, "RAMO_REWARD_FAILURE": str(failure)})) as client:
        with pytest.raises(RewardStopped, match=r"HTTP 400.*absent.*FileNotFoundError"):
            client.ask(*TEXTS)
        assert not failure.parent.exists()


def test_each_of_many_threads_has_its_own_reward(serve: Serve, connect: Connect) -> None:
    together = threading.Barrier(16, timeout=60)

    def after_all_have_come(body: Any) -> Answer:
        together.wait()
        assert body["query"] == body["prompts"] == body["labels"]
        return given(float(body["query"][0]))

    endpoint = serve(after_all_have_come)
    client = connect(endpoint.url)

    def rewards_of(thread: int) -> list[float]:
        texts = [[str(thread * 10 + n)] for n in range(5)]
        return [client.ask(text, text, text)["rewards"] for text in texts]

    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(rewards_of, range(16)))
    assert found == [[thread * 10 + n for n in range(5)] for thread in range(16)]
    assert endpoint.connections == 16


def test_a_call_is_for_one_response(serve: Serve, connect: Connect) -> None:
    endpoint = serve(given(1))
    with pytest.raises(RewardStopped, match=r"one response a call.* not 2"):
        connect(endpoint.url).ask(["a", "b"], ["a", "b"], ["a", "b"])
    assert endpoint.asked == []


def test_settings_are_read_from_the_environment() -> None:
    environment = {"RAMO_REWARD_URLS": " http://a:1/x, https://u:p@b/y?z ,", "RAMO_REWARD_PATIENCE_S": "1e3"}
    assert settings_from(environment) == Settings(("http://a:1/x", "https://u:p@b/y?z"), 1000.0, 180.0)
    assert settings_from(environment | {"RAMO_REWARD_TIMEOUT_S": "7"})[1:] == (1000.0, 7.0)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("RAMO_REWARD_URLS", " ,"),
        ("RAMO_REWARD_URLS", "http://a, ftp://u:SECRET@b"),
        ("RAMO_REWARD_URLS", "u:SECRET@b:80"),
        ("RAMO_REWARD_URLS", "http://"),
        ("RAMO_REWARD_PATIENCE_S", "long"),
        ("RAMO_REWARD_PATIENCE_S", "0"),
        ("RAMO_REWARD_TIMEOUT_S", "inf"),
        ("RAMO_REWARD_TIMEOUT_S", "nan"),
    ],
)
def test_settings_that_cannot_be_used_are_named(variable: str, value: str) -> None:
    with pytest.raises(ConfigError, match=variable) as error:
        settings_from({"RAMO_REWARD_URLS": "http://a"} | {variable: value})
    assert "SECRET" not in str(error.value)


def loaded_by_path(monkeypatch: pytest.MonkeyPatch, folder: Path, **environment: str) -> Any:
    """The module as OpenRLHF's rollout actor loads it: by its path, under another name, in no list of modules."""
    for name, value in ({"FAILURE": str(folder / "failure.json")} | environment).items():
        monkeypatch.setenv(f"RAMO_REWARD_{name}", value)
    assert reward_function.__file__.endswith(".py")
    spec = importlib.util.spec_from_file_location("reward_func", reward_function.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def _swallowing(function: Callable[..., Any], calls: int) -> Any:
    """As OpenRLHF asks: in threads, and no `Exception` gets through."""
    try:
        return await asyncio.gather(*(asyncio.to_thread(function, *TEXTS) for _ in range(calls)))
    except Exception:  # noqa: BLE001 - this is what is tested
        return None


def test_openrlhf_loads_it_by_path(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = serve(given(1), given(2), given(3), (403, b""))
    module = loaded_by_path(monkeypatch, tmp_path, URLS=endpoint.url)
    try:
        answers = asyncio.run(_swallowing(module.reward_func, 3))
        assert sorted(answer["rewards"] for answer in answers) == [1, 2, 3]
        with pytest.raises(module.RewardStopped, match="HTTP 403") as stopped:
            asyncio.run(_swallowing(module.reward_func, 1))
    finally:
        module._client.close()
    assert written(tmp_path) == str(stopped.value)
    # Ray sends it to the driver, where no module has this name.
    assert str(pickle.loads(cloudpickle.dumps(stopped.value))) == str(stopped.value)


def test_without_an_address_the_run_ends_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = loaded_by_path(monkeypatch, tmp_path, URLS="")
    with pytest.raises(module.RewardStopped, match="RAMO_REWARD_URLS: give"):
        asyncio.run(_swallowing(module.reward_func, 2))
    assert "RAMO_REWARD_URLS" in written(tmp_path)


def test_a_defect_ends_the_run_too_and_quotes_nothing(serve: Serve, connect: Connect, tmp_path: Path) -> None:
    endpoint = serve(given(1))
    with pytest.raises(RewardStopped, match=r"^asking for a reward: TypeError$"):
        connect(endpoint.url).ask([{"SECRET"}], ["p"], ["l"])  # type: ignore[list-item]
    assert written(tmp_path) == "asking for a reward: TypeError"


def test_importing_it_loads_no_http() -> None:
    code = "import sys, ramo_ray.ppo.reward_function; sys.exit('httpx' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
