"""A model behind a server with OpenAI's API: vLLM's by token ids, any other by chat with log-probabilities."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ramo_ray.engines.base import (
    Completion,
    TokenIds,
    Usage,
    check_labels,
    check_prompts,
    checked,
    end_ids,
    prompt_seed,
)
from ramo_ray.engines.openai_client import Client, RequestError, Sent
from ramo_ray.engines.openai_routes import UNTOLD, first_choice
from ramo_ray.engines.openai_start import inspect_server
from ramo_ray.engines.pacing import Clock
from ramo_ray.errors import EngineError, ServerError
from ramo_ray.settings import EngineSettings, SamplingSettings
from ramo_ray.tokenizers import open_tokenizer

T = TypeVar("T")


class OpenAIEngine:
    """An `Engine` on a server. Prompts that repeat within a call are asked once; see `openai_routes` for how.

    A prompt without an answer is an error of its own. It becomes the run's (`ServerError`) where the server answered
    nothing since that prompt was first sent, and does not answer the question either that it answered at the start.

    Attributes:
        route: how the server is asked, found at the start.
    """

    def __init__(self, settings: EngineSettings, model_path: Path, *, clock: Clock | None = None) -> None:
        self.settings, own = settings.openai, settings.openai
        self.tokenizer = open_tokenizer(model_path)
        self.vocabulary_size = len(self.tokenizer)
        self.ends = _stated_ends(model_path)
        # httpx would report every request.
        logging.getLogger("httpx").setLevel(logging.WARNING)
        self.client = Client(own, actors=settings.actors.max, clock=clock)
        self.places, self.probing = asyncio.Semaphore(own.concurrency), asyncio.Lock()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="openai-engine", daemon=True)
        self.thread.start()
        try:
            server = self._run(inspect_server(self.client, self.tokenizer, settings.max_length))
        except BaseException:
            self.close()
            raise
        self.route, self.context_length, self.probe_ids = server

    @property
    def applies_chat_template(self) -> bool:
        """See `Engine.applies_chat_template`."""
        return self.route.templated

    @property
    def usage(self) -> Usage:
        """See `Engine.usage`."""
        return self.client.usage

    @property
    def computed(self) -> int:
        """See `Engine.computed`: by what the server says."""
        return self.usage.prompt_tokens - self.usage.cached_tokens

    def label_logprobs(self, prompts: Sequence[TokenIds], labels: TokenIds) -> np.ndarray:
        """See `Engine.label_logprobs`."""
        check_prompts(prompts, self.context_length)
        check_labels(labels, self.vocabulary_size)
        # Sorted, prompts that begin alike are asked one after the other, while a server's cache holds their beginning.
        distinct = sorted({tuple(prompt) for prompt in prompts})
        answers = self._run(self._each([self._answer(prompt, labels) for prompt in distinct]))
        by_prompt = dict(zip(distinct, answers, strict=True))
        result = np.full((len(prompts), len(labels)), np.nan, dtype=np.float32)
        reasons = {}
        for place, prompt in enumerate(prompts):
            answer = by_prompt[tuple(prompt)]
            if isinstance(answer, str):
                reasons[place] = answer
            else:
                result[place] = answer
        return checked(result, reasons)

    async def _answer(self, prompt: TokenIds, labels: TokenIds) -> list[float] | str:
        answer = await self._hold(lambda: self.route.ask(self.client, prompt, labels))
        if isinstance(answer, str):
            return answer
        if min(answer) <= UNTOLD or float(np.exp(np.array(answer)).sum()) > 1 + 1e-3:
            return "what the server tells are no log-probabilities: a label has none, or all have more than 1 together"
        return answer

    async def _hold(self, ask: Callable[[], Coroutine[Any, Any, T]]) -> T | str:
        """An answer, asked for when there is a place, or the reason why the prompt has none."""
        async with self.places:
            before = self.client.answered
            try:
                return await ask()
            except RequestError as error:
                await self._blame(before, error)
                return str(error)

    async def _blame(self, before: int, error: RequestError) -> None:
        """Return if the server still answers, so that it is the prompt that has no answer."""
        async with self.probing:
            if self.client.answered > before:
                return
            try:
                await self.route.probe(self.client, self.probe_ids, self.probe_ids[:2])
            except RequestError:
                raise ServerError(
                    f"{self.settings.base_url} answers nothing any more, not even what it answered at the start: "
                    f"{error}. What is done is kept: run again when it is back."
                ) from None

    def generate(self, prompts: Sequence[TokenIds], sampling: SamplingSettings) -> list[Completion]:
        """See `Engine.generate`. Needs a server that takes and gives token ids, which a chat server does not."""
        self.require_token_ids()
        check_prompts(prompts, self.context_length)
        written = self._run(self._each([self._write(prompt, sampling) for prompt in prompts]))
        faults = {place: answer for place, answer in enumerate(written) if isinstance(answer, str)}
        if faults:
            place, reason = next(iter(faults.items()))
            raise EngineError(
                f"nothing was written to {len(faults)} of {len(prompts)} prompts (index {place}): {reason}"
            )
        return [answer for answer in written if not isinstance(answer, str)]

    def require_token_ids(self) -> None:
        """Raise `ServerError` if the server only chats: its template would be put around a prompt that has one."""
        if self.route.templated:
            raise ServerError(
                f"{self.settings.base_url} takes no token ids, so it cannot write responses here. Serve "
                f"{self.settings.model} with vLLM, or use the engine vllm or transformers."
            )

    async def _write(self, prompt: TokenIds, sampling: SamplingSettings) -> Completion | str:
        limit = min(sampling.max_tokens, self.context_length + 1 - len(prompt))
        body = {
            "model": self.settings.model,
            "prompt": list(prompt),
            "max_tokens": limit,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": prompt_seed(prompt, sampling),
            "stop_token_ids": sorted(self.ends),
            "return_token_ids": True,
        }
        sent = Sent(self.client.path("completions"), body, len(prompt), limit)
        answer = await self._hold(lambda: self.client.post(sent, _written))
        if isinstance(answer, str):
            return answer
        tokens, reason = answer
        if reason == "stop" and tokens and tokens[-1] in self.ends:
            return Completion(tokens[:-1], "stop")
        return Completion(tokens, "stop" if reason == "stop" else "length")

    async def _each(self, answers: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
        """All answers, in order; an error ends the others."""
        tasks = [asyncio.create_task(answer) for answer in answers]
        try:
            return list(await asyncio.gather(*tasks))
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """See `Engine.close`: the connections and the thread that holds them."""
        if self.loop.is_closed():
            return
        self._run(self.client.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


def _stated_ends(folder: Path) -> frozenset[int]:
    files = (folder / "generation_config.json", folder / "config.json")
    stated = (json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file())
    return end_ids(*(config.get("eos_token_id") for config in stated))


def _written(reply: Any) -> tuple[list[int], str]:
    choice = first_choice(reply)
    tokens, reason = choice.get("token_ids"), choice.get("finish_reason")
    if not isinstance(tokens, list) or not isinstance(reason, str):
        raise RequestError("the server's reply has no token ids (vLLM gives them under return_token_ids)")
    return tokens, reason
