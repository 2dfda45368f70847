"""The endpoint's client, and `ramo reward`, against a server whose faults are scripted."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ramo_ray.cli import app
from ramo_ray.client import EndpointError, RewardClient
from ramo_ray.errors import ConfigError, ServerError, SourceError, TooManyBadRowsError

TOKEN = "a-token-that-nobody-guesses"


class Endpoint:
    """Rewards a response by its length. `faults` come first, each a status with headers, or None for a cut line."""

    def __init__(self) -> None:
        self.faults: list[tuple[int, dict[str, str]] | None] = []
        self.asked: list[list[dict[str, Any]]] = []
        self.tokens: list[str | None] = []
        self.gone_after: int | None = None

    def answer(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.asked.append(body["items"])
        if self.gone_after is not None and len(self.asked) > self.gone_after:
            return 401, {"error": "send a token"}
        if any("response" not in item for item in body["items"]):
            return 422, {"error": "an item has no response."}
        return 200, {"rewards": [{"reward": float(len(item["response"]))} for item in body["items"]]}


@contextmanager
def serving(endpoint: Endpoint) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            endpoint.tokens.append(self.headers.get("Authorization"))
            fault = endpoint.faults.pop(0) if endpoint.faults else (0, {})
            if fault is None:
                self.close_connection = True
                self.connection.close()
                return
            status, headers = fault
            reply: dict[str, Any] = {"error": "busy."}
            if not status:
                status, reply = endpoint.answer(body)
            content = json.dumps(reply).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Time:
    """Time that passes only in sleep."""

    def __init__(self) -> None:
        self.now, self.slept = 0.0, list[float]()

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def client(url: str, time: Time, **more: Any) -> RewardClient:
    return RewardClient(url, TOKEN, clock=time.clock, sleep=time.sleep, **more)


def test_what_is_busy_away_or_cut_off_is_asked_again_and_waited_for_as_told() -> None:
    endpoint, time = Endpoint(), Time()
    endpoint.faults = [(429, {"Retry-After": "7"}), None, (503, {}), (500, {})]
    with serving(endpoint) as url:
        own = client(url + "/", time)
        assert own.rewards([{"prompt": "p", "response": "four"}, {"prompt": "p", "response": "x"}]) == [4.0, 1.0]
        own.close()
    assert len(time.slept) == 4
    assert time.slept[0] >= 7
    assert set(endpoint.tokens) == {f"Bearer {TOKEN}"}
    assert RewardClient(url).rewards([]) == []


def test_patience_ends_with_what_was_wrong() -> None:
    endpoint, time = Endpoint(), Time()
    endpoint.faults = [(429, {"Retry-After": "7"})] * 50
    with serving(endpoint) as url:
        own = client(url, time, patience_s=30)
        with pytest.raises(EndpointError, match=r"429: busy\.") as busy:
            own.rewards([{}])
        own.close()
    assert busy.value.status == 429
    assert time.now <= 30
    with pytest.raises(EndpointError, match="does not answer") as away:
        client(url, Time(), patience_s=5).rewards([{}])
    assert away.value.status is None
    with pytest.raises(ValueError, match="is no http address"):
        RewardClient("reward:8000")


def test_what_is_refused_is_not_asked_again() -> None:
    endpoint, time = Endpoint(), Time()
    with serving(endpoint) as url:
        own = client(url, time)
        with pytest.raises(EndpointError, match=r"422: an item has no response\."):
            own.rewards([{"prompt": "p"}])
        own.close()
    assert (len(endpoint.asked), time.slept) == (1, [])


ROWS = 100


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A hundred rows; three are none."""
    lines = [json.dumps({"prompt": "p", "response": "x" * (n + 1), "id": n}) for n in range(ROWS)]
    lines[17], lines[40], lines[41] = '{"prompt": "p"}', "no JSON", "[]"
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def rewards_of(output: Path) -> dict[int, Any]:
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert len({row["line"] for row in rows}) == len(rows)
    return {row["line"]: row.get("reward", row.get("error")) for row in rows}


def test_a_file_is_rewarded_row_by_row_and_taken_up_where_it_stood(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAMO_REWARD_TOKEN", TOKEN)
    endpoint, output = Endpoint(), file.with_suffix(".rewards.jsonl")
    endpoint.gone_after = 2
    with serving(endpoint) as url:
        words = ["reward", url, str(file), "--concurrency", "1"]
        gone = CliRunner().invoke(app, words)
        assert isinstance(gone.exception, ServerError)
        assert "run the same command again" in str(gone.exception)
        kept = rewards_of(output)
        assert 0 < len(kept) < ROWS
        # As a kill leaves it.
        with output.open("a") as torn:
            torn.write('{"line": 9')
        unchanged = file.read_text()
        file.write_text(unchanged.replace('"xx"', '"yy"'))
        other = CliRunner().invoke(app, words)
        assert isinstance(other.exception, ConfigError)
        assert "has rewards of another pairs.jsonl (line 2 differs)" in str(other.exception)
        file.write_text(unchanged)
        endpoint.gone_after, endpoint.asked = None, []
        ended = CliRunner().invoke(app, [*words[:-1], "4"])
        asked = [item for items in endpoint.asked for item in items if len(items) > 1]
        # Only what has no reward is asked for again.
        endpoint.asked = []
        finished = CliRunner().invoke(app, words)
        assert sum(len(items) for items in endpoint.asked if len(items) == 1) == 3
    assert isinstance(ended.exception, TooManyBadRowsError)
    assert isinstance(finished.exception, TooManyBadRowsError)
    found = rewards_of(output)
    assert found.keys() == set(range(ROWS))
    for n in range(ROWS):
        assert found[n] == ("422: an item has no response." if n in (17, 40, 41) else float(n + 1))
    assert all(len(item["response"]) - 1 not in kept for item in asked if "response" in item)
    assert all(token == f"Bearer {TOKEN}" for token in endpoint.tokens)
    assert "id" not in asked[0]


def test_what_cannot_be_read_or_written_is_refused(file: Path, tmp_path: Path) -> None:
    missing = CliRunner().invoke(app, ["reward", "http://127.0.0.1:9", str(tmp_path / "none.jsonl")])
    assert isinstance(missing.exception, SourceError)
    foreign = tmp_path / "foreign.jsonl"
    for text in ('{"other": 1}\n', '{"other": 1}', "notes\nmore", '{"line": 1}\n'):
        foreign.write_text(text)
        refused = CliRunner().invoke(app, ["reward", "http://127.0.0.1:9", str(file), "--output", str(foreign)])
        assert isinstance(refused.exception, ConfigError)
        assert foreign.read_text() == text


def test_a_token_may_stand_in_the_address_and_is_never_told() -> None:
    endpoint = Endpoint()
    with serving(endpoint) as url, RewardClient(url.replace("http://", f"http://any:{TOKEN}@")) as own:
        assert own.rewards([{"response": "x"}]) == [1.0]
    assert endpoint.tokens == [f"Bearer {TOKEN}"]
    with pytest.raises(EndpointError) as away:
        client(url.replace("http://", f"http://any:{TOKEN}@"), Time(), patience_s=1).rewards([{}])
    assert TOKEN not in str(away.value)


def test_a_client_that_is_stopped_asks_no_more() -> None:
    endpoint = Endpoint()
    endpoint.faults = [(503, {})] * 50
    with serving(endpoint) as url, RewardClient(url) as own:
        threading.Timer(0.3, own.stop).start()
        with pytest.raises(EndpointError, match="503"):
            own.rewards([{}])
    assert len(endpoint.faults) >= 48
