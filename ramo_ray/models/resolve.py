"""Names of models to folders of weights, and folders to identities. Imports no model library before it needs one."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ramo_ray.errors import ModelError
from ramo_ray.models import bundled

BUNDLED = {
    "bundled:smollm2-135m-instruct": bundled.smollm2,
    "bundled:all-minilm-l6-v2": bundled.minilm,
}
EDGE_BYTES = 2**20

# What transformers, vLLM and sentence-transformers read; a repository's copies in other formats stay where they are.
DOWNLOADED = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
LEFT_OUT = ["original/*", "consolidated*", "onnx/*", "openvino/*", "pytorch/*"]


def resolve(name: str, revision: str | None = None) -> Path:
    """Return the folder that holds a model's config, weights and tokenizer.

    `name` is a bundled model, a local folder (it exists, or it starts with `/`, `./`, `../` or `~`) or a hub id,
    which `revision` may pin. Raises `ModelError` for a name that leads nowhere, `MissingPackageError` for a bundled
    model whose package is not installed.
    """
    if name in BUNDLED:
        return BUNDLED[name]()
    if name.startswith("bundled:"):
        raise ModelError(f"`{name}` is not a bundled model. Bundled are: {', '.join(BUNDLED)}.")
    folder = Path(name).expanduser()
    if name.startswith(("/", "./", "../", "~")) or folder.is_dir():
        return _local(folder)
    return _download(name, revision)


def _local(folder: Path) -> Path:
    if not folder.is_dir():
        raise ModelError(
            f"model folder {folder} does not exist. Give a folder in Hugging Face format, {_alternatives()}."
        )
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"model folder {folder} has no config.json. Give a folder in Hugging Face format, {_alternatives()}."
        )
    return folder.resolve()


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        found = snapshot_download(name, revision=revision, allow_patterns=DOWNLOADED, ignore_patterns=LEFT_OUT)
    except (OSError, HFValidationError, LocalEntryNotFoundError) as error:
        reason = " ".join(str(error).split())[:200]
        at = f" at revision {revision}" if revision else ""
        raise ModelError(
            f"model `{name}`{at} is neither a folder here nor to be had from the hub "
            f"({type(error).__name__}: {reason}). Give a local folder, {_alternatives()}."
        ) from None
    return _local(Path(found))


def _alternatives() -> str:
    return f"or a bundled model ({', '.join(BUNDLED)})"


def identity(folder: Path) -> str:
    """Hash what identifies a model to 16 hexadecimal digits, in milliseconds, for fingerprints.

    It covers `config.json`, `tokenizer.json` and, of each safetensors file, the name, the size and the first and
    last MiB. A file starts with the names, types and offsets of its tensors, so other layouts differ; weights that
    a training changed differ in the ends of the file too. The folder's place on disk does not matter.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name in ("config.json", "tokenizer.json"):
        file = folder / name
        _add(digest, name.encode(), file.read_bytes() if file.is_file() else b"")
    for file in sorted(folder.glob("*.safetensors")):
        _add(digest, file.name.encode(), str(file.stat().st_size).encode(), *_edges(file))
    return digest.hexdigest()


def _edges(file: Path) -> tuple[bytes, bytes]:
    with file.open("rb") as stream:
        first = stream.read(EDGE_BYTES)
        stream.seek(max(0, file.stat().st_size - EDGE_BYTES))
        return first, stream.read(EDGE_BYTES)


def _add(digest: hashlib.blake2b, *parts: bytes) -> None:
    for part in parts:
        # The length first: otherwise bytes could move from one part to the next unnoticed.
        digest.update(len(part).to_bytes(8, "big") + part)
