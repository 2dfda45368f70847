"""One replica of the endpoint, as Ray Serve runs it: a process of its own with one model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from ramo_ray.serving.routes import make_app
from ramo_ray.serving.service import Service
from ramo_ray.serving.settings import ServingSettings
from ramo_ray.serving.tokens import TokenFile

_running: list[Replica] = []


class Replica:
    """Loads the model, warms it up, and is ready only then."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        own = ServingSettings.model_validate(settings)
        tokens = None if own.insecure else TokenFile(Path(own.tokens_file))
        self.service = Service(own)
        self.routes = make_app(self.service, tokens)
        _running.append(self)

    def check_health(self) -> None:
        """Called by Serve now and then; a replica that raises is replaced."""
        self.service.check()


def running_app() -> FastAPI:
    """The app of this process's replica."""
    return _running[-1].routes
