"""What tests of the endpoint share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ramo_ray.serving.settings import ServingSettings

TOKEN = "a-token-that-nobody-guesses"


def settings_of(model: Path, **values: Any) -> ServingSettings:
    """Settings that answer everybody, unless told otherwise."""
    return ServingSettings.model_validate({"model": str(model), "insecure": True} | values)
