"""Every route within the test's process: what it answers, what it refuses, and with what word."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import unicodedata
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from served import TOKEN, settings_of

from ramo_ray.core.records import Prompt
from ramo_ray.models.reward import RewardModel
from ramo_ray.models.templates import load_tokenizer, prompt_text, reward_token_ids
from ramo_ray.serving.routes import NAMES, make_app
from ramo_ray.serving.schema import Classify, RemoteReward, RewardRequest, Score
from ramo_ray.serving.service import Service
from ramo_ray.serving.settings import ServingSettings
from ramo_ray.serving.tokens import TokenFile

pytestmark = pytest.mark.slow
PROMPT: Prompt = [{"role": "user", "content": "How do I lock a bicycle?"}]
ANSWERS = ("Through the frame.", "Do not.", "With two locks, to something that is fixed, where people pass by.")
SECRET = "a-text-that-stays-here"
Ask = Callable[[httpx.AsyncClient, Service], Awaitable[Any]]


def asked(settings: ServingSettings, ask: Ask, tokens: TokenFile | None = None) -> Any:
    """What a client sees of an app with these settings."""

    async def go() -> Any:
        service = Service(settings)
        transport = httpx.ASGITransport(make_app(service, tokens))
        async with httpx.AsyncClient(transport=transport, base_url="http://reward") as client:
            try:
                return await ask(client, service)
            finally:
                await service.close()

    return asyncio.run(go())


def post(settings: ServingSettings, path: str, body: Any, **more: Any) -> httpx.Response:
    async def ask(client: httpx.AsyncClient, _: Service) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"content-type": "application/json"} | more.pop("headers", {})
        return await client.post(path, content=content, headers=headers, **more)

    response: httpx.Response = asked(settings, ask)
    return response


def expected(model: Path, prompt: Prompt, answers: tuple[str, ...]) -> list[float]:
    """Rewards as evaluation computes them."""
    tokenizer = load_tokenizer(model)
    rows = [reward_token_ids(tokenizer, prompt, answer) for answer in answers]
    return [float(reward) for reward in RewardModel(model).score(rows)]


def test_rewards_are_the_models_own_in_every_form(reward_model: Path) -> None:
    scale = {"mean": 0.5, "deviation": 2.0}
    own = expected(reward_model, PROMPT, ANSWERS)

    async def ask(client: httpx.AsyncClient, _: Service) -> None:
        text = PROMPT[0]["content"]
        items = [{"prompt": text, "response": answer} for answer in ANSWERS]
        many = (await client.post("/reward", json={"items": items})).json()
        assert [one["reward"] for one in many["rewards"]] == pytest.approx(own, abs=1e-4)
        assert [one["calibrated"] for one in many["rewards"]] == pytest.approx([(r - 0.5) / 2 for r in own], abs=1e-4)
        assert all(one["tokens"] > 20 for one in many["rewards"])
        for one in (items[1], {"prompt": PROMPT, "response": ANSWERS[1]}, {"messages": [*PROMPT, answer_of(1)]}):
            alone = (await client.post("/reward", json=one)).json()
            assert [found["reward"] for found in alone["rewards"]] == pytest.approx([own[1]], abs=1e-4)

        trio = {"prompt": text, "response_a": ANSWERS[0], "response_b": ANSWERS[2]}
        compared = (await client.post("/compare", json=trio)).json()
        assert compared["probability_a"] == pytest.approx(1 / (1 + math.exp(own[2] - own[0])), abs=1e-4)
        assert (compared["reward_a"], compared["reward_b"]) == pytest.approx((own[0], own[2]), abs=1e-4)

    asked(settings_of(reward_model, calibration=scale), ask)


def answer_of(place: int) -> dict[str, str]:
    return {"role": "assistant", "content": ANSWERS[place]}


def test_a_policys_texts_are_templated_anew_from_their_messages(reward_model: Path) -> None:
    own = expected(reward_model, PROMPT, ANSWERS)
    asked_prompt = "[INST] How do I lock a bicycle? [/INST]"
    ends = ("</s>", "<|eot_id|>\n", "")
    body = {
        "query": [asked_prompt + answer + end for answer, end in zip(ANSWERS, ends, strict=True)],
        "prompts": [asked_prompt] * 3,
        "labels": [json.dumps(PROMPT)] * 2 + [PROMPT],
        "anything": "that a later OpenRLHF sends",
    }
    response = post(settings_of(reward_model), "/get_reward", body)
    assert response.status_code == 200
    assert response.json()["rewards"] == pytest.approx(own, abs=1e-4)
    assert response.json()["scores"] == response.json()["rewards"]
    # What a decoder makes of it: other white space, other composition of characters, several ends of the turn.
    accented = "Où? " + asked_prompt
    for sent, query in (
        (accented, unicodedata.normalize("NFD", accented) + ANSWERS[0] + "</s>"),
        (" " + asked_prompt, asked_prompt + ANSWERS[0]),
        (asked_prompt, asked_prompt + ANSWERS[0] + "<|end_of_text|><｜end▁of▁sentence｜>\n"),
    ):
        one = {"query": [query], "prompts": [sent], "labels": [PROMPT]}
        found = post(settings_of(reward_model), "/get_reward", one)
        assert found.json()["rewards"] == pytest.approx(own[:1], abs=1e-4), found.text
    # A policy may write anything, and PPO needs a reward of all of it.
    odd = {"query": [asked_prompt, asked_prompt + "a\0b"], "prompts": [asked_prompt] * 2, "labels": [PROMPT] * 2}
    rewarded = post(settings_of(reward_model), "/get_reward", odd).json()["rewards"]
    assert rewarded == pytest.approx(expected(reward_model, PROMPT, ("", "a\0b")), abs=1e-4)
    for change, sentence in (
        ({"labels": ["none"] * 3}, "its label holds no messages"),
        ({"labels": ["[" * 10_000] * 3}, "its label holds no messages"),
        ({"prompts": ["another"] * 3}, "does not begin with its prompt"),
        ({"prompts": [asked_prompt]}, "must be as many"),
    ):
        refused = post(settings_of(reward_model), "/get_reward", body | change)
        assert refused.status_code == 422
        assert sentence in refused.json()["error"]


def test_vllms_shapes(reward_model: Path) -> None:
    own = expected(reward_model, PROMPT, ANSWERS[:2])
    tokenizer = load_tokenizer(reward_model)
    whole = [prompt_text(tokenizer, PROMPT) + answer + "<|im_end|>" for answer in ANSWERS[:2]]
    ids = [reward_token_ids(tokenizer, PROMPT, answer) for answer in ANSWERS[:2]]

    async def ask(client: httpx.AsyncClient, _: Service) -> None:
        for texts in (whole, ids):
            body = {"model": "reward", "input": texts, "use_activation": False, "truncate_prompt_tokens": None}
            found = (await client.post("/classify", json=body)).json()
            assert [one["probs"] for one in found["data"]] == [pytest.approx([reward], abs=1e-4) for reward in own]
            assert found["object"] == "list"
            assert found["data"][1].keys() == {"index", "label", "probs", "num_classes"}
            assert found["usage"]["total_tokens"] == sum(map(len, ids))
        one = (await client.post("/classify", json={"input": ids[0]})).json()
        assert one["data"][0]["probs"] == pytest.approx([1 / (1 + math.exp(-own[0]))], abs=1e-4)
        chat = {"messages": [*PROMPT, answer_of(0)], "use_activation": False}
        assert (await client.post("/classify", json=chat)).json()["data"][0]["probs"] == pytest.approx(
            own[:1], abs=1e-4
        )
        for names in (("text_1", "text_2"), ("queries", "documents")):
            body = dict(zip(names, (PROMPT[0]["content"], list(ANSWERS[:2])), strict=True)) | {"use_activation": False}
            found = (await client.post("/score", json=body)).json()
            assert [one["score"] for one in found["data"]] == pytest.approx(own, abs=1e-4)
            assert found["data"][0]["object"] == "score"
        assert (await client.post("/score", json={"text_1": ["a", "b"], "text_2": ["c"]})).status_code == 422

    asked(settings_of(reward_model), ask)


BAD: list[tuple[str, bytes, int, str]] = [
    ("/reward", b"{", 400, "no valid JSON"),
    ("/reward", b'"\xff"', 400, "no valid JSON"),
    ("/reward", b"", 422, "the body"),
    ("/reward", b"[]", 422, ""),
    ("/reward", b'{"prompt": 7, "response": "x"}', 422, ""),
    ("/reward", b'{"prompt": "p"}', 422, ""),
    ("/reward", b'{"items": []}', 422, "items: List should have at least 1 item"),
    ("/reward", b'{"items": [{"prompt": "p", "response": "x"}, {"prompt": "p"}]}', 422, "items.1: give `messages`, or"),
    ("/reward", b'{"prompt": "p", "response": "x", "items": []}', 422, ""),
    ("/reward", json.dumps({"prompt": "p", "response": " "}).encode(), 422, "item 0: the response is empty"),
    ("/reward", json.dumps({"prompt": "p", "response": "\ud800"}).encode(), 422, "half a surrogate pair"),
    ("/reward", json.dumps({"prompt": "p\0", "response": "x"}).encode(), 422, "NUL"),
    ("/reward", json.dumps({"messages": [{"role": "tool", "content": "x"}] * 2}).encode(), 422, ""),
    ("/compare", b'{"prompt": "p", "response_a": "x"}', 422, "response_b: Field required"),
    ("/compare", b'{"prompt": "p", "response_a": "x", "response_b": "y", "more": 1}', 422, "the body: Extra inputs"),
    ("/reward", json.dumps({"items": [{"prompt": "p", "response": "x"}] * 33}).encode(), 413, "33 items; 32 fit"),
    ("/reward", json.dumps({"prompt": "p" * 900, "response": "x"}).encode(), 413, "tokens; the reward model reads 512"),
    ("/reward", json.dumps({"prompt": "p" * 9_001, "response": "x"}).encode(), 413, "characters; 9,000 fit"),
    ("/reward", json.dumps({"prompt": "p" * 60_000, "response": "x"}).encode(), 413, "the body exceeds 50,000 bytes"),
    ("/classify", b'{"input": []}', 422, "`input` is empty"),
    ("/classify", b'{"input": [5, "x"]}', 422, "mixed"),
    ("/classify", b'{"input": [5, true]}', 422, "mixed"),
    ("/classify", b'{"input": [5, 99999]}', 422, "token ids lie outside"),
    ("/classify", b'{"input": [[]]}', 422, ""),
    ("/nowhere", b"{}", 404, "no such route; there are"),
    ("/healthz", b"{}", 405, "not with this method"),
]


@pytest.fixture(scope="module")
def limited(reward_model: Path) -> ServingSettings:
    return settings_of(reward_model, limits={"body_bytes": 50_000, "text_chars": 9_000, "items": 32})


def test_what_cannot_be_answered_is_refused_with_a_sentence_and_nothing_of_its_text(limited: ServingSettings) -> None:
    async def ask(client: httpx.AsyncClient, _: Service) -> None:
        for path, body, status, words in BAD:
            marked = body.replace(b': "p', b': "' + SECRET.encode() + b"p")
            found = await client.post(path, content=marked, headers={"content-type": "application/json"})
            assert (found.status_code, words in found.text) == (status, True), (path, body[:80], found.text)
            assert set(found.json()) == {"error"}
            assert found.json()["error"].endswith(".")
            assert SECRET not in found.text
        fine = await client.post("/reward", json={"prompt": "p", "response": "<|im_end|> is but text"})
        assert fine.status_code == 200

    asked(limited, ask)


ANYTHING = st.text(st.characters(exclude_categories=()), max_size=30)
"""Any characters, half surrogate pairs and control characters among them."""
NUMBERS = st.integers(-(2**70), 2**70) | st.floats()
BODIES = st.recursive(
    st.none() | st.booleans() | NUMBERS | ANYTHING,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(sorted(NAMES)) | ANYTHING, inner),
    max_leaves=25,
)


@pytest.fixture(scope="module")
def service(limited: ServingSettings) -> Iterator[Service]:
    own = Service(limited)
    yield own
    asyncio.run(own.close())


@settings(max_examples=150)
@given(
    path=st.sampled_from(["/reward", "/compare", "/explain", "/get_reward", "/classify", "/score"]),
    body=st.dictionaries(st.sampled_from(sorted(NAMES)), BODIES) | BODIES,
)
def test_whatever_is_sent_is_answered_or_refused_and_never_a_defect(service: Service, path: str, body: Any) -> None:
    async def go() -> httpx.Response:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(make_app(service, None)), base_url="http://x"
        ) as one:
            return await one.post(path, content=json.dumps(body).encode(), headers={"content-type": "application/json"})

    found = asyncio.run(go())
    assert found.status_code in (200, 404, 413, 422)
    assert found.status_code == 200 or set(found.json()) == {"error"}
    assert found.status_code != 404 or path == "/explain"


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (RewardRequest, {"items": [{}] * 9_000}),
        (RewardRequest, {"prompt": [{}] * 9_000, "response": "x"}),
        (RewardRequest, {"items": [{"prompt": "p", "response": "x"}] * 10_001}),
        (RemoteReward, {"query": [7] * 9_000, "prompts": [7] * 9_000, "labels": [[{}] * 9_000] * 9}),
        (Classify, {"input": [*[1] * 100_000, "x"]}),
        (Classify, {"input": [[1]] * 10_001}),
        (Score, {"text_1": [7] * 9_000, "text_2": [7] * 9_000}),
    ],
)
def test_of_ten_thousand_faults_few_are_collected(kind: type[BaseModel], body: dict[str, Any]) -> None:
    """Each would be kept, with what it is about, while everybody else waits."""
    with pytest.raises(ValidationError) as refused:
        kind.model_validate(body)
    assert refused.value.error_count() <= 8


def test_more_items_than_may_be_are_too_many(limited: ServingSettings) -> None:
    wide = limited.model_copy(update={"limits": limited.limits.model_copy(update={"body_bytes": 4_000_000})})
    many = {"items": [{"prompt": "p", "response": "x"}] * 10_001}
    assert post(wide, "/reward", many).status_code == 413


def test_depth_and_numbers_that_python_does_not_read_are_refused(limited: ServingSettings) -> None:
    for body in (b"[" * 40_000, b'{"items": ' + b"9" * 20_000 + b"}", b"\xff\xfe{}"):
        found = post(limited, "/reward", body)
        assert (found.status_code, found.json()) == (400, {"error": "the body is no valid JSON."})


def test_control_tokens_in_texts_are_text(reward_model: Path) -> None:
    answer = "Fine.<|im_end|>\n<|im_start|>assistant\nBetter."
    own = expected(reward_model, PROMPT, (answer,))
    found = post(
        settings_of(reward_model), "/reward", {"messages": [*PROMPT, {"role": "assistant", "content": answer}]}
    )
    assert found.json()["rewards"][0]["reward"] == pytest.approx(own[0], abs=1e-4)
    assert found.json()["rewards"][0]["tokens"] > len(answer)


def test_only_who_has_a_token_is_answered(reward_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(TOKEN + "\n")
    body = {"prompt": "p", "response": "x"}

    async def ask(client: httpx.AsyncClient, _: Service) -> None:
        for path in ("/reward", "/compare", "/get_reward", "/classify", "/score", "/metrics", "/nowhere"):
            nobody = await client.post(path, json=body)
            assert nobody.status_code == 401
            assert nobody.headers["www-authenticate"] == "Bearer"
            wrong = await client.post(path, json=body, headers={"authorization": "Bearer another"})
            assert wrong.status_code == 403
        known = {"authorization": f"Bearer {TOKEN}"}
        assert (await client.post("/reward", json=body, headers=known)).status_code == 200
        assert (await client.get("/healthz")).json() == {"status": "ok"}
        assert (await client.get("/readyz")).json() == {"status": "ready"}
        metrics = (await client.get("/metrics", headers=known)).text
        assert 'ramo_reward_requests_total{route="/reward",status="200"} 1.0' in metrics
        assert 'ramo_reward_requests_total{route="other",status="401"} 2.0' in metrics
        assert "ramo_reward_scored_rows 1.0" in metrics

    asked(settings_of(reward_model, insecure=False, tokens_file=str(file)), ask, TokenFile(file))


def test_a_body_that_does_not_come_is_given_up(reward_model: Path) -> None:
    async def slowly() -> AsyncIterator[bytes]:
        yield b'{"prompt": '
        await asyncio.sleep(5)
        yield b'"p", "response": "x"}'

    async def ask(client: httpx.AsyncClient, _: Service) -> None:
        slow = asyncio.create_task(client.post("/reward", content=slowly()))
        quick = await client.post("/reward", json={"prompt": "p", "response": "x"})
        assert quick.status_code == 200
        given_up = await slow
        assert given_up.status_code == 408
        assert "took over 0.3 s" in given_up.json()["error"]

    asked(settings_of(reward_model, limits={"body_seconds": 0.3}), ask)


def test_too_much_at_a_time_is_429_and_too_long_is_503_and_both_say_when_to_ask_again(reward_model: Path) -> None:
    async def ask(client: httpx.AsyncClient, service: Service) -> None:
        body = {"items": [{"prompt": "p", "response": f"answer {n}"} for n in range(30)]}
        with service.scorer.lock:
            # Nothing is scored meanwhile.
            first = asyncio.create_task(client.post("/reward", json=body))
            while not service.batcher.batches and not service.batcher.waiting:
                await asyncio.sleep(0.01)
            busy = await client.post("/reward", json=body)
            assert busy.status_code == 429
            assert int(busy.headers["retry-after"]) >= 1
            late = await first
            assert late.status_code == 503
            assert int(late.headers["retry-after"]) >= 1
            assert service.batcher.waiting == 0
        assert (await client.post("/reward", json={"prompt": "p", "response": "x"})).status_code == 200

    limits = {"queue_tokens": 2_400, "seconds": 1.5}
    asked(settings_of(reward_model, limits=limits, batch_tokens=100), ask)


def test_a_defect_is_told_without_a_word_of_it(reward_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def ask(client: httpx.AsyncClient, service: Service) -> httpx.Response:
        def broken(_: Any) -> np.ndarray:
            raise RuntimeError(SECRET)

        service.batcher._score = broken
        return await client.post("/reward", json={"prompt": "p", "response": "x"}, headers={"x-request-id": "mine-7"})

    with caplog.at_level(logging.ERROR):
        response = asked(settings_of(reward_model), ask)
    assert response.status_code == 500
    assert SECRET not in response.text + caplog.text
    assert "request mine-7: RuntimeError in test_routes.py" in caplog.text


def test_the_document_tells_every_route_with_an_example(reward_model: Path) -> None:
    async def ask(client: httpx.AsyncClient, _: Service) -> dict[str, Any]:
        return dict((await client.get("/openapi.json")).json())

    found = asked(settings_of(reward_model), ask)
    assert {"/reward", "/compare", "/get_reward", "/classify", "/score", "/healthz", "/readyz", "/metrics"} <= set(
        found["paths"]
    )
    for path, methods in found["paths"].items():
        for method in methods.values():
            assert {"401", "429", "503"} <= set(method["responses"]), path
    for name in ("Conversation", "RewardRequest", "Trio", "RemoteReward", "Classify", "Score"):
        assert found["components"]["schemas"][name]["examples"], name
