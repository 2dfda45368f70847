"""A model folder's tokenizer: the one that transformers would choose, without loading all that chooses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ramo_ray.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

GENERAL = frozenset({"TokenizersBackend", "PreTrainedTokenizerFast"})
"""Names of the class that does what tokenizer.json says, and nothing of its own."""
CORRECTED = frozenset({"qwen2"})
"""Kinds of models for which transformers takes a class of its own although the folder names the general one."""
NEEDED = ("tokenizer.json", "tokenizer_config.json", "config.json")
MISTRAL_FILE = "tekken.json"


def open_tokenizer(folder: Path) -> Tokenizer:
    """Load a model folder's tokenizer. Raises `ModelError` if there is none."""
    try:
        if is_general(folder):
            # AutoTokenizer comes to the same, but its import brings all that generates: 3.5 s of CPU in each process.
            from transformers import PreTrainedTokenizerFast as Loader
        else:
            from transformers import AutoTokenizer as Loader
        tokenizer: Tokenizer = Loader.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{folder}: no tokenizer could be loaded ({reason}). Put the model's tokenizer files there."
        ) from None
    return tokenizer


def is_general(folder: Path) -> bool:
    """Whether transformers (5.x) would take its general class for this folder, as its files alone tell."""
    if not all((folder / name).is_file() for name in NEEDED) or (folder / MISTRAL_FILE).exists():
        return False
    stated, model = _read(folder / "tokenizer_config.json"), _read(folder / "config.json")
    return (
        stated.get("tokenizer_class") in GENERAL
        and "auto_map" not in stated
        and "auto_map" not in model
        and bool(model.get("model_type"))
        and model["model_type"] not in CORRECTED
    )


def _read(file: Path) -> dict[str, Any]:
    """What a file of JSON says; nothing where it is broken, which transformers tells better."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
