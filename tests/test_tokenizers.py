"""The tokenizer that a model folder gives: the same as transformers' own choice, found with less."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ramo_ray.errors import ModelError
from ramo_ray.tokenizers import CORRECTED, GENERAL, is_general, open_tokenizer

TEXT = "Dr. O'Neil's 1024 kites — <|im_end|> naïve\n\n  日本"


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Path) -> Path:
    """The tiny model's configuration and tokenizer, to be changed."""
    made = tmp_path / "model"
    shutil.copytree(tiny_model, made, ignore=shutil.ignore_patterns("*.safetensors"))
    return made


def state(folder: Path, file: str, **values: str) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "named", "general"),
    [
        ("llama", "TokenizersBackend", True),
        ("llama", "PreTrainedTokenizerFast", True),
        ("mistral", "TokenizersBackend", True),
        ("qwen2", "TokenizersBackend", False),
        ("qwen2", "Qwen2Tokenizer", False),
        ("llama", "GPT2Tokenizer", False),
    ],
)
def test_it_is_what_transformers_would_choose(folder: Path, model_type: str, named: str, general: bool) -> None:
    from transformers import AutoTokenizer

    state(folder, "config.json", model_type=model_type)
    state(folder, "tokenizer_config.json", tokenizer_class=named)
    expected = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    found = open_tokenizer(folder)
    assert is_general(folder) == general
    assert type(found) is type(expected)
    assert found(TEXT) == expected(TEXT)
    assert (found.eos_token_id, found.chat_template) == (expected.eos_token_id, expected.chat_template)


@pytest.mark.slow
def test_the_kinds_that_transformers_corrects_are_known() -> None:
    from transformers.models.auto import tokenization_auto as auto

    chosen = {kind: auto.TOKENIZER_MAPPING_NAMES.get(kind) for kind in auto.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS}
    assert {kind for kind, name in chosen.items() if name and name not in GENERAL} == CORRECTED


@pytest.mark.slow
def test_what_generates_is_not_loaded_for_it(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from ramo_ray.tokenizers import open_tokenizer;"
        "open_tokenizer(Path(sys.argv[1])); print('transformers.generation.utils' in sys.modules)"
    )
    for named, loaded in (("TokenizersBackend", "False"), ("GPT2Tokenizer", "True")):
        state(folder, "tokenizer_config.json", tokenizer_class=named)
        done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == loaded


@pytest.mark.slow
@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "config.json"])
@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_a_file_that_is_missing_or_broken_is_left_to_transformers(folder: Path, file: str, text: str | None) -> None:
    (folder / file).unlink() if text is None else (folder / file).write_text(text)
    # The tokenizer itself is not read to choose its class.
    assert is_general(folder) == (file == "tokenizer.json" and text is not None)


@pytest.mark.slow
def test_code_of_the_folders_own_is_left_to_transformers(folder: Path) -> None:
    (folder / "tekken.json").touch()
    assert not is_general(folder)
    (folder / "tekken.json").unlink()
    assert is_general(folder)
    state(folder, "tokenizer_config.json", auto_map="own.Tokenizer")
    assert not is_general(folder)


@pytest.mark.slow
def test_a_folder_without_one_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="Put the model's tokenizer files there"):
        open_tokenizer(tmp_path)
