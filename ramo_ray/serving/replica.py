"""One replica of the endpoint, as Ray Serve runs it: a process of its own with one model."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI

from ramo_ray.core.records import Message
from ramo_ray.serving.gate import Refused
from ramo_ray.serving.routes import make_app
from ramo_ray.serving.service import Explain, Service
from ramo_ray.serving.settings import ServingSettings
from ramo_ray.serving.tokens import TokenFile

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

BUSY_S = 5.0
"""After which an explanation may be asked for again."""
_running: list[Replica] = []


class Replica:
    """Loads the model, warms it up, and is ready only then."""

    def __init__(self, settings: Mapping[str, Any], explainer: DeploymentHandle | None = None) -> None:
        own = ServingSettings.model_validate(settings)
        tokens = None if own.insecure else TokenFile(Path(own.tokens_file))
        self.service = Service(own, _asking(explainer) if explainer else None)
        self.routes = make_app(self.service, tokens)
        _running.append(self)

    def check_health(self) -> None:
        """Called by Serve now and then; a replica that raises is replaced."""
        self.service.check()


def _asking(explainer: DeploymentHandle) -> Explain:
    from ray.serve.exceptions import BackPressureError

    async def ask(prompt: list[Message], response_a: str, response_b: str) -> dict[str, Any]:
        asked = explainer.explain.remote(prompt, response_a, response_b)
        try:
            return dict(await asked)
        except BackPressureError:
            raise Refused(503, "too many explanations wait.", BUSY_S) from None
        except asyncio.CancelledError:
            # Nobody waits for it any more.
            asked.cancel()
            raise

    return ask


def running_app() -> FastAPI:
    """The app of this process's replica."""
    return _running[-1].routes
