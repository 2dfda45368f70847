"""A small HTTP server with OpenAI's API in the test's own process, whose faults are scripted."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, NamedTuple

from ramo_ray.engines.pacing import Clock

KEY = "sk-0123456789-secret"
MODEL = "judge-1"
Offer = Literal["completions", "generative_scoring", "chat"]


class Fault(NamedTuple):
    """What comes instead of an answer."""

    status: int = 200
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    cut: bool = False
    """Promise more bytes than come."""
    hang: float = 0.0
    """Seconds of silence first."""


def refusal(status: int, *headers: tuple[str, str], code: str = "some_error") -> Fault:
    """An error in OpenAI's form, whose message quotes what no log may hold."""
    error = {"error": {"message": f"{KEY}: HARMFUL PROMPT TEXT", "type": "x", "code": code}}
    return Fault(status, json.dumps(error).encode(), headers)


class Asked(NamedTuple):
    """A request that came."""

    path: str
    body: dict[str, Any]
    key: str | None


class FakeClock(Clock):
    """Time that passes only in sleep, and no chance."""

    def __init__(self) -> None:
        self.time, self.sleeps = 1000.0, list[float]()

    def now(self) -> float:
        return self.time

    def chance(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.time += seconds


class ScriptedServer:
    """Answers by `logprob_of(prompt, label)`; `faults` are used up first, one a request to a scoring path.

    Attributes:
        tokenizer: the server's own.
        asked: requests for answers so far, in order; `paths` has every request's path.
        times: of each request in `asked`, by the test's clock.
    """

    def __init__(self, tokenizer: Any, offers: tuple[Offer, ...], clock: FakeClock) -> None:
        self.tokenizer, self.offers, self.clock = tokenizer, offers, clock
        self.asked: list[Asked] = []
        self.paths: list[str] = []
        self.times: list[float] = []
        self.faults: list[Fault | None] = []
        self.always: Fault | None = None
        self.faulty: dict[str, Fault] = {}
        """Faults of prompts that hold a text, at every try."""
        self.absent: set[str] = set()
        """Labels that the top 20 lack."""
        self.usage: dict[str, Any] | None = None
        self.edit: dict[str, Any] = {}
        """Keys of the first choice that are replaced."""
        self.models: list[dict[str, Any]] = [{"id": MODEL, "max_model_len": 400}]
        self.key: str | None = None
        self.lock = threading.Lock()
        self.under_way = self.most_under_way = 0

    @staticmethod
    def logprob_of(prompt: str, label: str) -> float:
        """A number from −1 to −5 that depends on both."""
        return -1.0 - (sum(prompt.encode()) * 7 + sum(label.encode())) % 64 / 16

    def reply(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """What a faultless server says."""
        if path == "/v1/models":
            return 200, {"object": "list", "data": self.models}
        if path == "/tokenize" and "chat" not in self.offers[:1]:
            ids = self.tokenizer(body["prompt"], add_special_tokens=False, split_special_tokens=True)["input_ids"]
            return 200, {"tokens": ids, "count": len(ids)}
        if body.get("model") != MODEL:
            return 404, {"error": {"message": "no such model", "code": "model_not_found"}}
        name = path.rsplit("/", 1)[-1]
        if path == "/v1/chat/completions" and "chat" in self.offers:
            return 200, self._chat(body)
        if name in self.offers and name != "chat":
            return 200, self._completion(body) if name == "completions" else self._scoring(body)
        return 404, {"error": {"message": "no such path", "code": "not_found"}}

    def _text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    def _completion(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = self._text(body["prompt"])
        if body.get("return_token_ids"):
            choice: dict[str, Any] = {"index": 0, "token_ids": [*body["prompt"][:3], 2], "finish_reason": "stop"}
        else:
            told = {f"token_id:{i}": self.logprob_of(prompt, self._text([i])) for i in body["logprob_token_ids"]}
            choice = {"index": 0, "logprobs": {"top_logprobs": [{"token_id:0": -0.5, **told}]}}
        return self._counted({"choices": [choice | self.edit]}, len(body["prompt"]))

    def _scoring(self, body: dict[str, Any]) -> dict[str, Any]:
        assert body["apply_softmax"] is False
        assert body["items"] == [[]]
        label = self._text(body["label_token_ids"][:1])
        score = math.exp(self.logprob_of(self._text(body["query"]), label))
        return self._counted({"data": [{"index": 0, "score": score}]}, len(body["query"]))

    def _chat(self, body: dict[str, Any]) -> dict[str, Any]:
        (message,) = body["messages"]
        assert (body["max_tokens"], body["logprobs"], body["top_logprobs"]) == (1, True, 20)
        words = [word for word in ("Y", "N", "I", "yes", "a", "b") if word not in self.absent]
        top = [
            {"token": word, "bytes": list(word.encode()), "logprob": self.logprob_of(message["content"], word)}
            for word in words
        ]
        choice = {"index": 0, "finish_reason": "length", "logprobs": {"content": [{"token": "Y", "top_logprobs": top}]}}
        return self._counted({"choices": [choice | self.edit]}, len(message["content"]) + 10)

    def _counted(self, reply: dict[str, Any], tokens: int) -> dict[str, Any]:
        return reply | {"usage": self.usage or {"prompt_tokens": tokens, "completion_tokens": 1}}

    def fault(self, path: str, body: dict[str, Any]) -> Fault | None:
        """The scripted fault of this request, if any."""
        if self.always:
            return self.always
        text = json.dumps(body)
        for part, fault in self.faulty.items():
            if part in text:
                return fault
        if path in ("/v1/models", "/tokenize"):
            return None
        with self.lock:
            return self.faults.pop(0) if self.faults else None


def _handler(server: ScriptedServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Two small packets a reply would otherwise wait for each other's acknowledgement.
        disable_nagle_algorithm = True

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._answer({})

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))

        def _answer(self, body: dict[str, Any]) -> None:
            with server.lock:
                server.under_way += 1
                server.most_under_way = max(server.most_under_way, server.under_way)
                server.paths.append(self.path)
                if self.path not in ("/v1/models", "/tokenize"):
                    server.asked.append(Asked(self.path, body, self.headers["authorization"]))
                    server.times.append(server.clock.time)
            try:
                self._speak(body)
            finally:
                with server.lock:
                    server.under_way -= 1

        def _speak(self, body: dict[str, Any]) -> None:
            if server.key and self.headers["authorization"] != f"Bearer {server.key}":
                return self._write(refusal(401, code="invalid_api_key"))
            fault = server.fault(self.path, body)
            if fault is None:
                status, reply = server.reply(self.path, body)
                fault = Fault(status, json.dumps(reply).encode())
            time.sleep(fault.hang)
            return self._write(fault)

        def _write(self, fault: Fault) -> None:
            try:
                self.send_response(fault.status)
                for name, value in fault.headers:
                    self.send_header(name, value)
                self.send_header("content-length", str(len(fault.body) + (50 if fault.cut else 0)))
                self.end_headers()
                self.wfile.write(fault.body)
                self.close_connection = self.close_connection or fault.cut
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

    return Handler


@contextmanager
def serving(server: ScriptedServer) -> Iterator[str]:
    """Run a scripted server on a free port; give its `base_url`."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(server)) as http:
        http.daemon_threads = True
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_port}/v1"
        finally:
            http.shutdown()
            thread.join()
