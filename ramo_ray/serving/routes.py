"""The routes, as an ASGI app with its OpenAPI document. What they answer is made by a `Service`."""

from __future__ import annotations

import contextlib
import math
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from importlib import metadata
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.routing import Route

from ramo_ray.serving.gate import LENGTH, Gate, Refused
from ramo_ray.serving.page import page
from ramo_ray.serving.schema import (
    ChatMessage,
    Classify,
    Comparison,
    Explanation,
    RemoteReward,
    RemoteRewards,
    Reward,
    RewardRequest,
    Rewards,
    Score,
    Trio,
)
from ramo_ray.serving.service import Scored, Service
from ramo_ray.serving.tokens import TokenFile

NO_JSON = "the body is no valid JSON."
NAMES = {
    name for model in (RewardRequest, ChatMessage, Trio, RemoteReward, Classify, Score) for name in model.model_fields
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": meaning, "content": {"application/json": {"example": {"error": "one sentence"}}}}
    for status, meaning in {
        400: "The body is no JSON.",
        401: "No token.",
        403: "A token that is not known.",
        408: "The body took too long.",
        413: "Too long, or too many.",
        422: "The body is not what the route takes.",
        429: "Too much waits: ask again after Retry-After seconds.",
        503: "No answer in time, or the replica ends: ask again after Retry-After seconds.",
    }.items()
}


def make_app(service: Service, tokens: TokenFile | None) -> FastAPI:
    """The routes behind their gate. Serve adds handlers of its own, so it has to be an app of FastAPI's."""

    @contextlib.asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        await service.close()

    app = FastAPI(
        title="RAMO reward endpoint",
        version=metadata.version("ramo_ray"),
        docs_url=None,
        redoc_url=None,
        lifespan=life,
        responses=ERRORS,
    )
    _tell_faults(app)
    _add_own(app, service)
    _add_foreign(app, service)
    _add_watched(app, service)
    app.add_middleware(Gate, tokens=tokens, limits=service.settings.limits, observe=service.meters.observe)
    return app


def _add_own(app: FastAPI, service: Service) -> None:
    name, reader = service.settings.name, service.reader

    @app.post("/reward", summary="Rewards of one conversation, or of many")
    async def reward(asked: RewardRequest, request: Request) -> Rewards:
        found = await service.rewards(reader.conversations, asked.conversations, request.scope[LENGTH])
        return Rewards(model=name, rewards=[_reward(service, *one) for one in zip(*found, strict=True)])

    @app.post("/compare", summary="The probability that response A is preferred")
    async def compare(asked: Trio, request: Request) -> Comparison:
        reward_a, reward_b = (await service.rewards(reader.trio, asked, request.scope[LENGTH])).rewards
        return Comparison(
            model=name, probability_a=_logistic(reward_a - reward_b), reward_a=reward_a, reward_b=reward_b
        )

    @app.post("/explain", summary="The critical rules of a trio, the judge's scores on them, and the label")
    async def explain(asked: Trio, request: Request) -> Explanation:
        return Explanation.model_validate(await service.explained(asked, request.scope[LENGTH]))


def _add_foreign(app: FastAPI, service: Service) -> None:
    """The routes that other projects' clients ask."""
    name, reader = service.settings.name, service.reader

    @app.post("/get_reward", summary="OpenRLHF's remote reward")
    async def get_reward(asked: RemoteReward, request: Request) -> RemoteRewards:
        found = (await service.rewards(reader.remote, asked, request.scope[LENGTH])).rewards
        return RemoteRewards(rewards=found, scores=found, extra_logs={})

    @app.post("/classify", summary="vLLM's classification, with the reward as its one class")
    async def classify(asked: Classify, request: Request) -> dict[str, Any]:
        found = await service.rewards(reader.classified, asked, request.scope[LENGTH])
        data = [
            {"index": place, "label": name, "probs": [_activated(reward, asked.use_activation)], "num_classes": 1}
            for place, reward in enumerate(found.rewards)
        ]
        return _listed("classify", name, data, found)

    @app.post("/score", summary="vLLM's scores of pairs, each a prompt and its response")
    async def score(asked: Score, request: Request) -> dict[str, Any]:
        found = await service.rewards(reader.scored, asked, request.scope[LENGTH])
        data = [
            {"index": place, "object": "score", "score": _activated(reward, asked.use_activation)}
            for place, reward in enumerate(found.rewards)
        ]
        return _listed("score", name, data, found)


def _add_watched(app: FastAPI, service: Service) -> None:
    """The routes of those who watch the server."""

    @app.get("/", summary="A page to compare two responses on", response_class=HTMLResponse)
    async def start() -> HTMLResponse:
        own = page()
        return HTMLResponse(own.html, headers=own.headers)

    @app.get("/healthz", summary="Whether the replica works")
    async def healthz() -> dict[str, str]:
        service.check()
        return {"status": "ok"}

    @app.get("/readyz", summary="Whether the replica takes requests")
    async def readyz() -> dict[str, str]:
        if service.closing:
            raise Refused(503, "this replica is about to end.", 1)
        return {"status": "ready"}

    @app.get("/metrics", summary="What Prometheus reads, of the replica that answers", response_class=Response)
    async def metrics() -> Response:
        return Response(service.meters.text(), media_type="text/plain; version=0.0.4")


def _tell_faults(app: FastAPI) -> None:
    """Turn what FastAPI raises into our own replies, which quote nothing of a request. The gate tells the rest."""

    @app.exception_handler(RequestValidationError)
    async def not_valid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return _reply(400, NO_JSON)
        # Of what pydantic says, neither the input nor a name that is not ours.
        where = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or part in NAMES) or "the body"
        status = 413 if first["type"] == "too_long" else 422
        return _reply(status, f"{where}: {first['msg'].removeprefix('Value error, ')}.")

    @app.exception_handler(HTTPException)
    async def no_route(_: Request, error: HTTPException) -> JSONResponse:
        known = ", ".join(sorted(route.path for route in app.routes if isinstance(route, Route)))
        sentences = {404: f"no such route; there are {known}.", 405: "not with this method."}
        # Of a body that is no UTF-8, FastAPI says 400.
        return _reply(error.status_code, sentences.get(error.status_code, NO_JSON), error.headers)


def _reply(status: int, sentence: str, headers: Any = None) -> JSONResponse:
    return JSONResponse({"error": sentence}, status, headers)


def _reward(service: Service, reward: float, tokens: int) -> Reward:
    return Reward(reward=reward, calibrated=service.calibrated(reward), tokens=tokens)


def _activated(reward: float, activated: bool | None) -> float:
    return reward if activated is False else _logistic(reward)


def _logistic(number: float) -> float:
    """1 / (1 + exp(-x)), where exp does not overflow."""
    if number >= 0:
        return 1 / (1 + math.exp(-number))
    return math.exp(number) / (1 + math.exp(number))


def _listed(kind: str, name: str, data: Sequence[dict[str, Any]], found: Scored) -> dict[str, Any]:
    total = sum(found.tokens)
    return {
        "id": f"{kind}-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": name,
        "data": list(data),
        "usage": {"prompt_tokens": total, "total_tokens": total, "completion_tokens": 0, "prompt_tokens_details": None},
    }
